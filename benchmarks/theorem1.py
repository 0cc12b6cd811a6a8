"""Theorem 1 of Asim et al.: the expected error of compressed sensing with an invertible prior.

    python benchmarks/theorem1.py

Images x = G z have independent normal entries of standard deviations s_1 >= s_2 >= ..., data are
m standard normal measurements without noise. The likeliest image that fits the data has an
expected squared error between the sum of s_i^2 over i > m, which no estimator from m linear
measurements can beat, and m times the sum over i > m - 2. The randomised range finder gives a
sharper upper bound; the error must keep within it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from report import table, write
from torch import Tensor

from bayesgen.models.linear import LinearGenerator
from bayesgen.operators import GaussianMatrix

NUM_PIXELS = 100
SPECTRA = {
    "1 / i": 1 / torch.arange(1, NUM_PIXELS + 1, dtype=torch.float64),
    "exp(-(i - 1) / 10)": torch.exp(-torch.arange(NUM_PIXELS, dtype=torch.float64) / 10),
    "1": torch.ones(NUM_PIXELS, dtype=torch.float64),
}
ROWS = (10, 25, 50, 75)


def bounds(s: Tensor, m: int) -> tuple[float, float, float]:
    """Lower bound, bound of the range finder, bound of the theorem."""
    tail = s.square().flip(0).cumsum(0).flip(0)  # tail[k] is the sum over i > k
    ranks = torch.arange(2, m - 1)
    sharp = (1 + ranks / (m - ranks - 1)) * tail[ranks]
    return float(tail[m]), float(sharp.min()), m * float(tail[m - 2])


def likeliest(G: LinearGenerator, A: GaussianMatrix, y: Tensor) -> Tensor:
    """Maximise the density of images subject to A x = y: Sigma A^T (A Sigma A^T)^-1 y."""
    root = A(G.weight.T).T
    return G.weight @ root.T @ torch.linalg.solve(root @ root.T, y)


def squared_errors(s: Tensor, m: int, draws: int) -> Tensor:
    """Of the likeliest image, for as many images with a matrix each."""
    G = LinearGenerator.from_tensors(torch.diag(s), torch.zeros_like(s), noise_level=0.0)
    rng = torch.Generator().manual_seed(m)
    x = G(torch.randn(draws, len(s), generator=rng, dtype=torch.float64))
    errors = []
    for seed, truth in enumerate(x):
        A = GaussianMatrix((len(s),), m, seed=seed, dtype=torch.float64, std=1.0)
        errors.append((likeliest(G, A, A(truth)) - truth).square().sum())
    return torch.stack(errors)


def main() -> None:
    """Estimate the errors, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    rows: list[list[Any]] = []
    for name, s in SPECTRA.items():
        for m in ROWS:
            errors = squared_errors(s, m, options.draws)
            error, std = float(errors.mean()), float(errors.std()) / options.draws**0.5
            lower, sharp, theorem = bounds(s, m)
            # Five standard errors: for equal s_i the error is the lower bound.
            assert lower - 5 * std <= error <= sharp + 5 * std, (name, m, lower, error, sharp)
            assert sharp <= theorem, (name, m, sharp, theorem)
            rows.append([name, m, lower, error, std, sharp, theorem])
    header = ["s_i", "m", "lower bound", "expected error", "sharper bound", "theorem's bound"]
    text = table(
        header,
        [
            [f"`{name}`", m, f"{low:.3g}", f"{error:.4g} ± {std:.1g}", f"{sharp:.3g}", f"{top:.3g}"]
            for name, m, low, error, std, sharp, top in rows
        ],
    )
    text += (
        f"\n\nSquared error of an image of {NUM_PIXELS} pixels with its standard error, from "
        f"{options.draws} draws of image and matrix. Bounds: Asim et al. (2020), theorem 1; Halko, "
        "Martinsson and Tropp (2011), theorem 10.5."
    )
    names = ["spectrum", "m", "lower", "error", "standard_error", "sharper", "theorem"]
    results = {
        "draws": options.draws,
        "pixels": NUM_PIXELS,
        "rows": [dict(zip(names, row, strict=True)) for row in rows],
    }
    write("theorem1", "Expected error with an invertible prior (theorem 1)", text, results)


if __name__ == "__main__":
    main()
