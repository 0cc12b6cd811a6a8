"""Unadjusted Langevin steps: the law they leave unchanged is known on Gaussians.

False-alarm rate of every check of moments: 1e-6.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import infer
from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import Run, run_sampler
from bayesgen.inference import langevin as module
from bayesgen.inference.checks import GaussianTarget, MethodReport, moment_report
from bayesgen.inference.langevin import ULA, Point, unadjusted_step
from bayesgen.types import Density

float64 = torch.float64
TARGET = GaussianTarget.with_condition(5, 10.0)


def run(method: ULA, target: GaussianTarget = TARGET, **options: int) -> Run:
    rng = torch.Generator().manual_seed(1)
    settings = {"draws": 500, "warmup": 300, **options}
    return run_sampler(method, target, target.starts(64, rng), rng, **settings)


def stationary(found: Run, target: GaussianTarget = TARGET, temperature: float = 1.0) -> Tensor:
    """Covariance that the steps of a run leave unchanged, by the formula in the docstring."""
    chain = found.state.chain
    precision = torch.linalg.inv(target.covariance) / temperature
    metric = torch.diag(chain.inverse_mass.flatten())
    h = float(chain.step_size) ** 2
    return torch.linalg.inv(precision - 0.25 * h * precision @ metric @ precision)


def against_formula(method: ULA, **options: int) -> MethodReport:
    found = run(method, **options)
    covariance = stationary(found, temperature=method.temperature)
    return moment_report(repr(method), found.position, TARGET.mean, covariance)


@pytest.mark.parametrize(
    "method",
    [ULA(), ULA(target_acceptance=0.8), ULA(temperature=0.5), ULA(adapt_mass=False)],
    ids=["default", "long steps", "cold", "no scales"],
)
def test_gaussians_get_the_covariance_of_the_formula(method: ULA) -> None:
    against_formula(method).raise_if_failed()


def test_long_steps_are_biased() -> None:
    found = run(ULA(target_acceptance=0.6), draws=1000)
    assert not moment_report("", found.position, TARGET.mean, TARGET.covariance).passed


@pytest.mark.parametrize(("num_dims", "bias"), [(1, 0.12), (5, 0.06), (20, 0.04)])
def test_the_default_leaves_the_stated_bias(num_dims: int, bias: float) -> None:
    zero, unit = torch.zeros(num_dims, dtype=float64), torch.eye(num_dims, dtype=float64)
    target = GaussianTarget(zero, unit)
    found = run(ULA(adapt_mass=False), target, draws=1, warmup=400)
    excess = stationary(found, target).diag() - 1.0
    assert bool(((excess > 0.6 * bias) & (excess < 1.2 * bias)).all())


def noisier(
    density: Density, at: Point, step: Tensor, variances: Tensor, rng: torch.Generator
) -> tuple[Point, Tensor, Tensor]:
    """Noise a tenth too large, the drift as it should be."""
    noise = torch.randn(at.position.shape, generator=rng, dtype=step.dtype)
    drift = 0.5 * step.square() * variances * at.gradient
    position = at.position + drift + 1.1 * step * variances.sqrt() * noise
    new = Point(position, *density.value_and_grad(position))
    return new, torch.ones_like(new.log_prob), torch.zeros_like(new.log_prob, dtype=torch.bool)


def test_a_wrong_noise_scale_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "unadjusted_step", noisier)
    assert not against_formula(ULA(target_acceptance=0.8)).passed


def test_a_test_that_stays_after_warm_up_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula tells unadjusted chains from adjusted ones."""
    method = ULA(target_acceptance=0.6)
    adapt = ULA.adapt
    monkeypatch.setattr(ULA, "adapt", lambda *args: adapt(*args)._replace(adjusted=True))
    assert not against_formula(method, draws=1000).passed


# -------------------------------------------------------------------------------- the steps


