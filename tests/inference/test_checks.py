"""The check of samplers must pass right ones and fail every kind of wrong one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bayesgen.errors import BayesgenError, OptionError
from bayesgen.inference import (
    HMC,
    MALA,
    METHODS,
    NUTS,
    PCN,
    PMALA,
    SMC,
    ChEES,
    NeuTra,
    ParallelTempering,
    Population,
    Sampler,
)
from bayesgen.inference.checks import GaussianTarget, check_method, moment_report
from bayesgen.inference.hmc import HMCInfo, HMCState, _kinetic, _leapfrog, _like
from bayesgen.inference.runner import run_sampler
from bayesgen.types import Density

# Guides are fitted for too few steps on purpose: draws are exact all the same.
pytestmark = pytest.mark.filterwarnings("ignore:neutra. the evidence bounds:RuntimeWarning")

# Every sampler with settings that make the checks quick. One that is missing fails the suite.
SAMPLERS: dict[str, Sampler | Population] = {
    "hmc": HMC(),
    "nuts": NUTS(max_depth=5),
    "chees": ChEES(),
    "mala": MALA(),
    "pcn": PCN(),
    "pmala": PMALA(),
    "smc": SMC(particles=256),
    "pt": ParallelTempering(replicas=6),
    "neutra": NeuTra(guide="multivariate", steps=300),
}
# Checked on a Pyro model, or together with the sampler they wrap, in tests of their own.
ELSEWHERE = {"gibbs", "dwls"}


def test_every_exact_sampler_is_checked() -> None:
    exact = {
        name for name, cls in METHODS.items() if issubclass(cls, Sampler | Population) and cls.exact
    }
    assert exact == set(SAMPLERS) | ELSEWHERE


@pytest.mark.parametrize("name", SAMPLERS)
def test_right_samplers_pass(name: str) -> None:
    report = check_method(SAMPLERS[name])
    report.raise_if_failed()
    assert "right" in str(report)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    target = GaussianTarget.with_condition(3, 10.0, dtype=dtype)
    check_method(SAMPLERS[name], target, draws=200, warmup=200).raise_if_failed()


# ------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class WithoutAccept(HMC):
    """Takes every proposal."""

    name = "mutant"

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, HMCInfo]:
        momentum = _like(torch.randn, state.position, rng) / state.inverse_mass.sqrt()
        proposal = _leapfrog(log_density, state, momentum, 2)
        _, info = super().step(log_density, state, rng)
        return state._replace(
            position=proposal[0], log_prob=proposal[1], gradient=proposal[2]
        ), info

    def adapt(self, state: HMCState, *_: object) -> HMCState:
        return state


@dataclass(frozen=True)
class WrongRatio(HMC):
    """Accepts with the kinetic energy without its factor 1/2."""

    name = "mutant"

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, HMCInfo]:
        momentum = _like(torch.randn, state.position, rng) / state.inverse_mass.sqrt()
        end = _leapfrog(log_density, state, momentum, 1)
        ratio = end[1] - state.log_prob + 2 * (_kinetic(momentum, state) - _kinetic(end[3], state))
        accepted = _like(torch.rand, ratio, rng).log() < ratio
        _, info = super().step(log_density, state, rng)
        moved = {
            name: torch.where(accepted[..., None] if new.ndim == 2 else accepted, new, old)
            for name, new, old in zip(
                ("position", "log_prob", "gradient"), end[:3], state[:3], strict=True
            )
        }
        return state._replace(**moved), info


class WrongNoise(GaussianTarget):
    """The density of noise one tenth too wide."""

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        value, gradient = super().value_and_grad(v)
        return value / 1.21, gradient / 1.21


def test_a_missing_accept_step_is_rejected() -> None:
    assert not check_method(WithoutAccept(step_size=1.0)).passed


def test_a_wrong_acceptance_ratio_is_rejected() -> None:
    assert not check_method(WrongRatio(step_size=1.0, dense_mass=False)).passed


def test_a_wrong_noise_scale_is_rejected() -> None:
    right = GaussianTarget.with_condition(5, 10.0)
    wrong = WrongNoise(right.mean, right.covariance)
    assert not check_method(HMC(), wrong).passed


def test_a_counted_start_is_rejected(rng: torch.Generator) -> None:
    target = GaussianTarget.with_condition(5, 10.0)
    start = target.mean + 30.0 + target.starts(64, rng)
    run = run_sampler(HMC(step_size=0.5), target, start, rng, draws=200, warmup=0)
    assert not moment_report("", run.position, target.mean, target.covariance).passed


def test_a_chain_that_does_not_move_is_rejected() -> None:
    frozen = moment_report("", torch.ones(10, 5, 2), torch.ones(2), torch.eye(2))
    assert math.isinf(frozen.worst) and not frozen.passed
    with pytest.raises(BayesgenError, match="WRONG"):
        frozen.raise_if_failed()


def test_few_chains_are_refused() -> None:
    with pytest.raises(OptionError, match="9 chains"):
        moment_report("", torch.zeros(9, 5, 2), torch.zeros(2), torch.eye(2))


def test_the_false_alarm_rate_is_as_stated() -> None:
    """Exact draws are called wrong about as often as promised (here one time in ten)."""
    rng = torch.Generator().manual_seed(3)
    alarms = 0
    for _ in range(200):
        draws = torch.randn(64, 50, 2, generator=rng, dtype=torch.float64)
        report = moment_report(
            "", draws, torch.zeros(2).double(), torch.eye(2).double(), false_alarm=0.1
        )
        alarms += not report.passed
    # Bonferroni is conservative: at most 20 expected; 40 is 4.7 standard deviations away.
    assert alarms <= 40
