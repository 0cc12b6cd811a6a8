"""From one posterior to the next: against closed forms, and against a run from the prior."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import OptionError, ResultError
from bayesgen.inference import SMC, bridge
from bayesgen.inference.bridge import Bridge
from bayesgen.inference.checks import MethodReport, moment_report
from bayesgen.types import Split

float64 = torch.float64
ROWS = torch.tensor(
    [[1.0, 0.5, 0.0], [0.2, -1.0, 0.4], [0.3, 0.3, 1.5], [1.0, 1.0, 1.0]], dtype=float64
)
Y = torch.tensor([0.7, -0.4, 1.1, 0.9], dtype=float64)
SIGMA = 0.3
QUICK = SMC(particles=400)


def model(matrix: Tensor, y: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=float64), 1.0).to_event(1))
    pyro.deterministic("x", 2.0 * z)
    pyro.sample("y", dist.Normal(z @ matrix.T, SIGMA).to_event(1), obs=y)


def truth(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and log evidence given the first measurements, in closed form."""
    A, y, eye = ROWS[:count], Y[:count], torch.eye(3, dtype=float64)
    covariance = torch.linalg.inv(eye + A.T @ A / SIGMA**2)
    marginal = A @ A.T + SIGMA**2 * torch.eye(count, dtype=float64)
    law = torch.distributions.MultivariateNormal(torch.zeros(count, dtype=float64), marginal)
    return covariance @ A.T @ y / SIGMA**2, covariance, law.log_prob(y)


def infer(count: int, start: Any = "prior", **options: Any) -> bg.Posterior:
    settings = {"method": QUICK, "chains": 16, "draws": 400, "progress": False, **options}
    return bg.infer(model, ROWS[:count], Y[:count], start=start, **settings)


def moments(posterior: bg.Posterior, count: int) -> MethodReport:
    mean, covariance, _ = truth(count)
    return moment_report("bridge", posterior.draws("z"), mean, covariance)


def test_particles_follow_the_new_posterior_and_the_evidence_adds_up() -> None:
    posterior = infer(1)
    for count in (2, 4):
        posterior = infer(count, posterior, seed=count)
        moments(posterior, count).raise_if_failed()
        error = posterior.log_evidence - truth(count)[2]
        assert abs(float(error.mean())) < 5 * float(error.std()) / 4 + 1e-3
        assert float(error.std()) < 0.3


def test_data_may_also_be_taken_away_or_replaced() -> None:
    posterior = infer(2, infer(4), seed=1)
    moments(posterior, 2).raise_if_failed()


def test_the_prior_may_change_too() -> None:
    """Of a normal law the scale, and with it the evidence, in closed form."""

    def wider(y: Tensor, width: float) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=float64), width).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    y = torch.tensor([2.0, -3.0], dtype=float64)
    settings: dict[str, Any] = {"method": QUICK, "chains": 16, "draws": 400, "progress": False}
    first = bg.infer(wider, y, 1.0, **settings)
    posterior = bg.infer(wider, y, 5.0, start=first, **settings)
    weight = 25.0 / 26.0
    covariance = weight * torch.eye(2, dtype=float64)
    moment_report("", posterior.draws("z"), weight * y, covariance).raise_if_failed()
    exact = dist.Normal(torch.zeros(2, dtype=float64), 26.0**0.5).log_prob(y).sum()
    error = posterior.log_evidence - exact
    assert abs(float(error.mean())) < 5 * float(error.std()) / 4 + 1e-3


