"""Unconstrained minimisers for batches of independent problems.

Every solver keeps one state a row and treats rows separately: a row's path does not depend on
which other rows are in the batch. Rows that have stopped no longer move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


class SolverState(NamedTuple):
    """Where the minimisation of each row stands.

    Attributes
    ----------
    position, log_prob, gradient
        Current point ``(*batch, n)``, minus the objective, and the objective's gradient.
    stopped, converged
        Whether a row moves no more, and whether that is because it has arrived.
    n_steps
        Iterations taken by each row.
    memory
        The solver's own named tuple.
    """

    position: Tensor
    log_prob: Tensor
    gradient: Tensor
    stopped: Tensor
    converged: Tensor
    n_steps: Tensor
    memory: Any


class SolverSettings(Protocol):
    """The settings of `bayesgen.inference.MAP` that solvers read."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def tolerance(self) -> float: ...


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
    def start(cls, position: Tensor, gradient: Tensor) -> Memory:
        """L = 1."""
        return cls.Memory(torch.ones_like(position[..., 0]))

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
            trial_value, trial_gradient = objective(trial)
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
    def start(cls, position: Tensor, gradient: Tensor) -> Memory:
        """Moments of zero."""
        zero = torch.zeros_like(position)
        return cls.Memory(zero, zero, position, gradient, 0)

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
        value, gradient = objective(point)
        better = ~state.stopped & (value < -state.log_prob)
        new = move(state, better, point, value, gradient, settings.tolerance)
        steps = torch.where(state.stopped, state.n_steps, state.n_steps + 1)
        memory = cls.Memory(first, second, point, gradient, updates)
        return new._replace(n_steps=steps, memory=memory)


class LBFGS:
    """Limited-memory BFGS with backtracking (Nocedal and Wright 2006, Algorithm 7.4), per row."""

    history, armijo, trials = 10, 1e-4, 30

    class Memory(NamedTuple):
        """The last steps s, gradient changes y, and 1/<s, y>; newest last; 0 marks unused."""

        steps: Tensor
        changes: Tensor
        inverse_products: Tensor
        failures: Tensor

    @classmethod
    def start(cls, position: Tensor, gradient: Tensor) -> Memory:
        """An empty history."""
        pairs = position.new_zeros((cls.history, *position.shape))
        products = position.new_zeros((cls.history, *position.shape[:-1]))
        return cls.Memory(pairs, pairs, products, torch.zeros_like(position[..., 0]))

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
        memory = cls._remember(state, new, moved)
        # A failed search first forgets the curvature; failing again, the row gives up.
        failures = torch.where(moved | state.stopped, 0.0, memory.failures + 1)
        products = torch.where(failures > 0, 0.0, memory.inverse_products)
        memory = memory._replace(inverse_products=products, failures=failures)
        return give_up(new._replace(memory=memory), failures > 1)

    @classmethod
    def _direction(cls, state: SolverState) -> Tensor:
        memory: LBFGS.Memory = state.memory
        q = state.gradient
        alphas = []
        for s, y, rho in reversed(list(zip(*memory[:3], strict=True))):
            alpha = rho * (s * q).sum(-1)
            q = q - alpha[..., None] * y
            alphas.append(alpha)
        q = q * cls._scale(state)[..., None]
        for (s, y, rho), alpha in zip(zip(*memory[:3], strict=True), reversed(alphas), strict=True):
            beta = rho * (y * q).sum(-1)
            q = q + (alpha - beta)[..., None] * s
        return -q

    @classmethod
    def _scale(cls, state: SolverState) -> Tensor:
        """Initial inverse Hessian: <s, y>/<y, y> of the newest pair, else a step of length 1."""
        memory: LBFGS.Memory = state.memory
        scale = 1.0 / state.gradient.norm(dim=-1).clamp(min=1.0)
        for y, rho in zip(memory.changes, memory.inverse_products, strict=True):
            curvature = y.square().sum(-1) * rho
            scale = torch.where(rho > 0, 1.0 / curvature.clamp(min=1e-30), scale)
        return scale

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
        step = torch.ones_like(value)
        for _ in range(cls.trials):
            if not bool(pending.any()):
                break
            trial = state.position + step[..., None] * direction
            trial_value, trial_gradient = objective(trial)
            enough = pending & (trial_value < value + cls.armijo * step * slope)
            new = move(new, enough, trial, trial_value, trial_gradient, tolerance)
            pending = pending & ~enough
            # Minimum of the parabola through what is known, kept within [0.1, 0.5] of the step.
            excess = trial_value - value - step * slope
            parabola = -0.5 * slope * step / excess.clamp(min=1e-30)
            parabola = torch.where(torch.isfinite(parabola), parabola, 0.1).clamp(0.1, 0.5)
            step = torch.where(pending, step * parabola, step)
        return new

    @classmethod
    def _remember(cls, state: SolverState, new: SolverState, moved: Tensor) -> Memory:
        memory: LBFGS.Memory = state.memory
        s, y = new.position - state.position, new.gradient - state.gradient
        product = (s * y).sum(-1)
        positive = moved & (product > 1e-10 * s.norm(dim=-1) * y.norm(dim=-1))
        rho = torch.where(positive, 1.0 / product, 0.0)
        return memory._replace(
            steps=torch.cat([memory.steps[1:], s[None]]),
            changes=torch.cat([memory.changes[1:], y[None]]),
            inverse_products=torch.cat([memory.inverse_products[1:], rho[None]]),
        )


SOLVERS: dict[str, Any] = {"lbfgs": LBFGS, "adam": Adam, "gradient-descent": GradientDescent}


def give_up(state: SolverState, rows: Tensor) -> SolverState:
    """``state`` with ``rows`` stopped because no step, however small, lowers their objective.

    They count as converged if what the gradient promises, at the prior's unit curvature or more,
    is lost in the rounding of the objective.
    """
    promised = 0.5 * state.gradient.square().sum(-1)
    rounding = 100 * torch.finfo(promised.dtype).eps * state.log_prob.abs().clamp(min=1.0)
    return state._replace(
        stopped=state.stopped | rows, converged=state.converged | (rows & (promised <= rounding))
    )


def move(
    state: SolverState,
    rows: Tensor,
    position: Tensor,
    value: Tensor,
    gradient: Tensor,
    tolerance: float,
) -> SolverState:
    """``state`` with ``rows`` moved to a new point and tested for convergence."""
    new_gradient = torch.where(rows[..., None], gradient, state.gradient)
    arrived = rows & (new_gradient.norm(dim=-1) <= tolerance)
    return state._replace(
        position=torch.where(rows[..., None], position, state.position),
        log_prob=torch.where(rows, -value, state.log_prob),
        gradient=new_gradient,
        stopped=state.stopped | arrived,
        converged=state.converged | arrived,
        n_steps=torch.where(rows, state.n_steps + 1, state.n_steps),
    )
