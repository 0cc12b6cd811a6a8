"""Random ellipses: phantoms for tomography, in any number and size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesgen.datasets.draws import check_dtype, uniform_rows
from bayesgen.types import check_count

_MEAN_COUNT = 40.0
_MAX_COUNT = 70
# Numbers in a block of work: large enough for vectors, small enough for the cache.
_BLOCK_SIZE = 2**19


def ellipses(
    num: int, *, size: int = 128, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""Draw phantoms that are sums of random ellipses, with intensities in [0, 1].

    On the square [-1, 1]^2, whose edges are the centres of the outermost pixels, an image is the
    sum of :math:`\min(\mathrm{Poisson}(40), 70)` ellipses, each with

    - a value that is uniform on [-0.4, 1];
    - half axes that are exponential with mean 0.2, independent of each other;
    - a centre that is uniform on [-0.9, 0.9]^2;
    - a rotation that is uniform on [0, 2 pi].

    A pixel belongs to an ellipse if its centre does. Then the smallest value of the image (0 unless
    ellipses below it are left, or they cover everything) is subtracted from the pixels that are
    covered, and all are divided by the largest: the ground stays 0 and the brightest pixel is 1.

    Intensities are attenuation relative to the densest spot of the phantom, without unit. A line
    integral in pixels (what a Radon operator with pixels of side 1 returns) becomes an optical
    depth when multiplied by the attenuation coefficient of the densest spot and by the side of a
    pixel: 0.02 / mm, for water in X-rays of 65 keV, and 1 mm give 0.02 for each pixel of water
    that a ray crosses.

    Parameters
    ----------
    num
        How many images. The first do not depend on how many are asked for.
    size
        Side of the images, in pixels. The ellipses do not depend on it: a phantom can be drawn
        coarse and fine.
    seed
        Seed of the draws.
    dtype
        Of the images. They are computed in double precision and then rounded.

    Returns
    -------
    Tensor
        Images ``(num, size, size)``.

    Raises
    ------
    OptionError
        If the number or the seed is not a non-negative integer, or the size not a positive one.
    DtypeError
        If the dtype is not real floating-point.

    References
    ----------
    Adler and Öktem (2017), Solving ill-posed inverse problems using iterative deep neural
    networks, for the idea; Leuschner et al. (2021), LoDoPaB-CT, for the numbers above, which are
    those of ``EllipsesDataset`` in their library DIVal (its early versions drew 50 ellipses of
    other values and stretched the range of the whole image).

    Examples
    --------
    >>> images = ellipses(3, size=64)
    >>> images.shape, images.amin((1, 2)), images.amax((1, 2))
    (torch.Size([3, 64, 64]), tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """
    check_count("num", num, minimum=0)
    check_count("size", size, minimum=1)
    check_dtype(dtype)
    images = torch.empty(num, size, size, dtype=dtype)
    block = max(1, _BLOCK_SIZE // (size * max(size, _MAX_COUNT)))
    for rows, uniform in uniform_rows(num, 6 * _MAX_COUNT + 1, seed=seed, block=block):
        images[rows] = _normalised(*_rasterised(_parameters(uniform), size))
    return images


def _parameters(uniform: Tensor) -> Tensor:
    """Value, half axes, centre x and y, and rotation: ``(6, n, ellipse)``; absent ones are NaN."""
    value, a, b, x, y, angle = uniform[:, 1:].unflatten(1, (6, _MAX_COUNT)).unbind(1)
    parameters = torch.stack(
        [
            1.4 * value - 0.4,
            -0.2 * torch.log1p(-a),
            -0.2 * torch.log1p(-b),
            1.8 * x - 0.9,
            1.8 * y - 0.9,
            2 * math.pi * angle,
        ]
    )
    absent = torch.arange(_MAX_COUNT) >= _counts(uniform[:, 0])[:, None]
    return parameters.masked_fill(absent, torch.nan)


def _counts(uniform: Tensor) -> Tensor:
    """Number of ellipses by inversion of the Poisson distribution, cut at the maximum."""
    k = torch.arange(_MAX_COUNT, dtype=torch.float64)
    log_mass = k * math.log(_MEAN_COUNT) - _MEAN_COUNT - torch.lgamma(k + 1)
    return torch.searchsorted(log_mass.exp().cumsum(0), uniform.contiguous(), right=True)


def _rasterised(parameters: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sum of the ellipses and which pixels any of them covers, ``(n, size, size)``.

    An ellipse meets a row of pixels in one interval, so it is enough to note its value where the
    interval begins and its negative where it has ended, and to add up along the row: the cost
    grows with the number of rows, not of pixels.
    """
    value, a, b, x, y, angle = parameters[:, :, None]  # (n, 1, ellipse)
    cos, sin = angle.cos(), angle.sin()
    half = (size - 1) / 2
    scale = max(half, 0.5)  # an image of one pixel shows the middle
    row = ((torch.arange(size, dtype=torch.float64) - half) / scale)[:, None] - y
    # In the matrix with eigenvalues a^2 and b^2 and the axes as eigenvectors, the ellipse is
    # d^T matrix^-1 d <= 1; completing the square in d_x gives the interval for a given d_y.
    m_yy = (a * sin) ** 2 + (b * cos) ** 2
    m_xy = (a**2 - b**2) * sin * cos
    middle = x + m_xy / m_yy * row
    reach = a * b * (m_yy - row**2).sqrt() / m_yy
    first = (scale * (middle - reach) + half).ceil().clamp(0, size)
    after = (scale * (middle + reach) + half).floor().add(1).clamp(0, size)
    # Rows that the ellipse misses and absent ellipses are NaN, and so are not below anything.
    met = first < after
    ends = torch.stack([first, after]).where(met, 0).long()
    total = _between(ends, value.where(met, 0), size)
    covered = _between(ends, met.double(), size) > 0.5
    return total, covered


def _between(ends: Tensor, values: Tensor, size: int) -> Tensor:
    """Add values ``(n, row, k)`` to the pixels of their rows from the first to before the last."""
    steps = values.new_zeros((*values.shape[:2], size + 1))
    steps.scatter_add_(-1, ends[0], values).scatter_add_(-1, ends[1], -values)
    return steps.cumsum(-1)[..., :size]


def _normalised(total: Tensor, covered: Tensor) -> Tensor:
    shifted = (total - total.amin((-2, -1), keepdim=True)).where(covered, 0)
    # An image of a single value is left at zero, not divided by it.
    return shifted / shifted.amax((-2, -1), keepdim=True).clamp_min(1e-9)
