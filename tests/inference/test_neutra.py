"""Neural transport: exact whatever the map, and quick where the map is good."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import OptionError
from bayesgen.inference import HMC, MALA, METHODS, Sampler, run_sampler
from bayesgen.inference.checks import moment_report
from bayesgen.inference.guides import make_guides
from bayesgen.inference.neutra import NeuTra, NeuTraState, Transport, Warped
from bayesgen.inference.runner import Run
from bayesgen.inference.targets import Banana, Funnel, GaussianTarget, Target
from bayesgen.inference.variational import Variational

# Guides are fitted for too few steps on purpose: draws are exact all the same.
pytestmark = pytest.mark.filterwarnings("ignore:neutra. the evidence bounds:RuntimeWarning")

float64 = torch.float64
# Bent as much as a flow of two transforms can straighten: for the tails of sharper ones, chains
# need many more draws than these.
BANANA = Banana(width=1.0, bend=0.5)
NARROW = GaussianTarget(
    torch.zeros(2, dtype=float64), torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=float64)
)


def sample(method: Sampler, target: Target, draws: int = 200, warmup: int = 150) -> Run:
    rng = torch.Generator().manual_seed(0)
    return run_sampler(method, target, target.starts(24, rng), rng, draws=draws, warmup=warmup)


def check(found: Run, target: Target) -> Any:
    return moment_report("neutra", found.position, target.mean, target.covariance)


def perturbed(guide: str, rows: int, n: int) -> Transport:
    """Maps of guides that nobody has fitted."""
    rng = torch.Generator().manual_seed(0)
    guides, parameters = make_guides(guide, torch.zeros(rows, n, dtype=float64), seed=0)
    drawn = {
        name: p + 0.2 * torch.randn(p.shape, generator=rng, dtype=float64)
        for name, p in parameters.items()
    }
    return Transport(guides, drawn)


# --------------------------------------------------------------------------- exact


@pytest.fixture(scope="module")
def bananas() -> Run:
    return sample(NeuTra(steps=400), BANANA)


def test_moments_of_a_banana(bananas: Run) -> None:
    check(bananas, BANANA).raise_if_failed()
    # Where the draws are is what is recorded of them.
    value, _ = BANANA.value_and_grad(bananas.position)
    torch.testing.assert_close(bananas.log_prob, value)


def test_the_map_whitens() -> None:
    found = sample(NeuTra(guide="multivariate", steps=300), NARROW, draws=100)
    check(found, NARROW).raise_if_failed()
    plain = sample(HMC(dense_mass=False), NARROW, draws=100)
    assert float(plain.stats["step_size"].mean()) < 0.3 < float(found.stats["step_size"].mean())


class Untrained(NeuTra):
    """With maps that are wrong on purpose, so that nothing is left to luck."""

    def init(self, log_density: Any, position: Tensor) -> NeuTraState:
        transport = perturbed("iaf", 1, position.shape[-1])
        inner = self.sampler.init(Warped(log_density, transport), position)
        at, _ = transport(inner.position)
        return NeuTraState(at, inner.log_prob, inner, transport, None)


def test_a_poor_map_is_no_bias() -> None:
    method = Untrained(sampler=HMC(max_steps=16))
    check(sample(method, BANANA), BANANA).raise_if_failed()


def test_a_forgotten_volume_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Transport.__call__

    def without(self: Transport, w: Tensor) -> tuple[Tensor, Tensor]:
        v, log_det = call(self, w)
        return v, 0.0 * log_det

    monkeypatch.setattr(Transport, "__call__", without)
    assert not check(sample(Untrained(sampler=HMC(max_steps=16)), BANANA), BANANA).passed


def test_a_funnel() -> None:
    """Of widths over a factor of 20; Neal's own, over 3000, is beyond it."""
    check(sample(NeuTra(steps=400), Funnel()), Funnel()).raise_if_failed()


# --------------------------------------------------------------------------- the map


