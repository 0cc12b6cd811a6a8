"""Arrays of the usual types as images: one float32 tensor with intensities in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, ShapeError

# The largest value of each type of number that stands for full intensity.
_MAXIMA = {"b1": 1, "u1": 255, "u2": 65535}


def as_images(values: np.ndarray, where: str, limit: int | None = None) -> Tensor:
    """Turn an array ``(N, *image_shape)`` into images; ``where`` is what messages call it.

    Raises
    ------
    ShapeError
        If that is not the shape of images.
    DtypeError
        If the type of number does not say which value is full intensity.
    DataError
        If there are no images, or a number is NaN or outside [0, 1].
    """
    _check_layout(values.shape, where)
    images = _scaled(values[:limit], where)
    _check_range(images, [f"{where}, image {index}" for index in range(len(images))])
    return torch.from_numpy(images)


def stack_images(items: Iterable[tuple[str, np.ndarray]], num: int) -> Tensor:
    """Join ``num`` images that come one by one, each with what messages call it.

    Raises
    ------
    ShapeError
        If they are not of one shape, or it is not that of images.
    DtypeError, DataError
        As `as_images`.
    """
    names: list[str] = []
    for name, pixels in items:
        if not names:
            _check_layout((num, *pixels.shape), name)
            images = np.empty((num, *pixels.shape), np.float32)
        if pixels.shape != images.shape[1:]:
            raise ShapeError(
                f"{name} is {_described(pixels.shape)}, but {names[0]} is "
                f"{_described(images.shape[1:])}; expected images of one size, all grey or all in "
                "colour"
            )
        images[len(names)] = _scaled(pixels, name)
        names.append(name)
    _check_range(images, names)
    return torch.from_numpy(images)


def _check_layout(shape: tuple[int, ...], where: str) -> None:
    if len(shape) not in (3, 4):
        raise ShapeError(f"{where}: expected (N, y, x) or (N, channel, y, x), got {shape}")
    if 0 in shape:
        raise DataError(f"{where}: holds no images, its shape is {shape}")
    if len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] > 4:
        raise ShapeError(
            f"{where}: expected (N, channel, y, x), got {shape}, which looks like (N, y, x, "
            "channel); move the channels with numpy.moveaxis(images, -1, 1)"
        )


def _scaled(values: np.ndarray, where: str) -> np.ndarray:
    """Copy to float32, scaled by the type of number."""
    kind = values.dtype.str[1:]
    if values.dtype.kind != "f" and kind not in _MAXIMA:
        raise DtypeError(
            f"{where}: cannot know which value of {values.dtype} is full intensity; expected "
            "uint8, uint16 or floating point; scale them, for example (x / 4095).astype('float32') "
            "for 12-bit images"
        )
    # What is too large for single precision becomes infinite, which is refused later.
    with np.errstate(over="ignore"):
        images = np.array(values, np.float32, order="C")
    if kind in _MAXIMA:
        images /= _MAXIMA[kind]
    return images


def _check_range(images: np.ndarray, names: list[str]) -> None:
    low, high = images.min(), images.max()
    # The comparison is false for NaN.
    if low >= 0 and high <= 1:
        return
    for name, image in zip(names, images, strict=True):
        if not np.isfinite(image).all():
            raise DataError(f"{name}: holds NaN or infinity; expected intensities in [0, 1]")
    outside = (n for n, x in zip(names, images, strict=True) if x.min() < 0 or x.max() > 1)
    raise DataError(
        f"{next(outside)}: expected intensities in [0, 1], found {low!s} to {high!s} in all "
        f"images; scale them, for example {_remedy(low, high)}"
    )


def _remedy(low: float, high: float) -> str:
    if low > -0.05 and high < 1.05:
        return "x.clip(0, 1)"
    if low >= -1 and high <= 1:
        return "(x + 1) / 2"
    if low >= 0 and 2 < high <= 255:
        return "x / 255"
    return "(x - low) / (high - low), low and high the same for all images"


def _described(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return f"grey, {shape[0]} x {shape[1]} (y, x)"
    if len(shape) == 3:
        colour = "colour" if shape[0] == 3 else f"of {shape[0]} channels"
        return f"{colour}, {shape[1]} x {shape[2]} (y, x)"
    return f"of shape {shape}"
