"""Every noise model against SciPy: density, total mass, moments, draws; and its derivatives.

Statistical tests run on fixed seeds. With other seeds they would reject a right implementation
with probability below 1e-5 each: scores beyond 5.5 standard errors (4e-8 for each of 24 numbers,
1e-6 together), Kolmogorov-Smirnov levels below 1e-6. The same checks reject the wrong
implementations of `WRONG`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bayesgen import distributions
from bayesgen.distributions import (
    DataSpectrum,
    Deviation,
    GaussianNoise,
    ImageGivenData,
    IntegratedDeviation,
    IteratedDeviation,
    LaplaceNoise,
    Noise,
    PoissonGaussianNoise,
    PoissonNoise,
    RicianNoise,
    StructuredDeviation,
    StructuredNormal,
    StudentTNoise,
    TotalVariation,
)
from bayesgen.model_sites import isolated
from bayesgen.numerics import gradient_error

Make = Callable[..., Any]


def _random(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(math.prod(shape))
    return torch.rand(shape, generator=rng, dtype=torch.float64)


MEAN = 0.2 + 3 * _random(3, 4)
ROW = 0.3 + _random(4)
COLUMN = 0.2 + _random(3, 1)
OFF_DIAGONAL = 0.8 * _random(4, 3, 4) - 0.4
SCALAR = torch.tensor(0.4, dtype=torch.float64)
CHOLESKY = torch.eye(12, dtype=torch.float64) + 0.2 * _random(12, 12).tril()


@dataclass
class FullGaussian:
    """SciPy's multivariate normal, for images."""

    location: Any
    cholesky: Any

    def logpdf(self, y: Any) -> Any:
        law = stats.multivariate_normal(self.location.ravel(), self.cholesky @ self.cholesky.T)
        # An equal share for each entry, so that the sum over entries is right.
        shares = np.asarray(law.logpdf(y.reshape(-1, 12)) / 12)
        return shares[:, None, None].repeat(3, 1).repeat(4, 2)

    def cdf(self, y: Any) -> Any:
        """Of the whitened residuals."""
        residual = (y - self.location).reshape(-1, 12)
        return stats.norm.cdf(np.linalg.solve(self.cholesky, residual.T).T)

    def mean(self) -> Any:
        return self.location

    def var(self) -> Any:
        return np.square(self.cholesky).sum(1).reshape(3, 4)


@dataclass
class StructuredGaussian(FullGaussian):
    """The same, from the factor of the precision, pixel by pixel."""

    def __init__(self, location: Any, log_diagonal: Any, off_diagonal: Any) -> None:
        self.location = location
        rows, columns = location.shape
        factor = np.diag(np.broadcast_to(np.exp(log_diagonal), location.shape).ravel())
        for k, (dy, dx) in enumerate([(0, 1), (1, -1), (1, 0), (1, 1)]):
            for y in range(rows - dy):
                for x in range(max(0, -dx), min(columns, columns - dx)):
                    factor[(y + dy) * columns + x + dx, y * columns + x] = off_diagonal[k, y, x]
        self.cholesky = np.linalg.inv(factor).T


@dataclass
class Case:
    """A noise model with parameters of various shapes, and SciPy's law of the data.

    Where there is a ``unit`` the law is that of a count, and data are multiples of the unit.
    """

    make: Callable[..., Noise]
    parameters: tuple[Tensor, ...]
    law: Callable[..., Any]
    unit: float | None = None

    def noise(self, **options: Any) -> Noise:
        return self.make(MEAN, *self.parameters, **options)

    def reference(self) -> Any:
        return self.law(*(t.numpy() for t in (MEAN, *self.parameters)))

    def log_prob(self, y: Tensor) -> Tensor:
        law = self.reference()
        log = law.logpmf(self._counts(y)) if self.unit else law.logpdf(y.numpy())
        return torch.as_tensor(log).sum((-2, -1))

    def uniforms(self, y: Tensor) -> Any:
        """Probability integral transform, randomised over the steps of a discrete law."""
        law = self.reference()
        if not self.unit:
            return law.cdf(y.numpy())
        low, high = law.cdf(self._counts(y) - 1), law.cdf(self._counts(y))
        return low + np.random.default_rng(0).random(low.shape) * (high - low)

    def _counts(self, y: Tensor) -> Any:
        assert self.unit is not None
        return (y / self.unit).round().numpy()


