"""From one posterior to the next: against closed forms, and against a run from the prior."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DtypeError, OptionError, ResultError
from bayesgen.inference import SMC, bridge, smc
from bayesgen.inference.bridge import Bridge
from bayesgen.inference.checks import MethodReport, moment_report
from bayesgen.inference.tempering import Tempered, effective_fraction, temper
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

    right = bridge.Bridge.between

    def between(self: Bridge, v: Tensor, beta: Tensor, *, where: Tensor | None = None) -> Split:
        return right(self, v, beta, where=where)._replace(
            likelihood=self.split(v, where=where).likelihood
        )

    before = infer(3)
    monkeypatch.setattr(bridge.Bridge, "between", between)
    # Particles that are not moved afterwards show their weights.
    few = SMC(particles=400, moves=1, max_moves=1, leapfrog=1)
    assert not moments(infer(4, before, method=few, seed=1), 4).passed


def deviating(matrix: Tensor, y: Tensor | None = None) -> None:
    """With a support that needs a Jacobian."""
    z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=float64), 1.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(torch.tensor(1.0, dtype=float64)))
    pyro.sample("y", dist.Normal(z @ matrix.T, s).to_event(1), obs=y)


@pytest.mark.parametrize("given", [model, deviating])
@pytest.mark.parametrize("together", [True, False])
def test_parts_are_those_of_the_two_densities(given: Any, together: bool) -> None:
    """Also for a graph, which is recorded after thirty evaluations, and for chosen rows."""
    old, new = (bg.LogDensity(given, ROWS[:count], Y[:count]) for count in (2, 4))
    path = Bridge(old, new)
    if not together:
        path._ends = bridge._Apart(old, new)
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(6, 5, old.num_dims, generator=rng, dtype=float64)
    beta = torch.rand(6, 1, generator=rng, dtype=float64)
    units = path.units(v)
    (before, down), (after, up) = (density.value_and_grad(v * units) for density in (old, new))
    for _ in range(35):
        split = path.between(v, beta)
    value, gradient = temper(split, beta)
    torch.testing.assert_close(split.prior, before)
    torch.testing.assert_close(split.prior + split.likelihood, after)
    torch.testing.assert_close(value, torch.lerp(before, after, beta))
    torch.testing.assert_close(gradient, torch.lerp(down, up, beta[..., None]) * units)
    where = torch.zeros(6, 5, dtype=torch.bool)
    where[2, 1:3] = True
    few, few_gradient = temper(path.between(v, beta, where=where), beta)
    torch.testing.assert_close(few[where], value[where])
    torch.testing.assert_close(few_gradient[where], gradient[where])
    assert bool(few[~where].isnan().all())


@pytest.mark.parametrize("stale", [False, True])
def test_particles_have_the_gradients_of_their_temperature(
    monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    """The mutant leaves them those of the temperature before."""
    if stale:
        monkeypatch.setattr(smc, "_evaluated", lambda density, state, moving: state)
    path = Bridge(*(bg.LogDensity(model, ROWS[:count], Y[:count]) for count in (1, 4)))
    rng, method = torch.Generator().manual_seed(0), SMC(particles=100, alpha=0.9)
    start = infer(1, chains=4).draws("z")[:, :100]
    state, _ = method.step(path, method.init(path, start), rng)
    assert bool((state.beta < 1).all())
    _, gradient = Tempered(path, state.beta[..., None]).value_and_grad(state.position)
    assert torch.allclose(state.particles.gradient, gradient) != stale


class Counting(bg.models.Generator):
    """Says how often it was asked for images."""

    def __init__(self) -> None:
        super().__init__((3,), 3)
        self.calls = 0

    def decode(self, z: Tensor) -> Tensor:
        self.calls += 1
        return 2.0 * z


def test_images_are_generated_once_for_both_data_sets() -> None:
    G = Counting()

    def model(count: int, y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        pyro.sample("y", dist.Normal(G(z)[:count], SIGMA).to_event(1), obs=y)

    old, new = (bg.LogDensity(model, count, torch.ones(count)) for count in (1, 3))
    path, v = Bridge(old, new), torch.ones(5, 3)
    G.calls = 0
    path.between(v, torch.full((5,), 0.5))
    assert G.calls == 1 and path.count == 1


class Doubling(bg.models.Generator):
    """Of three pixels."""

    def decode(self, z: Tensor) -> Tensor:
        return 2.0 * z


def test_models_that_change_their_images_in_place() -> None:
    """Neither changes those of the other, nor what the generator made of the same vector before."""
    G = Doubling((3,), 3)

    def model(count: int, y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        x = G(z)
        x += 1.0
        x[..., 0] = 0.5
        z_ = z.clone()
        first = G(z_)
        z_ += 1.0
        pyro.sample("y", dist.Normal((x + first + G(z_))[:count], SIGMA).to_event(1), obs=y)

    old, new = (bg.LogDensity(model, count, torch.ones(count)) for count in (1, 3))
    v, beta = torch.linspace(-1.0, 1.0, 12).reshape(4, 3), torch.full((4,), 0.5)
    split = Bridge(old, new).between(v, beta)
    (before, down), (after, up) = (density.value_and_grad(v) for density in (old, new))
    torch.testing.assert_close(split.prior, before)
    torch.testing.assert_close(split.prior + split.likelihood, after)
    torch.testing.assert_close(split.prior_gradient, (down + up) / 2)


@pytest.mark.parametrize("looking", [False, True])
def test_earlier_models_are_let_go(looking: bool) -> None:
    """Also if they cannot be recorded, and their graphs are no graphs."""

    def given(matrix: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=float64), 1.0).to_event(1))
        # Under vmap the data may be looked at, but not in a recording.
        mean = -z @ matrix.T if looking and y.sum() > 1e9 else z @ matrix.T
        pyro.sample("y", dist.Normal(mean, SIGMA).to_event(1), obs=y)

    settings: dict[str, Any] = {"method": QUICK, "draws": 400, "progress": False}
    posterior, seen = bg.infer(given, ROWS[:1], Y[:1], **settings), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for count in (2, 3, 4):
            seen.append(weakref.ref(posterior.model))
            posterior = bg.infer(given, ROWS[:count], Y[:count], start=posterior, **settings)
    gc.collect()
    assert [model() for model in seen] == [None] * 3


def test_models_that_are_not_vectorised_are_bridged() -> None:
    def looking(matrix: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=float64), 1.0).to_event(1))
        mean = z @ matrix.T
        pyro.sample("y", dist.Normal(mean if z.sum() < 9.0 else -mean, SIGMA).to_event(1), obs=y)

    with pytest.warns(RuntimeWarning, match="cannot be vectorised"):
        old, new = (bg.LogDensity(looking, ROWS[:count], Y[:count]) for count in (2, 4))
    path, v = Bridge(old, new), torch.ones(2, 3, dtype=float64)
    split = path.between(v, torch.full((2,), 0.5))
    assert path.count == 2
    torch.testing.assert_close(split.prior + split.likelihood, new.value_and_grad(v)[0])


def pairs(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=float64), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).expand(y.shape).to_event(2), obs=y)


def a_datum_at_a_time() -> tuple[MethodReport, float, list[bool]]:
    """Fit to the last posterior, draws that a particle is worth, and who did not move."""
    settings: dict[str, Any] = {"method": QUICK, "chains": 16, "draws": 400, "progress": False}
    y = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=float64)
    posterior, stayed = bg.infer(pairs, y[:10], **settings), []
    for count in range(11, 41):
        before = posterior
        posterior = bg.infer(pairs, y[:count], start=before, seed=count, **settings)
        draws = zip(posterior.draws("z"), before.draws("z"), strict=True)
        stayed += [bool(torch.isin(new[:, 0], old[:, 0]).all()) for new, old in draws]
        assert stayed[-16:] == posterior.stats["acceptance_rate"][:, 0].isnan().tolist()
    mean, covariance = y.sum(0) / (len(y) + 1), torch.eye(2, dtype=float64) / (len(y) + 1)
    spread = posterior.draws("z").mean(1).sub(mean).square().mean()
    worth = float(covariance[0, 0] / 400 / spread)
    return moment_report("", posterior.draws("z"), mean, covariance), worth, stayed


def test_particles_that_new_data_hardly_change_stay_where_they_are() -> None:
    """They are weighted, not moved, as long as enough different ones are left."""
    report, worth, stayed = a_datum_at_a_time()
    report.raise_if_failed()
    assert worth > 0.4
    assert 0.3 < sum(stayed) / len(stayed) < 0.9


def test_copies_that_count_as_different_particles_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mutant does not see that weighting again and again leaves few of them."""
    monkeypatch.setattr(smc, "_distinct_fraction", lambda v, weights: effective_fraction(weights))
    _, worth, _ = a_datum_at_a_time()
    assert worth < 0.3


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


def test_other_types_and_orders_of_sites_are_told_apart() -> None:
    def single(matrix: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z @ matrix.T, SIGMA).to_event(1), obs=y)

    settings: dict[str, Any] = {"method": QUICK, "chains": 4, "draws": 16, "progress": False}
    first = bg.infer(single, ROWS.float(), Y.float(), **settings)
    with pytest.raises(DtypeError, match=r"start: a posterior in torch.float32 on cpu; expected"):
        infer(2, first, chains=4)

    def pair(names: str, y: Tensor) -> None:
        parts = [pyro.sample(name, dist.Normal(0.0, 1.0)) for name in names]
        pyro.sample("y", dist.Normal(sum(parts), 1.0), obs=y)

    turned = bg.infer(pair, "ab", torch.tensor(1.0), **settings)
    with pytest.raises(OptionError, match=r"start: a posterior of sites \[\('a'"):
        bg.infer(pair, "ba", torch.tensor(1.0), start=turned, **settings)


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
