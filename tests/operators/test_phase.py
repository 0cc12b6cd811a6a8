from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.operators import Identity, Matrix, check_operator
from bayesgen.operators.fourier import Fourier
from bayesgen.operators.phase import PhaseRetrieval


def _random(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


MAKERS = {
    "of coils": lambda power: PhaseRetrieval(
        Fourier((3, 5), sensitivities=torch.complex(*_random(2, 2, 3, 5))), power=power
    ),
    "gaussian": lambda power: PhaseRetrieval.gaussian(
        (2, 3, 5), 7, power=power, dtype=torch.float64
    ),
    "fourier": lambda power: PhaseRetrieval.fourier((3, 4), power=power),
    "fourier, complex image": lambda power: PhaseRetrieval.fourier(
        (2, 4, 3), oversampling=1.5, power=power
    ),
}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checks_pass(maker: str, power: int, dtype: torch.dtype) -> None:
    check_operator(MAKERS[maker](power), dtype=dtype).raise_if_failed()


@pytest.mark.parametrize("power", [1, 2])
def test_magnitudes_of_a_complex_matrix(power: int) -> None:
    A = PhaseRetrieval.gaussian((3, 4), 9, power=power, seed=5, dtype=torch.float64)
    parts = A.operator.matrix.numpy().reshape(9, 2, 12)
    matrix, x = parts[:, 0] + 1j * parts[:, 1], _random(4, 3, 4)
    exact = np.abs(x.flatten(1).numpy() @ matrix.T) ** power
    np.testing.assert_allclose(A(x).numpy(), exact, rtol=1e-12)
    assert torch.equal(A(x), A(-x))


@pytest.mark.parametrize("shape", [(3, 4), (5, 5), (1, 6)])
@pytest.mark.parametrize("oversampling", [1, 1.5, 2])
def test_magnitudes_of_the_padded_fourier_transform(
    shape: tuple[int, int], oversampling: float
) -> None:
    """Magnitudes do not tell where in its frame the image lies: NumPy may put it into a corner."""
    x, y = _random(*shape), _random(*shape).flip(0, 1)
    sides = [round(oversampling * n) for n in shape]
    A = PhaseRetrieval.fourier(shape, oversampling=oversampling)
    exact = np.abs(np.fft.fftshift(np.fft.fft2(x, sides, norm="ortho"))) ** 2
    np.testing.assert_allclose(A(x).numpy(), exact, atol=1e-13)
    B = PhaseRetrieval.fourier((2, *shape), oversampling=oversampling, power=1)
    exact = np.abs(np.fft.fftshift(np.fft.fft2(x + 1j * y, sides, norm="ortho")))
    np.testing.assert_allclose(B(torch.stack([x, y])).numpy(), exact, atol=1e-13)
    assert float(A(x).sum()) == pytest.approx(float(x.square().sum()))


def test_image_lies_in_the_middle_of_its_frame() -> None:
    for n in (4, 5):
        A = PhaseRetrieval.fourier((n, n)).operator
        point = torch.zeros(n, n)
        point[n // 2, n // 2] = 1.0
        # At the origin of the transform: real and the same everywhere.
        assert torch.allclose(A(point), torch.tensor([1 / (2 * n), 0.0]), atol=1e-7)


def test_gaussian_rows_have_the_stated_variance() -> None:
    """80 000 standardised parts: the variance within five standard errors (6e-7)."""
    A = PhaseRetrieval.gaussian((20, 20), 100, dtype=torch.float64)
    parts = A.operator.matrix * math.sqrt(2 * 100)
    assert abs(float(parts.var()) - 1) < 5 * (2 / 80_000) ** 0.5
    # Variance 1 / rows of each part, the usual mistake, is far outside.
    assert abs(2 - 1) > 5 * (2 / 80_000) ** 0.5
    other = PhaseRetrieval.gaussian((20, 20), 100, seed=1, dtype=torch.float64)
    assert not torch.equal(A.operator.matrix, other.operator.matrix)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-19, 1e-12])
def test_derivatives_are_finite_at_zero(power: int, dtype: torch.dtype, scale: float) -> None:
    A = MAKERS["gaussian"](power).to(dtype)
    x = (scale * _random(2, 3, 5)).to(dtype).requires_grad_()
    (slope,) = torch.autograd.grad(A(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad((slope * _random(2, 3, 5).to(dtype)).sum(), x)
    assert torch.isfinite(slope).all()
    assert torch.isfinite(curvature).all()
    if scale == 0.0:
        assert not slope.any()
        assert power == 2 or not curvature.any()
        # What a plain square root would do.
        plain = x.detach().requires_grad_()
        root = A.operator(plain).square().sum(-1).sqrt()
        assert torch.isnan(torch.autograd.grad(root.sum(), plain)[0]).all()


def test_entries_of_the_data_are_computed_alone() -> None:
    A, x = MAKERS["gaussian"](1), _random(4, 2, 3, 5)
    some = A[[5, 0]]
    assert torch.allclose(some(x), A(x)[:, [5, 0]])
    assert isinstance(some, PhaseRetrieval)
    assert some.operator.matrix.shape == (4, 30)


def test_linear_maps_and_names() -> None:
    A = PhaseRetrieval(Fourier((2, 3)))
    assert not A.linear
    assert (str(A), str(PhaseRetrieval(Fourier((2, 3)), power=1))) == ("|Fourier|^2", "|Fourier|")
    with pytest.raises(OptionError, match="not linear"):
        A.adjoint(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PhaseRetrieval(Identity((4, 3))), ShapeError, r"\(..., 2\), got the range \(4, 3"),
        (lambda: PhaseRetrieval(Matrix(torch.ones(2, 3))), ShapeError, r"got the range \(2,\)"),
        (lambda: PhaseRetrieval(Fourier((2, 2)), power=3), OptionError, "expected 1 or 2, got 3"),
        (
            lambda: PhaseRetrieval(PhaseRetrieval(Fourier((2, 2, 2)))),
            OptionError,
            r"expected a linear one, got \|Fourier\|\^2",
        ),
        (lambda: PhaseRetrieval.gaussian((2, 2), 0), OptionError, "rows: expected a positive"),
        (lambda: PhaseRetrieval.gaussian((2, 2), 1.5), OptionError, "rows: expected a positive"),
        (lambda: PhaseRetrieval.fourier((4,)), ShapeError, r"expected \(y, x\) for real"),
        (lambda: PhaseRetrieval.fourier((3, 4, 4)), ShapeError, r"or \(2, y, x\) for complex"),
        (
            lambda: PhaseRetrieval.fourier((4, 4), oversampling=0.5),
            OptionError,
            "oversampling: expected a number of at least 1, got 0.5",
        ),
    ],
)
def test_bad_phase_retrieval(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
