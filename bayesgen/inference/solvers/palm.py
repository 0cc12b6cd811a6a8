"""Proximal steps of one site after the other, as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import ModelError
from bayesgen.inference.solvers.problem import (
    Objective,
    SolverSettings,
    SolverState,
    give_up,
    move,
)


class PALM:
    """Proximal alternating linearised minimisation (Duff et al. 2023, Algorithm 3).

    One site after the other takes a gradient step of the smooth part and a proximal step of its
    prior, with a step 1/L of its own that is found by backtracking; constants as published. In
    print the condition on a step of z compares with u, and the update of L for u is missing; here
    both are as in the authors' code.

    References
    ----------
    Bolte, Sabach and Teboulle (2014), Proximal alternating linearized minimization for nonconvex
    and nonsmooth problems.
    """

    shrink, grow, largest, patience = 0.5, 10.0, 1e13, 10

    class Memory(NamedTuple):
        """Lipschitz estimates, smooth part and gradient, where proximal maps begin, and for how
        many iterations nothing was gained."""

        lipschitz: dict[str, Tensor]
        value: Tensor
        gradient: Tensor
        proximal: Mapping[str, Any]
        stalled: Tensor

    @classmethod
    def start(cls, objective: Objective, position: Tensor, settings: SolverSettings) -> SolverState:
        """Begin with L = 1 for every site."""
        value, gradient = objective.smooth(position)
        lipschitz = {name: torch.ones_like(value) for name in objective.blocks}
        residual, proximal = _fixed_point_residual(objective, position, gradient, lipschitz, {})
        arrived = residual.norm(dim=-1) <= settings.tolerance
        steps = torch.zeros_like(value, dtype=torch.int64)
        total = value + objective.penalty(position)
        memory = cls.Memory(lipschitz, value, gradient, proximal, steps)
        return SolverState(position, -total, residual, arrived, arrived, steps, memory)

    @classmethod
    def step(
        cls, objective: Objective, state: SolverState, settings: SolverSettings
    ) -> SolverState:
        """Every site once."""
        v, memory, moved = state.position, state.memory, torch.zeros_like(state.stopped)
        lipschitz = dict(memory.lipschitz)
        value, gradient, proximal = memory.value, memory.gradient, memory.proximal
        for name, block in objective.blocks.items():
            pending, before, first = ~state.stopped, v, lipschitz[name]
            while bool(pending.any()):
                trial, proximal = _block_step(
                    objective, v, gradient, name, lipschitz[name], proximal, pending
                )
                trial_value, trial_gradient = objective.smooth(trial, pending)
                change = (trial - v)[..., block]
                model = (gradient[..., block] * change).sum(-1)
                model = model + 0.5 * lipschitz[name] * change.square().sum(-1)
                enough = pending & (trial_value <= value + model)
                v = torch.where(enough[..., None], trial, v)
                value = torch.where(enough, trial_value, value)
                gradient = torch.where(enough[..., None], trial_gradient, gradient)
                moved, pending = moved | enough, pending & ~enough
                lipschitz[name] = torch.where(pending, lipschitz[name] * cls.grow, lipschitz[name])
                pending = pending & (lipschitz[name] <= cls.largest)
            # Where rounding let no step pass, the estimate says nothing about the curvature.
            still = (v == before).all(-1)
            lipschitz[name] = torch.where(still, first, lipschitz[name])
        residual, proximal = _fixed_point_residual(objective, v, gradient, lipschitz, proximal)
        total = value + objective.penalty(v)
        new = move(state, moved, v, total, residual, settings.tolerance)
        lipschitz = {name: L * cls.shrink for name, L in lipschitz.items()}
        stalled = torch.where(total < -state.log_prob, 0, memory.stalled + 1)
        new = new._replace(memory=cls.Memory(lipschitz, value, gradient, proximal, stalled))
        return give_up(new, ~new.stopped & (~moved | (stalled >= cls.patience)))


class Alternating(PALM):
    """Alternating gradient descent with backtracking (Duff et al. 2023, Algorithm 2).

    `PALM` without proximal steps: all priors must be smooth.
    """

    @classmethod
    def start(cls, objective: Objective, position: Tensor, settings: SolverSettings) -> SolverState:
        """Begin with L = 1 for every site.

        Raises
        ------
        ModelError
            If a prior has kinks.
        """
        if objective.proximal:
            raise ModelError(
                "model: 'alternating' needs smooth priors, but those of "
                f"{sorted(objective.proximal)} have kinks; use solver='palm', or 'panoc', which "
                "takes fewer steps"
            )
        return super().start(objective, position, settings)


def _block_step(
    objective: Objective,
    v: Tensor,
    gradient: Tensor,
    name: str,
    lipschitz: Tensor,
    proximal: Mapping[str, Any],
    rows: Tensor | None = None,
) -> tuple[Tensor, Mapping[str, Any]]:
    """A proximal gradient step of one site."""
    trial, block = v.clone(), objective.blocks[name]
    trial[..., block] = v[..., block] - gradient[..., block] / lipschitz[..., None]
    return objective.proximal_step(trial, {name: 1 / lipschitz}, proximal, rows)


def _fixed_point_residual(
    objective: Objective,
    v: Tensor,
    gradient: Tensor,
    lipschitz: Mapping[str, Tensor],
    proximal: Mapping[str, Any],
) -> tuple[Tensor, Mapping[str, Any]]:
    """How far, times L, a proximal gradient step of every site would go; zero at the optimum."""
    residual = gradient.clone()
    for name in objective.proximal:
        moved, proximal = _block_step(objective, v, gradient, name, lipschitz[name], proximal)
        block = objective.blocks[name]
        residual[..., block] = lipschitz[name][..., None] * (v - moved)[..., block]
    return residual, proximal
