"""Parallel tempering: moments, mode weights, evidence and ladder, and mutants that fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import HMC, parallel_tempering
from bayesgen.inference.checks import MethodReport, check_method, moment_report
from bayesgen.inference.hmc import HMCInfo, HMCState, hamiltonian_step
from bayesgen.inference.parallel_tempering import ParallelTempering, PTState
from bayesgen.inference.runner import Run, run_sampler
from bayesgen.inference.targets import GaussianTarget, MixtureTarget
from bayesgen.inference.tempering import Tempered, power_ladder, swap_ratios
from bayesgen.types import Split

float64 = torch.float64
TARGET = GaussianTarget.with_condition(5, 10.0)
MODES = MixtureTarget.pair(distance=20.0, weight=0.3)
QUICK = ParallelTempering(replicas=6)


def run(method: ParallelTempering, target: object, chains: int = 16, **options: object) -> Run:
    rng = torch.Generator().manual_seed(0)
    start = target.prior_draws(chains, rng)  # type: ignore[attr-defined]
    options = {"draws": 200, "warmup": 200, **options}
    return run_sampler(method, target, start, rng, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_moments(dtype: torch.dtype) -> None:
    target = GaussianTarget.with_condition(3, 10.0, dtype=dtype)
    check_method(QUICK, target, draws=150, warmup=100).raise_if_failed()


def mode_report(method: ParallelTempering | HMC) -> MethodReport:
    """All chains start in the mode of weight .3."""
    start, rng = MODES.centres[:1].expand(16, 2), torch.Generator().manual_seed(0)
    result = run_sampler(method, MODES, start, rng, draws=200, warmup=100)
    return moment_report("", result.position, MODES.mean, MODES.covariance)


def test_mode_weights() -> None:
    mode_report(ParallelTempering(replicas=8, max_steps=8)).raise_if_failed()


def test_plain_hmc_does_not_leave_its_mode() -> None:
    assert not mode_report(HMC()).passed


def test_swaps_that_are_always_accepted_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(likelihood: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio, log_accept = swap_ratios(likelihood, beta)
        return log_ratio, torch.zeros_like(log_accept)

    monkeypatch.setattr(parallel_tempering, "swap_ratios", always)
    assert not check_method(QUICK, draws=100, warmup=100).passed


def test_swaps_with_the_wrong_sign_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(likelihood: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio, _ = swap_ratios(likelihood, beta)
        return log_ratio, swap_ratios(-likelihood, beta)[1]

    monkeypatch.setattr(parallel_tempering, "swap_ratios", wrong)
    assert not check_method(QUICK, draws=100, warmup=100).passed


def test_moves_without_an_accept_step_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(
        tempered: Tempered, state: HMCState, rng: torch.Generator, count: object
    ) -> tuple[HMCState, HMCInfo]:
        _, info = hamiltonian_step(tempered, state, rng, 1)
        noise = torch.randn(state.position.shape, generator=rng, dtype=float64)
        position = state.position + 0.3 * noise
        log_prob, gradient = tempered.value_and_grad(position)
        return state._replace(position=position, log_prob=log_prob, gradient=gradient), info

    monkeypatch.setattr(parallel_tempering, "hamiltonian_step", walk)
    assert not check_method(QUICK, draws=100, warmup=100).passed


# ------------------------------------------------------------------------------------- evidence


def z_of_evidence() -> float:
    """Standard errors between the mean estimate of the evidence itself and the truth."""
    target = GaussianTarget.with_condition(3, 10.0)
    result = run(ParallelTempering(replicas=8), target, 64, draws=200, warmup=100)
    found = result.stats["log_evidence"]
    assert float(found[:, -1].std()) < 0.3 * float(found[:, 5].std())
    ratio = (found[:, -1] - target.log_evidence).exp()
    return float((ratio.mean() - 1.0) / (ratio.std() / 8.0))


# |t| with 63 degrees of freedom is larger with probability 1e-6.
ALARM = 5.4


def test_the_evidence_is_unbiased() -> None:
    assert abs(z_of_evidence()) < ALARM


def test_stepping_down_instead_of_up_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(likelihood: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        _, log_accept = swap_ratios(likelihood, beta)
        return beta.diff(dim=-1)[..., None] * likelihood[..., 1:, :], log_accept

    monkeypatch.setattr(parallel_tempering, "swap_ratios", down)
    assert abs(z_of_evidence()) > ALARM


# ------------------------------------------------------------------------------------- ladder


def test_warm_up_makes_refusals_equal() -> None:
    states: list[PTState] = []
    result = run(ParallelTempering(replicas=8), TARGET, monitor=lambda s: states.append(s.state))
    first, last = states[25], states[-1]
    assert torch.equal(first.beta, power_ladder(8))
    refusals = [state.tally.rejection.mean(-1) / state.tally.steps for state in (first, last)]
    assert float(refusals[0].std()) > 0.1 and float(refusals[1].std()) < 0.04
    assert last.tally.steps == 200
    mean = float(result.stats["swap_rejection"][0, -1])
    assert abs(mean - float(refusals[1].mean())) < 1e-9
    assert abs(float(result.stats["barrier"][0, -1]) - 7 * mean) < 1e-9
    # Every rung has a step of its own, wider near the prior.
    steps = last.replicas.step_size.flatten()
    assert len(steps) == 7 and float(steps[0] / steps[-1]) > 1.2


def test_replicas_travel() -> None:
    trips = run(ParallelTempering(replicas=8), TARGET).stats["round_trips"]
    assert bool((trips.diff(dim=-1) >= 0).all()) and int(trips[:, -1].min()) > 3


def test_the_ladder_rests_after_warm_up() -> None:
    ladders: list[Tensor] = []
    run(
        QUICK,
        TARGET,
        draws=20,
        warmup=70,
        monitor=lambda s: ladders.append(s.state.beta) if s.phase == "sampling" else None,
    )
    assert all(torch.equal(ladder, ladders[0]) for ladder in ladders)


@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_short_warm_up(warmup: int) -> None:
    result = run(QUICK, TARGET, draws=10, warmup=warmup)
    assert bool(torch.isfinite(result.position).all())


# ------------------------------------------------------------------------------------- replicas


@pytest.mark.parametrize("lead", [(1,), (2, 3), (5, 1)])
def test_shapes(lead: tuple[int, ...], rng: torch.Generator) -> None:
    start = TARGET.starts(math.prod(lead), rng).reshape(*lead, 5)
    result = run_sampler(QUICK, TARGET, start, rng, draws=10, warmup=20)
    assert result.position.shape == (*lead, 10, 5)
    assert all(value.shape == (*lead, 10) for value in result.stats.values())
    torch.testing.assert_close(result.log_prob, TARGET.value_and_grad(result.position)[0])


def test_problems_have_ladders_of_their_own(rng: torch.Generator) -> None:
    class Two:
        """A likelihood as wide as the prior, and one a hundred times narrower."""

        num_dims = 2
        widths = torch.tensor([1.0, 0.01], dtype=float64)

        def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
            width = self.widths.reshape(2, *[1] * (v.ndim - 1))
            scaled = v / width
            likelihood = -0.5 * scaled.square().sum(-1)
            return Split(-0.5 * v.square().sum(-1), likelihood, -v, -scaled / width)

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            split = self.split(v)
            return split[0] + split[1], split[2] + split[3]

        def prior_draws(self, num: int, rng: torch.Generator) -> Tensor:
            return torch.randn(2, num, 2, generator=rng, dtype=float64)

    result = run(ParallelTempering(), Two(), 32)
    variance = result.position.var((1, 2)).mean(-1)
    exact = 1.0 / (1.0 + Two.widths**-2)
    torch.testing.assert_close(variance, exact, rtol=0.1, atol=0)
    # The narrow one's ladder begins far closer to the prior.
    ladder = result.state.beta
    assert float(ladder[1, 1] / ladder[0, 1]) < 0.01
    evidence = result.stats["log_evidence"][..., -1].mean(-1)
    torch.testing.assert_close(evidence, exact.log(), rtol=0, atol=0.1)


def test_impossible_prior_draws_stay_below() -> None:
    class Half(GaussianTarget):
        def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
            split = super().split(v)
            inside = v[..., 0] > 0.0
            return split._replace(likelihood=torch.where(inside, split.likelihood, math.nan))

    half = Half(torch.tensor([1.0, 0.0], dtype=float64), torch.eye(2, dtype=float64))
    rng = torch.Generator().manual_seed(0)
    start = half.prior_draws(16, rng).abs()
    result = run_sampler(QUICK, half, start, rng, draws=100, warmup=100)
    assert bool((result.position[..., 0] > 0).all())
    assert bool(torch.isfinite(result.stats["log_evidence"][:, -1]).all())


def test_thinning_keeps_every_kth_step() -> None:
    full = run(QUICK, TARGET, 2, draws=6, warmup=10)
    thinned = run(QUICK, TARGET, 2, draws=3, warmup=10, thin=2)
    assert torch.equal(thinned.position, full.position[:, 1::2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 1}, "replicas: got 1; expected an integer of at least 2"),
        ({"trajectory": 0.0}, "trajectory: got 0.0"),
        ({"target_acceptance": 0.0}, "target_acceptance: got 0.0"),
        ({"max_steps": 0}, "max_steps: got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ParallelTempering(**settings)  # type: ignore[arg-type]


def test_misspelt_settings_are_refused_with_the_list() -> None:
    with pytest.raises(UnknownOptionError, match="ParallelTempering: unknown option 'rungs'"):
        ParallelTempering(rungs=8)  # type: ignore[call-arg]
