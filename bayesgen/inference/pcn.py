"""The preconditioned Crank-Nicolson sampler, whose proposals need no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import (
    HMCState,
    Proposal,
    check_target,
    fresh_momentum,
    hamiltonian_adapt,
    hamiltonian_init,
    metropolis,
)
from bayesgen.inference.leapfrog import Phase, drift
from bayesgen.types import Density, check_positive


class PCNInfo(NamedTuple):
    """What is stored with every draw; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    acceptance_rate
        Probability with which the proposal was accepted.
    log_prob
        Log density after the step.
    step_size
        Size of the step.
    """

    acceptance_rate: Tensor
    log_prob: Tensor
    step_size: Tensor


@dataclass(frozen=True)
class PCN(Sampler):
    r"""Proposals that leave the normal prior as it is, accepted by the likelihood alone.

    A coordinate with the prior N(m, s^2) turns by an angle towards a fresh draw of the prior,

    .. math:: v' = m + \cos(\theta)\, (v - m) + \sin(\theta)\, s\, \xi, \qquad \xi \sim N(0, 1),

    so that the acceptance does not fall with the number of such coordinates. The others take a
    random walk. Angles and strides are the step size times the posterior standard deviations, the
    angles in units of s: coordinates that the data determine turn little, the others far. The
    Hamiltonian methods, which follow gradients, need fewer evaluations wherever the density is
    smooth.

    Parameters
    ----------
    target_acceptance
        Mean acceptance that warm-up tunes the step size to. Between 0.2 and 0.3 is good for random
        walks of any dimension (Roberts, Gelman and Gilks 1997: 0.234).
    step_size
        First step size, or the fixed one if there is no warm-up. No angle exceeds a right one,
        which draws from the prior.
    adapt_mass
        Whether warm-up estimates the posterior variances, pooled over chains. Without, all angles
        are the same, as in the original algorithm.

    References
    ----------
    Cotter, Roberts, Stuart and White (2013), *MCMC methods for functions: modifying old algorithms
    to make them faster*, where the sine is called beta.

    Examples
    --------
    >>> PCN()
    PCN(target_acceptance=0.25, step_size=0.5, adapt_mass=True)
    """

    name = "pcn"
    reference = "Cotter, Roberts, Stuart and White (2013), MCMC methods for functions"

    target_acceptance: float = 0.25
    step_size: float = 0.5
    adapt_mass: bool = True

    def __post_init__(self) -> None:
        check_target(self.target_acceptance)
        check_positive("step_size", self.step_size)

    @property
    def uses_gradient(self) -> bool:
        """Whether it needs the gradient of the log density: it does not."""
        return False

    def init(self, log_density: Density, position: Tensor) -> HMCState:
        """First state; evaluates the density."""
        return hamiltonian_init(
            log_density, position, self.step_size, self.target_acceptance, "prior"
        )

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, PCNInfo]:
        """One proposal and its Metropolis test."""
        # A Hamiltonian trajectory without kicks: what it loses in energy is the likelihood's.
        momentum = fresh_momentum(state, rng)
        position, end_momentum = drift(state)(state.position, momentum)
        end = Phase(position, *log_density.value_and_grad(position), end_momentum)
        proposal = Proposal.of(state, momentum, end, 1)
        state, info = metropolis(state, proposal, rng)
        return state, PCNInfo(info.acceptance_rate, info.log_prob, info.step_size)

    def adapt(self, state: HMCState, info: PCNInfo, iteration: int, warmup: int) -> HMCState:
        """Tune the step size and, at the ends of windows, the scales."""
        return hamiltonian_adapt(
            state, info, iteration, warmup, self.target_acceptance, self.adapt_mass
        )
