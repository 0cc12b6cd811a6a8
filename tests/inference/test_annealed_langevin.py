"""Annealing from the prior: the path of weights, and modes that plain Langevin steps miss."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import infer
from bayesgen.distributions import TotalVariation
from bayesgen.errors import ModelError, OptionError, UnknownOptionError
from bayesgen.inference import Sampler, Step, run_sampler
from bayesgen.inference.annealed_langevin import AnnealedLangevin, _WithWeight
from bayesgen.inference.checks import GaussianTarget, moment_report
from bayesgen.inference.langevin import ULA
from bayesgen.log_density import LogDensity

float64 = torch.float64
TARGET = GaussianTarget.with_condition(5, 10.0)


def two_modes(y: Tensor) -> None:
    """y = |x| + a little of x, and noise: the mode at x = -2 is hardly possible."""
    x = pyro.sample("x", dist.Normal(torch.zeros(1).to(y), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x.abs() + 0.15 * x, 0.1).to_event(1), obs=y)


def share_right(method: Sampler) -> float:
    """Share of chains that end in the heavy mode, all started in the light one."""
    density = LogDensity(two_modes, torch.tensor([2.3], dtype=float64))
    rng = torch.Generator().manual_seed(0)
    start = torch.full((64, 1), -2.3 / 0.85, dtype=float64)
    found = run_sampler(method, density, start, rng, draws=5, warmup=400)
    return float((found.position[:, -1] > 0).double().mean())


def test_chains_cross_to_where_the_mass_is() -> None:
    # The modes weigh about the same here: the prior alone tells them apart.
    assert share_right(ULA()) == 0.0
    assert 0.3 < share_right(AnnealedLangevin()) < 0.9


def test_weights_rise_geometrically_to_one() -> None:
    seen: list[Step] = []
    rng = torch.Generator().manual_seed(0)
    method = AnnealedLangevin(levels=4, first=1e-4)
    start = TARGET.starts(8, rng)
    run_sampler(method, TARGET, start, rng, draws=3, warmup=80, monitor=seen.append)
    # The state after a step says at which weight the next will be.
    betas = [s.state.beta for s in seen]
    levels = [1e-4, 1e-3, 1e-2, 1e-1]
    assert betas[:39] == pytest.approx([levels[i // 10] for i in range(1, 40)])
    assert set(betas[39:]) == {1.0}
    assert [s.state.chain.adjusted for s in seen[1:]] == [True] * 78 + [False] * 4


def test_weights_multiply_the_likelihood(rng: torch.Generator) -> None:
    v = TARGET.starts(4, rng).requires_grad_()
    parts = TARGET.split(v)
    value, gradient = _WithWeight(TARGET, 0.3).value_and_grad(v)
    torch.testing.assert_close(value, parts.prior + 0.3 * parts.likelihood)
    torch.testing.assert_close(gradient, torch.autograd.grad(value.sum(), v)[0])


def test_draws_are_those_of_unadjusted_steps() -> None:
    """On a Gaussian their covariance is known; see the tests of ULA."""
    rng = torch.Generator().manual_seed(1)
    method = AnnealedLangevin(target_acceptance=0.8)
    found = run_sampler(method, TARGET, TARGET.starts(64, rng), rng, draws=500, warmup=600)
    chain = found.state.chain.chain
    precision, metric = torch.linalg.inv(TARGET.covariance), chain.inverse_mass.flatten().diag()
    h = float(chain.step_size) ** 2
    covariance = torch.linalg.inv(precision - 0.25 * h * precision @ metric @ precision)
    moment_report("", found.position, TARGET.mean, covariance).raise_if_failed()
    wrong = torch.linalg.inv(precision - 0.5 * h * precision @ metric @ precision)
    assert not moment_report("", found.position, TARGET.mean, wrong).passed


@pytest.mark.parametrize("warmup", [0, 1, 2, 7])
def test_short_warm_ups_end_at_the_posterior(warmup: int) -> None:
    rng = torch.Generator().manual_seed(0)
    start = TARGET.starts(2, rng)
    found = run_sampler(AnnealedLangevin(), TARGET, start, rng, draws=3, warmup=warmup)
    assert found.state.beta == 1.0 and not found.state.chain.adjusted
    value, _ = TARGET.value_and_grad(found.position)
    torch.testing.assert_close(found.log_prob, value)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_models_of_any_precision(dtype: torch.dtype) -> None:
    y = torch.tensor([2.3], dtype=dtype)
    method = AnnealedLangevin(denoise=0.01)
    posterior = infer(two_modes, y, method=method, draws=10, warmup=80, chains=1, seed=0)
    assert posterior.draws("x").shape == (1, 10, 1) and posterior.draws("x").dtype == dtype
    assert "unadjusted" in str(posterior.summary())


def test_problems_learn_on_their_own() -> None:
    def model(y: Tensor, sigma: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(1).to(y), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    y, sigma = torch.ones(2, 1, dtype=float64), torch.tensor([[1.0], [0.02]], dtype=float64)
    density, rng = LogDensity(model, y, sigma, batched=True), torch.Generator().manual_seed(0)
    start = density.prior_draws(16, rng)
    found = run_sampler(AnnealedLangevin(), density, start, rng, draws=100, warmup=300)
    width = found.state.chain.chain.inverse_mass.sqrt().flatten()
    assert 20 < float(width[0] / width[1]) < 60
    assert not bool(found.stats["diverging"].any())


def test_improper_priors_are_refused() -> None:
    def model(y: Tensor) -> None:
        u = pyro.sample("u", TotalVariation((2, 2), 1.0))
        pyro.sample("y", dist.Normal(u, 0.5).to_event(2), obs=y)

    with pytest.raises(ModelError, match=r"\['u'\] are improper"):
        infer(model, torch.zeros(2, 2), method=AnnealedLangevin(), draws=2, warmup=10, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "levels: got 0"),
        ({"first": 1.0}, "first: got 1.0"),
        ({"first": 0.0}, "first: got 0.0"),
        ({"target_acceptance": 1.5}, "target_acceptance: got 1.5"),
        ({"denoise": -1.0}, "denoise: got -1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AnnealedLangevin(**settings)  # type: ignore[arg-type]


def test_misspelt_settings_are_refused_with_the_list() -> None:
    with pytest.raises(UnknownOptionError, match="AnnealedLangevin: unknown option 'level'"):
        AnnealedLangevin(level=3)  # type: ignore[call-arg]
