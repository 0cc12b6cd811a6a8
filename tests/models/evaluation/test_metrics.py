from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DtypeError, ShapeError
from bayesgen.models.evaluation import mean_absolute_error, nrmse, psnr, ssim
from bayesgen.models.evaluation.metrics import _BLOCK, has_ssim

MEASURES = [psnr, nrmse, mean_absolute_error, ssim]


@pytest.fixture
def pair(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    truth = torch.rand(3, 13, 16, generator=rng, dtype=torch.float64)
    noise = torch.randn(3, 13, 16, generator=rng, dtype=torch.float64)
    return truth + torch.tensor([0.02, 0.1, 0.4])[:, None, None] * noise, truth


def slow_ssim(
    found: Tensor, truth: Tensor, *, sigma: float = 1.5, unbiased: float = False
) -> float:
    """Structural similarity of two images ``(y, x)``, window by window and pixel by pixel."""
    weights = {
        (i, j): math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * sigma**2))
        for i in range(11)
        for j in range(11)
    }
    total = sum(weights.values())
    values = []
    for top in range(found.shape[0] - 10):
        for left in range(found.shape[1] - 10):
            f = {(i, j): float(found[top + i, left + j]) for i, j in weights}
            t = {(i, j): float(truth[top + i, left + j]) for i, j in weights}
            mf = sum(w * f[p] for p, w in weights.items()) / total
            mt = sum(w * t[p] for p, w in weights.items()) / total
            factor = 121 / 120 if unbiased else 1.0
            vf = factor * sum(w * (f[p] - mf) ** 2 for p, w in weights.items()) / total
            vt = factor * sum(w * (t[p] - mt) ** 2 for p, w in weights.items()) / total
            c = factor * sum(w * (f[p] - mf) * (t[p] - mt) for p, w in weights.items()) / total
            first = (2 * mf * mt + 0.01**2) / (mf**2 + mt**2 + 0.01**2)
            values.append(first * (2 * c + 0.03**2) / (vf + vt + 0.03**2))
    return sum(values) / len(values)


def test_ssim_is_the_average_over_windows(pair: tuple[Tensor, Tensor]) -> None:
    found, truth = pair
    found, truth = found[:, :12, :13], truth[:, :12, :13]
    pairs = zip(found, truth, strict=True)
    expected = torch.tensor([slow_ssim(*images) for images in pairs], dtype=torch.float64)
    torch.testing.assert_close(ssim(found, truth), expected, rtol=0, atol=1e-10)
    single = ssim(found.float(), truth.float()).double()
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-4)
    # Another window and unbiased covariances would be seen.
    for wrong in ({"sigma": 1.6}, {"unbiased": True}):
        assert abs(slow_ssim(found[1], truth[1], **wrong) - expected[1]) > 1e-7


def test_ssim_of_constant_images_is_their_luminance() -> None:
    ones = torch.ones(1, 11, 12, dtype=torch.float64)
    found, truth = 0.2 * ones, 0.6 * ones
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(found, truth).item() == pytest.approx(expected, rel=1e-9)


def test_ssim_averages_channels(pair: tuple[Tensor, Tensor]) -> None:
    found, truth = (images.reshape(1, 3, 13, 16) for images in pair)
    torch.testing.assert_close(ssim(found, truth), ssim(*pair).mean()[None])


def test_ssim_in_blocks_is_the_same(rng: torch.Generator) -> None:
    side = math.isqrt(_BLOCK // 2) + 1  # so that two images are more than a block
    truth = torch.rand(2, side, side, generator=rng)
    found = truth.flip(1)
    alone = [ssim(found[k : k + 1], truth[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(ssim(found, truth), torch.cat(alone))


def test_images_smaller_than_the_window_are_refused() -> None:
    small = torch.zeros(2, 28, 10)
    with pytest.raises(ShapeError, match=r"at least 11 by 11 .*, got \(2, 28, 10\)"):
        ssim(small, small)
    for shape in [(2, 200), (1, 2, 3, 20, 20)]:
        with pytest.raises(ShapeError, match=r"\(N, y, x\) or \(N, channel, y, x\)"):
            ssim(torch.zeros(shape), torch.zeros(shape))
    assert has_ssim((11, 11)) and not has_ssim((11, 10)) and not has_ssim((400,))


def test_psnr_has_range_one() -> None:
    truth = torch.zeros(3, 4, 5)
    assert psnr(truth + 1, truth).tolist() == [0, 0, 0]
    torch.testing.assert_close(psnr(truth + 0.01, truth), torch.full((3,), 40.0))
    assert psnr(truth, truth).tolist() == [math.inf] * 3


def test_nrmse_is_relative_to_the_truth() -> None:
    truth = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    found = torch.tensor([[3.0, 14.0], [0.0, 0.0], [0.0, 1.0]])
    assert nrmse(found, truth).tolist() == [2.0, 0.0, math.inf]


def test_mean_absolute_error_is_a_mean() -> None:
    found, truth = torch.tensor([[[0.0, 1.0], [0.5, 0.0]]]), torch.zeros(1, 2, 2)
    assert mean_absolute_error(found, truth).tolist() == [0.375]
    assert mean_absolute_error(truth, found).tolist() == [0.375]


@pytest.mark.parametrize("measure", MEASURES)
def test_one_number_an_image(
    measure: Callable[[Tensor, Tensor], Tensor], pair: tuple[Tensor, Tensor]
) -> None:
    found, truth = pair
    values = measure(found, truth)
    assert values.shape == (3,) and values.dtype == torch.float64
    torch.testing.assert_close(measure(found[1:2], truth[1:2]), values[1:2])
    assert measure(found[:0], truth[:0]).shape == (0,)


@pytest.mark.parametrize("measure", MEASURES)
def test_what_cannot_be_compared_is_refused(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    images = torch.zeros(2, 12, 12)
    with pytest.raises(ShapeError, match=r"shaped like truth, got \(2, 12, 12\) and \(1, 12, 12\)"):
        measure(images, images[:1])
    with pytest.raises(ShapeError, match="expected a batch"):
        measure(torch.zeros(3), torch.zeros(3))
    with pytest.raises(DtypeError, match="truth: expected a floating-point tensor, got torch.int"):
        measure(images, images.long())
    with pytest.raises(DtypeError, match="found: is torch.float32, but truth is torch.float64"):
        measure(images, images.double())
