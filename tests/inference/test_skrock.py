"""Stabilised steps: their law on Gaussians by Chebyshev polynomials, and how far they reach.

False-alarm rate of every check of moments: 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.chebyshev import Chebyshev
from torch import Tensor

from bayesgen import infer
from bayesgen.distributions import TotalVariation
from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import Run, Sampler, run_sampler
from bayesgen.inference import skrock as module
from bayesgen.inference.checks import GaussianTarget, MethodReport, moment_report
from bayesgen.inference.langevin import ULA
from bayesgen.inference.proximal_langevin import MYULA
from bayesgen.inference.skrock import SKROCK, coefficients, longest_step
from bayesgen.inference.smoothed import Smoothed
from bayesgen.log_density import LogDensity

float64 = torch.float64
TARGET = GaussianTarget.with_condition(5, 10.0)


def run(method: Sampler, target: GaussianTarget = TARGET, **options: int) -> Run:
    rng = torch.Generator().manual_seed(1)
    settings = {"draws": 500, "warmup": 100, **options}
    return run_sampler(method, target, target.starts(64, rng), rng, **settings)


def factors(stages: int, p: Tensor) -> tuple[Tensor, Tensor]:
    """A(p) and B(p) of a step A v + B sqrt(2 delta) xi, p being a curvature times delta.

    A = T_s(w0 - w1 p) / T_s(w0) and B = U_{s-1}(w0 - w1 p) / U_{s-1}(w0) (1 - w1 p / 2) (Abdulle,
    Almuslimani and Vilmart 2018).
    """
    t = Chebyshev.basis(stages)
    u = t.deriv()
    w0 = 1.0 + 0.05 / stages**2
    w1 = float(t(w0) / u(w0))
    at = w0 - w1 * p.numpy()
    a, b = t(at) / t(w0), u(at) / u(w0) * (1.0 - 0.5 * w1 * p.numpy())
    return torch.as_tensor(a), torch.as_tensor(b)


def kept(stages: int, p: Tensor) -> Tensor:
    """Share of the variance of a direction that steps leave."""
    a, b = factors(stages, p)
    return 2.0 * p * b.square() / (1.0 - a.square())


def against_formula(stages: int, delta: float) -> MethodReport:
    method = SKROCK(stages=stages, step_size=math.sqrt(2.0 * delta))
    draws = run(method, warmup=20, draws=300).position
    variances, vectors = torch.linalg.eigh(TARGET.covariance)
    new = variances * kept(stages, delta / variances)
    covariance = vectors @ new.diag() @ vectors.T
    return moment_report(repr(method), draws, TARGET.mean, covariance)


@pytest.mark.parametrize(("stages", "delta"), [(2, 1.0), (5, 3.0), (10, 20.0)])
def test_gaussians_get_the_covariance_of_the_formula(stages: int, delta: float) -> None:
    against_formula(stages, delta).raise_if_failed()


def test_a_wrong_noise_scale_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    (mu, nu, kappa), later = coefficients(5)
    wrong = (mu, nu, 1.1 * kappa), later
    monkeypatch.setattr(module, "coefficients", lambda stages: wrong)
    assert not against_formula(5, 3.0).passed


class Independent:
    """Centred normals of given curvatures."""

    def __init__(self, curvatures: Tensor) -> None:
        self.num_dims, self.curvatures = len(curvatures), curvatures

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        gradient = -self.curvatures * v
        return 0.5 * (gradient * v).sum(-1), gradient


def deviation(stages: int) -> float:
    """Largest error of the factors that steps without noise, and from zero, show."""
    p = torch.linspace(0.01, longest_step(stages), 50, dtype=float64)
    density, one = Independent(p), torch.ones(1, 50, dtype=float64)
    step = torch.full((1, 1), math.sqrt(2.0), dtype=float64)
    smoothed, method = Smoothed(density, step), SKROCK(stages=stages)
    found = (
        method._moved(smoothed, one, step, 0.0 * one),
        method._moved(smoothed, 0.0 * one, step, one) / step,
    )
    return max(float((a - b).abs().max()) for a, b in zip(found, factors(stages, p), strict=True))


@pytest.mark.parametrize("stages", [2, 3, 10, 15])
def test_stages_are_chebyshev_polynomials(stages: int) -> None:
    assert deviation(stages) < 1e-9


@pytest.mark.parametrize("which", ["mu", "nu", "kappa", "recursion"])
def test_wrong_coefficients_are_rejected(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (mu, nu, kappa), later = coefficients(10)
    first = {"mu": (1.01 * mu, nu, kappa), "nu": (mu, 0.0, kappa), "kappa": (mu, nu, 1.01 * kappa)}
    if which == "recursion":
        later = [(1.01 * mu_j, nu_j) for mu_j, nu_j in later]
    wrong = first.get(which, (mu, nu, kappa)), later
    monkeypatch.setattr(module, "coefficients", lambda stages: wrong)
    assert deviation(10) > 1e-3


@pytest.mark.parametrize("stages", [2, 3, 5, 10, 15])
def test_steps_are_stable_as_far_as_stated_and_errors_bounded(stages: int) -> None:
    longest = longest_step(stages)
    p = torch.logspace(-2, math.log10(longest), 2000, dtype=float64)
    assert float(factors(stages, p)[0].abs().max()) < 1.0
    share = kept(stages, p)
    assert bool(((share >= 0.0) & (share < 1.0)).all())
    # A variance is delta / p, so this is the error in units of delta.
    assert float(((1.0 - share) / p).max()) < (0.212 if stages >= 10 else 0.231)
    beyond = torch.tensor([2.0 * longest + 4.0], dtype=float64)
    assert float(factors(stages, beyond)[0].abs()) > 1.0


@pytest.mark.parametrize(("ratio", "loss"), [(10.0, 0.002), (4.0, 0.005), (1.0, 0.024)])
def test_wide_directions_lose_as_much_as_stated(ratio: float, loss: float) -> None:
    share = kept(10, torch.tensor([1.0 / ratio], dtype=float64))
    assert float(share) == pytest.approx(1.0 - loss, abs=6e-4)


def test_default_steps_are_a_quarter_of_the_widest_variance() -> None:
    found = run(SKROCK(), warmup=300)
    error = found.position.flatten(0, 1).T.cov() - TARGET.covariance
    widest = torch.linalg.eigvalsh(TARGET.covariance)[-1]
    assert float(torch.linalg.eigvalsh(error).abs().max()) < 0.06 * widest
    delta = 0.5 * float(found.stats["step_size"][0, 0]) ** 2
    assert 0.5 < delta / float(0.25 * TARGET.covariance.diag().max()) < 1.3
    stiff = GaussianTarget.with_condition(5, 1e5)
    stiff = GaussianTarget(stiff.mean, stiff.covariance / 1e5)
    found = run(SKROCK(), stiff, warmup=100, draws=1)
    delta = 0.5 * float(found.stats["step_size"][0, 0]) ** 2
    assert delta == pytest.approx(0.8 * longest_step(10) / 2e5, rel=1e-3)


def test_stiff_gaussians_cost_several_times_fewer_gradients() -> None:
    """Gradients for an independent draw of the widest direction, by integrated autocorrelation."""
    variances = torch.logspace(0, -3, 8, dtype=float64)
    rng = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=rng, dtype=float64))
    covariance = rotation @ variances.diag() @ rotation.T
    target = GaussianTarget(torch.zeros(8, dtype=float64), covariance)
    cost = {}
    for method, draws, gradients in ((SKROCK(), 300, 11), (ULA(), 2500, 1)):
        found = run(method, target, warmup=300, draws=draws).position @ rotation[:, 0]
        # The variance of a mean over m dependent draws is that of one, times this time, over m.
        cost[method.name] = gradients * draws * float(found.mean(1).var() / variances[0])
    assert cost["ula"] > 4.0 * cost["skrock"]


def one_dim(y: Tensor) -> None:
    x = pyro.sample("x", dist.Laplace(torch.zeros(1).to(y), 0.7).to_event(1))
    pyro.sample("y", dist.Normal(x, 0.6).to_event(1), obs=y)


def two_dims(y: Tensor) -> None:
    matrix = torch.tensor([[1.0, 0.6], [0.2, -0.9]]).to(y)
    scales = torch.tensor([0.5, 1.0]).to(y)
    x = pyro.sample("x", dist.Laplace(torch.zeros(2).to(y), scales).to_event(1))
    pyro.sample("y", dist.Normal(x @ matrix.T, 0.5).to_event(1), obs=y)


def moments(density: LogDensity, scales: Tensor, smoothing: float | None) -> tuple[Tensor, Tensor]:
    """By quadrature, of the posterior or with its Laplace prior replaced by Huber's function."""
    axis = torch.linspace(-6.0, 6.0, 401, dtype=float64)
    v = torch.cartesian_prod(*[axis] * density.num_dims).reshape(-1, density.num_dims)
    log_prob = density.log_prob(v)
    if smoothing is not None:
        width = smoothing * density.scale.square() / scales
        inside = 0.5 * v.square() / (smoothing * density.scale.square())
        huber = torch.where(v.abs() <= width, inside, (v.abs() - 0.5 * width) / scales)
        log_prob = log_prob + (v.abs() / scales - huber).sum(-1)
    weights = log_prob.softmax(0)
    mean = weights @ v
    return mean, (weights[:, None] * (v - mean)).T @ (v - mean)


