"""Langevin steps by a stabilised method: long ones on stiff densities, kinks smoothed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.adaptation import PooledVariance, Schedule
from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import DIVERGENCE
from bayesgen.inference.smoothed import Smoothed, SmoothedState, smoothing_of
from bayesgen.types import Density, check_count, check_positive

# Damping, of which a little keeps high frequencies stable (Pereyra et al. 2020); shares of the
# longest stable step, for the curvature is an estimate from below, and of the widest variance.
_DAMPING, _STABLE, _WIDEST = 0.05, 0.8, 0.25


class SKROCKState(NamedTuple):
    """Where the chains are, and what has been learnt of the target.

    Attributes
    ----------
    position, log_prob
        Points ``(*problems, chains, n)`` and their log densities.
    at
        The same with the curvature there.
    variance
        The running estimate of warm-up.
    widest
        Largest posterior variance of a coordinate, ``(*problems, 1, 1)``; 1, as under the prior,
        before warm-up has found it.
    """

    position: Tensor
    log_prob: Tensor
    at: SmoothedState
    variance: PooledVariance
    widest: Tensor


class SKROCKInfo(NamedTuple):
    """What is stored with every draw; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    diverging
        Whether the step was so wrong that it was not taken: its log density was not finite, or
        had fallen by more than 1000 + n.
    log_prob
        Log density of the draw.
    step_size
        e, in units of the prior's standard deviation.
    """

    diverging: Tensor
    log_prob: Tensor
    step_size: Tensor


@dataclass(frozen=True)
class SKROCK(Sampler):
    r"""Stabilised Runge-Kutta-Chebyshev Langevin steps on the Moreau-Yosida smoothed density.

    One step takes s gradients and stays stable over a length that grows with :math:`s^2`, so that
    slow directions are crossed about :math:`s` times faster than by as many steps of
    `bayesgen.inference.MYULA`. With U minus the log of the smoothed density,

    .. math::
        K_1 &= v - \mu_1 \delta \nabla U(v + \nu_1 \sqrt{2 \delta}\, \xi)
            + \kappa_1 \sqrt{2 \delta}\, \xi \\
        K_j &= -\mu_j \delta \nabla U(K_{j-1}) + \nu_j K_{j-1} + (1 - \nu_j) K_{j-2} ,

    and :math:`v' = K_s`; the coefficients are ratios of Chebyshev polynomials. Draws are biased:
    beside the smoothing, which is that of `bayesgen.inference.MYULA`, variances are too small. A
    direction of a Gaussian of variance :math:`10 \delta` loses 0.2 % of it, :math:`4 \delta` 0.5 %,
    :math:`\delta` 2 %; narrower ones end anywhere between nothing and all of theirs, so that the
    error is at most :math:`0.21\, \delta` in any.

    Parameters
    ----------
    stages
        s, from 2; also the cost of a step. 10 to 15 suit most; the stiffer, the more.
    smoothing
        As for `bayesgen.inference.MYULA`.
    step_size
        :math:`e = \sqrt{2 \delta}`, in units of the prior's standard deviation. By default
        :math:`\delta` is a quarter of the largest variance that warm-up finds, so that no variance
        is wrong by more than 5 % of that one; and at most 80 % of the longest stable one,
        :math:`((s - 1/2)^2 (2 - 4 \eta / 3) - 3/2) / (L + 1 / \lambda)` with damping
        :math:`\eta = 0.05` (Pereyra et al. take that one, which suits densities so stiff that it
        is the shorter).

    References
    ----------
    Pereyra, Vargas Mieles and Zygalakis (2020), Accelerating proximal Markov chain Monte Carlo by
    using an explicit stabilized method, algorithm 3.1; Abdulle, Almuslimani and Vilmart (2018),
    Optimal explicit stabilized integrator of weak order 1 for stiff and ergodic SDEs.

    Examples
    --------
    >>> SKROCK(stages=15)
    SKROCK(stages=15, smoothing=None, step_size=None)
    """

    name = "skrock"
    reference = "Pereyra, Vargas Mieles and Zygalakis (2020), SK-ROCK"
    exact: ClassVar[bool] = False

    stages: int = 10
    smoothing: float | None = None
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_count("stages", self.stages, minimum=2)
        check_positive("smoothing", self.smoothing, allow_none=True)
        check_positive("step_size", self.step_size, allow_none=True)

    def init(self, log_density: Density, position: Tensor) -> SKROCKState:
        """First state; evaluates the density and finds its curvature."""
        at = SmoothedState.start(log_density, position, self.smoothing)
        variance, widest = PooledVariance.start(position), torch.ones_like(at.curvature.largest)
        return SKROCKState(position, at.log_prob, at, variance, widest)

    def step(
        self, log_density: Density, state: SKROCKState, rng: torch.Generator
    ) -> tuple[SKROCKState, SKROCKInfo]:
        """One step of every chain, which takes one gradient more than it has stages."""
        old = state.at.measured(log_density)
        smoothing = smoothing_of(old.curvature, self.smoothing)
        step = self._step_size(old, smoothing, state.widest)
        smoothed = Smoothed(log_density, smoothing)
        drawn = torch.randn(old.position.shape, generator=rng, dtype=step.dtype, device=rng.device)
        position = self._moved(smoothed, old.position, step, drawn.to(step.device))
        log_prob, gradient = smoothed.value_and_grad(position)
        # From a mode to typical points the log density falls by n/2.
        diverging = ~(log_prob - old.log_prob >= -DIVERGENCE - position.shape[-1])
        at = old._replace(
            position=torch.where(diverging[..., None], old.position, position),
            log_prob=torch.where(diverging, old.log_prob, log_prob),
            gradient=torch.where(diverging[..., None], old.gradient, gradient),
        )
        info = SKROCKInfo(diverging, at.log_prob, step[..., 0].expand_as(log_prob))
        return state._replace(position=at.position, log_prob=at.log_prob, at=at), info

    def _moved(self, smoothed: Smoothed, v: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """All stages from ``v``."""
        first, later = coefficients(self.stages)
        delta, jump = 0.5 * step.square(), step * noise
        mu, nu, kappa = first
        _, gradient = smoothed.value_and_grad(v + nu * jump)
        before, at = v, v + mu * delta * gradient + kappa * jump
        for mu, nu in later:
            _, gradient = smoothed.value_and_grad(at)
            before, at = at, mu * delta * gradient + nu * at + (1.0 - nu) * before
        return at

    def _step_size(self, at: SmoothedState, smoothing: Tensor, widest: Tensor) -> Tensor:
        if self.step_size is not None:
            return torch.full_like(smoothing, self.step_size)
        curvature = at.curvature.largest
        stable = _STABLE * longest_step(self.stages) / (curvature + 1.0 / smoothing)
        # No posterior is narrower throughout than in its stiffest direction.
        wanted = _WIDEST * torch.maximum(widest, 1.0 / curvature)
        return (2.0 * torch.minimum(stable, wanted)).sqrt()

    def combine(self, earlier: Any, later: Any) -> Any:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: SKROCKState, info: Any, iteration: int, warmup: int) -> SKROCKState:
        """Learn the widest variance; say when to measure the curvature again."""
        schedule = Schedule.of(warmup)
        state = state._replace(at=state.at.adapted(iteration, warmup))
        if iteration >= schedule.search:
            state = state._replace(variance=state.variance.update(state.position))
        if iteration in schedule.window_ends:
            widest = state.variance.estimate().amax(-1, keepdim=True)
            variance = PooledVariance.start(state.position)
            state = state._replace(widest=widest, variance=variance)
        return state


def longest_step(stages: int) -> float:
    """Longest stable step for curvature 1."""
    return (stages - 0.5) ** 2 * (2.0 - 4.0 / 3.0 * _DAMPING) - 1.5


def coefficients(
    stages: int,
) -> tuple[tuple[float, float, float], list[tuple[float, float]]]:
    """mu, nu and kappa of the first stage; mu and nu of the others."""
    w0 = 1.0 + _DAMPING / stages**2
    # Chebyshev polynomials of both kinds at w0, by their recursion; T_s' = s U_{s-1}.
    t, u = [1.0, w0], [1.0, 2.0 * w0]
    for _ in range(stages - 1):
        t.append(2.0 * w0 * t[-1] - t[-2])
        u.append(2.0 * w0 * u[-1] - u[-2])
    w1 = t[stages] / (stages * u[stages - 1])
    ratios = [t[j - 1] / t[j] for j in range(2, stages + 1)]
    later = [(2.0 * w1 * ratio, 2.0 * w0 * ratio) for ratio in ratios]
    return (w1 / w0, 0.5 * stages * w1, stages * w1 / w0), later