def full(mean: Tensor, cholesky: Tensor, **options: Any) -> Noise:
    return GaussianNoise(mean, cholesky=cholesky, **options)


DISTRIBUTIONS: dict[str, Case] = {
    "gaussian": Case(GaussianNoise, (ROW,), lambda m, s: stats.norm(m, s)),
    "full gaussian": Case(full, (CHOLESKY,), FullGaussian),
    "structured": Case(StructuredNormal, (COLUMN, OFF_DIAGONAL), StructuredGaussian),
    "laplace": Case(LaplaceNoise, (COLUMN,), lambda m, b: stats.laplace(m, b)),
    "student t": Case(StudentTNoise, (ROW, 12 + COLUMN), lambda m, s, df: stats.t(df, m, s)),
    "poisson": Case(PoissonNoise, (), lambda m: stats.poisson(m), unit=1.0),
    "scaled poisson": Case(
        PoissonNoise, (SCALAR, COLUMN), lambda m, g, b: stats.poisson((m + b) / g), unit=0.4
    ),
    "poisson-gaussian": Case(
        PoissonGaussianNoise,
        (ROW, SCALAR, COLUMN),
        lambda m, s, g, b: stats.norm(m + b, np.sqrt(g * (m + b) + s**2)),
    ),
    "rician": Case(RicianNoise, (ROW,), lambda m, s: stats.rice(m / s, scale=s)),
}
# What could have been written instead, as a distribution.
WRONG: list[tuple[str, str, Make]] = [
    ("gaussian", "variance for std", lambda m, s: GaussianNoise(m, s**2)),
    ("gaussian", "std of other columns", lambda m, s: GaussianNoise(m, s.flip(0))),
    ("full gaussian", "inverse factor", lambda m, L: full(m, torch.linalg.inv(L))),
    ("full gaussian", "reversed order", lambda m, L: full(m, L.T.flip(0, 1))),
    ("full gaussian", "no correlation", lambda m, L: full(m, (L @ L.T).diag().sqrt().diag())),
    ("laplace", "std for scale", lambda m, b: LaplaceNoise(m, b / math.sqrt(2))),
    ("student t", "std for scale", lambda m, s, df: StudentTNoise(m, s * (1 - 2 / df).sqrt(), df)),
    ("student t", "gaussian", lambda m, s, df: GaussianNoise(m, s)),
    ("poisson", "gaussian", lambda m: GaussianNoise(m, m.sqrt())),
    ("scaled poisson", "gain forgotten", lambda m, g, b: PoissonNoise(m, 1.0, b)),
    ("scaled poisson", "background forgotten", lambda m, g, b: PoissonNoise(m, g)),
    ("scaled poisson", "background in counts", lambda m, g, b: PoissonNoise(m, g, g * b)),
    ("poisson-gaussian", "gain forgotten", lambda m, s, g, b: PoissonGaussianNoise(m, s, 1.0, b)),
    (
        "poisson-gaussian",
        "background not in the variance",
        lambda m, s, g, b: GaussianNoise(m + b, (g * m + s**2).sqrt()),
    ),
    (
        "poisson-gaussian",
        "std for variance",
        lambda m, s, g, b: GaussianNoise(m + b, (g * (m + b) + s).sqrt()),
    ),
    ("rician", "gaussian", lambda m, s: GaussianNoise(m, s)),
    ("rician", "std of the magnitude", lambda m, s: RicianNoise(m, s / math.sqrt(2))),
]
# Densities that a distribution with the right draws could have.
WRONG_DENSITIES: list[tuple[str, str, Make]] = [
    ("gaussian", "no normaliser", lambda y, m, s: -0.5 * ((y - m) / s) ** 2),
    ("laplace", "no normaliser", lambda y, m, b: -(y - m).abs() / b),
    ("poisson", "no factorial", lambda y, m: y * m.log() - m),
    (
        "scaled poisson",
        "density in y",
        lambda y, m, g, b: dist.Poisson((m + b) / g).log_prob((y / g).round()) - g.log(),
    ),
    (
        "poisson-gaussian",
        "no normaliser",
        lambda y, m, s, g, b: -0.5 * (y - m - b) ** 2 / (g * (m + b) + s**2),
    ),
    (
        "rician",
        "scaled Bessel function unscaled",
        lambda y, m, s: (
            (y / s**2 * torch.special.i0e(y * m / s**2)).log() - (y**2 + m**2) / (2 * s**2)
        ),
    ),
]


