"""Linear images with Gaussian noise, of which every score is known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design.belief import Belief

float64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def exact_draws(num: int, mean: Tensor, covariance: Tensor, seed: int = 0) -> Tensor:
    """Draws whose sample mean and covariance (by S - 1) are those given, to rounding."""
    noise = random(num, len(mean), seed=seed)
    noise = noise - noise.mean(0)
    root = torch.linalg.cholesky(noise.T @ noise / (num - 1))
    white = torch.linalg.solve_triangular(root, noise.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(covariance).T


@dataclass(frozen=True)
class LinearGaussian:
    """An image of d pixels, n candidates that measure q linear functions of it each."""

    matrix: Tensor  # (n, q, d)
    covariance: Tensor  # (d, d)
    noise: Tensor  # (n, q)
    images: Tensor  # (S, d)

    @property
    def belief(self) -> Belief:
        n, q, _ = self.matrix.shape
        return Belief(
            images=self.images,
            data=torch.einsum("nqd,sd->snq", self.matrix, self.images),
            noise=self.noise,
            available=torch.ones(n, dtype=torch.bool),
            costs_from=lambda last: torch.ones(n, dtype=float64),
            measured=(),
            values=torch.zeros(0, q, dtype=float64),
            round=0,
            rng=torch.Generator().manual_seed(0),
        )

    def but(self, **changes: Any) -> Belief:
        return replace(self.belief, **changes)

    def joint(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows and noise variances of several candidates together."""
        chosen = list(indices)
        return self.matrix[chosen].flatten(0, 1), self.noise[chosen].flatten().square()

    def information(self, indices: Sequence[int]) -> float:
        """Nats that these measurements tell together."""
        A, variances = self.joint(indices)
        told = A @ self.covariance @ A.T / variances[:, None]
        return 0.5 * float(torch.logdet(torch.eye(len(A), dtype=float64) + told))

    def posterior(self, indices: Sequence[int]) -> Tensor:
        """Covariance of the image after these measurements."""
        if not indices:
            return self.covariance
        A, variances = self.joint(indices)
        cross = self.covariance @ A.T
        return self.covariance - cross @ torch.linalg.solve(
            A @ cross + torch.diag(variances), cross.T
        )


Problem = Callable[..., LinearGaussian]


@pytest.fixture
def problem() -> Problem:
    """Makes one of a given size."""

    def make(n: int = 7, q: int = 1, d: int = 5, draws: int = 12, seed: int = 0) -> LinearGaussian:
        root = random(d, d, seed=seed + 1)
        covariance = root @ root.T + 0.1 * torch.eye(d, dtype=float64)
        matrix = random(n, q, d, seed=seed + 2)
        noise = 0.2 + random(n, q, seed=seed + 3).abs()
        mean = random(d, seed=seed + 4)
        return LinearGaussian(matrix, covariance, noise, exact_draws(draws, mean, covariance, seed))

    return make
