"""Convolution with a known kernel: deblurring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError, unknown_option
from bayesgen.operators.base import Operator

Boundary = Literal["zero", "periodic", "reflect"]


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

    _kernel: Tensor

    def __init__(
        self, domain_shape: Sequence[int], kernel: Any, boundary: Boundary = "zero"
    ) -> None:
        super().__init__(domain_shape, domain_shape)
        if len(self.domain_shape) not in (2, 3):
            raise ShapeError(
                f"domain_shape: expected (y, x) or (channel, y, x), got {self.domain_shape}"
            )
        if boundary not in get_args(Boundary):
            raise OptionError(unknown_option("boundary", boundary, get_args(Boundary)))
        kernel = _checked_kernel(kernel, self.domain_shape[-2:])
        self.boundary = boundary
        self.kernel_shape = tuple(kernel.shape)
        image, margin = self.domain_shape[-2:], [k - 1 for k in kernel.shape]
        padded = tuple(n + m for n, m in zip(image, margin, strict=True))
        # Of what the convolution runs on: the image, perhaps extended, then zeros up to a torus
        # large enough for its two ends not to meet.
        self._extended = padded if boundary == "reflect" else image
        self._torus = image if boundary == "periodic" else tuple(map(_fast_length, padded))
        origin = margin if boundary == "reflect" else [k // 2 for k in kernel.shape]
        spread = kernel.new_zeros(self._torus)
        spread[: kernel.shape[0], : kernel.shape[1]] = kernel
        # The kernel itself, not its spectrum: Module.to(dtype) would make that real.
        self.register_buffer("_kernel", spread.roll([-n for n in origin], dims=(0, 1)))

    def _forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:  # refused by the Fourier transform
            return x
        return _crop(self._convolve(self._extend(x), self._transfer()), self.domain_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        if y.numel() == 0:
            return y
        return self._fold(_crop(self._convolve(y, self._transfer().conj()), self._extended))

    def _norm(self) -> float:
        if self.boundary != "periodic":
            return super()._norm()
        return float(torch.fft.rfft2(self._kernel.double()).abs().max())

    def _transfer(self) -> Tensor:
        """Spectrum of the kernel on the torus."""
        spectrum: Tensor = torch.fft.rfft2(self._kernel)
        return spectrum

    def _convolve(self, x: Tensor, transfer: Tensor) -> Tensor:
        """Multiply spectra on the torus; an ``x`` smaller than it is followed by zeros."""
        spectrum = torch.fft.rfft2(x, s=self._torus)
        result: Tensor = torch.fft.irfft2(spectrum * transfer, s=self._torus)
        return result

    def _extend(self, x: Tensor) -> Tensor:
        """Reflect the image at its edges, as far as the kernel reaches."""
        if self.boundary != "reflect":
            return x
        for dim, k in zip((-2, -1), self.kernel_shape, strict=True):
            before, after = k - 1 - k // 2, k // 2
            head = x.narrow(dim, 0, before).flip(dim)
            tail = x.narrow(dim, x.shape[dim] - after, after).flip(dim)
            x = torch.cat([head, x, tail], dim)
        return x

    def _fold(self, x: Tensor) -> Tensor:
        """Adjoint of `_extend`: add to every pixel the values at its reflections."""
        if self.boundary != "reflect":
            return x
        image = x.new_zeros(x.shape[:-2] + self.domain_shape[-2:])
        folded: Tensor = torch.func.vjp(self._extend, image)[1](x)[0]
        return folded


def _crop(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x[..., : shape[-2], : shape[-1]]


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


def _checked_kernel(values: Any, image_shape: tuple[int, ...]) -> Tensor:
    kernel: Tensor = torch.as_tensor(values).detach()
    if kernel.ndim != 2 or kernel.numel() == 0:
        raise ShapeError(f"kernel: expected two dimensions (y, x), got {tuple(kernel.shape)}")
    if not kernel.is_floating_point():
        raise DtypeError(
            f"kernel: expected real floating-point, got {kernel.dtype}; convert it with .float()"
        )
    if any(k > n for k, n in zip(kernel.shape, image_shape, strict=True)):
        raise ShapeError(
            f"kernel: {tuple(kernel.shape)} is larger than the image {image_shape}; crop it"
        )
    if not torch.isfinite(kernel).all():
        raise DataError("kernel: an entry is NaN or infinite")
    return kernel


def _fast_length(n: int) -> int:
    """Next length whose only prime factors are 2, 3 and 5: Fourier transforms are fastest."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(n, real=True))
