"""Images with few and sharp edges, as a distribution with a proximal map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesgen.errors import OptionError, ShapeError
from bayesgen.operators import Gradient
from bayesgen.operators.convolution import Boundary
from bayesgen.operators.inputs import as_shape
from bayesgen.types import check_positive

# Of a proximal map, in single and double precision; a warm start takes a few dozen.
_MOST_STEPS, _MOST_STEPS_DOUBLE = 300, 5000


class TotalVariation(TorchDistribution):
    r"""The improper prior :math:`p(u) \propto \exp(-\mathrm{TV}(u) / b)` over images.

    The total variation is isotropic: the sum over pixels (and channels) of the length of the
    gradient by forward differences. A constant image of any intensity is as probable as any other,
    so the prior has no draws, and its density no constant.

    Parameters
    ----------
    shape
        ``(y, x)`` or ``(channel, y, x)``.
    scale
        :math:`b`, in intensities: the larger, the more edges.
    boundary
        Of the differences, as for `bayesgen.operators.Gradient`: the default counts no edge of the
        image; ``"zero"`` counts the steps to zero beyond the last row and column.
    smoothing
        :math:`\epsilon`, in intensities: lengths l of the gradient count as
        :math:`\sqrt{l^2 + \epsilon^2} - \epsilon`. The prior then has no kinks, which quasi-Newton
        methods need, and no proximal map; an edge of height h costs :math:`\epsilon / h` less.
    dtype
        Of the images.

    Raises
    ------
    OptionError
        If the scale or a smoothing is not a positive number, or the shape is not that of an image.

    References
    ----------
    Rudin, Osher and Fatemi (1992), Nonlinear total variation based noise removal algorithms.

    Examples
    --------
    >>> step = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    >>> TotalVariation((2, 3), scale=0.5).log_prob(step)
    tensor(-4.)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(
        self,
        shape: Sequence[int],
        scale: float,
        *,
        boundary: Boundary = "reflect",
        smoothing: float = 0.0,
        dtype: torch.dtype = torch.float32,
        validate_args: bool | None = None,
    ) -> None:
        check_positive("scale", scale)
        shape = as_shape("shape", shape)
        if len(shape) not in (2, 3):
            raise OptionError(f"shape: expected (y, x) or (channel, y, x), got {shape}")
        if smoothing:
            check_positive("smoothing", smoothing)
            self.proximal_map = None  # type: ignore[assignment]
        self.scale, self.smoothing = scale, smoothing
        self.difference = Gradient(shape, boundary)
        self.dtype = dtype
        super().__init__(torch.Size(), torch.Size(shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """All images."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> TotalVariation:
        """The same prior with its batch dimensions broadcast to ``batch_shape``."""
        new: TotalVariation = self.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*sample, *batch, *event) -> (*sample, *batch)``, without a constant."""
        if value.shape[value.ndim - len(self.event_shape) :] != self.event_shape:
            raise ShapeError(
                f"value: has shape {tuple(value.shape)}; expected images {tuple(self.event_shape)}"
            )
        lengths = _lengths(self.difference(value), len(self.event_shape))
        if self.smoothing:
            # Less its value where the image is flat, so that the mode stays zero.
            # The difference of the formula, without cancellation.
            squares = lengths.square()
            lengths = squares / ((squares + self.smoothing**2).sqrt() + self.smoothing)
        return -lengths.flatten(-len(self.event_shape)).sum(-1) / self.scale

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Refused: an improper prior has no draws."""
        raise NotImplementedError("TotalVariation is improper and has no draws")

    def proximal_map(
        self,
        value: Tensor,
        step: Tensor,
        dual: Tensor | None = None,
        accuracy: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\arg\min_u \tfrac12 |u - v|^2 + t\, \mathrm{TV}(u) / b`.

        By fast gradient projection on the dual problem, until the duality gap, which bounds half
        the squared distance from the minimiser, is small beside the squared norm of v.

        Parameters
        ----------
        value
            :math:`v`, images ``(*batch, *shape)``.
        step
            :math:`t`, ``(*batch,)``; or the same number at every pixel, ``(*batch, *shape)``.
        dual
            Where to begin: what the call for a near-by image returned.
        accuracy
            Duality gaps ``(*batch,)`` that are small enough, where that is more.

        Returns
        -------
        minimiser, dual
            Of shapes ``(*batch, *shape)`` and ``(*batch, 2, *shape)``.

        References
        ----------
        Beck and Teboulle (2009), Fast gradient-based algorithms for constrained total variation
        image denoising and deblurring problems, algorithm FGP; O'Donoghue and Candes (2015),
        Adaptive restart for accelerated gradient schemes, the gradient scheme.
        """
        dims, batch = len(self.event_shape), value.shape[: value.ndim - len(self.event_shape)]
        if step.ndim == value.ndim:
            step = step.flatten(-dims)[..., 0]
        rows = math.prod(batch)
        v = value.reshape(rows, *self.event_shape)
        radius = (step / self.scale).expand(batch).reshape((rows,) + (1,) * (dims + 1))
        tolerance = torch.finfo(value.dtype).eps ** 0.75 * _inner(v, v, dims)
        if accuracy is not None:
            tolerance = torch.maximum(tolerance, accuracy.expand(batch).reshape(rows))
        start = self.difference(torch.zeros_like(v)) if dual is None else dual
        p = _into_balls(start.reshape(rows, 2, *self.event_shape), radius, dims)
        p = self._dual_optimum(v, p, radius, tolerance)
        u = v - self.difference.adjoint(p)
        return u.reshape(value.shape), p.reshape(*batch, 2, *self.event_shape)

    def _dual_optimum(self, v: Tensor, p: Tensor, radius: Tensor, tolerance: Tensor) -> Tensor:
        """The dual variables, one row an image; rows that are near enough go no further."""
        # Shapes have been checked: the operator's own methods are half of the time otherwise.
        dims, D, adjoint = len(self.event_shape), self.difference._forward, self.difference._adjoint
        # A single pixel has no differences.
        rate = 1 / (self.difference.norm() or 1.0) ** 2
        found, rows = p.clone(), torch.arange(len(p), device=p.device)
        ahead, momentum = p, torch.ones_like(tolerance)
        for k in range(_MOST_STEPS_DOUBLE if v.dtype == torch.float64 else _MOST_STEPS):
            if not len(rows):
                break
            previous, p = p, _into_balls(ahead + rate * D(v - adjoint(ahead)), radius, dims)
            # Momentum that points uphill starts anew.
            uphill = _inner(ahead - p, p - previous, dims + 1) > 0
            momentum = torch.where(uphill, 1.0, momentum)
            following = 0.5 * (1 + (1 + 4 * momentum.square()).sqrt())
            weight = ((momentum - 1) / following).reshape(momentum.shape + (1,) * (dims + 1))
            ahead, momentum = p + weight * (p - previous), following
            if k % 10 == 2:
                slope = D(v - adjoint(p))
                gap = (radius[:, 0] * _lengths(slope, dims)).flatten(-dims).sum(-1)
                far = ~(gap - _inner(p, slope, dims + 1) <= tolerance)
                found[rows] = p
                p, ahead, v, radius = p[far], ahead[far], v[far], radius[far]
                momentum, tolerance, rows = momentum[far], tolerance[far], rows[far]
        found[rows] = p
        return found


def _lengths(gradient: Tensor, dims: int) -> Tensor:
    """Length of the gradient ``(*batch, 2, *shape)`` at every pixel; its own gradient at 0 is 0."""
    return gradient.norm(dim=-dims - 1)


def _into_balls(p: Tensor, radius: Tensor, dims: int) -> Tensor:
    """The nearest dual variable whose length at every pixel is at most ``radius``."""
    return p / (_lengths(p, dims).unsqueeze(-dims - 1) / radius).clamp(min=1)


def _inner(a: Tensor, b: Tensor, dims: int) -> Tensor:
    return (a * b).flatten(-dims).sum(-1)
