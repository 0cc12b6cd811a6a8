"""Pyro's guides, fitted in one batch: right where the family is, and told where it is not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import run_population
from bayesgen.inference.guides import Guides, make_guides
from bayesgen.inference.runner import Run
from bayesgen.inference.standardised import Standardised
from bayesgen.inference.targets import Banana, GaussianTarget, Target
from bayesgen.inference.variational import Variational

float64 = torch.float64
TARGET = GaussianTarget.with_condition(4, 10.0)
CHAINS, DRAWS = 8, 1000
QUICK = Variational(learning_rate=0.1, tolerance=0.2)


def run(target: Target, method: Variational, *, chains: int = CHAINS, seed: int = 0) -> Run:
    rng = torch.Generator().manual_seed(seed)
    start = target.starts(chains, rng).unsqueeze(-2)
    return run_population(method, target, start, rng, draws=DRAWS)


@pytest.fixture(scope="module")
def fitted() -> Run:
    return run(TARGET, QUICK)


# --------------------------------------------------------------------------- right and wrong


def errors(position: Tensor, target: GaussianTarget) -> tuple[float, float]:
    """Largest errors of a chain's mean, in standard deviations, and of its whitened covariance."""
    factor = torch.linalg.cholesky(torch.linalg.inv(target.covariance))
    whitened = (position - target.mean) @ factor
    covariance = torch.stack([torch.cov(chain.T) for chain in whitened])
    eye = torch.eye(target.num_dims, dtype=covariance.dtype)
    return float(whitened.mean(1).abs().max()), float((covariance - eye).abs().max())


def test_gaussians_are_recovered(fitted: Run) -> None:
    # Of 1000 draws: 5.5 standard errors are 0.17 and 0.25, and the fit may be a little off.
    mean, covariance = errors(fitted.position, TARGET)
    assert mean < 0.2 and covariance < 0.3
    assert float(fitted.stats["pareto_k"].max()) < 0.7
    gap = TARGET.log_evidence - fitted.stats["elbo"][:, 0]
    assert float(gap.min()) > -0.02 and float(gap.max()) < 0.05


def test_a_wrong_noise_scale_is_rejected(fitted: Run) -> None:
    wide = GaussianTarget(TARGET.mean, 1.44 * TARGET.covariance)
    assert errors(fitted.position, wide)[1] > 0.3
    far = GaussianTarget(TARGET.mean + 0.5, TARGET.covariance)
    assert errors(fitted.position, far)[0] > 0.2


