"""Levenberg-Marquardt: closed forms, agreement with L-BFGS, and what it refuses."""

from __future__ import annotations

from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen.structure
from bayesgen import infer
from bayesgen.errors import ModelError
from bayesgen.inference import MAP, run_optimiser
from bayesgen.inference.checks import GaussianTarget
from bayesgen.log_density import LogDensity

float64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


MATRIX, Y = random(8, 5), random(8, seed=1)
PRIOR, NOISE = 3.0, 0.2
SEEN = (MATRIX @ random(5, seed=2)).tanh() + NOISE * random(8, seed=3)
SETTINGS = {"tolerance": 1e-6, "max_iterations": 200}


def linear(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(5).to(y), PRIOR).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX.to(y) @ z, NOISE).to_event(1), obs=y)


def nonlinear(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(5).to(y), 1.0).to_event(1))
    pyro.sample("y", dist.Normal((MATRIX.to(y) @ z).tanh(), NOISE).to_event(1), obs=y)


def sparse(y: Tensor) -> None:
    u = pyro.sample("u", dist.Laplace(torch.zeros(5).to(y), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX.to(y) @ u, NOISE).to_event(1), obs=y)


def heavy_tails(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(5).to(y), 1.0).to_event(1))
    pyro.sample("y", dist.StudentT(3.0, MATRIX.to(y) @ z, NOISE).to_event(1), obs=y)


def posterior_mode(y: Tensor) -> Tensor:
    precision = MATRIX.T @ MATRIX / NOISE**2 + torch.eye(5, dtype=float64) / PRIOR**2
    return torch.linalg.solve(precision, MATRIX.T @ y / NOISE**2)


def modes(model: object, y: Tensor, solver: str = "levenberg-marquardt", num: int = 3) -> Tensor:
    log_density, rng = LogDensity(model, y), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    start = log_density.prior_draws(num, rng)
    run = run_optimiser(MAP(solver=solver, **SETTINGS), log_density, start, rng)  # type: ignore[arg-type]
    assert bool(run.stats["converged"].all())
    return run.position[:, 0]


def test_linear_models_in_a_few_steps(rng: torch.Generator) -> None:
    log_density = LogDensity(linear, Y)
    start = log_density.prior_draws(4, rng)
    method = MAP(solver="levenberg-marquardt", **SETTINGS)  # type: ignore[arg-type]
    run = run_optimiser(method, log_density, start, rng)
    assert torch.allclose(run.position[:, 0], posterior_mode(Y).expand(4, 5), atol=1e-6)
    assert bool(run.stats["converged"].all()) and int(run.stats["n_steps"].max()) <= 8
    exact = log_density.value_and_grad(run.position[:, 0])[0]
    assert torch.allclose(run.log_prob[:, 0], exact, rtol=1e-12)  # constants and all


def test_wrong_residuals_are_rejected() -> None:
    """A wrong scale of the data, or a forgotten prior, changes the density, which is checked."""
    right = bayesgen.structure.normalised_residuals

    def wrong_scale(trace: pyro.poutine.Trace) -> Tensor:
        r = right(trace)
        assert r is not None
        return torch.cat([r[:5], 1.1 * r[5:]])

    def without_prior(trace: pyro.poutine.Trace) -> Tensor:
        r = right(trace)
        assert r is not None
        return r[5:]

    assert LogDensity(linear, Y).least_squares is not None
    for wrong in (wrong_scale, without_prior):
        with mock.patch.object(bayesgen.structure, "normalised_residuals", wrong):
            assert LogDensity(linear, Y).least_squares is None


def test_nonlinear_models_as_lbfgs() -> None:
    found, expected = modes(nonlinear, SEEN, num=8), modes(nonlinear, SEEN, "lbfgs", num=8)
    density = LogDensity(nonlinear, SEEN)
    values = [density.log_prob(v) for v in (found, expected)]
    best = [v[value.argmax()] for v, value in zip((found, expected), values, strict=True)]
    assert torch.allclose(best[0], best[1], atol=1e-6)
    assert not torch.allclose(best[0], modes(nonlinear, 0.9 * SEEN).mean(0), atol=1e-3)


