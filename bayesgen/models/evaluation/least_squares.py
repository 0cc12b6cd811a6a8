"""Minimisers of |G(z) - x|^2 over latent vectors, each row of a batch a problem of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.solvers import SOLVERS, Objective, SolverState
from bayesgen.models.base import Generator
from bayesgen.models.evaluation.jacobian import jacobian


class Solution(NamedTuple):
    """Where a minimisation ended.

    Attributes
    ----------
    position
        ``(R, latent_dim)``, in units of the problem.
    value
        Objective reached, ``(R,)``.
    converged, iterations
        Whether the gradient is as small as asked, and how many iterations were taken.
    """

    position: Tensor
    value: Tensor
    converged: Tensor
    iterations: Tensor


@dataclass(frozen=True)
class LatentProblem:
    r"""The objective :math:`|G(s v) - x|^2 / c`, scaled so that steps and values are of order 1.

    Parameters
    ----------
    generator
        The generator.
    images
        :math:`x`, ``(R, *image_shape)``.
    scale
        :math:`s`, the width of the prior, ``(latent_dim,)``.
    unit
        :math:`c`, ``(R,)``.
    """

    generator: Generator
    images: Tensor
    scale: Tensor
    unit: Tensor

    def value(self, v: Tensor, rows: Tensor) -> Tensor:
        """Objective of some of the problems, ``(len(rows),)``."""
        return self._residual(v, rows).square().sum(1)

    def value_and_grad(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and gradient of all of them."""
        v = v.detach().requires_grad_()
        with torch.enable_grad():
            value = self._residual(v, torch.arange(len(v), device=v.device)).square().sum(1)
            (gradient,) = torch.autograd.grad(value.sum(), v)
        return value.detach(), gradient

    def linearised(self, v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``J^T J``, ``J^T r`` and ``|r|^2`` for the residual ``r`` and its Jacobian ``J``."""
        r = self._residual(v, rows)
        J = jacobian(self.generator, self.scale * v) * self.scale
        J = J / self.unit[rows, None, None].sqrt()
        return J.mT @ J, (r[:, None] @ J)[:, 0], r.square().sum(1)

    def _residual(self, v: Tensor, rows: Tensor) -> Tensor:
        difference = (self.generator(self.scale * v) - self.images[rows]).flatten(1)
        return difference / self.unit[rows, None].sqrt()


def levenberg_marquardt(
    problem: LatentProblem, start: Tensor, *, steps: int, tolerance: float
) -> Solution:
    """Damped Gauss-Newton steps; the damping follows how well the linearised model predicts.

    Parameters
    ----------
    problem, start
        The objective, and points ``(R, latent_dim)`` in its units.
    steps
        Iterations at most, refused steps included.
    tolerance
        A row has converged when the norm of its gradient is at most this.

    References
    ----------
    Madsen, Nielsen and Tingleff (2004), Methods for non-linear least squares problems,
    algorithm 3.16.
    """
    v = start.clone()
    A, b, value = problem.linearised(v, torch.arange(len(v), device=v.device))
    damping, growth = torch.full_like(value, 1e-2), torch.full_like(value, 2.0)
    # Below this the damping is lost in rounding; above, a step is.
    smallest, largest = 10 * torch.finfo(v.dtype).eps, 1e8
    converged = 2 * b.norm(dim=1) <= tolerance
    iterations = torch.zeros_like(converged, dtype=torch.int64)
    for _ in range(steps):
        rows = (~converged & (damping < largest)).nonzero()[:, 0]
        if len(rows) == 0:
            break
        step, promised = _damped_step(A[rows], b[rows], damping[rows])
        trial = v[rows] + step
        # False for NaN, be it from a generator that overflows or from a singular matrix.
        gain = (value[rows] - problem.value(trial, rows)) / promised
        good = gain > 1e-3
        iterations[rows] += 1
        bad, rows, gain = rows[~good], rows[good], gain[good]
        damping[bad], growth[bad] = damping[bad] * growth[bad], growth[bad] * 2
        if len(rows) == 0:
            continue
        v[rows] = trial[good]
        A[rows], b[rows], value[rows] = problem.linearised(v[rows], rows)
        shrink = (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 2)
        damping[rows], growth[rows] = (damping[rows] * shrink).clamp(min=smallest), 2.0
        converged[rows] = 2 * b[rows].norm(dim=1) <= tolerance
    return Solution(v, value, converged, iterations)


def _damped_step(A: Tensor, b: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The minimiser of the damped model, and by how much the model itself decreases."""
    # In units of the stiffest direction, so that directions without effect stay where they are.
    damping = damping * A.diagonal(dim1=1, dim2=2).amax(1)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, failed = torch.linalg.cholesky_ex(A + damping[:, None, None] * eye)
    step = torch.cholesky_solve(-b[..., None], factor)[..., 0]
    step = torch.where(failed[:, None] == 0, step, torch.nan)
    return step, (step * (damping[:, None] * step - b)).sum(1)


class _Misfit(Objective):
    """The objective itself, where solvers expect minus a log density."""

    def __call__(self, v: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.density.value_and_grad(v)
        return found


@dataclass(frozen=True)
class _Settings:
    """What `bayesgen.inference.solvers` ask for."""

    learning_rate: float
    tolerance: float


def descend(
    problem: LatentProblem,
    start: Tensor,
    *,
    solver: str,
    steps: int,
    tolerance: float,
    rate: float = 0.1,
) -> Solution:
    """Minimise by one of `bayesgen.inference.solvers`, by gradients only.

    Parameters
    ----------
    problem, start, steps, tolerance
        As `levenberg_marquardt`.
    solver
        A key of `bayesgen.inference.solvers.SOLVERS`.
    rate
        First step length of Adam; it falls to zero along a cosine.
    """
    kind, objective = SOLVERS[solver], _Misfit(problem)
    state: SolverState = kind.start(objective, start, _Settings(rate, tolerance))
    for step in range(steps):
        if bool(state.stopped.all()):
            break
        falling = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        state = kind.step(objective, state, _Settings(falling, tolerance))
    return Solution(state.position, -state.log_prob, state.converged, state.n_steps)