def draws_of(noise: Any, num: int, seed: int = 0) -> Tensor:
    with isolated(seed):
        draws: Tensor = noise.sample((num,))
    return draws


@pytest.fixture(params=DISTRIBUTIONS)
def case(request: pytest.FixtureRequest) -> Case:
    return DISTRIBUTIONS[request.param]


def density_error(log_prob: Callable[[Tensor], Tensor], case: Case) -> float:
    """Largest relative error of the log density, at draws and far out."""
    near = draws_of(case.noise(), 50)
    y = torch.cat([near, 5 * near])
    exact = case.log_prob(y)
    return float(((log_prob(y) - exact).abs() / exact.abs().clamp(min=1)).max())


def moment_score(draws: Tensor, case: Case) -> float:
    """Largest deviation of mean and variance of the draws, in standard errors."""
    law, unit = case.reference(), case.unit or 1.0
    mean = unit * torch.as_tensor(law.mean())
    variance = unit**2 * torch.as_tensor(law.var())
    squares = (draws - mean).square()
    scores = [
        (sample.mean(0) - expected) / (sample.std(0) / math.sqrt(len(draws)))
        for sample, expected in [(draws, mean), (squares, variance)]
    ]
    return float(torch.stack(scores).abs().max())


def uniformity(draws: Tensor, case: Case) -> float:
    """Level at which Kolmogorov-Smirnov tests reject the draws' probability integral transform."""
    entries = case.uniforms(draws).reshape(len(draws), -1).T
    # Of all together for power; of each, as too wide here and too narrow there would cancel.
    samples = [entries.ravel(), *entries]
    return len(samples) * min(float(stats.kstest(u, "uniform").pvalue) for u in samples)


def test_every_exported_class_is_in_the_table() -> None:
    exported = [getattr(distributions, name) for name in distributions.__all__]
    # These have files of their own.
    elsewhere = {
        Noise,
        TotalVariation,
        Deviation,
        ImageGivenData,
        IntegratedDeviation,
        IteratedDeviation,
        StructuredDeviation,
        DataSpectrum,
    }
    classes = {item for item in exported if inspect.isclass(item)} - elsewhere
    assert classes == {type(case.noise()) for case in DISTRIBUTIONS.values()}
    assert all(issubclass(item, dist.TorchDistribution) for item in classes)


def test_log_density(case: Case) -> None:
    assert density_error(case.noise().log_prob, case) < 1e-10


@pytest.mark.parametrize(("name", "what", "make"), WRONG)
def test_log_density_of_a_wrong_noise_is_rejected(name: str, what: str, make: Make) -> None:
    case = DISTRIBUTIONS[name]
    wrong = make(MEAN, *case.parameters)
    wrong._validate_args = False
    assert density_error(wrong.log_prob, case) > 1e-3, what


@pytest.mark.parametrize(("name", "what", "density"), WRONG_DENSITIES)
def test_wrong_log_density_is_rejected(name: str, what: str, density: Make) -> None:
    case = DISTRIBUTIONS[name]
    error = density_error(lambda y: density(y, MEAN, *case.parameters).sum((-2, -1)), case)
    assert error > 1e-3, what


MARGINAL = [name for name in DISTRIBUTIONS if name not in ("full gaussian", "structured")]


@pytest.mark.parametrize("name", MARGINAL)
def test_total_mass_is_one(name: str) -> None:
    case = DISTRIBUTIONS[name]
    noise = case.noise(event_dim=0, validate_args=False)
    if case.unit:
        y = case.unit * torch.arange(200.0, dtype=torch.float64)[:, None, None]
        y, weight = y.expand(-1, 3, 4), torch.ones(())
    else:
        u = torch.linspace(-15, 15, 20_001, dtype=torch.float64)[:, None, None]
        y, weight = noise.mean + u.sinh(), 30 / 20_000 * u.cosh()
    mass = (noise.log_prob(y).exp() * weight).sum(0)
    assert float((mass - 1).abs().max()) < 1e-5


