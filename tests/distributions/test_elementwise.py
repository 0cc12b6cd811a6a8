"""Where the formulas of counts, magnitudes and t moments are delicate: edges and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from bayesgen.distributions import PoissonGaussianNoise, PoissonNoise, RicianNoise, StudentTNoise
from bayesgen.distributions.elementwise import MultiplesOf, ScaledPoisson, StudentT
from bayesgen.errors import DataError
from bayesgen.model_sites import isolated
from bayesgen.numerics import gradient_error

Density = Callable[[Tensor, Tensor], Tensor]


def tensor(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def slope(density: Density, y: Tensor, mean: Tensor) -> Tensor:
    mean = mean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(density(y, mean).sum(), mean)
    return gradient


# ---------------------------------------------------------------------- counts


def counting(y: Tensor, mean: Tensor) -> Tensor:
    return PoissonNoise(mean, gain=0.5, background=1.0, event_dim=0).log_prob(y)


def plain_counting(y: Tensor, mean: Tensor) -> Tensor:
    """What one writes first."""
    return dist.Poisson((mean + 1) / 0.5, validate_args=False).log_prob(y / 0.5)


def test_no_nan_where_the_intensity_is_not_positive() -> None:
    y = tensor(0.0, 0.5, 0.0, 1.5, 0.5)
    mean = tensor(-1.5, -1.5, -1.0, -1.0, 3.0)  # intensities -0.5, -0.5, 0, 0, 4
    inf = math.inf
    expected = tensor(-inf, -inf, 0.0, -inf, stats.poisson(8.0).logpmf(1))
    assert torch.allclose(counting(y, mean), expected)
    # At zero from the right: -1/gain without a count; the last: k / intensity - 1 / gain.
    assert torch.allclose(slope(counting, y, mean), tensor(0.0, 0.0, -2.0, 0.0, 1 / 4 - 2))
    naive = torch.cat([plain_counting(y, mean), slope(plain_counting, y, mean)])
    assert naive.isnan().any()


def test_nan_of_the_prediction_stays_nan() -> None:
    assert PoissonNoise(tensor(math.nan), validate_args=False).log_prob(tensor(1.0)).isnan()
    assert RicianNoise(tensor(math.nan), 1.0, validate_args=False).log_prob(tensor(1.0)).isnan()


def test_draws_at_negative_and_zero_intensity() -> None:
    with isolated(0):
        draws = PoissonNoise(tensor(-0.1, 0.0, 50.0)).sample((4,))
    assert draws[:, 0].isnan().all() and (draws[:, 1] == 0).all() and (draws[:, 2] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gain", [0.1, 1.0, 3.7, 1e-6, 1e4])
def test_rounding_of_multiples_is_tolerated(gain: float, dtype: torch.dtype) -> None:
    counts = torch.arange(100_000, dtype=torch.float64)
    y = (counts * gain).to(dtype)  # the product is rounded, and so is the gain
    support = MultiplesOf(torch.tensor(gain, dtype=dtype))
    assert support.check(y).all()
    assert not support.check(-y[1:]).any()
    # A tenth of a count is told apart as long as the dtype can hold it.
    assert not support.check(((counts + 0.1) * gain).to(dtype)[:10_000]).any()
    noise = PoissonNoise(torch.full((1,), 40 * gain, dtype=dtype), gain=gain, event_dim=0)
    exact = torch.as_tensor(stats.poisson(40.0).logpmf(np.arange(100)))
    found = noise.log_prob(y[:100, None])[:, 0].double()
    assert torch.allclose(found, exact, rtol=1e-10 if dtype == torch.float64 else 1e-5)


def test_counts_may_be_integers() -> None:
    noise = PoissonNoise(tensor(2.0, 3.0))
    assert noise.log_prob(torch.tensor([1, 4])) == noise.log_prob(tensor(1.0, 4.0))


@pytest.mark.parametrize("y", [0.25, -0.5, math.nan, math.inf])
def test_other_data_are_refused(y: float) -> None:
    noise = PoissonNoise(tensor(1.0, 1.0), gain=0.5)
    with pytest.raises(DataError, match="PoissonNoise: value: 1 of 2 values are not in the supp"):
        noise.log_prob(tensor(0.5, y))


def test_variance_of_the_approximation_is_that_of_the_read_out_below_zero() -> None:
    noise = PoissonGaussianNoise(tensor(-5.0, -1.0, 1.0), std=0.5, gain=2.0, background=1.0)
    assert torch.equal(noise.mean, tensor(-4.0, 0.0, 2.0))
    assert torch.allclose(noise.variance, tensor(0.25, 0.25, 4.25))
    gradient = slope(lambda y, m: PoissonGaussianNoise(m, 0.5).log_prob(y), tensor(0.0), tensor(-3))
    assert torch.allclose(gradient, tensor(3 / 0.25))


# ---------------------------------------------------------------------- magnitudes


def magnitude(y: Tensor, nu: Tensor) -> Tensor:
    return RicianNoise(nu, 0.7, event_dim=0).log_prob(y)


def plain_magnitude(y: Tensor, nu: Tensor) -> Tensor:
    """The published stable form, for positive magnitudes."""
    x = y * nu / 0.49
    return (y / 0.49).log() - 0.5 * (y - nu) ** 2 / 0.49 + torch.special.i0e(x).log()


def test_derivatives_at_magnitude_zero() -> None:
    y, zero = tensor(0.01, 0.6, 2.0, 30.0), torch.zeros(4, dtype=torch.float64)
    assert torch.equal(slope(magnitude, y, zero), zero)
    assert gradient_error(lambda nu: magnitude(y, nu).sum(), zero + 0.01, zero + 1) < 1e-8
    slopes = torch.func.grad(lambda nu: magnitude(y, nu).sum())
    curvature = torch.func.grad(lambda nu: slopes(nu).sum())(zero)
    assert torch.allclose(curvature, -1 / 0.49 + y**2 / (2 * 0.49**2), rtol=1e-10)
    assert slope(plain_magnitude, y, zero).abs().min() > 1e-3


def test_the_density_is_even_in_the_magnitude() -> None:
    y, nu = tensor(0.1, 1.0, 2.0, 30.0), tensor(0.3, 1e-9, 5.0, 29.0)
    assert torch.equal(magnitude(y, nu), magnitude(y, -nu))
    assert torch.equal(slope(magnitude, y, nu), -slope(magnitude, y, -nu))


def test_tiny_and_large_arguments() -> None:
    nu = 10.0 ** torch.arange(-12, 9, dtype=torch.float64)
    y = torch.cat([nu, nu + 1, nu * 0.5, 1 / nu])
    nu = nu.repeat(4)
    formula = y.log() - math.log(0.49) - 0.5 * ((y - nu) / 0.7) ** 2
    formula += torch.as_tensor(special.i0e((y * nu / 0.49).numpy())).log()
    with np.errstate(over="ignore"):
        law = torch.as_tensor(stats.rice.logpdf(y.numpy(), nu.numpy() / 0.7, scale=0.7))
    known = torch.isfinite(law) & (nu < 1e6)  # beyond, SciPy divides y and nu before subtracting
    for exact, where in [(formula, nu > 0), (law, known)]:
        error = (magnitude(y, nu) - exact).abs() / exact.abs().clamp(min=1)
        assert float(error[where].max()) < 1e-10
    assert torch.isfinite(formula).all() and known.sum() > 50
    single = magnitude(y.float(), nu.float())
    assert torch.isfinite(magnitude(y, nu)).all() and torch.isfinite(single).all()
    assert torch.isfinite(slope(magnitude, y.float(), nu.float())).all()


def test_the_two_forms_of_the_density_meet() -> None:
    """Value and slope are continuous where the argument of the Bessel function is one."""
    y = torch.full((2,), 0.7, dtype=torch.float64)
    nu = 0.7 + tensor(-1e-12, 1e-12)
    for found in (magnitude(y, nu), slope(magnitude, y, nu)):
        assert torch.allclose(found[0], found[1], rtol=1e-10)


def test_zero_is_outside_of_the_support() -> None:
    noise = RicianNoise(tensor(1.0, 1.0), 0.5, event_dim=0, validate_args=False)
    assert torch.equal(noise.log_prob(tensor(0.0, -1.0)), tensor(-math.inf, -math.inf))

    def density(y: Tensor, nu: Tensor) -> Tensor:
        return RicianNoise(nu, 0.5, event_dim=0, validate_args=False).log_prob(y)

    y, nu = tensor(0.0, -1.0, 1.0), tensor(1.0, 0.0, 1.0)
    assert torch.isfinite(slope(density, y, nu)).all()
    assert torch.isfinite(slope(lambda nu, y: density(y, nu), nu, y)).all()
    with pytest.raises(DataError, match="value: 1 of 2 values are not in the support"):
        RicianNoise(tensor(1.0, 1.0), 0.5).log_prob(tensor(0.0, 1.0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 2e-10)])
def test_moments_at_every_signal_to_noise_ratio(dtype: torch.dtype, tolerance: float) -> None:
    """Against SciPy, and the asymptotic moments where its formula overflows."""
    low = torch.cat([torch.zeros(1), 10.0 ** torch.linspace(-6, 1.55, 800)]).double()
    noise, law = RicianNoise(2 * low.to(dtype), 2.0), stats.rice(low.numpy(), scale=2.0)
    assert torch.allclose(noise.mean.double(), torch.as_tensor(law.mean()), rtol=tolerance / 100)
    assert torch.allclose(noise.variance.double(), torch.as_tensor(law.var()), tolerance, atol=0)
    high = 10.0 ** torch.linspace(1.5, 6, 80).double()
    noise = RicianNoise(2 * high.to(dtype), 2.0)
    assert torch.allclose(noise.mean.double(), 2 * high + 1 / high, rtol=1e-6)
    expected = 4 - 2 / high**2 - 2 / high**4
    assert torch.allclose(noise.variance.double(), expected, rtol=max(tolerance, 1e-7))


# ---------------------------------------------------------------------- t


def test_moments_that_do_not_exist() -> None:
    noise = StudentTNoise(tensor(5.0, 5.0, 5.0, 5.0), scale=2.0, df=tensor(0.5, 1.0, 2.0, 3.0))
    nan, inf = math.nan, math.inf
    assert torch.equal(noise.mean.nan_to_num(-9), tensor(nan, nan, 5.0, 5.0).nan_to_num(-9))
    assert torch.allclose(noise.variance, tensor(nan, nan, inf, 12.0), equal_nan=True)
    scale = tensor(2.0, 2.0).requires_grad_()
    variance = StudentTNoise(tensor(0.0, 0.0), scale, df=tensor(2.0, 4.0)).variance
    (gradient,) = torch.autograd.grad(variance[1], scale)
    assert torch.equal(gradient, tensor(0.0, 8.0))


def test_moments_can_be_vmapped() -> None:
    """Pyro's own variance cannot, and diagnostics need it."""
    location = torch.zeros(5, 3, dtype=torch.float64)

    def variance(location: Tensor) -> Tensor:
        return StudentTNoise(location, 1.0, 4.0, validate_args=False).variance

    assert torch.equal(torch.func.vmap(variance)(location), 2 + location)


