from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesgen.numerics import gradient_error, largest_singular_value


def _matrix(rows: int, columns: int, seed: int, rank: int | None = None) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    left = torch.randn(rows, rank, generator=rng, dtype=torch.float64)
    return left @ torch.randn(rank, columns, generator=rng, dtype=torch.float64)


def _start(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(99)
    return torch.randn(size, generator=rng, dtype=torch.float64).to(dtype)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.integers(1, 4))
def test_largest_singular_value_of_any_matrix(
    rows: int, columns: int, seed: int, rank: int
) -> None:
    matrix = _matrix(rows, columns, seed, rank)
    found = largest_singular_value(matrix.mv, matrix.T.mv, _start(columns))
    assert found == pytest.approx(_norm(matrix), rel=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("shape", [(150, 784), (784, 150), (300, 300)])
def test_largest_singular_value_of_a_large_matrix(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    matrix = _matrix(*shape, seed=1).to(dtype)
    products = []

    def forward(x: Tensor) -> Tensor:
        products.append(x)
        return matrix @ x

    found = largest_singular_value(forward, matrix.T.mv, _start(shape[1], dtype))
    assert found == pytest.approx(_norm(matrix), rel=tolerance)
    assert len(products) < 70


def test_close_leading_singular_values() -> None:
    """Where as many steps of a power iteration are still far off."""
    values = torch.linspace(0, 1, 500, dtype=torch.float64).sqrt()
    found = largest_singular_value(values.mul, values.mul, _start(500))
    assert found == pytest.approx(1.0, rel=1e-10)
    power = _start(500)
    for _ in range(100):
        power = values**2 * power / power.norm()
    assert abs(float(power.norm()) - 1.0) > 1e-4


def test_simple_maps() -> None:
    def zero(x: Tensor) -> Tensor:
        return 0 * x

    def double(x: Tensor) -> Tensor:
        return 2 * x

    assert largest_singular_value(zero, zero, _start(5)) == 0.0
    assert largest_singular_value(double, double, _start(12).reshape(3, 4)) == pytest.approx(2.0)
    assert largest_singular_value(double, double, _start(1)) == pytest.approx(2.0)


def test_too_few_steps_are_reported() -> None:
    matrix = _matrix(80, 80, seed=3)
    with pytest.warns(RuntimeWarning, match="relative residual .* after 5 steps, wanted 1.0e-08"):
        found = largest_singular_value(matrix.mv, matrix.T.mv, _start(80), max_steps=5)
    assert 0.5 * _norm(matrix) < found < _norm(matrix)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 5e-3)])
def test_gradient_error(dtype: torch.dtype, tolerance: float) -> None:
    x = _start(6, dtype)
    assert gradient_error(lambda x: (x.sin() * x**2).sum(), x, x.flip(0)) < tolerance
    assert gradient_error(lambda x: 0 * x.sum(), x, x.flip(0)) == 0.0

    def wrong(x: Tensor) -> Tensor:
        """The gradient lacks one of the two factors."""
        return (x.sin() * x.detach() ** 2).sum()

    assert gradient_error(wrong, x, x.flip(0)) > 1e-2
