"""Acquisition functions that find the candidate of the largest value, draw by draw.

A candidate's noise-free datum is its value: one number each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Level, Ranking, Scorer
from bayesgen.design.belief import Belief
from bayesgen.errors import OptionError, ShapeError, unknown_option


def values_of(belief: Belief) -> Tensor:
    """The candidates' values for each draw, ``(S, n)``.

    Raises
    ------
    ShapeError
        If candidates give more than one number, of which none is the value.
    """
    if belief.num_numbers != 1:
        raise ShapeError(
            "data: to find the maximum each candidate must give one number, its value, got "
            f"{belief.num_numbers}"
        )
    return belief.data[..., 0]


@dataclass(frozen=True)
class Thompson(Acquisition):
    """The candidate that is largest in one posterior draw; for each choice, another draw.

    A candidate is chosen with the posterior probability of being the largest of those available.
    Costs only exclude what cannot be afforded: weighing them would change that law.

    References
    ----------
    Thompson (1933), *On the likelihood that one unknown probability exceeds another*; Kandasamy et
    al. (2018), *Parallelised Bayesian optimisation via Thompson sampling*, for batches.

    Examples
    --------
    >>> Thompson()
    Thompson()
    """

    name = "thompson"
    reference = "Thompson (1933), On the likelihood that one unknown probability exceeds another"
    task = "maximum"

    def begin(self, belief: Belief) -> Scorer:
        """The values of a random draw."""
        return _DrawAfterDraw(values_of(belief), belief.rng)


class _DrawAfterDraw(Ranking):
    """The draws in random order, none twice before all were there."""

    def __init__(self, values: Tensor, rng: torch.Generator) -> None:
        self.values, self.used = values, 0
        self.order = torch.randperm(len(values), generator=rng, device=rng.device).tolist()

    def scores(self) -> Tensor:
        return self.values[self.order[self.used % len(self.order)]]

    def take(self, index: int) -> None:
        self.used += 1


@dataclass(frozen=True)
class QuantileUCB(Acquisition):
    """Upper confidence bound by a quantile of the draws, which need not be Gaussian.

    The level is 1 - 1/(t + 1) at the t-th measurement: the median at the first, and the largest
    draw once there are as many measurements as draws. Choices of a batch do not learn of each
    other.

    References
    ----------
    Kaufmann, Cappé and Garivier (2012), *On Bayesian upper confidence bounds for bandit problems*,
    without the logarithm; counted from one more, since their first level is zero.

    Examples
    --------
    >>> QuantileUCB()
    QuantileUCB()
    """

    name = "quantile-ucb"
    reference = (
        "Kaufmann, Cappé and Garivier (2012), On Bayesian upper confidence bounds for bandit "
        "problems"
    )
    task = "maximum"

    def begin(self, belief: Belief) -> Scorer:
        """Quantiles: the least value that so many of the draws do not exceed."""
        values = values_of(belief)
        num, t = len(values), len(belief.measured) + 1
        # In integers: ceil(num * t / (t + 1)).
        return Level(values.kthvalue(-(-num * t // (t + 1)), dim=0).values)


@dataclass(frozen=True)
class ExpectedImprovement(Acquisition):
    r"""How far, on average over the draws, a candidate's value is above the best so far.

    .. math:: \frac1S \sum_s \max(f_{s,a} - f^*, 0)

    In a batch the best so far is, in each draw, also that of the choices so far: the batch is the
    greedy one for the improvement that all of it brings. Before anything is measured, and where no
    draw improves at any candidate, the mean decides: with costs, how far it is above the lowest,
    per cost.

    Parameters
    ----------
    best
        ``"measured"``, the largest value measured, noise and all; or ``"draws"``, in each draw the
        largest at the measured candidates, which noise does not push up.

    References
    ----------
    Mockus, Tiesis and Zilinskas (1978), *The application of Bayesian methods for seeking the
    extremum*; Letham et al. (2019), *Constrained Bayesian optimization with noisy experiments*, for
    ``"draws"``.

    Examples
    --------
    >>> ExpectedImprovement()
    ExpectedImprovement(best='measured')
    """

    name = "expected-improvement"
    reference = (
        "Mockus, Tiesis and Zilinskas (1978), The application of Bayesian methods for seeking the "
        "extremum"
    )
    task = "maximum"

    best: Literal["measured", "draws"] = "measured"

    def __post_init__(self) -> None:
        if self.best not in ("measured", "draws"):
            raise OptionError(unknown_option("best", str(self.best), ("measured", "draws")))

    def begin(self, belief: Belief) -> Scorer:
        """Improvements, over each choice as well."""
        values = values_of(belief)
        if not belief.measured:
            best = values.min().expand(len(values))
        elif self.best == "measured":
            best = belief.values.max().to(values).expand(len(values))
        else:
            best = values[:, list(belief.measured)].amax(1)
        return _Improvement(values, best)


class _Improvement(Scorer):
    def __init__(self, values: Tensor, best: Tensor) -> None:
        self.values, self.best = values, best

    def scores(self) -> Tensor:
        return (self.values - self.best[:, None]).clamp(min=0.0).mean(0)

    def preferences(self, scores: Tensor, costs: Tensor, allowed: Tensor) -> Tensor:
        if bool((scores[allowed] > 0).any()):
            return super().preferences(scores, costs, allowed)
        mean = self.values.mean(0)
        return Level(mean).preferences(mean, costs, allowed)

    def take(self, index: int) -> None:
        self.best = torch.maximum(self.best, self.values[:, index])
