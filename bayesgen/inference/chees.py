"""ChEES-HMC: Hamiltonian Monte Carlo that learns from many chains how far to go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.inference.adaptation import Schedule
from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import (
    HMCInfo,
    HMCState,
    Proposal,
    check_target,
    count_steps,
    hamiltonian_adapt,
    hamiltonian_init,
    metropolis,
    propose,
)
from bayesgen.inference.masses import whiten
from bayesgen.types import Density, check_count, check_positive

# Of Adam on the logarithm of the trajectory's length: rate, and decay of the mean square. The
# gradient itself is not averaged: each step's is of another jittered length.
RATE, DECAY = 0.025, 0.95


class LengthSearch(NamedTuple):
    """Stochastic gradient ascent on the logarithm of the longest trajectory's length T.

    Attributes
    ----------
    log_length
        Logarithm of T to use next, ``(*problems,)``.
    log_average
        Weighted average of it, the one to keep when warm-up ends.
    slope
        Estimate from the last step of the criterion's derivative by log T.
    mean_square
        Running mean of squared slopes.
    updates
        Number of updates so far.
    """

    log_length: Tensor
    log_average: Tensor
    slope: Tensor
    mean_square: Tensor
    updates: int

    @classmethod
    def start(cls, length: Tensor) -> LengthSearch:
        """Begin at ``length``."""
        zero = torch.zeros_like(length)
        return cls(length.log(), length.log(), zero, zero, 0)

    def update(self, longest: Tensor) -> LengthSearch:
        """One step of Adam (Kingma and Ba 2015) without momentum, to ``longest`` at most."""
        updates = self.updates + 1
        mean_square = DECAY * self.mean_square + (1.0 - DECAY) * self.slope.square()
        scale = (mean_square / (1.0 - DECAY**updates)).sqrt()
        move = torch.where(scale > 0, self.slope / scale, 0.0)
        log_length = torch.minimum(self.log_length + RATE * move, longest.log())
        weight = updates**-0.5
        log_average = weight * log_length + (1.0 - weight) * self.log_average
        return LengthSearch(log_length, log_average, self.slope, mean_square, updates)


class ChEESState(NamedTuple):
    """Where the chains are, and how long their trajectories are.

    Attributes
    ----------
    chains
        What all Hamiltonian methods know.
    search
        The search for the length of trajectories.
    iteration
        Number of steps taken, which jitters the length.
    """

    chains: HMCState
    search: LengthSearch
    iteration: int

    @property
    def position(self) -> Tensor:
        """Current points, ``(*problems, chains, n)``."""
        return self.chains.position

    @property
    def log_prob(self) -> Tensor:
        """Their log density, ``(*problems, chains)``."""
        return self.chains.log_prob


@dataclass(frozen=True)
class ChEES(Sampler):
    """Hamiltonian Monte Carlo with the trajectory length that makes chains move farthest for it.

    All chains of a problem follow trajectories of the same length u T, with u in (0, 1) from
    Halton's sequence. Warm-up climbs the expected change of the estimated squared distance from
    the mean, for a unit of length,

    .. math::
        \\tfrac14 \\mathrm{E} [ (|q' - \\mathrm{E} q'|^2 - |q - \\mathrm{E} q|^2)^2 ]
        \\, / \\, \\mathrm{E} [u T] ,

    in units of the masses, by its derivative with respect to T, averaged over chains. (Hoffman et
    al. do not divide by the length; their trajectories may be several times as long, at the price
    of as many gradients.) In lockstep no chain waits for another, as it does in NUTS. It needs at
    least two chains and is at its best with dozens, all of which should start near the typical set.

    Parameters
    ----------
    trajectory
        First value of T, or the fixed one if there is no warm-up. The default pi is right for
        posteriors that are independent Gaussians in units of the masses; their mean trajectory
        is then a quarter of a period.
    target_acceptance
        Harmonic mean of acceptances that warm-up tunes the step size to; it guards the chains
        that fare worst. 0.651 is optimal for HMC in high dimension (Beskos et al. 2013), 0.8 for
        the short trajectories that the criterion finds.
    step_size
        First step size, or the fixed one if there is no warm-up; by default found by doubling or
        halving until the acceptance of one step crosses the target.
    max_steps
        Largest number of leapfrog steps a trajectory may take.
    adapt_mass
        Whether warm-up estimates the posterior variances, pooled over chains.
    dense_mass
        Whether it estimates correlations too (default), which are shrunk as far as so few draws
        ask for. Above 256 coordinates it never does.

    References
    ----------
    Hoffman, Radul and Sountsov (2021), *An adaptive-MCMC scheme for setting trajectory lengths in
    Hamiltonian Monte Carlo*.

    Examples
    --------
    >>> ChEES(max_steps=200)
    ChEES(trajectory=3.141592653589793, target_acceptance=0.8, step_size=None, max_steps=200, \
adapt_mass=True, dense_mass=True)
    """

    name = "chees"
    reference = "Hoffman, Radul and Sountsov (2021), ChEES-HMC"

    trajectory: float = math.pi
    target_acceptance: float = 0.8
    step_size: float | None = None
    max_steps: int = 256
    adapt_mass: bool = True
    dense_mass: bool = True

    def __post_init__(self) -> None:
        check_positive("trajectory", self.trajectory)
        check_target(self.target_acceptance)
        check_positive("step_size", self.step_size, allow_none=True)
        check_count("max_steps", self.max_steps)

    def init(self, log_density: Density, position: Tensor) -> ChEESState:
        """First state; evaluates the density and, unless it is given, finds a step size.

        Raises
        ------
        OptionError
            If there is only one chain.
        """
        if position.shape[-2] < 2:
            raise OptionError(
                f"chains: got {position.shape[-2]}; ChEES learns from the spread of chains and "
                "expected at least 2; use 'hmc' or 'nuts' for a single chain"
            )
        chains = hamiltonian_init(
            log_density,
            position,
            self.step_size,
            self.target_acceptance,
            dense=self.dense_mass,
        )
        length = torch.full_like(position[..., 0, 0], self.trajectory)
        return ChEESState(chains, LengthSearch.start(length), 0)

    def step(
        self, log_density: Density, state: ChEESState, rng: torch.Generator
    ) -> tuple[ChEESState, HMCInfo]:
        """One trajectory, its Metropolis test, and what it says about longer ones."""
        iteration = state.iteration + 1
        length = halton(iteration) * state.search.log_length.exp()
        num_steps = count_steps(state.chains, length, self.max_steps)
        proposal = propose(log_density, state.chains, rng, num_steps)
        # Whole steps: a trajectory shorter than one would be taken to gain much for its length.
        taken = num_steps * state.chains.step_size.log().mean((-2, -1)).exp()
        slope = rate_slope(state.chains, proposal, taken)
        chains, info = metropolis(state.chains, proposal, rng)
        return ChEESState(chains, state.search._replace(slope=slope), iteration), info

    def combine(self, earlier: HMCInfo, later: HMCInfo) -> HMCInfo:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: ChEESState, info: HMCInfo, iteration: int, warmup: int) -> ChEESState:
        """Tune the step size, the length and, at the ends of windows, the mass matrix."""
        chains = hamiltonian_adapt(
            state.chains,
            info,
            iteration,
            warmup,
            self.target_acceptance,
            self.adapt_mass,
            _harmonic_mean,
        )
        schedule, search = Schedule.of(warmup), state.search
        # Chains that have not yet found the typical set would ask for ever longer trajectories.
        if iteration >= schedule.search:
            step = chains.averaging.log_average.mean((-2, -1)).exp()
            search = search.update(self.max_steps * step)
        if iteration in schedule.window_ends and self.adapt_mass:
            # In units of the new masses T is right to begin with, but slopes are of another size.
            search = LengthSearch.start(search.log_length.exp())
        if iteration == warmup - 1:
            search = search._replace(log_length=search.log_average)
        return ChEESState(chains, search, state.iteration)


def rate_slope(state: HMCState, proposal: Proposal, length: Tensor) -> Tensor:
    """Derivative by log T of the criterion for a unit of length, ``(*problems,)``.

    Up to a positive factor; acceptances weigh the chains (Hoffman et al. 2021, section 3). With
    C the criterion at length l = uT, the ratio of the means of C and l over u has its maximum where
    the mean of l dC/dl - C is zero.
    """
    weight = proposal.change.clamp(max=0.0).exp()[..., None]
    weight = weight / weight.sum(-2, keepdim=True)
    position, momentum = (
        torch.where(weight > 0, part, 0.0) for part in (proposal.end[0], proposal.end[3])
    )
    old = state.position - state.position.mean(-2, keepdim=True)
    new = position - (weight * position).sum(-2, keepdim=True)
    new_units, old_units = (whiten(part, state.inverse_mass) for part in (new, old))
    change = (new_units.square() - old_units.square()).sum(-1)
    # Velocities are momenta over masses, and so cancel the masses of the distance.
    gain = length[..., None] * (new * momentum).sum(-1) - 0.25 * change
    slope = (weight[..., 0] * change * gain).sum(-1)
    return torch.where(torch.isfinite(slope), slope, 0.0)


def halton(index: int) -> float:
    """Element of Halton's sequence in base 2: the bits of ``index``, mirrored at the point.

    Examples
    --------
    >>> [halton(i) for i in range(1, 6)]
    [0.5, 0.25, 0.75, 0.125, 0.625]
    """
    bits = f"{index:b}"
    return int(bits[::-1], 2) / 2 ** len(bits)


def _harmonic_mean(acceptance: Tensor) -> Tensor:
    """Over chains; 0 if one of them is."""
    return 1.0 / acceptance.reciprocal().mean(-2, keepdim=True)
