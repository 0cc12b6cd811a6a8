"""Parallel tempering: replicas between prior and posterior that swap places."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from bayesgen.inference.adaptation import Schedule
from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import (
    HMCInfo,
    HMCState,
    _like,
    check_target,
    count_steps,
    hamiltonian_adapt,
    hamiltonian_init,
    hamiltonian_step,
)
from bayesgen.inference.tempering import (
    Tempered,
    after_move,
    draw_prior,
    equalised,
    log_likelihood,
    power_ladder,
    swap_order,
    swap_ratios,
    temper,
)
from bayesgen.types import Density, Split, SplitDensity, check_count, check_positive


class Tally(NamedTuple):
    """What has been counted since the ladder last changed, or warm-up ended.

    Attributes
    ----------
    steps
        Number of steps.
    rejection
        Sum of the probabilities that neighbours do not swap, ``(*problems, K - 1, chains)``.
    log_ratio
        Logarithm of the summed likelihood ratios of neighbours, of the same shape.
    arrivals
        Replicas that came from the prior to the posterior, ``(*problems, chains)``.
    """

    steps: int
    rejection: Tensor
    log_ratio: Tensor
    arrivals: Tensor

    @classmethod
    def start(cls, likelihood: Tensor) -> Tally:
        """Nothing counted; log likelihoods ``(*problems, K - 1, chains)`` give the shape."""
        zero = torch.zeros_like(likelihood, dtype=torch.float64)
        arrivals = torch.zeros_like(likelihood[..., -1, :], dtype=torch.int64)
        return cls(0, zero, zero - math.inf, arrivals)


class PTState(NamedTuple):
    """Where the replicas are, and what has been learnt.

    Attributes
    ----------
    replicas
        Replicas of all rungs above the prior with their tempered log density; the rungs
        ``(*problems, K - 1)`` take the place of problems. The prior's replica is drawn afresh at
        each step.
    split
        Their log prior and log likelihood, with gradients.
    beta
        Inverse temperatures from 0 to 1, ``(*problems, K)``.
    fresh
        Which replicas have been at the prior since they last were at the posterior,
        ``(*problems, K - 1, chains)``.
    parity
        Whether even (0) or odd (1) rungs swap with the next one upwards.
    moved
        Info of the last local moves.
    tally
        Counts.
    """

    replicas: HMCState
    split: Split
    beta: Tensor
    fresh: Tensor
    parity: int
    moved: HMCInfo | None
    tally: Tally

    @property
    def position(self) -> Tensor:
        """Replicas at the posterior, ``(*problems, chains, n)``."""
        return self.replicas.position[..., -1, :, :]

    @property
    def log_prob(self) -> Tensor:
        """Their log density under the posterior, ``(*problems, chains)``."""
        return (self.split.prior + self.split.likelihood)[..., -1, :]


class PTInfo(NamedTuple):
    """What is stored with every draw; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    acceptance_rate, diverging, step_size, n_steps
        Of the trajectory at the posterior.
    swap_rejection
        Mean over rungs of the probability that neighbours do not swap, since warm-up ended. All
        chains of a problem share it, as they share the ladder.
    barrier
        Sum over rungs of it: about twice the barrier plus one is the best number of replicas.
    round_trips
        Number of times since warm-up ended that a replica fresh from the prior came to the
        posterior.
    log_evidence
        Estimate from all steps since warm-up ended; the last draw's is the best.
    """

    acceptance_rate: Tensor
    diverging: Tensor
    step_size: Tensor
    n_steps: Tensor
    swap_rejection: Tensor
    barrier: Tensor
    round_trips: Tensor
    log_evidence: Tensor


@dataclass(frozen=True)
class ParallelTempering(Sampler):
    """Non-reversible parallel tempering with Hamiltonian moves.

    Each chain is a ladder of replicas, the k-th of which samples prior times
    :math:`p(y | v)^{\\beta_k}`. A step moves each by one trajectory, draws that of the prior
    afresh, and lets neighbours swap with probability

    .. math:: \\min\\{1, \\exp((\\beta_{k+1} - \\beta_k)(l_k - l_{k+1}))\\} ,

    l being log likelihoods; even and odd pairs take turns, so that replicas travel in one
    direction and do not wander. What arrives at the posterior has forgotten its past: modes
    are visited in proportion to their mass. Warm-up tunes the ladder until all swaps are refused
    equally often, and step sizes and variances of each rung.

    Parameters
    ----------
    replicas
        Rungs K of the ladder, prior and posterior included (12). About twice the barrier, which
        is stored with the draws, plus one are best; with far fewer nothing gets through.
    trajectory
        Mean integration time of a trajectory, in standard deviations of its rung.
    target_acceptance
        Mean acceptance that warm-up tunes the step size of each rung to.
    max_steps
        Largest number of leapfrog steps a trajectory may take (32).

    References
    ----------
    Syed, Bouchard-Côté, Deligiannidis and Doucet (2022), *Non-reversible parallel tempering: a
    scalable highly parallel MCMC scheme*; Xie, Lewis, Fan, Kuo and Chen (2011) (evidence by
    stepping stones).

    Examples
    --------
    >>> from bayesgen.inference.checks import check_method
    >>> check_method(ParallelTempering(replicas=4), chains=32, draws=100, warmup=100).passed
    True
    """

    name = "pt"
    reference = "Syed et al. (2022), Non-reversible parallel tempering"

    replicas: int = 12
    trajectory: float = math.pi / 2
    target_acceptance: float = 0.8
    max_steps: int = 32

    def __post_init__(self) -> None:
        check_count("replicas", self.replicas, minimum=2)
        check_positive("trajectory", self.trajectory)
        check_target(self.target_acceptance)
        check_count("max_steps", self.max_steps)

    def init(self, log_density: Density, position: Tensor) -> PTState:
        """First state, all replicas of a chain at the same point."""
        lead = (*position.shape[:-2], self.replicas)
        beta = power_ladder(self.replicas).to(position.device).expand(lead).clone()
        shape = (*position.shape[:-2], self.replicas - 1, *position.shape[-2:])
        start = position.unsqueeze(-3).expand(shape).contiguous()
        tempered = Tempered(log_density, beta[..., 1:, None])
        split = _split(log_density, start)
        replicas = hamiltonian_init(tempered, start, None, self.target_acceptance)
        fresh = torch.zeros_like(split.prior, dtype=torch.bool)
        return PTState(replicas, split, beta, fresh, 0, None, Tally.start(split.prior))

    def step(
        self, log_density: Density, state: PTState, rng: torch.Generator
    ) -> tuple[PTState, PTInfo]:
        """One trajectory of each replica, a fresh draw from the prior, and one round of swaps."""
        state = self._move(log_density, state, rng)
        ground = draw_prior(log_density, state.position.shape, rng)
        state = _swap(state, ground, _split(log_density, ground), rng)
        return state, _describe(state)

    def combine(self, earlier: PTInfo, later: PTInfo) -> PTInfo:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: PTState, info: PTInfo, iteration: int, warmup: int) -> PTState:
        """Tune the moves of each rung, and at the ends of windows the ladder."""
        replicas = hamiltonian_adapt(
            state.replicas,
            cast(HMCInfo, state.moved),
            iteration,
            warmup,
            self.target_acceptance,
            True,
        )
        state = state._replace(replicas=replicas)
        schedule = Schedule.of(warmup)
        # The last window estimates the variances of rungs that stay.
        if iteration in (schedule.search - 1, *schedule.window_ends[:-1]):
            state = _retuned(state)
        if iteration == warmup - 1:
            state = state._replace(tally=Tally.start(state.split.prior))
        return state

    def _move(self, log_density: Density, state: PTState, rng: torch.Generator) -> PTState:
        """One trajectory of each replica."""
        tempered = Tempered(log_density, state.beta[..., 1:, None])
        # As in HMC, a random length keeps oscillations from coming back to where they began.
        fraction = 2.0 * float(torch.rand((), generator=rng, device=rng.device))
        count = count_steps(state.replicas, fraction * self.trajectory, self.max_steps)
        replicas, moved = hamiltonian_step(tempered, state.replicas, rng, count)
        split = after_move(state.replicas.position, replicas.position, state.split, tempered.last)
        return state._replace(replicas=replicas, split=split, moved=moved)


def _split(log_density: Density, v: Tensor) -> Split:
    return cast(SplitDensity, log_density).split(v)


def _swap(state: PTState, ground: Tensor, ground_split: Split, rng: torch.Generator) -> PTState:
    """One round of swaps, ``ground`` being the prior's replicas ``(*problems, chains, n)``."""
    rungs = state.beta.ndim - 1

    def ladder(low: Tensor, upper: Tensor) -> Tensor:
        return torch.cat([low.unsqueeze(rungs), upper], rungs)

    split = Split(*map(ladder, ground_split, state.split))
    log_ratio, log_accept = swap_ratios(log_likelihood(split), state.beta)
    turn = torch.arange(log_accept.shape[-2], device=log_accept.device) % 2 == state.parity
    accepted = turn[:, None] & (_like(torch.rand, log_accept, rng).log() < log_accept)
    order = swap_order(accepted)[..., 1:, :]
    split = Split(*(_reordered(part, order, rungs) for part in split))
    log_prob, gradient = temper(split, state.beta[..., 1:, None])
    position = _reordered(ladder(ground, state.replicas.position), order, rungs)
    known = torch.ones_like(state.fresh[..., -1, :])
    fresh = _reordered(ladder(known, state.fresh), order, rungs)
    tally = Tally(
        steps=state.tally.steps + 1,
        rejection=state.tally.rejection + 1.0 - log_accept.exp(),
        log_ratio=torch.logaddexp(state.tally.log_ratio, log_ratio),
        arrivals=state.tally.arrivals + fresh[..., -1, :],
    )
    fresh[..., -1, :] = False
    return state._replace(
        replicas=state.replicas._replace(position=position, log_prob=log_prob, gradient=gradient),
        split=split,
        fresh=fresh,
        parity=1 - state.parity,
        tally=tally,
    )


