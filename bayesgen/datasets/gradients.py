"""Digits on a brightness gradient: images whose maximum is worth searching for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesgen.datasets.draws import seeded
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.types import check_count


def multi_gradient_mnist(
    images: Tensor, *, directions: int = 4, size: int = 32, seed: int = 0
) -> Tensor:
    """Lay digits of half their brightness over a linear ramp in a random direction.

    An image becomes ``0.5 * x + ramp``, where ``x`` is the digit resized bilinearly and the ramp
    rises from 0 to 0.5 across the rows or columns. The brightest pixel of the result depends on
    both, which makes it a small problem for Bayesian optimisation: which pixel to look at next?

    Parameters
    ----------
    images
        Digits in [0, 1], ``(*batch, y, x)``, for instance from `mnist`.
    directions
        In how many directions the ramp may rise, each equally likely: 1 (down), 2 (down, up) or
        4 (down, up, right, left; the default, the richest of the published variants).
    size
        Side of the result. The published images have 32 pixels, a power of two for the networks.
    seed
        Seed of the directions, one an image. Those of the first images do not depend on how many
        there are.

    Returns
    -------
    Tensor
        Images ``(*batch, size, size)`` in [0, 1], with the dtype and on the device of ``images``.

    Raises
    ------
    ShapeError
        If there are fewer than two dimensions, or images without pixels.
    DtypeError
        If ``images`` is not a real floating-point tensor.
    DataError
        If a pixel is not between 0 and 1.
    OptionError
        If ``directions`` is not 1, 2 or 4, or the size or seed not an integer in its range.

    References
    ----------
    Ang (2021), Using deep generative priors for inverse problems and Bayesian optimisation,
    undergraduate research report; details from the code published with it.

    Examples
    --------
    >>> from bayesgen.datasets import mnist_samples
    >>> multi_gradient_mnist(mnist_samples().images).shape
    torch.Size([20, 32, 32])
    >>> multi_gradient_mnist(torch.zeros(2, 2), directions=1, size=3)
    tensor([[0.0000, 0.0000, 0.0000],
            [0.2500, 0.2500, 0.2500],
            [0.5000, 0.5000, 0.5000]])
    """
    if isinstance(directions, bool) or directions not in (1, 2, 4):
        raise OptionError(f"directions: got {directions!r}; expected 1, 2 or 4")
    check_count("size", size, minimum=1)
    _check_images(images)
    batch = images.shape[:-2]
    digits = _resized(images.reshape(math.prod(batch), 1, *images.shape[-2:]), size)[:, 0]
    uniform = torch.rand(len(digits), generator=seeded(seed), dtype=torch.float64)
    chosen = (directions * uniform).long().to(images.device)
    return (0.5 * digits + _ramps(size, like=images)[chosen]).reshape(*batch, size, size)


def _resized(images: Tensor, size: int) -> Tensor:
    # Where the image is enlarged, as digits are here, antialiasing changes nothing. Half
    # precision is not implemented.
    wide = images if images.dtype == torch.float64 else images.float()
    resized = torch.nn.functional.interpolate(
        wide, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.to(images.dtype)


def _ramps(size: int, *, like: Tensor) -> Tensor:
    """Ramps ``(4, size, size)`` that rise downwards, upwards, to the right and to the left."""
    line = torch.linspace(0, 0.5, size, dtype=like.dtype, device=like.device)
    down = line[:, None].expand(size, size)
    return torch.stack([down, down.flip(0), down.T, down.T.flip(1)])


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise DtypeError(
            f"images: expected a real floating-point tensor, got {kind}; bytes become one with "
            "images.float() / 255"
        )
    if images.ndim < 2 or 0 in images.shape[-2:]:
        raise ShapeError(f"images: expected (*batch, y, x), got {tuple(images.shape)}")
    if not ((images >= 0) & (images <= 1)).all():
        raise DataError("images: expected intensities from 0 to 1; a pixel is outside or NaN")