def test_a_step_written_out(rng: torch.Generator) -> None:
    """The iteration z - eta grad U + sqrt(2 c eta) xi, for p = exp(-U), c the temperature."""
    eta, c, start = 0.01, 0.5, TARGET.starts(3, rng)
    method = ULA(temperature=c, step_size=math.sqrt(2 * c * eta))
    state = method.init(TARGET, start)
    new, info = method.step(TARGET, state, torch.Generator().manual_seed(5))
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(5), dtype=float64)
    value, gradient = TARGET.value_and_grad(start)
    proposal = start + eta * gradient + math.sqrt(2 * c * eta) * noise
    torch.testing.assert_close(new.position, proposal)
    # What is stored is the density itself, and the ratio that a test at the temperature has.
    ahead, slope = TARGET.value_and_grad(proposal)
    torch.testing.assert_close(info.log_prob, ahead)
    there = -(proposal - start - eta * gradient).square().sum(-1) / (4 * c * eta)
    back = -(start - proposal - eta * slope).square().sum(-1) / (4 * c * eta)
    ratio = ((ahead - value) / c + back - there).clamp(max=0.0).exp()
    torch.testing.assert_close(info.acceptance_rate, ratio)


def test_scales_precondition_drift_and_noise(rng: torch.Generator) -> None:
    variances = torch.tensor([[1.0, 4.0, 0.25, 9.0, 1.0]], dtype=float64)
    start = TARGET.starts(3, rng)
    at, step = Point(start, *TARGET.value_and_grad(start)), torch.full((1, 1), 0.2, dtype=float64)
    new, *_ = unadjusted_step(TARGET, at, step, variances, torch.Generator().manual_seed(5))
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(5), dtype=float64)
    proposal = start + 0.02 * variances * at.gradient + 0.2 * variances.sqrt() * noise
    torch.testing.assert_close(new.position, proposal)


def test_draws_cost_one_gradient() -> None:
    assert run(ULA(step_size=0.3), draws=50, warmup=0).num_evaluations == 51


def test_only_warm_up_is_adjusted_and_adapted() -> None:
    steps: list[tuple[bool, float]] = []
    rng = torch.Generator().manual_seed(0)
    run_sampler(
        ULA(),
        TARGET,
        TARGET.starts(8, rng),
        rng,
        draws=10,
        warmup=80,
        monitor=lambda s: (
            steps.append((s.state.adjusted, float(s.state.chain.step_size)))
            if s.phase == "sampling"
            else None
        ),
    )
    assert len(set(steps)) == 1 and not steps[0][0]


# ------------------------------------------------------------------------------- denoising


def test_denoised_draws_are_one_step_without_noise_from_the_chain() -> None:
    plain, denoised = run(ULA(), draws=20), run(ULA(denoise=0.05), draws=20)
    _, gradient = TARGET.value_and_grad(plain.position)
    scales = plain.state.chain.inverse_mass
    torch.testing.assert_close(denoised.position, plain.position + 0.05 * scales * gradient)
    # The chain went on from where it was.
    torch.testing.assert_close(denoised.state.chain.position, plain.position[:, -1])
    torch.testing.assert_close(denoised.log_prob, TARGET.value_and_grad(denoised.position)[0])


def test_denoising_is_the_expectation_of_the_clean_point() -> None:
    """v = v0 + noise, both Gaussian: E[v0 | v] is known, and what remains is its variance."""
    clean, noise = 1.0, 0.2
    zero, unit = torch.zeros(2, dtype=float64), torch.eye(2, dtype=float64)
    target = GaussianTarget(zero, (clean + noise) * unit)
    method = ULA(denoise=noise, step_size=0.1, adapt_mass=False)
    found = run(method, target, draws=200, warmup=0).position
    chain = run(ULA(step_size=0.1), target, draws=200, warmup=0).position
    torch.testing.assert_close(found, chain * clean / (clean + noise))


# ------------------------------------------------------------------------- what can go wrong


def test_steps_that_are_too_long_are_not_taken(rng: torch.Generator) -> None:
    start = TARGET.starts(8, rng)
    found = run_sampler(ULA(step_size=100.0), TARGET, start, rng, draws=20, warmup=0)
    assert bool(found.stats["diverging"].all())
    assert torch.equal(found.position[:, -1], start)


