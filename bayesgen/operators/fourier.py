"""Samples of the Fourier transform: magnetic resonance imaging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators.base import Operator
from bayesgen.operators.inputs import as_constant, as_shape, require_finite


class Fourier(Operator):
    r"""Samples of k-space, the centred orthonormal Fourier transform, seen by one or more coils.

    .. math:: (A x)_{c, k} = \frac{1}{\sqrt{n}} \sum_r s_c(r) \, x(r) \,
              e^{-2 \pi i \, k \cdot (r - r_0) / N}

    with the sensitivity :math:`s_c` of coil :math:`c`, the middle :math:`r_0` of the image at
    index ``n // 2`` along each axis, and the frequency zero there as well: the convention of
    fastMRI. Data are real, the last axis holding real and imaginary part, and only what was
    sampled is among them: independent noise of standard deviation ``sigma`` in both parts is
    ``dist.Normal(A(x), sigma).to_event(...)``. The adjoint is the zero-filled reconstruction.

    Parameters
    ----------
    domain_shape
        ``(y, x)`` for real images, ``(2, y, x)`` for the two parts of complex ones.
    mask
        The samples that are kept, as booleans. Default: all, with the range ``(y, x, 2)``. Of shape
        ``(y, x)``: single samples, with the range ``(m, 2)`` in raster order. Of shape ``(x,)``:
        whole lines along ``y`` (columns of k-space, as in fastMRI), with the range
        ``(line, y, 2)``, so that ``A[3]`` is one of them.
    sensitivities
        Complex, ``(coil, y, x)``; the range then is ``(coil, *range_of_one_coil)``. Default: one
        coil of sensitivity one. It is copied.

    Raises
    ------
    ShapeError
        If shapes are not those above.
    DtypeError
        If the mask is not boolean or the sensitivities not complex.
    OptionError
        If the mask keeps nothing.
    DataError
        If a sensitivity is not finite.

    References
    ----------
    Pruessmann, Weiger, Scheidegger and Boesiger (1999), SENSE: sensitivity encoding for fast MRI.
    Zbontar et al. (2018), fastMRI: an open dataset and benchmarks for accelerated MRI.

    Examples
    --------
    >>> from bayesgen.operators.mri import birdcage_sensitivities, cartesian_mask
    >>> A = Fourier((28, 28), cartesian_mask(28, acceleration=4))
    >>> A.range_shape, A(torch.ones(3, 28, 28)).shape
    ((5, 28, 2), torch.Size([3, 5, 28, 2]))
    >>> A.grid(A(torch.ones(28, 28)))[14, 14]  # the frequency zero
    tensor(28.+0.j)
    >>> coils = birdcage_sensitivities(4, (28, 28))
    >>> Fourier((2, 28, 28), cartesian_mask(28), sensitivities=coils).range_shape
    (4, 5, 28, 2)
    """

    _samples: Tensor
    _places: Tensor | None
    _sensitivities: Tensor | None

    def __init__(
        self, domain_shape: Sequence[int], mask: Any = None, *, sensitivities: Any = None
    ) -> None:
        shape = as_shape("domain_shape", domain_shape)
        if len(shape) != 2 and (len(shape) != 3 or shape[0] != 2):
            raise ShapeError(
                "domain_shape: expected (y, x) for real or (2, y, x) for complex images, got "
                f"{shape}"
            )
        samples = _as_samples(mask, shape[-2:])
        maps = None if sensitivities is None else _as_maps(sensitivities, shape[-2:])
        self._coils = () if maps is None else (len(maps),)
        samples = samples if maps is None else samples.to(maps.device)
        super().__init__(shape, (*self._coils, *samples.shape, 2))
        self.register_buffer("_samples", samples)
        self.register_buffer("_places", _in_transform(samples, shape[-2:]))
        # As pairs of real numbers: Module.to(dtype) would drop the imaginary part.
        self.register_buffer("_sensitivities", maps)

    def sample(self, kspace: Any) -> Tensor:
        """Data of this operator from measured k-space; what was not sampled is ignored.

        Complex ``(*batch, y, x)``, or ``(*batch, coil, y, x)`` with sensitivities, tensor or array,
        ``-> (*batch, *range_shape)``.

        Raises
        ------
        ShapeError
            If the shape is another.
        DtypeError
            If it is not complex.
        DataError
            If a sample is not finite.

        Examples
        --------
        >>> A = Fourier((2, 2), torch.tensor([False, True]))
        >>> A.sample(torch.tensor([[1, 2], [3, 4j]]))
        tensor([[[2., 0.],
                 [0., 4.]]])
        """
        kspace = kspace if isinstance(kspace, Tensor) else as_constant("kspace", kspace)
        shape = self._coils + self.domain_shape[-2:]
        if not kspace.is_complex():
            raise DtypeError(f"{self}.sample: kspace must be complex, got {kspace.dtype}")
        if kspace.shape[max(kspace.ndim - len(shape), 0) :] != shape:
            wanted = ", ".join(["*batch", *map(str, shape)])
            raise ShapeError(
                f"{self}.sample: kspace must have shape ({wanted}), got {tuple(kspace.shape)}"
            )
        data = self._gather(kspace)
        if not torch.isfinite(data).all():
            raise DataError(f"{self}.sample: kspace holds NaN or infinity where it was sampled")
        return data

    def grid(self, y: Tensor) -> Tensor:
        """Data in their places in k-space, with zeros between them: the inverse of `sample`.

        ``(*batch, *range_shape) -> (*batch, y, x)`` or ``(*batch, coil, y, x)``, complex.
        """
        self._check("y", y, self.range_shape)
        return self._scatter(y)

    def _forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:  # refused by the Fourier transform
            return x.new_zeros(x.shape[: -len(self.domain_shape)] + self.range_shape) + x.sum()
        image = x if len(self.domain_shape) == 2 else torch.complex(*x.unbind(-3))
        image = torch.fft.ifftshift(image, (-2, -1))
        if self._sensitivities is not None:
            image = image.unsqueeze(-3) * torch.view_as_complex(self._sensitivities)
        return torch.view_as_real(self._transform(image))

    def _adjoint(self, y: Tensor) -> Tensor:
        if y.numel() == 0:
            return y.new_zeros(y.shape[: -len(self.range_shape)] + self.domain_shape) + y.sum()
        image = self._transform_adjoint(torch.complex(*y.unbind(-1)))
        if self._sensitivities is not None:
            image = (image * torch.view_as_complex(self._sensitivities).conj()).sum(-3)
        image = torch.fft.fftshift(image, (-2, -1))
        real = len(self.domain_shape) == 2
        return image.real if real else torch.stack([image.real, image.imag], -3)

    def _transform(self, image: Tensor) -> Tensor:
        """The samples of an image whose middle pixel comes first."""
        if self._samples.ndim == 2 and self._places is not None:
            # Along y only the lines that are kept are transformed.
            rows = torch.fft.fft(image, dim=-1, norm="ortho").index_select(-1, self._places)
            lines = torch.fft.fft(rows, dim=-2, norm="ortho")
            return torch.fft.fftshift(lines, -2).transpose(-2, -1)
        kspace = torch.fft.fft2(image, norm="ortho")
        if self._places is None:
            return torch.fft.fftshift(kspace, (-2, -1))
        return kspace.flatten(-2).index_select(-1, self._places)

    def _transform_adjoint(self, samples: Tensor) -> Tensor:
        image_shape = self.domain_shape[-2:]
        if self._places is None:
            kspace = torch.fft.ifftshift(samples, (-2, -1))
            return torch.fft.ifft2(kspace, norm="ortho")
        if self._samples.ndim == 2:
            lines = torch.fft.ifftshift(samples.transpose(-2, -1), -2)
            lines = torch.fft.ifft(lines, dim=-2, norm="ortho")
            rows = lines.new_zeros((*lines.shape[:-2], *image_shape))
            rows = rows.index_copy(-1, self._places, lines)
            return torch.fft.ifft(rows, dim=-1, norm="ortho")
        kspace = samples.new_zeros((*samples.shape[:-1], math.prod(image_shape)))
        kspace = kspace.index_copy(-1, self._places, samples).unflatten(-1, image_shape)
        return torch.fft.ifft2(kspace, norm="ortho")

    def _norm(self) -> float:
        image_shape = self.domain_shape[-2:]
        kept = torch.zeros(image_shape, dtype=torch.bool, device=self._samples.device)
        kept.view(-1)[self._samples] = True
        real = len(self.domain_shape) == 2
        if self._sensitivities is None:
            return _norm_on_real(kept) if real else 1.0
        if kept.all():
            return float(self._sensitivities.double().square().sum((0, -1)).max().sqrt())
        if self._samples.ndim == 2:
            maps = torch.view_as_complex(self._sensitivities.double())
            return _norm_of_lines(torch.fft.fftshift(maps, (-2, -1)), kept.any(0), real)
        return super()._norm()

    def _gather(self, kspace: Tensor) -> Tensor:
        pairs = torch.view_as_real(kspace.resolve_conj()).flatten(-3, -2)
        data = pairs.index_select(-2, self._samples.flatten())
        return data.unflatten(-2, self._samples.shape)

    def _scatter(self, y: Tensor) -> Tensor:
        y = y.flatten(-1 - self._samples.ndim, -2)
        image_shape = self.domain_shape[-2:]
        pairs = y.new_zeros((*y.shape[:-2], math.prod(image_shape), 2))
        pairs = pairs.index_copy(-2, self._samples.flatten(), y)
        return torch.complex(*pairs.unbind(-1)).unflatten(-1, image_shape)


def _as_samples(mask: Any, image_shape: tuple[int, ...]) -> Tensor:
    """Flat indices into k-space, in the shape that the samples have among the data."""
    grid = torch.arange(math.prod(image_shape)).reshape(image_shape)
    if mask is None:
        return grid
    mask = as_constant("mask", mask)
    if mask.dtype != torch.bool:
        raise DtypeError(
            f"mask: expected booleans, got {mask.dtype}; compare first, as in mask > 0.5"
        )
    if tuple(mask.shape) not in (image_shape, image_shape[1:]):
        raise ShapeError(
            f"mask: expected the shape {image_shape} of the image or {image_shape[1:]}, one entry "
            f"for each of its columns, got {tuple(mask.shape)}"
        )
    if not mask.any():
        raise OptionError(f"mask: keeps none of the samples of shape {tuple(mask.shape)}")
    grid = grid.to(mask.device)
    return grid[mask] if mask.ndim == 2 else grid.T[mask]


def _in_transform(samples: Tensor, image_shape: tuple[int, ...]) -> Tensor | None:
    """Where the Fourier transform, frequency zero first, has what is sampled.

    Flat indices of single samples, the columns of whole lines; None if everything is kept.
    """
    height, width = image_shape
    if samples.ndim == 2 and samples.numel() == height * width and samples.shape[0] == height:
        full = torch.arange(height * width, device=samples.device).reshape(height, width)
        if torch.equal(samples, full):
            return None
    row, column = samples // width, samples % width
    row, column = (row - height // 2) % height, (column - width // 2) % width
    return row * width + column if samples.ndim == 1 else column[:, 0].contiguous()


def _as_maps(values: Any, image_shape: tuple[int, ...]) -> Tensor:
    """Complex maps as pairs of real numbers, with the middle pixel first."""
    maps = as_constant("sensitivities", values)
    if not maps.is_complex():
        raise DtypeError(f"sensitivities: expected complex numbers, got {maps.dtype}")
    if maps.ndim != 3 or len(maps) == 0 or tuple(maps.shape[1:]) != image_shape:
        wanted = ", ".join(["coil", *map(str, image_shape)])
        raise ShapeError(f"sensitivities: expected shape ({wanted}), got {tuple(maps.shape)}")
    shifted = torch.fft.ifftshift(maps.resolve_conj(), (-2, -1))
    pairs = torch.view_as_real(shifted).clone(memory_format=torch.contiguous_format)
    require_finite("sensitivities", pairs)
    return pairs


def _norm_on_real(kept: Tensor) -> float:
    """Norm of one coil on real images.

    There ``A* A`` is the convolution that multiplies frequency ``k`` by the mean of the mask at
    ``k`` and ``-k``: 1 if both are sampled somewhere, else 1/2.
    """
    centred = torch.fft.ifftshift(kept)
    mirrored = centred.flip(0, 1).roll((1, 1), (0, 1))
    return 1.0 if (centred & mirrored).any() else math.sqrt(0.5)


def _norm_of_lines(maps: Tensor, columns: Tensor, real: bool) -> float:
    """Norm for whole lines: complete along ``y``, they do not mix the rows of the image.

    Iteration would be slow, for the largest singular values of many rows nearly agree.
    """
    response = torch.fft.ifft(torch.fft.ifftshift(columns).to(maps.dtype))
    pixels = torch.arange(len(columns), device=columns.device)
    spread = response[(pixels[:, None] - pixels) % len(columns)]
    largest = 0.0
    for row in maps.unbind(1):
        normal = spread * (row.mH @ row)
        values = torch.linalg.eigvalsh(normal.real if real else normal)
        largest = max(largest, float(values[-1]))
    return math.sqrt(largest)
