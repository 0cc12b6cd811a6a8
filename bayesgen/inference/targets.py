"""Densities whose moments are known, to see whether samplers are right.

============================ ==================================================================
target                       what is hard about it
============================ ==================================================================
`GaussianTarget`             scales that differ, by any condition number
`Banana`                     a curved ridge: no one mass matrix fits
`Funnel`                     widths that change by orders of magnitude
`MixtureTarget`              modes that no local move connects
============================ ==================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayesgen.types import Split


class Target(ABC):
    """A density with known mean and covariance.

    To write one: define ``mean`` ``(n,)``, ``covariance`` ``(n, n)`` and ``log_prob`` of points
    ``(*batch, n)``, differentiable. Its prior, for methods that temper, is normal around zero and
    wider than the target.
    """

    mean: Tensor
    covariance: Tensor

    @abstractmethod
    def log_prob(self, v: Tensor) -> Tensor:
        """Log density of points ``(*batch, n)``, up to a constant."""

    @property
    def num_dims(self) -> int:
        """Dimension n."""
        return len(self.mean)

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Log density and its gradient."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            value = self.log_prob(v)
            (gradient,) = torch.autograd.grad(value.sum(), v)
        return value.detach(), gradient

    @cached_property
    def _prior_stddev(self) -> Tensor:
        # Twice as wide as the target, so that tempering has work to do.
        widest = torch.linalg.eigvalsh(self.covariance)[-1]
        return 2.0 * (widest + self.mean.square().max()).sqrt()

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

    def starts(self, num: int, rng: torch.Generator) -> Tensor:
        """Points to start from, twice as spread as a normal law with the target's moments."""
        noise = torch.randn(num, self.num_dims, generator=rng, dtype=self.mean.dtype)
        return self.mean + 2.0 * noise @ torch.linalg.cholesky(self.covariance).T


@dataclass(frozen=True)
class GaussianTarget(Target):
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

    @cached_property
    def _precision(self) -> Tensor:
        return torch.linalg.inv(self.covariance)

    def log_prob(self, v: Tensor) -> Tensor:
        """Log density, up to a constant."""
        return self.value_and_grad(v)[0]

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Log density and its gradient, in closed form."""
        centred = v - self.mean
        gradient = -centred @ self._precision
        return 0.5 * (centred * gradient).sum(-1), gradient

    @property
    def log_evidence(self) -> float:
        """Logarithm of the integral of the density."""
        log_det = torch.linalg.slogdet(self.covariance).logabsdet
        return float(0.5 * (self.num_dims * math.log(2.0 * math.pi) + log_det))


@dataclass(frozen=True)
class Banana(Target):
    r"""A Gaussian bent along a parabola.

    .. math:: v_1 \sim N(0, w^2), \quad v_2 | v_1 \sim N(b (v_1^2 - w^2), 1).

    Attributes
    ----------
    width
        w.
    bend
        b.

    References
    ----------
    Haario, Saksman and Tamminen (1999), Adaptive proposal distribution for random walk Metropolis
    algorithm.

    Examples
    --------
    >>> Banana().covariance.diagonal()
    tensor([4., 9.], dtype=torch.float64)
    """

    width: float = 2.0
    bend: float = 0.5

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return torch.zeros(2, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:  # type: ignore[override]
        variances = [self.width**2, 1.0 + 2.0 * self.bend**2 * self.width**4]
        return torch.diag(torch.tensor(variances, dtype=torch.float64))

    def log_prob(self, v: Tensor) -> Tensor:
        ridge = self.bend * (v[..., 0].square() - self.width**2)
        return -0.5 * ((v[..., 0] / self.width).square() + (v[..., 1] - ridge).square())


@dataclass(frozen=True)
class Funnel(Target):
    r"""Widths that depend on another unknown, as in hierarchical models.

    .. math:: v_1 \sim N(0, w^2), \quad v_i | v_1 \sim N(0, e^{v_1}).

    Neal's has w = 3, at which no sampler with one step size is right in a reasonable time: the neck
    is three thousand times narrower than the mouth. The default asks for a factor of 20.

    Attributes
    ----------
    width
        w.
    num_narrow
        How many :math:`v_i`.

    References
    ----------
    Neal (2003), Slice sampling, section 8.

    Examples
    --------
    >>> round(float(Funnel(width=1.0).covariance[1, 1]), 4)  # exp(1 / 2)
    1.6487
    """

    width: float = 0.75
    num_narrow: int = 2

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return torch.zeros(1 + self.num_narrow, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:  # type: ignore[override]
        variances = [self.width**2] + [math.exp(0.5 * self.width**2)] * self.num_narrow
        return torch.diag(torch.tensor(variances, dtype=torch.float64))

    def log_prob(self, v: Tensor) -> Tensor:
        level, narrow = v[..., 0], v[..., 1:]
        squares = narrow.square().sum(-1)
        normaliser = self.num_narrow * level
        return -0.5 * ((level / self.width).square() + squares * (-level).exp() + normaliser)


@dataclass(frozen=True)
class MixtureTarget(Target):
    """A mixture of normal laws of one width.

    Attributes
    ----------
    weights
        ``(k,)``, of sum 1.
    centres
        ``(k, n)``.
    width
        Standard deviation of each.

    Examples
    --------
    >>> MixtureTarget.pair(distance=10.0, weight=0.3).mean
    tensor([2., 0.], dtype=torch.float64)
    """

    weights: Tensor
    centres: Tensor
    width: float = 1.0

    @classmethod
    def pair(cls, distance: float, weight: float, num_dims: int = 2) -> MixtureTarget:
        """Two laws, the left one with this weight, so far apart along the first axis."""
        centres = torch.zeros(2, num_dims, dtype=torch.float64)
        centres[0, 0], centres[1, 0] = -0.5 * distance, 0.5 * distance
        return cls(torch.tensor([weight, 1.0 - weight], dtype=torch.float64), centres)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return self.weights @ self.centres

    @property
    def covariance(self) -> Tensor:  # type: ignore[override]
        centred = self.centres - self.mean
        between = (self.weights[:, None] * centred).T @ centred
        return between + self.width**2 * torch.eye(len(self.mean), dtype=between.dtype)

    def log_prob(self, v: Tensor) -> Tensor:
        """Normalised."""
        squares = (v.unsqueeze(-2) - self.centres).square().sum(-1) / self.width**2
        normaliser = len(self.mean) * (math.log(self.width) + 0.5 * math.log(2.0 * math.pi))
        return (self.weights.log() - 0.5 * squares).logsumexp(-1) - normaliser