def test_total_mass_of_the_full_gaussian_is_one() -> None:
    axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis).view(-1, 2, 1)
    noise = full(torch.zeros(2, 1, dtype=torch.float64), CHOLESKY[:2, :2])
    assert float(noise.log_prob(y).exp().sum() * 0.1**2) == pytest.approx(1.0, abs=1e-10)


def test_moments_in_closed_form(case: Case) -> None:
    noise, law, unit = case.noise(), case.reference(), case.unit or 1.0
    assert torch.allclose(noise.mean, unit * torch.as_tensor(law.mean()), rtol=1e-10)
    assert torch.allclose(noise.variance, unit**2 * torch.as_tensor(law.var()), rtol=1e-10)
    assert torch.equal(noise.stddev, noise.variance.sqrt())


def test_draws(case: Case) -> None:
    draws = draws_of(case.noise(), 20_000)
    assert draws.shape == (20_000, 3, 4)
    assert moment_score(draws, case) < 5.5
    assert uniformity(draws, case) > 1e-6
    case.noise(validate_args=True).log_prob(draws)  # refuses what is outside the support


@pytest.mark.parametrize(("name", "what", "make"), WRONG)
def test_wrong_draws_are_rejected(name: str, what: str, make: Make) -> None:
    """By the transform always, by the moments unless they happen to be the same."""
    case = DISTRIBUTIONS[name]
    draws = draws_of(make(MEAN, *case.parameters), 20_000)
    assert uniformity(draws, case) < 1e-6, what
    same_moments = (name, what) in [("poisson", "gaussian"), ("full gaussian", "no correlation")]
    assert same_moments or moment_score(draws, case) > 5.5, what


def test_draws_carry_gradients_where_they_can(case: Case) -> None:
    noise = case.noise()
    assert noise.has_rsample == noise.base_dist.has_rsample == (case.unit is None)
    if case.unit:
        with pytest.raises(NotImplementedError):
            noise.rsample()
        return

    def total(mean: Tensor) -> Tensor:
        with isolated(0):
            draws: Tensor = case.make(mean, *case.parameters).rsample((3,))
        return draws.square().sum()

    assert gradient_error(total, MEAN, _random(3, 4)) < 1e-7
    assert not draws_of(noise, 2).requires_grad


def test_first_and_second_derivatives(case: Case) -> None:
    """Of the log density in the mean and every parameter, together and each."""
    y = draws_of(case.noise(), 2)
    inputs = [t.clone().requires_grad_() for t in (MEAN, *case.parameters)]

    def density(*inputs: Tensor) -> Tensor:
        # Steps leave the cone of triangular matrices.
        return case.make(*inputs, validate_args=False).log_prob(y)

    for i, x in enumerate(inputs):

        def of_one(x: Tensor, i: int = i) -> Tensor:
            return density(*(x if j == i else t.detach() for j, t in enumerate(inputs))).sum()

        assert gradient_error(of_one, x.detach(), 0.1 + _random(*x.shape)) < 1e-6
    with isolated(0):
        assert torch.autograd.gradcheck(density, inputs)
        assert torch.autograd.gradgradcheck(density, inputs)


def test_vmapped_and_recorded(case: Case) -> None:
    """Values and gradients of many predictions at once are those of one at a time."""
    y = draws_of(case.noise(), 1)[0]
    means = MEAN * (0.5 + _random(5, 1, 1))

    def density(mean: Tensor) -> Tensor:
        return case.make(mean, *case.parameters).log_prob(y)

    single = [torch.func.grad_and_value(density)(mean) for mean in means]
    batched = torch.func.vmap(torch.func.grad_and_value(density))
    with pyro.validation_enabled(False):
        for run in (batched, make_fx(batched)(means)):
            for found, expected in zip(run(means), zip(*single, strict=True), strict=True):
                assert torch.allclose(found, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_single_precision(case: Case) -> None:
    y = draws_of(case.noise(), 20)
    single = case.make(MEAN.float(), *(t.float() for t in case.parameters))
    assert single.log_prob(y.float()).dtype == torch.float32
    assert torch.allclose(single.log_prob(y.float()).double(), case.log_prob(y), rtol=1e-4)
    assert draws_of(single, 2).dtype == single.mean.dtype == single.variance.dtype == torch.float32
