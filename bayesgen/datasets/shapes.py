"""A disc and a rectangle: the small synthetic images of the published tomography experiments."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesgen.datasets.draws import check_dtype, uniform_rows
from bayesgen.types import check_count

_SIDE = 56
# Keeps a block of images in the processor's cache.
_BLOCK = 256


def shapes(num: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw images of a filled disc and a filled rectangle, value 0.5 on a ground of 0.

    All of it on whole pixels, without antialiasing, every number uniform on its range:

    - disc: centre ``x`` and ``y`` in {28, ..., 41}, radius ``r`` in {6, ..., 13}, all pixels with
      ``dx**2 + dy**2 <= r**2``;
    - rectangle: first corner ``x`` and ``y`` in {0, ..., 13}, last corner (included) 6 to 13
      pixels on.

    The two overlap in 0.32 % of the images, and then are one grey. The first images do not depend
    on how many are asked for: ``shapes(100)`` begins ``shapes(60_000)``. For test images take
    another seed.

    Parameters
    ----------
    num
        How many images. The published training set has 60,000 and the test set 10,000.
    seed
        Seed of the draws.
    dtype
        Of the images.

    Returns
    -------
    Tensor
        Images ``(num, 56, 56)`` with the values {0, 0.5}.

    Raises
    ------
    OptionError
        If the number or the seed is not a non-negative integer.
    DtypeError
        If the dtype is not real floating-point.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models; ranges from the code published with it.

    Examples
    --------
    >>> images = shapes(5, seed=1)
    >>> images.shape, images.unique()
    (torch.Size([5, 56, 56]), tensor([0.0000, 0.5000]))
    """
    return _draw(num, seed, dtype, spot=False)


def shapes_plus(num: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw the images of `shapes` with a small bright disc added, which no training image has.

    The bright disc has radius 2 (13 pixels), value 1 and, for a disc with centre ``c`` and radius
    ``r``, the centre ``trunc(c + r * u)`` with ``u`` uniform on [-0.5, 0.5]^2. It lies over the
    disc and under the rectangle; where both are small it may stick out by a pixel.

    Parameters
    ----------
    num
        How many images. The published set, used for testing only, has 10,000.
    seed
        Seed of the draws; ``shapes_plus(num, seed=s)`` is ``shapes(num, seed=s)`` with the bright
        discs, so to test what was trained on one seed take another.
    dtype
        Of the images.

    Returns
    -------
    Tensor
        Images ``(num, 56, 56)`` with the values {0, 0.5, 1}.

    Raises
    ------
    OptionError
        If the number or the seed is not a non-negative integer.
    DtypeError
        If the dtype is not real floating-point.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models; ranges from the code published with it.

    Examples
    --------
    >>> images = shapes_plus(5, seed=1)
    >>> images.unique(), (images != shapes(5, seed=1)).sum(dim=(1, 2))
    (tensor([0.0000, 0.5000, 1.0000]), tensor([13, 13, 13, 13, 13]))
    """
    return _draw(num, seed, dtype, spot=True)


def _draw(num: int, seed: int, dtype: torch.dtype, *, spot: bool) -> Tensor:
    check_count("num", num, minimum=0)
    check_dtype(dtype)
    images = torch.empty(num, _SIDE, _SIDE, dtype=dtype)
    # The place of the bright disc is drawn always, so that both data sets share the other shapes.
    for rows, uniform in uniform_rows(num, 9, seed=seed, block=_BLOCK):
        _paint(images[rows], uniform, spot=spot)
    return images


def _paint(images: Tensor, uniform: Tensor, *, spot: bool) -> None:
    """Fill images ``(n, y, x)`` from uniform numbers ``(n, 9)``."""
    centre, radius = _integers(uniform[:, 0:2], 28, 41), _integers(uniform[:, 2:3], 6, 13)
    corner, extent = _integers(uniform[:, 3:5], 0, 13), _integers(uniform[:, 5:7], 6, 13)
    images.copy_(_disc(centre, radius)).mul_(0.5)
    if spot:
        place = (centre + radius * (uniform[:, 7:9] - 0.5)).trunc().int()
        images.masked_fill_(_disc(place, torch.full_like(radius, 2)), 1.0)
    images.masked_fill_(_rectangle(corner, extent), 0.5)


def _integers(uniform: Tensor, first: int, last: int) -> Tensor:
    """Map [0, 1) to the integers from ``first`` to ``last``, each equally likely."""
    return first + ((last - first + 1) * uniform).int()


def _disc(centre: Tensor, radius: Tensor) -> Tensor:
    """Pixels ``(n, y, x)`` of discs with centres ``(n, 2)`` (x, y) and radii ``(n, 1)``."""
    squares = (torch.arange(_SIDE, dtype=torch.int32) - centre[..., None]) ** 2
    return squares[:, 1, :, None] <= (radius**2 - squares[:, 0])[:, None, :]


def _rectangle(corner: Tensor, extent: Tensor) -> Tensor:
    """Pixels ``(n, y, x)`` of rectangles from ``corner`` to ``corner + extent``, both (x, y)."""
    steps = torch.arange(_SIDE, dtype=torch.int32) - corner[..., None]
    inside = (steps >= 0) & (steps <= extent[..., None])
    return inside[:, 1, :, None] & inside[:, 0, None, :]
