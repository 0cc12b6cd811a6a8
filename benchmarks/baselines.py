"""Reconstruction without a generator on the published problems: total variation and Tikhonov.

    python benchmarks/baselines.py --data FOLDER_WITH_MNIST

Compressed sensing of digits (150 measurements, images 100-199 of the test set) and tomography of
shapes (56 x 56, default angles), operators normalised, independent noise for each image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from report import table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.models.evaluation import psnr
from bayesgen.operators import Operator
from bayesgen.reconstruction import tikhonov, total_variation


def problems(data: Path, images: int) -> Iterator[tuple[str, Operator, Tensor, float, Any]]:
    """Name, operator, true images, noise, and the weights for total variation and Tikhonov."""
    digits = bg.datasets.mnist(data, "test")[100 : 100 + images]
    A: Operator = bg.operators.GaussianMatrix((28, 28), 150, seed=0).normalised()
    # Those that were published among them: 0.0061 for digits, 0.0488 for shapes.
    yield "digits, 150 projections", A, digits, 0.1, ((0.0061035, 0.025), (0.02, 0.1, 0.5))
    yield "digits, 150 projections", A, digits, 0.05, ((0.0061035, 0.025), (0.02, 0.1, 0.5))
    phantoms = bg.datasets.shapes(images, seed=1)
    R = bg.operators.Radon((56, 56)).normalised()
    yield "shapes, tomography", R, phantoms, 0.1, ((0.0244141, 0.048828), (0.05, 0.195, 0.5))


def measure(A: Operator, truth: Tensor, sigma: float) -> Tensor:
    """Data with noise of its own for each image."""
    rng = torch.Generator().manual_seed(0)
    return A(truth) + sigma * torch.randn(len(truth), *A.range_shape, generator=rng)


def row(name: str, sigma: float, method: str, weight: float, found: Tensor, truth: Tensor) -> Any:
    """One line of the table."""
    values = psnr(found, truth)
    mean, deviation = float(values.mean()), float(values.std())
    return [name, sigma, method, weight, f"{mean:.2f} ± {deviation:.2f}", f"{mean + 6.02:.2f}"]


def main() -> None:
    """Solve, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the MNIST files")
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    rows: list[Sequence[Any]] = []
    for name, A, truth, sigma, (betas, lambdas) in problems(options.data, options.images):
        y = measure(A, truth, sigma)
        for boundary in ("zero", "reflect"):
            for beta in betas:
                clock = time.perf_counter()
                found = total_variation(A, y, beta, boundary=boundary)
                seconds = (time.perf_counter() - clock) / len(truth)
                entry = row(name, sigma, f"TV, {boundary}", beta, found, truth)
                rows.append([*entry, f"{seconds:.3f}"])
                print(*rows[-1], sep=" | ", flush=True)
        for weight in lambdas:
            clock = time.perf_counter()
            found = tikhonov(A, y, weight)
            seconds = (time.perf_counter() - clock) / len(truth)
            rows.append([*row(name, sigma, "Tikhonov", weight, found, truth), f"{seconds:.3f}"])
            print(*rows[-1], sep=" | ", flush=True)
    header = ["problem", "sigma", "method", "weight", "PSNR, dB", "range 2", "s an image"]
    text = (
        f"{options.images} images; PSNR for a data range of 1, and its mean for a range of 2 as "
        "published. Total variation with zero beyond the edge is what the published runs used.\n\n"
        + table(header, rows)
    )
    write("baselines", "Reconstruction without a generator", text, {"rows": rows})


if __name__ == "__main__":
    main()