def test_unstable_steps_stay_finite_and_are_marked(rng: torch.Generator) -> None:
    """Just beyond stability chains grow by a factor every step, until they diverge."""
    start = TARGET.starts(8, rng)
    found = run_sampler(ULA(step_size=2.5), TARGET, start, rng, draws=300, warmup=0)
    assert bool(torch.isfinite(found.position).all())
    assert float(found.stats["diverging"].double().mean()) > 0.1


def test_leaving_the_domain_keeps_the_chain_where_it_is(rng: torch.Generator) -> None:
    class Disc:
        """Uniform on the unit disc; NaN outside."""

        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            inside = v.square().sum(-1) < 1
            return torch.where(inside, 0.0, math.nan), torch.where(
                inside[..., None], 0.0 * v, v * math.nan
            )

    found = run_sampler(ULA(), Disc(), torch.zeros(8, 2), rng, draws=200, warmup=50)
    assert bool((found.position.square().sum(-1) < 1).all())
    assert bool(found.stats["diverging"].any()) and found.position.std() > 0.2


def test_stable_steps_in_many_dimensions_do_not_diverge(rng: torch.Generator) -> None:
    """A test would refuse to leave the mode: what independent dimensions lose adds up."""

    class Standard:
        """A standard normal."""

        num_dims = 5000

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            return -0.5 * v.square().sum(-1), -v

    start = torch.zeros(2, 5000)
    found = run_sampler(ULA(step_size=1.4), Standard(), start, rng, draws=10, warmup=0)
    assert float(found.stats["acceptance_rate"][:, 0].max()) == 0.0
    assert not bool(found.stats["diverging"].any())


def test_thinning_keeps_divergences() -> None:
    method = ULA(step_size=100.0)
    state = method.init(TARGET, torch.zeros(2, 5, dtype=float64))
    _, bad = method.step(TARGET, state, torch.Generator().manual_seed(0))
    good = bad._replace(diverging=torch.zeros(2, dtype=torch.bool))
    assert bool(method.combine(bad, good).diverging.all())


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("chains", [1, 3])
def test_models_of_any_precision(dtype: torch.dtype, chains: int) -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2).to(y), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    y = torch.tensor([1.0, -1.0], dtype=dtype)
    posterior = infer(model, y, method=ULA(), draws=20, warmup=70, chains=chains, seed=0)
    assert posterior.draws("z").shape == (chains, 20, 2) and posterior.draws("z").dtype == dtype
    assert "unadjusted" in str(posterior.summary())


def test_problems_learn_on_their_own() -> None:
    class Scaled:
        """Two Gaussians, one a hundred times wider than the other."""

        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            scale = torch.tensor([1.0, 100.0], dtype=float64)[:, None, None]
            return -0.5 * (v / scale).square().sum(-1), -v / scale**2

    rng = torch.Generator().manual_seed(0)
    start = torch.randn(2, 16, 2, generator=rng, dtype=float64)
    found = run_sampler(ULA(), Scaled(), start, rng, draws=100, warmup=300)
    width = found.state.chain.inverse_mass.sqrt().mean(-1).flatten()
    assert 50 < float(width[1] / width[0]) < 200
    acceptance = found.stats["acceptance_rate"].mean((1, 2))
    assert bool((acceptance > 0.93).all()) and not bool(found.stats["diverging"].any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_acceptance": 1.0}, "target_acceptance: got 1.0"),
        ({"step_size": 0.0}, "step_size: got 0.0"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": math.inf}, "temperature: got inf"),
        ({"denoise": 0.0}, "denoise: got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ULA(**settings)  # type: ignore[arg-type]


def test_misspelt_settings_are_refused_with_the_list() -> None:
    with pytest.raises(UnknownOptionError, match=r"ULA: unknown option 'heat'.*temperature"):
        ULA(heat=0.5)  # type: ignore[call-arg]
