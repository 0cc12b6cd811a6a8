"""Choices by chance: at random, and now and then at random."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Ranking, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.estimation import Variance
from bayesgen.errors import OptionError


def uniform(belief: Belief, num: int) -> Tensor:
    """Uniform random numbers ``(num,)``, in double precision so that hardly any two are equal."""
    rng = belief.rng
    numbers = torch.rand(num, generator=rng, device=rng.device, dtype=torch.float64)
    return numbers.to(belief.data.device)


@dataclass(frozen=True)
class RandomChoice(Acquisition):
    """Any candidate that is available and affordable, all equally likely.

    Examples
    --------
    >>> RandomChoice()
    RandomChoice()
    """

    name = "random"
    reference = "the baseline of every adaptive method"
    task = "either"

    def begin(self, belief: Belief) -> Scorer:
        """Random numbers, of which the largest wins."""
        return Ranking(uniform(belief, belief.num_candidates))


class _Exploring(Scorer):
    """The base's scores, but with some probability the next choice is a random one."""

    def __init__(self, base: Scorer, belief: Belief, epsilon: float) -> None:
        self.base, self.belief, self.epsilon = base, belief, epsilon

    def scores(self) -> Tensor:
        return self.base.scores()

    def preferences(self, scores: Tensor, costs: Tensor, allowed: Tensor) -> Tensor:
        if float(uniform(self.belief, 1)) < self.epsilon:
            return uniform(self.belief, len(scores))
        return self.base.preferences(scores, costs, allowed)

    def take(self, index: int) -> None:
        self.base.take(index)


@dataclass(frozen=True)
class EpsilonGreedy(Acquisition):
    """Follow another acquisition function, but choose at random with some probability.

    Every choice of a batch is random with that probability, on its own. It guards against a
    posterior that is sure and wrong.

    Parameters
    ----------
    base
        What is followed otherwise, or its name.
    epsilon
        Probability of a random choice. 0.5, half of them.

    References
    ----------
    Sutton and Barto (2018), *Reinforcement learning: an introduction*, section 2.2.

    Examples
    --------
    >>> EpsilonGreedy()
    EpsilonGreedy(base=Variance(), epsilon=0.5)
    """

    name = "epsilon-greedy"
    reference = "Sutton and Barto (2018), Reinforcement learning: an introduction, section 2.2"
    task = "either"

    base: Acquisition | str = field(default_factory=Variance)
    epsilon: float = 0.5

    def __post_init__(self) -> None:
        # It lists this module.
        from bayesgen.design.acquisitions import as_acquisition

        object.__setattr__(self, "base", as_acquisition(self.base, "base"))
        if (
            isinstance(self.epsilon, bool)
            or not isinstance(self.epsilon, int | float)
            or not 0.0 <= self.epsilon <= 1.0
        ):
            raise OptionError(f"epsilon: got {self.epsilon!r}; expected a number from 0 to 1")

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        """As of the base."""
        return self._followed.needs_noise

    def may_choose(self, num_candidates: int) -> Tensor:
        """As of the base."""
        return self._followed.may_choose(num_candidates)

    def begin(self, belief: Belief) -> Scorer:
        """The base's scores, sometimes ignored."""
        return _Exploring(self._followed.begin(belief), belief, float(self.epsilon))

    @property
    def _followed(self) -> Acquisition:
        assert isinstance(self.base, Acquisition)
        return self.base
