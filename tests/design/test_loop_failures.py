"""Loops that are interrupted, given wrong data, stopped and continued: nothing is lost or mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.design import FixedOrder, Loop, Pool, acquire, simulate
from bayesgen.design.model import prior_posterior
from bayesgen.errors import (
    BayesgenError,
    DataError,
    DtypeError,
    FileFormatError,
    ModelError,
    OptionError,
    SamplingError,
    ShapeError,
    UnknownOptionError,
)

SIGMA = 0.2
SCALE = torch.tensor([0.5, 2.0, 1.0, 0.1])
TRUTH = torch.tensor([0.4, -1.5, 0.8, 0.05])
POOL = Pool.pixels((4,))
FEW = bg.inference.SMC(particles=32)


def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    x = pyro.deterministic("x", SCALE * z)
    pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(1), obs=y)


def loop(model: Any = model, pool: Pool = POOL, **options: Any) -> Loop:
    settings: dict[str, Any] = {
        "acquisition": "variance",
        "budget": 3,
        "method": FEW,
        "draws": 32,
        "noise": SIGMA,
        **options,
    }
    return Loop(model, pool, simulate(POOL, TRUTH, SIGMA), **settings)


# ------------------------------------------------------------------------------- data


def test_a_buffer_that_is_used_again_changes_no_earlier_data() -> None:
    buffer = torch.zeros(1)
    run = loop()
    told = []
    while not run.finished:
        buffer[:] = TRUTH[run.ask()]
        told.append(float(buffer))
        run.tell(buffer)
    assert run.values is not None and run.values.flatten().tolist() == told


def test_noise_and_costs_are_copies() -> None:
    noise, costs = torch.full((4,), SIGMA), torch.ones(4)
    pool = Pool.pixels((4,), costs=costs)
    run = loop(pool=pool, noise=noise)
    noise[:], costs[:] = -1.0, -1.0
    assert bool((pool.costs == 1).all())
    assert len(list(run)) == 3


@pytest.mark.parametrize("kind", [np.float64, np.float32, int, list])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_take_the_dtype_of_the_model(kind: Any, dtype: torch.dtype) -> None:
    def typed(A: Any, y: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=dtype), 1.0).to_event(1))
        x = pyro.deterministic("x", SCALE.to(dtype) * z)
        pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(1), obs=y)

    def measure(chosen: list[int]) -> Any:
        values = TRUTH[chosen].round() if kind is int else TRUTH[chosen]
        return values.tolist() if kind is list else np.asarray(values.tolist(), dtype=kind)

    run = acquire(typed, POOL, measure, acquisition="variance", budget=2, method=FEW, draws=32)
    assert len(list(run)) == 2
    assert run.values is not None and run.values.dtype == dtype
    assert run.records[-1].mean.dtype == dtype


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (None, DtypeError, "returned NoneType for candidates"),
        ("noisy", DtypeError, "returned str"),
        (object(), DtypeError, "returned object"),
        ([[1.0]], ShapeError, r"returned shape \(1, 1\)"),
        ([float("inf")], DataError, "NaN or infinity"),
    ],
)
def test_what_is_no_data_is_refused(wrong: Any, error: type[BayesgenError], message: str) -> None:
    run = loop()
    chosen = run.ask()
    with pytest.raises(error, match=message):
        run.tell(wrong)
    assert run.measured == [] and run.ask() == chosen


def test_complex_data_are_real_and_imaginary_parts() -> None:
    A = bg.operators.Fourier((4, 4), torch.ones(4, dtype=torch.bool))
    pool = Pool(A)

    def of_lines(A: Any, y: Tensor | None = None) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(4, 4), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(3), obs=y)

    truth = torch.arange(16.0).reshape(4, 4)
    real = simulate(pool, truth)
    runs = [
        acquire(of_lines, pool, measure, acquisition="equispaced", budget=2, method=FEW, draws=32)
        for measure in (real, lambda chosen: torch.view_as_complex(real(chosen).contiguous()))
    ]
    for run in runs:
        list(run)
    assert runs[0].values is not None and runs[1].values is not None
    assert torch.equal(runs[0].values, runs[1].values)


def test_the_candidates_measured_can_be_told() -> None:
    run = loop(batch=2)
    chosen = run.ask()
    with pytest.raises(OptionError, match="were asked for"):
        run.tell(TRUTH[chosen], candidates=chosen[::-1])
    run.tell(TRUTH[chosen], candidates=chosen)
    assert run.measured == chosen


# ------------------------------------------------------------------------------- posteriors


def fail(error: BaseException) -> Any:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise error

    return failing


def test_data_can_be_taken_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "loop.safetensors"
    run, plain = loop(checkpoint=path), loop()
    next(iter(run))
    chosen = run.ask()
    with monkeypatch.context() as patch:
        patch.setattr("bayesgen.design.loop.infer", fail(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            run.tell(torch.tensor([1e6]))
    for broken in (run, loop(checkpoint=path)):
        assert broken.spent == 2
        assert broken.withdraw() == chosen and broken.spent == 1
        with pytest.raises(OptionError, match="nothing is taken back"):
            broken.withdraw()
    list(run)
    list(plain)
    assert run.measured == plain.measured
    assert torch.equal(run.records[-1].mean, plain.records[-1].mean)


def test_another_try_has_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def failing(*args: Any, seed: int, **kwargs: Any) -> None:
        seeds.append(seed)
        raise SamplingError("no chain moved")

    run = loop()
    chosen = run.ask()
    monkeypatch.setattr("bayesgen.design.loop.infer", failing)
    with pytest.raises(SamplingError):
        run.tell(TRUTH[chosen])
    with pytest.raises(SamplingError):
        run.ask()
    assert len(set(seeds)) == 2


def test_an_interrupted_posterior_is_not_taken_for_a_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = loop()
    chosen = run.ask()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        posterior = bg.infer(*args, **kwargs)
        posterior.attributes["interrupted"] = True
        return posterior

    with monkeypatch.context() as patch:
        patch.setattr("bayesgen.design.loop.infer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.tell(TRUTH[chosen])
    assert run.measured == chosen and run.records == []
    assert len(list(run)) == 3


@pytest.mark.filterwarnings("ignore:smc. 4 of 4 chains:RuntimeWarning")
def test_what_cannot_be_carried_on_begins_at_the_prior() -> None:
    run = loop(method=bg.inference.SMC(particles=32, max_iterations=1), budget=2)
    with pytest.warns(RuntimeWarning, match="begins at the prior"):
        assert len(list(run)) == 2


# ------------------------------------------------------------------------------- files


def test_a_loop_that_stopped_while_it_learned_continues_exactly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "loop.safetensors"
    plain, run = loop(), loop(checkpoint=path)
    next(iter(run))
    chosen = run.ask()
    with monkeypatch.context() as patch:
        patch.setattr("bayesgen.design.loop.infer", fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run.tell(run.measure(chosen) if run.measure else None)
    again = loop(checkpoint=path)
    list(again)
    list(plain)
    assert again.measured == plain.measured
    assert torch.equal(again.records[-1].mean, plain.records[-1].mean)


def test_a_question_outlives_the_program(tmp_path: Path) -> None:
    path = tmp_path / "loop.safetensors"
    chosen = loop(checkpoint=path).ask()
    # Another way of choosing may be tried from now on; the instrument has measured already.
    resumed = loop(checkpoint=path, acquisition="random")
    resumed.tell(TRUTH[chosen])
    assert resumed.measured == chosen


def test_checkpoints_of_other_problems_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.safetensors"
    list(loop(checkpoint=path, budget=1))
    other = Pool(bg.operators.Matrix(torch.eye(4).flip(0), (4,)))
    for pool in (other, Pool.pixels((4,), costs=[1.0, 1.0, 1.0, 2.0])):
        with pytest.raises(FileFormatError, match="another pool"):
            loop(pool=pool, checkpoint=path)
    with pytest.raises(FileFormatError, match="'chains': 4.*expected.*'chains': 2"):
        loop(checkpoint=path, chains=2)

    def of_another_latent(A: Any, y: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        x = pyro.deterministic("x", z.repeat(2))
        pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(1), obs=y)

    with pytest.raises(FileFormatError, match=r"'z' of shape \(4,\); this one's has \(2,\)"):
        loop(of_another_latent, checkpoint=path)
    assert loop(checkpoint=path, budget=2, acquisition="random", batch=2).spent == 1


# ------------------------------------------------------------------------------- models


def flattened(A: Any, y: Tensor | None = None) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    mean = A(x).flatten()
    obs = None if y is None else y.flatten()
    pyro.sample("y", dist.Normal(mean, SIGMA).to_event(1), obs=obs)


def counted(A: Any, y: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    x = pyro.deterministic("x", z.exp())
    pyro.sample("y", dist.Poisson(A(x)).to_event(1), obs=y)


def test_data_may_be_flattened_in_the_model() -> None:
    pool = Pool(bg.operators.Identity((2, 3)))
    measure = simulate(pool, torch.arange(6.0).reshape(2, 3))
    run = acquire(flattened, pool, measure, acquisition="variance", budget=2, method=FEW, draws=32)
    assert len(list(run)) == 2


def test_laws_of_data_that_have_no_gradient_can_begin() -> None:
    run = acquire(
        counted,
        POOL,
        lambda chosen: torch.tensor([3.0, 0.0, 1.0, 2.0])[chosen],
        acquisition="variance",
        budget=2,
        method=FEW,
        draws=64,
    )
    assert run.posterior.latent_sites == ["z"]
    assert len(list(run)) == 2


def test_draws_before_any_data_have_the_law_of_the_prior() -> None:
    """Data that are drawn in its place must not pull at them."""
    posterior = prior_posterior(model, POOL, (4, 5000), seed=0)
    z = posterior.draws("z").flatten(0, 1)
    assert float(z.mean(0).abs().max()) < 5.0 / len(z) ** 0.5
    assert float((z.var(0) - 1).abs().max()) < 5.0 * (2.0 / len(z)) ** 0.5


def without_operator(A: Any, y: Tensor | None = None) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": without_operator}, ModelError, "Write the forward operator"),
        ({"site": "image"}, ModelError, "site: got 'image'.*sites are"),
        ({"pool": Pool.pixels((5,))}, ModelError, "images of shape|failed for an operator"),
        ({"acquisition": "information-gain", "noise": None}, OptionError, "noise: 'information"),
        ({"warmup": 100}, OptionError, "warmup: got 100 for method 'smc'"),
        ({"seed": 1.5}, OptionError, "seed"),
        ({"seed": -1}, OptionError, "seed"),
        ({"budget": True}, OptionError, "budget"),
        ({"budget": 0.5}, OptionError, "the cheapest candidate costs 1"),
        ({"initial": [0, 1, 2], "budget": 2}, OptionError, "initial: measuring these costs 3"),
        ({"initial": [1.7]}, OptionError, "initial"),
        ({"method": "auto"}, OptionError, "leave it out"),
        ({"noise": "little"}, DtypeError, "noise"),
        ({"noise": 1j}, DtypeError, "noise"),
        ({"checkpoint": "nowhere/loop"}, OptionError, "checkpoint"),
        ({"bach": 2}, UnknownOptionError, r"^Loop: .*did you mean 'batch'"),
        ({"acquisition": FixedOrder([7])}, OptionError, "there are 4 candidates"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured(
    options: dict[str, Any], error: type[BayesgenError], message: str
) -> None:
    with pytest.raises(error, match=message):
        loop(**options)


def test_movement_counts_for_what_comes_first() -> None:
    pool = Pool.pixels((4,), movement=lambda i, j: abs(i - j))
    with pytest.raises(OptionError, match=r"these costs 5, but the budget is 3"):
        loop(pool=pool, initial=[0, 3], budget=3)
    with pytest.raises(OptionError, match="costs 13 only"):
        loop(pool=pool, budget=14)


def test_an_order_that_ends_ends_the_loop() -> None:
    run = loop(acquisition=FixedOrder([2, 0]), budget=4)
    assert [r.chosen for r in run] == [(2,), (0,)]
    assert run.outcome == "order exhausted" and run.finished
