"""Convolution, with a kernel that is an argument: blind deblurring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError, unknown_option
from bayesgen.operators.base import Operator
from bayesgen.operators.inputs import as_constant, as_shape, check_input, require_finite

Boundary = Literal["zero", "periodic", "reflect"]


@dataclass(frozen=True)
class Torus:
    """How images and kernels of given sizes are laid out for a circular convolution.

    Attributes
    ----------
    image, kernel
        Their two-dimensional shapes.
    boundary
        What lies beyond the edge of the image.
    """

    image: tuple[int, int]
    kernel: tuple[int, int]
    boundary: Boundary

    @property
    def shape(self) -> tuple[int, int]:
        """Of the torus: large enough for what wraps around not to reach the image."""
        if self.boundary == "periodic":
            return self.image
        y, x = (_fast_length(n + k - 1) for n, k in zip(self.image, self.kernel, strict=True))
        return y, x

    @property
    def extended(self) -> tuple[int, int]:
        """Of what is convolved: the image, with its reflections if it has any."""
        if self.boundary != "reflect":
            return self.image
        y, x = (n + k - 1 for n, k in zip(self.image, self.kernel, strict=True))
        return y, x

    def spread(self, kernel: Tensor) -> Tensor:
        """The kernel with its centre where the image's first pixel lies."""
        padding = [n - k for n, k in zip(self.shape, self.kernel, strict=True)]
        spread = torch.nn.functional.pad(kernel, (0, padding[1], 0, padding[0]))
        if self.boundary == "reflect":
            origin = [k - 1 for k in self.kernel]
        else:
            origin = [k // 2 for k in self.kernel]
        return spread.roll([-n for n in origin], dims=(-2, -1))

    def convolve(self, x: Tensor, transfer: Tensor) -> Tensor:
        """From images to images of the same shape, given the spectrum of the spread kernel."""
        return crop(self._product(self._extend(x), transfer), self.image)

    def correlate(self, y: Tensor, transfer: Tensor) -> Tensor:
        """The adjoint of `convolve`."""
        return self._fold(crop(self._product(y, transfer.conj()), self.extended))

    def _product(self, x: Tensor, transfer: Tensor) -> Tensor:
        """Multiply spectra on the torus; an ``x`` smaller than it is followed by zeros."""
        spectrum = torch.fft.rfft2(x, s=self.shape)
        result: Tensor = torch.fft.irfft2(spectrum * transfer, s=self.shape)
        return result

    def _extend(self, x: Tensor) -> Tensor:
        """Reflect the image at its edges, as far as the kernel reaches."""
        if self.boundary != "reflect":
            return x
        for dim, k in zip((-2, -1), self.kernel, strict=True):
            before, after = k - 1 - k // 2, k // 2
            head = x.narrow(dim, 0, before).flip(dim)
            tail = x.narrow(dim, x.shape[dim] - after, after).flip(dim)
            x = torch.cat([head, x, tail], dim)
        return x

    def _fold(self, x: Tensor) -> Tensor:
        """Adjoint of `_extend`: add to every pixel the values at its reflections."""
        if self.boundary != "reflect":
            return x
        image = x.new_zeros(x.shape[:-2] + self.image)
        folded: Tensor = torch.func.vjp(self._extend, image)[1](x)[0]
        return folded


class Convolution(torch.nn.Module):
    """Convolution of an image with a kernel when both are unknown: ``A(x, kernel)``.

    Linear in either argument alone. In a Pyro model, both can be sites; `Blur` is for kernels that
    are known, and has the formula.

    Parameters
    ----------
    domain_shape
        ``(y, x)`` or ``(channel, y, x)``; all channels share the kernel.
    kernel_shape
        ``(y, x)``, up to that of the image, odd or even.
    boundary
        As for `Blur`.

    Raises
    ------
    ShapeError
        If the domain is not that of an image, or the kernel is larger than it.
    OptionError
        If the boundary is unknown.

    Examples
    --------
    >>> A = Convolution((28, 28), (5, 5))
    >>> x, kernel = torch.rand(28, 28), torch.full((5, 5), 0.04)
    >>> A(x, kernel).shape
    torch.Size([28, 28])

    In a model::

        kernel = pyro.sample("kernel", dist.Dirichlet(torch.ones(25))).reshape(5, 5)
        pyro.sample("y", dist.Normal(A(G(z), kernel), 0.01).to_event(2), obs=y)
    """

    def __init__(
        self,
        domain_shape: Sequence[int],
        kernel_shape: Sequence[int],
        boundary: Boundary = "zero",
    ) -> None:
        super().__init__()
        self.domain_shape = as_shape("domain_shape", domain_shape)
        self.range_shape = self.domain_shape
        self.kernel_shape = as_shape("kernel_shape", kernel_shape)
        self.torus = make_torus(self.domain_shape, self.kernel_shape, boundary)

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Images ``(*batch, *domain_shape)`` with kernels ``(*batch, *kernel_shape)``.

        Batch dimensions broadcast. Data have the shape of the image.
        """
        check_input(self, "x", x, self.domain_shape, ())
        check_input(self, "kernel", kernel, self.kernel_shape, (x,))
        batches = x.shape[: x.ndim - len(self.domain_shape)], kernel.shape[:-2]
        try:
            batch = torch.broadcast_shapes(*batches)
        except RuntimeError as error:
            raise ShapeError(
                f"{self}: batches of images {tuple(batches[0])} and of kernels {tuple(batches[1])} "
                "do not broadcast"
            ) from error
        if len(self.domain_shape) == 3:
            kernel = kernel.unsqueeze(-3)
        if x.numel() == 0 or kernel.numel() == 0:  # refused by the Fourier transform
            empty = x.new_zeros(batch + self.domain_shape)
            return empty + x.sum() + kernel.sum()
        transfer = torch.fft.rfft2(self.torus.spread(kernel))
        return self.torus.convolve(x, transfer)

    def given(self, x: Tensor) -> Operator:
        """The operator from kernels to data that a known image ``x`` (domain_shape) makes."""
        check_input(self, "x", x, self.domain_shape, ())
        if x.shape != self.domain_shape:
            raise ShapeError(f"x: expected one image {self.domain_shape}, got {tuple(x.shape)}")
        x = as_constant("x", x)
        require_finite("x", x)
        return _KernelToData(self, x)

    def extra_repr(self) -> str:
        """Shapes, for ``repr``."""
        return f"{self.domain_shape}, {self.kernel_shape} -> {self.range_shape}"

    def __str__(self) -> str:
        return "Convolution"


class _KernelToData(Operator):
    image: Tensor

    def __init__(self, convolution: Convolution, image: Tensor) -> None:
        super().__init__(convolution.kernel_shape, convolution.range_shape)
        self.convolution = convolution
        self.register_buffer("image", image.detach().clone())

    def _forward(self, x: Tensor) -> Tensor:
        return self.convolution(self.image, x)


def make_torus(
    domain_shape: tuple[int, ...], kernel_shape: tuple[int, ...], boundary: Boundary
) -> Torus:
    """Check that image, kernel and boundary fit together."""
    if len(domain_shape) not in (2, 3):
        raise ShapeError(f"domain_shape: expected (y, x) or (channel, y, x), got {domain_shape}")
    if boundary not in get_args(Boundary):
        raise OptionError(unknown_option("boundary", boundary, get_args(Boundary)))
    if len(kernel_shape) != 2:
        raise ShapeError(f"kernel: expected two dimensions (y, x), got {kernel_shape}")
    image = (domain_shape[-2], domain_shape[-1])
    kernel = (kernel_shape[0], kernel_shape[1])
    if any(k > n for k, n in zip(kernel, image, strict=True)):
        raise ShapeError(f"kernel: {kernel} is larger than the image {image}; crop it")
    return Torus(image, kernel, boundary)


def crop(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """The first ``shape`` pixels of the last two dimensions."""
    return x[..., : shape[0], : shape[1]]


def _fast_length(n: int) -> int:
    """Next length whose only prime factors are 2, 3 and 5: Fourier transforms are fastest."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(n, real=True))
