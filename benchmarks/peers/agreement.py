"""Effective sample sizes, and whether all samplers found the same posterior."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

# That one check or another of a whole comparison fails although all samplers are right.
FALSE_ALARM = 1e-6


@dataclass(frozen=True)
class Estimate:
    """Moments of the posterior as one sampler found them.

    Attributes
    ----------
    ess
        Smallest effective sample size over coordinates.
    moments, errors
        Means of each coordinate and of its square about a common centre, ``(2, n)``, and their
        Monte Carlo standard errors.
    """

    ess: float
    moments: np.ndarray
    errors: np.ndarray


def estimate(draws: np.ndarray, centre: np.ndarray, *, population: bool) -> Estimate:
    """Moments of ``draws``, ``(chains, draws, n)``, and how exact they are.

    Of Markov chains by ArviZ: bulk effective sample size, and the error of a mean. The particles
    of a population are in no order that would show what they have in common, but populations are
    independent: the spread of their means says how much each is worth.
    """
    values = np.stack([draws - centre, (draws - centre) ** 2], axis=2).astype(np.float64)
    if population:
        means = values.mean(1)
        spread = means.var(0, ddof=1)
        count = np.minimum(values.var((0, 1)) / spread, draws.shape[1])
        ess = len(draws) * float(count[0].min())
        return Estimate(ess, means.mean(0), np.sqrt(spread / len(draws)))
    with warnings.catch_warnings():
        # More chains than draws are meant.
        warnings.simplefilter("ignore", UserWarning)
        data = az.convert_to_dataset({"v": values})
    ess = float(az.ess(data).v[0].min())
    return Estimate(ess, values.mean((0, 1)), az.mcse(data, method="mean").v.to_numpy())


def differences(estimates: Mapping[str, Estimate]) -> tuple[str, dict[str, tuple[float, float]]]:
    """The sampler with most effective samples, and how far the others are from it.

    In standard errors: the largest over coordinates, of means and of squares.
    """
    reference = max(estimates, key=lambda name: estimates[name].ess)
    best, found = estimates[reference], {}
    for name, other in estimates.items():
        if name != reference:
            scores = abs(other.moments - best.moments) / np.hypot(other.errors, best.errors)
            found[name] = (float(scores[0].max()), float(scores[1].max()))
    return reference, found


def threshold(samplers: int, num_dims: int) -> float:
    """Standard errors that differences exceed by chance with probability `FALSE_ALARM` in all."""
    comparisons = max(1, 2 * num_dims * (samplers - 1))
    return -NormalDist().inv_cdf(0.5 * FALSE_ALARM / comparisons)
