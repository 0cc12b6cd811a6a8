"""Minimisers of smooth objectives by gradients, for batches of independent problems."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.solvers.history import empty_history, remember, two_loops
from bayesgen.inference.solvers.problem import (
    Objective,
    SolverSettings,
    SolverState,
    first_state,
    give_up,
    move,
)


class GradientDescent:
    """Gradient descent with backtracking (Duff et al. 2023, Algorithm 1).

    The step is 1/L with a local Lipschitz estimate L: accepted, L is halved for the next
    iteration; refused, it is multiplied by ten (the authors' constants; L starts at 1).
    """

    shrink, grow, largest = 0.5, 10.0, 1e13

    class Memory(NamedTuple):
        """The Lipschitz estimate of each row."""

        lipschitz: Tensor

    @classmethod
    def start(cls, objective: Objective, position: Tensor, settings: SolverSettings) -> SolverState:
        """Begin with L = 1."""
        state = first_state(objective, position, settings.tolerance)
        return state._replace(memory=cls.Memory(torch.ones_like(state.log_prob)))

    @classmethod
    def step(
        cls, objective: Objective, state: SolverState, settings: SolverSettings
    ) -> SolverState:
        """Backtrack until every row has decreased enough, then move."""
        value, squared = -state.log_prob, state.gradient.square().sum(-1)
        lipschitz, pending = state.memory.lipschitz, ~state.stopped
        new = state
        while bool(pending.any()):
            trial = state.position - state.gradient / lipschitz[..., None]
            trial_value, trial_gradient = objective(trial, pending)
            # <g, dx> + L/2 |dx|^2 with dx = -g/L.
            enough = pending & (trial_value <= value - 0.5 * squared / lipschitz)
            new = move(new, enough, trial, trial_value, trial_gradient, settings.tolerance)
            pending = pending & ~enough
            lipschitz = torch.where(pending, lipschitz * cls.grow, lipschitz)
            lost = pending & (lipschitz > cls.largest)
            new = give_up(new, lost)
            pending = pending & ~lost
        return new._replace(memory=cls.Memory(lipschitz * cls.shrink))


class Adam:
    """Adam (Kingma and Ba 2015) that keeps the best point each row has seen."""

    decay, decay_squared, epsilon = 0.9, 0.999, 1e-8

    class Memory(NamedTuple):
        """Running moments, the moving point and its gradient."""

        first: Tensor
        second: Tensor
        point: Tensor
        gradient: Tensor
        updates: int

    @classmethod
    def start(cls, objective: Objective, position: Tensor, settings: SolverSettings) -> SolverState:
        """Begin with moments of zero."""
        state, zero = first_state(objective, position, settings.tolerance), position.new_zeros(())
        zero = zero.expand_as(position)
        return state._replace(memory=cls.Memory(zero, zero, position, state.gradient, 0))

    @classmethod
    def step(
        cls, objective: Objective, state: SolverState, settings: SolverSettings
    ) -> SolverState:
        """One update of the moving point; the reported one is the best so far."""
        memory: Adam.Memory = state.memory
        updates = memory.updates + 1
        first = cls.decay * memory.first + (1 - cls.decay) * memory.gradient
        second = (
            cls.decay_squared * memory.second + (1 - cls.decay_squared) * memory.gradient.square()
        )
        scale = (second / (1 - cls.decay_squared**updates)).sqrt() + cls.epsilon
        update = first / (1 - cls.decay**updates) / scale
        point = memory.point - settings.learning_rate * update
        value, gradient = objective(point, ~state.stopped)
        better = ~state.stopped & (value < -state.log_prob)
        new = move(state, better, point, value, gradient, settings.tolerance)
        steps = torch.where(state.stopped, state.n_steps, state.n_steps + 1)
        memory = cls.Memory(first, second, point, gradient, updates)
        return new._replace(n_steps=steps, memory=memory)


class LBFGS:
    """Limited-memory BFGS with backtracking (Nocedal and Wright 2006, Algorithm 7.4), per row.

    Where rounding hides by how much the objective falls, a step may instead shorten the gradient,
    in the spirit of Hager and Zhang (2005).
    """

    history, armijo, shortening, expansion, trials = 10, 1e-4, 0.99, 4.0, 30

    class Memory(NamedTuple):
        """The last steps s, gradient changes y, and 1/<s, y>; newest last; 0 marks unused.

        ``failures`` counts failed searches in a row, ``reach`` lengthens steps where the objective
        bends downwards, ``scale`` is the initial inverse Hessian: <s, y>/<y, y> of the newest pair,
        a step of length 1 before there is one.
        """

        steps: Tensor
        changes: Tensor
        inverse_products: Tensor
        failures: Tensor
        reach: Tensor
        scale: Tensor

    @classmethod
    def start(cls, objective: Objective, position: Tensor, settings: SolverSettings) -> SolverState:
        """Begin with an empty history."""
        state = first_state(objective, position, settings.tolerance)
        none = torch.zeros_like(state.log_prob)
        scale = 1.0 / state.gradient.norm(dim=-1).clamp(min=1.0)
        memory = cls.Memory(*empty_history(position, cls.history), none, none + 1, scale)
        return state._replace(memory=memory)

    @classmethod
    def step(
        cls, objective: Objective, state: SolverState, settings: SolverSettings
    ) -> SolverState:
        """Quasi-Newton direction, backtracking, and an update of the history."""
        direction = cls._direction(state)
        slope = (direction * state.gradient).sum(-1)
        # A direction that does not descend (rounding) is replaced by the gradient's.
        uphill = slope >= 0
        direction = torch.where(uphill[..., None], -state.gradient, direction)
        slope = torch.where(uphill, -state.gradient.square().sum(-1), slope)
        new = cls._line_search(objective, state, direction, slope, settings.tolerance)
        moved = new.n_steps > state.n_steps
        s, y = new.position - state.position, new.gradient - state.gradient
        steps, changes, products = remember(state.memory, s, y, moved)
        # A failed search first forgets the curvature; failing again, the row gives up.
        failures = torch.where(moved | state.stopped, 0.0, state.memory.failures + 1)
        products = torch.where(failures > 0, 0.0, products)
        downwards = moved & ((s * y).sum(-1) <= 0)
        reach = torch.where(downwards, cls.expansion * state.memory.reach, 1.0)
        curvature = y.square().sum(-1) * products[-1]
        scale = torch.where(products[-1] > 0, 1.0 / curvature, state.memory.scale)
        memory = cls.Memory(steps, changes, products, failures, reach, scale)
        return give_up(new._replace(memory=memory), failures > 1)

    @classmethod
    def _direction(cls, state: SolverState) -> Tensor:
        direction = two_loops(state.memory, state.gradient, state.memory.scale)
        return -state.memory.reach[..., None] * direction

    @classmethod
    def _line_search(
        cls,
        objective: Objective,
        state: SolverState,
        direction: Tensor,
        slope: Tensor,
        tolerance: float,
    ) -> SolverState:
        value, pending, new = -state.log_prob, ~state.stopped, state
        step, length = torch.ones_like(value), state.gradient.norm(dim=-1)
        rounding = 10 * torch.finfo(value.dtype).eps * value.abs().clamp(min=1.0)
        for _ in range(cls.trials):
            if not bool(pending.any()):
                break
            trial = state.position + step[..., None] * direction
            trial_value, trial_gradient = objective(trial, pending)
            shorter = trial_gradient.norm(dim=-1) <= cls.shortening * length
            enough = pending & (
                (trial_value < value + cls.armijo * step * slope)
                | ((trial_value <= value + rounding) & shorter)
            )
            new = move(new, enough, trial, trial_value, trial_gradient, tolerance)
            # Shorter steps promise nothing that could be seen.
            pending = pending & ~enough & (-step * slope > 1e-5 * rounding)
            # Minimum of the parabola through what is known, kept within [0.1, 0.5] of the step.
            excess = trial_value - value - step * slope
            parabola = -0.5 * slope * step / excess.clamp(min=1e-30)
            parabola = torch.where(torch.isfinite(parabola), parabola, 0.1).clamp(0.1, 0.5)
            step = torch.where(pending, step * parabola, step)
        return new
