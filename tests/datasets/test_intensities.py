from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.datasets.intensities import as_images, stack_images
from bayesgen.errors import DataError, DtypeError, ShapeError


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [("u1", 255), ("u2", 65535), (">u2", 65535), ("?", 1), ("f2", 1), (">f4", 1), ("f8", 1)],
)
def test_types_are_scaled_by_their_largest_value(dtype: str, largest: int) -> None:
    values = np.linspace(0, largest, 24).reshape(2, 3, 4).astype(dtype)
    images = as_images(values, "x")
    assert images.dtype == torch.float32 and images.shape == (2, 3, 4)
    assert images.min() == 0 and images.max() == 1
    expected = torch.tensor(values.astype(float).tolist()) / largest
    torch.testing.assert_close(images, expected, rtol=1e-6, atol=0)


def test_dark_images_stay_dark() -> None:
    assert as_images(np.ones((1, 4, 4), np.uint8), "x").max() == torch.tensor(1 / 255)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4", "i8", "u8", "c8", "M8[s]", "U3", "O"])
def test_other_types_are_refused(dtype: str) -> None:
    values = np.zeros((2, 3, 4), dtype)
    message = "x: cannot know which value of .* is full intensity; expected uint8.*x / 4095"
    with pytest.raises(DtypeError, match=message):
        as_images(values, "x")


def test_the_result_is_a_copy_of_its_own() -> None:
    values = np.full((2, 3, 4), 0.5, np.float32)
    values.flags.writeable = False
    images = as_images(values, "x")
    images += 1
    assert values.max() == 0.5


def test_any_layout_in_memory() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for arranged in (np.asfortranarray(values), values[::-1][::-1], values.repeat(2, 2)[..., ::2]):
        images = as_images(arranged, "x")
        assert images.is_contiguous() and torch.equal(images, as_images(values, "x"))


def test_limit() -> None:
    values = np.arange(5, dtype=np.uint8)[:, None, None].repeat(3, 1)
    assert (as_images(values, "x", 2)[:, 0, 0] * 255).tolist() == [0, 1]
    assert len(as_images(values, "x", 9)) == 5


@pytest.mark.parametrize(
    ("low", "high", "remedy"),
    [
        (0, 255, "found 0.0 to 255.0 in all images; scale them, for example x / 255"),
        (0, 243.2, r"found 0.0 to 243.2 in all images; .* x / 255"),
        (-1, 1, r"found -1.0 to 1.0 .* \(x \+ 1\) / 2"),
        (0, 1.0000001, "found 0.0 to 1.0000001 .* x.clip"),
        (-1e-3, 1, r"found -0.001 to 1.0 .* x.clip"),
        (-1024, 3071, r"found -1024.0 to 3071.0 .* \(x - low\) / \(high - low\)"),
        (0, 4095, r"\(x - low\) / \(high - low\)"),
        (0, 1.2, r"\(x - low\) / \(high - low\)"),
        (-0.5, 0.5, r"\(x \+ 1\) / 2"),
    ],
)
def test_intensities_outside_are_refused(low: float, high: float, remedy: str) -> None:
    values = np.full((4, 2, 2), 0.5, np.float32)
    values[2, 0, 1], values[2, 1, 1] = low, high
    message = rf"x, image 2: expected intensities in \[0, 1\], {remedy}|x, image 2: .*{remedy}"
    with pytest.raises(DataError, match=message):
        as_images(values, "x")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_image_with_nan_or_infinity_is_named(value: float) -> None:
    values = np.zeros((6, 2, 2))
    values[1] = 7.0
    values[3, 1, 0] = values[4, 0, 0] = value
    with pytest.raises(DataError, match="x, image 3: holds NaN or infinity"):
        as_images(values, "x")
    with pytest.raises(DataError, match="x, image 1: expected intensities"):
        as_images(values, "x", 3)


def test_numbers_beyond_single_precision() -> None:
    with pytest.raises(DataError, match="x, image 0"):
        as_images(np.full((1, 2, 2), 1e300), "x")


@pytest.mark.parametrize("shape", [(), (5,), (5, 4), (5, 1, 1, 4, 4)])
def test_wrong_numbers_of_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"x: expected \(N, y, x\) or \(N, channel, y, x\), got"):
        as_images(np.zeros(shape, np.uint8), "x")


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (3, 4, 0), (3, 0, 4, 4)])
def test_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="x: holds no images, its shape is"):
        as_images(np.zeros(shape, np.uint8), "x")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_last_are_refused(channels: int) -> None:
    values = np.zeros((2, 8, 9, channels), np.uint8)
    with pytest.raises(ShapeError, match=r"looks like \(N, y, x, channel\).*moveaxis"):
        as_images(values, "x")
    assert as_images(np.moveaxis(values, -1, 1), "x").shape == (2, channels, 8, 9)
    assert as_images(np.zeros((2, 3, 8, channels), np.uint8), "x").shape == (2, 3, 8, channels)


def _stack(*images: Any) -> torch.Tensor:
    named = ((f"image-{index}", np.asarray(image)) for index, image in enumerate(images))
    return stack_images(named, len(images))


def test_images_one_by_one_are_each_scaled_by_their_type() -> None:
    full = np.full((2, 3), 255, np.uint8)
    images = _stack(full, full.astype(np.uint16) * 257, full / 510)
    assert images.dtype == torch.float32
    assert torch.equal(images[:, 1, 2], torch.tensor([1, 1, 0.5]))


def test_images_of_unequal_shape_are_both_described() -> None:
    a, b = np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8)
    message = r"image-2 is grey, 5 x 4 \(y, x\), but image-0 is grey, 4 x 5 \(y, x\)"
    with pytest.raises(ShapeError, match=message):
        _stack(a, a, b)
    message = r"image-1 is colour, 4 x 5 \(y, x\), but image-0 is grey, 4 x 5"
    with pytest.raises(ShapeError, match=message):
        _stack(a, np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(ShapeError, match="image-1 is of 2 channels, .* image-0 is of 1 channels"):
        _stack(a[None], np.stack([a, a]))
    with pytest.raises(ShapeError, match=r"image-1 is of shape \(\), but image-0 is grey"):
        _stack(a, 0)


def test_bad_images_are_named() -> None:
    good, bad = np.zeros((2, 2)), np.full((2, 2), np.nan)
    with pytest.raises(DataError, match="image-1: holds NaN"):
        _stack(good, bad, bad)
    with pytest.raises(DataError, match="image-2: expected .* found -0.5 to 1.5 in all images"):
        _stack(good, good, good - 0.5, good + 1.5)
    with pytest.raises(DtypeError, match="image-1: cannot know which value of int64"):
        _stack(good, good.astype(np.int64))
    with pytest.raises(ShapeError, match=r"image-0: expected .*got \(2, 3\)"):
        _stack(np.zeros(3), np.zeros(3))
