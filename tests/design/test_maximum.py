"""Finding the maximum draw by draw: frequencies, closed forms, batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Ranking, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.maximum import ExpectedImprovement, QuantileUCB, Thompson
from bayesgen.errors import OptionError, ShapeError

float64 = torch.float64
TASK = (Thompson(), QuantileUCB(), ExpectedImprovement())


def with_values(problem: Any, draws: Tensor, **changes: Any) -> Belief:
    """A belief with these values ``(S, n)`` as draws."""
    linear = problem(n=draws.shape[1], draws=12)
    belief: Belief = linear.but(images=draws, data=draws[:, :, None], noise=None, **changes)
    return belief


def measured(values: list[float], at: list[int]) -> dict[str, Any]:
    return {"measured": tuple(at), "values": torch.tensor(values, dtype=float64)[:, None]}


def test_one_number_a_candidate(problem: Any) -> None:
    for acquisition in TASK:
        with pytest.raises(ShapeError, match="data: to find the maximum.*got 2"):
            acquisition.choose(problem(q=2).belief)


# ------------------------------------------------------------------------------------ Thompson


def normal_draws(num: int, seed: int = 0) -> Tensor:
    """Three correlated values."""
    rng = torch.Generator().manual_seed(seed)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.0, -0.6, 1.5]], dtype=float64)
    noise = torch.randn(num, 3, generator=rng, dtype=float64)
    return noise @ root.T + torch.tensor([0.2, 0.3, -0.4], dtype=float64)


def thompson_z(acquisition: Acquisition, problem: Any, repeats: int = 600) -> float:
    """Deviation of choices from the probability of being best, of fresh posteriors each time."""
    counts = torch.zeros(3, dtype=float64)
    first = with_values(problem, normal_draws(5))
    for seed in range(repeats):
        rng = torch.Generator().manual_seed(seed)
        belief = replace(first, data=normal_draws(5, seed)[:, :, None], rng=rng)
        counts[acquisition.choose(belief).indices[0]] += 1
    p = normal_draws(1_000_000, -1).argmax(1).bincount() / 1_000_000
    return float(((counts - repeats * p) / (repeats * p * (1 - p)).sqrt()).abs().max())


@dataclass(frozen=True)
class LargestMean(Acquisition):
    """Averages the draws first."""

    name = "mutant"
    task = "maximum"

    def begin(self, belief: Belief) -> Scorer:
        return Ranking(belief.mean[:, 0])


@dataclass(frozen=True)
class LargestOfAll(Acquisition):
    """Takes the candidate of the largest value in any draw."""

    name = "mutant"
    task = "maximum"

    def begin(self, belief: Belief) -> Scorer:
        return Ranking(belief.data.amax((0, 2)))


def test_thompson_follows_the_probability_of_being_best(problem: Any) -> None:
    # Five standard errors: false alarm 2e-6 for three counts.
    assert thompson_z(Thompson(), problem) < 5.0
    assert thompson_z(LargestMean(), problem) > 5.0
    assert thompson_z(LargestOfAll(), problem) > 5.0


def test_thompson_takes_each_draw_once(problem: Any) -> None:
    """Every draw has another best candidate: a batch of all draws is all of these."""
    values = torch.eye(8, dtype=float64)[:5]
    for seed in range(5):
        belief = with_values(problem, values, rng=torch.Generator().manual_seed(seed))
        assert set(Thompson().choose(belief, 5).indices) == set(range(5))
        assert len(Thompson().choose(belief, 8).indices) == 8


def test_thompson_is_of_what_is_available(problem: Any) -> None:
    values = torch.tensor([[9.0, 1.0, 2.0], [9.0, 2.0, 1.0]], dtype=float64)
    available = torch.tensor([False, True, True])
    chosen = {
        Thompson()
        .choose(
            with_values(
                problem, values, available=available, rng=torch.Generator().manual_seed(seed)
            )
        )
        .indices[0]
        for seed in range(20)
    }
    assert chosen == {1, 2}


def test_thompson_does_not_weigh_costs_but_keeps_the_budget(problem: Any) -> None:
    values = torch.tensor([[1.0, 1.1, 1.2]] * 2, dtype=float64)
    costs = torch.tensor([1.0, 2.0, 50.0])
    belief = with_values(problem, values, costs_from=lambda last: costs)
    assert Thompson().choose(belief).indices == [2]
    assert Thompson().choose(belief, 1, 10.0).indices == [1]


# ------------------------------------------------------------------------- expected improvement


def quantiles(mean: float, std: float, num: int = 20_000) -> Tensor:
    """Equally likely values of a normal."""
    p = (torch.arange(num, dtype=float64) + 0.5) / num
    return mean + std * torch.special.ndtri(p)


def closed_form(mean: float, std: float, best: float) -> float:
    g = (mean - best) / std
    density = math.exp(-0.5 * g * g) / math.sqrt(2 * math.pi)
    return (mean - best) * 0.5 * math.erfc(-g / math.sqrt(2)) + std * density


NORMALS = [(0.0, 1.0), (0.5, 0.3), (-1.0, 2.0), (3.0, 0.1)]


def test_improvement_is_the_closed_form_for_normals(problem: Any) -> None:
    values = torch.stack([quantiles(*normal) for normal in NORMALS], 1)
    belief = with_values(problem, values, **measured([0.4, 1.0], [0, 1]))
    scores = ExpectedImprovement().scores(belief)
    expected = torch.tensor([closed_form(*normal, 1.0) for normal in NORMALS], dtype=float64)
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=1e-3)
    wrong = torch.tensor([closed_form(*normal, 0.4) for normal in NORMALS], dtype=float64)
    assert float((scores - wrong).abs().max()) > 0.01


def test_improvement_on_the_draws_own_best(problem: Any) -> None:
    values = torch.tensor([[1.0, 2.0, 5.0], [4.0, 0.0, 4.5], [0.0, 3.0, 1.0]], dtype=float64)
    belief = with_values(problem, values, **measured([100.0, 100.0], [0, 1]))
    scores = ExpectedImprovement(best="draws").scores(belief)
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.0, 3.5 / 3], dtype=float64))
    assert float(ExpectedImprovement().scores(belief).max()) == 0.0


def test_the_mean_decides_before_anything_is_measured(problem: Any) -> None:
    values = normal_draws(50)
    for best in ("measured", "draws"):
        scores = ExpectedImprovement(best=best).scores(with_values(problem, values))  # type: ignore[arg-type]
        torch.testing.assert_close(scores, values.mean(0) - values.min())


def test_the_mean_decides_where_nothing_improves(problem: Any) -> None:
    values = normal_draws(50) + torch.tensor([0.0, 2.0, 1.0], dtype=float64)
    belief = with_values(problem, values, **measured([50.0], [0]))
    choice = ExpectedImprovement().choose(belief, 3)
    assert choice.indices == values.mean(0).argsort(descending=True).tolist() == [1, 2, 0]
    assert choice.scores.tolist() == [0.0, 0.0, 0.0]
    # Once the only candidate that improves has been taken, too.
    values[:, 0] += 60.0
    assert ExpectedImprovement().choose(belief, 3).indices == [0, 1, 2]
    costs = torch.tensor([1.0, 50.0, 1.0])
    dear = with_values(
        problem, values - values[:, :1], **measured([90.0], [0]), costs_from=lambda last: costs
    )
    assert ExpectedImprovement().choose(dear).indices == [0]


def improvement_of(values: Tensor, chosen: list[int], best: float) -> float:
    return float((values[:, chosen].amax(1) - best).clamp(min=0).mean())


def test_batches_improve_together(problem: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(30, 6, generator=rng, dtype=float64)
    values[:, 1] = values[:, 0] + 0.01  # nearly a copy
    values[:, :2] += 0.8
    belief = with_values(problem, values, **measured([0.5], [5]))
    greedy: list[int] = []
    for _ in range(4):
        rest = [a for a in range(6) if a not in greedy]
        greedy.append(max(rest, key=lambda a: improvement_of(values, [*greedy, a], 0.5)))
    choice = ExpectedImprovement().choose(belief, 4)
    assert choice.indices == greedy
    apart = ExpectedImprovement().scores(belief).topk(4).indices.tolist()
    assert apart != greedy and {0, 1} <= set(apart)


# ------------------------------------------------------------------------------------ quantiles


def test_quantiles_follow_the_schedule(problem: Any) -> None:
    """Of the draws 1, ..., 60, the least value with at least a share 1 - 1/(t + 1) below or at."""
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    values = torch.stack([torch.arange(1, 61)[order], torch.arange(61, 121)[order]], 1).double()
    for t, expected in ((1, 30), (2, 40), (3, 45), (4, 48), (6, 52), (59, 59), (200, 60)):
        data = measured([0.0] * (t - 1), [0] * (t - 1))
        scores = QuantileUCB().scores(with_values(problem, values, **data))
        assert scores.tolist() == [expected, expected + 60]
        assert math.ceil(60 * (1 - 1 / (t + 1)) - 1e-9) == expected


def test_quantiles_see_a_rare_high_value(problem: Any) -> None:
    rare = torch.zeros(40, dtype=float64)
    rare[7] = 10.0
    values = torch.stack([rare, torch.linspace(0.0, 1.0, 40, dtype=float64)], 1)
    late = measured([0.0] * 100, [0] * 100)
    assert QuantileUCB().choose(with_values(problem, values)).indices == [1]
    assert QuantileUCB().choose(with_values(problem, values, **late)).indices == [0]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(OptionError, match="best: unknown value 'draw'.*did you mean 'draws'"):
        ExpectedImprovement(best="draw")  # type: ignore[arg-type]


def test_scores_fall_with_what_is_best(problem: Any) -> None:
    values = normal_draws(40)
    bests = [-1.0, 0.0, 1.0, 5.0]
    scores = [
        ExpectedImprovement().scores(with_values(problem, values, **measured([best], [0])))
        for best in bests
    ]
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(scores))
    assert float(scores[-1].max()) == 0.0
