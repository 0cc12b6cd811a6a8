"""Importance weights: against posteriors, tails and evidences in closed form.

False-alarm rate of the checks of moments: 1e-6.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DataError, DtypeError, OptionError, ResultError, ShapeError
from bayesgen.importance import reweight
from bayesgen.inference.checks import moment_report
from bayesgen.inference.dwls import discriminator_weighted
from bayesgen.log_density import LogDensity
from bayesgen.models import GAN
from bayesgen.posterior import Posterior

float64 = torch.float64
# Where the weight, exp(-|z - s|^2 / 2) in terms of z = x / 2, is largest.
SHIFT = torch.tensor([0.5, -1.0], dtype=float64)


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=y.dtype), 1.0).to_event(1))
    pyro.deterministic("x", 2.0 * z)
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def log_weight(x: Tensor) -> Tensor:
    return -0.125 * (x - 2.0 * SHIFT.to(x)).square().sum(-1)


def truth(y: Tensor) -> tuple[Tensor, Tensor]:
    """Prior, data and weight have precision one each."""
    return (y + SHIFT) / 3.0, torch.eye(2, dtype=float64) / 3.0


def exact_draws(
    y: Tensor, chains: int = 4, draws: int = 500, seed: int = 0, **stats: Tensor
) -> Posterior:
    """Independent draws from the posterior, as if a sampler had made them."""
    log_density = LogDensity(model, y, batched=y.ndim == 2)
    rng = torch.Generator().manual_seed(seed)
    shape = (*y.shape[:-1], chains, draws, 2)
    z = torch.randn(shape, generator=rng, dtype=float64).to(y) * 0.5**0.5
    z = z + 0.5 * y[..., None, None, :]
    log_prob = log_density.value_and_grad(z)[0]
    stats = {"energy": log_prob, "diverging": log_prob < -1e9, **stats}
    attributes = {"kind": "draws", "method": "exact", "settings": "EXACT()", "exact": True}
    return Posterior({"z": z}, log_prob, stats, attributes, log_density)


@pytest.fixture
def posterior() -> Posterior:
    return exact_draws(torch.tensor([1.0, 0.0], dtype=float64))


Y = torch.tensor([1.0, 0.0], dtype=float64)


def report(weigh: Callable[[Tensor], Tensor]) -> Any:
    """Repetitions are problems, each weighted by itself."""
    weighted = reweight(exact_draws(Y.expand(30, 2), draws=400), weigh)
    return moment_report("reweight", weighted.draws("z").flatten(1, 2), *truth(Y))


def test_the_weighted_posterior_in_closed_form() -> None:
    report(log_weight).raise_if_failed()


@pytest.mark.parametrize("factor", [0.0, 2.0, -0.5], ids=["ignored", "twice", "opposite"])
def test_wrong_weights_are_rejected(factor: float) -> None:
    assert not report(lambda x: factor * log_weight(x)).passed


def test_it_agrees_with_discriminator_weighted_sampling() -> None:
    method = bg.inference.HMC()
    weighted = discriminator_weighted(model, log_weight)
    sampled = bg.infer(weighted, Y, method=method, draws=400, warmup=200, progress=False)
    resampled = reweight(bg.infer(model, Y, draws=400, warmup=200, progress=False), log_weight)
    # Four standard errors of some 500 effective draws.
    for site in ("z", "x"):
        error = 4 * sampled.std(site) * (2 / 500) ** 0.5
        assert bool(((sampled.mean(site) - resampled.mean(site)).abs() < error).all())


@pytest.mark.parametrize("tail", [0.2, 0.5, 0.9])
def test_the_tail_of_the_weights_is_found(tail: float) -> None:
    """Weights u^-k of uniform u are Pareto of shape k; 0.15 is three standard errors or more."""
    u = torch.rand(4, 2000, 1, generator=torch.Generator().manual_seed(0), dtype=float64)
    posterior = Posterior({"x": u}, torch.zeros(4, 2000, dtype=float64), {}, {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weighted = reweight(posterior, lambda x: -tail * x[:, 0].log())
        half = reweight(posterior, lambda x: -0.5 * tail * x[:, 0].log())
    assert abs(weighted.attributes["pareto_k"] - tail) < 0.15
    assert abs(half.attributes["pareto_k"] - 0.5 * tail) < 0.15
    heavy = [str(w.message) for w in caught if "tail is too heavy: k is" in str(w.message)]
    assert len(heavy) == (1 if tail > 0.7 else 0)


def test_equal_weights_change_nothing(posterior: Posterior) -> None:
    weighted = reweight(posterior, lambda x: torch.full((len(x),), 7.0))
    assert torch.equal(weighted.draws("z"), posterior.draws("z"))
    assert torch.equal(weighted.log_prob, posterior.log_prob + 7.0)
    assert weighted.attributes["importance_ess"] == pytest.approx(2000)
    assert weighted.attributes["pareto_k"] == 0.0


def test_draws_without_weight_are_left_out(posterior: Posterior) -> None:
    """A weight of zero or one is no heavy tail, and leaves a share of effective draws."""
    weighted = reweight(posterior, lambda x: (x[:, 0] > 1.0).log())
    assert bool((weighted.draws("x")[..., 0] > 1.0).all())
    share = (posterior.draws("x")[..., 0] > 1.0).double().mean()
    assert weighted.attributes["importance_ess"] == pytest.approx(2000 * float(share))
    assert weighted.attributes["pareto_k"] == 0.0


def test_a_draw_comes_as_often_as_its_weight_says(posterior: Posterior) -> None:
    weighted = reweight(posterior, log_weight)
    before, after = (p.draws("z").reshape(-1, 2) for p in (posterior, weighted))
    counts = (after[:, None] == before).all(-1).double().sum(0)
    expected = 2000 * log_weight(2.0 * before).softmax(0)
    # Smoothing changes the largest fifth of the weights a little.
    assert bool(((counts - expected).abs() < 1.2).all()) and float(counts.sum()) == 2000
    assert torch.equal(reweight(posterior, log_weight).draws("z"), weighted.draws("z"))
    assert not torch.equal(reweight(posterior, log_weight, seed=1).draws("z"), weighted.draws("z"))
    # Copies are neighbours, in the order of the draws.
    places = (after[:, None] == before).all(-1).double().argmax(1)
    assert bool((places.diff() >= 0).all())


def test_problems_are_weighted_by_themselves() -> None:
    y = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 1.0]], dtype=float64)
    posterior = exact_draws(y)
    weighted = reweight(posterior, log_weight)
    for name in ("pareto_k", "importance_ess"):
        values = weighted.stats[name]
        assert values.shape == (3, 4, 500) and len(values.unique()) == 3
    assert weighted.attributes["pareto_k"] == float(weighted.stats["pareto_k"].max())
    assert weighted.attributes["importance_ess"] == float(weighted.stats["importance_ess"].min())
    raw = log_weight(posterior.draws("x").flatten(1, 2)).softmax(-1)
    kish = 1.0 / raw.square().sum(-1)
    torch.testing.assert_close(weighted.stats["importance_ess"][:, 0, 0], kish, rtol=0.02, atol=0.0)
    for problem in range(3):
        alone = reweight(posterior[problem], log_weight)
        assert alone.stats["pareto_k"][0, 0] == weighted.stats["pareto_k"][problem, 0, 0]


def test_the_density_is_that_of_the_weighted_model(posterior: Posterior) -> None:
    weighted = reweight(posterior, log_weight)
    factor = LogDensity(discriminator_weighted(model, log_weight), Y)
    expected = factor.log_prob(weighted.draws("z"))
    torch.testing.assert_close(weighted.log_prob, expected)
    torch.testing.assert_close(weighted.log_prob.amax(), factor.log_prob(weighted.mode("z")))


def test_the_evidence_is_that_of_the_weighted_model() -> None:
    """E exp(-|z - s|^2 / 2) under N(y / 2, 1 / 2) is N(s; y / 2, 3 / 2) (2 pi): within 5 %."""
    zeros = torch.zeros(4, 4000, dtype=float64)
    posterior = exact_draws(Y, draws=4000, log_evidence=zeros - 3.0)
    found = reweight(posterior, log_weight).log_evidence
    gained = -0.5 * float((SHIFT - 0.5 * Y).square().sum()) / 1.5 - math.log(1.5)
    assert found.shape == (4,)
    torch.testing.assert_close(found, found.new_full((4,), gained - 3.0), rtol=0.0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("chains", [1, 4])
def test_shapes_types_and_provenance(dtype: torch.dtype, chains: int) -> None:
    posterior = exact_draws(Y.to(dtype), chains=chains, draws=100)
    weighted = reweight(posterior, log_weight)
    assert weighted.draws("z").shape == (chains, 100, 2) and weighted.draws("z").dtype == dtype
    assert weighted.log_prob.dtype == weighted.stats["pareto_k"].dtype == dtype
    assert weighted.stats.keys() == {"diverging", "pareto_k", "importance_ess"}
    assert weighted.stats["diverging"].dtype == torch.bool
    assert weighted.attributes["method"] == "importance"
    assert "EXACT(), weighted by site 'x'" in weighted.attributes["settings"]
    assert "importance" in str(weighted.summary())


def test_it_works_without_the_model_for_latent_sites(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path / "posterior.nc")
    loaded = Posterior.load(tmp_path / "posterior.nc")
    again = reweight(loaded, lambda z: log_weight(2.0 * z), site="z")
    assert torch.equal(again.draws("z"), reweight(posterior, log_weight).draws("z"))
    with pytest.raises(ResultError, match="loaded without its model"):
        reweight(loaded, log_weight)


def test_a_gan_may_stand_for_its_discriminator() -> None:
    G = GAN((4, 4), 2, width=6, channels=2)
    x = torch.rand(2, 50, 4, 4, generator=torch.Generator().manual_seed(0))
    posterior = Posterior({"x": x}, torch.zeros(2, 50), {}, {})
    first, second = reweight(posterior, G), reweight(posterior, G.discriminate)
    assert torch.equal(first.draws("x"), second.draws("x"))


# ---------------------------------------------------------------------------- what is refused


def test_one_draw_that_carries_all_is_nothing(posterior: Posterior) -> None:
    with pytest.raises(ResultError, match=r"one draw carries nearly all.*DWLS"):
        reweight(posterior, lambda x: 1e4 * x[:, 0])
    with pytest.raises(ResultError, match="one draw"):
        reweight(posterior, lambda x: torch.full((len(x),), -math.inf))
    two = exact_draws(Y.expand(2, 2))
    with pytest.raises(ResultError, match=r"of problems \[1\]"):
        values = two.draws("x")[1, 0, 3, 0]
        reweight(two, lambda x: torch.where(x[:, 0] == values, 1e3, 0.0))


def test_few_effective_draws_are_a_warning(posterior: Posterior) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        reweight(posterior, lambda x: -6.0 * (x - 3.0).square().sum(-1))
    assert any("effective draws of 2000 are left. Draw more" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)


@pytest.mark.parametrize(
    ("weigh", "error", "message"),
    [
        (lambda x: x, ShapeError, r"returned \(2000, 2\) for values \(2000, 2\) of 'x'"),
        (lambda x: 1.0, ShapeError, "returned float"),
        (lambda x: x[:, 0] * math.nan, DataError, "NaN or plus infinity"),
        (lambda x: x[:, 0] + math.inf, DataError, "NaN or plus infinity"),
        (2.0, DtypeError, "log_weight: expected a function"),
    ],
)
def test_weights_that_are_none(
    weigh: Any, error: type[Exception], message: str, posterior: Posterior
) -> None:
    with pytest.raises(error, match=message):
        reweight(posterior, weigh)


def test_results_and_options_that_cannot_be_used(posterior: Posterior) -> None:
    with pytest.raises(OptionError, match="site: unknown value 'image'"):
        reweight(posterior, log_weight, site="image")
    with pytest.raises(OptionError, match="seed"):
        reweight(posterior, log_weight, seed=-1)
    with pytest.raises(TypeError, match="unknown option 'sites'"):
        reweight(posterior, log_weight, sites="x")  # type: ignore[call-arg]
    with pytest.raises(DtypeError, match="expected a Posterior, got Tensor"):
        reweight(posterior.draws("x"), log_weight)  # type: ignore[arg-type]
    with pytest.raises(ResultError, match="holds optima"):
        reweight(bg.infer(model, Y, method="map", progress=False), log_weight)
    with pytest.raises(ResultError, match="4 chains x 6 draws; expected at least 25"):
        reweight(exact_draws(Y, draws=6), log_weight)
