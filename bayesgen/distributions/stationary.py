"""Covariances that depend on the distance between pixels only, by fast Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from bayesgen.distributions.covariance import Covariance, LogScale
from bayesgen.errors import DataError, DtypeError, ShapeError
from bayesgen.operators.inputs import as_constant, as_shape, require_finite


class Stationary(Covariance):
    r"""The same covariance everywhere: :math:`C_{pq} = c(p - q)`.

    A periodic convolution on a grid. On the grid of the image itself, opposite edges are
    neighbours. On one of at least twice its size less one, they are not: C is then the image's
    part of the periodic covariance, for which images are padded with zeros and draws are cut out.

    Parameters
    ----------
    autocovariance
        c on the grid, ``(grid_y, grid_x)`` or ``(channel, grid_y, grid_x)`` for independent
        channels, with distance zero first, as of ``torch.fft.ifftshift``.
    image_shape
        ``(y, x)`` or ``(channel, y, x)``.
    log_scale
        See `Covariance`.

    Attributes
    ----------
    wraps : bool
        Whether opposite edges are neighbours. Only then there is a cheap density.

    Raises
    ------
    ShapeError, DtypeError, DataError
        If the grid does not fit the image, or the function is not the autocovariance of anything,
        which has no negative power.

    References
    ----------
    Dietrich and Newsam (1997), Fast and exact simulation of stationary Gaussian processes through
    circulant embedding of the covariance matrix.

    Examples
    --------
    >>> import torch
    >>> C = Stationary(torch.tensor([[2.0, 1.0, 0.0, 1.0]]), (1, 2))  # a grid of four for two
    >>> C(torch.tensor([[1.0, 0.0]])), C.wraps
    (tensor([[2., 1.]]), False)
    """

    autocovariance: Tensor
    _power: Tensor

    def __init__(
        self,
        autocovariance: Tensor,
        image_shape: Sequence[int],
        *,
        log_scale: LogScale | None = None,
    ) -> None:
        shape, values = (
            as_shape("image_shape", image_shape),
            as_constant("autocovariance", autocovariance),
        )
        if not values.is_floating_point():
            raise DtypeError(f"autocovariance: expected floating-point, got {values.dtype}")
        if len(shape) not in (2, 3) or values.ndim != len(shape) or values.shape[:-2] != shape[:-2]:
            raise ShapeError(
                f"autocovariance: has shape {tuple(values.shape)} for images {shape}; expected a "
                "grid (y, x) or (channel, y, x) for images (y, x) or (channel, y, x)"
            )
        grid = tuple(values.shape[-2:])
        wraps = grid == shape[-2:]
        if not wraps and any(g < 2 * n - 1 for g, n in zip(grid, shape[-2:], strict=True)):
            raise ShapeError(
                f"autocovariance: is on a grid of {grid} for images {shape}; expected the image's, "
                "where opposite edges are neighbours, or one of twice its size less one"
            )
        require_finite("autocovariance", values)
        super().__init__(shape, (*shape[:-2], *grid), log_scale)
        self.wraps, self._grid = wraps, grid
        power = rfft2(values.double()).real
        least, most = float(power.min()), float(power.max())
        if least < -1e-4 * most or most <= 0:
            raise DataError(
                f"autocovariance: has powers from {least:.3g} to {most:.3g}; expected a "
                "covariance, which has none that is negative"
            )
        # What rounding leaves of a power of zero is no power.
        self.has_density = wraps and least > torch.finfo(values.dtype).eps * most
        self.register_buffer("autocovariance", values.clone())
        self.register_buffer("_power", power.clamp(min=0.0).to(values), persistent=False)

    @property
    def variance(self) -> Tensor:
        first: Tensor = irfft2(self._power, s=self._grid)[..., :1, :1]
        return first.expand(self.image_shape)

    def _forward(self, x: Tensor) -> Tensor:
        return self._filtered(x, self._power)

    def _factor(self, noise: Tensor) -> Tensor:
        return self._filtered(noise, self._power.sqrt())

    def _filtered(self, values: Tensor, weights: Tensor) -> Tensor:
        height, width = self.image_shape[-2:]
        if values.numel() == 0:  # refused by the Fourier transform
            return values[..., :height, :width].clone()
        full: Tensor = irfft2(rfft2(values, s=self._grid) * weights, s=self._grid)
        return full[..., :height, :width]

    def _whiten(self, u: Tensor) -> Tensor:
        return self._filtered(u, self._power.rsqrt())

    def _log_det(self) -> Tensor:
        logs, width = self._power.double().log(), self._grid[-1]
        # Of a real field, columns between the first and the middle one stand for two.
        total = logs.sum() + logs[..., 1 : (width + 1) // 2].sum()
        return total.to(self._power)


def mean_autocovariance(images: Tensor, *, wrap: bool) -> Tensor:
    """Autocovariance ``(..., grid_y, grid_x)`` of images ``(N, ..., y, x)`` about zero.

    On a doubled grid it is the sum over pairs of pixels divided by the number of pixels, not of
    pairs, without which distant pairs would be all noise and powers negative.

    Examples
    --------
    >>> import torch
    >>> mean_autocovariance(torch.tensor([[[1.0, 1.0]]]), wrap=False)
    tensor([[1.0000, 0.5000, 0.0000, 0.5000],
            [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    height, width = images.shape[-2:]
    grid = (height, width) if wrap else (2 * height, 2 * width)
    parts = (rfft2(block, s=grid) for block in images.split(256))
    power = sum((part.real.square() + part.imag.square()).sum(0) for part in parts)
    autocovariance: Tensor = irfft2(power / (len(images) * height * width), s=grid)
    return autocovariance
