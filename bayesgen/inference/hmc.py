"""Hamiltonian Monte Carlo, all chains of all problems in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from bayesgen.errors import OptionError, unknown_option
from bayesgen.inference.adaptation import (
    DualAveraging,
    PooledCovariance,
    PooledVariance,
    Schedule,
)
from bayesgen.inference.base import Sampler
from bayesgen.inference.leapfrog import Phase, choose, integrator
from bayesgen.inference.masses import is_dense, mean_log, momentum_of, velocity
from bayesgen.types import Density, check_count, check_positive

# An energy error beyond this says that the integrator has left the true trajectory (Betancourt
# 2017, section 6.2); it is Stan's threshold.
DIVERGENCE = 1000.0
# Coordinates up to which a product with their covariance costs little beside a gradient.
MOST_DENSE = 256

Splitting = Literal["none", "prior"]


class HMCState(NamedTuple):
    """Where the chains are, and what has been learnt of the target.

    Attributes
    ----------
    position, log_prob, gradient
        Current points ``(*problems, chains, num_dims)``, their log density and its gradient.
    step_size
        ``(*problems, 1, 1)``; one for each chain, ``(*problems, chains, 1)``, until warm-up has
        found the typical set.
    inverse_mass
        Inverse mass matrix, an estimate of the posterior covariance, or its diagonal; see
        `bayesgen.inference.masses`.
    averaging, variance
        The running estimates of warm-up.
    prior
        Mean and precision of the normal prior that trajectories follow exactly; they broadcast
        against points and are 0 where a coordinate has no such prior. None if there is no part of
        the log density that is treated apart.
    """

    position: Tensor
    log_prob: Tensor
    gradient: Tensor
    step_size: Tensor
    inverse_mass: Tensor
    averaging: DualAveraging
    variance: PooledVariance | PooledCovariance
    prior: tuple[Tensor, Tensor] | None = None


class HMCInfo(NamedTuple):
    """What is stored with every draw; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    acceptance_rate
        Probability with which the proposal was accepted.
    diverging
        Whether the trajectory's energy error exceeded 1000 or was not finite.
    energy
        Potential plus kinetic energy at the start of the trajectory.
    log_prob
        Log density after the step.
    step_size, n_steps
        Leapfrog step size and number of leapfrog steps.
    """

    acceptance_rate: Tensor
    diverging: Tensor
    energy: Tensor
    log_prob: Tensor
    step_size: Tensor
    n_steps: Tensor


class Proposal(NamedTuple):
    """The end of a trajectory.

    Attributes
    ----------
    end
        Its last point.
    energy
        Potential plus kinetic energy at its start.
    change
        Energy lost on the way, the logarithm of the Metropolis ratio; minus infinity if the energy
        at the end is not finite.
    n_steps
        Number of leapfrog steps.
    """

    end: Phase
    energy: Tensor
    change: Tensor
    n_steps: Tensor

    @classmethod
    def of(cls, state: HMCState, momentum: Tensor, end: Phase, n_steps: int | Tensor) -> Proposal:
        """The end of a trajectory that began at ``state`` with that momentum."""
        energy = _kinetic(momentum, state) - state.log_prob
        change = energy - (_kinetic(end.momentum, state) - end.log_prob)
        change = torch.where(torch.isfinite(change), change, -math.inf)
        n_steps = torch.as_tensor(n_steps, device=change.device).expand_as(change)
        return cls(end, energy, change, n_steps)


class Accepting(Protocol):
    """An info that warm-up can learn from."""

    @property
    def acceptance_rate(self) -> Tensor: ...


@dataclass(frozen=True)
class HMC(Sampler):
    """Hamiltonian Monte Carlo with jittered trajectories.

    Parameters
    ----------
    trajectory
        Mean integration time in units of the posterior standard deviations. The default pi/2
        carries an independent Gaussian to a fresh draw; strongly correlated posteriors gain from
        more. Each trajectory takes a uniformly distributed fraction between 0 and 2 of it, so
        that no frequency resonates. The fraction is the same for all problems of a batch, which
        take as many leapfrog steps as their own step sizes ask for.
    target_acceptance
        Mean acceptance that warm-up tunes the step size to (0.8, as Stan: smaller is faster on
        benign posteriors, larger is safer on curved ones).
    step_size
        First step size, or the fixed one if there is no warm-up; by default found by doubling or
        halving until the acceptance of one step crosses the target.
    max_steps
        Largest number of leapfrog steps a trajectory may take.
    adapt_mass
        Whether warm-up estimates the posterior variances, pooled over chains.
    dense_mass
        Whether it estimates correlations too (default), which are shrunk as far as so few draws
        ask for. Above 256 coordinates, and with ``splitting="prior"``, it never does.
    splitting
        What the integrator leaves to an exact solution: ``"none"``, or ``"prior"``, under which
        coordinates with a normal prior rotate about its mean and only the rest of the log density
        kicks them. With many coordinates of which the data determine few, the step size then
        does not shrink with their number. The default is the leapfrog method, whose step size
        needs no prior structure.

    References
    ----------
    Neal (2011), *MCMC using Hamiltonian dynamics*; Hoffman and Gelman (2014), section 3.2 (step
    size); Betancourt (2017), section 6.2 (divergences); Beskos, Pinski, Sanz-Serna and Stuart
    (2011) and Shahbaba, Lan, Johnson and Neal (2014), *Split Hamiltonian Monte Carlo* (splitting).

    Examples
    --------
    >>> HMC(target_acceptance=0.9)
    HMC(trajectory=1.5707963267948966, target_acceptance=0.9, step_size=None, max_steps=128, \
adapt_mass=True, dense_mass=True, splitting='none')
    """

    name = "hmc"
    reference = "Neal (2011), MCMC using Hamiltonian dynamics"

    trajectory: float = math.pi / 2
    target_acceptance: float = 0.8
    step_size: float | None = None
    max_steps: int = 128
    adapt_mass: bool = True
    dense_mass: bool = True
    splitting: Splitting = "none"

    def __post_init__(self) -> None:
        check_positive("trajectory", self.trajectory)
        check_target(self.target_acceptance)
        check_positive("step_size", self.step_size, allow_none=True)
        check_count("max_steps", self.max_steps)
        if self.splitting not in get_args(Splitting):
            allowed = get_args(Splitting)
            raise OptionError(unknown_option("splitting", str(self.splitting), allowed))

    def init(self, log_density: Density, position: Tensor) -> HMCState:
        """First state; evaluates the density and, unless it is given, finds a step size."""
        return hamiltonian_init(
            log_density,
            position,
            self.step_size,
            self.target_acceptance,
            self.splitting,
            dense=self.dense_mass,
        )

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, HMCInfo]:
        """One trajectory and its Metropolis test."""
        fraction = 2.0 * float(torch.rand((), generator=rng, device=rng.device))
        num_steps = count_steps(state, fraction * self.trajectory, self.max_steps)
        return hamiltonian_step(log_density, state, rng, num_steps)

    def combine(self, earlier: HMCInfo, later: HMCInfo) -> HMCInfo:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: HMCState, info: HMCInfo, iteration: int, warmup: int) -> HMCState:
        """Tune the step size and, at the ends of windows, the mass matrix."""
        return hamiltonian_adapt(
            state, info, iteration, warmup, self.target_acceptance, self.adapt_mass
        )


def check_target(value: float) -> None:
    """Refuse an acceptance target outside (0, 1)."""
    if not isinstance(value, float) or not 0.0 < value < 1.0:
        raise OptionError(f"target_acceptance: got {value!r}; expected a number between 0 and 1")


def hamiltonian_init(
    log_density: Density,
    position: Tensor,
    step_size: float | None,
    target: float,
    splitting: Splitting = "none",
    *,
    dense: bool = False,
) -> HMCState:
    """State at ``position`` with unit masses, of which warm-up may learn dense ones."""
    log_prob, gradient = log_density.value_and_grad(position)
    inverse_mass = torch.ones_like(position[..., :1, :])
    # The search of warm-up gives every chain its own step; a step that is given is for all.
    one = position[..., :1] if step_size is None else position[..., :1, :1]
    step = torch.full_like(one, step_size or 0.1)
    # Rotations about the prior are one coordinate's each.
    dense = dense and splitting == "none" and 1 < position.shape[-1] <= MOST_DENSE
    scales = PooledCovariance if dense else PooledVariance
    averaging, variance = DualAveraging.start(step), scales.start(position)
    prior = _normal_prior(log_density, position) if splitting == "prior" else None
    state = HMCState(position, log_prob, gradient, step, inverse_mass, averaging, variance, prior)
    return state if step_size else _with_step(state, _reasonable_step(log_density, state, target))


def hamiltonian_step(
    log_density: Density, state: HMCState, rng: torch.Generator, num_steps: int | Tensor
) -> tuple[HMCState, HMCInfo]:
    """Fresh momenta, leapfrog steps, Metropolis test.

    Parameters
    ----------
    num_steps
        Leapfrog steps of every trajectory, or those of each problem, ``(*problems,)``. They may
        depend on chance and on what warm-up has learnt, never on the position.
    """
    return metropolis(state, propose(log_density, state, rng, num_steps), rng)


def propose(
    log_density: Density, state: HMCState, rng: torch.Generator, num_steps: int | Tensor
) -> Proposal:
    """Fresh momenta and a trajectory; see `hamiltonian_step`."""
    momentum = fresh_momentum(state, rng)
    counts = num_steps[..., None] if isinstance(num_steps, Tensor) else num_steps
    end = _leapfrog(log_density, state, momentum, counts)
    return Proposal.of(state, momentum, end, counts)


def metropolis(
    state: HMCState, proposal: Proposal, rng: torch.Generator
) -> tuple[HMCState, HMCInfo]:
    """Take each chain's proposal with the probability that leaves the density unchanged."""
    accepted = _like(torch.rand, proposal.change, rng).log() < proposal.change
    position, log_prob, gradient = choose(accepted, proposal.end[:3], state[:3])
    info = HMCInfo(
        acceptance_rate=proposal.change.clamp(max=0.0).exp(),
        diverging=proposal.change < -DIVERGENCE,
        energy=proposal.energy,
        log_prob=log_prob,
        step_size=state.step_size[..., 0].expand_as(log_prob),
        n_steps=proposal.n_steps,
    )
    return state._replace(position=position, log_prob=log_prob, gradient=gradient), info


