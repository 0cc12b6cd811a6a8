"""Priors with kinks: exact with the test, as biased as they should be without.

Truth comes from quadrature, of the posterior, of its smoothed form, and of the transition kernel.
False-alarm rate of every check of moments: 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import infer
from bayesgen.distributions import TotalVariation
from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import HMC, MALA, Run, Sampler, run_sampler
from bayesgen.inference import proximal_langevin as module
from bayesgen.inference.checks import GaussianTarget, MethodReport, moment_report
from bayesgen.inference.hmc import HMCInfo
from bayesgen.inference.langevin import Point
from bayesgen.inference.proximal_langevin import MYULA, PMALA, PMALAState
from bayesgen.inference.smoothed import Smoothed
from bayesgen.inference.standardised import Standardised
from bayesgen.log_density import LogDensity
from bayesgen.types import Density

float64 = torch.float64
MATRIX = torch.tensor([[1.0, 0.6], [0.2, -0.9]], dtype=float64)
SCALES = torch.tensor([0.5, 1.0], dtype=float64)
Y1, Y2 = torch.tensor([0.4], dtype=float64), torch.tensor([0.4, -0.7], dtype=float64)


def one_dim(y: Tensor) -> None:
    x = pyro.sample("x", dist.Laplace(torch.zeros(1).to(y), 0.7).to_event(1))
    pyro.sample("y", dist.Normal(x, 0.6).to_event(1), obs=y)


def two_dims(y: Tensor, noise: float = 0.5) -> None:
    x = pyro.sample("x", dist.Laplace(torch.zeros(2).to(y), SCALES.to(y)).to_event(1))
    pyro.sample("y", dist.Normal(x @ MATRIX.to(y).T, noise).to_event(1), obs=y)


def deviations(y: Tensor) -> None:
    """A smooth site and one with a kink, as in a sparse deviation from a generator's range."""
    z = pyro.sample("z", dist.Normal(torch.zeros(1).to(y), 1.0).to_event(1))
    u = pyro.sample("u", dist.Laplace(torch.zeros(1).to(y), 0.3).to_event(1))
    pyro.sample("y", dist.Normal(torch.cat([z + u, 2.0 * z]), 0.5).to_event(1), obs=y)


def square(y: Tensor) -> None:
    u = pyro.sample("u", TotalVariation((2, 2), 0.5, dtype=y.dtype))
    pyro.sample("y", dist.Normal(u, 0.7).to_event(2), obs=y)


def image(y: Tensor, smoothing: float = 0.0) -> None:
    u = pyro.sample("u", TotalVariation((4, 4), 0.3, smoothing=smoothing, dtype=y.dtype))
    pyro.sample("y", dist.Normal(u, 0.5).to_event(2), obs=y)


