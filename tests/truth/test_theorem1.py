"""Theorem 1 of Asim et al. (2020), Invertible generative models for inverse problems.

Images x = G z with singular values s_1 >= s_2 >= ... of G, data y = A x without noise from m rows
of standard normal entries, and the likeliest image that fits the data. Its expected squared error
is at least the sum of s_i^2 over i > m and at most m times the sum over i > m - 2. False-alarm
rate of every check: 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from bayesgen.models.linear import LinearGenerator
from bayesgen.operators import GaussianMatrix

float64 = torch.float64
n, m, DRAWS = 40, 10, 400
SPECTRA = {
    "slow": 1 / torch.arange(1, n + 1, dtype=float64),
    "fast": torch.exp(-torch.arange(n, dtype=float64) / 4),
    "flat": torch.ones(n, dtype=float64),
}
BOUND = norm.isf(0.5e-6)


def generator(s: Tensor) -> LinearGenerator:
    """Singular values ``s``, a rotation on either side, a mean."""
    rng = torch.Generator().manual_seed(5)
    left, right = torch.linalg.qr(torch.randn(2, n, n, generator=rng, dtype=float64))[0]
    mean = torch.randn(4, n // 4, generator=rng, dtype=float64)
    return LinearGenerator.from_tensors((left * s @ right).reshape(4, n // 4, n), mean, 0.0)


def likeliest(G: LinearGenerator, A: GaussianMatrix, y: Tensor) -> Tensor:
    """Maximise p(x) subject to A x = y: mu + Sigma A^T (A Sigma A^T)^-1 (y - A mu)."""
    W = G.weight.flatten(0, -2)
    covariance = W @ W.T
    gain = covariance @ A.matrix.T @ torch.linalg.inv(A.matrix @ covariance @ A.matrix.T)
    return G.mean + (gain @ (y - A(G.mean))).reshape(G.image_shape)


def without_sigma(G: LinearGenerator, A: GaussianMatrix, y: Tensor) -> Tensor:
    """A mutant: the image nearest to the mean."""
    shortest = A.matrix.T @ torch.linalg.solve(A.matrix @ A.matrix.T, y - A(G.mean))
    return G.mean + shortest.reshape(G.image_shape)


def squared_errors(
    G: LinearGenerator, estimate: Callable[[LinearGenerator, GaussianMatrix, Tensor], Tensor]
) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    x = G(torch.randn(DRAWS, n, generator=rng, dtype=float64))
    errors = []
    for seed, truth in enumerate(x):
        A = GaussianMatrix(G.image_shape, m, seed=seed, dtype=float64, std=1.0)
        errors.append((estimate(G, A, A(truth)) - truth).square().sum())
    return torch.stack(errors)


def within(errors: Tensor, least: float, most: float) -> bool:
    error = float(errors.std()) / len(errors) ** 0.5
    return least - BOUND * error <= float(errors.mean()) <= most + BOUND * error


@pytest.mark.parametrize("name", SPECTRA)
def test_the_expected_error_is_within_the_bounds(name: str) -> None:
    s = SPECTRA[name]
    tail = [float(s[k:].square().sum()) for k in range(n)]
    theorem = m * tail[m - 2]
    # Halko, Martinsson and Tropp (2011), theorem 10.5.
    sharp = min((1 + k / (m - k - 1)) * tail[k] for k in range(2, m - 1))
    assert tail[m] < sharp <= theorem
    G = generator(s)
    errors = squared_errors(G, likeliest)
    assert within(errors, tail[m], sharp)
    if name == "flat":
        # All directions alike, so Sigma can be left out; the error is known: n - m.
        assert within(errors, n - m, n - m)
        assert not within(errors, n - m + 2, n - m + 2)
        return
    mutant = squared_errors(G, without_sigma)
    assert not within(mutant, tail[m], sharp)
    assert name == "slow" or not within(mutant, tail[m], theorem)


@pytest.mark.parametrize("name", SPECTRA)
def test_it_is_the_limit_of_the_posterior_mean(name: str) -> None:
    G = generator(SPECTRA[name])
    A = GaussianMatrix(G.image_shape, m, dtype=float64, std=1.0)
    rng = torch.Generator().manual_seed(2)
    y = A(G(torch.randn(n, generator=rng, dtype=float64)))
    expected = likeliest(G, A, y)
    torch.testing.assert_close(A(expected), y)
    exact, _ = G.posterior(A, y, 0.0)
    torch.testing.assert_close(G(exact), expected)
    distances = [float((G(G.posterior(A, y, s)[0]) - expected).norm()) for s in (1e-1, 1e-2, 1e-3)]
    # The distance falls with the square of the noise level.
    assert 50 < distances[1] / distances[2] < 101
    assert distances[0] > distances[1]
    mutant = without_sigma(G, A, y)
    assert name == "flat" or float((mutant - expected).norm()) > 0.1


@pytest.mark.parametrize("name", SPECTRA)
def test_the_error_is_the_variance_of_the_posterior(name: str) -> None:
    """On average over images and matrices, a two-sided z-test."""
    G = generator(SPECTRA[name])
    W = G.weight.flatten(0, -2)
    rng = torch.Generator().manual_seed(3)
    x = G(torch.randn(DRAWS, n, generator=rng, dtype=float64))
    surplus, variances = [], []
    for seed, truth in enumerate(x):
        A = GaussianMatrix(G.image_shape, m, seed=seed, dtype=float64, std=1.0)
        mean, covariance = G.posterior(A, A(truth), 0.0)
        variances.append((W @ covariance @ W.T).trace())
        surplus.append((G(mean) - truth).square().sum() - variances[-1])
    excess = torch.stack(surplus)
    assert within(excess, 0.0, 0.0)
    # A posterior half as wide would be seen.
    assert not within(excess + 0.5 * torch.stack(variances), 0.0, 0.0)