def test_fewer_steps_than_lbfgs(rng: torch.Generator) -> None:
    log_density = LogDensity(nonlinear, SEEN)
    start = log_density.prior_draws(8, rng)
    steps = {}
    for solver in ("levenberg-marquardt", "lbfgs"):
        run = run_optimiser(MAP(solver=solver), log_density, start, rng)
        steps[solver] = float(run.stats["n_steps"].double().mean())
    assert steps["levenberg-marquardt"] < 0.7 * steps["lbfgs"]


def test_rows_do_not_depend_on_each_other(rng: torch.Generator) -> None:
    log_density = LogDensity(nonlinear, SEEN)
    start, method = log_density.prior_draws(4, rng), MAP(solver="levenberg-marquardt")
    together = run_optimiser(method, log_density, start, rng)
    for i in range(4):
        alone = run_optimiser(method, log_density, start[i : i + 1], rng)
        assert torch.allclose(alone.position[0], together.position[i], rtol=1e-9)
        assert int(alone.stats["n_steps"]) == int(together.stats["n_steps"][i])


def test_the_density_never_falls(rng: torch.Generator) -> None:
    log_density = LogDensity(nonlinear, SEEN)
    start, values = 2 * log_density.prior_draws(6, rng), []
    run_optimiser(
        MAP(solver="levenberg-marquardt"),
        log_density,
        start,
        rng,
        monitor=lambda s: values.append(s.state.log_prob),
    )
    assert bool((torch.stack(values).diff(dim=0) >= 0).all())


def test_batched_problems() -> None:
    data = torch.stack([Y, 2 * Y, -Y])
    method = MAP(solver="levenberg-marquardt", **SETTINGS)  # type: ignore[arg-type]
    found = infer(linear, data, method=method, chains=2, batched=True, progress=False)
    exact = torch.stack([posterior_mode(y) for y in data])
    assert torch.allclose(found.mode("z"), exact, atol=1e-6)


@pytest.mark.parametrize(("model", "y"), [(linear, Y), (nonlinear, SEEN)])
def test_single_precision(model: object, y: Tensor) -> None:
    method = MAP(solver="levenberg-marquardt")
    found = infer(model, y.float(), method=method, chains=4, progress=False)  # type: ignore[arg-type]
    exact = infer(model, y, method=method, chains=4, progress=False)  # type: ignore[arg-type]
    assert found.mode("z").dtype == torch.float32
    assert bool(found.stats["converged"].all())
    assert torch.allclose(found.mode("z").double(), exact.mode("z"), atol=1e-3)


@pytest.mark.parametrize("model", [sparse, heavy_tails])
def test_other_models_are_refused(model: object) -> None:
    method = MAP(solver="levenberg-marquardt")
    message = "'levenberg-marquardt' needs all sites, latent and observed, to be normal.*'panoc'"
    with pytest.raises(ModelError, match=message):
        infer(model, Y, method=method, progress=False)  # type: ignore[arg-type]


def test_densities_of_unknown_structure_are_refused(rng: torch.Generator) -> None:
    target = GaussianTarget.with_condition(3, 2.0)
    with pytest.raises(ModelError, match="needs all sites, latent and observed, to be normal"):
        run_optimiser(MAP(solver="levenberg-marquardt"), target, random(2, 3), rng)
    assert MAP().suited(target).solver == "lbfgs"


@pytest.mark.parametrize(
    ("model", "solver"),
    [
        (linear, "lbfgs"),
        (nonlinear, "lbfgs"),
        (sparse, "panoc"),
        (heavy_tails, "lbfgs"),
    ],
)
def test_the_solver_suits_the_model_and_is_told(model: object, solver: str) -> None:
    found = infer(model, Y, method="map", chains=2, progress=False)  # type: ignore[arg-type]
    assert f"solver='{solver}'" in found.attributes["settings"]
    # A choice of one's own is kept.
    method = MAP(solver="palm", max_iterations=3)
    found = infer(model, Y, method=method, chains=2, progress=False)  # type: ignore[arg-type]
    assert "solver='palm'" in found.attributes["settings"]