@pytest.mark.filterwarnings("ignore:svi. the evidence bound still rose")
def test_a_missing_entropy_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guides whose own density does not count collapse on the optimum."""
    draw = Guides.draw

    def without(self: Guides, *args: Any) -> tuple[Tensor, Tensor]:
        v, log_q = draw(self, *args)
        return v, log_q.detach()

    monkeypatch.setattr(Guides, "draw", without)
    found = run(TARGET, replace(QUICK, max_iterations=200), chains=2)
    assert errors(found.position, TARGET)[1] > 0.3


def test_a_bent_posterior_is_not_trusted() -> None:
    found = run(Banana(), replace(QUICK, guide="normal", tolerance=1.0), chains=4)
    assert float(found.stats["pareto_k"].median()) > 0.7
    # It is too narrow besides.
    assert float(found.position[..., 0].var(-1).mean()) < 0.5 * float(Banana().covariance[0, 0])


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3).to(y), 10.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 5.0).to_event(1), obs=y)


def test_problems_in_single_precision() -> None:
    y = torch.tensor([[10.0, 0.0, -10.0], [20.0, 20.0, 20.0]])
    found = bg.infer(model, y, method=QUICK, chains=3, draws=DRAWS, batched=True, progress=False)
    assert found.draws("z").shape == (2, 3, DRAWS, 3) and found.draws("z").dtype == torch.float32
    torch.testing.assert_close(found.mean("z"), 0.8 * y, atol=0.7, rtol=0)
    torch.testing.assert_close(found.std("z"), torch.full((2, 3), 20**0.5), atol=0.7, rtol=0)
    # The bound is on the density of the data, whatever the unit the method works in.
    truth = dist.Normal(0.0, 125**0.5).log_prob(y).sum(-1)
    assert bool((found.stats["elbo"][..., 0] - truth[:, None]).abs().max() < 0.15)
    assert found.attributes["exact"] is False


# --------------------------------------------------------------------------- guides


GUIDES: dict[str, Any] = {
    "normal": "normal",
    "multivariate": "multivariate",
    "low-rank": "low-rank",
    "iaf": "iaf",
    "class": partial(AutoMultivariateNormal, init_scale=0.5),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_densities_of_draws_are_theirs(name: str, dtype: torch.dtype) -> None:
    """The mean of p/q over draws of q is the integral of p, for parameters that differ by row."""
    rng = torch.Generator().manual_seed(0)
    guide = GUIDES[name]
    place = torch.randn(3, 2, generator=rng, dtype=dtype)
    guides, parameters = make_guides(guide, place, seed=0)
    parameters = {
        name: p + 0.1 * torch.randn(p.shape, generator=rng, dtype=dtype)
        for name, p in parameters.items()
    }
    if name in ("normal", "multivariate", "low-rank"):
        parameters["scale_unconstrained"] = parameters["scale_unconstrained"] + 3.0
    v, log_q = guides.draw(parameters, 20_000, rng)
    assert v.shape == (20_000, 3, 2) and log_q.shape == (20_000, 3) and v.dtype == dtype
    # Narrower than q, so that ratios are bounded well.
    mean, spread = v.mean(0), 0.5 * v.std(0)
    log_p = torch.distributions.Normal(mean, spread).log_prob(v).sum(-1)
    ratio = (log_p - log_q).exp()
    error = ratio.std(0) / 20_000**0.5
    assert bool(((ratio.mean(0) - 1).abs() < 5.5 * error).all())
    assert float(error.max()) < 0.1


def test_the_default_guide_follows_the_size() -> None:
    for n, rank in ((100, None), (101, 10)):
        target = GaussianTarget(torch.zeros(n), torch.eye(n))
        start = torch.zeros(2, 1, n)
        state = Variational().init(Standardised(target), start)
        assert ("cov_factor" in state.parameters) == (rank is not None)
        method, rng = Variational(), torch.Generator().manual_seed(0)
        state, info = method.step(Standardised(target), state, rng)
        assert info.elbo.shape == (2,) and state.position.shape == (2, 1, n)


def test_guides_begin_where_chains_do() -> None:
    place = torch.randn(3, 2, 1, 4, generator=torch.Generator().manual_seed(0), dtype=float64)
    target = GaussianTarget.with_condition(4, 10.0)
    state = Variational().init(Standardised(target), place)
    assert torch.equal(state.parameters["loc"], place.reshape(6, 4))


# --------------------------------------------------------------------------- the state of the world


def test_a_step_changes_nothing_but_its_result() -> None:
    density, method = Standardised(TARGET), Variational()
    pyro.param("loc", torch.tensor(3.0))
    state = method.init(density, TARGET.mean.expand(2, 1, 4))
    for seed in range(2):
        state, _ = method.step(density, state, torch.Generator().manual_seed(seed))
    kept = {name: p.clone() for name, p in state.parameters.items()}
    one, _ = method.step(density, state, torch.Generator().manual_seed(3))
    two, _ = method.step(density, state, torch.Generator().manual_seed(3))
    for name, p in state.parameters.items():
        assert torch.equal(p, kept[name])
        assert torch.equal(one.parameters[name], two.parameters[name])
        assert not p.requires_grad
    assert dict(pyro.get_param_store().items()) == {"loc": torch.tensor(3.0)}
    pyro.get_param_store().clear()


def test_points_outside_the_domain_pull_nowhere() -> None:
    class Half(GaussianTarget):
        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            value, gradient = super().value_and_grad(v)
            outside = v[..., 0] < -1
            return value.masked_fill(outside, torch.nan), gradient / (~outside)[..., None]

    target = Half(torch.zeros(1, dtype=float64), torch.eye(1, dtype=float64))
    density, method = Standardised(target), Variational()
    state = method.init(density, torch.full((2, 1, 1), -0.9, dtype=float64))
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        state, _ = method.step(density, state, rng)
    assert all(bool(torch.isfinite(p).all()) for p in state.parameters.values())
    assert float(state.parameters["loc"].min()) > -0.9


# --------------------------------------------------------------------------- bad input


def test_running_out_of_steps_is_said() -> None:
    with pytest.warns(RuntimeWarning, match="svi: the evidence bound still rose after 3 steps"):
        found = run(TARGET, Variational(max_iterations=3), chains=1)
    assert found.position.shape == (1, DRAWS, 4)


def test_what_makes_no_guide_is_refused() -> None:
    with pytest.raises(OptionError, match="guide: made a AutoDelta; expected a pyro.infer"):
        run(TARGET, Variational(AutoDelta))  # type: ignore[arg-type]

    class Wide(AutoDiagonalNormal):
        def get_base_dist(self) -> Any:
            return dist.Normal(torch.zeros_like(self.loc), 2.0).to_event(1)

    with pytest.raises(OptionError, match="guide: the base distribution of Wide"):
        run(TARGET, Variational(Wide))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "nromal"}, "guide: unknown value 'nromal'.*did you mean 'normal'"),
        ({"guide": 3}, "guide: got 3; expected one of 'auto'"),
        ({"max_iterations": 0}, "max_iterations: got 0"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0"),
        ({"num_particles": 0}, "num_particles: got 0"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Variational(**settings)


def test_misspelt_settings_are_refused_with_the_list() -> None:
    with pytest.raises(UnknownOptionError, match="Variational: unknown option 'guides'"):
        Variational(guides="normal")  # type: ignore[call-arg]
