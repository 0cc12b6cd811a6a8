"""NUTS: exact, doubles until it turns, leaves out chains that have finished."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import nuts
from bayesgen.inference.checks import check_method, moment_report
from bayesgen.inference.nuts import NUTS
from bayesgen.inference.runner import run_sampler
from bayesgen.inference.targets import Banana, Funnel, GaussianTarget, Target

TARGET = GaussianTarget.with_condition(4, 10.0)
float64 = torch.float64


def test_gaussians_of_condition_ten() -> None:
    check_method(NUTS(), chains=32, draws=50, warmup=100).raise_if_failed()


@pytest.mark.parametrize("target", [Banana(width=1.0), Funnel(width=0.5)])
def test_curved_targets(target: Target) -> None:
    check_method(NUTS(), target, chains=16, draws=100, warmup=100).raise_if_failed()


@pytest.mark.parametrize("settings", [{"step_size": 1.2}, {"step_size": 0.5, "max_depth": 2}])
def test_exact_at_any_step_size_and_depth(settings: dict[str, float]) -> None:
    method = NUTS(**settings)  # type: ignore[arg-type]
    check_method(method, TARGET, draws=100, warmup=0).raise_if_failed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype, rng: torch.Generator) -> None:
    start = torch.zeros(2, 3, 4, dtype=dtype)
    target = GaussianTarget.with_condition(4, 10.0, dtype=dtype)
    run = run_sampler(NUTS(), target, start, rng, draws=5, warmup=20)
    assert run.position.dtype == run.stats["acceptance_rate"].dtype == dtype
    assert all(value.shape == (2, 3, 5) for value in run.stats.values())


def test_one_chain_alone(rng: torch.Generator) -> None:
    run = run_sampler(NUTS(), TARGET, TARGET.starts(1, rng), rng, draws=60, warmup=60)
    assert run.position.std(1).min() > 0.5


def test_problems_adapt_on_their_own(rng: torch.Generator) -> None:
    class Widths:
        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            width = torch.tensor([1.0, 100.0], dtype=float64)[:, None, None]
            return -0.5 * (v / width).square().sum(-1), -v / width**2

    start = torch.randn(2, 16, 2, generator=rng, dtype=float64)
    run = run_sampler(NUTS(), Widths(), start, rng, draws=60, warmup=100)
    for i, width in enumerate((1.0, 100.0)):
        truth = torch.zeros(2, dtype=float64), width**2 * torch.eye(2, dtype=float64)
        moment_report("", run.position[i], *truth).raise_if_failed()


def test_trajectories_end_at_half_a_period(rng: torch.Generator) -> None:
    """A unit Gaussian's period is 2 pi; a trajectory turns between a quarter and all of it."""
    target = GaussianTarget(torch.zeros(4, dtype=float64), torch.eye(4, dtype=float64))
    step = 0.05
    run = run_sampler(NUTS(step_size=step), target, target.starts(32, rng), rng, draws=20, warmup=0)
    length = run.stats["n_steps"] * step
    assert 0.5 * math.pi < float(length.mean()) < 2.5 * math.pi
    depth, steps = run.stats["tree_depth"], run.stats["n_steps"]
    assert bool((steps >= 2**depth - 1).all()) and bool((steps <= 2 ** (depth + 1) - 1).all())


def test_depth_is_bounded(rng: torch.Generator) -> None:
    method = NUTS(step_size=1e-3, max_depth=3)
    run = run_sampler(method, TARGET, TARGET.starts(5, rng), rng, draws=4, warmup=0)
    assert bool((run.stats["n_steps"] == 7).all()) and bool((run.stats["tree_depth"] == 3).all())
    assert run.num_evaluations == 1 + 4 * 7