@pytest.mark.parametrize(
    ("model", "y", "scales"),
    [(one_dim, [0.4], [0.7]), (two_dims, [0.4, -0.7], [0.5, 1.0])],
    ids=["1-d", "2-d"],
)
def test_laplace_priors_are_smoothed(
    model: Callable[[Tensor], None], y: list[float], scales: list[float]
) -> None:
    density = LogDensity(model, torch.tensor(y, dtype=float64))
    widths, rng = torch.tensor(scales, dtype=float64), torch.Generator().manual_seed(0)
    start = 0.5 * torch.randn(256, len(y), generator=rng, dtype=float64)
    # Steps so short that little but smoothing biases the draws.
    method = SKROCK(stages=5, smoothing=3.0, step_size=0.2)
    draws = run_sampler(method, density, start, rng, draws=150, warmup=50).position
    moment_report("", draws, *moments(density, widths, 3.0)).raise_if_failed()
    assert not moment_report("", draws, *moments(density, widths, None)).passed


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_images_with_edges(dtype: torch.dtype) -> None:
    def model(y: Tensor) -> None:
        u = pyro.sample("u", TotalVariation((4, 4), 0.3, dtype=y.dtype))
        pyro.sample("y", dist.Normal(u, 0.5).to_event(2), obs=y)

    y = torch.zeros(4, 4, dtype=dtype)
    y[:, 2:] = 1.0
    method = SKROCK(stages=3)
    posterior = infer(model, y, method=method, draws=5, warmup=10, chains=1, seed=0)
    draws = posterior.draws("u")
    assert draws.shape == (1, 5, 4, 4) and draws.dtype == dtype
    assert bool(torch.isfinite(draws).all()) and "unadjusted" in str(posterior.summary())


