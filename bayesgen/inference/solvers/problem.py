"""What solvers minimise, and where each of them stands.

Every solver keeps one state a row and treats rows separately: a row's path does not depend on
which other rows are in the batch. Rows that have stopped no longer move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Objective:
    r"""Minus a log density, :math:`f + g`: f smooth, g the priors with a proximal map.

    Parameters
    ----------
    density
        The log density; `bayesgen.inference.standardised.Standardised` has the structure that
        some solvers need, others only its value and gradient.
    """

    def __init__(self, density: Any) -> None:
        self.density = density
        self.proximal: Mapping[str, Any] = getattr(density, "proximal", {})
        self.blocks: Mapping[str, slice] = getattr(density, "blocks", {"v": slice(None)})

    def __call__(self, v: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value ``(*batch,)`` and gradient ``(*batch, n)`` of all of it.

        Only those of ``rows``, ``(*batch,)``, can be relied on.
        """
        value, gradient = self.density.value_and_grad(v, jacobian=False, **self._only(rows))
        return -value, -gradient

    def smooth(self, v: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value and gradient of f."""
        if not self.proximal:
            return self(v, rows)
        options = {"smooth": True, **self._only(rows)}
        value, gradient = self.density.value_and_grad(v, jacobian=False, **options)
        return -value, -gradient

    def linearise(self, v: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient and Gauss-Newton matrix."""
        found: tuple[Tensor, Tensor, Tensor] = self.density.linearise(v, **self._only(rows))
        return found

    def _only(self, rows: Tensor | None) -> dict[str, Any]:
        known = rows is not None and getattr(self.density, "takes_where", False)
        return {"where": rows} if known else {}

    def penalty(self, v: Tensor) -> Tensor:
        """Value of g, ``(*batch,)``."""
        penalty: Tensor = self.density.penalty(v) if self.proximal else v.new_zeros(v.shape[:-1])
        return penalty

    def proximal_step(
        self,
        v: Tensor,
        steps: Mapping[str, Tensor],
        memory: Mapping[str, Any],
        rows: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """Proximal maps of g, with a step for each block that has one; of ``rows`` only.

        Errors may be small beside ``moved``, ``(*batch, n)``, if that is given.
        """
        steps = {name: step for name, step in steps.items() if name in self.proximal}
        found: tuple[Tensor, Mapping[str, Any]] = (v, memory)
        if not steps:
            return found
        found = self.density.proximal_step(v, steps, memory, moved=moved, **self._only(rows))
        return found


class SolverState(NamedTuple):
    """Where the minimisation of each row stands.

    Attributes
    ----------
    position, log_prob, gradient
        Current point ``(*batch, n)``, minus the objective, and the objective's gradient; where
        some priors have kinks, the residual of the fixed point of proximal steps instead.
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


def first_state(objective: Objective, position: Tensor, tolerance: float) -> SolverState:
    """Where a smooth minimisation begins, before the solver adds its memory."""
    value, gradient = objective(position)
    arrived = gradient.norm(dim=-1) <= tolerance
    steps = torch.zeros_like(value, dtype=torch.int64)
    return SolverState(position, -value, gradient, arrived, arrived, steps, None)


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
