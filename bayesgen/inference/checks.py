"""Is a sampler right? Runs it on targets whose moments are known and counts standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayesgen.errors import BayesgenError, OptionError
from bayesgen.inference.base import Sampler
from bayesgen.inference.runner import run_sampler
from bayesgen.types import Split


@dataclass(frozen=True)
class GaussianTarget:
    """A Gaussian density with exact gradient, for testing samplers.

    Attributes
    ----------
    mean
        ``(n,)``.
    covariance
        ``(n, n)``, positive definite.

    Examples
    --------
    >>> import torch
    >>> target = GaussianTarget.with_condition(5, 100.0)
    >>> round(float(torch.linalg.cond(target.covariance)))
    100
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def with_condition(
        cls, num_dims: int, condition: float, *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> GaussianTarget:
        """A randomly rotated Gaussian with variances log-spaced from 1 to ``condition``."""
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(num_dims, num_dims, generator=rng, dtype=dtype)
        rotation, _ = torch.linalg.qr(noise)
        top = torch.log10(torch.tensor(condition)).item()
        variances = torch.logspace(0.0, top, num_dims, dtype=dtype)
        mean = torch.linspace(-1.0, 1.0, num_dims, dtype=dtype)
        return cls(mean, rotation @ torch.diag(variances) @ rotation.T)

    @property
    def num_dims(self) -> int:
        """Dimension n."""
        return len(self.mean)

    @cached_property
    def _precision(self) -> Tensor:
        return torch.linalg.inv(self.covariance)

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Log density up to a constant, and its gradient."""
        centred = v - self.mean
        gradient = -centred @ self._precision
        return 0.5 * (centred * gradient).sum(-1), gradient

    @cached_property
    def _prior_stddev(self) -> Tensor:
        # Twice as wide as the target in its widest direction, so that tempering has work to do.
        return 2.0 * torch.linalg.eigvalsh(self.covariance)[-1].sqrt()

    def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
        """The target as the product of a wide normal prior and a likelihood."""
        value, gradient = self.value_and_grad(v)
        scaled = v / self._prior_stddev
        log_scale = self._prior_stddev.log() + 0.5 * math.log(2.0 * math.pi)
        prior = -0.5 * scaled.square().sum(-1) - self.num_dims * log_scale
        prior_gradient = -scaled / self._prior_stddev
        return Split(prior, value - prior, prior_gradient, gradient - prior_gradient)

    def prior_draws(self, num: int, rng: torch.Generator) -> Tensor:
        """Draws from that prior, ``(num, n)``."""
        noise = torch.randn(num, self.num_dims, generator=rng, dtype=self.mean.dtype)
        return self._prior_stddev * noise

    @property
    def log_evidence(self) -> float:
        """Logarithm of the integral of the density."""
        log_det = torch.linalg.slogdet(self.covariance).logabsdet
        return float(0.5 * (self.num_dims * math.log(2.0 * math.pi) + log_det))

    def starts(self, num: int, rng: torch.Generator) -> Tensor:
        """Overdispersed points to start from: twice the target's spread."""
        noise = torch.randn(num, self.num_dims, generator=rng, dtype=self.mean.dtype)
        return self.mean + 2.0 * noise @ torch.linalg.cholesky(self.covariance).T


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
    method: Sampler,
    target: GaussianTarget | None = None,
    *,
    chains: int = 64,
    draws: int = 500,
    warmup: int = 500,
    seed: int = 0,
    false_alarm: float = 1e-6,
) -> MethodReport:
    """Run a sampler on a Gaussian and compare all means and covariances with the truth.

    Parameters
    ----------
    method
        The sampler, with its settings.
    target
        By default five dimensions with condition number 10.
    chains, draws, warmup, seed
        As in `bayesgen.infer`.
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
    start = target.starts(chains, rng)
    run = run_sampler(method, target, start, rng, draws=draws, warmup=warmup)
    return moment_report(
        repr(method), run.position, target.mean, target.covariance, false_alarm=false_alarm
    )


def _z(estimates: Tensor, truth: Tensor) -> Tensor:
    """z-score of the mean over chains of per-chain estimates ``(chains, ...)``."""
    error = estimates.std(0) / len(estimates) ** 0.5
    return (estimates.mean(0) - truth) / error