def test_steps_cost_one_gradient_a_stage_and_one() -> None:
    found = run(SKROCK(stages=7, step_size=0.5), warmup=0, draws=10)
    # At the start twice twenty for the curvature, and one.
    assert found.num_evaluations == 41 + 10 * 8


def test_problems_learn_on_their_own() -> None:
    class Scaled:
        """Two Gaussians, one a hundred times narrower than the other."""

        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            scale = torch.tensor([1.0, 0.01], dtype=float64)[:, None, None]
            return -0.5 * (v / scale).square().sum(-1), -v / scale**2

    rng = torch.Generator().manual_seed(0)
    start = torch.randn(2, 16, 2, generator=rng, dtype=float64)
    found = run_sampler(SKROCK(), Scaled(), start, rng, draws=100, warmup=200)
    steps = found.stats["step_size"][:, 0, 0]
    assert 70 < float(steps[0] / steps[1]) < 140
    spread = found.position.std((1, 2))
    assert bool((spread[0] / spread[1] > 70).all())


def test_steps_that_are_too_long_are_not_taken(rng: torch.Generator) -> None:
    start = TARGET.starts(8, rng)
    found = run_sampler(SKROCK(step_size=100.0), TARGET, start, rng, draws=20, warmup=0)
    assert bool(found.stats["diverging"].all()) and torch.equal(found.position[:, -1], start)


def test_starts_at_the_mode_of_many_dimensions_do_not_diverge(rng: torch.Generator) -> None:
    target, start = Independent(torch.ones(4000)), torch.zeros(2, 4000)
    found = run_sampler(SKROCK(step_size=1.4), target, start, rng, draws=4, warmup=0)
    assert not bool(found.stats["diverging"].any())
    assert float(found.log_prob.max()) < -1000.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 1}, "stages: got 1"),
        ({"stages": 2.5}, "stages: got 2.5"),
        ({"smoothing": 0.0}, "smoothing: got 0.0"),
        ({"step_size": math.nan}, "step_size: got nan"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SKROCK(**settings)  # type: ignore[arg-type]


def test_misspelt_settings_are_refused_with_the_list() -> None:
    with pytest.raises(UnknownOptionError, match="SKROCK: unknown option 'stage'"):
        SKROCK(stage=3)  # type: ignore[call-arg]


def test_without_kinks_myula_is_ula(rng: torch.Generator) -> None:
    start = TARGET.starts(4, rng)
    one, other = (
        run_sampler(
            method, TARGET, start, torch.Generator().manual_seed(0), draws=20, warmup=0
        ).position
        for method in (MYULA(step_size=0.3), ULA(step_size=0.3))
    )
    assert torch.equal(one, other)
