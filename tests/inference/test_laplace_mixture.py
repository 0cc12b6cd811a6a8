"""Mixtures of normal laws at optima: weights, evidence, and the check that says when they fail."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen._arviz import import_arviz
from bayesgen.basins import _cluster
from bayesgen.errors import OptionError, ResultError
from bayesgen.inference import laplace_mixture as module
from bayesgen.inference import run_population
from bayesgen.inference.checks import MethodReport, moment_report
from bayesgen.inference.curvature import Normals
from bayesgen.inference.laplace_mixture import LaplaceMixture, mixture_at
from bayesgen.inference.pareto import pareto_smoothed
from bayesgen.inference.runner import Run
from bayesgen.inference.targets import Banana, GaussianTarget, MixtureTarget, Target

float64 = torch.float64
PAIR = MixtureTarget.pair(distance=10.0, weight=0.3)


def run(target: Target, *, chains: int = 32, draws: int = 200, **settings: int) -> Run:
    method, rng = LaplaceMixture(**{"restarts": 8, **settings}), torch.Generator().manual_seed(0)
    start = target.prior_draws(chains * method.restarts, rng)
    start = start.unflatten(0, (chains, method.restarts))
    return run_population(method, target, start, rng, draws=draws)


def report(target: Target) -> MethodReport:
    return moment_report("laplace-mixture", run(target).position, target.mean, target.covariance)


# --------------------------------------------------------------------------- right draws


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_gaussians_are_exact(dtype: torch.dtype) -> None:
    target = GaussianTarget.with_condition(5, 100.0, dtype=dtype)
    report(target).raise_if_failed()
    found = run(target, chains=1)
    assert found.position.dtype == dtype and found.position.shape == (1, 200, 5)
    assert abs(float(found.stats["log_evidence"][0, 0]) - target.log_evidence) < 0.01
    assert bool((found.stats["num_modes"] == 1).all())
    assert bool((found.stats["pareto_k"] < 0.5).all())


def test_modes_have_their_weights() -> None:
    report(PAIR).raise_if_failed()
    found = run(PAIR)
    assert bool((found.stats["num_modes"] == 2).all())
    assert float(found.stats["log_evidence"].abs().max()) < 0.1  # PAIR is normalised


def test_wrong_weights_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal weights of the modes, and no resampling to correct them."""

    def equal(*args: Any) -> tuple[Normals, Tensor]:
        normals, log_weights = mixture_at(*args)
        return normals, torch.where(torch.isfinite(log_weights), 0.0, -torch.inf).log_softmax(-1)

    monkeypatch.setattr(module, "mixture_at", equal)
    # Resampling alone corrects them.
    assert report(PAIR).passed
    monkeypatch.setattr(
        module, "pareto_smoothed", lambda r: (torch.zeros_like(r), torch.zeros_like(r[..., 0]))
    )
    assert not report(PAIR).passed


class Uneven:
    """Normal laws on the line at -5 and 5, of widths 1 and 1/4 and weights 0.3 and 0.7."""

    num_dims = 1

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            left = math.log(0.3) - 0.5 * (v + 5).square()
            right = math.log(0.7 * 4) - 8.0 * (v - 5).square()
            value = torch.logaddexp(left, right)[..., 0]
            (gradient,) = torch.autograd.grad(value.sum(), v)
        return value.detach() - 0.5 * math.log(2 * math.pi), gradient


def test_widths_count_in_the_weights() -> None:
    modes = torch.tensor([[-5.0], [5.0], [5.0 + 1e-4], [-5.0]], dtype=float64)
    log_prob, _ = Uneven().value_and_grad(modes)
    normals, log_weights = mixture_at(Uneven(), modes, log_prob)
    weights = torch.tensor([0.3, 0.7, 0.0, 0.0], dtype=float64)
    torch.testing.assert_close(log_weights.exp(), weights, rtol=1e-6, atol=0)
    # The mutant that leaves out the determinant.
    assert abs(float((log_weights + normals.half_log_det).softmax(-1)[0]) - 0.3) > 0.1


def test_the_rule_for_basins_is_that_of_point_estimates() -> None:
    rng = torch.Generator().manual_seed(0)
    points = 0.1 * torch.randn(3, 12, 2, generator=rng, dtype=float64)
    log_prob = 0.2 * torch.rand(3, 12, generator=rng, dtype=float64)
    unit = Normals(points, torch.eye(2, dtype=float64).expand(3, 12, 2, 2))
    best = module._distinct(unit, log_prob)
    for i in range(3):
        basins = _cluster(points[i], log_prob[i], torch.ones(12), 0.1, 0.1)
        assert best[i].nonzero()[:, 0].tolist() == sorted(b.restarts[0] for b in basins)
        assert 1 < len(basins) < 12


