"""Quasi-Newton steps for a smooth objective plus priors known by their proximal maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.solvers.history import empty_history, remember, two_loops
from bayesgen.inference.solvers.problem import (
    Objective,
    SolverSettings,
    SolverState,
    give_up,
    move,
)


class Point(NamedTuple):
    """An iterate of `PANOC`: where it is, and where a proximal gradient step leads."""

    v: Tensor
    value: Tensor
    gradient: Tensor
    forward: Tensor
    residual: Tensor
    envelope: Tensor
    proximal: Mapping[str, Any]


class PANOC:
    r"""Quasi-Newton steps on the fixed-point equation of proximal gradient steps.

    With :math:`\bar v = \operatorname{prox}(v - \gamma \nabla f(v))` a stationary point satisfies
    :math:`v = \bar v`. L-BFGS directions for that equation are tried first; a line search on the
    forward-backward envelope, which is continuous where the objective has kinks, falls back to the
    proximal gradient step. Each site is measured in units of its curvature at the start. The answer
    is :math:`\bar v`, which is exactly sparse, or flat, where the priors want it so.

    References
    ----------
    Stella, Themelis, Sopasakis and Patrinos (2017), A simple and efficient algorithm for nonlinear
    model predictive control, algorithm 1.
    """

    length, safety, decrease, shortening, trials = 20, 0.95, 1e-3, 0.99, 8
    least, patience = 1e-12, 10

    class Memory(NamedTuple):
        """History of L-BFGS, the iterate, the square roots of the curvatures, gamma, and for how
        many iterations rounding hid what was promised."""

        steps: Tensor
        changes: Tensor
        inverse_products: Tensor
        at: Point
        units: Tensor
        gamma: Tensor
        stalled: Tensor

    @classmethod
    def start(cls, objective: Objective, position: Tensor, settings: SolverSettings) -> SolverState:
        """Measure the curvature of each site along the gradient."""
        value, gradient = objective.smooth(position)
        units = _curvatures(objective, position, gradient).sqrt()
        gamma = torch.full_like(value, cls.safety)
        at = _point(objective, position, (value, gradient), units, gamma)
        history, stalled = empty_history(position, cls.length), torch.zeros_like(value)
        memory = cls.Memory(*history, at, units, gamma, stalled)
        stopped = torch.zeros_like(value, dtype=torch.bool)
        steps, total = (
            torch.zeros_like(stopped, dtype=torch.int64),
            value + objective.penalty(position),
        )
        return SolverState(position, -total, gradient, stopped, stopped, steps, memory)

    @classmethod
    def step(
        cls, objective: Objective, state: SolverState, settings: SolverSettings
    ) -> SolverState:
        """Shorten gamma where the smooth part bends more; report; move on."""
        active = ~state.stopped
        memory, forward = cls._shortened(objective, state.memory, active)
        at, units, gamma = memory.at, memory.units, memory.gamma
        # A subgradient of the whole objective at the proximal step.
        optimality = (
            units.square() * (at.v - at.forward) / gamma[..., None] + forward[1] - at.gradient
        )
        total = forward[0] + objective.penalty(at.forward)
        # The envelope falls with every step, the objective itself at most of them.
        rounding = 10 * torch.finfo(total.dtype).eps * total.abs().clamp(min=1.0)
        better = active & (total <= rounding - state.log_prob)
        new = move(state, better, at.forward, total, optimality, settings.tolerance)
        new = new._replace(n_steps=torch.where(active, state.n_steps + 1, state.n_steps))
        active = ~new.stopped
        following, tried = cls._line_search(objective, memory, forward, active)
        change = (following.v - at.v) * units
        s, y, products = remember(memory, change, following.residual - at.residual, active)
        # No decrease is left that rounding would not hide; a few more steps gain some digits.
        hidden = gamma * at.residual.square().sum(-1) <= rounding
        length = cls.shortening * at.residual.norm(dim=-1)
        shorter = following.residual.norm(dim=-1) <= length
        stalled = torch.where(hidden & ~shorter, memory.stalled + 1, 0)
        at = _choose(active, following, at)
        new = new._replace(memory=cls.Memory(s, y, products, at, units, gamma, stalled))
        arrived = active & ((~tried & hidden) | (stalled >= cls.patience))
        new = new._replace(stopped=new.stopped | arrived, converged=new.converged | arrived)
        return give_up(new, active & (gamma < cls.least))

    @classmethod
    def _shortened(
        cls, objective: Objective, memory: Memory, active: Tensor
    ) -> tuple[Memory, tuple[Tensor, Tensor]]:
        """Halve gamma until the smooth part lies below its quadratic model at the proximal step."""
        pending, forward = active, (memory.at.value, memory.at.gradient)
        while True:
            at, units, gamma = memory.at, memory.units, memory.gamma
            value, gradient = objective.smooth(at.forward, pending)
            forward = (
                torch.where(pending, value, forward[0]),
                torch.where(pending[..., None], gradient, forward[1]),
            )
            change = at.forward - at.v
            model = at.value + (at.gradient * change).sum(-1)
            model = model + 0.5 * cls.safety / gamma * (units * change).square().sum(-1)
            rounding = 10 * torch.finfo(model.dtype).eps * at.value.abs().clamp(min=1.0)
            # NaN counts as too large.
            bent = active & ~(forward[0] <= model + rounding) & (gamma >= cls.least)
            pending = bent
            if not bool(bent.any()):
                return memory, forward
            gamma = torch.where(bent, 0.5 * gamma, gamma)
            smooth = (at.value, at.gradient)
            shorter = _point(objective, at.v, smooth, units, gamma, at, bent)
            at = _choose(bent, shorter, at)
            products = torch.where(bent, 0.0, memory.inverse_products)
            memory = memory._replace(at=at, gamma=gamma, inverse_products=products)

    @classmethod
    def _line_search(
        cls, objective: Objective, memory: Memory, forward: tuple[Tensor, Tensor], active: Tensor
    ) -> tuple[Point, Tensor]:
        """The next iterate, and for which rows it is better than the proximal step."""
        at, units, gamma = memory.at, memory.units, memory.gamma
        direction = -two_loops(memory, at.residual, gamma) / units
        safe = at.forward - at.v
        bound = at.envelope - cls.decrease * gamma * at.residual.square().sum(-1)
        rounding = 10 * torch.finfo(bound.dtype).eps * at.envelope.abs().clamp(min=1.0)
        length, found, pending = at.residual.norm(dim=-1), at, active
        for k in range(cls.trials):
            v = at.v + (1 - 0.5**k) * safe + 0.5**k * direction
            v = torch.where(pending[..., None], v, at.v)
            value, gradient = objective.smooth(v, pending)
            smooth = (
                torch.where(pending, value, at.value),
                torch.where(pending[..., None], gradient, at.gradient),
            )
            trial = _point(objective, v, smooth, units, gamma, at, pending)
            # Where rounding hides by how much the envelope falls, a shorter residual will do.
            shorter = trial.residual.norm(dim=-1) <= cls.shortening * length
            enough = pending & (
                (trial.envelope <= bound) | ((trial.envelope <= at.envelope + rounding) & shorter)
            )
            found, pending = _choose(enough, trial, found), pending & ~enough
            if not bool(pending.any()):
                return found, active
        last = _point(objective, at.forward, forward, units, gamma, at, pending)
        return _choose(pending, last, found), active & ~pending


def _point(
    objective: Objective,
    v: Tensor,
    smooth: tuple[Tensor, Tensor],
    units: Tensor,
    gamma: Tensor,
    last: Point | None = None,
    rows: Tensor | None = None,
) -> Point:
    value, gradient = smooth
    proximal = {} if last is None else last.proximal
    moved = None if last is None else last.forward - last.v
    lengths = gamma[..., None] / units.square()
    steps = {name: lengths[..., block][..., 0] for name, block in objective.blocks.items()}
    forward, proximal = objective.proximal_step(
        v - lengths * gradient, steps, proximal, rows, moved
    )
    change = forward - v
    envelope = (
        value
        + (gradient * change).sum(-1)
        + 0.5 / gamma * (units * change).square().sum(-1)
        + objective.penalty(forward)
    )
    residual = -units * change / gamma[..., None]
    return Point(v, value, gradient, forward, residual, envelope, proximal)


def _choose(rows: Tensor, new: Point, old: Point) -> Point:
    """``new`` where ``rows``, else ``old``; where proximal maps begin is a matter of speed only."""

    def of(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(rows.reshape(rows.shape + (1,) * (a.ndim - rows.ndim)), a, b)

    parts: Any = (of(a, b) for a, b in zip(new[:-1], old[:-1], strict=True))
    v, value, gradient, forward, residual, envelope = parts
    return Point(v, value, gradient, forward, residual, envelope, new.proximal)


def _curvatures(objective: Objective, v: Tensor, gradient: Tensor) -> Tensor:
    """Curvature of the smooth part along the gradient of each block, at every coordinate."""
    found = torch.ones_like(v)
    for block in objective.blocks.values():
        step = torch.zeros_like(v)
        length = gradient[..., block].norm(dim=-1, keepdim=True)
        step[..., block] = -1e-2 * gradient[..., block] / length.clamp(min=1e-30)
        change = (objective.smooth(v + step)[1] - gradient)[..., block].norm(dim=-1, keepdim=True)
        curvature = (change / 1e-2).nan_to_num(1.0)
        found[..., block] = curvature.clamp(1.0, 1e12).expand_as(found[..., block])
    return found
