"""Choosing: costs, movement, budgets, ties, and what cannot be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Choice, Level, Ranking, Scorer
from bayesgen.design.belief import Belief
from bayesgen.errors import DataError, OptionError, UnknownOptionError


@dataclass(frozen=True)
class Given(Acquisition):
    """Scores as given."""

    name = "given"
    task = "either"

    values: tuple[float, ...]
    kind: type[Scorer] = Scorer

    def begin(self, belief: Belief) -> Scorer:
        return self.kind(torch.tensor(self.values, dtype=torch.float64))


def choose(
    problem: Any,
    scores: Sequence[float],
    *options: Any,
    kind: type[Scorer] = Scorer,
    **changes: Any,
) -> Choice:
    belief = problem(n=len(scores)).but(**changes)
    return Given(tuple(scores), kind).choose(belief, *options)


def costs(*values: float) -> Any:
    return lambda last: torch.tensor(values)


def test_the_highest_come_first_and_scores_are_the_first_ones(problem: Any) -> None:
    available = torch.tensor([True, True, False, True])
    choice = choose(problem, [1.0, 3.0, 9.0, 2.0], 2, available=available)
    assert choice.indices == [1, 3]
    torch.testing.assert_close(
        choice.scores, torch.tensor([1.0, 3.0, torch.nan, 2.0]).double(), equal_nan=True
    )
    assert choose(problem, [1.0, 3.0, 9.0, 2.0], 9, available=available).indices == [1, 3, 0]


def test_of_equals_the_lowest_number(problem: Any) -> None:
    for n in (5, 1000):
        assert choose(problem, [0.0] * n, 3).indices == [0, 1, 2]
        assert choose(problem, [1.0, *[2.0] * (n - 1)], 3).indices == [1, 2, 3]


def test_of_equals_the_cheapest_then_the_lowest_number(problem: Any) -> None:
    weighed = {"costs_from": costs(10.0, 2.0, 1.0, 1.0)}
    for kind in (Scorer, Level, Ranking):
        assert choose(problem, [0.0] * 4, 4, kind=kind, **weighed).indices == [2, 3, 1, 0]
    assert choose(problem, [10.0, 2.0, 0.5, 1.0], 4, **weighed).indices == [3, 1, 0, 2]


@pytest.mark.parametrize(
    ("kind", "scores", "expected"),
    [
        (Scorer, [4.0, 3.0, 2.5], [2, 1, 0]),  # 1.33, 1.5, 2.5
        (Scorer, [-0.4, -0.3, -0.5], [2, 1, 0]),  # of losses the cheaper: -1.2, -0.6, -0.5
        (Level, [-7.0, -9.0, -9.5], [0, 1, 2]),  # 2.5 / 3, 0.5 / 2, 0 above the lowest
        (Ranking, [4.0, 3.0, 2.5], [0, 1, 2]),
    ],
)
def test_costs_are_weighed(
    problem: Any, kind: type[Scorer], scores: list[float], expected: list[int]
) -> None:
    assert (
        choose(problem, scores, 3, kind=kind, costs_from=costs(3.0, 2.0, 1.0)).indices == expected
    )


def test_a_level_may_be_shifted(problem: Any) -> None:
    scores = torch.tensor([0.3, 0.9, 0.1, 0.4]).double()
    for shift in (-100.0, 0.0, 100.0):
        shifted = (scores + shift).tolist()
        weighed = {"kind": Level, "costs_from": costs(1.0, 8.0, 1.0, 2.0)}
        assert choose(problem, shifted, **weighed).indices == [0]


def test_movement_counts_from_the_last_choice(problem: Any) -> None:
    """Equal gains: always the nearest; the best for its cost, step by step."""
    places = torch.tensor([0.0, 10.0, 1.0, 11.0, 3.0])

    def movement(last: int | None) -> Tensor:
        return 1.0 + (places - (0.0 if last is None else places[last])).abs()

    assert choose(problem, [1.0] * 5, 5, costs_from=movement).indices == [0, 2, 4, 1, 3]
    start = {"measured": (3,), "values": torch.zeros(1, 1)}
    chosen = choose(problem, [1.0] * 5, 5, costs_from=movement, **start).indices
    assert chosen == [3, 1, 4, 2, 0]
    fixed = choose(problem, [1.0] * 5, 5, costs_from=lambda last: movement(None)).indices
    assert fixed != chosen  # costs that are not recomputed order otherwise


def spent(order: Sequence[int], movement: Any) -> float:
    total, last = 0.0, None
    for index in order:
        total, last = total + float(movement(last)[index]), index
    return total


def test_no_more_than_is_affordable(problem: Any) -> None:
    places = torch.tensor([2.0, 5.0, 1.0, 9.0])

    def movement(last: int | None) -> Tensor:
        return 1.0 + (places - (0.0 if last is None else places[last])).abs()

    for affordable in (2.0, 3.9, 4.0, 6.0, 8.5, 13.0, 100.0):
        choice = choose(problem, [1.0, 4.0, 0.5, 2.0], 4, affordable, costs_from=movement)
        assert spent(choice.indices, movement) <= affordable
        rest = [i for i in range(4) if i not in choice.indices]
        assert all(spent([*choice.indices, i], movement) > affordable for i in rest)
    assert choose(problem, [1.0] * 3, 3, 0.3, costs_from=costs(0.1, 0.1, 0.1)).indices == [0, 1, 2]
    free = [spent(order, movement) for order in permutations(range(4))]
    assert min(free) > 4.0  # the budgets above do bind


def test_what_cannot_be_chosen(problem: Any) -> None:
    none = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(OptionError, match="available: none of the 3 candidates"):
        choose(problem, [1.0] * 3, available=none)
    with pytest.raises(
        OptionError, match="affordable: got 0.5, but the cheapest candidate costs 1"
    ):
        choose(problem, [1.0] * 3, 1, 0.5)
    with pytest.raises(OptionError, match="available: none of the candidates that the order lists"):
        choose(problem, [-torch.inf] * 3)
    for cost in (0.0, -1.0, torch.nan):
        with pytest.raises(OptionError, match=f"costs: .*got {cost} for candidate 1"):
            choose(problem, [1.0] * 2, costs_from=costs(1.0, cost))
    with pytest.raises(DataError, match="given: the score of candidate 1 is not a number"):
        choose(problem, [1.0, torch.nan])
    with pytest.raises(DataError, match=r"given: expected scores of shape \(7,\), got \(2,\)"):
        Given((1.0, 2.0)).choose(problem().belief)
    for batch in (0, 1.5, True):
        with pytest.raises(OptionError, match="batch: got"):
            choose(problem, [1.0], batch)
    with pytest.raises(UnknownOptionError, match="Given: unknown option 'value'"):
        Given(value=(1.0,))  # type: ignore[call-arg]


def test_scores_of_what_is_not_available_do_not_matter(problem: Any) -> None:
    available = torch.tensor([True, False])
    unpaid = {"available": available, "costs_from": costs(1.0, 0.0)}
    assert choose(problem, [1.0, torch.nan], **unpaid).indices == [0]