def _reordered(values: Tensor, order: Tensor, axis: int) -> Tensor:
    if values.ndim > order.ndim:
        order = order[..., None].expand(*order.shape, values.shape[-1])
    return values.gather(axis, order)


def _retuned(state: PTState) -> PTState:
    """The ladder that the refusals ask for, and replicas tempered by it."""
    rejection = state.tally.rejection.mean(-1) / state.tally.steps
    beta = equalised(state.beta, rejection)
    log_prob, gradient = temper(state.split, beta[..., 1:, None])
    return state._replace(
        beta=beta,
        replicas=state.replicas._replace(log_prob=log_prob, gradient=gradient),
        tally=Tally.start(state.split.prior),
    )


def _describe(state: PTState) -> PTInfo:
    tally, moved = state.tally, cast(HMCInfo, state.moved)
    rejection = (tally.rejection / tally.steps).mean(-1).to(state.log_prob.dtype)
    shape = state.log_prob.shape
    return PTInfo(
        acceptance_rate=moved.acceptance_rate[..., -1, :],
        diverging=moved.diverging[..., -1, :],
        step_size=moved.step_size[..., -1, :],
        n_steps=moved.n_steps[..., -1, :],
        swap_rejection=rejection.mean(-1, keepdim=True).expand(shape),
        barrier=rejection.sum(-1, keepdim=True).expand(shape),
        round_trips=tally.arrivals,
        log_evidence=(tally.log_ratio - math.log(tally.steps)).sum(-2),
    )
