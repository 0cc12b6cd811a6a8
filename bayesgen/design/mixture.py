"""Acquisition functions that estimate the image, with the draws as all that it could be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.draw_space import compressed, in_pieces
from bayesgen.errors import OptionError, unknown_option
from bayesgen.types import check_count

Bound = Literal["lower", "upper"]


@dataclass(frozen=True)
class PairwiseEntropy(Acquisition):
    r"""Nats that a measurement tells of which draw is the truth, by distances between draws.

    The data of candidate a follow a mixture of S Gaussians, one around each draw's data
    :math:`y_s`. Its entropy above that of the noise has bounds by pairs of draws,

    .. math:: -\frac1S \sum_s \log \frac1S \sum_t \exp(-\|y_s - y_t\|^2 / c),

    with distances in units of the noise, from below for c = 8 and from above for c = 2. Several
    modes are seen as such. No score exceeds log S: where most draws are told apart by one
    measurement, all candidates score the same. Batches are chosen jointly.

    Parameters
    ----------
    bound
        ``"lower"``, the default, which saturates later, or ``"upper"``.

    References
    ----------
    Kolchinsky and Tracey (2017), *Estimating mixture entropy with pairwise distances*, the bounds
    with the Bhattacharyya and the Kullback-Leibler distance; Nolan et al. (2024), *Active diffusion
    subsampling*, choose measurements by such an entropy.

    Examples
    --------
    >>> PairwiseEntropy()
    PairwiseEntropy(bound='lower')
    """

    name = "pairwise-entropy"
    reference = "Kolchinsky and Tracey (2017), Estimating mixture entropy with pairwise distances"
    task = "image"
    needs_noise = True

    bound: Bound = "lower"

    def __post_init__(self) -> None:
        _check_bound(self.bound)

    def begin(self, belief: Belief) -> Scorer:
        """Bounds, and their growth by each further choice."""
        blocks = _in_noise_units(belief)
        scale = 8.0 if self.bound == "lower" else 2.0

        def information(exponents: Tensor) -> Tensor:
            # None is positive, and each draw's own is zero: nothing overflows, or vanishes.
            return math.log(len(blocks)) - exponents.exp().sum(-1).log().mean(-1)

        return _Joint(blocks, lambda rows: -_distances(rows, rows) / scale, information)


@dataclass(frozen=True)
class NestedMonteCarlo(Acquisition):
    r"""Expected information gain in nats by simulated measurements of the draws.

    .. math:: \frac1S \sum_s \Bigl[\log p(y_s | x_s) - \log \frac1T \sum_t p(y_s | x_t)\Bigr],
        \qquad y_s = A_a x_s + \text{noise},

    without any Gaussian approximation: what the faster scores are judged by. Batches are chosen
    jointly.

    Parameters
    ----------
    bound
        ``"lower"`` has draw s itself in the inner mean over t, which makes the expectation a lower
        bound of the gain, at most log S, and its variance small; ``"upper"`` leaves it out, which
        makes it an upper bound, right where the gain is far beyond log S, but noisy.
    repeats
        Simulated measurements of each draw. One, since different draws vary more than their noise.

    References
    ----------
    Rainforth et al. (2018), *On nesting Monte Carlo estimators*; Foster et al. (2020), *A unified
    stochastic gradient approach to designing Bayesian-optimal experiments*, for the lower bound
    (prior contrastive estimation).

    Examples
    --------
    >>> NestedMonteCarlo()
    NestedMonteCarlo(bound='lower', repeats=1)
    """

    name = "nested-monte-carlo"
    reference = "Rainforth et al. (2018), On nesting Monte Carlo estimators"
    task = "image"
    needs_noise = True

    bound: Bound = "lower"
    repeats: int = 1

    def __post_init__(self) -> None:
        _check_bound(self.bound)
        check_count("repeats", self.repeats)

    def begin(self, belief: Belief) -> Scorer:
        """Gains, and what each further choice adds."""
        blocks = _in_noise_units(belief)
        num = len(blocks)
        # Whether draw t counts for measurement (repeat, s): with "upper", not its own.
        counts = torch.ones(num, num, device=blocks.device, dtype=torch.bool)
        if self.bound == "upper":
            counts.fill_diagonal_(False)
        allowed = counts.repeat(self.repeats, 1)

        def information(ratios: Tensor) -> Tensor:
            sums = ratios.masked_fill(~allowed, -float("inf")).logsumexp(-1)
            return math.log(int(counts[0].sum())) - sums.mean(-1)

        return _Simulated(blocks, information, self.repeats, belief.rng)


class _Joint(Scorer):
    """Information of what the batch holds together with each candidate, above that of the batch.

    ``exponents`` of rows ``(*, S, q)`` are ``(*, measurements, S)`` and add up over measurements;
    ``information`` of their sum is ``(*,)``.
    """

    def __init__(
        self,
        blocks: Tensor,
        exponents: Callable[[Tensor], Tensor],
        information: Callable[[Tensor], Tensor],
    ) -> None:
        self.rows = blocks.permute(1, 0, 2)
        self.exponents, self.information = exponents, information
        self.held: Tensor | float = 0.0
        self.known: Tensor | float = 0.0

    def scores(self) -> Tensor:
        numbers = self.rows.shape[1] * (self.rows.shape[1] + self.rows.shape[2])
        parts = [
            self.information(self.held + self.exponents(rows)) - self.known
            for rows in in_pieces(self.rows, numbers)
        ]
        return torch.cat(parts)

    def take(self, index: int) -> None:
        self.held = self.held + self.exponents(self.rows[index : index + 1])
        self.known = self.information(self.held)


class _Simulated(_Joint):
    """Logarithms of density ratios of simulated measurements, ``repeats`` of each draw.

    One place of the batch has one noise: for every candidate, for differences then vary less, and
    for the one that is taken. Measurements at different places are independent.
    """

    def __init__(
        self,
        blocks: Tensor,
        information: Callable[[Tensor], Tensor],
        repeats: int,
        rng: torch.Generator,
    ) -> None:
        super().__init__(blocks, self._log_ratios, information)
        self.repeats, self.rng = repeats, rng
        self.noise = self._drawn()

    def take(self, index: int) -> None:
        super().take(index)
        self.noise = self._drawn()

    def _drawn(self) -> Tensor:
        _, num, size = self.rows.shape
        shape, rng = (self.repeats * num, size), self.rng
        noise = torch.randn(shape, generator=rng, device=rng.device, dtype=self.rows.dtype)
        return noise.to(self.rows.device)

    def _log_ratios(self, rows: Tensor) -> Tensor:
        # The density of the true draw is taken out, so that what remains is a ratio.
        measured = rows.repeat(1, self.repeats, 1) + self.noise
        return 0.5 * (self.noise.square().sum(-1, keepdim=True) - _distances(measured, rows))


def _in_noise_units(belief: Belief) -> Tensor:
    """Centred data over the noise, ``(S, n, q)`` with q at most S: the same distances."""
    if belief.num_draws < 2:
        raise OptionError("images: one posterior draw has no spread; expected at least two")
    return compressed((belief.data - belief.mean) / belief.positive_noise)


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """Squared distances, without the cancellation of expanding the square."""
    if rows.shape[-1] == 1:
        return (rows - others.mT).square()  # some times as fast
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").square()


def _check_bound(bound: str) -> None:
    if bound not in ("lower", "upper"):
        raise OptionError(unknown_option("bound", str(bound), ("lower", "upper")))
