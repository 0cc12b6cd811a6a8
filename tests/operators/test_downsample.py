from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.ndimage import convolve
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators.blur import gaussian_kernel
from bayesgen.operators.downsample import Downsample


def _random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _ramps(*shape: int) -> Tensor:
    """The coordinates of the pixels, y and x, as two images."""
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _dense(A: Downsample) -> Tensor:
    size = A.domain_shape[0] * A.domain_shape[1]
    unit_vectors = torch.eye(size, dtype=torch.float64).reshape(size, *A.domain_shape)
    return A(unit_vectors).flatten(1)


@pytest.mark.parametrize("factor", [1, 2, 3, (2, 3), (3, 1)])
def test_box_is_the_mean_of_each_block(factor: Any) -> None:
    height, width = (factor, factor) if isinstance(factor, int) else factor
    x = _random(6, 12)
    result = Downsample((6, 12), factor)(x)
    assert result.shape == (6 // height, 12 // width)
    for i in range(6 // height):
        for j in range(12 // width):
            block = x[i * height : (i + 1) * height, j * width : (j + 1) * width]
            assert float(result[i, j]) == pytest.approx(float(block.mean()))


@pytest.mark.parametrize("factor", [(2, 3), (3, 2), (4, 1)])
@pytest.mark.parametrize("size", [(3, 5), (4, 2)])
def test_kernel_agrees_with_scipy(factor: tuple[int, int], size: tuple[int, int]) -> None:
    kernel, x = _random(*size, seed=1), _random(12, 6)
    blurred = torch.as_tensor(convolve(x.numpy(), kernel.numpy(), mode="reflect"))
    result = Downsample((12, 6), factor, kernel)(x)
    (height, width), (top, left) = factor, [(f - 1) // 2 for f in factor]
    torch.testing.assert_close(result, blurred[top::height, left::width])
    others = [blurred[height - 1 :: height, width - 1 :: width]]
    others += [torch.as_tensor(convolve(x.numpy(), kernel.numpy(), mode="constant"))[top::height]]
    others[1] = others[1][:, left::width]
    assert all((result - mistake).abs().max() > 0.1 for mistake in others)


def test_no_kernel_keeps_pixels() -> None:
    x = _random(6, 6)
    assert torch.equal(Downsample((6, 6), (2, 3), None)(x), x[0::2, 1::3])


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kernel", ["box", "gaussian"])
def test_low_resolution_pixels_lie_in_the_middle_of_their_blocks(kernel: str, factor: int) -> None:
    shape = (9 * factor, 7 * factor)
    found = Downsample(shape, factor, kernel).double()(_ramps(*shape))
    expected = factor * _ramps(9, 7) + (factor - 1) / 2
    # Away from the edge, where the reflected ramp is no longer one.
    torch.testing.assert_close(found[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=1e-6, atol=1e-6)
    # A pixel of the large picture more or less would be noticed, half of one as well.
    assert (found - expected - 0.5)[:, 2:-2, 2:-2].abs().min() > 0.4


@pytest.mark.parametrize("kernel", ["box", "gaussian"])
def test_constants_are_kept(kernel: str) -> None:
    A = Downsample((12, 6), (4, 3), kernel).double()
    flat = torch.ones(12, 6, dtype=torch.float64)
    torch.testing.assert_close(A(flat), torch.ones(3, 2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_gaussian_has_half_a_low_resolution_pixel_of_deviation() -> None:
    x = torch.zeros(40, 40)
    x[18, 18] = 1.0
    expected = gaussian_kernel(12, std=2.0)
    # The block with its middle at 17.5 is nearest, and neighbours see the pixel four further off.
    seen = Downsample((40, 40), 4, "gaussian")(x)[3:6, 3:6]
    torch.testing.assert_close(seen, expected[1::4, 1::4])
    # No blur along an axis that keeps its pixels.
    rows = Downsample((40, 40), (1, 4), "gaussian")(x)
    assert (rows.abs() > 1e-6).any(dim=1).sum() == 1


def test_gaussian_is_cut_to_the_image() -> None:
    for shape, factor in [((4, 4), 4), ((3, 6), 3), ((8, 9), (4, 9))]:
        A = Downsample(shape, factor, "gaussian")
        torch.testing.assert_close(A(torch.ones(shape)), torch.ones(A.range_shape))
        # Still in the middle of the block.
        x = _random(*shape).float()
        torch.testing.assert_close(A(x.flip(0, 1)), A(x).flip(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 3, (2, 3)])
def test_norms_in_closed_form(factor: Any) -> None:
    for kernel in ("box", None):
        A = Downsample((6, 6), factor, kernel)
        exact = float(torch.linalg.matrix_norm(_dense(A), 2))
        assert A.norm() == pytest.approx(exact, rel=1e-13)


def test_channels_are_taken_one_by_one() -> None:
    x = _random(4, 3, 6, 4)
    for kernel in ("box", None, _random(3, 3)):
        stack = Downsample((3, 6, 4), (3, 2), kernel)(x)
        torch.testing.assert_close(stack, Downsample((6, 4), (3, 2), kernel)(x))


def test_box_takes_both_dtypes() -> None:
    A = Downsample((4, 4), 2)
    assert A(torch.ones(4, 4)).dtype == torch.float32
    assert A(torch.ones(4, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((4,), 2), ShapeError, r"expected \(y, x\) or \(channel, y, x\), got \(4,\)"),
        (((6, 4), 4), ShapeError, r"factor: \(4, 4\) does not divide the image \(6, 4\); crop"),
        (((6, 4), (3, 3)), ShapeError, r"factor: \(3, 3\) does not divide the image \(6, 4\)"),
        (((6, 4), 0), OptionError, "factor: expected a positive integer or two of them, got 0"),
        (((6, 4), (2, 2, 2)), OptionError, "factor: expected a positive integer or two of them"),
        (((6, 4), 2.0), OptionError, "factor: expected a positive integer or two of them, got 2.0"),
        (((6, 4), 2, "gauss"), OptionError, "did you mean 'gaussian'?"),
        (((6, 4), 2, torch.ones(3)), ShapeError, r"kernel: expected two dimensions"),
        (((6, 4), 2, torch.ones(5, 5)), ShapeError, r"is larger than the image \(6, 4\)"),
        (((6, 4), 2, torch.ones(2, 2) * 1j), DtypeError, "kernel: expected real floating-point"),
        (((6, 4), 2, torch.tensor([[torch.inf]])), DataError, "kernel: an entry is NaN or inf"),
    ],
)
def test_bad_downsampling(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Downsample(*arguments)
