"""Applications of a kernel leave the joint law of unknowns and data as it is (Geweke 2004).

Problems are drawn from the prior, z and then y given z; the kernel moves z given y, three times,
with settings that do not depend on z. Whatever is computed of (z, y) has the same expectation
before and after, which their differences show to a precision that no run of chains reaches.
False-alarm rate of every check: 1e-6 for each of the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import LogDensity
from bayesgen.inference import (
    HMC,
    MALA,
    METHODS,
    NUTS,
    PCN,
    PMALA,
    ChEES,
    Gibbs,
    ParallelTempering,
    Sampler,
    chees,
    gibbs,
    parallel_tempering,
    particle_moves,
)
from bayesgen.inference.gaussian_draws import laplace_variances
from bayesgen.inference.hmc import HMCInfo, HMCState, Proposal, hamiltonian_init, metropolis
from bayesgen.inference.parallel_tempering import PTState
from bayesgen.inference.particle_moves import KERNELS as MOVES
from bayesgen.inference.standardised import Standardised
from bayesgen.inference.tempering import Tempered as TemperedLaw
from bayesgen.inference.tempering import swap_ratios, temper
from bayesgen.types import Density, Split

PROBLEMS = 100_000
float64 = torch.float64

# Every sampler with fixed settings, far from both no move and no acceptance.
KERNELS: dict[str, Sampler] = {
    "hmc": HMC(step_size=0.4),
    "hmc, rotating": HMC(step_size=0.4, splitting="prior"),
    "nuts": NUTS(step_size=0.4, max_depth=3),
    "mala": MALA(step_size=0.5),
    "pcn": PCN(step_size=0.5),
    "pmala": PMALA(step_size=0.5),
    "chees": ChEES(step_size=0.4, trajectory=1.5),
}
# Samplers of which a chain is more than a point, in tests of their own.
OTHERS = {"gibbs", "pt"}
# Samplers that wrap another one, and what shows that they are right instead.
ELSEWHERE = {
    "dwls": "is the sampler that it wraps, on another model (test_dwls.py)",
    "neutra": "is the sampler that it wraps, in other coordinates (test_neutra.py)",
}


def bent(z: Tensor) -> Tensor:
    """A generator that is not linear."""
    return torch.stack([z[..., 0] + 0.3 * z[..., 1] ** 2, torch.tanh(2 * z[..., 1])], -1)


class Joint:
    """Posteriors of all problems, z given y, taken apart into prior and likelihood."""

    num_dims, scale = 2, 1.0

    def __init__(self, y: Tensor) -> None:
        self.y = y
        self.normal_prior = torch.zeros(2, dtype=float64), torch.ones(2, dtype=float64)

    def split(self, v: Tensor) -> Split:
        data = self.y.reshape(len(self.y), *(1,) * (v.ndim - 2), 2)
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            likelihood = -0.5 * ((bent(v) - data) / 0.3).square().sum(-1)
            (gradient,) = torch.autograd.grad(likelihood.sum(), v)
        v = v.detach()
        return Split(-0.5 * v.square().sum(-1), likelihood.detach(), -v, gradient)

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        parts = self.split(v)
        gradient = parts.prior_gradient + parts.likelihood_gradient
        return parts.prior + parts.likelihood, gradient

    def prior_draws(self, num: int, rng: torch.Generator) -> Tensor:
        return torch.randn(len(self.y), num, 2, generator=rng, dtype=float64)


def problems(sigma: float = 0.3, num: int = PROBLEMS) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(num, 1, 2, generator=rng, dtype=float64)
    noise = torch.randn(num, 2, generator=rng, dtype=float64)
    return z, bent(z[:, 0]) + sigma * noise


def statistics(z: Tensor, y: Tensor) -> Tensor:
    """Moments of z, and how it goes with the data, ``(problems, statistics)``."""
    residual = y - bent(z)
    return torch.cat([z, z**2, z**4, z * y, residual**2, z[:, :1] * z[:, 1:]], -1)


def compared(before: Tensor, after: Tensor, y: Tensor) -> tuple[float, float]:
    """Largest z-score of all statistics, and the share of points that moved."""
    score = largest_score(statistics(after, y) - statistics(before, y))
    return score, float((after != before).any(-1).double().mean())


def largest_score(change: Tensor) -> float:
    """Largest z-score of mean changes, of ``(problems, statistics)``."""
    return float((change.mean(0) / (change.std(0) / len(change) ** 0.5)).abs().max())


def worst(kernel: Any, steps: int = 3) -> tuple[float, float]:
    """`compared` after some steps."""
    z, y = problems()
    density = Standardised(Joint(y))
    # ChEES wants two chains, which do not know of each other unless it adapts.
    state = kernel.init(density, z.expand(-1, 1 + isinstance(kernel, ChEES), -1).contiguous())
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        state, _ = kernel.step(density, state, rng)
    return compared(z[:, 0], state.position[:, 0], y)


def test_every_exact_sampler_is_listed() -> None:
    exact = {n for n, cls in METHODS.items() if issubclass(cls, Sampler) and cls.exact}
    assert exact == {name for name in KERNELS if name in METHODS} | OTHERS | set(ELSEWHERE)


@pytest.mark.parametrize("name", KERNELS)
def test_the_joint_law_stays(name: str) -> None:
    score, moved = worst(KERNELS[name])
    assert score < 5.3 and moved > 0.3


# ------------------------------------------------------------------------- parallel tempering


def tempered_draws(y: Tensor, beta: float, rng: torch.Generator) -> Tensor:
    """Draws of prior times likelihood to the power beta, by rejection, ``(problems, 2)``."""
    z, left = torch.full_like(y, torch.nan), torch.arange(len(y))
    while len(left):
        # The fewer are left the rarer are their draws.
        tries = max(1, min(10**5 // len(left), 10**4))
        drawn = torch.randn(len(left), tries, 2, generator=rng, dtype=float64)
        misfit = ((bent(drawn) - y[left, None]) / 0.3).square().sum(-1)
        kept = torch.rand(misfit.shape, generator=rng).log() < -0.5 * beta * misfit
        first = kept.int().argmax(-1)
        found = kept.any(-1)
        z[left[found]] = drawn[found, first[found]]
        left = left[~found]
    return z


def worst_of_replicas(steps: int = 3) -> tuple[float, float]:
    """As `worst`, of the posterior's replica above two that begin with their own laws."""
    z, y = problems()
    density, rng = Standardised(Joint(y)), torch.Generator().manual_seed(1)
    kernel, low = ParallelTempering(replicas=3, trajectory=1.0), 0.2
    start = torch.stack([tempered_draws(y, low, rng).unsqueeze(1), z], 1)
    beta = torch.tensor([0.0, low, 1.0], dtype=float64).expand(len(y), 3)
    split = density.split(start)
    log_prob, gradient = temper(split, beta[..., 1:, None])
    state: PTState = kernel.init(density, z)
    step = torch.full_like(state.replicas.step_size, 0.4)
    replicas = state.replicas._replace(
        position=start, log_prob=log_prob, gradient=gradient, step_size=step
    )
    state = state._replace(replicas=replicas, split=split, beta=beta)
    for _ in range(steps):
        state, _ = kernel.step(density, state, rng)
    return compared(z[:, 0], state.position[:, 0], y)