def hamiltonian_adapt(
    state: HMCState,
    info: Accepting,
    iteration: int,
    warmup: int,
    target: float,
    adapt_mass: bool,
    pool: Callable[[Tensor], Tensor] | None = None,
) -> HMCState:
    """One update of dual averaging; at the ends of windows new masses and a fresh start of it.

    ``pool`` averages acceptances ``(*problems, chains, 1)`` over chains; by default their
    arithmetic mean.
    """
    schedule = Schedule.of(warmup)
    acceptance = info.acceptance_rate[..., None]
    if state.step_size.shape != acceptance.shape:
        acceptance = pool(acceptance) if pool else acceptance.mean(-2, keepdim=True)
    averaging = state.averaging.update(acceptance, target, _longest_step(state))
    state = state._replace(averaging=averaging, step_size=averaging.log_step.exp())
    if iteration >= schedule.search and adapt_mass:
        state = state._replace(variance=state.variance.update(state.position))
    if iteration == schedule.search - 1:
        state = _with_step(state, averaging.log_average.mean(-2, keepdim=True).exp())
    elif iteration in schedule.window_ends and adapt_mass:
        new = state.variance.estimate()
        # Keep the step's length in the posterior's space: the masses change its units.
        units = (0.5 * (mean_log(state.inverse_mass) - mean_log(new))).exp()
        state = state._replace(inverse_mass=new, variance=state.variance.start(state.position))
        state = _with_step(state, averaging.log_average.exp() * units)
    if iteration == warmup - 1:
        step = state.averaging.log_average.mean(-2, keepdim=True).exp()
        state = state._replace(step_size=step)
    return state


