"""The integrator: reversible, of second order, exact for a normal prior that is split off."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.inference import leapfrog
from bayesgen.inference.checks import GaussianTarget, moment_report
from bayesgen.inference.hmc import HMC, HMCState, Splitting, _kinetic, _leapfrog, hamiltonian_init
from bayesgen.inference.runner import run_sampler

float64 = torch.float64


class MostlyPrior:
    """n unknowns of which data determine three; the others stay N(1, 1) as they are a priori."""

    def __init__(self, num_dims: int) -> None:
        self.num_dims = num_dims
        self.normal_prior = (torch.ones(num_dims), torch.ones(num_dims))
        self.mean = torch.ones(num_dims, dtype=float64)
        self.mean[:3] = torch.tensor([0.4, 1.0, 1.6], dtype=float64)
        self.precision = torch.ones(num_dims, dtype=float64)
        self.precision[:3] = 2.5

    @property
    def covariance(self) -> Tensor:
        return torch.diag(1.0 / self.precision)

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        gradient = (self.mean - v) * self.precision
        return 0.5 * (gradient * (v - self.mean)).sum(-1), gradient

    def draws(self, num: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn(num, self.num_dims, generator=rng, dtype=float64)
        return self.mean + noise / self.precision.sqrt()


class PartlyNormal(GaussianTarget):
    """Three of five coordinates have a normal prior, on some scales of their own."""

    @property
    def normal_prior(self) -> tuple[Tensor, Tensor]:
        mean, precision = torch.zeros(2, 5, dtype=float64)
        mean[:3] = torch.tensor([0.5, -1.0, 2.0])
        precision[:3] = torch.tensor([0.05, 0.1, 0.02])
        return mean, precision


def partly_normal() -> PartlyNormal:
    target = GaussianTarget.with_condition(5, 10.0)
    return PartlyNormal(target.mean, target.covariance)


def state_of(splitting: Splitting, step: float, start: Tensor) -> HMCState:
    state = hamiltonian_init(partly_normal(), start, step, 0.8, splitting)
    return state._replace(inverse_mass=torch.linspace(0.5, 2.0, 5, dtype=float64)[None])


@pytest.mark.parametrize("splitting", ["none", "prior"])
def test_time_can_be_reversed(splitting: Splitting, rng: torch.Generator) -> None:
    target = partly_normal()
    state = state_of(splitting, 0.3, target.starts(5, rng))
    momentum = torch.randn(5, 5, generator=rng, dtype=float64)
    end = _leapfrog(target, state, momentum, 7)
    there = state._replace(position=end.position, log_prob=end.log_prob, gradient=end.gradient)
    back = _leapfrog(target, there, -end.momentum, 7)
    torch.testing.assert_close(back.position, state.position)
    torch.testing.assert_close(back.momentum, -momentum)


@pytest.mark.parametrize("splitting", ["none", "prior"])
def test_volumes_are_kept(splitting: Splitting, rng: torch.Generator) -> None:
    target = partly_normal()
    start = target.starts(1, rng)
    state = state_of(splitting, 0.7, start)

    def flow(points: Tensor) -> Tensor:
        position, momentum = points.reshape(1, 10).split(5, -1)
        moved = state._replace(position=position, gradient=target.value_and_grad(position)[1])
        end = _leapfrog(target, moved, momentum, 3)
        return torch.cat([end.position, end.momentum], -1).reshape(10)

    points = torch.randn(10, generator=rng, dtype=float64)
    jacobian = torch.autograd.functional.jacobian(flow, points)
    assert float(torch.linalg.det(jacobian).abs()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("splitting", ["none", "prior"])
def test_the_energy_error_is_of_second_order(splitting: Splitting, rng: torch.Generator) -> None:
    target = partly_normal()
    start, momentum = target.starts(50, rng), torch.randn(50, 5, generator=rng, dtype=float64)
    errors = []
    for step, count in ((0.1, 10), (0.05, 20)):
        state = state_of(splitting, step, start)
        end = _leapfrog(target, state, momentum, count)
        energies = _kinetic(end.momentum, state) - end.log_prob
        errors.append((energies - _kinetic(momentum, state) + state.log_prob).abs().mean())
    assert 3.5 < float(errors[0] / errors[1]) < 4.5


def test_the_prior_alone_is_followed_exactly(rng: torch.Generator) -> None:
    """A quarter turn in one step exchanges positions and momenta."""
    density = MostlyPrior(4)
    density.precision[:3], density.mean[:3] = 1.0, 1.0
    state = hamiltonian_init(density, density.draws(6, rng), 0.5 * math.pi, 0.8, "prior")
    momentum = torch.randn(6, 4, generator=rng, dtype=float64)
    end = _leapfrog(density, state, momentum, 1)
    torch.testing.assert_close(end.position, 1.0 + momentum)
    torch.testing.assert_close(end.momentum, 1.0 - state.position)


def test_every_row_takes_its_own_number_of_steps(rng: torch.Generator) -> None:
    target = partly_normal()
    state = state_of("prior", 0.3, target.starts(4, rng))
    momentum = torch.randn(4, 5, generator=rng, dtype=float64)
    counts = torch.tensor([0, 2, 5, 2])
    together = _leapfrog(target, state, momentum, counts)
    for i, count in enumerate(counts.tolist()):
        alone = _leapfrog(target, state, momentum, count)
        for part, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(part[i], expected[i], rtol=0, atol=0)


def acceptance(splitting: Splitting, num_dims: int, rng: torch.Generator) -> float:
    """Of stationary chains at a fixed step size."""
    density, method = MostlyPrior(num_dims), HMC(step_size=0.5, splitting=splitting)
    start = density.draws(64, rng)
    run = run_sampler(method, density, start, rng, draws=20, warmup=0)
    return float(run.stats["acceptance_rate"].mean())


def test_splitting_keeps_the_acceptance_when_dimensions_are_added(rng: torch.Generator) -> None:
    """Measured at 10, 1000 and 10000 dimensions: 0.94, 0.96, 0.95; leapfrog 0.90, 0.53, 0.15."""
    few, many = (acceptance("prior", n, rng) for n in (10, 1000))
    assert few > 0.9 and many > 0.9
    few, many = (acceptance("none", n, rng) for n in (10, 1000))
    assert few > 0.8 and many < 0.65


def test_the_step_size_grows_to_a_quarter_turn_at_most(rng: torch.Generator) -> None:
    """Under the prior alone every step is accepted, and dual averaging would never stop."""
    density = MostlyPrior(6)
    density.precision[:3], density.mean[:3] = 1.0, 1.0
    method = HMC(splitting="prior")
    run = run_sampler(method, density, density.draws(32, rng), rng, draws=200, warmup=300)
    fastest = run.state.inverse_mass.max().sqrt()
    assert float(run.state.step_size * fastest) <= 0.5 * math.pi + 1e-9
    moment_report("", run.position, density.mean, density.covariance).raise_if_failed()


# ------------------------------------------------------------------------------------- mutants


def split_report(rng: torch.Generator) -> bool:
    target = partly_normal()
    method = HMC(splitting="prior", step_size=0.8)
    run = run_sampler(method, target, target.starts(64, rng), rng, draws=400, warmup=100)
    return moment_report("", run.position, target.mean, target.covariance).passed


def test_splitting_off_the_prior_is_exact(rng: torch.Generator) -> None:
    assert split_report(rng)


def test_a_rotation_that_shrinks_volumes_is_rejected(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = leapfrog.drift

    def shrinking(state: HMCState) -> object:
        rotate = right(state)

        def wrong(position: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
            moved, turned = rotate(position, momentum)
            return moved, 0.9 * turned

        return wrong

    monkeypatch.setattr(leapfrog, "drift", shrinking)
    assert not split_report(rng)


def test_kicks_that_drag_are_rejected(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong kick costs acceptance only, unless it depends on the momentum."""
    right = leapfrog.kick

    def dragging(state: HMCState) -> object:
        kicked = right(state)
        return lambda at: kicked(at) - 0.05 * at.momentum

    monkeypatch.setattr(leapfrog, "kick", dragging)
    assert not split_report(rng)
