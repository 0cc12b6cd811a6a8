"""Laplace approximations: exact where the posterior is normal, and labelled as what they are."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import OptionError, ResultError
from bayesgen.inference import MAP

float64 = torch.float64
MATRIX = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=float64)
NOISE, PRIOR = 1.5, 1.0


def linear(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3).to(y), PRIOR).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX.to(y) @ z, NOISE).to_event(1), obs=y)


def linear_with_factor(y: Tensor) -> None:
    """The same density, which does not look like least squares."""
    z = pyro.sample("z", dist.Normal(torch.zeros(3).to(y), PRIOR).to_event(1))
    pyro.factor("y", -0.5 * ((MATRIX.to(y) @ z - y) / NOISE).square().sum())


Y = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=float64)
PRECISION = MATRIX.T @ MATRIX / NOISE**2 + torch.eye(3, dtype=float64) / PRIOR**2


def approximate(model: object, y: Tensor, **options: object) -> bg.Posterior:
    options = {"chains": 2, "progress": False, "method": MAP(tolerance=1e-8), **options}
    return bg.infer(model, y, **options).laplace(draws=5000, seed=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "kind"), [(linear, "Gauss-Newton"), (linear_with_factor, "Hessian")]
)
def test_normal_posteriors_are_exact(model: object, kind: str) -> None:
    found = approximate(model, Y)
    covariance = torch.linalg.inv(PRECISION)
    mean = covariance @ MATRIX.T @ Y / NOISE**2
    draws = found.draws("z").flatten(0, 1)
    z = (draws.mean(0) - mean) / (covariance.diagonal() / len(draws)).sqrt()
    assert z.abs().max() < 5.5  # of 3: false alarms below 1e-6
    whitened = (draws - mean) @ torch.linalg.cholesky(PRECISION)
    error = torch.cov(whitened.T) - torch.eye(3, dtype=float64)
    assert error.abs().max() * math.sqrt(len(draws) / 2) < 6
    assert kind in found.attributes["settings"] and found.attributes["method"] == "laplace"
    assert found.log_prob.shape == (4, 5000)
    # The mutant without the prior's precision is seen.
    other = (draws - mean) @ torch.linalg.cholesky(MATRIX.T @ MATRIX / NOISE**2)
    wrong = torch.cov(other.T) - torch.eye(3, dtype=float64)
    assert wrong.abs().max() * math.sqrt(len(draws) / 2) > 6


@pytest.mark.parametrize("model", [linear, linear_with_factor])
def test_batches_of_problems(model: object) -> None:
    together = approximate(model, torch.stack([Y, 2 * Y]), batched=True)
    alone = approximate(model, 2 * Y)
    assert together.draws("z").shape == (2, 4, 5000, 3)
    torch.testing.assert_close(together.std("z")[1], alone.std("z"), rtol=0.05, atol=0)
    torch.testing.assert_close(together.mean("z")[1], alone.mean("z"), rtol=0, atol=0.05)


def test_constrained_sites_are_approximated_where_they_are_unconstrained() -> None:
    """log s of a gamma law is nearly normal: shape a, rate b, mode of its density log(a / b)."""

    def gamma(y: Tensor) -> None:
        pyro.sample("s", dist.Gamma(torch.tensor(400.0).to(y), 2.0))
        pyro.factor("nothing", 0.0 * y)

    found = approximate(gamma, torch.zeros((), dtype=float64))
    logs = found.draws("s").log()
    assert abs(float(logs.mean()) - math.log(200)) < 5.5 * 0.05 / math.sqrt(20_000)
    assert abs(float(logs.std()) * math.sqrt(400) - 1) < 5.5 / math.sqrt(2 * 20_000)


def test_it_says_what_it_is() -> None:
    summary = approximate(linear, Y).summary()
    assert summary.verdict == "trust with care"
    assert "a Laplace approximation: normal around one optimum" in str(summary)


def test_what_is_refused() -> None:
    with pytest.raises(ResultError, match="laplace: this result holds draws already"):
        bg.infer(linear, Y, draws=5, warmup=5, progress=False).laplace()

    def saddle(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2).to(y), 1.0).to_event(1))
        pyro.factor("saddle", 2 * z[0].square() - z[0] ** 4 + 0 * y)

    start = {"z": torch.zeros(2, dtype=float64)}
    zero = torch.zeros((), dtype=float64)
    point = bg.infer(saddle, zero, method="map", start=start, progress=False)
    with pytest.raises(ResultError, match="laplace: the optimum is not a strict maximum"):
        point.laplace()

    def large(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(1001), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z[0], 1.0), obs=y)

    with pytest.raises(OptionError, match="laplace: the model has 1001 unknowns"):
        bg.infer(large, torch.tensor(0.0), method="map", progress=False).laplace()


def test_optima_that_have_not_converged_are_told() -> None:
    def valley(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2).to(y), 1.0).to_event(1))
        pyro.sample(
            "y", dist.Normal(torch.stack([z[0], z[1] - z[0] ** 2]), 0.01).to_event(1), obs=y
        )

    y = torch.ones(2, dtype=float64)
    short = bg.infer(valley, y, method=MAP(max_iterations=2), chains=2, progress=False)
    with pytest.warns(RuntimeWarning, match="laplace: the optimum has not converged"):
        short.laplace(draws=5)


def test_kinks_are_named() -> None:
    def spikes(y: Tensor) -> None:
        u = pyro.sample("u", dist.Laplace(torch.zeros(2).to(y), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(u, 1.0).to_event(1), obs=y)

    point = bg.infer(spikes, torch.zeros(2, dtype=float64), method="map", progress=False)
    with pytest.raises(OptionError, match=r"laplace: the priors of \['u'\] have kinks"):
        point.laplace()
