"""Hamiltonian Monte Carlo, all chains of all problems in one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.inference.adaptation import DualAveraging, PooledVariance, Schedule
from bayesgen.inference.base import Sampler
from bayesgen.types import Density, check_count, check_positive

# An energy error beyond this says that the integrator has left the true trajectory (Betancourt
# 2017, section 6.2); it is Stan's threshold.
DIVERGENCE = 1000.0


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
        Diagonal of the inverse mass matrix, an estimate of the posterior variances,
        ``(*problems, 1, num_dims)``.
    averaging, variance
        The running estimates of warm-up.
    """

    position: Tensor
    log_prob: Tensor
    gradient: Tensor
    step_size: Tensor
    inverse_mass: Tensor
    averaging: DualAveraging
    variance: PooledVariance


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


@dataclass(frozen=True)
class HMC(Sampler):
    """Hamiltonian Monte Carlo with jittered trajectories and a diagonal mass matrix.

    Parameters
    ----------
    trajectory
        Mean integration time in units of the posterior standard deviations. The default pi/2
        carries an independent Gaussian to a fresh draw; strongly correlated posteriors gain from
        more. Each trajectory takes a uniformly distributed fraction between 0 and 2 of it, so
        that no frequency resonates. Problems of one batch take equally many leapfrog steps, as
        many as their typical step size asks for.
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

    References
    ----------
    Neal (2011), *MCMC using Hamiltonian dynamics*; Hoffman and Gelman (2014), section 3.2 (step
    size); Betancourt (2017), section 6.2 (divergences).

    Examples
    --------
    >>> HMC(target_acceptance=0.9)
    HMC(trajectory=1.5707963267948966, target_acceptance=0.9, step_size=None, max_steps=128, \
adapt_mass=True)
    """

    name = "hmc"
    reference = "Neal (2011), MCMC using Hamiltonian dynamics"

    trajectory: float = math.pi / 2
    target_acceptance: float = 0.8
    step_size: float | None = None
    max_steps: int = 128
    adapt_mass: bool = True

    def __post_init__(self) -> None:
        check_positive("trajectory", self.trajectory)
        check_target(self.target_acceptance)
        check_positive("step_size", self.step_size, allow_none=True)
        check_count("max_steps", self.max_steps)

    def init(self, log_density: Density, position: Tensor) -> HMCState:
        """First state; evaluates the density and, unless it is given, finds a step size."""
        return hamiltonian_init(log_density, position, self.step_size, self.target_acceptance)

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, HMCInfo]:
        """One trajectory and its Metropolis test."""
        # The number of steps may depend on chance and on the step size, never on the position.
        fraction = 2.0 * float(torch.rand((), generator=rng, device=rng.device))
        typical_step = float(state.step_size.log().mean().exp())
        num_steps = math.ceil(fraction * self.trajectory / typical_step)
        return hamiltonian_step(log_density, state, rng, min(max(num_steps, 1), self.max_steps))

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
    log_density: Density, position: Tensor, step_size: float | None, target: float
) -> HMCState:
    """State at ``position`` with unit masses."""
    log_prob, gradient = log_density.value_and_grad(position)
    inverse_mass = torch.ones_like(position[..., :1, :])
    # The search of warm-up gives every chain its own step; a step that is given is for all.
    one = position[..., :1] if step_size is None else position[..., :1, :1]
    step = torch.full_like(one, step_size or 0.1)
    averaging, variance = DualAveraging.start(step), PooledVariance.start(position)
    state = HMCState(position, log_prob, gradient, step, inverse_mass, averaging, variance)
    return state if step_size else _with_step(state, _reasonable_step(log_density, state, target))


def hamiltonian_step(
    log_density: Density, state: HMCState, rng: torch.Generator, num_steps: int
) -> tuple[HMCState, HMCInfo]:
    """Fresh momenta, ``num_steps`` leapfrog steps, Metropolis test."""
    noise = _like(torch.randn, state.position, rng)
    momentum = noise / state.inverse_mass.sqrt()
    proposal = _leapfrog(log_density, state, momentum, num_steps)
    energy = _kinetic(momentum, state) - state.log_prob
    change = energy - (_kinetic(proposal[3], state) - proposal[1])
    change = torch.where(torch.isfinite(change), change, -math.inf)
    accepted = _like(torch.rand, change, rng).log() < change
    position, log_prob, gradient = (
        torch.where(accepted[..., None] if new.ndim > accepted.ndim else accepted, new, old)
        for new, old in zip(proposal[:3], state[:3], strict=True)
    )
    info = HMCInfo(
        acceptance_rate=change.clamp(max=0.0).exp(),
        diverging=change < -DIVERGENCE,
        energy=energy,
        log_prob=log_prob,
        step_size=state.step_size[..., 0].expand_as(log_prob),
        n_steps=torch.full_like(log_prob, num_steps, dtype=torch.int64),
    )
    return state._replace(position=position, log_prob=log_prob, gradient=gradient), info