def test_replicas_and_their_swaps_leave_the_joint_law(monkeypatch: pytest.MonkeyPatch) -> None:
    score, moved = worst_of_replicas()
    assert score < 5.3 and moved > 0.3

    def hasty(likelihood: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        return swap_ratios(0.7 * likelihood, beta)

    monkeypatch.setattr(parallel_tempering, "swap_ratios", hasty)
    assert worst_of_replicas()[0] > 8


# ------------------------------------------------------------------------------ SMC's moves


def worst_of_moves(name: str, step: float, beta: float, moved_at: float) -> tuple[float, float]:
    """As `worst`, of one particle of each population after one move at a temperature.

    The other particles are draws from the prior. With noise of standard deviation sigma the
    posterior is that of sigma / sqrt(beta) whose likelihood counts to the power beta.
    """
    z, y = problems(0.3 * beta**-0.5, PROBLEMS // 4)
    density, rng = Standardised(Joint(y)), torch.Generator().manual_seed(1)
    tempered = TemperedLaw(density, torch.tensor(moved_at, dtype=float64))
    start = torch.cat([z, density.prior_draws(7, rng)], 1)
    particles, split = hamiltonian_init(tempered, start, step, 0.8), density.split(start)
    particles, _, _ = MOVES[name].move(tempered, particles, split, rng, 4)
    return compared(z[:, 0], particles.position[:, 0], y)


@pytest.mark.parametrize(("name", "step"), [("hmc", 0.4), ("pcn", 0.5)])
def test_moves_of_particles_leave_the_joint_law(
    name: str, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, moved = worst_of_moves(name, step, 0.4, 0.4)
    assert score < 5.3 and moved > 0.3
    # Mutants: another temperature, and a proposal whose ratio is left out.
    assert worst_of_moves(name, step, 0.4, 0.6)[0] > 8
    if name == "pcn":
        monkeypatch.setattr(particle_moves, "_student", lambda distance, n: 0 * distance[..., 0])
        assert worst_of_moves(name, step, 0.4, 0.4)[0] > 8


# ------------------------------------------------------------------------------------- Gibbs


def deviating(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    u = pyro.sample("u", dist.Laplace(torch.zeros_like(y), 0.5).to_event(1))
    pyro.sample("y", dist.Normal(bent(z) + u, 0.3).to_event(1), obs=y)


def posterior_draws(y: Tensor, rng: torch.Generator) -> Tensor:
    """Draws of z and u given data, by rejection, ``(draws, 4)``: about 40 000."""
    z = torch.randn(10**6, 2, generator=rng, dtype=float64)
    u = torch.empty_like(z).exponential_(2.0, generator=rng)
    u = torch.where(torch.rand(u.shape, generator=rng) < 0.5, u, -u)
    misfit = ((bent(z) + u - y) / 0.3).square().sum(-1)
    kept = torch.rand(misfit.shape, generator=rng).log() < -0.5 * misfit
    return torch.cat([z, u], -1)[kept]


def worst_of_blocks(collapsed: bool) -> tuple[float, float]:
    """As `worst`, of z and a deviation u that is drawn exactly; all for the same data."""
    y, rng = torch.tensor([0.5, -0.4], dtype=float64), torch.Generator().manual_seed(0)
    density, start = LogDensity(deviating, y), posterior_draws(y, rng)
    kernel = Gibbs(sampler=HMC(step_size=0.4, max_steps=4), collapsed=collapsed)
    state = kernel.init(density, start)
    for _ in range(2):
        state, _ = kernel.step(density, state, rng)

    def both(v: Tensor) -> Tensor:
        z, u = v.split(2, -1)
        return torch.cat([statistics(z, y - u), statistics(u, y.expand_as(u))], -1)

    after = state.position
    moved = (after[:, :2] != start[:, :2]).any(-1).double().mean()
    return largest_score(both(after) - both(start)), float(moved)


@pytest.mark.parametrize("collapsed", [True, False])
def test_gaussian_blocks_leave_the_joint_law(
    collapsed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, moved = worst_of_blocks(collapsed)
    assert score < 5.3 and moved > 0.3
    monkeypatch.setattr(gibbs, "laplace_variances", lambda c, rng: laplace_variances(1.5 * c, rng))
    assert worst_of_blocks(collapsed)[0] > 8


# ------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class WithoutAccept(MALA):
    """Keeps proposals that were not accepted."""

    name = "mutant"

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, HMCInfo]:
        size = state.step_size
        noise = torch.randn(state.position.shape, generator=rng, dtype=state.position.dtype)
        position = state.position + 0.5 * size**2 * state.gradient + size * noise
        log_prob, gradient = log_density.value_and_grad(position)
        _, info = super().step(log_density, state, rng)
        return state._replace(position=position, log_prob=log_prob, gradient=gradient), info


class Tempered:
    """A density whose likelihood counts nine tenths."""

    def __init__(self, density: Any) -> None:
        self.density, self.num_dims = density, density.num_dims
        self.takes_where = False

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        parts = self.density.split(v)
        gradient = parts.prior_gradient + 0.9 * parts.likelihood_gradient
        return parts.prior + 0.9 * parts.likelihood, gradient


@dataclass(frozen=True)
class WrongLikelihood(HMC):
    """Samples another noise level than the model has."""

    name = "mutant"

    def init(self, log_density: Density, position: Tensor) -> HMCState:
        return super().init(Tempered(log_density), position)

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, HMCInfo]:
        return super().step(Tempered(log_density), state, rng)


def test_a_missing_accept_step_is_seen() -> None:
    assert worst(WithoutAccept(step_size=0.5))[0] > 8


def test_a_missing_accept_step_of_several_chains_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(
        state: HMCState, proposal: Proposal, rng: torch.Generator
    ) -> tuple[HMCState, HMCInfo]:
        return metropolis(state, proposal._replace(change=0 * proposal.change), rng)

    monkeypatch.setattr(chees, "metropolis", always)
    assert worst(ChEES(step_size=0.4, trajectory=1.5))[0] > 8


def test_a_wrong_noise_level_is_seen() -> None:
    assert worst(WrongLikelihood(step_size=0.4))[0] > 8
