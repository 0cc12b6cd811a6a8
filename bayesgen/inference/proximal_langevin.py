"""Langevin methods for priors with kinks, without and with a Metropolis test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import (
    HMCInfo,
    HMCState,
    check_target,
    hamiltonian_adapt,
    hamiltonian_init,
    hamiltonian_step,
)
from bayesgen.inference.langevin import LangevinInfo, Point, unadjusted_step
from bayesgen.inference.smoothed import Smoothed, SmoothedState, smoothing_of
from bayesgen.types import Density, check_positive

# Of the longest step that the curvature allows: half the bound that Durmus et al. suggest not to
# exceed would bias the stiffest direction by a third, a fifth biases it by a ninth.
_SHARE = 0.2


@dataclass(frozen=True)
class MYULA(Sampler):
    r"""Unadjusted Langevin steps on the Moreau-Yosida smoothed density.

    For densities :math:`p = e^{-f - g}`, f smooth and g the priors with a proximal map (Laplace,
    `bayesgen.distributions.TotalVariation`), with :math:`\delta = e^2 / 2`

    .. math:: v' = v - \delta \nabla f(v) - \tfrac{\delta}{\lambda}
        (v - \operatorname{prox}_{\lambda g}(v)) + \sqrt{2 \delta}\, \xi .

    All sites move at once, in units of their priors. Draws are biased twice: they follow the
    smoothed density, where :math:`g_\lambda` replaces g and kinks are rounded over a distance
    :math:`\sqrt{\lambda}`, and of that what unadjusted steps leave; see `bayesgen.inference.ULA`.
    Without a prior with a proximal map these are its steps with P = 1.

    Parameters
    ----------
    smoothing
        :math:`\lambda`, in units of the prior's variance. Default 1/L, L being the largest
        curvature of f, found by power iteration at the start and along warm-up: with less, steps
        must be shorter; with more, the smoothing is what limits accuracy.
    step_size
        e, in units of the prior's standard deviation. Default: :math:`\delta = 0.2 / (L + 1 /
        \lambda)`, a tenth of what is stable, so that no variance of a Gaussian is more than 11 %
        too large.

    References
    ----------
    Durmus, Moulines and Pereyra (2018), Efficient Bayesian computation by proximal Markov chain
    Monte Carlo: when Langevin meets Moreau.

    Examples
    --------
    >>> MYULA(smoothing=0.01)
    MYULA(smoothing=0.01, step_size=None)
    """

    name = "myula"
    reference = "Durmus, Moulines and Pereyra (2018), Proximal Markov chain Monte Carlo"
    exact: ClassVar[bool] = False

    smoothing: float | None = None
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_positive("smoothing", self.smoothing, allow_none=True)
        check_positive("step_size", self.step_size, allow_none=True)

    def init(self, log_density: Density, position: Tensor) -> SmoothedState:
        """First state; evaluates the density and finds its curvature."""
        return SmoothedState.start(log_density, position, self.smoothing)

    def step(
        self, log_density: Density, state: SmoothedState, rng: torch.Generator
    ) -> tuple[SmoothedState, LangevinInfo]:
        """One step of every chain; the stored acceptance is that of a test against the prior."""
        state = state.measured(log_density)
        smoothing = smoothing_of(state.curvature, self.smoothing)
        step = self._step_size(state, smoothing)
        smoothed = Smoothed(log_density, smoothing)
        at = Point(state.position, state.log_prob, state.gradient)
        at, acceptance, diverging = unadjusted_step(smoothed, at, step, torch.ones_like(step), rng)
        info = LangevinInfo(acceptance, diverging, at.log_prob, step[..., 0].expand_as(acceptance))
        return state._replace(**at._asdict()), info

    def _step_size(self, state: SmoothedState, smoothing: Tensor) -> Tensor:
        if self.step_size is not None:
            return torch.full_like(smoothing, self.step_size)
        return (2.0 * _SHARE / (state.curvature.largest + 1.0 / smoothing)).sqrt()

    def combine(self, earlier: Any, later: Any) -> Any:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: SmoothedState, info: Any, iteration: int, warmup: int) -> SmoothedState:
        """Say when to measure the curvature again; smoothing and step size follow it."""
        return state.adapted(iteration, warmup)


class PMALAState(NamedTuple):
    """Where the chains are, what has been learnt, and how the drift was smoothed.

    Attributes
    ----------
    position, log_prob
        Points ``(*problems, chains, n)`` and their log densities.
    chain
        The chains with their step sizes and scales; its gradient is that of the smoothed density.
    smoothing
        With which; broadcasts against positions.
    """

    position: Tensor
    log_prob: Tensor
    chain: HMCState
    smoothing: Tensor


@dataclass(frozen=True)
class PMALA(Sampler):
    r"""Proximal Langevin proposals with a Metropolis test: exact for priors with kinks.

    The proposals are those of `bayesgen.inference.MYULA` with :math:`\lambda = e^2 / 2`,

    .. math:: v' = \operatorname{prox}_{\lambda g}(v) + \lambda \nabla \log p_f(v) + e\, \xi

    in the coordinates of g, preconditioned by the posterior variances as in
    `bayesgen.inference.MALA` (one number for each site with a proximal map, which knows no other
    metric). The test is made with the density itself, so smoothing and inexact proximal maps cost
    acceptance but bias nothing. Without a prior with a proximal map this is
    `bayesgen.inference.MALA`.

    Parameters
    ----------
    target_acceptance
        Mean acceptance that warm-up tunes to; 0.574, as for Langevin proposals in general.
    step_size
        First value of e, or the fixed one if there is no warm-up; found automatically by default.
    smoothing
        :math:`\lambda`, in units of the prior's variance times the learnt variances. Default
        :math:`e^2 / 2`, with which proposals are gradient steps on f followed by Pereyra's
        proximal ones on g.
    adapt_mass
        Whether warm-up estimates the posterior variances, pooled over chains.

    References
    ----------
    Pereyra (2016), Proximal Markov chain Monte Carlo algorithms.

    Examples
    --------
    >>> PMALA()
    PMALA(target_acceptance=0.574, step_size=None, smoothing=None, adapt_mass=True)
    """

    name = "pmala"
    reference = "Pereyra (2016), Proximal Markov chain Monte Carlo algorithms"

    target_acceptance: float = 0.574
    step_size: float | None = None
    smoothing: float | None = None
    adapt_mass: bool = True

    def __post_init__(self) -> None:
        check_target(self.target_acceptance)
        check_positive("step_size", self.step_size, allow_none=True)
        check_positive("smoothing", self.smoothing, allow_none=True)

    def init(self, log_density: Density, position: Tensor) -> PMALAState:
        """First state; evaluates the density and, unless it is given, finds a step size."""
        # A step size to smooth with while it is looked for; then it is its own.
        first = self.smoothing or 0.5 * (self.step_size or 0.1) ** 2
        smoothing = torch.full_like(position[..., :1, :], first)
        chain = hamiltonian_init(
            Smoothed(log_density, smoothing), position, self.step_size, self.target_acceptance
        )
        return PMALAState(position, chain.log_prob, chain, smoothing)

    def step(
        self, log_density: Density, state: PMALAState, rng: torch.Generator
    ) -> tuple[PMALAState, HMCInfo]:
        """One proposal and its Metropolis test."""
        chain, old = state.chain, Smoothed(log_density, state.smoothing)
        chain = chain._replace(inverse_mass=old.evenly(chain.inverse_mass))
        smoothing = self._smoothing(chain)
        smoothed = Smoothed(log_density, smoothing)
        if not torch.equal(smoothing, state.smoothing):
            # Warm-up has changed the step size, and the proposal's density with it.
            at = chain.position
            chain = chain._replace(gradient=chain.gradient + old.slope(at) - smoothed.slope(at))
        chain, info = hamiltonian_step(smoothed, chain, rng, 1)
        return PMALAState(chain.position, chain.log_prob, chain, smoothing), info

    def _smoothing(self, chain: HMCState) -> Tensor:
        if self.smoothing is not None:
            return self.smoothing * chain.inverse_mass
        return 0.5 * chain.step_size.square() * chain.inverse_mass

    def combine(self, earlier: HMCInfo, later: HMCInfo) -> HMCInfo:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: PMALAState, info: HMCInfo, iteration: int, warmup: int) -> PMALAState:
        """Tune the step size and, at the ends of windows, the scales."""
        chain = hamiltonian_adapt(
            state.chain, info, iteration, warmup, self.target_acceptance, self.adapt_mass
        )
        return state._replace(chain=chain)
