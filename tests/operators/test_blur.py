from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import Blur, gaussian_kernel

SCIPY_MODE = {"zero": "constant", "periodic": "wrap", "reflect": "reflect"}


def _random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _reference(x: Tensor, kernel: Tensor, mode: str) -> Tensor:
    return torch.as_tensor(convolve(x.numpy(), kernel.numpy(), mode=mode))


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from(sorted(SCIPY_MODE)), st.integers(1, 9), st.integers(1, 9))
def test_agrees_with_scipy(data: st.DataObject, boundary: Any, height: int, width: int) -> None:
    size = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    kernel, x = _random(*size, seed=1), _random(height, width)
    A = Blur((height, width), kernel, boundary)
    torch.testing.assert_close(A(x), _reference(x, kernel, SCIPY_MODE[boundary]))


@pytest.mark.parametrize("boundary", SCIPY_MODE)
@pytest.mark.parametrize("size", [(3, 5), (4, 2)])
def test_comparison_with_scipy_notices_mistakes(boundary: Any, size: tuple[int, int]) -> None:
    """Correlation for convolution, a shift by a pixel, another boundary."""
    kernel, x = _random(*size, seed=1), _random(8, 9)
    result = Blur((8, 9), kernel, boundary)(x)
    others = [mode for mode in ("constant", "wrap", "reflect") if mode != SCIPY_MODE[boundary]]
    wrong = [_reference(x, kernel, mode) for mode in [*others, "mirror"]]
    wrong.append(_reference(x, kernel.flip(0, 1), SCIPY_MODE[boundary]))
    wrong.append(_reference(x.roll(1, 0), kernel, SCIPY_MODE[boundary]))
    assert all((result - mistake).abs().max() > 0.1 for mistake in wrong)


@pytest.mark.parametrize("boundary", SCIPY_MODE)
def test_channels_are_blurred_one_by_one(boundary: Any) -> None:
    kernel, x = _random(3, 4), _random(5, 2, 6, 7)
    stack = Blur((2, 6, 7), kernel, boundary)(x)
    assert torch.allclose(stack, Blur((6, 7), kernel, boundary)(x))


def test_constants_are_kept_by_reflection_and_periodicity() -> None:
    x, kernel = torch.ones(9, 8, dtype=torch.float64), _random(4, 5).abs()
    kernel /= kernel.sum()
    assert torch.allclose(Blur((9, 8), kernel, "reflect")(x), x)
    assert torch.allclose(Blur((9, 8), kernel, "periodic")(x), x)
    assert Blur((9, 8), kernel, "zero")(x)[0, 0] < 0.9


def test_norm_of_a_large_blur() -> None:
    """A normalised kernel with reflection has norm one: it only averages, in both directions."""
    kernel = gaussian_kernel(9, std=2.0, dtype=torch.float64)
    assert Blur((64, 48), kernel, "periodic").norm() == pytest.approx(1.0, rel=1e-14)
    assert Blur((64, 48), kernel, "reflect").norm() == pytest.approx(1.0, rel=1e-10)
    assert 0.9 < Blur((64, 48), kernel, "zero").norm() < 1.0


def test_caller_keeps_the_kernel() -> None:
    kernel = torch.ones(1, 1)
    A = Blur((1, 1), kernel, "periodic")
    kernel[:] = 5.0
    assert A(torch.ones(1, 1)).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((4,), torch.ones(1, 1)), ShapeError, r"expected \(y, x\) or \(channel, y, x\)"),
        (((1, 1, 4, 4), torch.ones(1, 1)), ShapeError, r"expected \(y, x\) or \(channel, y, x\)"),
        (((4, 4), torch.ones(3)), ShapeError, r"kernel: expected two dimensions .* got \(3,\)"),
        (((4, 4), torch.ones(0, 3)), ShapeError, r"kernel: expected two dimensions"),
        (((4, 4), torch.ones(3, 5)), ShapeError, r"\(3, 5\) is larger than the image \(4, 4\)"),
        (((4, 4), torch.ones(2, 2).int()), DtypeError, r"got torch.int32; convert it"),
        (((4, 4), torch.ones(2, 2) * 1j), DtypeError, "real floating-point, got torch.complex64"),
        (((4, 4), torch.tensor([[torch.nan]])), DataError, "an entry is NaN or infinite"),
        (((4, 4), torch.ones(2, 2), "reflct"), OptionError, "did you mean 'reflect'?"),
    ],
)
def test_bad_blurs(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Blur(*arguments)


def test_gaussian_kernel() -> None:
    kernel = gaussian_kernel((5, 4), std=1.5, dtype=torch.float64)
    assert kernel.shape == (5, 4)
    assert float(kernel.sum()) == pytest.approx(1.0)
    assert torch.equal(kernel, kernel.flip(0))
    assert torch.equal(kernel, kernel.flip(1))
    assert float(kernel[3, 1] / kernel[2, 1]) == pytest.approx(float(torch.tensor(-1 / 4.5).exp()))
    assert gaussian_kernel(3, std=1.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "std", "message"),
    [
        (0, 1.0, "size: expected a positive integer or two of them, got 0"),
        ((3, 3, 3), 1.0, "size: expected"),
        ((3, 2.5), 1.0, "size: expected"),
        (3, 0.0, "std: expected a positive number, got 0.0"),
        (3, torch.inf, "std: expected a positive number, got inf"),
    ],
)
def test_bad_gaussian_kernels(size: Any, std: float, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        gaussian_kernel(size, std)
