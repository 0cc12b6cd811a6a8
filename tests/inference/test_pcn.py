"""pCN: keeps the prior, accepts by the likelihood, and is exact with other priors beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference.checks import check_method, moment_report
from bayesgen.inference.hmc import HMCState, Proposal, fresh_momentum, metropolis
from bayesgen.inference.leapfrog import Phase, drift
from bayesgen.inference.pcn import PCN, PCNInfo
from bayesgen.inference.runner import run_sampler
from bayesgen.inference.targets import Banana, GaussianTarget
from bayesgen.log_density import LogDensity
from bayesgen.types import Density

TARGET = GaussianTarget.with_condition(3, 10.0)
float64 = torch.float64


class Normals:
    """Prior N(1, 4) of each unknown; the first two are seen with noise of deviation 1."""

    def __init__(self, num_dims: int, seen: int = 2) -> None:
        self.num_dims, self.seen = num_dims, seen
        self.normal_prior = (torch.ones(num_dims), torch.full((num_dims,), 0.25))
        self.precision = torch.full((num_dims,), 0.25, dtype=float64)
        self.precision[:seen] += 1.0
        self.mean = torch.ones(num_dims, dtype=float64)
        self.mean[:seen] = (0.25 + 3.0) / 1.25

    @property
    def covariance(self) -> Tensor:
        return torch.diag(1.0 / self.precision)

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        gradient = (self.mean - v) * self.precision
        return 0.5 * (gradient * (v - self.mean)).sum(-1), gradient

    def draws(self, num: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn(num, self.num_dims, generator=rng, dtype=float64)
        return self.mean + noise / self.precision.sqrt()


def report(method: PCN, warmup: int = 200) -> bool:
    density, rng = Normals(4), torch.Generator().manual_seed(0)
    start = density.draws(64, rng)
    run = run_sampler(method, density, start, rng, draws=1000, warmup=warmup)
    return moment_report("", run.position, density.mean, density.covariance).passed


@pytest.mark.parametrize("settings", [{}, {"adapt_mass": False}, {"step_size": 10.0}])
def test_normal_priors(settings: dict[str, float]) -> None:
    assert report(PCN(**settings))  # type: ignore[arg-type]


def test_without_normal_priors_it_is_a_random_walk(rng: torch.Generator) -> None:
    check_method(PCN(), TARGET, draws=1000, warmup=300).raise_if_failed()


def test_a_banana() -> None:
    check_method(PCN(), Banana(width=1.0), chains=32, draws=1500, warmup=200).raise_if_failed()


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.full((3,), 1.5).double(), 2.0).to_event(1))
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0).double(), 1.0))
    pyro.sample("times", dist.Exponential(rate).expand([4]).to_event(1), obs=y[:4])
    pyro.sample("y", dist.Normal(z[:2], 0.5).to_event(1), obs=y[4:])


def test_a_model_with_normal_and_other_priors(rng: torch.Generator) -> None:
    """Closed form: normal times normal, Gamma times exponential."""
    y = torch.tensor([0.3, 0.5, 0.1, 0.9, 1.0, -1.0], dtype=float64)
    log_density = LogDensity(model, y)
    start = log_density.prior_draws(32, rng)
    run = run_sampler(PCN(), log_density, start, rng, draws=800, warmup=200)
    values = log_density.constrain(run.position.reshape(-1, 4))
    draws = torch.cat([values["z"], values["rate"][:, None]], -1).reshape(32, 800, 4)
    precision = torch.tensor([4.25, 4.25, 0.25], dtype=float64)
    mean = (1.5 * 0.25 + 4.0 * torch.tensor([1.0, -1.0, 0.0]).double()) / precision
    shape, rate = 3.0 + 4.0, 1.0 + float(y[:4].sum())
    mean = torch.cat([mean, torch.tensor([shape / rate]).double()])
    variance = torch.cat([1.0 / precision, torch.tensor([shape / rate**2]).double()])
    moment_report("", draws, mean, torch.diag(variance)).raise_if_failed()


def test_one_step_is_the_published_proposal(rng: torch.Generator) -> None:
    """v' = m + sqrt(1 - b^2) (v - m) + b s xi with b the sine of the angle."""
    density = Normals(4)
    method = PCN(step_size=0.3 / 0.5)  # the prior's frequency is 1/2 with unit masses
    state = method.init(density, density.draws(50, rng))
    new, info = method.step(density, state, torch.Generator().manual_seed(5))
    noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(5), dtype=float64)
    b = math.sin(0.3)
    proposal = 1.0 + math.sqrt(1 - b**2) * (state.position - 1.0) + b * 2.0 * noise
    moved = (new.position != state.position).any(-1)
    assert 0 < int(moved.sum()) < 50
    torch.testing.assert_close(new.position[moved], proposal[moved])
    data = -0.5 * (proposal[:, :2] - 3.0).square().sum(-1)
    data = data + 0.5 * (state.position[:, :2] - 3.0).square().sum(-1)
    torch.testing.assert_close(info.acceptance_rate, data.clamp(max=0.0).exp())


