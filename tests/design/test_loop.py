"""The loop: against closed forms, step by step, through failures and back from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import bayesgen as bg
from bayesgen.design import Loop, Pool, acquire, simulate
from bayesgen.errors import (
    BayesgenError,
    DataError,
    FileFormatError,
    ModelError,
    OptionError,
    ShapeError,
    UnknownOptionError,
)

SIGMA = 0.2
SCALE = torch.tensor([0.5, 2.0, 1.0, 0.1])
TRUTH = torch.tensor([0.4, -1.5, 0.8, 0.05])
FEW = bg.inference.SMC(particles=64)
POOL = Pool.pixels((4,))


def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    x = pyro.deterministic("x", SCALE * z)
    pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(1), obs=y)


def loop(**options: Any) -> Loop:
    settings: dict[str, Any] = {
        "acquisition": "variance",
        "budget": 3,
        "method": FEW,
        "draws": 64,
        "noise": SIGMA,
        **options,
    }
    return acquire(model, POOL, simulate(POOL, TRUTH, SIGMA), **settings)


def test_it_measures_what_is_least_certain_and_learns_what_is_true() -> None:
    """Independent pixels: the order of their variances, and a posterior in closed form."""
    run = loop(chains=16)
    records = list(run)
    assert [record.chosen for record in records] == [(1,), (2,), (0,)]
    assert run.outcome == "budget spent" and run.finished and run.spent == 3
    data = simulate(POOL, TRUTH, SIGMA)([1, 2, 0])
    prior = SCALE[[1, 2, 0]].square()
    mean = prior / (prior + SIGMA**2) * data
    std = (1 / (1 / prior + 1 / SIGMA**2)).sqrt()
    found = run.posterior.draws("x")[..., [1, 2, 0]]
    error = (found.mean(1).mean(0) - mean) / (found.mean(1).std(0) / 4)
    assert float(error.abs().max()) < stats.t.isf(1e-6 / 6, 15)
    assert torch.allclose(found.flatten(0, 1).std(0), std, rtol=0.15)
    assert torch.isnan(records[1].scores).nonzero().flatten().tolist() == [1]


def test_first_choice_is_made_from_the_prior() -> None:
    scores = loop(chains=16, draws=500).belief()
    assert torch.allclose(scores.images.std(0), SCALE, rtol=0.1)
    assert scores.measured == () and scores.values.shape == (0, 1)


def test_carried_and_fresh_posteriors_agree() -> None:
    runs = [loop(chains=16, fresh=fresh) for fresh in (False, True)]
    for run in runs:
        list(run)
    carried, fresh = (run.posterior for run in runs)
    chains = [p.draws("x").mean(1) for p in (carried, fresh)]
    error = (chains[0].mean(0) - chains[1].mean(0)).abs()
    spread = ((chains[0].var(0) + chains[1].var(0)) / 16).sqrt()
    assert float((error / spread).max()) < 6
    assert torch.allclose(carried.log_evidence.mean(), fresh.log_evidence.mean(), atol=0.3)


def test_a_step_at_a_time_is_the_same() -> None:
    by_hand, run = loop(), loop()
    measure = simulate(POOL, TRUTH, SIGMA)
    while not by_hand.finished:
        chosen = by_hand.ask()
        assert by_hand.ask() == chosen
        by_hand.tell(measure(chosen))
    records = list(run)
    assert [r.chosen for r in by_hand.records] == [r.chosen for r in records]
    assert torch.equal(by_hand.records[-1].mean, records[-1].mean)
    with pytest.raises(OptionError, match="budget spent; there is nothing left"):
        by_hand.ask()


def test_chains_are_warm_started() -> None:
    run = loop(method="hmc", draws=20, warmup=20, budget=2)
    list(run)
    assert run.posterior.attributes["method"] == "hmc"
    assert run.posterior.attributes["start"] == "Posterior"


def test_batches_costs_and_the_ends() -> None:
    everything = loop(budget=4, batch=3)
    assert [len(r.chosen) for r in everything] == [3, 1]
    assert everything.outcome == "pool exhausted"
    aimed = loop(budget=4, target=0.4)
    list(aimed)
    assert aimed.outcome == "target reached"
    assert aimed.records[-1].uncertainty <= 0.4 < aimed.records[-2].uncertainty
    dear = Pool.pixels((4,), costs=[1.0, 5.0, 1.0, 1.0])
    run = Loop(model, dear, simulate(dear, TRUTH), acquisition="variance", budget=2.5, method=FEW)
    assert [r.chosen for r in run] == [(2,), (0,)]
    assert run.outcome == "budget spent" and run.spent == 2


def test_initial_measurements_come_first() -> None:
    run = loop(initial=[3, 0])
    assert run.ask() == [3, 0]
    records = list(run)
    assert records[0].chosen == (3, 0) and records[1].chosen == (1,)
    assert run.spent == 3


# ------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (torch.zeros(2), ShapeError, r"measure: returned shape \(2,\) for candidates \[1\]"),
        (torch.tensor([float("nan")]), DataError, "NaN"),
        (torch.tensor([1j]), DataError, "complex"),
    ],
)
def test_bad_data_change_nothing(wrong: Tensor, error: type[BayesgenError], message: str) -> None:
    run = loop()
    run.ask()
    with pytest.raises(error, match=message):
        run.tell(wrong)
    assert run.ask() == [1] and run.measured == [] and run.spent == 0
    run.tell(torch.tensor([-1.5]))
    assert run.measured == [1]


def test_an_instrument_that_fails_is_asked_again() -> None:
    calls: list[list[int]] = []

    def measure(chosen: list[int]) -> Tensor:
        calls.append(chosen)
        if len(calls) == 2:
            raise ConnectionError("the detector is off")
        return TRUTH[chosen]

    run = acquire(model, POOL, measure, acquisition="variance", budget=3, method=FEW, draws=64)
    with pytest.raises(ConnectionError):
        list(run)
    assert run.measured == [1]
    list(run)
    assert calls == [[1], [2], [2], [0]] and run.finished


def test_data_outlive_a_posterior_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was measured is never lost, not in memory and not on disk."""
    path = tmp_path / "loop.safetensors"
    run = loop(checkpoint=path)
    next(iter(run))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    chosen = run.ask()
    with monkeypatch.context() as patch:
        patch.setattr("bayesgen.design.loop.infer", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            run.tell(TRUTH[chosen])
    assert run.measured == [1, 2] and len(run.records) == 1
    again = loop(checkpoint=path)
    for resumed in (run, again):
        with pytest.raises(OptionError, match=r"data of \[2\] are known.*withdraw\(\) takes them"):
            resumed.tell(TRUTH[chosen])
        rest = list(resumed)
        assert [r.chosen for r in rest] == [(2,), (0,)] and resumed.measured == [1, 2, 0]


def test_a_checkpoint_continues_as_if_nothing_had_happened(tmp_path: Path) -> None:
    path = tmp_path / "loop.safetensors"
    whole, first = loop(), loop(checkpoint=path)
    next(iter(first))
    second = loop(checkpoint=path)
    assert second.measured == [1] and second.posterior.num_chains == 4
    list(second)
    list(whole)
    assert [r.chosen for r in second.records] == [r.chosen for r in whole.records]
    assert torch.equal(second.records[-1].mean, whole.records[-1].mean)
    assert second.records[0].spent == 1
    finished = loop(checkpoint=path)
    assert finished.finished and list(finished) == []


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.safetensors"
    list(loop(checkpoint=path, budget=1))
    with pytest.raises(FileFormatError, match="'seed': 0.*expected.*'seed': 1"):
        loop(checkpoint=path, seed=1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileFormatError):
        loop(checkpoint=path)


def fixed(A: Any, y: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    x = pyro.deterministic("x", z)
    pyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


def of_data_only(y: Tensor | None = None) -> None:
    fixed(None, y)


def of_another_size(A: Any, y: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    x = pyro.deterministic("x", z)
    pyro.sample("y", dist.Normal(x[:3] + A(x).sum(), SIGMA).to_event(1), obs=y)


@pytest.mark.parametrize("wrong", [fixed, of_data_only, of_another_size])
def test_models_that_do_not_follow_the_operator_are_told_how(wrong: Any) -> None:
    with pytest.raises(ModelError, match=r"Write the forward operator as an argument"):
        list(
            acquire(
                wrong, POOL, simulate(POOL, TRUTH), acquisition="variance", budget=2, method=FEW
            )
        )


def without_a_prior_of_data(A: Any, y: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    x = pyro.deterministic("x", z)
    pyro.factor("misfit", -0.5 * ((A(x) - y) / SIGMA).square().sum())


def test_a_model_that_draws_no_data_needs_a_first_measurement() -> None:
    measure = simulate(POOL, TRUTH)
    settings: dict[str, Any] = {"acquisition": "variance", "budget": 2, "method": FEW}
    with pytest.raises(ModelError, match="initial="):
        next(iter(acquire(without_a_prior_of_data, POOL, measure, **settings)))
    run = acquire(without_a_prior_of_data, POOL, measure, initial=[0], **settings)
    assert len(list(run)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 5}, "measuring all of the pool costs 4"),
        ({"budget": 0}, "budget"),
        ({"batch": 0}, "batch"),
        ({"acquisition": "varianz"}, "did you mean 'variance'"),
        ({"method": "map"}, "finds optima"),
        ({"noise": -1.0}, "noise"),
        ({"target": -1.0}, "target"),
        ({"initial": [4]}, "distinct numbers"),
        ({"draws": 0}, "draws"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        loop(**options)


def test_more_bad_options() -> None:
    with pytest.raises(ShapeError, match="broadcasts"):
        loop(noise=torch.ones(3))
    with pytest.raises(UnknownOptionError, match="did you mean 'batch'"):
        loop(bach=2)
    with pytest.raises(OptionError, match="expected a function"):
        acquire(model, POOL, None, acquisition="variance", budget=1)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="pool: got Identity"):
        Loop(model, bg.operators.Identity((4,)), acquisition="variance", budget=1)  # type: ignore[arg-type]
    without = Loop(model, POOL, acquisition="variance", budget=1)
    with pytest.raises(OptionError, match="use ask\\(\\) and tell\\(\\)"):
        next(iter(without))
    with pytest.raises(OptionError, match="nothing has been measured"):
        _ = without.data


@pytest.mark.slow
def test_intervals_keep_their_coverage_although_the_data_were_chosen() -> None:
    """Truths drawn from the model: the likelihood principle holds at every round."""
    rng = torch.Generator().manual_seed(0)
    problems, covered = 60, torch.zeros(3)
    for number in range(problems):
        truth = SCALE * torch.randn(4, generator=rng)
        run = acquire(
            model,
            POOL,
            simulate(POOL, truth, SIGMA, seed=number),
            acquisition="thompson",
            budget=3,
            method=FEW,
            draws=64,
            seed=number,
        )
        for record in run:
            low, high = run.posterior.interval("x", 0.9)
            covered[record.round] += ((truth >= low) & (truth <= high)).float().mean()
    # Four independent pixels each; a little is lost to finite draws.
    error = (covered / problems - 0.9).abs() / (0.09 / (4 * problems)) ** 0.5
    assert float(error.max()) < 4
