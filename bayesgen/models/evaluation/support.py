"""How many different images does a generator draw? Told by how often it repeats itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.models.evaluation.samples import (
    SLACK,
    blocks,
    centred,
    check_level,
    image_rows,
    nearest_squares,
    squared_distances,
)


@dataclass(frozen=True)
class SupportSize:
    """What `support_size` found.

    Attributes
    ----------
    size
        Estimated number of different images: of equally likely ones, or else that number of them
        which would give as many duplicates. Infinite if no two images were near-duplicates.
    interval
        Confidence interval of the size; the upper end is infinite if no near-duplicate was found.
    duplicates
        Number of pairs of generated images that are near-duplicates.
    real_duplicates
        Number of pairs as near among the real images, scaled to as many pairs. If it is not much
        smaller than ``duplicates``, the threshold is too wide to tell.
    num_pairs
        Of generated images.
    threshold
        The distance up to which images are near-duplicates.
    confidence
        Of the interval.
    """

    size: float
    interval: tuple[float, float]
    duplicates: int
    real_duplicates: float
    num_pairs: int
    threshold: float
    confidence: float

    def __str__(self) -> str:
        low, high = self.interval
        counted = f"{self.duplicates} near-duplicates among {self.num_pairs} pairs"
        if not self.duplicates:
            return f"at least {low:.3g} images ({self.confidence:.0%} confidence): {counted}"
        ends = f"{low:.3g} to {high:.3g}, {self.confidence:.0%} confidence"
        return (
            f"about {self.size:.3g} images ({ends}): {counted}, {self.real_duplicates:.3g} "
            "expected of real images"
        )


@torch.no_grad()
def support_size(
    generated: Tensor, real: Tensor, *, threshold: float | None = None, confidence: float = 0.95
) -> SupportSize:
    r"""Estimate how many different images a generator draws, by the birthday paradox.

    If :math:`n` images are equally likely, a share :math:`1 / n` of all pairs are duplicates: a
    thousand samples see a support of up to some hundred thousand images. For other laws the result
    is :math:`1 / \sum_i p_i^2`, which a few heavy modes make small and rare images do not make
    large. Finding no duplicates bounds the size from below, and proves no more.

    By default images are near-duplicates if their distance is at most half the first percentile of
    the distances of real images to their nearest neighbours. Real images so near to each other are
    as good as absent: where images have :math:`m` degrees of freedom, halving the distance leaves a
    share :math:`2^{-m}` of the nearest pairs. The percentile rather than the minimum forgives the
    real duplicates that large data sets have.

    Parameters
    ----------
    generated
        ``(N, *shape)``, independent samples.
    real
        ``(M, *shape)``, not trained on; of about the same number, as their nearest-neighbour
        distances depend on it.
    threshold
        Distance up to which images count as near-duplicates, instead of the default.
    confidence
        Of the interval.

    Returns
    -------
    SupportSize
        The interval takes the number of duplicates for Poisson distributed, as it is for equally
        likely images; for a law with a few heavy modes it is too short.

    Raises
    ------
    OptionError
        If the threshold is negative or the confidence not between 0 and 1.
    ShapeError, DtypeError, DataError
        If the images cannot be used.

    References
    ----------
    Arora, Risteski and Zhang (2018), Do GANs learn the distribution? Some theory and empirics;
    there duplicates are found by eye.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> images, real = torch.rand(100, 4, 4, generator=rng), torch.rand(500, 4, 4, generator=rng)
    >>> generated = images[torch.randint(100, (500,), generator=rng)]
    >>> found = support_size(generated, real)
    >>> 90 < found.size < 110
    True
    """
    generated, real = image_rows(2, generated=generated, real=real)
    check_level("confidence", confidence)
    if threshold is not None and not 0 <= threshold < math.inf:
        raise OptionError(f"threshold: got {threshold!r}; expected a distance of at least 0")
    real, generated = centred(real, generated)
    if threshold is None:
        nearest = nearest_squares(real, 1).sqrt().flatten()
        threshold = 0.5 * nearest.quantile(0.01).item()
    count, real_count = _near_pairs(generated, threshold), _near_pairs(real, threshold)
    num_pairs, real_pairs = math.comb(len(generated), 2), math.comb(len(real), 2)
    low, high = _poisson_interval(count, confidence)
    return SupportSize(
        size=num_pairs / count if count else math.inf,
        interval=(num_pairs / high, num_pairs / low if low else math.inf),
        duplicates=count,
        real_duplicates=real_count * num_pairs / real_pairs,
        num_pairs=num_pairs,
        threshold=threshold,
        confidence=confidence,
    )


def _near_pairs(x: Tensor, threshold: float) -> int:
    """Number of unordered pairs of rows that are no further apart."""
    limit, count = threshold**2 * SLACK, 0
    for rows in blocks(len(x), len(x)):
        count += int((squared_distances(x[rows], x) <= limit).sum())
    return (count - len(x)) // 2


def _poisson_interval(count: int, confidence: float) -> tuple[float, float]:
    """Exact interval of a Poisson mean (Garwood, 1936); one-sided if nothing was counted."""
    from scipy.stats import chi2

    if not count:
        return 0.0, -math.log(1 - confidence)
    tail = (1 - confidence) / 2
    return chi2.ppf(tail, 2 * count) / 2, chi2.isf(tail, 2 * count + 2) / 2
