"""Do two samples come from the same law? Energy distance, with a permutation test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import ShapeError
from bayesgen.types import check_count


@dataclass(frozen=True)
class EnergyTest:
    """Outcome of `energy_test`.

    Attributes
    ----------
    distance
        Unbiased estimate of the squared energy distance; around 0 for equal laws, also below.
    effect
        The same divided by twice the mean distance between the samples: from 0, equal laws, to 1,
        two different points. Unlike the p-value it does not depend on the size of the samples.
    p_value
        Probability of so large a distance if the laws are equal.
    """

    distance: float
    effect: float
    p_value: float


def energy_test(
    first: Tensor, second: Tensor, *, permutations: int = 999, seed: int = 0
) -> EnergyTest:
    r"""Estimate the energy distance of two samples, and test whether it is zero.

    .. math:: 2 E|X - Y| - E|X - X'| - E|Y - Y'|

    is zero only if :math:`X` and :math:`Y` have the same law, in any number of dimensions. It is
    compared with its values after exchanging points between the samples at random.

    Parameters
    ----------
    first, second
        Samples ``(N, d)`` and ``(M, d)`` of at least two points; memory grows with
        ``(N + M)**2``.
    permutations
        Number of random exchanges; the smallest possible p-value is one in ``permutations + 1``.
    seed
        Their seed.

    Returns
    -------
    EnergyTest
        Distance, effect size and p-value.

    Raises
    ------
    ShapeError
        If the samples are not of that shape.
    OptionError
        If ``permutations`` is not a positive integer.

    References
    ----------
    Székely and Rizzo (2013), Energy statistics: a class of statistics based on distances.

    Examples
    --------
    >>> line = torch.arange(50.0)[:, None]
    >>> test = energy_test(line, line + 100, permutations=99)
    >>> round(test.effect, 2), test.p_value
    (0.83, 0.01)
    """
    for name, sample in (("first", first), ("second", second)):
        if sample.ndim != 2 or len(sample) < 2 or sample.shape[1] != first.shape[1]:
            raise ShapeError(
                f"{name}: expected at least two points (N, d) with the same d in both samples, "
                f"got {tuple(first.shape)} and {tuple(second.shape)}"
            )
    check_count("permutations", permutations)
    n, m = len(first), len(second)
    pooled = torch.cat([first, second]).detach().double()
    # `divergence.energy_influences` gets by with row sums, in blocks; exchanges need all distances.
    # The direct formula: the other one loses the small distances by cancellation.
    distances = torch.cdist(pooled, pooled, compute_mode="donot_use_mm_for_euclid_dist")
    rng = torch.Generator().manual_seed(seed)
    keys = torch.rand(permutations, n + m, generator=rng)
    members = torch.zeros(permutations + 1, n + m, dtype=pooled.dtype)
    members[0, :n] = 1
    members[1:].scatter_(1, keys.argsort(1)[:, :n], 1.0)
    distance, between = _distances(distances, members.to(pooled.device), n, m)
    # Rounding must not make an exchange that changes nothing look smaller.
    larger = distance[1:] >= distance[0] - 1e-12 * between[0]
    p_value = (1 + int(larger.sum())) / (1 + permutations)
    effect = distance[0] / (2 * between[0]) if between[0] > 0 else distance[0]
    return EnergyTest(distance[0].item(), float(effect), p_value)


def _distances(distances: Tensor, members: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Energy distance and mean distance between groups, for each row of membership ``(P, n + m)``.

    Sums within and between groups follow from those within the first, one matrix product.
    """
    within_first = ((members @ distances) * members).sum(1)
    from_first = members @ distances.sum(1)
    between = from_first - within_first
    within_second = distances.sum() - from_first - between
    mean = between / (n * m)
    energy = 2 * mean - within_first / (n * (n - 1)) - within_second / (m * (m - 1))
    return energy, mean
