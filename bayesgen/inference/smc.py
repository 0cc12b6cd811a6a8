"""Sequential Monte Carlo: a population of particles is tempered from the prior to the posterior."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import ModelError, OptionError, unknown_option
from bayesgen.inference.adaptation import PooledCovariance, correlated
from bayesgen.inference.base import Drawn, Population
from bayesgen.inference.bridge import Bridge
from bayesgen.inference.hmc import HMCState, check_target, hamiltonian_init
from bayesgen.inference.masses import is_dense, variances
from bayesgen.inference.particle_moves import KERNELS
from bayesgen.inference.tempering import (
    Tempered,
    chosen,
    effective_fraction,
    log_likelihood,
    next_beta,
    systematic,
    temper,
)
from bayesgen.types import Density, Split, check_count

# Particles that have kept less than this of where they were have been moved enough.
_CORRELATION = 0.5
# The same on a bridge before its end: there are few temperatures, and the particles were right.
_IN_PASSING = 0.8
# Of a coordinate's variance from one temperature to the next: one in which few particles are left
# looks narrower than it is.
_NARROWEST = 1e-4
# How far the step size follows the error of one move's acceptance, which a population knows well.
_GAIN = 1.5


class SMCState(NamedTuple):
    """Where the populations are on their way.

    Attributes
    ----------
    particles
        The particles with their tempered log density, and step size and variances of their moves;
        the populations ``(*problems, chains)`` take the place of problems.
    split
        Their log prior and log likelihood, with gradients.
    beta, log_evidence
        Inverse temperature reached, and the log evidence up to there, ``(*problems, chains)``.
    overlap
        Effective fraction of the particles, all copies of one counting as one, if they had been
        weighted for the posterior where they began, ``(*problems, chains)``.
    temperatures
        Number of temperatures, ``(*problems, chains)``.
    acceptance_rate
        Of the last moves, ``(*problems, chains)``; NaN if there were none.
    """

    particles: HMCState
    split: Split
    beta: Tensor
    log_evidence: Tensor
    overlap: Tensor
    temperatures: Tensor
    acceptance_rate: Tensor

    @property
    def position(self) -> Tensor:
        """Particles, ``(*problems, chains, particles, n)``."""
        return self.particles.position

    @property
    def log_prob(self) -> Tensor:
        """Their log density under the posterior, ``(*problems, chains, particles)``."""
        return self.split.prior + self.split.likelihood


class SMCInfo(NamedTuple):
    """What monitors see of each temperature; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    beta
        Inverse temperature reached.
    effective_fraction
        Effective sample size of the weights over the number of particles.
    acceptance_rate
        Mean over particles and moves.
    n_moves, step_size
        Moves of each particle, and their step size.
    """

    beta: Tensor
    effective_fraction: Tensor
    acceptance_rate: Tensor
    n_moves: Tensor
    step_size: Tensor


@dataclass(frozen=True)
class SMC(Population):
    """Adaptive tempering of particles from the prior to the posterior.

    Particles begin as draws from the prior. At each inverse temperature beta, as far beyond the
    last as their weights :math:`p(y | v)^{\\Delta\\beta}` allow, they are resampled and moved by
    steps that leave prior times :math:`p(y | v)^\\beta` invariant. Modes are found in proportion to
    their mass, and the mean weights multiply to the evidence p(y).

    From an earlier posterior (``infer(..., start=posterior)``) the particles are led to the new one
    in the same way. They are not moved where new data say so little that reweighting leaves the
    fraction ``alpha`` of them (Chopin 2002). ``overlap`` in the statistics is that fraction, with
    all copies of a particle counted once: of 512 particles that start at 64 draws it is at most
    an eighth. Where it is down to one or two particles, the old posterior may lack what the new
    one has, and a run from the prior is safer.

    Draws follow the posterior, and the evidence is right, as the number of particles grows; with
    N of them errors are of order :math:`N^{-1/2}`. Each chain is a population on its own with its
    own temperatures, so that R-hat and the spread of ``log_evidence`` over chains show the error.

    Parameters
    ----------
    particles
        Particles of each chain, or as many as there are draws, if those are more; an odd number is
        rounded up, as each half learns from the other. The logarithm of the evidence wants at least
        512 (the default): it is biased downwards with few.
    alpha
        Effective fraction of the particles that reweighting to the next temperature leaves: 0.5
        to 0.7 is fast (default 0.7), 0.9 careful.
    moves, max_moves
        Least and largest number of moves at a temperature (2 and 6). Each population moves until
        every coordinate's correlation with where it began is below one half. Between an earlier
        posterior and the new one, where there are few temperatures, fewer moves will do.
    leapfrog
        Most evaluations of the log density that a move takes (8): ``"hmc"`` takes between half as
        many leapfrog steps and all of them, or less if the step size, in units of the particles'
        covariance (up to 256 unknowns), is large enough; ``"pcn"`` takes as many proposals.
    kernel
        ``"hmc"`` (default), or ``"pcn"`` for forward models without a useful gradient: a
        preconditioned Crank-Nicolson walk that keeps a Student law fitted to the particles.
    target_acceptance
        Mean acceptance that steps are tuned to after each move; by default 0.7 for ``"hmc"`` and
        0.25 for ``"pcn"``.
    max_iterations
        Most temperatures. A chain that has not arrived by then ends with a warning, and its
        ``tempered`` below 1 says where.

    References
    ----------
    Del Moral, Doucet and Jasra (2006) (samplers); Chopin (2002) (further data); Zhou, Johansen and
    Aston (2016) (conditional effective sample size); Buchholz, Chopin and Jacob (2021) (tuning of
    Hamiltonian moves); Grumitt, Karamanis and Seljak (2024) (Crank-Nicolson moves that keep a
    Student law).

    Examples
    --------
    >>> from bayesgen.inference.checks import GaussianTarget
    >>> from bayesgen.inference.runner import run_population
    >>> target, rng = GaussianTarget.with_condition(2, 4.0), torch.Generator().manual_seed(0)
    >>> start = target.prior_draws(4 * 512, rng).unflatten(0, (4, 512))
    >>> run = run_population(SMC(), target, start, rng, draws=512)
    >>> error = run.stats["log_evidence"][:, 0] - target.log_evidence
    >>> bool((error.abs() < 0.5).all())
    True
    """

    name = "smc"
    reference = "Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers"
    starts_at_prior = True

    particles: int = 512
    alpha: float = 0.7
    moves: int = 2
    max_moves: int = 6
    leapfrog: int = 8
    kernel: str = "hmc"
    target_acceptance: float | None = None
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        check_count("particles", self.particles, minimum=16)
        if not isinstance(self.alpha, float) or not 0.0 < self.alpha < 1.0:
            raise OptionError(f"alpha: got {self.alpha!r}; expected a number between 0 and 1")
        check_count("moves", self.moves)
        check_count("max_moves", self.max_moves, minimum=self.moves)
        check_count("leapfrog", self.leapfrog)
        if self.kernel not in KERNELS:
            raise OptionError(unknown_option("kernel", self.kernel, KERNELS))
        if self.target_acceptance is not None:
            check_target(self.target_acceptance)
        check_count("max_iterations", self.max_iterations)

    @property
    def uses_gradient(self) -> bool:
        """Whether particles are moved along gradients."""
        return self.kernel == "hmc"

    def num_starts(self, draws: int) -> int:
        """Particles of a chain, an even number."""
        count = max(self.particles, draws)
        return count + count % 2

    def init(self, log_density: Density, position: Tensor) -> SMCState:
        """First state at draws from the prior, ``(*problems, chains, particles, n)``.

        Or, if the density is a `Bridge`, at draws from the posterior that it begins at.

        Raises
        ------
        ModelError
            If the likelihood is zero or not a number at all particles of a chain.
        """
        zero = torch.zeros(position.shape[:-2], dtype=torch.float64, device=position.device)
        prior = Tempered(log_density, zero[..., None])
        step = position.shape[-1] ** -0.25
        # Masses of one half of the particles are learnt from the other half.
        dense = self.kernel == "hmc" and position.shape[-2] % 2 == 0
        particles = hamiltonian_init(prior, position, step, 0.5, dense=dense)
        if isinstance(log_density, Bridge):
            # Draws of a posterior are far closer together than those of a prior.
            narrow = position.var(-2, keepdim=True).clamp(min=torch.finfo(position.dtype).tiny)
            particles = particles._replace(inverse_mass=narrow)
        _check_likelihood(prior.last, isinstance(log_density, Bridge))
        counts = torch.zeros_like(zero, dtype=torch.int64)
        known = log_density.evidence_before if isinstance(log_density, Bridge) else None
        evidence = zero if known is None else known.to(zero)
        overlap = _distinct_fraction(position, log_likelihood(prior.last))
        rate = zero.to(position.dtype)
        return SMCState(particles, prior.last, zero, evidence, overlap, counts, rate)

    def step(
        self, log_density: Density, state: SMCState, rng: torch.Generator
    ) -> tuple[SMCState, SMCInfo]:
        """Reweight to the next temperature, resample and move; chains at the posterior wait."""
        likelihood, active = log_likelihood(state.split), state.beta < 1
        beta = next_beta(likelihood, state.beta, self.alpha)
        increment = (beta - state.beta)[..., None]
        log_weights = torch.where(increment > 0, increment * likelihood, 0.0)
        mean_weight = log_weights.logsumexp(-1) - math.log(likelihood.shape[-1])
        state, moving = _resampled(state, log_weights, beta, active, rng), active
        if isinstance(log_density, Bridge):
            # Where the bridge is that short, the particles that are there will do.
            moving = active & (state.overlap < self.alpha)
            state = _evaluated(log_density, state, moving)
        state, acceptance, moves = self._move(log_density, state, moving, rng)
        state = state._replace(
            log_evidence=state.log_evidence + mean_weight,
            temperatures=state.temperatures + active,
            acceptance_rate=torch.where(active, acceptance, state.acceptance_rate),
        )
        step_size = state.particles.step_size[..., 0, 0]
        fraction = effective_fraction(log_weights)
        return state, SMCInfo(beta, fraction, state.acceptance_rate, moves, step_size)

    def finished(self, state: SMCState) -> bool:
        """Whether every chain has come to the posterior."""
        return bool((state.beta >= 1).all())

    def draw(
        self, log_density: Density, state: SMCState, draws: int, rng: torch.Generator
    ) -> Drawn:
        """So many of the particles, evenly spaced.

        Particles of a common ancestor are neighbours and stay so: what moves have not told apart
        shows in the effective sample size.
        """
        short = state.beta < 1
        if bool(short.any()):
            warnings.warn(
                f"smc: {int(short.sum())} of {short.numel()} chains have not come to the posterior "
                f"within max_iterations={self.max_iterations} temperatures (beta is "
                f"{float(state.beta.min()):.3g}, should be 1), so that their draws lie between "
                "where they began and there. Raise max_iterations or lower alpha",
                RuntimeWarning,
                stacklevel=3,
            )
        order = systematic(torch.zeros_like(state.log_prob).double(), rng, draws)
        log_prob = state.log_prob.gather(-1, order)
        facts = {
            "log_evidence": state.log_evidence,
            "tempered": state.beta,
            "overlap": state.overlap,
            "temperatures": state.temperatures,
            "acceptance_rate": state.acceptance_rate,
        }
        stats = {name: fact[..., None].expand(order.shape) for name, fact in facts.items()}
        return Drawn(_take(state.position, order), log_prob, stats)

    def _move(
        self, log_density: Density, state: SMCState, active: Tensor, rng: torch.Generator
    ) -> tuple[SMCState, Tensor, Tensor]:
        """State after the moves, their mean acceptance and their number."""
        kernel = KERNELS[self.kernel]
        target = self.target_acceptance or kernel.target
        particles, split, start = state.particles, state.split, state.position
        total = torch.zeros_like(state.acceptance_rate)
        moves = torch.zeros_like(state.temperatures)
        passing = (state.beta < 1) & isinstance(log_density, Bridge)
        limit = torch.where(passing, _IN_PASSING, _CORRELATION)
        least = torch.where(passing, 1, self.moves)
        moving = active
        for i in range(self.max_moves):
            if not bool(moving.any()):
                break
            where = moving[..., None].expand(state.log_prob.shape)
            tempered = Tempered(log_density, state.beta[..., None], where)
            particles, split, acceptance = kernel.move(
                tempered, particles, split, rng, self.leapfrog
            )
            change = torch.where(moving, _GAIN * (acceptance - target), 0.0).exp()
            step = (particles.step_size * change[..., None, None]).clamp(max=kernel.largest)
            particles = particles._replace(step_size=step)
            total, moves = total + torch.where(moving, acceptance, 0.0), moves + moving
            correlation = _correlation(start, particles.position)
            moving = moving & ((correlation > limit) | (i + 1 < least))
        # Where nothing moved, nothing was accepted or refused: 0 / 0 is no number.
        return state._replace(particles=particles, split=split), total / moves, moves


def _check_likelihood(split: Split, carried: bool) -> None:
    lost = ~torch.isfinite(log_likelihood(split)).any(-1)
    if bool(lost.any()):
        what, advice = "draws from the prior", "narrow the prior, or raise particles"
        if carried:
            what, advice = "draws of the earlier posterior", "or begin at the prior"
        raise ModelError(
            f"model: in {int(lost.sum())} of {lost.numel()} chains the likelihood is zero or not a "
            f"number at all {split.prior.shape[-1]} {what}, so that there is nothing to weight. "
            f"Check the model's scales and the support of its noise, {advice}"
        )


def _resampled(
    state: SMCState, log_weights: Tensor, beta: Tensor, active: Tensor, rng: torch.Generator
) -> SMCState:
    """Equally weighted particles at ``beta`` in those populations that are ``active``."""
    particles, weights = state.particles, log_weights.softmax(-1)
    stay = torch.arange(log_weights.shape[-1], device=log_weights.device)
    order = torch.where(active[..., None], systematic(log_weights, rng), stay)
    split = Split(*(_take(part, order) for part in state.split))
    log_prob, gradient = temper(split, beta[..., None])
    particles = particles._replace(
        position=_take(state.position, order),
        log_prob=log_prob,
        gradient=gradient,
        inverse_mass=_learnt_masses(particles, weights, order, active),
    )
    return state._replace(particles=particles, split=split, beta=beta)


def _evaluated(log_density: Bridge, state: SMCState, moving: Tensor) -> SMCState:
    """With the gradients of a bridge at the temperature that ``moving`` populations are at."""
    if not bool(moving.any()):
        return state
    where = moving[..., None].expand(state.log_prob.shape)
    tempered = Tempered(log_density, state.beta[..., None], where)
    log_prob, gradient = tempered.value_and_grad(state.position)
    split = chosen(where, tempered.last, state.split)
    particles = state.particles._replace(
        log_prob=torch.where(where, log_prob, state.particles.log_prob),
        gradient=torch.where(where[..., None], gradient, state.particles.gradient),
    )
    return state._replace(particles=particles, split=split)


def _learnt_masses(particles: HMCState, weights: Tensor, order: Tensor, active: Tensor) -> Tensor:
    """Variances of the weighted particles, or covariances of resampled ones; if ``active``.

    Each half of the particles takes its covariance from the other half. A covariance that a
    particle had helped to fit would hold it back: the tempered law would not be left as it is.
    """
    position, before = particles.position, particles.inverse_mass
    if not isinstance(particles.variance, PooledCovariance):
        weights = weights[..., None].to(position)
        centred = position - (weights * position).sum(-2, keepdim=True)
        variance = (weights * centred.square()).sum(-2, keepdim=True)
        learnt = torch.maximum(variance, _NARROWEST * before)
        return torch.where(active[..., None, None], learnt, before)
    halves = _take(position, order).unflatten(-2, (2, -1))
    centred = (halves - halves.mean(-2, keepdim=True)).flip(-3)
    if not is_dense(before):
        before = torch.diag_embed(before).expand(*before.shape[:-2], 2, -1, -1)
    variance = torch.maximum(
        centred.square().mean(-2, keepdim=True), _NARROWEST * variances(before)
    )
    effective = 0.5 / weights.square().sum(-1, keepdim=True)
    kept = effective / (effective + centred.shape[-1])
    learnt = correlated(variance, centred.mT @ centred, kept)
    return torch.where(active[..., None, None, None], learnt, before)


def _distinct_fraction(position: Tensor, log_weights: Tensor) -> Tensor:
    """Effective fraction of the particles with all copies of one, which are neighbours, as one."""
    new = (position[..., 1:, :] != position[..., :-1, :]).any(-1)
    groups = torch.nn.functional.pad(new.long().cumsum(-1), (1, 0))
    weights = log_weights.softmax(-1)
    merged = torch.zeros_like(weights).scatter_add_(-1, groups, weights)
    return 1.0 / merged.square().sum(-1) / weights.shape[-1]


def _take(values: Tensor, order: Tensor) -> Tensor:
    """Particles of the given numbers; values are ``(*batch, N)`` or ``(*batch, N, n)``."""
    if values.ndim == order.ndim:
        return values.gather(-1, order)
    return values.gather(-2, order[..., None].expand(*order.shape, values.shape[-1]))


def _correlation(before: Tensor, after: Tensor) -> Tensor:
    """Largest correlation over coordinates between two positions of each particle."""
    before, after = (part - part.mean(-2, keepdim=True) for part in (before, after))
    lengths = before.square().sum(-2) * after.square().sum(-2)
    products = (before * after).sum(-2)
    return (products / lengths.sqrt().clamp(min=torch.finfo(lengths.dtype).tiny)).amax(-1)