@pytest.mark.parametrize("guide", ["iaf", "multivariate"])
def test_gradients_and_volumes(guide: str) -> None:
    transport, target = perturbed(guide, 2, 3), GaussianTarget.with_condition(3, 10.0)
    w = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=float64)
    warped = Warped(target, transport)
    step = 1e-6 * torch.eye(3, dtype=float64)
    pairs = [(warped.value_and_grad(w + s)[0], warped.value_and_grad(w - s)[0]) for s in step]
    slopes = torch.stack([(after - before) / 2e-6 for after, before in pairs], -1)
    torch.testing.assert_close(warped.value_and_grad(w)[1], slopes, rtol=1e-5, atol=1e-6)
    columns = [(transport(w + s)[0] - transport(w - s)[0]) / 2e-6 for s in step]
    log_det = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    torch.testing.assert_close(transport(w)[1], log_det, rtol=1e-5, atol=1e-6)


def test_pyros_reparameterisation_is_the_guides_transform() -> None:
    guides, parameters = make_guides("iaf", torch.zeros(1, 3, dtype=float64), seed=0)
    w = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=float64)
    v, log_det = Transport(guides, parameters)(w)
    alone = {name: p[0] for name, p in parameters.items()}
    expected = guides.transport(alone, w)
    torch.testing.assert_close(v, expected[0])
    torch.testing.assert_close(log_det, expected[1])


# --------------------------------------------------------------------------- models


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2).to(y), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def test_problems_in_single_precision() -> None:
    y = torch.tensor([[2.0, 0.0], [-5.0, 5.0]])
    method = NeuTra(guide="multivariate", sampler=MALA(), steps=150)
    found = bg.infer(
        model, y, method=method, chains=16, draws=150, warmup=100, batched=True, progress=False
    )
    assert found.draws("z").shape == (2, 16, 150, 2) and found.draws("z").dtype == torch.float32
    for problem, mean in enumerate(0.8 * y):
        draws = found.draws("z")[problem].double()
        covariance = 0.8 * torch.eye(2, dtype=float64)
        moment_report("neutra", draws, mean.double(), covariance).raise_if_failed()
    assert found.attributes["exact"] is True


# --------------------------------------------------------------------------- the fit


def fitted(seed: int, steps: int = 100) -> NeuTraState:
    method, rng = NeuTra(guide="multivariate", steps=steps), torch.Generator().manual_seed(seed)
    start = torch.ones(3, 2, dtype=float64)
    return run_sampler(method, NARROW, start, rng, draws=1, warmup=0).state


class Hasty(NeuTra):
    """Content with a bound that rises by less than five nats."""

    @property
    def _training(self) -> Variational:
        return Variational(self.guide, max_iterations=self.steps, learning_rate=0.2, tolerance=5.0)


def test_guides_are_fitted_by_the_numbers_of_the_run() -> None:
    w = torch.ones(1, 2, dtype=float64)
    maps = [state.transport(w)[0] for state in map(fitted, (1, 1, 2)) if state.transport]
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])


@pytest.mark.filterwarnings("error")
def test_guides_that_were_still_rising_are_told() -> None:
    message = "neutra: the evidence bounds of 1 of 1 guides still rose after 100 steps"
    with pytest.warns(RuntimeWarning, match=message):
        fitted(0)
    # Settled: no warning, and nothing is fitted twice.
    method, rng = Hasty(guide="multivariate", steps=210), torch.Generator().manual_seed(0)
    start = torch.zeros(4, 2, dtype=float64)
    found = run_sampler(method, NARROW, start, rng, draws=2, warmup=0)
    again, _ = method.step(NARROW, found.state, rng)
    assert again.transport is found.state.transport and again.guides is None


# --------------------------------------------------------------------------- bad input


def test_guides_without_a_map_are_refused() -> None:
    with pytest.raises(OptionError, match="guide: AutoLowRank.* has no get_transform"):
        sample(NeuTra(guide=AutoLowRankMultivariateNormal), BANANA)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "normal"}, "guide: unknown value 'normal'; expected one of 'iaf'"),
        ({"sampler": "hmc"}, "sampler: got 'hmc'; expected HMC\\(\\), NUTS"),
        ({"steps": 0}, "steps: got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        NeuTra(**settings)


def test_biased_samplers_are_refused() -> None:
    for name in ("ula", "pt", "gibbs"):
        with pytest.raises(OptionError, match="expected HMC\\(\\), NUTS"):
            NeuTra(sampler=METHODS[name]())  # type: ignore[arg-type]
    assert math.isclose(NeuTra().sampler.trajectory, math.pi / 2)  # type: ignore[attr-defined]
