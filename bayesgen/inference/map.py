"""Maximum a posteriori estimation by gradients, all restarts of all problems in one batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import OptionError, unknown_option
from bayesgen.inference.base import Optimiser
from bayesgen.inference.solvers import SOLVERS, Objective, SolverState
from bayesgen.types import Density, check_count, check_positive

# Of `MAPInfo.outcome`; the first two have converged.
OUTCOMES = (
    "the gradient is below the tolerance",
    "what the gradient promises is lost in rounding",
    "no step lowers the objective",
    "max_iterations was reached",
    "the objective falls without bound",
)

# Prior standard deviations, and nats, beyond which nothing is found any more.
_FAR, _DEEP = 1e10, 1e25


class MAPInfo(NamedTuple):
    """How each restart ended; all of shape ``(*problems, restarts)``.

    Attributes
    ----------
    gradient_norm
        Euclidean norm of the gradient of the log density, in nats a prior standard deviation.
    converged
        Whether the gradient fell below the tolerance, or so low that what it promises is lost in
        the rounding of the objective.
    n_steps
        Iterations taken before the restart stopped.
    outcome
        Why it stopped: number of an entry of `OUTCOMES`.
    """

    gradient_norm: Tensor
    converged: Tensor
    n_steps: Tensor
    outcome: Tensor


@dataclass(frozen=True)
class MAP(Optimiser):
    """Maximise the posterior density of the latent sites.

    The density is that of the sites themselves: no Jacobian of the map to the unconstrained
    space enters, so the answer is the usual penalised estimate.

    Parameters
    ----------
    solver
        ``"auto"`` (default) takes one of the first two by the structure of the model, and the
        result says which:

        - ``"panoc"`` if some prior has kinks, as Laplace and total-variation priors have;
        - ``"lbfgs"`` else: one quasi-Newton model a restart, never coupled through the batch;
        - ``"levenberg-marquardt"``, if all sites are normal: few steps, each of which costs a
          derivative of the model for every unknown;
        - ``"gradient-descent"`` (Algorithm 1), ``"alternating"`` (Algorithm 2) and ``"palm"``
          (Algorithm 3): with backtracking, as published by Duff et al.;
        - ``"adam"``, robust to rough objectives.
    max_iterations
        Iterations after which a restart that has not converged is stopped and marked so.
    tolerance
        A restart has converged when the norm of the gradient (with kinks, of a subgradient), in
        nats a prior standard deviation, is at most this. The default 1e-3 puts it within about a
        thousandth of a standard deviation of the optimum.
    learning_rate
        Step length of Adam in prior standard deviations.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Algorithms 1 to 3; Nocedal and Wright (2006), Algorithm 7.4;
    Kingma and Ba (2015); Madsen, Nielsen and Tingleff (2004); Stella et al. (2017).

    Examples
    --------
    >>> MAP(solver="adam").learning_rate
    0.05
    """

    name: ClassVar[str] = "map"
    reference: ClassVar[str] = "Duff, Campbell and Ehrhardt (2023), Algorithm 1"

    solver: str = "auto"
    max_iterations: int = 500
    tolerance: float = 1e-3
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.solver not in ("auto", *SOLVERS):
            raise OptionError(unknown_option("solver", self.solver, ("auto", *SOLVERS)))
        check_count("max_iterations", self.max_iterations)
        check_positive("tolerance", self.tolerance)
        check_positive("learning_rate", self.learning_rate)

    def suited(self, log_density: Density) -> MAP:
        """The same settings, with the solver that suits the log density where it is ``"auto"``."""
        if self.solver != "auto":
            return self
        if getattr(log_density, "proximal", {}):
            return replace(self, solver="panoc")
        return replace(self, solver="lbfgs")

    def init(self, log_density: Density, position: Tensor) -> SolverState:
        """Evaluate the objective at the start."""
        state: SolverState = SOLVERS[self.solver].start(Objective(log_density), position, self)
        return state

    def step(
        self, log_density: Density, state: SolverState, rng: torch.Generator
    ) -> tuple[SolverState, MAPInfo]:
        """One iteration of the solver for every restart that has not stopped."""
        state = SOLVERS[self.solver].step(Objective(log_density), state, self)
        lost = _unbounded(state)
        state = state._replace(stopped=state.stopped | lost, converged=state.converged & ~lost)
        return state, self.describe(state)

    def finished(self, state: SolverState) -> bool:
        """Whether every restart has stopped."""
        return bool(state.stopped.all())

    def describe(self, state: SolverState) -> MAPInfo:
        """How each restart stands."""
        length = state.gradient.norm(dim=-1)
        outcome = torch.full_like(state.n_steps, 3)
        outcome[state.stopped] = 2
        outcome[state.converged] = 1
        outcome[state.converged & (length <= self.tolerance)] = 0
        outcome[_unbounded(state)] = 4
        return MAPInfo(length, state.converged, state.n_steps, outcome)


def _unbounded(state: SolverState) -> Tensor:
    far = state.position.abs().amax(-1) > _FAR
    return far | (state.log_prob > _DEEP)
