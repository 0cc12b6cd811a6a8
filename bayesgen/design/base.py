"""What every acquisition function is: settings, and scores while a batch is put together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from bayesgen.design.belief import Belief
from bayesgen.errors import DataError, OptionError
from bayesgen.types import check_count, check_options

# Costs are added up in floating point, perhaps single: a budget they fill exactly is not exceeded.
ROUNDING = 1e-6


class Choice(NamedTuple):
    """What to measure next.

    Attributes
    ----------
    indices
        Candidates in the order in which they are to be measured.
    scores
        Scores by which the first of them was chosen, ``(n,)``; NaN for those not available.
    """

    indices: list[int]
    scores: Tensor


class Scorer:
    """Scores of the candidates while a batch is put together: gains, weighed against costs.

    Those that choose a batch jointly derive from it and learn of every choice by `take`.
    """

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores

    def scores(self) -> Tensor:
        """Scores given what the batch holds already, ``(n,)``; minus infinity: never to choose."""
        return self._scores

    def preferences(self, scores: Tensor, costs: Tensor, allowed: Tensor) -> Tensor:
        """What the next choice is the largest allowed one of, ``(n,)``: the gain per cost."""
        # A gain estimated by chance may be negative; it is not made better by a high cost.
        return torch.where(scores > 0, scores / costs, scores * costs)

    def take(self, index: int) -> None:
        """This candidate joins the batch."""


class Level(Scorer):
    """Scores without a zero of their own: what counts is how far they are above the lowest."""

    def preferences(self, scores: Tensor, costs: Tensor, allowed: Tensor) -> Tensor:
        """Score above the lowest allowed one, per cost."""
        return (scores - scores[allowed].min()) / costs


class Ranking(Scorer):
    """Scores of which only the order counts, whatever the costs."""

    def preferences(self, scores: Tensor, costs: Tensor, allowed: Tensor) -> Tensor:
        """The scores."""
        return scores


class Acquisition:
    """How much each candidate is worth measuring; subclasses are frozen dataclasses.

    To write one:

    - decorate with ``@dataclass(frozen=True)``, set ``name``, ``reference`` and ``task``, give
      fields defaults where there are any and check them in ``__post_init__``;
    - ``begin(belief)`` returns a `Scorer` of gains (bits, variances: nothing gained is zero), a
      `Level` for scores that have no zero, or a `Ranking` for those that take no notice of costs;
    - for batches that are chosen jointly, derive a scorer whose ``take`` updates its scores;
    - set ``needs_noise`` if it uses ``belief.positive_noise``, and override ``may_choose`` if there
      are candidates that it never chooses;
    - draw random numbers from ``belief.rng`` only, and change nothing in the belief;
    - add it to ``ACQUISITIONS`` in ``bayesgen/design/acquisitions.py`` and to the table in
      ``tests/design/test_acquisitions.py``, which runs all through the same checks.

    Attributes
    ----------
    task
        What it is for: to estimate the image, or to find the candidate of the largest value.
    needs_noise
        Whether scores are weighed against the noise, which has to be known then.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    task: ClassVar[Literal["image", "maximum", "either"]]
    needs_noise: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse options that do not exist, listing those that do."""
        check_options(cls.__name__, cls.__init__, kwargs)
        return super().__new__(cls)

    def begin(self, belief: Belief) -> Scorer:
        """Scores for the first choice of a batch, and how they change with each."""
        raise NotImplementedError

    def may_choose(self, num_candidates: int) -> Tensor:
        """Which candidates it would ever choose, ``(n,)``: all, but for orders that end."""
        return torch.ones(num_candidates, dtype=torch.bool)

    def scores(self, belief: Belief) -> Tensor:
        """Scores of all candidates for one choice, ``(n,)``: the higher, the better."""
        return self.begin(belief).scores()

    def choose(self, belief: Belief, batch: int = 1, affordable: float = float("inf")) -> Choice:
        """Candidates to measure next, one after the other the best for its cost.

        Of equals the cheapest is taken, and of equally cheap ones that with the lowest number.

        Parameters
        ----------
        belief
            What is known.
        batch
            How many, if so many are available and affordable; else as many as there are.
        affordable
            Most that they may cost together, movement from one to the next included.

        Raises
        ------
        OptionError
            If none can be chosen, or a cost is not positive.
        DataError
            If a score is not a number.
        """
        check_count("batch", batch)
        scorer = self.begin(belief)
        left, last, spent = belief.available.clone(), belief.last, 0.0
        indices: list[int] = []
        first: Tensor | None = None
        while len(indices) < batch:
            scores = self._checked(scorer.scores(), left)
            costs = _costs(belief, last, left).to(scores)
            first = scores.masked_fill(~left, float("nan")) if first is None else first
            allowed = left & (scores > -float("inf"))
            allowed &= spent + costs.double() <= affordable * (1.0 + ROUNDING)
            if not bool(allowed.any()):
                break
            worth = scorer.preferences(scores, costs, allowed)
            worth = worth.masked_fill(~allowed, -float("inf"))
            best = (worth == worth[allowed].max()) & allowed
            last = int((best & (costs == costs[best].min())).nonzero()[0])
            spent += float(costs[last])
            left[last] = False
            indices.append(last)
            if len(indices) < batch:
                scorer.take(last)
        if first is None or not indices:
            raise OptionError(_why_none(belief, first, affordable))
        return Choice(indices, first)

    def _checked(self, scores: Tensor, left: Tensor) -> Tensor:
        if scores.shape != left.shape:
            raise DataError(
                f"{self.name}: expected scores of shape {tuple(left.shape)}, got "
                f"{tuple(scores.shape)}"
            )
        wrong = (scores.isnan() & left).nonzero()
        if len(wrong):
            raise DataError(f"{self.name}: the score of candidate {int(wrong[0])} is not a number")
        return scores


def _costs(belief: Belief, last: int | None, left: Tensor) -> Tensor:
    costs = belief.costs_from(last).to(left.device)
    wrong = (~(costs > 0) & left).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise OptionError(
            f"costs: expected positive numbers, got {float(costs[index])} for candidate {index}"
        )
    return costs


def _why_none(belief: Belief, scores: Tensor | None, affordable: float) -> str:
    if not bool(belief.available.any()):
        return f"available: none of the {belief.num_candidates} candidates may be chosen"
    allowed = belief.available & (scores > -float("inf")) if scores is not None else None
    if allowed is None or not bool(allowed.any()):
        return "available: none of the candidates that the order lists may be chosen"
    least = float(belief.costs_from(belief.last).to(allowed.device)[allowed].min())
    return f"affordable: got {affordable:g}, but the cheapest candidate costs {least:g}"
