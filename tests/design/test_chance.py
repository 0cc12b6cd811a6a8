"""Choices by chance have the frequencies they should have. False-alarm rate: 1e-6."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.chance import EpsilonGreedy, RandomChoice
from bayesgen.design.estimation import InformationGain, Variance
from bayesgen.design.fixed import FixedOrder
from bayesgen.errors import OptionError

REPEATS = 1500


def worst_z(
    acquisition: Acquisition, belief: Belief, expected: list[float], place: int = 0
) -> float:
    """Largest deviation of the counts of one choice of a batch, in standard errors."""
    batch = place + 1
    counts = torch.zeros(len(expected), dtype=torch.float64)
    for _ in range(REPEATS):
        counts[acquisition.choose(belief, batch).indices[place]] += 1
    p = torch.tensor(expected, dtype=torch.float64)
    if bool((counts[p == 0] > 0).any()):
        return math.inf
    errors = (counts - REPEATS * p) / (REPEATS * p * (1 - p)).sqrt()
    return float(errors[p > 0].abs().max())


# A normal variable exceeds 5.5 with probability 4e-8, one of a dozen with 5e-7.
ALLOWED = 5.5


def test_random_is_uniform_over_what_is_available(problem: Any) -> None:
    available = torch.tensor([True, False, True, True, False])
    costs = torch.tensor([1.0, 1.0, 5.0, 2.0, 1.0])
    belief = problem(n=5).but(available=available, costs_from=lambda last: costs)
    for place in (0, 1):
        assert worst_z(RandomChoice(), belief, [1 / 3, 0, 1 / 3, 1 / 3, 0], place) < ALLOWED
    assert worst_z(EpsilonGreedy(epsilon=0.7), belief, [1 / 3, 0, 1 / 3, 1 / 3, 0]) > ALLOWED


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_epsilon_greedy_follows_its_base_as_often_as_it_says(problem: Any, epsilon: float) -> None:
    belief = problem(n=4).belief
    best = Variance().choose(belief).indices[0]
    expected = [epsilon / 4] * 4
    expected[best] += 1 - epsilon
    if epsilon == 0.0:
        assert EpsilonGreedy(epsilon=0.0).choose(belief).indices == [best]
        return
    assert worst_z(EpsilonGreedy(epsilon=epsilon), belief, expected) < ALLOWED
    assert worst_z(EpsilonGreedy(epsilon=epsilon / 2), belief, expected) > ALLOWED


def test_every_choice_of_a_batch_is_random_on_its_own(problem: Any) -> None:
    """The second choice: half at random of what is left, else the best of it."""
    belief = problem(n=4).belief
    order = Variance().scores(belief).argsort(descending=True).tolist()
    # The first is the best with probability 5/8, each other with 1/8.
    p = {a: 5 / 8 if a == order[0] else 1 / 8 for a in range(4)}
    second = []
    for a in range(4):
        total = 0.0
        for first in range(4):
            if first != a:
                leader = next(b for b in order if b != first)
                total += p[first] * (1 / 6 + (0.5 if leader == a else 0.0))
        second.append(total)
    assert worst_z(EpsilonGreedy(), belief, second, place=1) < ALLOWED
    assert worst_z(_OneToss(), belief, second, place=1) > ALLOWED


@dataclass(frozen=True)
class _OneToss(EpsilonGreedy):
    """Tosses once a batch."""

    name = "mutant"

    def begin(self, belief: Belief) -> Scorer:
        toss = float(torch.rand((), generator=belief.rng))
        return (RandomChoice() if toss < self.epsilon else Variance()).begin(belief)


def test_the_base_learns_of_random_choices(problem: Any) -> None:
    linear = problem(n=6)
    taken: list[int] = []

    @dataclass(frozen=True)
    class Watched(InformationGain):
        name = "watched"

        def begin(self, belief: Belief) -> Scorer:
            scorer = super().begin(belief)
            take = scorer.take
            scorer.take = lambda index: (taken.append(index), take(index))[1]  # type: ignore[method-assign, func-returns-value]
            return scorer

    choice = EpsilonGreedy(Watched()).choose(linear.belief, 4)
    assert taken == choice.indices[:3]
    torch.testing.assert_close(choice.scores, InformationGain().scores(linear.belief))


def test_exploring_stays_within_the_budget(problem: Any) -> None:
    costs = torch.tensor([1.0, 9.0, 1.0, 9.0])
    belief = problem(n=4).but(costs_from=lambda last: costs)
    for acquisition in (RandomChoice(), EpsilonGreedy(epsilon=1.0)):
        for _ in range(50):
            assert set(acquisition.choose(belief, 4, 2.5).indices) == {0, 2}


def test_impossible_settings_are_refused() -> None:
    for value in (-0.1, 1.5, float("nan"), "half", True):
        with pytest.raises(OptionError, match="epsilon: got"):
            EpsilonGreedy(epsilon=value)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="base: unknown value 'varianc'.*did you mean"):
        EpsilonGreedy(base="varianc")
    with pytest.raises(OptionError, match="base: 'fixed' has no default settings"):
        EpsilonGreedy(base="fixed")
    with pytest.raises(OptionError, match="base: unknown value 'None'"):
        EpsilonGreedy(base=None)  # type: ignore[arg-type]


def test_the_base_may_be_named() -> None:
    named = EpsilonGreedy(base="information-gain", epsilon=0.2)
    assert named == EpsilonGreedy(InformationGain(), 0.2)
    assert repr(named) == "EpsilonGreedy(base=InformationGain(shrinkage=0.0), epsilon=0.2)"
    assert EpsilonGreedy(base="variance") == EpsilonGreedy()


def test_needs_and_choices_are_the_bases() -> None:
    assert not EpsilonGreedy().needs_noise and EpsilonGreedy("information-gain").needs_noise
    assert EpsilonGreedy(FixedOrder([3, 1])).may_choose(4).tolist() == [False, True, False, True]
    assert EpsilonGreedy().may_choose(3).tolist() == [True] * 3


def test_random_numbers_come_from_the_belief(problem: Any) -> None:
    def chosen(seed: int) -> Tensor:
        belief = problem(n=50).but(rng=torch.Generator().manual_seed(seed))
        return torch.tensor(RandomChoice().choose(belief, 10).indices)

    assert torch.equal(chosen(0), chosen(0)) and not torch.equal(chosen(0), chosen(1))
