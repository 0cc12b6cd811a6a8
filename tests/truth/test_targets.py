"""Samplers on densities that are hard in known ways; what must fail there, fails.

False-alarm rate of every check: 1e-6.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.inference import (
    HMC,
    MALA,
    METHODS,
    NUTS,
    SMC,
    ChEES,
    ParallelTempering,
    Population,
    Sampler,
    run_sampler,
)
from bayesgen.inference.checks import check_method
from bayesgen.inference.targets import Banana, Funnel, GaussianTarget, MixtureTarget, Target

TARGETS: dict[str, Target] = {
    "gaussian": GaussianTarget.with_condition(5, 100.0),
    "banana": Banana(),
    "funnel": Funnel(),
    "mixture": MixtureTarget.pair(distance=3.0, weight=0.3),
}


@pytest.mark.parametrize("name", TARGETS)
def test_gradients_are_those_of_the_log_density(name: str, rng: torch.Generator) -> None:
    target = TARGETS[name]
    v = target.starts(5, rng)
    value, gradient = target.value_and_grad(v)
    step = 1e-6
    for i in range(target.num_dims):
        shift = torch.zeros(target.num_dims, dtype=torch.float64)
        shift[i] = step
        difference = (target.log_prob(v + shift) - target.log_prob(v - shift)) / (2 * step)
        torch.testing.assert_close(gradient[:, i], difference, rtol=1e-5, atol=1e-6)
    parts = target.split(v)
    torch.testing.assert_close(parts.prior + parts.likelihood, value)
    torch.testing.assert_close(parts.prior_gradient + parts.likelihood_gradient, gradient)


@pytest.mark.parametrize("name", TARGETS)
def test_moments_are_those_of_the_log_density(name: str) -> None:
    """By importance sampling from a Student-t law, whose tails are wider than all of them."""
    target, rng = TARGETS[name], torch.Generator().manual_seed(0)
    n, num = target.num_dims, 400_000
    factor = 1.5 * torch.linalg.cholesky(target.covariance)
    noise = torch.randn(num, n, generator=rng, dtype=torch.float64)
    chi = torch.randn(num, 5, generator=rng, dtype=torch.float64).square().sum(-1) / 5
    t = noise / chi[:, None].sqrt()
    v = target.mean + t @ factor.T
    log_weight = target.log_prob(v) + 0.5 * (5 + n) * (1 + t.square().sum(-1) / 5).log()
    weight = log_weight.softmax(0)
    centred = v - target.mean
    for values, truth in (
        (centred, torch.zeros(n, dtype=torch.float64)),
        (centred[:, :, None] * centred[:, None, :], target.covariance),
    ):
        rows = (values - truth).flatten(1)
        estimate = weight @ rows
        error = (weight.square() @ (rows - estimate).square()).sqrt()
        assert float((estimate / error).abs().max()) < 5.5


# Settings and budgets under which each sampler is right; one that is not here fails the suite.
HARD: dict[str, tuple[Sampler | Population, dict[str, int]]] = {
    "hmc": (HMC(trajectory=6.0, target_acceptance=0.9), {"draws": 500, "warmup": 400}),
    "nuts": (NUTS(target_acceptance=0.9, max_depth=6), {"draws": 150, "warmup": 250}),
    "chees": (ChEES(target_acceptance=0.8), {"draws": 400, "warmup": 400}),
    "mala": (MALA(), {"draws": 4000, "warmup": 400}),
    "pt": (ParallelTempering(replicas=5, max_steps=8), {"draws": 400, "warmup": 200}),
    "smc": (SMC(particles=512), {"draws": 512}),
}
# Random walks and their like need more draws there than a test can afford.
SLOW = ["pcn", "pmala"]
# What needs a Pyro model, or another sampler, has tests of its own.
ELSEWHERE = ["gibbs", "dwls", "neutra"]


def some_slow(*quick: str) -> list[Any]:
    """All samplers, those that are not quick marked as slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in HARD]


def test_every_exact_sampler_is_listed() -> None:
    exact = {n for n, cls in METHODS.items() if getattr(cls, "exact", False)}
    assert exact == set(HARD) | set(SLOW) | set(ELSEWHERE)


@pytest.mark.parametrize("sampler", some_slow("nuts", "smc"))
def test_banana(sampler: str) -> None:
    method, budget = HARD[sampler]
    if sampler == "pt":
        # Its steps are short, and v_2^2 has the tails of a fourth power of a normal variable: means
        # of few independent draws are too skewed for normal standard errors.
        budget = budget | {"draws": 1600}
    check_method(method, Banana(), **budget).raise_if_failed()


@pytest.mark.parametrize("sampler", some_slow("hmc", "smc"))
def test_funnel(sampler: str) -> None:
    method, budget = HARD[sampler]
    check_method(method, Funnel(), **budget).raise_if_failed()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", sorted(set(HARD) - {"smc"}))
def test_fifty_dimensions_of_condition_1000(sampler: str) -> None:
    method, budget = HARD[sampler]
    target = GaussianTarget.with_condition(50, 1000.0)
    check_method(method, target, **budget).raise_if_failed()


@pytest.mark.parametrize("sampler", ["smc", "pt"])
def test_tempering_finds_the_weights_of_separate_modes(sampler: str) -> None:
    method, budget = HARD[sampler]
    target = MixtureTarget.pair(distance=12.0, weight=0.3)
    method = ParallelTempering(replicas=8, max_steps=8) if sampler == "pt" else method
    check_method(method, target, **budget).raise_if_failed()


def test_local_moves_do_not_find_the_weights_of_separate_modes() -> None:
    """The control: HMC stays in the mode it began in, and the check sees it."""
    target = MixtureTarget.pair(distance=12.0, weight=0.3)
    rng = torch.Generator().manual_seed(0)
    start: Tensor = target.centres[torch.arange(64) % 2]
    run = run_sampler(HMC(), target, start, rng, draws=200, warmup=200)
    left = (run.position[..., 0] < 0).double().mean()
    assert abs(float(left) - 0.5) < 0.05
