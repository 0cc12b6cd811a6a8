"""Applications of a kernel leave the joint law of unknowns and data as it is (Geweke 2004).

Problems are drawn from the prior, z and then y given z; the kernel moves z given y, three times,
with settings that do not depend on z. Whatever is computed of (z, y) has the same expectation
before and after, which their differences show to a precision that no run of chains reaches.
False-alarm rate of every check: 1e-6 for each of the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.inference import HMC, MALA, METHODS, NUTS, PCN, PMALA, Sampler
from bayesgen.inference.hmc import HMCInfo, HMCState
from bayesgen.inference.standardised import Standardised
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
}
# Samplers that are not one chain alone, and what shows that they are right instead.
ELSEWHERE = {
    "dwls": "is the sampler that it wraps, on another model (test_dwls.py)",
    "neutra": "is the sampler that it wraps, in other coordinates (test_neutra.py)",
    "gibbs": "needs a Pyro model (test_gibbs.py)",
    "chees": "learns from several chains; its steps are HMC's",
    "pt": "replicas at other temperatures begin at the start too (test_parallel_tempering.py)",
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


def problems() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(PROBLEMS, 1, 2, generator=rng, dtype=float64)
    noise = torch.randn(PROBLEMS, 2, generator=rng, dtype=float64)
    return z, bent(z[:, 0]) + 0.3 * noise


def statistics(z: Tensor, y: Tensor) -> Tensor:
    """Moments of z, and how it goes with the data, ``(problems, statistics)``."""
    residual = y - bent(z)
    return torch.cat([z, z**2, z**4, z * y, residual**2, z[:, :1] * z[:, 1:]], -1)


def worst(kernel: Any, steps: int = 3) -> tuple[float, float]:
    """Largest z-score of all statistics after some steps, and the share of chains that moved."""
    z, y = problems()
    density = Standardised(Joint(y))
    state = kernel.init(density, z)
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        state, _ = kernel.step(density, state, rng)
    after = state.position[:, 0]
    change = statistics(after, y) - statistics(z[:, 0], y)
    scores = change.mean(0) / (change.std(0) / PROBLEMS**0.5)
    return float(scores.abs().max()), float((after != z[:, 0]).any(-1).double().mean())


def test_every_exact_sampler_is_listed() -> None:
    exact = {n for n, cls in METHODS.items() if issubclass(cls, Sampler) and cls.exact}
    assert exact == {name for name in KERNELS if name in METHODS} | set(ELSEWHERE)


@pytest.mark.parametrize("name", KERNELS)
def test_the_joint_law_stays(name: str) -> None:
    score, moved = worst(KERNELS[name])
    assert score < 5.3 and moved > 0.3


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


def test_a_wrong_noise_level_is_seen() -> None:
    assert worst(WrongLikelihood(step_size=0.4))[0] > 8
