"""ChEES-HMC: the slope of its criterion, the length it finds, exactness."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference.checks import check_method, moment_report
from bayesgen.inference.chees import ChEES, ChEESState, LengthSearch, rate_slope
from bayesgen.inference.hmc import HMCInfo, hamiltonian_init, metropolis, propose
from bayesgen.inference.leapfrog import choose
from bayesgen.inference.runner import run_sampler
from bayesgen.inference.targets import Banana, GaussianTarget
from bayesgen.types import Density

TARGET = GaussianTarget.with_condition(4, 10.0)
float64 = torch.float64


def unit(num_dims: int) -> GaussianTarget:
    return GaussianTarget(torch.zeros(num_dims).double(), torch.eye(num_dims).double())


def test_gaussians_of_condition_ten() -> None:
    check_method(ChEES(), draws=200, warmup=200).raise_if_failed()


def test_a_banana() -> None:
    check_method(ChEES(), Banana(width=1.0), draws=300, warmup=200).raise_if_failed()


def test_the_slope_is_the_criterions_derivative(rng: torch.Generator) -> None:
    """Independent unit Gaussians: the criterion C is n sin(t)^2, and t dC/dt - C the slope."""
    target = unit(3)
    for length in (0.6, 1.2, 2.0):
        start = torch.randn(50_000, 3, generator=rng, dtype=float64)
        state = hamiltonian_init(target, start, length / 50, 0.8)
        slope = rate_slope(state, propose(target, state, rng, 50), torch.tensor(length))
        exact = 3.0 * (length * math.sin(2.0 * length) - math.sin(length) ** 2)
        assert float(slope) == pytest.approx(exact, abs=0.3)


def test_the_slope_does_not_depend_on_units(rng: torch.Generator) -> None:
    start = torch.randn(50, 3, generator=rng, dtype=float64)
    wide = GaussianTarget(torch.zeros(3).double(), 100.0 * torch.eye(3).double())
    slopes = []
    for target, width in ((unit(3), 1.0), (wide, 10.0)):
        state = hamiltonian_init(target, width * start, 0.3, 0.8)
        state = state._replace(inverse_mass=torch.full((1, 3), width**2).double())
        proposal = propose(target, state, torch.Generator().manual_seed(2), 4)
        slopes.append(rate_slope(state, proposal, torch.tensor(1.2)))
    torch.testing.assert_close(slopes[0], slopes[1])


@pytest.mark.parametrize("first", [0.4, 3.0])
def test_the_best_length_is_found(first: float, rng: torch.Generator) -> None:
    """Of sin(u T)^2 by u T, both averaged over u: T = 1.56 in the limit of short steps."""
    target = unit(10)
    method = ChEES(trajectory=first, target_acceptance=0.95, adapt_mass=False)
    start = torch.randn(32, 10, generator=rng, dtype=float64)
    run = run_sampler(method, target, start, rng, draws=1, warmup=400)
    assert 1.2 < float(run.state.search.log_length.exp()) < 2.0


def test_problems_find_their_own_lengths(rng: torch.Generator) -> None:
    class Widths:
        num_dims = 3

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            width = torch.tensor([1.0, 4.0], dtype=float64)[:, None, None]
            return -0.5 * (v / width).square().sum(-1), -v / width**2

    start = torch.randn(2, 32, 3, generator=rng, dtype=float64)
    method = ChEES(adapt_mass=False)
    run = run_sampler(method, Widths(), start, rng, draws=200, warmup=400)
    length = run.state.search.log_length.exp()
    assert length.shape == (2,) and 2.0 < float(length[1] / length[0]) < 8.0
    for i, width in enumerate((1.0, 4.0)):
        truth = torch.zeros(3).double(), width**2 * torch.eye(3).double()
        moment_report("", run.position[i], *truth).raise_if_failed()


def test_all_chains_take_the_same_number_of_steps(rng: torch.Generator) -> None:
    method = ChEES(step_size=0.1, trajectory=2.0)
    run = run_sampler(method, TARGET, TARGET.starts(5, rng), rng, draws=4, warmup=0)
    assert run.stats["n_steps"].tolist() == [[10, 5, 15, 3]] * 5  # halves, quarters, ... of 20


def test_lengths_stop_where_steps_run_out() -> None:
    search = LengthSearch.start(torch.tensor([3.0, 3.0]))._replace(slope=torch.tensor([5.0, 0.0]))
    for _ in range(100):
        search = search.update(torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(search.log_length.exp(), torch.tensor([4.0, 3.0]))


def test_diverging_chains_teach_nothing(rng: torch.Generator) -> None:
    start = TARGET.starts(8, rng)
    state = hamiltonian_init(TARGET, start, 1e30, 0.8)
    assert float(rate_slope(state, propose(TARGET, state, rng, 20), torch.tensor(1.0))) == 0.0
    run = run_sampler(ChEES(step_size=1e3), TARGET, start, rng, draws=5, warmup=0)
    assert bool(run.stats["diverging"].all()) and torch.equal(run.position[:, -1], start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype, rng: torch.Generator) -> None:
    target = GaussianTarget.with_condition(4, 10.0, dtype=dtype)
    start = torch.zeros(2, 3, 4, dtype=dtype)
    run = run_sampler(ChEES(), target, start, rng, draws=5, warmup=20)
    assert run.position.dtype == run.state.search.log_length.dtype == dtype
    assert all(value.shape == (2, 3, 5) for value in run.stats.values())


def test_a_single_chain_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(OptionError, match="chains: got 1; .* at least 2; use 'hmc' or 'nuts'"):
        run_sampler(ChEES(), TARGET, TARGET.starts(1, rng), rng, draws=1, warmup=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trajectory": 0.0}, "trajectory: got 0.0"),
        ({"target_acceptance": 0}, "target_acceptance: got 0"),
        ({"step_size": math.nan}, "step_size: got nan"),
        ({"max_steps": 0}, "max_steps: got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ChEES(**settings)  # type: ignore[arg-type]
    with pytest.raises(UnknownOptionError, match="ChEES: unknown option 'length'"):
        ChEES(length=1.0)  # type: ignore[call-arg]


# ------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class WithoutAccept(ChEES):
    """Takes every proposal."""

    name = "mutant"

    def step(
        self, log_density: Density, state: ChEESState, rng: torch.Generator
    ) -> tuple[ChEESState, HMCInfo]:
        end = propose(log_density, state.chains, rng, 2).end
        new, info = super().step(log_density, state, rng)
        chains = new.chains._replace(
            position=end.position, log_prob=end.log_prob, gradient=end.gradient
        )
        return new._replace(chains=chains), info


@dataclass(frozen=True)
class LongerWhereLikely(ChEES):
    """Lets the length depend on where the chains are."""

    name = "mutant"

    def step(
        self, log_density: Density, state: ChEESState, rng: torch.Generator
    ) -> tuple[ChEESState, HMCInfo]:
        likely = state.log_prob > -2.0
        ends = []
        for count in (4, 1):
            proposal = propose(log_density, state.chains, rng, count)
            ends.append(metropolis(state.chains, proposal, rng)[0][:3])
        position, log_prob, gradient = choose(likely, *ends)
        new, info = super().step(log_density, state, rng)
        chains = new.chains._replace(position=position, log_prob=log_prob, gradient=gradient)
        return new._replace(chains=chains), info


@pytest.mark.parametrize("mutant", [WithoutAccept, LongerWhereLikely])
def test_mutants_are_rejected(mutant: type[ChEES]) -> None:
    check_method(ChEES(step_size=1.0), draws=200, warmup=0).raise_if_failed()
    assert not check_method(mutant(step_size=1.0), draws=200, warmup=0).passed