def test_acceptance_does_not_fall_with_the_dimension(rng: torch.Generator) -> None:
    rates = []
    for num_dims in (10, 1000):
        density = Normals(num_dims)
        start = density.draws(64, rng)
        run = run_sampler(PCN(step_size=0.8), density, start, rng, draws=100, warmup=0)
        rates.append(float(run.stats["acceptance_rate"].mean()))
    assert rates[0] > 0.5 and abs(rates[0] - rates[1]) < 0.03


def test_without_data_it_draws_from_the_prior(rng: torch.Generator) -> None:
    density = Normals(5, seen=0)
    start = density.draws(32, rng)
    run = run_sampler(PCN(), density, start, rng, draws=200, warmup=400)
    assert float(run.stats["acceptance_rate"].min()) > 0.999
    steps = run.stats["step_size"] * 0.5 * run.state.inverse_mass.max().sqrt()
    assert float(steps.max()) <= 0.5 * math.pi + 1e-9
    correlation = (run.position[:, 1:] - 1.0) * (run.position[:, :-1] - 1.0) / 4.0
    assert abs(float(correlation.mean())) < 0.1
    moment_report("", run.position, density.mean, density.covariance).raise_if_failed()


def test_problems_adapt_on_their_own(rng: torch.Generator) -> None:
    class Noises(Normals):
        """The second problem's data are a hundred times as precise."""

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            noise = torch.tensor([1.0, 100.0], dtype=float64)[:, None, None]
            prior, data = (v - 1.0) * 0.25, (v - 3.0) * noise
            value = -0.5 * ((v - 1.0) * prior + (v - 3.0) * data).sum(-1)
            return value, -prior - data

    start = torch.randn(2, 32, 1, generator=rng, dtype=float64) + 3.0
    run = run_sampler(PCN(), Noises(1), start, rng, draws=1000, warmup=300)
    rates = run.stats["acceptance_rate"].mean((1, 2))
    assert bool(((rates > 0.15) & (rates < 0.4)).all())
    for i, noise in enumerate((1.0, 100.0)):
        mean = torch.tensor([(0.25 + 3.0 * noise) / (0.25 + noise)], dtype=float64)
        variance = torch.tensor([[1.0 / (0.25 + noise)]], dtype=float64)
        moment_report("", run.position[i], mean, variance).raise_if_failed()


def test_one_chain_and_both_dtypes(rng: torch.Generator) -> None:
    for dtype in (torch.float32, torch.float64):
        target = GaussianTarget.with_condition(3, 10.0, dtype=dtype)
        start = torch.zeros(2, 1, 3, dtype=dtype)
        run = run_sampler(PCN(), target, start, rng, draws=5, warmup=20)
        assert run.position.dtype == run.stats["acceptance_rate"].dtype == dtype
        assert all(value.shape == (2, 1, 5) for value in run.stats.values())


def test_warm_up_reaches_the_target_acceptance(rng: torch.Generator) -> None:
    run = run_sampler(PCN(), TARGET, TARGET.starts(32, rng), rng, draws=300, warmup=500)
    assert abs(float(run.stats["acceptance_rate"].mean()) - 0.25) < 0.06


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0}, "step_size: got 0.0"),
        ({"step_size": None}, "step_size: got None"),
        ({"target_acceptance": -0.1}, "target_acceptance: got -0.1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PCN(**settings)
    with pytest.raises(UnknownOptionError, match="PCN: unknown option 'beta'"):
        PCN(beta=0.5)  # type: ignore[call-arg]


# ------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class WholeRatio(PCN):
    """Accepts by the whole density, as if the proposal were symmetric."""

    name = "mutant"

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, PCNInfo]:
        momentum = fresh_momentum(state, rng)
        position, _ = drift(state)(state.position, momentum)
        end = Phase(position, *log_density.value_and_grad(position), momentum)
        new, info = metropolis(state, Proposal.of(state, momentum, end, 1), rng)
        return new, PCNInfo(info.acceptance_rate, info.log_prob, info.step_size)


@dataclass(frozen=True)
class TooWide(PCN):
    """Adds the noise without shrinking towards the mean."""

    name = "mutant"

    def step(
        self, log_density: Density, state: HMCState, rng: torch.Generator
    ) -> tuple[HMCState, PCNInfo]:
        momentum = fresh_momentum(state, rng)
        position, turned = drift(state)(state.position, momentum)
        angle = 0.5 * state.step_size * state.inverse_mass.sqrt()
        position = position + (1.0 - angle.cos()) * (state.position - 1.0)
        end = Phase(position, *log_density.value_and_grad(position), turned)
        # The likelihood alone, as for the right proposal.
        data = -0.5 * (position[:, :2] - 3.0).square().sum(-1)
        data = data + 0.5 * (state.position[:, :2] - 3.0).square().sum(-1)
        proposal = Proposal.of(state, momentum, end, 1)._replace(change=data)
        new, info = metropolis(state, proposal, rng)
        return new, PCNInfo(info.acceptance_rate, info.log_prob, info.step_size)


@pytest.mark.parametrize("mutant", [WholeRatio, TooWide])
def test_mutants_are_rejected(mutant: type[PCN]) -> None:
    assert report(PCN(step_size=1.5), warmup=0)
    assert not report(mutant(step_size=1.5), warmup=0)
