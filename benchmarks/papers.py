"""The papers' tables, from the shipped generators.

    python benchmarks/papers.py compressed-sensing --mnist FOLDER

Compressed sensing of digits (Duff, Campbell and Ehrhardt, first version, table 1a): 150 Gaussian
measurements of 784 pixels, the matrix divided by its norm, noise of 0.1 and 0.05 for each. Weights
are chosen on test images 0 to 19, each with noise of its own; results are of images 100 to 199. Of
several restarts the one with the best objective counts, whatever its error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import table, write
from torch import Tensor

import bayesgen as bg

# As printed, with a range of 2, less 20 log10(2).
PUBLISHED = {
    "hard, mnist-vae-8": 16.31,
    "hard, mnist-ae-8": 15.82,
    "hard, mnist-wgan-8": 10.91,
    "relaxed, mnist-vae-8": 14.05,
    "sparse, mnist-vae-8": 15.06,
    "total variation": 15.52,
}


@dataclass(frozen=True)
class Problem:
    """Data of many images under one operator."""

    A: bg.operators.Operator
    sigma: float
    truth: Tensor
    y: Tensor


Estimator = Callable[[Problem, float], Tensor]


def problem(A: Any, sigma: float, truth: Tensor, seed: int) -> Problem:
    """Simulate data."""
    clean = A(truth)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return Problem(A, sigma, truth, clean + sigma * noise)


def point(model: Callable[[Problem, float], Any], restarts: int = 8) -> Estimator:
    """The best of several restarts, for every image of a problem at once."""

    def estimate(given: Problem, weight: float) -> Tensor:
        found = bg.infer(
            model(given, weight),
            given.y,
            method="map",
            chains=restarts,
            batched=True,
            progress=False,
        )
        return found.mode("x")

    return estimate


def by_total_variation(given: Problem, weight: float) -> Tensor:
    """The classical baseline."""
    beta = weight * given.sigma**2
    return bg.reconstruction.total_variation(given.A, given.y, beta, tolerance=1e-3)


def linear_estimate(images: Tensor) -> Estimator:
    """Best linear estimate from the mean and covariance of training images: no network at all."""
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    covariance = torch.cov(flat.T)

    def estimate(given: Problem, weight: float) -> Tensor:
        count = mean.numel()
        A = given.A(torch.eye(count).reshape(count, *given.A.domain_shape)).double().T
        data = given.y.double() - A @ mean
        S = A @ covariance @ A.T + weight * given.sigma**2 * torch.eye(len(A), dtype=A.dtype)
        found = mean + torch.linalg.solve(S, data.T).T @ A @ covariance
        return found.reshape(-1, *given.A.domain_shape).float()

    return estimate


def arms(images: Tensor) -> dict[str, tuple[Estimator, tuple[float, ...]]]:
    """Every method, and the weights it is tuned over."""
    G = {name: bg.models.load(name) for name in bg.models.names() if name.startswith("mnist")}

    def hard(name: str) -> Estimator:
        return point(lambda p, w: bg.regularisers.hard(G[name], p.A, p.sigma, latent_weight=w))

    def relaxed(name: str) -> Estimator:
        return point(lambda p, w: bg.regularisers.relaxed(G[name], p.A, p.sigma, w))

    def sparse(name: str) -> Estimator:
        return point(lambda p, w: bg.regularisers.sparse(G[name], p.A, p.sigma, w))

    weights, scales = (0.3, 1.0, 3.0), (0.05, 0.1, 0.15)
    return {
        "hard, mnist-vae-8": (hard("mnist-vae-8"), weights),
        "hard, mnist-ae-8": (hard("mnist-ae-8"), weights),
        "hard, mnist-wgan-8": (hard("mnist-wgan-8"), weights),
        "relaxed, mnist-vae-8": (relaxed("mnist-vae-8"), scales),
        "sparse, mnist-vae-8": (sparse("mnist-vae-8"), (0.02, 0.05, 0.1)),
        "relaxed, mnist-vae": (relaxed("mnist-vae"), scales),
        "relaxed, mnist-vae-32": (relaxed("mnist-vae-32"), scales),
        "total variation": (by_total_variation, (0.6, 1.2, 2.5, 5.0)),
        "linear, PCA covariance": (linear_estimate(images), (0.5, 1.0, 2.0)),
    }


def psnr(found: Tensor, truth: Tensor) -> Tensor:
    """Of each image, for a range of 1."""
    return -10 * (found - truth).square().mean((-2, -1)).log10()


def compressed_sensing(mnist: Path, sigmas: Sequence[float], names: Sequence[str]) -> None:
    """Tune, measure, write the table."""
    test, train = (bg.datasets.mnist(mnist, split) for split in ("test", "train"))
    A = bg.operators.GaussianMatrix((28, 28), rows=150, seed=0).normalised()
    rows, results = [], {}
    for sigma in sigmas:
        tuning = problem(A, sigma, test[:20], seed=1)
        measured = problem(A, sigma, test[100:200], seed=2)
        for name, (estimate, grid) in arms(train[:20_000]).items():
            if names and name not in names:
                continue
            tuned = {w: psnr(estimate(tuning, w), tuning.truth).mean().item() for w in grid}
            weight = max(tuned, key=lambda w: tuned[w])
            clock = time.perf_counter()
            values = psnr(estimate(measured, weight), measured.truth)
            seconds = (time.perf_counter() - clock) / len(values)
            published = PUBLISHED.get(name) if sigma == 0.1 else None
            results[f"{sigma}, {name}"] = {
                "weight": weight,
                "psnr": values.mean().item(),
                "std": values.std().item(),
                "seconds_per_image": seconds,
                "published": published,
            }
            spread = f"{values.mean():.2f} ± {values.std():.2f}"
            doubled = f"{values.mean() + 6.02:.2f}"
            rows.append([sigma, name, weight, spread, doubled, published or "", f"{seconds:.3f}"])
            print(rows[-1], flush=True)
    header = ["sigma", "method", "weight", "PSNR, range 1", "range 2", "published, range 1"]
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    write(
        "papers_compressed_sensing",
        "Compressed sensing of digits",
        text + "\n\n" + table([*header, "s an image"], rows),
        {"results": results},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("experiment", choices=["compressed-sensing"])
    parser.add_argument("--mnist", type=Path, default=Path("mnist"), help="folder with MNIST")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD")
    options = parser.parse_args(arguments)
    compressed_sensing(options.mnist, options.sigma, options.only)


if __name__ == "__main__":
    main()
