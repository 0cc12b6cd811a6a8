"""Ridge regression, of which everything is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesgen.operators import Matrix

float64 = torch.float64
Ridge = Callable[[Tensor, float], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


@pytest.fixture
def A() -> Matrix:
    return Matrix(random(15, 10, seed=1), domain_shape=(2, 5), range_shape=(3, 5))


@pytest.fixture
def truth() -> Tensor:
    return random(2, 5, seed=2)


@pytest.fixture
def y(A: Matrix, truth: Tensor) -> Tensor:
    """Noise of standard deviation 0.5."""
    return A(truth) + 0.5 * random(3, 5, seed=3)


@pytest.fixture
def ridge(A: Matrix) -> Ridge:
    def estimate(y: Tensor, weight: float) -> Tensor:
        normal = A.matrix.T @ A.matrix + weight * torch.eye(10, dtype=float64)
        return torch.linalg.solve(normal, A.matrix.T @ y.flatten()).reshape(2, 5)

    return estimate