def test_chains_that_have_finished_are_left_out(rng: torch.Generator) -> None:
    class Sparing(GaussianTarget):
        takes_where = True
        rows = 0

        def value_and_grad(
            self, v: Tensor, *, jacobian: bool = True, where: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            value, gradient = super().value_and_grad(v)
            if where is None:
                return value, gradient
            Sparing.rows += int(where.sum())
            return value.where(where, math.nan), gradient.where(where[..., None], math.nan)

    method, results = NUTS(step_size=0.4), []
    start = TARGET.starts(12, rng).reshape(3, 4, 4)
    for density in (TARGET, Sparing(TARGET.mean, TARGET.covariance)):
        state, stream = method.init(density, start), torch.Generator().manual_seed(1)
        for _ in range(5):
            state, info = method.step(density, state, stream)
        results.append((state, info))
    assert torch.equal(results[0][0].position, results[1][0].position)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(one, other)
    assert Sparing.rows >= int(results[1][1].n_steps.sum())


def test_steps_are_counted_for_each_chain(rng: torch.Generator) -> None:
    run = run_sampler(NUTS(step_size=0.4), TARGET, TARGET.starts(8, rng), rng, draws=30, warmup=0)
    longest = run.stats["n_steps"].max(0).values.sum()
    assert run.num_evaluations == 1 + int(longest)


def test_divergences_are_found_and_rejected(rng: torch.Generator) -> None:
    start = TARGET.starts(8, rng)
    run = run_sampler(NUTS(step_size=1e3), TARGET, start, rng, draws=5, warmup=0)
    assert bool(run.stats["diverging"].all()) and bool((run.stats["n_steps"] == 1).all())
    assert torch.equal(run.position[:, -1], start)


def test_leaving_the_domain_is_a_rejection_not_a_crash(rng: torch.Generator) -> None:
    class Half:
        """Exponential; NaN below zero."""

        num_dims = 1

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            value = torch.where(v > 0, -v, math.nan)
            return value[..., 0], torch.where(v > 0, -torch.ones_like(v), math.nan)

    start = torch.ones(32, 1, dtype=float64)
    run = run_sampler(NUTS(step_size=0.5), Half(), start, rng, draws=150, warmup=50)
    one = torch.ones(1, dtype=float64)
    assert bool((run.position > 0).all())
    moment_report("", run.position, one, one[:, None]).raise_if_failed()


def test_warm_up_reaches_the_target_acceptance(rng: torch.Generator) -> None:
    run = run_sampler(NUTS(), TARGET, TARGET.starts(32, rng), rng, draws=50, warmup=100)
    assert abs(float(run.stats["acceptance_rate"].mean()) - 0.8) < 0.12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_depth": 0}, "max_depth: got 0"),
        ({"target_acceptance": 1.5}, "target_acceptance: got 1.5"),
        ({"step_size": 0.0}, "step_size: got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        NUTS(**settings)  # type: ignore[arg-type]
    with pytest.raises(UnknownOptionError, match="NUTS: unknown option 'depth'"):
        NUTS(depth=3)  # type: ignore[call-arg]


# ------------------------------------------------------------------------------------- mutants


def passes(step_size: float) -> bool:
    target = GaussianTarget.with_condition(2, 3.0)
    return check_method(NUTS(step_size=step_size), target, draws=100, warmup=0).passed


def test_without_mutation_the_step_sizes_below_pass() -> None:
    assert passes(0.8) and passes(1.7)


def test_a_wrong_weight_of_points_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = nuts._kinetic
    monkeypatch.setattr(nuts, "_kinetic", lambda momentum, state: 2.0 * right(momentum, state))
    assert not passes(1.7)


def test_a_later_half_that_is_always_taken_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = nuts._extend

    def greedy(*args: object) -> object:
        tree, progress = right(*args)  # type: ignore[arg-type]
        depth: int = args[5]  # type: ignore[assignment]
        return tree._replace(log_weight=tree.log_weight + 100.0 * (depth + 1)), progress

    monkeypatch.setattr(nuts, "_extend", greedy)
    assert not passes(1.7)


def test_a_draw_from_parts_that_turned_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trajectory that could not have grown from its other points breaks detailed balance."""
    right = nuts._turns

    def lenient(position: Tensor, momentum: Tensor, last: nuts.Phase) -> Tensor:
        turned = right(position, momentum, last)
        return turned & False if position.ndim > last.position.ndim else turned

    monkeypatch.setattr(nuts, "_turns", lenient)
    assert not passes(0.8)
