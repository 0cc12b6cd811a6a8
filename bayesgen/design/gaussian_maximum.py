"""Acquisition functions that find the candidate of the largest value, by means and variances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Level, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.draw_space import DrawSpace
from bayesgen.design.maximum import values_of
from bayesgen.errors import OptionError
from bayesgen.types import check_positive


class _Spread:
    """Standard deviations of the values, given what the batch will measure."""

    def __init__(self, belief: Belief) -> None:
        values_of(belief)
        # Without known noise, what is measured counts as known.
        self.exact = belief.noise is None or not bool((belief.noise > 0).all())
        self.unit = torch.ones_like(belief.mean) if self.exact else belief.positive_noise
        self.space = DrawSpace(belief.centred / self.unit)
        self.variances = self.space.variances()

    def std(self) -> Tensor:
        """Standard deviations, ``(n,)``."""
        return self.space.variances().sqrt() * self.unit[:, 0]

    def log_shares(self) -> Tensor:
        """Logarithm of what is left of each measurement's standard deviation, ``(n,)``."""
        noise = 0.0 if self.exact else 1.0
        tiny = torch.finfo(self.variances.dtype).tiny
        left, first = self.space.variances() + noise, self.variances + noise
        return 0.5 * (left.clamp(min=tiny) / first.clamp(min=tiny)).clamp(tiny, 1.0).log()

    def take(self, index: int) -> None:
        """Condition on this value."""
        self.space.condition(index, exact=self.exact)


@dataclass(frozen=True)
class UCB(Acquisition):
    r"""Upper confidence bound: posterior mean plus a multiple of the standard deviation.

    .. math:: \mu_a + \sqrt{\beta_t}\, \sigma_a, \qquad
        \beta_t = 2 \log\frac{n\, t^2 \pi^2}{6 \delta}

    at the t-th measurement among n candidates. In a batch the standard deviations are those given
    the choices so far, the means stay (GP-BUCB). With costs, what counts is the bound above the
    lowest, per cost.

    Parameters
    ----------
    kappa
        A fixed multiple instead of the schedule, which explores more than most problems need.
    delta
        Probability with which the schedule's bound may fail. 0.1, as in the paper's experiments.

    References
    ----------
    Srinivas, Krause, Kakade and Seeger (2010), *Gaussian process optimization in the bandit
    setting*, theorem 1; Desautels, Krause and Burdick (2014), *Parallelizing
    exploration-exploitation tradeoffs in Gaussian process bandit optimization*.

    Examples
    --------
    >>> UCB()
    UCB(kappa=None, delta=0.1)
    >>> round(UCB().multiple(num_candidates=100, t=1), 3)
    3.848
    """

    name = "ucb"
    reference = (
        "Srinivas, Krause, Kakade and Seeger (2010), Gaussian process optimization in the bandit "
        "setting"
    )
    task = "maximum"

    kappa: float | None = None
    delta: float = 0.1

    def __post_init__(self) -> None:
        check_positive("kappa", self.kappa, allow_none=True)
        if not isinstance(self.delta, int | float) or not 0.0 < self.delta < 1.0:
            raise OptionError(f"delta: got {self.delta!r}; expected a probability between 0 and 1")

    def multiple(self, num_candidates: int, t: int) -> float:
        """Standard deviations above the mean at the t-th measurement; the first has t = 1."""
        if self.kappa is not None:
            return self.kappa
        return math.sqrt(2.0 * math.log(num_candidates * (t * math.pi) ** 2 / (6.0 * self.delta)))

    def begin(self, belief: Belief) -> Scorer:
        """Bounds, with deviations conditioned on each choice."""
        return _Bound(belief, self.multiple)


class _Bound(Level):
    def __init__(self, belief: Belief, multiple: Callable[[int, int], float]) -> None:
        self.spread = _Spread(belief)
        self.mean, self.multiple = belief.mean[:, 0], multiple
        self.t = len(belief.measured) + 1

    def scores(self) -> Tensor:
        return self.mean + self.multiple(len(self.mean), self.t) * self.spread.std()

    def take(self, index: int) -> None:
        self.spread.take(index)
        self.t += 1


@dataclass(frozen=True)
class MaxValueEntropy(Acquisition):
    r"""Nats that a candidate's value tells of how large the largest value is.

    .. math:: \frac1S \sum_s \Bigl[\frac{g_s \varphi(g_s)}{2 \Phi(g_s)} - \log \Phi(g_s)\Bigr],
        \qquad g_s = (f^*_s - \mu_a) / \sigma_a,

    with the largest value f* of each draw; the candidate's value is taken for Gaussian, and for
    measured without noise. In a batch a candidate loses what its measurement has in common with
    those of the choices so far, half the logarithm of the share of its variance that is left.

    References
    ----------
    Wang and Jegelka (2017), *Max-value entropy search for efficient Bayesian optimization*,
    equation 6; Moss, Leslie, Gonzalez and Rayson (2021), *GIBBON: general-purpose
    information-based Bayesian optimisation*, for batches.

    Examples
    --------
    >>> MaxValueEntropy()
    MaxValueEntropy()
    """

    name = "max-value-entropy"
    reference = (
        "Wang and Jegelka (2017), Max-value entropy search for efficient Bayesian optimization"
    )
    task = "maximum"

    def begin(self, belief: Belief) -> Scorer:
        """Entropies lost, less what each has in common with the choices."""
        spread = _Spread(belief)
        return _Entropy(spread, _entropy_lost(values_of(belief), spread.std()))


def _entropy_lost(values: Tensor, std: Tensor) -> Tensor:
    """Entropy of each value less its mean entropy below the draws' largest, ``(n,)``."""
    tiny = torch.finfo(std.dtype).tiny
    g = (values.amax(1)[:, None] - values.mean(0)) / std.clamp(min=tiny)
    # Far below the largest nothing is lost; the square must not overflow.
    g = g.clamp(max=100.0)
    log_below = torch.special.log_ndtr(g)
    hazard = (-0.5 * g.square() - 0.5 * math.log(2.0 * math.pi) - log_below).exp()
    return (0.5 * g * hazard - log_below).mean(0).masked_fill(std <= tiny, 0.0)


class _Entropy(Scorer):
    def __init__(self, spread: _Spread, alone: Tensor) -> None:
        self.spread, self.alone = spread, alone

    def scores(self) -> Tensor:
        return self.alone + self.spread.log_shares()

    def take(self, index: int) -> None:
        self.spread.take(index)