def moments(log_prob: Callable[[Tensor], Tensor], dims: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance by quadrature on a grid."""
    width, count = {1: (6.0, 4001), 2: (6.0, 401), 4: (3.5, 36)}[dims]
    axis = torch.linspace(-width, width, count, dtype=float64)
    points = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    weights = torch.cat([log_prob(part) for part in points.split(200_000)]).softmax(0)
    mean = weights @ points
    return mean, (weights[:, None] * (points - mean)).T @ (points - mean)


def run(
    method: Sampler,
    density: Density,
    *,
    draws: int = 200,
    warmup: int = 200,
    chains: int = 64,
    thin: int = 1,
) -> Run:
    rng = torch.Generator().manual_seed(2)
    start = 0.5 * torch.randn(chains, density.num_dims, generator=rng, dtype=float64)
    return run_sampler(method, density, start, rng, draws=draws, warmup=warmup, thin=thin)


def report(
    method: Sampler, model: Callable[[Tensor], None], y: Tensor, **options: int
) -> MethodReport:
    density = LogDensity(model, y)
    truth = moments(density.log_prob, density.num_dims)
    return moment_report(method.name, run(method, density, **options).position, *truth)


# -------------------------------------------------------------------------------- with the test

MODELS = {
    "laplace 1-d": (one_dim, Y1),
    "laplace 2-d": (two_dims, Y2),
    "normal and laplace": (deviations, Y2),
    "total variation": (square, torch.tensor([[0.6, -0.3], [0.9, 0.1]], dtype=float64)),
}


@pytest.mark.parametrize("name", MODELS)
def test_with_the_test_draws_follow_the_posterior(name: str) -> None:
    short = {"draws": 80, "warmup": 50} if name == "total variation" else {}
    report(PMALA(), *MODELS[name], **short).raise_if_failed()


@pytest.mark.parametrize("smoothing", [1e-3, 0.5])
def test_any_smoothing_is_right(smoothing: float) -> None:
    method = PMALA(smoothing=smoothing)
    report(method, two_dims, Y2).raise_if_failed()


@dataclass(frozen=True)
class WithoutTest(PMALA):
    """Takes every proposal."""

    def step(
        self, log_density: Density, state: PMALAState, rng: torch.Generator
    ) -> tuple[PMALAState, HMCInfo]:
        new, info = super().step(log_density, state, rng)
        smoothed = Smoothed(log_density, new.smoothing)
        chain = state.chain
        at = Point(chain.position, chain.log_prob, chain.gradient)
        at, _, _ = module.unadjusted_step(
            smoothed, at, chain.step_size, new.chain.inverse_mass, rng
        )
        chain = new.chain._replace(**at._asdict())
        return PMALAState(at.position, at.log_prob, chain, new.smoothing), info


@dataclass(frozen=True)
class WithoutReverseDrift(PMALA):
    """Tests as if proposals were a random walk: the densities only, not those of the moves."""

    def step(
        self, log_density: Density, state: PMALAState, rng: torch.Generator
    ) -> tuple[PMALAState, HMCInfo]:
        _, info = super().step(log_density, state, rng)
        chain = state.chain
        smoothed = Smoothed(log_density, self._smoothing(chain))
        old = Point(chain.position, chain.log_prob, chain.gradient)
        at, _, _ = module.unadjusted_step(smoothed, old, chain.step_size, chain.inverse_mass, rng)
        ratio = at.log_prob - old.log_prob
        accepted = torch.rand(ratio.shape, generator=rng, dtype=ratio.dtype).log() < ratio
        chain = chain._replace(
            position=torch.where(accepted[..., None], at.position, old.position),
            log_prob=torch.where(accepted, at.log_prob, old.log_prob),
            gradient=torch.where(accepted[..., None], at.gradient, old.gradient),
        )
        return PMALAState(chain.position, chain.log_prob, chain, state.smoothing), info


@pytest.mark.parametrize("wrong", [WithoutTest, WithoutReverseDrift])
def test_a_wrong_test_is_rejected(wrong: type[PMALA]) -> None:
    assert not report(wrong(step_size=0.9), two_dims, Y2, warmup=0, draws=300).passed


def test_a_wrong_noise_scale_is_rejected() -> None:
    truth = moments(LogDensity(two_dims, Y2).log_prob, 2)
    wrong = LogDensity(lambda y: two_dims(y, noise=0.6), Y2)
    assert not moment_report("", run(PMALA(), wrong).position, *truth).passed


@pytest.mark.slow
def test_an_image_with_a_total_variation_prior() -> None:
    """Against HMC on edges rounded over a fiftieth of the noise."""
    rng = torch.Generator().manual_seed(0)
    y = torch.zeros(4, 4, dtype=float64)
    y[:, 2:] = 1.0
    y = y + 0.5 * torch.randn(4, 4, generator=rng, dtype=float64)
    start = y.flatten() + 0.3 * torch.randn(32, 16, generator=rng, dtype=float64)
    reference = LogDensity(lambda y: image(y, smoothing=0.01), y)
    truth = run_sampler(HMC(), reference, start, rng, draws=200, warmup=150).position
    density = LogDensity(image, y)
    assert list(density.proximal) == ["u"]
    found = run_sampler(PMALA(), density, start, rng, draws=400, warmup=150).position
    assert agreement(found, truth) < 6.5
    assert agreement(1.2 * found, truth) > 6.5


def agreement(found: Tensor, truth: Tensor) -> float:
    """Largest z-score between means and variances of two sets of independent chains."""
    scores = []
    centre = truth.mean((0, 1))
    for power in (1, 2):
        a, b = ((x - centre).pow(power).mean(1) for x in (found, truth))
        scores.append((a.mean(0) - b.mean(0)) / (a.var(0) / len(a) + b.var(0) / len(b)).sqrt())
    return float(torch.stack(scores).abs().max())


def test_the_first_of_them_is_a_proximal_step() -> None:
    r"""v' = prox(v) + lambda grad + e xi, written out, in units of the prior."""
    density = Standardised(LogDensity(one_dim, Y1))
    method, v = PMALA(step_size=0.3), torch.tensor([[0.9], [0.01]], dtype=float64)
    state = method.init(density, v)
    new, _ = method.step(density, state, torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    noise, smoothing = torch.randn(2, 1, generator=rng, dtype=float64), 0.5 * 0.3**2
    scale = float(torch.as_tensor(density.scale))
    kink = smoothing * scale / 0.7  # of lambda |v| scale / b
    near = v.sign() * (v.abs() - kink).clamp(min=0.0)
    slope = scale * (Y1 - scale * v) / 0.6**2
    proposal = near + smoothing * slope + 0.3 * noise
    moved = (new.position != v).any(-1)
    assert bool(moved.any())
    torch.testing.assert_close(new.position[moved], proposal[moved])


def test_without_a_kink_it_is_mala(rng: torch.Generator) -> None:
    target = GaussianTarget.with_condition(3, 10.0)
    start = target.starts(4, rng)
    one, other = (
        run_sampler(
            method, target, start, torch.Generator().manual_seed(0), draws=20, warmup=100
        ).position
        for method in (PMALA(), MALA())
    )
    assert torch.equal(one, other)


def test_proposals_cost_one_gradient(rng: torch.Generator) -> None:
    density = LogDensity(two_dims, Y2)
    method, start = PMALA(step_size=0.5), torch.zeros(4, 2, dtype=float64)
    assert run_sampler(method, density, start, rng, draws=50, warmup=0).num_evaluations == 51


def test_warm_up_reaches_its_acceptance_and_keeps_blocks_even() -> None:
    found = run(PMALA(), LogDensity(two_dims, Y2))
    assert abs(float(found.stats["acceptance_rate"].mean()) - 0.574) < 0.15
    mass = found.state.chain.inverse_mass
    assert float(mass[..., 0]) == float(mass[..., 1])
    mixed = run(PMALA(), LogDensity(deviations, Y2), draws=1).state.chain.inverse_mass
    assert float(mixed[..., 0]) != float(mixed[..., 1])


# ---------------------------------------------------------------------------- without the test


def stationary(density: LogDensity, smoothing: float, step: float) -> tuple[Tensor, Tensor]:
    """Moments of the law that unadjusted steps in one dimension leave unchanged."""
    # In units of the prior.
    scale = float(density.scale)
    grid = torch.linspace(-5.0, 5.0, 801, dtype=float64)
    kink = smoothing * scale / 0.7
    slope = (grid - grid.sign() * (grid.abs() - kink).clamp(min=0.0)) / smoothing
    drift = scale * (Y1 - scale * grid) / 0.6**2 - slope
    centred = grid - (grid + 0.5 * step**2 * drift)[:, None]
    kernel = (-0.5 * centred.square() / step**2).softmax(1)
    for _ in range(14):
        kernel = kernel @ kernel
    weights, points = kernel[400], grid * scale
    mean = weights @ points
    return mean.reshape(1), (weights @ (points - mean).square()).reshape(1, 1)


def envelope(density: LogDensity, smoothing: float, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """Log density with its Laplace priors smoothed: Huber's function."""

    def log_prob(v: Tensor) -> Tensor:
        width = smoothing * density.scale.square() / scales
        inside = 0.5 * v.square() / (smoothing * density.scale.square())
        huber = torch.where(v.abs() <= width, inside, (v.abs() - 0.5 * width) / scales)
        laplace = v.abs() / scales
        return density.log_prob(v) + (laplace - huber).sum(-1)

    return log_prob


@pytest.mark.parametrize(("smoothing", "step"), [(0.1, 0.3), (0.3, 0.6)])
def test_without_the_test_the_bias_is_as_computed(smoothing: float, step: float) -> None:
    density = LogDensity(one_dim, Y1)
    method = MYULA(smoothing=smoothing, step_size=step)
    draws = run(method, density, warmup=50, draws=600).position
    moment_report("", draws, *stationary(density, smoothing, step)).raise_if_failed()
    exact = moments(density.log_prob, 1)
    # With the test, the same settings are right.
    adjusted = PMALA(smoothing=smoothing, step_size=step, adapt_mass=False)
    right = run(adjusted, density, warmup=0, draws=350).position[:, 50:]
    moment_report("", right, *exact).raise_if_failed()
    if step > 0.5:
        assert not moment_report("", draws, *exact).passed


def test_short_steps_follow_the_smoothed_density() -> None:
    density, smoothing = LogDensity(two_dims, Y2), 0.5
    method = MYULA(smoothing=smoothing, step_size=0.1)
    draws = run(method, density, warmup=100, draws=300, chains=512).position
    found = draws.flatten(0, 1).T.cov()
    smooth, exact = (
        moments(log_prob, 2)[1]
        for log_prob in (envelope(density, smoothing, SCALES), density.log_prob)
    )
    # The first variance is the one that smoothing changes; steps leave a few percent.
    assert float((found - smooth).abs().max()) < 0.012
    assert float((found - exact)[0, 0]) > 0.012


def test_default_settings_are_near_the_posterior() -> None:
    """Smoothing and step from the curvature bias moments by a few percent of a deviation."""
    density = LogDensity(two_dims, Y2)
    mean, covariance = moments(density.log_prob, 2)
    found = run(MYULA(), density, draws=800, warmup=100)
    draws, deviation = found.position.flatten(0, 1), covariance.diag().sqrt()
    assert float(((draws.mean(0) - mean) / deviation).abs().max()) < 0.1
    assert float((draws.std(0) / deviation - 1.0).abs().max()) < 0.1
    hessian = MATRIX.T @ MATRIX / 0.5**2 * torch.outer(density.scale, density.scale)
    largest = torch.linalg.eigvalsh(hessian)[-1]
    curvature = found.state.curvature.largest
    torch.testing.assert_close(curvature, largest.expand_as(curvature), rtol=1e-3, atol=0.0)
    step = (0.4 / (2.0 * largest)).sqrt()
    torch.testing.assert_close(found.stats["step_size"], step.expand(64, 800), rtol=1e-3, atol=0.0)


def noisier(
    density: Density, at: Point, step: Tensor, variances: Tensor, rng: torch.Generator
) -> tuple[Point, Tensor, Tensor]:
    """Noise a tenth too large, the drift as it should be."""
    shift = 0.5 * step.square() * at.gradient
    noise = torch.randn(at.position.shape, generator=rng, dtype=step.dtype)
    position = at.position + shift + 1.1 * step * noise
    new = Point(position, *density.value_and_grad(position))
    return new, torch.ones_like(new.log_prob), torch.zeros_like(new.log_prob, dtype=torch.bool)


def test_a_wrong_noise_without_the_test_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "unadjusted_step", noisier)
    density = LogDensity(one_dim, Y1)
    draws = run(MYULA(smoothing=0.1, step_size=0.3), density, warmup=50, draws=600).position
    assert not moment_report("", draws, *stationary(density, 0.1, 0.3)).passed


# ------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("method", [MYULA(), PMALA()])
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_single_chains_and_precisions(method: Sampler, dtype: torch.dtype) -> None:
    options = {"draws": 30, "warmup": 70, "chains": 1, "seed": 0}
    posterior = infer(two_dims, Y2.to(dtype), method=method, **options)  # type: ignore[arg-type]
    draws = posterior.draws("x")
    assert draws.shape == (1, 30, 2) and draws.dtype == dtype
    assert bool(torch.isfinite(draws).all())
    assert posterior.attributes["exact"] is type(method).exact
    assert ("unadjusted" in str(posterior.summary())) != type(method).exact


@pytest.mark.parametrize("method", [MYULA(), PMALA()])
def test_problems_learn_on_their_own(method: Sampler) -> None:
    """Data a hundred times as precise: a tenth of the step."""

    def model(y: Tensor, sigma: Tensor) -> None:
        x = pyro.sample("x", dist.Laplace(torch.zeros(2).to(y), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    y, sigma = torch.ones(2, 2, dtype=float64), torch.tensor([[0.5], [0.05]], dtype=float64)
    density, rng = LogDensity(model, y, sigma, batched=True), torch.Generator().manual_seed(0)
    start = density.prior_draws(16, rng)
    found = run_sampler(method, density, start, rng, draws=150, warmup=150)
    spread = found.position.std((1, 2))
    assert bool((spread[0] / spread[1] > 5.0).all()) and not bool(found.stats["diverging"].any())
    mean = found.position.mean((1, 2))
    assert bool((mean[1] - 1.0).abs().max() < 0.05) and bool((mean[0] < 0.95).all())


def test_steps_that_are_too_long_are_not_taken(rng: torch.Generator) -> None:
    density = LogDensity(two_dims, Y2)
    start = torch.zeros(8, 2, dtype=float64)
    found = run_sampler(MYULA(step_size=100.0), density, start, rng, draws=20, warmup=0)
    assert bool(found.stats["diverging"].all()) and torch.equal(found.position[:, -1], start)


@pytest.mark.parametrize("method", [MYULA, PMALA])
@pytest.mark.parametrize("option", ["smoothing", "step_size"])
def test_impossible_settings_are_refused(method: type[Sampler], option: str) -> None:
    with pytest.raises(OptionError, match=f"{option}: got -1.0"):
        method(**{option: -1.0})
    with pytest.raises(UnknownOptionError, match=method.__name__):
        method(smooothing=1.0)
    if method is PMALA:
        with pytest.raises(OptionError, match="target_acceptance: got 2"):
            PMALA(target_acceptance=2.0)