def hamiltonian_adapt(
    state: HMCState, info: HMCInfo, iteration: int, warmup: int, target: float, adapt_mass: bool
) -> HMCState:
    """One update of dual averaging; at the ends of windows new masses and a fresh start of it."""
    schedule = Schedule.of(warmup)
    acceptance = info.acceptance_rate[..., None]
    if state.step_size.shape != acceptance.shape:
        acceptance = acceptance.mean(-2, keepdim=True)
    averaging = state.averaging.update(acceptance, target)
    state = state._replace(averaging=averaging, step_size=averaging.log_step.exp())
    if iteration >= schedule.search and adapt_mass:
        state = state._replace(variance=state.variance.update(state.position))
    if iteration == schedule.search - 1:
        state = _with_step(state, averaging.log_average.mean(-2, keepdim=True).exp())
    elif iteration in schedule.window_ends and adapt_mass:
        new = state.variance.estimate()
        # Keep the step's length in the posterior's space: the masses change its units.
        units = (state.inverse_mass / new).log().mean(-1, keepdim=True).mul(0.5).exp()
        state = _with_step(state, averaging.log_average.exp() * units)
        state = state._replace(inverse_mass=new, variance=PooledVariance.start(state.position))
    if iteration == warmup - 1:
        step = state.averaging.log_average.mean(-2, keepdim=True).exp()
        state = state._replace(step_size=step)
    return state


def _with_step(state: HMCState, step: Tensor) -> HMCState:
    return state._replace(step_size=step, averaging=DualAveraging.start(step))


def _leapfrog(
    log_density: Density, state: HMCState, momentum: Tensor, num_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Position, log density, gradient and momentum after ``num_steps`` leapfrog steps."""
    position, log_prob, gradient = state.position, state.log_prob, state.gradient
    step, drift = state.step_size, state.step_size * state.inverse_mass
    momentum = momentum + 0.5 * step * gradient
    for i in range(num_steps):
        position = position + drift * momentum
        log_prob, gradient = log_density.value_and_grad(position)
        momentum = momentum + (step if i < num_steps - 1 else 0.5 * step) * gradient
    return position, log_prob, gradient, momentum


def _kinetic(momentum: Tensor, state: HMCState) -> Tensor:
    return 0.5 * (momentum.square() * state.inverse_mass).sum(-1)


def _reasonable_step(log_density: Density, state: HMCState, target: float) -> Tensor:
    """Double or halve each chain's step until one leapfrog step crosses the target."""
    # The momenta are those of a fixed stream: the answer is a starting point, not a draw.
    rng = torch.Generator(state.position.device).manual_seed(0)
    momentum = _like(torch.randn, state.position, rng)
    direction = torch.zeros_like(state.step_size)
    for _ in range(50):
        _, log_prob, _, end = _leapfrog(log_density, state, momentum, 1)
        change = log_prob - _kinetic(end, state) - state.log_prob + _kinetic(momentum, state)
        change = torch.where(torch.isfinite(change), change, -math.inf).clamp(max=0.0)
        move = torch.where(change.exp()[..., None] > target, 1.0, -1.0)
        move = torch.where(direction * move < 0, 0.0, move)
        crossed = (direction * move == 0) & (direction != 0)
        if bool(crossed.all()):
            break
        direction = torch.where(direction == 0, move, direction)
        state = state._replace(step_size=state.step_size * 2.0 ** torch.where(crossed, 0.0, move))
    return state.step_size


def _like(draw: object, template: Tensor, rng: torch.Generator) -> Tensor:
    """Random numbers of ``template``'s shape, drawn on the generator's device."""
    numbers: Tensor = draw(  # type: ignore[operator]
        template.shape, generator=rng, dtype=template.dtype, device=rng.device
    )
    return numbers.to(template.device)