def count_steps(state: HMCState, length: float | Tensor, max_steps: int) -> Tensor:
    """Leapfrog steps ``(*problems,)`` that trajectories of a length, or of each problem's, take."""
    # While chains have their own steps, a problem's typical one decides for all of them.
    typical = state.step_size.log().mean((-2, -1)).exp()
    return (length / typical).ceil().clamp(1, max_steps).long()


def fresh_momentum(state: HMCState, rng: torch.Generator) -> Tensor:
    """Momenta from their normal distribution, whose precision is the inverse mass."""
    return momentum_of(_like(torch.randn, state.position, rng), state.inverse_mass)


def _normal_prior(log_density: Density, position: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and precision of the coordinates with a normal prior; zeros if nothing is known."""
    zero = position.new_zeros(position.shape[-1])
    mean, precision = getattr(log_density, "normal_prior", (zero, zero))
    return mean.to(position), precision.to(position)


def _with_step(state: HMCState, step: Tensor) -> HMCState:
    step = torch.minimum(step, _longest_step(state))
    return state._replace(step_size=step, averaging=DualAveraging.start(step))


def _longest_step(state: HMCState) -> Tensor:
    """Steps ``(*problems, 1, 1)`` up to which a longer one carries further.

    A quarter turn of the fastest rotation, if there are any: it ends at a fresh draw of the prior.
    """
    if state.prior is None:
        return torch.full_like(state.inverse_mass[..., :1, :1], math.inf)
    fastest = (state.prior[1] * state.inverse_mass).amax(-1, keepdim=True).sqrt()
    return 0.5 * math.pi / fastest


def _leapfrog(
    log_density: Density, state: HMCState, momentum: Tensor, num_steps: int | Tensor
) -> Phase:
    """The point after leapfrog steps, equally many or as many as ``(*problems, chains)`` says."""
    advance, now = integrator(log_density, state), Phase(*state[:3], momentum)
    counts = torch.as_tensor(num_steps, device=momentum.device).expand_as(state.log_prob)
    fewest, most = int(counts.min()), int(counts.max())
    for i in range(most):
        if i < fewest:
            now = advance(now, None)
        else:
            now = Phase(*choose(i < counts, advance(now, i < counts), now))
    return now


def _kinetic(momentum: Tensor, state: HMCState) -> Tensor:
    if is_dense(state.inverse_mass):
        return 0.5 * (momentum * velocity(momentum, state.inverse_mass)).sum(-1)
    return 0.5 * (momentum.square() * state.inverse_mass).sum(-1)


def _reasonable_step(log_density: Density, state: HMCState, target: float) -> Tensor:
    """Double or halve each chain's step until one leapfrog step crosses the target."""
    # The momenta are those of a fixed stream: the answer is a starting point, not a draw.
    rng = torch.Generator(state.position.device).manual_seed(0)
    momentum = _like(torch.randn, state.position, rng)
    longest, move = _longest_step(state), torch.zeros_like(state.step_size)
    found = torch.zeros_like(move, dtype=torch.bool)
    for _ in range(50):
        end = _leapfrog(log_density, state, momentum, 1)
        change = Proposal.of(state, momentum, end, 1).change.clamp(max=0.0)
        wanted = torch.where(change.exp()[..., None] > target, 1.0, -1.0).to(move)
        move = torch.where(found | (move * wanted < 0), 0.0, wanted)
        step = torch.minimum(state.step_size * 2.0**move, longest)
        found = step == state.step_size
        state = state._replace(step_size=step)
        if bool(found.all()):
            break
    return state.step_size


def _like(draw: object, template: Tensor, rng: torch.Generator) -> Tensor:
    """Random numbers of ``template``'s shape, drawn on the generator's device."""
    numbers: Tensor = draw(  # type: ignore[operator]
        template.shape, generator=rng, dtype=template.dtype, device=rng.device
    )
    return numbers.to(template.device)
