"""Distributions of single numbers that PyTorch lacks, or whose moments cannot be vectorised."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from bayesgen.distributions.base import Constraints

# Degrees of freedom from which on the series is accurate to 1e-11.
_MANY = 30.0


class StudentT(dist.StudentT):  # type: ignore[misc]
    """Student's t with moments that can be computed under ``torch.func.vmap``."""

    @property
    def mean(self) -> Tensor:
        return torch.where(self.df > 1, self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        excess = torch.where(self.df > 2, self.df - 2, 1.0)
        infinite = torch.where(self.df > 1, math.inf, torch.full_like(self.df, math.nan))
        return torch.where(self.df > 2, self.scale.square() * self.df / excess, infinite)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, also for so many degrees of freedom that the Gamma functions cancel."""
        df, scaled = self.df, (value - self.loc) / self.scale
        many = df > _MANY
        few = torch.where(many, _MANY, df)
        exact = torch.lgamma((few + 1) / 2) - torch.lgamma(few / 2) - 0.5 * (few / 2).log()
        # Of log Gamma(x + 1/2) - log Gamma(x) - log(x) / 2 at x = df / 2.
        inverse = 1 / torch.where(many, df, _MANY)
        series = -inverse / 4 + inverse**3 / 24 - inverse**5 / 20
        constant = torch.where(many, series, exact) - 0.5 * math.log(2 * math.pi)
        return constant - self.scale.log() - (df + 1) / 2 * torch.log1p(scaled.square() / df)


class MultiplesOf(constraints.Constraint):
    """Non-negative multiples of ``unit``, up to rounding: ``0, unit, 2 * unit, ...``."""

    is_discrete = True
    # Of a count: far above the rounding of counts below 1e3, far below what a wrong unit gives.
    tolerance = 1e-3

    def __init__(self, unit: Tensor) -> None:
        self.unit = unit

    def check(self, value: Tensor) -> Tensor:
        """True where the value is such a multiple; larger ones may be off by their rounding."""
        multiple = value.to(self.unit.dtype) / self.unit
        tolerance = self.tolerance + 8 * torch.finfo(multiple.dtype).eps * multiple.abs()
        whole = multiple.round()
        return (whole >= 0) & ((multiple - whole).abs() <= tolerance)

    def __repr__(self) -> str:
        return "non-negative multiples of gain"


class ScaledPoisson(TorchDistribution):
    """``gain * k`` with ``k ~ Poisson(intensity / gain)``; see `PoissonNoise`."""

    arg_constraints = Constraints(intensity=constraints.real, gain=constraints.positive)

    def __init__(self, intensity: Tensor, gain: Tensor) -> None:
        self.intensity, self.gain = broadcast_all(intensity, gain)
        super().__init__(self.intensity.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.intensity

    @property
    def variance(self) -> Tensor:
        return self.gain * self.intensity

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return MultiplesOf(self.gain)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaledPoisson:
        return ScaledPoisson(self.intensity.expand(batch_shape), self.gain.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            rate = self.intensity / self.gain
            counts = dist.Poisson(rate.clamp(min=0), validate_args=False).sample(sample_shape)
            return torch.where(rate < 0, math.nan, counts * self.gain)

    def log_prob(self, value: Tensor) -> Tensor:
        rate = self.intensity / self.gain
        count = (value.to(rate.dtype) / self.gain).round().detach()
        # Where the rate is not positive the general formula would give NaN for the gradient, which
        # torch.where does not stop.
        safe = torch.where(rate <= 0, 1.0, rate)
        log_prob = torch.where(count > 0, _log_poisson(safe, count.clamp(min=1)), -rate)
        return torch.where((rate < 0) | ((rate == 0) & (count > 0)), -math.inf, log_prob)


def _log_poisson(rate: Tensor, count: Tensor) -> Tensor:
    """Log probability of a positive count, without the cancellation of ``lgamma`` for large ones.

    With Stirling's formula for the count's factorial, only the deviance from a Poisson of mean
    ``count`` is left, which is small where the probability is large.

    References
    ----------
    Loader (2000), Fast and accurate computation of binomial probabilities.
    """
    excess = (rate - count) / count
    near = excess.abs() < 0.1
    small = torch.where(near, excess, 0.0)
    v = small / (2 + small)
    # x - log(1 + x) without cancellation, from the series of 2 atanh(v) = log(1 + x).
    square = v.square()
    series = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square / 11)))
    far = torch.where(near, 1.0, rate / count)
    deviance = torch.where(near, small * v - 2 * v * square * series, far - 1 - far.log())
    few = count.clamp(max=16.0)
    exact = torch.lgamma(few + 1) - few * few.log() + few
    inverse = 1 / count
    series = 0.5 * (2 * math.pi * count).log() + inverse / 12 - inverse**3 / 360
    series = series + inverse**5 / 1260
    return -count * deviance - torch.where(count > 16.0, series, exact)


class Rice(TorchDistribution):
    """Length of a plane vector of length ``magnitude`` with noise ``std`` on both components."""

    arg_constraints = Constraints(magnitude=constraints.real, std=constraints.positive)
    # Without zero, where the density vanishes.
    support = constraints.positive
    has_rsample = True

    def __init__(self, magnitude: Tensor, std: Tensor) -> None:
        self.magnitude, self.std = broadcast_all(magnitude, std)
        super().__init__(self.magnitude.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        t = 0.25 * (self.magnitude / self.std).square()
        laguerre = (1 + 2 * t) * torch.special.i0e(t) + 2 * t * torch.special.i1e(t)
        return math.sqrt(math.pi / 2) * self.std * laguerre

    @property
    def variance(self) -> Tensor:
        ratio = (self.magnitude / self.std).abs()
        exact = 2 + ratio.square() - (self.mean / self.std).square()
        # The difference loses all digits at a high signal-to-noise ratio; the next term of the
        # series is below 1e-11 where this takes over.
        q = ratio.clamp(min=30.0) ** -2
        series = 1 - q / 2 - q**2 / 2 - 11 / 8 * q**3
        return self.std.square() * torch.where(ratio < 30.0, exact, series)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rice:
        return Rice(self.magnitude.expand(batch_shape), self.std.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        first, second = torch.randn(2, *shape, dtype=self.std.dtype, device=self.std.device)
        return torch.hypot(self.magnitude + self.std * first, self.std * second)

    def log_prob(self, value: Tensor) -> Tensor:
        positive = value > 0
        y, nu, std = torch.where(positive, value, 1.0), self.magnitude, self.std
        # log I0(x) - (y^2 + nu^2) / (2 std^2) in two forms: one is smooth at nu = 0, with
        # derivatives of every order; the other does not cancel for large x.
        x = (y / std) * (nu / std)
        small = x.abs() < 1.0
        near = torch.special.i0(torch.where(small, x, 0.0)).log()
        near = near - 0.5 * ((y / std).square() + (nu / std).square())
        far = torch.special.i0e(torch.where(small, 1.0, x)).log()
        far = far - 0.5 * ((y - nu.abs()) / std).square()
        log_prob = y.log() - 2 * std.log() + torch.where(small, near, far)
        return torch.where(positive, log_prob, -math.inf)
