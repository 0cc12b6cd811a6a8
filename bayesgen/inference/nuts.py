"""The no-U-turn sampler, all chains of all problems in one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import (
    DIVERGENCE,
    HMCState,
    _kinetic,
    _like,
    check_target,
    fresh_momentum,
    hamiltonian_adapt,
    hamiltonian_init,
)
from bayesgen.inference.leapfrog import Phase, choose, integrator
from bayesgen.types import Density, check_count, check_positive


class NUTSInfo(NamedTuple):
    """What is stored with every draw; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    acceptance_rate
        Mean over the trajectory of the probability with which HMC would have accepted the point.
    diverging
        Whether the energy error exceeded 1000 or was not finite, which ends the trajectory.
    energy
        Potential plus kinetic energy at the start of the trajectory.
    log_prob
        Log density after the step.
    step_size, n_steps
        Leapfrog step size and number of leapfrog steps.
    tree_depth
        How often the trajectory was doubled.
    """

    acceptance_rate: Tensor
    diverging: Tensor
    energy: Tensor
    log_prob: Tensor
    step_size: Tensor
    n_steps: Tensor
    tree_depth: Tensor


@dataclass(frozen=True)
class NUTS(Sampler):
    """Hamiltonian Monte Carlo whose trajectories end where they begin to turn back.

    A trajectory is doubled, forwards or backwards by the toss of a coin, until its ends move
    towards each other; the draw is one of its points, taken with probability proportional to
    their density in phase space, later doublings being favoured. All chains take their leapfrog
    steps together, without recursion, and chains that have finished are left out, so a step takes
    as many evaluations as the longest trajectory among the chains needs.

    Parameters
    ----------
    target_acceptance
        Mean acceptance that warm-up tunes the step size to (0.8, as Stan).
    step_size
        First step size, or the fixed one if there is no warm-up; by default found by doubling or
        halving until the acceptance of one step crosses the target.
    max_depth
        Most doublings of a trajectory; 10, as Stan, allows 1023 leapfrog steps.
    adapt_mass
        Whether warm-up estimates the posterior variances, pooled over chains.
    dense_mass
        Whether it estimates correlations too (default), which are shrunk as far as so few draws
        ask for. Above 256 coordinates it never does.

    References
    ----------
    Hoffman and Gelman (2014), *The No-U-Turn Sampler*; Betancourt (2017), appendix A (multinomial
    draws and the criterion for turning); Phan, Pradhan and Jankowiak (2019), *Composable effects
    for flexible and accelerated probabilistic programming in NumPyro* (without recursion).

    Examples
    --------
    >>> NUTS(max_depth=8)
    NUTS(target_acceptance=0.8, step_size=None, max_depth=8, adapt_mass=True, dense_mass=True)
    """

    name = "nuts"
    reference = "Hoffman and Gelman (2014), The No-U-Turn Sampler"

    target_acceptance: float = 0.8
    step_size: float | None = None
    max_depth: int = 10
    adapt_mass: bool = True
    dense_mass: bool = True

    def __post_init__(self) -> None:
        check_target(self.target_acceptance)
        check_positive("step_size", self.step_size, allow_none=True)
        check_count("max_depth", self.max_depth)

    def init(self, log_density: Density, position: Tensor) -> HMCState:
        """First state; evaluates the density and, unless it is given, finds a step size."""
        return hamiltonian_init(
            log_density,
            position,
            self.step_size,
            self.target_acceptance,
            dense=self.dense_mass,
        )

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, NUTSInfo]:
        """One trajectory and a draw from it."""
        momentum = fresh_momentum(state, rng)
        energy = _kinetic(momentum, state) - state.log_prob
        start = Phase(*state[:3], momentum)
        outwards = start._replace(momentum=-momentum)
        tree = _Tree(outwards, start, start[:3], torch.zeros_like(energy))
        progress = _Progress.begin(energy)
        for depth in range(self.max_depth):
            tree, progress = _double(log_density, state, tree, energy, progress, depth, rng)
            if not bool(progress.growing.any()):
                break
        position, log_prob, gradient = tree.draw
        info = NUTSInfo(
            acceptance_rate=progress.acceptance / progress.n_steps,
            diverging=progress.diverging,
            energy=energy,
            log_prob=log_prob,
            step_size=state.step_size[..., 0].expand_as(log_prob),
            n_steps=progress.n_steps,
            tree_depth=progress.depth,
        )
        return state._replace(position=position, log_prob=log_prob, gradient=gradient), info

    def combine(self, earlier: NUTSInfo, later: NUTSInfo) -> NUTSInfo:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: HMCState, info: NUTSInfo, iteration: int, warmup: int) -> HMCState:
        """Tune the step size and, at the ends of windows, the mass matrix."""
        return hamiltonian_adapt(
            state, info, iteration, warmup, self.target_acceptance, self.adapt_mass
        )


class _Tree(NamedTuple):
    """A trajectory and a draw from its points.

    Attributes
    ----------
    back, front
        Its ends, with momenta that point away from it.
    draw
        Position, log density and gradient of the draw so far.
    log_weight
        Logarithm of the summed density of its points in phase space, over that of the start.
    """

    back: Phase
    front: Phase
    draw: tuple[Tensor, ...]
    log_weight: Tensor


class _Progress(NamedTuple):
    """How far each chain has come, ``(*problems, chains)``.

    Attributes
    ----------
    growing
        Whether its trajectory goes on.
    diverging, depth, n_steps
        As in `NUTSInfo`.
    acceptance
        Sum of acceptance probabilities.
    """

    growing: Tensor
    diverging: Tensor
    depth: Tensor
    n_steps: Tensor
    acceptance: Tensor

    @classmethod
    def begin(cls, energy: Tensor) -> _Progress:
        false = torch.zeros_like(energy, dtype=torch.bool)
        zero = torch.zeros_like(energy, dtype=torch.int64)
        return cls(~false, false, zero, zero, torch.zeros_like(energy))


def _double(
    log_density: Density,
    state: HMCState,
    tree: _Tree,
    energy: Tensor,
    progress: _Progress,
    depth: int,
    rng: torch.Generator,
) -> tuple[_Tree, _Progress]:
    """Join a trajectory with one as long, unless that turns or diverges on its way."""
    forwards = _like(torch.rand, energy, rng) < 0.5
    begin = Phase(*choose(forwards, tree.front, tree.back))
    new, progress = _extend(log_density, state, begin, energy, progress, depth, rng)
    joined = progress.growing
    # Both halves are as likely to have come first, so the later one may be favoured.
    odds = new.log_weight - tree.log_weight
    taken = joined & (_like(torch.rand, energy, rng).log() < odds)
    tree = _Tree(
        back=Phase(*choose(joined & ~forwards, new.front, tree.back)),
        front=Phase(*choose(joined & forwards, new.front, tree.front)),
        draw=choose(taken, new.draw, tree.draw),
        log_weight=torch.logaddexp(tree.log_weight, new.log_weight),
    )
    turned = _turns(tree.back.position, -tree.back.momentum, tree.front)
    return tree, progress._replace(growing=joined & ~turned, depth=progress.depth + joined)


def _extend(
    log_density: Density,
    state: HMCState,
    begin: Phase,
    energy: Tensor,
    progress: _Progress,
    depth: int,
    rng: torch.Generator,
) -> tuple[_Tree, _Progress]:
    """``2**depth`` leapfrog steps from an end, and a draw of their points by density.

    Trajectories that diverge or turn are given up: they stop growing, and what is returned for
    them means nothing. The first points of all parts that doubling could have made are kept until
    their last points are there to be compared with (Phan, Pradhan and Jankowiak 2019).
    """
    advance, now = integrator(log_density, state), begin
    draw: tuple[Tensor, ...] = begin[:3]
    # The largest sum of log density and Gumbel noise is at a draw by density.
    uniform = _like(torch.rand, energy.expand(2**depth, *energy.shape), rng)
    noise, best = -(-uniform.log()).log(), torch.full_like(energy, -math.inf)
    firsts: dict[int, Phase] = {}
    growing, steps, lost = progress.growing, [], []
    for i in range(2**depth):
        now = advance(now, growing)
        change = energy - _kinetic(now.momentum, state) + now.log_prob
        change = torch.where(change < math.inf, change, -math.inf)
        key = change + noise[i]
        draw = choose(key > best, now[:3], draw)
        best = torch.maximum(best, key)
        steps.append(growing)
        lost.append(change)
        growing = growing & (change >= -DIVERGENCE)
        ones = i.bit_count()
        if i % 2 == 0:
            firsts[ones] = now
        else:
            # One part ends here for each of the trailing ones of i.
            parts = [firsts[k] for k in range(ones - _trailing_ones(i), ones)]
            positions = torch.stack([first.position for first in parts])
            momenta = torch.stack([first.momentum for first in parts])
            growing = growing & ~_turns(positions, momenta, now).any(0)
        if not bool(growing.any()):
            break
    stepped, change = torch.stack(steps), torch.stack(lost)
    progress = _Progress(
        growing=growing,
        diverging=progress.diverging | (stepped & (change < -DIVERGENCE)).any(0),
        depth=progress.depth,
        n_steps=progress.n_steps + stepped.sum(0),
        acceptance=progress.acceptance + (stepped * change.clamp(max=0.0).exp()).sum(0),
    )
    return _Tree(begin, now, draw, change.logsumexp(0)), progress


def _turns(position: Tensor, momentum: Tensor, last: Phase) -> Tensor:
    """Whether an end of the way from a first point to a last moves against it.

    With constant masses the way is the inverse mass times the integral of the momentum, which the
    generalised criterion asks for (Betancourt 2017, appendix A.4.2).
    """
    way = last.position - position
    return ((way * momentum).sum(-1) <= 0) | ((way * last.momentum).sum(-1) <= 0)


def _trailing_ones(i: int) -> int:
    return (~i & (i + 1)).bit_length() - 1
