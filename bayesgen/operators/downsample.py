"""Fewer, larger pixels: super-resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesgen.errors import OptionError, ShapeError, unknown_option
from bayesgen.operators.base import Operator
from bayesgen.operators.blur import gaussian_kernel
from bayesgen.operators.convolution import make_torus
from bayesgen.operators.inputs import as_kernel, as_shape
from bayesgen.operators.separable import axis_matrices, filter_axes, norm_of_axes, separate


class Downsample(Operator):
    r"""A low-resolution picture: filter each channel, then keep one pixel of every block.

    A block is ``factor`` pixels high and wide, and the range has a pixel for each:
    ``(y / factor, x / factor)``, after the channels if there are any. The pixel kept of a block
    has the index ``(factor - 1) // 2`` along each axis: its middle for an odd factor, the last
    one before its middle for an even factor.

    Low-resolution pixel :math:`i` is centred on the high-resolution coordinate
    :math:`i f + (f - 1) / 2`, the middle of its block, for ``"box"``, ``"gaussian"`` and every
    symmetric kernel whose size is odd or even as the factor is; otherwise, and without a kernel,
    half a pixel off for an even factor. To overlay the two pictures, draw them over the same
    extent.

    Parameters
    ----------
    domain_shape
        ``(y, x)`` or ``(channel, y, x)``; the sides must be multiples of the factor.
    factor
        How many times fewer pixels along each axis: an integer, or ``(y, x)``.
    kernel
        The filter before pixels are dropped. ``"box"``, the default: the mean of the block, what a
        detector with larger pixels sees, and the usual benchmark of generative priors.
        ``"gaussian"``: of standard deviation ``factor / 2``, near the 1.6 pixels for a factor of
        three that are customary, cut off at three of them. Or a kernel as for `Blur`, of which the
        last two have the boundary ``"reflect"``, for scenes go on beyond the edge. None: no filter.
        A ``"gaussian"`` is float32; convert the operator with ``.double()``.

    Raises
    ------
    ShapeError
        If the domain is not that of an image or its sides are not multiples of the factor, or for
        a kernel that is not two-dimensional or larger than the image.
    OptionError
        If the factor is not positive or the name of the kernel unknown.
    DtypeError
        If a kernel is not real floating-point.
    DataError
        If an entry of the kernel is not finite.

    References
    ----------
    Kawar, Elad, Ermon and Song (2022), Denoising diffusion restoration models (the box). Dong,
    Zhang, Shi and Li (2013), Nonlocally centralized sparse representation for image restoration
    (the Gaussian).

    Examples
    --------
    >>> import torch
    >>> A = Downsample((4, 6), factor=2)
    >>> A(torch.arange(24.0).reshape(4, 6))
    tensor([[ 3.5000,  5.5000,  7.5000],
            [15.5000, 17.5000, 19.5000]])
    >>> A.norm(), Downsample((3, 28, 28), (4, 2), "gaussian").range_shape
    (0.5, (3, 7, 14))
    """

    _along_y: Tensor | None
    _along_x: Tensor | None

    def __init__(
        self, domain_shape: Sequence[int], factor: int | tuple[int, int], kernel: Any = "box"
    ) -> None:
        shape = as_shape("domain_shape", domain_shape)
        if len(shape) not in (2, 3):
            raise ShapeError(f"domain_shape: expected (y, x) or (channel, y, x), got {shape}")
        if isinstance(kernel, str) and kernel not in ("box", "gaussian"):
            raise OptionError(unknown_option("kernel", kernel, ("box", "gaussian")))
        height, width = factors = _as_pair(factor)
        if shape[-2] % height or shape[-1] % width:
            raise ShapeError(
                f"factor: {factors} does not divide the image {shape[-2:]}; crop or pad it to "
                "multiples of the factor"
            )
        super().__init__(shape, (*shape[:-2], shape[-2] // height, shape[-1] // width))
        self.factor = factors
        dtype = torch.float32
        if isinstance(kernel, str):
            self.box = kernel == "box"
            profiles = None if self.box else _gaussian(factors, shape[-2:])
        else:
            self.box = False
            profiles = None
            if kernel is not None:
                kernel = as_kernel(kernel)
                make_torus(shape, tuple(kernel.shape), "reflect")  # for its checks
                profiles, dtype = separate(kernel), kernel.dtype
        along_y = along_x = None
        if profiles is not None:
            every = [slice((f - 1) // 2, None, f) for f in factors]
            along_y = axis_matrices(profiles[0], shape[-2], "reflect", every[0]).to(dtype)
            along_x = axis_matrices(profiles[1], shape[-1], "reflect", every[1]).to(dtype)
        self.register_buffer("_along_y", along_y)
        self.register_buffer("_along_x", along_x)

    def _forward(self, x: Tensor) -> Tensor:
        (rows, columns), (height, width) = self.range_shape[-2:], self.factor
        if self.box:
            blocks = x.reshape(*x.shape[:-2], rows, height, columns, width)
            return blocks.mean((-3, -1))
        if self._along_y is None or self._along_x is None:
            return x[..., (height - 1) // 2 :: height, (width - 1) // 2 :: width]
        return filter_axes(x, self._along_y, self._along_x)

    def _adjoint(self, y: Tensor) -> Tensor:
        if self._along_y is not None and self._along_x is not None:
            return filter_axes(y, self._along_y.mT, self._along_x.mT)
        (rows, columns), (height, width) = self.range_shape[-2:], self.factor
        y = y[..., None, :, None]
        if self.box:
            y = y.expand(*y.shape[:-4], rows, height, columns, width) / (height * width)
        else:
            around = ((width - 1) // 2, width // 2, 0, 0, (height - 1) // 2, height // 2)
            y = pad(y, around)
        return y.reshape(*y.shape[:-4], *self.domain_shape[-2:])

    def _norm(self) -> float:
        if self._along_y is None or self._along_x is None:
            return 1 / math.sqrt(math.prod(self.factor)) if self.box else 1.0
        norm = norm_of_axes(self._along_y, self._along_x)
        return super()._norm() if norm is None else norm


def _as_pair(factor: Any) -> tuple[int, int]:
    pair = (factor, factor) if isinstance(factor, int) else factor
    ok = isinstance(pair, Sequence) and len(pair) == 2
    if not ok or any(not isinstance(f, int) or f < 1 for f in pair):
        raise OptionError(f"factor: expected a positive integer or two of them, got {factor!r}")
    return pair[0], pair[1]


def _gaussian(factors: tuple[int, int], image_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """As wide as the image allows up to three deviations, and odd or even as the factor is."""
    profiles = []
    for f, n in zip(factors, image_shape, strict=True):
        size = 1 if f == 1 else min(3 * f, n - (n - f) % 2)
        profiles.append(gaussian_kernel((1, size), std=f / 2, dtype=torch.float64))
    return profiles[0], profiles[1]
