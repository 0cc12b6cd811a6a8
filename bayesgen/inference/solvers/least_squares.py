"""Levenberg-Marquardt: damped Gauss-Newton steps for models whose sites are all normal."""

from __future__ import annotations

from typing import NamedTuple

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


class LevenbergMarquardt:
    """Gauss-Newton steps whose damping follows how well the linearised model predicts.

    The Jacobian of all residuals is computed, by forward differentiation, so that a step costs
    about as much as ``2 n`` evaluations of the model: for latent spaces of some dozen dimensions.

    References
    ----------
    Madsen, Nielsen and Tingleff (2004), Methods for non-linear least squares problems,
    algorithm 3.16.
    """

    first, largest, least_gain, shortening = 1e-3, 1e10, 1e-4, 0.9

    class Memory(NamedTuple):
        """Gauss-Newton matrix, damping relative to its largest entry, and the damping's growth."""

        matrix: Tensor
        damping: Tensor
        growth: Tensor

    @classmethod
    def start(cls, objective: Objective, position: Tensor, settings: SolverSettings) -> SolverState:
        """Linearise at the start.

        Raises
        ------
        ModelError
            If some site of the model is not normal.
        """
        if not getattr(objective.density, "is_least_squares", False):
            raise ModelError(
                "model: 'levenberg-marquardt' needs all sites, latent and observed, to be normal "
                "with scales that do not depend on latent sites; this model's are not. Use "
                "solver='lbfgs', or 'panoc' if priors have kinks."
            )
        value, gradient, matrix = objective.linearise(position)
        arrived = gradient.norm(dim=-1) <= settings.tolerance
        memory = cls.Memory(matrix, torch.full_like(value, cls.first), torch.full_like(value, 2.0))
        steps = torch.zeros_like(value, dtype=torch.int64)
        return SolverState(position, -value, gradient, arrived, arrived, steps, memory)

    @classmethod
    def step(
        cls, objective: Objective, state: SolverState, settings: SolverSettings
    ) -> SolverState:
        """Try one damped step; accept it if enough of what it promises comes true."""
        memory: LevenbergMarquardt.Memory = state.memory
        step, promised = _damped_step(memory.matrix, state.gradient, memory.damping)
        trial = torch.where(state.stopped[..., None], state.position, state.position + step)
        value, gradient, matrix = objective.linearise(trial, ~state.stopped)
        # False for NaN, be it from a generator that overflows or from a singular matrix.
        gain = (-state.log_prob - value) / promised
        # Where rounding hides the decrease, a shorter gradient will do.
        rounding = 100 * torch.finfo(value.dtype).eps * value.abs().clamp(min=1.0)
        shorter = gradient.norm(dim=-1) <= cls.shortening * state.gradient.norm(dim=-1)
        hidden = (promised <= rounding) & (value <= rounding - state.log_prob)
        gain = torch.where(hidden & shorter, 1.0, gain)
        good = ~state.stopped & (gain > cls.least_gain)
        new = move(state, good, trial, value, gradient, settings.tolerance)
        shrink = (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 2)
        smallest = 10 * torch.finfo(value.dtype).eps
        damping = torch.where(good, memory.damping * shrink, memory.damping * memory.growth)
        growth = torch.where(good, 2.0, 2 * memory.growth)
        matrix = torch.where(good[..., None, None], matrix, memory.matrix)
        new = new._replace(memory=cls.Memory(matrix, damping.clamp(min=smallest), growth))
        new = give_up(new, ~new.stopped & ~good & (damping > cls.largest))
        # Where a step is refused, and what even the undamped one promises is lost in the rounding.
        rounding = 100 * torch.finfo(value.dtype).eps * new.log_prob.abs().clamp(min=1.0)
        arrived = ~new.stopped & ~good & (_decrement(matrix, new.gradient) <= rounding)
        return new._replace(stopped=new.stopped | arrived, converged=new.converged | arrived)


def _decrement(matrix: Tensor, gradient: Tensor) -> Tensor:
    """By how much the linearised model can decrease."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    step = torch.linalg.solve_triangular(factor, gradient[..., None], upper=False)[..., 0]
    return torch.where(failed == 0, 0.5 * step.square().sum(-1), torch.inf)


def _damped_step(matrix: Tensor, gradient: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The minimiser of the damped model, and by how much the model itself decreases."""
    # In units of the stiffest direction, so that directions without effect stay where they are.
    damping = damping * matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(matrix + damping[..., None, None] * eye)
    step = torch.cholesky_solve(-gradient[..., None], factor)[..., 0]
    step = torch.where(failed[..., None] == 0, step, torch.nan)
    return step, 0.5 * (step * (damping[..., None] * step - gradient)).sum(-1)
