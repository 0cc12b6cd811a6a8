"""Convolution with a known kernel: deblurring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.operators.base import Operator
from bayesgen.operators.convolution import Boundary, make_torus
from bayesgen.operators.inputs import as_kernel
from bayesgen.operators.separable import axis_matrices, filter_axes, norm_of_axes, separate

# Terms of the kernel times the sum of the image's sides, up to which dense matrices beat the
# transforms; periodic images need no padding for theirs.
_SMALL: dict[Boundary, int] = {"zero": 320, "periodic": 192, "reflect": 320}


class Blur(Operator):
    r"""Convolution of each channel with a kernel, in the size of the image.

    .. math:: (A x)_i = \sum_j k_j \, x_{i - j + c}

    with the centre :math:`c` at index ``size // 2`` of the kernel along each axis, as in
    ``scipy.ndimage.convolve``.

    Parameters
    ----------
    domain_shape
        ``(y, x)`` or ``(channel, y, x)``.
    kernel
        Two-dimensional, real floating-point, of any size up to that of the image, odd or even.
    boundary
        What lies beyond the edge ``a b c d |``: ``"zero"`` (``0 0 0 0``), ``"periodic"``
        (``a b c d``), or ``"reflect"`` with the edge pixel repeated (``d c b a``: SciPy's
        "reflect" and NumPy's "symmetric", not PyTorch's "reflect"). The default, zero, suits
        objects on a dark ground; reflection keeps the edges of a scene that goes on from
        darkening.

    Raises
    ------
    ShapeError
        If the domain is not that of an image, or the kernel not two-dimensional or larger than it.
    DtypeError
        If the kernel is not real floating-point.
    DataError
        If an entry of the kernel is not finite.
    OptionError
        If the boundary is unknown.

    References
    ----------
    Hansen, Nagy and O'Leary (2006), Deblurring Images, chapter 4.

    Examples
    --------
    >>> A = Blur((28, 28), gaussian_kernel(5, std=1.0), boundary="reflect")
    >>> flat = torch.ones(3, 28, 28)
    >>> torch.allclose(A(flat), flat)
    True
    """

    _along_y: Tensor | None
    _along_x: Tensor | None
    _kernel: Tensor | None

    def __init__(
        self, domain_shape: Sequence[int], kernel: Any, boundary: Boundary = "zero"
    ) -> None:
        super().__init__(domain_shape, domain_shape)
        kernel = as_kernel(kernel)
        self.torus = make_torus(self.domain_shape, tuple(kernel.shape), boundary)
        profiles = separate(kernel)
        along_y = along_x = spread = None
        if len(profiles[0]) * sum(self.torus.image) <= _SMALL[boundary]:
            every = slice(None)
            along_y = axis_matrices(profiles[0], self.torus.image[0], boundary, every)
            along_x = axis_matrices(profiles[1], self.torus.image[1], boundary, every)
            along_y, along_x = along_y.to(kernel.dtype), along_x.to(kernel.dtype)
        else:
            # The kernel itself, not its spectrum: Module.to(dtype) would make that real.
            spread = self.torus.spread(kernel).contiguous()
        self.register_buffer("_along_y", along_y)
        self.register_buffer("_along_x", along_x)
        self.register_buffer("_kernel", spread)

    def _forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:  # refused by the Fourier transform
            return x
        if self._along_y is not None and self._along_x is not None:
            return filter_axes(x, self._along_y, self._along_x)
        return self.torus.convolve(x, self._transfer())

    def _adjoint(self, y: Tensor) -> Tensor:
        if y.numel() == 0:
            return y
        if self._along_y is not None and self._along_x is not None:
            return filter_axes(y, self._along_y.mT, self._along_x.mT)
        return self.torus.correlate(y, self._transfer())

    def _norm(self) -> float:
        norm = None
        if self._along_y is not None and self._along_x is not None:
            norm = norm_of_axes(self._along_y, self._along_x)
        elif self.torus.boundary == "periodic":
            norm = float(self._transfer().abs().max())
        return super()._norm() if norm is None else norm

    def _transfer(self) -> Tensor:
        """Spectrum of the kernel on the torus."""
        assert self._kernel is not None  # for the type checker: there is one or the other
        spectrum: Tensor = torch.fft.rfft2(self._kernel)
        return spectrum


def gaussian_kernel(
    size: int | tuple[int, int], std: float, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Samples of a Gaussian, symmetric about the middle of the kernel, of sum one.

    Parameters
    ----------
    size
        Side, or ``(y, x)``; about ``6 * std + 1`` holds all but 0.3 % of the mass along an axis.
        Odd sizes have a pixel in the middle; even ones shift the image by half a pixel.
    std
        Standard deviation, in pixels.
    dtype
        Of the kernel.

    Raises
    ------
    OptionError
        If a size or ``std`` is not positive.

    Examples
    --------
    >>> gaussian_kernel(3, std=0.5).shape, gaussian_kernel((1, 2), std=1.0)
    (torch.Size([3, 3]), tensor([[0.5000, 0.5000]]))
    """
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise OptionError(f"size: expected a positive integer or two of them, got {size!r}")
    if not (math.isfinite(std) and std > 0):
        raise OptionError(f"std: expected a positive number, got {std}")
    profiles = []
    for n in sizes:
        distance = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        profiles.append(torch.softmax(-0.5 * (distance / std) ** 2, dim=0))
    y, x = profiles
    return torch.outer(y, x).to(dtype)