@pytest.mark.parametrize("df", [0.5, 2.5, 29.0, 31.0, 1e3, 1e5, 1e8])
def test_student_t_in_single_precision(df: float, rng: torch.Generator) -> None:
    """Against SciPy, to a few roundings an entry; cancellation would cost 0.1 to 1."""
    y = torch.randn(1000, generator=rng)
    single = StudentT(torch.tensor(df), torch.tensor(0.0), torch.tensor(1.0)).log_prob(y)
    exact = stats.t(df).logpdf(y.double().numpy())
    np.testing.assert_allclose(single.double(), exact, atol=2e-5, rtol=2e-6)
    double = StudentT(torch.tensor(df).double(), torch.zeros(()).double(), torch.ones(()).double())
    np.testing.assert_allclose(double.log_prob(y.double()), exact, rtol=1e-10)


@pytest.mark.parametrize("mean", [0.3, 8.0, 40.0, 1e3, 1e6, 1e9])
def test_poisson_in_single_precision(mean: float) -> None:
    gain = torch.ones(())
    counts = torch.tensor([0.0, 1.0, mean - mean**0.5, mean, mean + 3 * mean**0.5]).clamp(min=0)
    counts = counts.round()
    single = ScaledPoisson(torch.tensor(mean), gain).log_prob(counts)
    rate = float(torch.tensor(mean))
    exact = stats.poisson(rate).logpmf(counts.double().numpy())
    np.testing.assert_allclose(single.double(), exact, rtol=3e-6, atol=1e-4)
    double = ScaledPoisson(torch.tensor(rate, dtype=torch.float64), gain.double())
    # SciPy subtracts numbers of the size of the mean times its logarithm.
    atol = max(1e-9, 1e-14 * rate)
    np.testing.assert_allclose(double.log_prob(counts.double()), exact, rtol=1e-9, atol=atol)


def test_poisson_energy_is_smooth_at_many_counts(rng: torch.Generator) -> None:
    """What a sampler sees: the change over a short step, summed over 10,000 data of 1e6 counts."""
    rate = 1e6 * (1 + 0.1 * torch.rand(10_000, generator=rng).double())
    counts = (rate + rate.sqrt() * torch.randn(10_000, generator=rng)).round()
    steps = 1 + 1e-6 * torch.arange(20)[:, None]
    gain = torch.ones(())
    exact = ScaledPoisson(rate * steps, gain.double()).log_prob(counts).sum(-1)
    single = ScaledPoisson((rate * steps).float(), gain).log_prob(counts.float())
    error = single.double().sum(-1) - exact
    assert float(error.std()) < 0.5  # 20 with lgamma(count + 1)
