"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import dataclass

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
from bayesgen.types import Density, check_positive


@dataclass(frozen=True)
class MALA(Sampler):
    """Langevin proposals with a Metropolis test, preconditioned by the posterior variances.

    A Langevin step of size h is one leapfrog step of length e = sqrt(h) with fresh momentum,

    .. math:: v' = v + \\tfrac{e^2}{2} M^{-1} \\nabla \\log p(v) + e\\, M^{-1/2} \\xi ,

    and its Metropolis ratio is the Hamiltonian one (Neal 2011, section 5.2), so it shares its
    code with `bayesgen.inference.HMC`.

    Parameters
    ----------
    target_acceptance
        Mean acceptance that warm-up tunes to; 0.574 is optimal in high dimension (Roberts and
        Rosenthal 1998).
    step_size
        First value of e, or the fixed one if there is no warm-up; found automatically by default.
    adapt_mass
        Whether warm-up estimates the posterior variances, pooled over chains.

    References
    ----------
    Roberts and Tweedie (1996); Roberts and Rosenthal (1998).

    Examples
    --------
    >>> MALA()
    MALA(target_acceptance=0.574, step_size=None, adapt_mass=True)
    """

    name = "mala"
    reference = "Roberts and Tweedie (1996), Exponential convergence of Langevin distributions"

    target_acceptance: float = 0.574
    step_size: float | None = None
    adapt_mass: bool = True

    def __post_init__(self) -> None:
        check_target(self.target_acceptance)
        check_positive("step_size", self.step_size, allow_none=True)

    def init(self, log_density: Density, position: Tensor) -> HMCState:
        """First state; evaluates the density and, unless it is given, finds a step size."""
        return hamiltonian_init(log_density, position, self.step_size, self.target_acceptance)

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, HMCInfo]:
        """One Langevin proposal and its Metropolis test."""
        return hamiltonian_step(log_density, state, rng, 1)

    def combine(self, earlier: HMCInfo, later: HMCInfo) -> HMCInfo:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: HMCState, info: HMCInfo, iteration: int, warmup: int) -> HMCState:
        """Tune the step size and, at the ends of windows, the scales."""
        return hamiltonian_adapt(
            state, info, iteration, warmup, self.target_acceptance, self.adapt_mass
        )
