"""Moves of particles: started in a law, they leave it as it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.inference import particle_moves
from bayesgen.inference.checks import MethodReport, moment_report
from bayesgen.inference.hmc import HMCState, hamiltonian_init
from bayesgen.inference.particle_moves import KERNELS, Kernel, Move
from bayesgen.inference.targets import GaussianTarget
from bayesgen.inference.tempering import Tempered
from bayesgen.types import Split

TARGET = GaussianTarget.with_condition(3, 10.0)
POSTERIOR = torch.ones((), dtype=torch.float64)


def report(move: Move, step: float, moves: int = 5) -> MethodReport:
    """Moments of 64 populations of 300 particles, drawn from the target and moved."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 300, 3, generator=rng, dtype=torch.float64)
    position = TARGET.mean + noise @ torch.linalg.cholesky(TARGET.covariance).T
    tempered = Tempered(TARGET, POSTERIOR)
    particles, split = hamiltonian_init(tempered, position, step, 0.8), TARGET.split(position)
    for _ in range(moves):
        particles, split, _ = move(tempered, particles, split, rng, 4)
    assert float((particles.position == position).all(-1).double().mean()) < 0.5
    torch.testing.assert_close(split, TARGET.split(particles.position))
    return moment_report("", particles.position, TARGET.mean, TARGET.covariance)


STEPS = {"hmc": 1.2, "pcn": 0.8}


@pytest.mark.parametrize("name", KERNELS)
def test_they_leave_the_law_as_it_is(name: str) -> None:
    report(KERNELS[name].move, STEPS[name]).raise_if_failed()


def without_accept(
    tempered: Tempered, particles: HMCState, split: Split, rng: torch.Generator, count: int
) -> tuple[HMCState, Split, Tensor]:
    """A random walk that takes every proposal."""
    noise = torch.randn(particles.position.shape, generator=rng, dtype=torch.float64)
    position = particles.position + particles.step_size * noise
    log_prob, gradient = tempered.value_and_grad(position)
    moved = particles._replace(position=position, log_prob=log_prob, gradient=gradient)
    return moved, tempered.last, torch.ones(position.shape[:-2], dtype=torch.float64)


def test_moves_without_an_accept_step_are_rejected() -> None:
    assert not report(without_accept, 0.2).passed


def test_a_walk_that_forgets_its_proposal_ratio_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(particle_moves, "_student", lambda distance, n: 0.0 * distance[..., 0])
    assert not report(KERNELS["pcn"].move, 0.8).passed


def test_a_walk_with_the_wrong_noise_scale_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = particle_moves._normal
    monkeypatch.setattr(particle_moves, "_normal", lambda *args: 1.0 + normal(*args))
    assert not report(KERNELS["pcn"].move, 0.8).passed


def test_the_walk_needs_no_gradient(rng: torch.Generator) -> None:
    class Rough(GaussianTarget):
        def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
            lost = torch.full_like(v, math.nan)
            return super().split(v)._replace(prior_gradient=lost, likelihood_gradient=lost)

    target = Rough(TARGET.mean, TARGET.covariance)
    tempered, position = Tempered(target, POSTERIOR), target.prior_draws(200, rng)
    particles = hamiltonian_init(tempered, position, 0.8, 0.8)
    split = target.split(position)
    for _ in range(20):
        particles, split, _ = KERNELS["pcn"].move(tempered, particles, split, rng, 4)
    mean = particles.position.mean(0)
    assert float((mean - TARGET.mean).abs().max()) < 1.0
    assert float(particles.position.std(0).max()) < 4.0


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("num", [17, 2])
def test_few_particles_and_rows_left_out(kernel: Kernel, num: int, rng: torch.Generator) -> None:
    """Fewer particles than dimensions, an odd number of them, and populations that wait."""
    target = GaussianTarget.with_condition(30, 10.0, dtype=torch.float32)
    position = target.prior_draws(4 * num, rng).reshape(4, num, 30)
    where = (torch.arange(4) < 2)[:, None].expand(4, num)
    tempered = Tempered(target, torch.tensor(0.5), where)
    particles = hamiltonian_init(Tempered(target, torch.tensor(0.5)), position, 0.1, 0.8)
    new, split, acceptance = kernel.move(tempered, particles, target.split(position), rng, 4)
    assert new.position.dtype == acceptance.dtype == torch.float32
    assert torch.equal(new.position[2:], position[2:]) and not bool(acceptance[2:].any())
    assert bool(torch.isfinite(new.position).all() and torch.isfinite(split.likelihood).all())
    assert bool((new.position[:2] != position[:2]).any())