def test_counting_the_old_data_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant weighs the old posterior by all of the new likelihood."""

    def split(self: Bridge, v: Tensor, *, where: Tensor | None = None) -> Split:
        old, new = self._before.split(v, where=where), self.end(v, where=where)
        return Split(
            old.prior + old.likelihood,
            new.likelihood,
            old.prior_gradient + old.likelihood_gradient,
            new.likelihood_gradient,
        )

    before = infer(3)
    monkeypatch.setattr(bridge.Bridge, "split", split)
    # Particles that are not moved afterwards show their weights.
    few = SMC(particles=400, moves=1, max_moves=1, leapfrog=1)
    assert not moments(infer(4, before, method=few, seed=1), 4).passed


def test_parts_add_up_to_the_new_density() -> None:
    old, new = (bg.LogDensity(model, ROWS[:count], Y[:count]) for count in (2, 4))
    between = Bridge(old, new)
    v = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=float64)
    split, end = between.split(v), between.end(v)
    for found in (split, end):
        value, gradient = new.value_and_grad(v)
        torch.testing.assert_close(found.prior + found.likelihood, value)
        torch.testing.assert_close(found.prior_gradient + found.likelihood_gradient, gradient)
    torch.testing.assert_close(split.prior, old.value_and_grad(v)[0])


def test_it_costs_less_than_a_run_from_the_prior() -> None:
    fresh = infer(4, seed=1)
    carried = infer(4, infer(3), seed=1)
    spent = [p.attributes["num_evaluations"] for p in (carried, fresh)]
    assert spent[0] < spent[1] / 2


def test_problems_stay_apart() -> None:
    """Each of a batch is led to its own posterior."""
    scale = torch.tensor([1.0, -2.0], dtype=float64)
    rows = ROWS.expand(2, -1, -1)
    settings: dict[str, Any] = {"method": QUICK, "draws": 400, "progress": False, "batched": True}
    data = scale[:, None] * Y
    first = bg.infer(model, rows[:, :2].contiguous(), data[:, :2].contiguous(), **settings)
    posterior = bg.infer(model, rows, data, start=first, **settings)
    for i in range(2):
        mean, covariance, _ = truth(4)
        error = posterior[i].mean("z") - scale[i] * mean
        assert float((error / covariance.diagonal().sqrt()).abs().max()) < 0.3


def test_without_the_old_evidence_there_is_no_new_one() -> None:
    chains = infer(2, method="hmc", chains=4, draws=100, warmup=50)
    posterior = infer(3, chains, chains=4)
    with pytest.raises(ResultError, match="evidence"):
        _ = posterior.log_evidence


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("map", "start: got 'map'"),
        ({"z": torch.zeros(3, dtype=float64)}, "from an earlier posterior"),
    ],
)
def test_what_particles_cannot_begin_at(start: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        infer(2, start)


def test_posteriors_that_do_not_fit() -> None:
    def other(matrix: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3, dtype=float64), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w @ matrix.T, SIGMA).to_event(1), obs=y)

    foreign = bg.infer(other, ROWS, Y, method=QUICK, chains=4, draws=16, progress=False)
    with pytest.raises(OptionError, match=r"start: a posterior of sites .*'w'"):
        infer(2, foreign, chains=4)
    own = infer(2, chains=4)
    with pytest.raises(OptionError, match="4 chains; expected chains=5"):
        infer(2, own, chains=5)
    optima = infer(2, method="map", chains=4, draws=None)
    with pytest.raises(OptionError, match="got optima"):
        infer(2, optima, chains=4)


def positive(y: Tensor, law: Any) -> None:
    s = pyro.sample("s", law)
    pyro.sample("y", dist.Normal(0.0, s).expand(y.shape).to_event(1), obs=y)


def test_other_supports_are_refused() -> None:
    y = torch.tensor([1.0, -2.0])
    settings: dict[str, Any] = {"method": QUICK, "chains": 2, "draws": 50, "progress": False}
    first = bg.infer(positive, y, dist.HalfNormal(3.0), **settings)
    with pytest.raises(OptionError, match="other supports"):
        bg.infer(positive, y, dist.Uniform(0.0, 5.0), start=first, **settings)


@pytest.mark.parametrize("method", ["ula", "svi"])
def test_draws_that_are_not_exact_are_refused(method: str) -> None:
    options: dict[str, Any] = {"warmup": 20} if method == "ula" else {}
    found = infer(2, method=method, chains=4, draws=20, **options)
    with pytest.raises(OptionError, match="do not follow the posterior"):
        infer(3, found, chains=4)


def test_reweighted_draws_are_refused() -> None:
    found = infer(2, chains=4)
    found.stats["pareto_k"] = torch.zeros_like(found.log_prob)
    with pytest.raises(OptionError, match="do not follow the posterior"):
        infer(3, found, chains=4)


def test_laws_known_up_to_a_constant_are_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Particles need no evidence; the result has none either."""
    first = infer(2, chains=4)

    def unknown(self: bg.Posterior) -> Tensor:
        raise ResultError("known up to a constant only")

    monkeypatch.setattr(bg.Posterior, "log_evidence", property(unknown))
    assert "log_evidence" not in infer(3, first, chains=4).stats