# --------------------------------------------------------------------------- models


MATRIX = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=float64)


def linear(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3).to(y), 0.1).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX.to(y) @ z, 0.5).to_event(1), obs=y)


def test_the_evidence_of_linear_models_in_a_batch() -> None:
    y = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=float64)
    method = LaplaceMixture(restarts=2)
    found = bg.infer(linear, y, method=method, chains=3, draws=50, batched=True, progress=False)
    covariance = 0.25 * torch.eye(6, dtype=float64) + 0.01 * MATRIX @ MATRIX.T
    truth = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(y)
    assert found.log_evidence.shape == (2, 3)
    torch.testing.assert_close(found.log_evidence, truth[:, None].expand(2, 3), atol=1e-3, rtol=0)
    assert found.attributes["exact"] is False


def test_an_evidence_without_the_volume_of_the_unit_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "log_volume", lambda density, v: torch.zeros_like(v[..., 0]))
    method, y = LaplaceMixture(restarts=2), torch.zeros(6, dtype=float64)
    found = bg.infer(linear, y, method=method, chains=1, draws=50, progress=False)
    covariance = 0.25 * torch.eye(6, dtype=float64) + 0.01 * MATRIX @ MATRIX.T
    truth = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(y)
    assert abs(float(found.log_evidence) - float(truth) - 3 * math.log(10.0)) < 1e-3


def test_the_jacobian_counts() -> None:
    """log s of a gamma law with shape 9, whose optimum and evidence need the Jacobian."""

    def gamma(y: Tensor) -> None:
        pyro.sample("s", dist.Gamma(torch.tensor(9.0).to(y), 2.0))
        pyro.factor("nothing", 0.0 * y)

    zero = torch.zeros((), dtype=float64)
    found = bg.infer(gamma, zero, method=LaplaceMixture(), draws=2000, progress=False)
    assert abs(float(found.log_evidence.mean())) < 0.02
    draws = found.draws("s")
    # Resampled from five times as many: at least a third of the draws count.
    assert abs(float(draws.mean()) - 4.5) < 5.5 * 1.5 / math.sqrt(draws.numel() / 3)


# --------------------------------------------------------------------------- the check


def test_a_banana_is_not_trusted() -> None:
    found = run(Banana(), chains=10, draws=500)
    assert float(found.stats["pareto_k"].median()) > 0.7


def test_smoothing_is_arvizs() -> None:
    ratio = torch.randn(2, 3, 400, generator=torch.Generator().manual_seed(0), dtype=float64)
    smoothed, k = pareto_smoothed(3.0 * ratio + 100.0)
    log_weights, khat = import_arviz().psislw(3.0 * ratio.numpy())
    torch.testing.assert_close(smoothed, torch.as_tensor(log_weights))
    torch.testing.assert_close(k, torch.as_tensor(khat))
    torch.testing.assert_close(smoothed.exp().sum(-1), torch.ones(2, 3, dtype=float64))


def test_ratios_without_a_tail() -> None:
    assert float(pareto_smoothed(torch.full((50,), 3.0))[1]) == 0.0
    some = torch.tensor([0.0, -torch.inf, math.nan] * 20)
    log_weights, k = pareto_smoothed(some)
    torch.testing.assert_close(log_weights[0].exp(), torch.tensor(1 / 20))
    assert float(log_weights[1].exp()) == 0.0 and float(k) == math.inf
    with pytest.raises(ResultError, match="importance: the log density is not finite at any"):
        pareto_smoothed(torch.full((50,), math.nan))


# --------------------------------------------------------------------------- bad input


def test_chains_without_a_maximum_are_refused() -> None:
    class Rising:
        num_dims = 1

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            return v.exp().sum(-1).clamp(max=1e6), v.exp().clamp(max=1e6)

    rng = torch.Generator().manual_seed(0)
    start = torch.zeros(2, 3, 1, dtype=float64)
    with pytest.raises(ResultError, match="no restart of 2 of 2 chains ended at a strict maximum"):
        run_population(LaplaceMixture(), Rising(), start, rng, draws=5)


def test_kinks_are_refused() -> None:
    def spikes(y: Tensor) -> None:
        u = pyro.sample("u", dist.Laplace(torch.zeros(2).to(y), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(u, 1.0).to_event(1), obs=y)

    with pytest.raises(OptionError, match=r"laplace-mixture: the priors of \['u'\] have kinks"):
        bg.infer(spikes, torch.zeros(2), method=LaplaceMixture(), progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 0}, "restarts: got 0"),
        ({"oversampling": 0.5}, "oversampling: got 0.5"),
        ({"max_iterations": 0}, "max_iterations: got 0"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LaplaceMixture(**settings)
