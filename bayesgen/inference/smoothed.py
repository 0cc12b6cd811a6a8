"""Priors with kinks, smoothed: what proximal Langevin methods follow, and how far they may step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.types import Density

# Iterations that find the first curvature; how many steps of warm-up lie between later ones, each
# one more iteration; and what is left of an old value then: starts far out are forgotten.
_FIRST, _EVERY, _KEPT = 20, 10, 0.95

# Proximal maps may stop at 3 % of so many widths of the smoothing; they mostly end far closer.
_WIDTH = 3.0


class Smoothed:
    r"""A log density whose gradient is that of a smooth one near by.

    Priors :math:`e^{-g}` with a proximal map count, in the gradient, as their Moreau-Yosida
    envelopes :math:`g_\lambda(v) = \min_u g(u) + |u - v|^2 / 2 \lambda`, of gradient
    :math:`(v - \operatorname{prox}_{\lambda g}(v)) / \lambda`. Values are the log density's own.

    Parameters
    ----------
    density
        The log density; without ``proximal`` it stays as it is.
    smoothing
        :math:`\lambda`, in units of the density's scale; broadcasts against points and is one
        number for each site with a proximal map.

    Notes
    -----
    Proximal maps that iterate stop at an error that is small beside :math:`\sqrt\lambda`. They
    begin at the same place every time, so that gradients are functions of the point alone, which
    is what a Metropolis test needs of its proposals.

    References
    ----------
    Durmus, Moulines and Pereyra (2018), Efficient Bayesian computation by proximal Markov chain
    Monte Carlo, section 3.
    """

    def __init__(self, density: Any, smoothing: Tensor) -> None:
        self.num_dims: int = density.num_dims
        self._density, self._smoothing = density, smoothing
        proximal = getattr(density, "proximal", {})
        self._blocks = {name: density.blocks[name] for name in proximal}

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Log density ``(*batch,)``, and gradient ``(*batch, n)`` of its smoothed form."""
        if not self._blocks:
            found: tuple[Tensor, Tensor] = self._density.value_and_grad(v, jacobian=jacobian)
            return found
        value, gradient = self._density.value_and_grad(v, jacobian=jacobian, smooth=True)
        return value - self._density.penalty(v), gradient - self.slope(v)

    def slope(self, v: Tensor) -> Tensor:
        """Gradient of the envelopes; zero at other sites."""
        if not self._blocks:
            return torch.zeros_like(v)
        smoothing = self._smoothing.expand_as(v)
        steps = {name: smoothing[..., block][..., 0] for name, block in self._blocks.items()}
        near, _ = self._density.proximal_step(v, steps, {}, moved=_WIDTH * smoothing.sqrt())
        return (v - near) / smoothing

    def evenly(self, variances: Tensor) -> Tensor:
        """``variances`` with their geometric mean throughout each site with a proximal map."""
        even = variances.clone()
        for block in self._blocks.values():
            mean = variances[..., block].log().mean(-1, keepdim=True).exp()
            even[..., block] = mean.expand_as(even[..., block])
        return even


class Curvature(NamedTuple):
    """Largest curvature of the smooth part of a log density, by power iteration.

    Attributes
    ----------
    direction
        Of that curvature at every chain, ``(*problems, chains, n)``.
    largest
        Its value, ``(*problems, 1, 1)``: the largest of all chains, and of not too long ago. At
        least 1, which is about the prior's in units of its scale.
    """

    direction: Tensor
    largest: Tensor

    @classmethod
    def at(cls, density: Density, position: Tensor) -> Curvature:
        """Curvature at the start."""
        # A fixed stream: the answer does not depend on it.
        rng = torch.Generator().manual_seed(0)
        direction = torch.randn(position.shape[-1], generator=rng, dtype=torch.float64)
        direction = (direction / direction.norm()).to(position).expand_as(position)
        curvature = cls(direction, torch.ones_like(position[..., :1, :1]))
        for _ in range(_FIRST):
            curvature = curvature.again(density, position)
        return curvature

    def again(self, density: Density, position: Tensor) -> Curvature:
        """One more iteration, at new points."""
        options = {"smooth": True} if getattr(density, "proximal", {}) else {}
        small = torch.finfo(position.dtype).eps ** (1.0 / 3.0)
        _, ahead = density.value_and_grad(position + small * self.direction, **options)
        _, behind = density.value_and_grad(position - small * self.direction, **options)
        image = (ahead - behind) / (2.0 * small)
        length = image.norm(dim=-1, keepdim=True)
        usable = torch.isfinite(length) & (length > 0)
        direction = torch.where(usable, image / length, self.direction)
        found = torch.where(usable, length, 0.0).amax(-2, keepdim=True).clamp(min=1.0)
        return Curvature(direction, torch.maximum(found, _KEPT * self.largest))


class SmoothedState(NamedTuple):
    """Where the chains of an unadjusted proximal method are.

    Attributes
    ----------
    position, log_prob, gradient
        Points ``(*problems, chains, n)``, their log density, and the gradient of its smoothed form.
    curvature
        What smoothing and step size follow from.
    measure
        Whether the next step updates the curvature, as some of warm-up do.
    """

    position: Tensor
    log_prob: Tensor
    gradient: Tensor
    curvature: Curvature
    measure: bool

    @classmethod
    def start(cls, density: Density, position: Tensor, smoothing: float | None) -> SmoothedState:
        """First state at ``position``, smoothed as told or as the curvature there asks for."""
        curvature = Curvature.at(density, position)
        smoothed = Smoothed(density, smoothing_of(curvature, smoothing))
        log_prob, gradient = smoothed.value_and_grad(position)
        return cls(position, log_prob, gradient, curvature, measure=False)

    def measured(self, density: Density) -> SmoothedState:
        """With the curvature of where the chains are now, if it is time."""
        if not self.measure:
            return self
        return self._replace(curvature=self.curvature.again(density, self.position))

    def adapted(self, iteration: int, warmup: int) -> SmoothedState:
        """After step ``iteration`` of ``warmup``."""
        return self._replace(measure=iteration % _EVERY == 0 and iteration < warmup - 1)


def smoothing_of(curvature: Curvature, smoothing: float | None) -> Tensor:
    r""":math:`\lambda`, ``(*problems, 1, 1)``: as told, or 1/L.

    The smoothed prior then bends no more than the likelihood, and steps stay as long.
    """
    if smoothing is None:
        return 1.0 / curvature.largest
    return torch.full_like(curvature.largest, smoothing)
