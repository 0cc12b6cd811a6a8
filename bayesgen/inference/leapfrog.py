"""The leapfrog integrator of Hamiltonian methods, for all chains of all problems at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bayesgen.inference.masses import is_dense, velocity
from bayesgen.types import Density


class Dynamics(Protocol):
    """What the integrator needs to know; see `bayesgen.inference.hmc.HMCState`."""

    @property
    def step_size(self) -> Tensor: ...

    @property
    def inverse_mass(self) -> Tensor: ...

    @property
    def prior(self) -> tuple[Tensor, Tensor] | None: ...


class Phase(NamedTuple):
    """Points of phase space: positions, their log density and its gradient, momenta."""

    position: Tensor
    log_prob: Tensor
    gradient: Tensor
    momentum: Tensor


def drift(dynamics: Dynamics) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Motion without kicks for one step: position and momentum as a function of both.

    Straight on, but for coordinates with a normal prior that is treated apart: they rotate.
    """
    if is_dense(dynamics.inverse_mass):
        stride = dynamics.step_size
        return lambda position, momentum: (
            torch.addcmul(position, stride, velocity(momentum, dynamics.inverse_mass)),
            momentum,
        )
    stride = dynamics.step_size * dynamics.inverse_mass
    if dynamics.prior is None:
        return lambda position, momentum: (torch.addcmul(position, stride, momentum), momentum)
    mean, precision = dynamics.prior
    angle = dynamics.step_size * (precision * dynamics.inverse_mass).sqrt()
    # sin(angle) / angle, 1 where there is no such prior and the motion straight.
    cos, sinc = angle.cos(), torch.sinc(angle / math.pi)
    stride, back = stride * sinc, dynamics.step_size * precision * sinc

    def rotate(position: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        centred = position - mean
        return mean + cos * centred + stride * momentum, cos * momentum - back * centred

    return rotate


def kick(dynamics: Dynamics) -> Callable[[Phase], Tensor]:
    """Momentum after half a step in the gradient of what `drift` leaves."""
    half = 0.5 * dynamics.step_size
    if dynamics.prior is None:
        return lambda at: torch.addcmul(at.momentum, half, at.gradient)
    mean, precision = dynamics.prior
    return lambda at: at.momentum + half * (at.gradient + precision * (at.position - mean))


def integrator(log_density: Density, dynamics: Dynamics) -> Callable[[Phase, Tensor | None], Phase]:
    """One leapfrog step, as a function of a phase-space point and of which rows are to move.

    Rows ``(*problems, chains)`` that are not keep their position; what else the function returns
    for them means nothing.
    """
    drifted, kicked = drift(dynamics), kick(dynamics)

    def advance(now: Phase, rows: Tensor | None = None) -> Phase:
        position, momentum = drifted(now.position, kicked(now))
        if rows is not None:
            position = torch.where(rows[..., None], position, now.position)
        new = Phase(position, *evaluate(log_density, position, rows), momentum)
        return new._replace(momentum=kicked(new))

    return advance


def evaluate(
    log_density: Density, position: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log density and gradient, at ``rows`` ``(*problems, chains)`` only if it can be spared."""
    spares = rows is not None and getattr(log_density, "takes_where", False)
    options: dict[str, Any] = {"where": rows} if spares else {}
    return log_density.value_and_grad(position, **options)


def choose(rows: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``new`` at ``rows``, else ``old``; tensors may have an axis of coordinates or none."""
    wide = rows[..., None]
    return tuple(
        torch.where(wide if a.ndim > rows.ndim else rows, a, b)
        for a, b in zip(new, old, strict=True)
    )
