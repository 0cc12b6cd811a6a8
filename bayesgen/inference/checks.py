"""Is a sampler right? Runs it on targets whose moments are known and counts standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import BayesgenError, OptionError
from bayesgen.inference.base import Population, Sampler
from bayesgen.inference.runner import run_population, run_sampler
from bayesgen.inference.targets import GaussianTarget, Target


@dataclass(frozen=True)
class MethodReport:
    """Deviations of a sampler's moments from the truth, in standard errors.

    Attributes
    ----------
    name
        The method.
    z_mean, z_covariance
        Errors of all means ``(n,)`` and covariances ``(n, n)`` over their standard errors.
    threshold
        Largest magnitude that a right sampler exceeds with probability ``false_alarm``.
    false_alarm
        Probability of calling a right sampler wrong.
    """

    name: str
    z_mean: Tensor
    z_covariance: Tensor
    threshold: float
    false_alarm: float

    @property
    def worst(self) -> float:
        """Largest magnitude of all z-scores; infinite if one is not a number."""
        scores = torch.cat([self.z_mean.flatten(), self.z_covariance.flatten()]).abs()
        return float(torch.where(torch.isfinite(scores), scores, torch.inf).max())

    @property
    def passed(self) -> bool:
        """Whether every z-score is within the threshold."""
        return self.worst <= self.threshold

    def __str__(self) -> str:
        return (
            f"{self.name}: {'right' if self.passed else 'WRONG'}; largest deviation "
            f"{self.worst:.1f} standard errors (allowed {self.threshold:.1f}; false alarm "
            f"{self.false_alarm:g})"
        )

    def raise_if_failed(self) -> None:
        """Raise `BayesgenError` with the report if the sampler is wrong."""
        if not self.passed:
            raise BayesgenError(str(self))


def moment_report(
    name: str, draws: Tensor, mean: Tensor, covariance: Tensor, *, false_alarm: float = 1e-6
) -> MethodReport:
    """Compare draws of independent chains with known moments.

    Standard errors come from the spread between chains, so they hold however slowly the chains
    mix; chains must have forgotten their starts.

    Parameters
    ----------
    name
        Heads the report.
    draws
        ``(chains, draws, n)`` with at least ten chains.
    mean, covariance
        The truth.
    false_alarm
        Probability of calling a right sampler wrong, Bonferroni-corrected over all moments.
    """
    from scipy.stats import t

    chains, _, n = draws.shape
    if chains < 10:
        raise OptionError(f"draws: from {chains} chains; expected at least 10")
    centred = draws - mean
    products = torch.einsum("cdi,cdj->cij", centred, centred) / draws.shape[1]
    z_mean = _z(centred.mean(1), torch.zeros_like(mean))
    z_covariance = _z(products, covariance)
    count = n + n * (n + 1) // 2
    threshold = float(t.isf(false_alarm / (2 * count), chains - 1))
    return MethodReport(name, z_mean, z_covariance, threshold, false_alarm)


def check_method(
    method: Sampler | Population,
    target: Target | None = None,
    *,
    chains: int = 64,
    draws: int = 500,
    warmup: int = 500,
    seed: int = 0,
    false_alarm: float = 1e-6,
) -> MethodReport:
    """Run a method on a known density and compare all means and covariances with the truth.

    Parameters
    ----------
    method
        The sampler, with its settings.
    target
        Of `bayesgen.inference.targets`; by default a Gaussian of five dimensions with condition
        number 10.
    chains, draws, warmup, seed
        As in `bayesgen.infer`; populations take no warm-up.
    false_alarm
        Probability of calling a right sampler wrong.

    Examples
    --------
    >>> from bayesgen.inference import HMC
    >>> check_method(HMC(), chains=32, draws=100, warmup=200).passed
    True
    """
    target = GaussianTarget.with_condition(5, 10.0) if target is None else target
    rng = torch.Generator().manual_seed(seed)
    if isinstance(method, Population):
        starts = method.num_starts(draws)
        start = target.prior_draws(chains * starts, rng).unflatten(0, (chains, starts))
        run = run_population(method, target, start, rng, draws=draws)
    else:
        start = target.starts(chains, rng)
        run = run_sampler(method, target, start, rng, draws=draws, warmup=warmup)
    return moment_report(
        repr(method), run.position, target.mean, target.covariance, false_alarm=false_alarm
    )


def _z(estimates: Tensor, truth: Tensor) -> Tensor:
    """z-score of the mean over chains of per-chain estimates ``(chains, ...)``."""
    error = estimates.std(0) / len(estimates) ** 0.5
    return (estimates.mean(0) - truth) / error
