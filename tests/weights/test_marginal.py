"""Empirical Bayes against marginal likelihoods that are known, and what it refuses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import (
    DataError,
    DtypeError,
    ModelError,
    OptionError,
    ShapeError,
    UnknownOptionError,
)
from bayesgen.inference.hmc import hamiltonian_init
from bayesgen.operators import Matrix
from bayesgen.weights import marginal
from bayesgen.weights.marginal import EmpiricalBayes, empirical_bayes

float64 = torch.float64
NUM, SIGMA = 150, 0.5

# Chance in the chains may move an estimate by this part of its standard error over data sets. Over
# seeds, the standard deviation of what it does is 0.05, so a false alarm is an event of 4 sigma.
PART = 0.2
FEW: dict[str, Any] = {"chains": 4, "warmup": 60, "iterations": 240}


def normals(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=float64)


def denoising(y: Tensor, scale: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(zeros(NUM), scale).to_event(1))
    pyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


def without_constant(y: Tensor, scale: Tensor) -> None:
    """The mutant: a density of x that is not normalised."""
    with poutine.mask(mask=False):
        x = pyro.sample("x", dist.Normal(zeros(NUM), 1.0).to_event(1))
    pyro.factor("prior", -0.5 * (x / scale).square().sum())
    pyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


denoising_data = math.hypot(1.0, SIGMA) * normals((NUM,), 0)
exact = math.sqrt(float(denoising_data.square().mean()) - SIGMA**2)
# Of the logarithm: the information is 2 n (s^2 / (s^2 + sigma^2))^2.
exact_error = (2 * NUM) ** -0.5 * (1 + (SIGMA / exact) ** 2)


def run(model: Any = denoising, **options: Any) -> EmpiricalBayes:
    settings: dict[str, Any] = {"start": {"scale": 3.0}, **FEW, **options}
    return empirical_bayes(model, denoising_data, **settings)


def off(found: EmpiricalBayes) -> float:
    """Distance from the maximum, in standard errors."""
    return abs(math.log(found.parameters["scale"] / exact)) / exact_error


# ---------------------------------------------------------------------------- the truth


@pytest.mark.parametrize(("start", "method"), [(0.1, None), (3.0, "mala")])
def test_normal_pixels_in_closed_form(start: float, method: str | None) -> None:
    found = run(start={"scale": start}, method=method)
    assert off(found) < PART
    error = found.standard_errors["scale"] / found.parameters["scale"]
    assert error == pytest.approx(exact_error, rel=0.15)
    path = found.path["scale"]
    assert path.dtype == float64
    assert path.shape == (FEW["iterations"],)
    assert float(path[0]) == pytest.approx(start)
    tail = path[-found.averaged :].log().mean().exp()
    assert found.parameters["scale"] == pytest.approx(float(tail))
    # From the complete data's information, which Louis' identity corrects.
    uncorrected = (2 * NUM) ** -0.5
    assert uncorrected != pytest.approx(exact_error, rel=0.15)


def test_noise_and_scale_together() -> None:
    rows, columns = 120, 60
    M = normals((rows, columns), 1) / columns**0.5
    A = Matrix(M)
    y = M @ (2.0 * normals((columns,), 2)) + SIGMA * normals((rows,), 3)

    def model(y: Tensor, sigma: Tensor, scale: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(zeros(columns), scale).to_event(1))
        pyro.sample("y", dist.Normal(A(x), sigma).to_event(1), obs=y)

    eigenvalues, vectors = np.linalg.eigh((M @ M.T).numpy())
    squares = (vectors.T @ y.numpy()) ** 2

    def minus_log_likelihood(logs: Any) -> float:
        variances = np.exp(2 * logs[0]) + np.exp(2 * logs[1]) * eigenvalues.clip(0.0)
        return float(0.5 * (np.log(variances) + squares / variances).sum())

    best = minimize(minus_log_likelihood, [0.0, 0.0], method="Nelder-Mead", tol=1e-9).x
    errors = _standard_errors(minus_log_likelihood, best)
    found = empirical_bayes(model, y, start={"sigma": 2.0, "scale": 0.5}, **FEW)
    assert list(found.parameters) == ["sigma", "scale"]
    logs = np.log(list(found.parameters.values()))
    assert (abs(logs - best) < PART * errors).all()
    assert (abs(logs[::-1] - best) > 5 * errors).all()  # were they mistaken for each other
    relative = np.array(list(found.standard_errors.values())) / np.exp(logs)
    np.testing.assert_allclose(relative, errors, rtol=0.15)


def _standard_errors(function: Callable[[Any], float], best: Any, h: float = 1e-3) -> Any:
    """From second differences."""
    n, unit = len(best), h * np.eye(len(best))
    hessian = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
            values = [a * b * function(best + a * unit[i] + b * unit[j]) for a, b in signs]
            hessian[i, j] = sum(values) / (4 * h**2)
    return np.sqrt(np.diag(np.linalg.inv(hessian)))


def test_sparse_pixels_by_quadrature() -> None:
    uniform = torch.rand(NUM, generator=torch.Generator().manual_seed(4), dtype=float64)
    x = 0.6 * dist.Laplace(zeros(), 1.0).icdf(uniform)
    y = x + 0.4 * normals((NUM,), 5)

    def model(y: Tensor, scale: Tensor) -> None:
        x = pyro.sample("x", dist.Laplace(zeros(NUM), scale).to_event(1))
        pyro.sample("y", dist.Normal(x, 0.4).to_event(1), obs=y)

    nodes, weights = np.polynomial.legendre.leggauss(2000)
    likelihood = norm.pdf(y.numpy()[:, None], 15 * nodes, 0.4)

    def minus_log_likelihood(logs: Any) -> float:
        scale = np.exp(np.squeeze(logs))
        prior = np.exp(-abs(15 * nodes) / scale) / (2 * scale)
        return float(-np.log(likelihood @ (15 * weights * prior)).sum())

    bounded = {"bounds": (-3.0, 1.0), "method": "bounded", "options": {"xatol": 1e-8}}
    best = minimize_scalar(minus_log_likelihood, **bounded).x
    error = float(_standard_errors(minus_log_likelihood, np.array([best]))[0])
    found = empirical_bayes(model, y, start={"scale": 2.0}, **FEW)
    assert abs(math.log(found.parameters["scale"]) - best) < PART * error
    # The scale without regard to the noise.
    assert abs(math.log(float(y.abs().mean())) - best) > 5 * PART * error


def test_derivatives_by_hand() -> None:
    def model(y: Tensor, sigma: Tensor, scale: Tensor) -> None:
        # A site with a transform, whose Jacobian does not depend on the hyper-parameters.
        x = pyro.sample("x", dist.Exponential(1 / scale).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    y = torch.tensor([0.1, 1.0, 2.0], dtype=float64)
    joint = marginal.Joint(model, (y,), {"sigma": 1.0, "scale": 1.0})
    place = torch.tensor([0.3, 0.7], dtype=float64)
    joint.set(place.log())
    v = normals((5, 3), 6)
    gradients, information = joint.derivatives(v / joint.standardised.scale)
    x = v.exp()
    squares = ((y - x) / place[0]).square().sum(1)
    torch.testing.assert_close(gradients[:, 0], squares - 3)
    torch.testing.assert_close(gradients[:, 1], x.sum(1) / place[1] - 3)
    by_hand = torch.diag(torch.stack([2 * squares.mean(), x.sum(1).mean() / place[1]]))
    torch.testing.assert_close(information, by_hand)
    # The density itself has moved with them.
    value = joint.density.value_and_grad(v)[0]
    at_place = bg.LogDensity(model, y, sigma=place[0], scale=place[1]).value_and_grad(v)[0]
    torch.testing.assert_close(value, at_place)


# ---------------------------------------------------------------------------- mutants


def test_a_prior_without_its_constant_ends_at_the_bound() -> None:
    with pytest.warns(RuntimeWarning, match="scale = 100 is at a bound.*normalising constant"):
        found = run(without_constant, bounds={"scale": (0.01, 100.0)}, iterations=160)
    assert found.parameters["scale"] == pytest.approx(100.0)
    assert off(found) > 5


def test_the_wrong_sign_ends_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    derivatives = marginal.Joint.derivatives

    def wrong(self: Any, position: Tensor) -> tuple[Tensor, Tensor]:
        gradients, information = derivatives(self, position)
        return -gradients, information

    monkeypatch.setattr(marginal.Joint, "derivatives", wrong)
    with pytest.warns(RuntimeWarning, match="scale = .* is at a bound"):
        found = run(bounds={"scale": (0.3, 10.0)}, iterations=60)
    assert found.parameters["scale"] == pytest.approx(10.0)


def test_chains_that_stay_at_the_start_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marginal.Joint, "set", lambda self, logs: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert off(run(start={"scale": 0.5}, iterations=60)) > 5


# ---------------------------------------------------------------------------- what it says


def test_data_that_are_all_noise() -> None:
    y = 0.8 * SIGMA * normals((NUM,), 7)  # the closed form has no positive root
    bounds = {"scale": (0.25, 10.0)}
    with pytest.warns(RuntimeWarning, match="scale = 0.25 is at a bound"):
        found = empirical_bayes(
            denoising, y, start={"scale": 1.0}, bounds=bounds, chains=4, warmup=20, iterations=80
        )
    assert found.parameters["scale"] == pytest.approx(0.25, rel=0.05)


def test_an_estimate_on_the_move_is_reported() -> None:
    with pytest.warns(RuntimeWarning, match="still moves, by .* take more iterations"):
        run(start={"scale": 0.1}, warmup=20, iterations=40)


def test_the_seed_decides() -> None:
    brief: dict[str, Any] = {"start": {"scale": 1.0}, "warmup": 2, "iterations": 8}
    first, again, other = run(**brief), run(**brief), run(seed=1, **brief)
    assert first.parameters == again.parameters
    assert first.standard_errors == again.standard_errors
    assert torch.equal(first.path["scale"], again.path["scale"])
    assert not torch.equal(first.path["scale"], other.path["scale"])


def test_chains_leave_modes_that_are_far_less_probable() -> None:
    class Flat:
        num_dims = 2

        def value_and_grad(self, v: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            return zeros(len(v)), torch.zeros_like(v)

    position = normals((4, 2), 8)
    state = hamiltonian_init(Flat(), position, 0.1, 0.8)
    # What they began with does not count.
    levels = [torch.tensor([0.0, 90.0, 0.0, 0.0]), torch.tensor([-60.0, -60.0, 0.0, -60.0])]
    moved = marginal._regroup(state, levels, torch.Generator().manual_seed(0))
    assert torch.equal(moved.position, position[2].expand(4, 2))
    equal = [torch.zeros(4)] * 2
    kept = [marginal._regroup(state, equal, torch.Generator().manual_seed(s)) for s in range(9)]
    assert len({tuple(state.position[:, 0].tolist()) for state in kept}) > 4


def test_a_generator_in_single_precision() -> None:
    G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 20, seed=0)
    y = A(G(torch.zeros(8))) + 0.1 * normals((20,), 9).float()

    def model(y: Tensor, sigma: Tensor, scale: Tensor) -> None:
        bg.regularisers.relaxed(G, A, sigma, scale, integrated=False)(y)

    start, bounds = {"sigma": 0.3, "scale": 0.3}, {"sigma": (0.05, 0.5), "scale": (0.1, 1.0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # twenty numbers do not tell the two apart
        found = empirical_bayes(
            model, y, start=start, bounds=bounds, chains=2, warmup=2, iterations=8
        )
    for name, (low, high) in bounds.items():
        assert (found.path[name] >= low * (1 - 1e-6)).all()
        assert (found.path[name] <= high * (1 + 1e-6)).all()


def test_the_picture() -> None:
    matplotlib.use("Agg")
    path = {"sigma": torch.linspace(1, 2, 20)}
    found = EmpiricalBayes({"sigma": 1.7}, {"sigma": 0.1}, path, averaged=10)
    figure = found.plot()
    (ax,) = figure.axes
    assert (ax.get_ylabel(), ax.get_xlabel(), ax.get_yscale()) == ("sigma", "iteration", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "averaged",
        "estimate 1.7",
    ]
    plt.close(figure)


# ---------------------------------------------------------------------------- what it refuses


def test_starts_and_bounds_that_are_refused() -> None:
    with pytest.raises(DtypeError, match="start: expected a dictionary, got float"):
        run(start=1.0)
    with pytest.raises(OptionError, match="start: expected at least one hyper-parameter"):
        run(start={})
    for bad in (0.0, -1.0, math.nan, "a", None):
        with pytest.raises(OptionError, match=r"start\['scale'\]: expected a positive number"):
            run(start={"scale": bad})
    with pytest.raises(OptionError, match="'sigma' is no argument of the model, which has 'y', "):
        run(start={"sigma": 1.0})
    with pytest.raises(DtypeError, match="bounds: expected a dictionary, got tuple"):
        run(bounds=(1.0, 2.0))
    with pytest.raises(OptionError, match="bounds: 'sigma' is not in start"):
        run(bounds={"sigma": (1.0, 2.0)})
    for pair in (1.0, (1.0,), "ab"):
        with pytest.raises(OptionError, match=r"bounds\['scale'\]: expected \(smallest, largest"):
            run(bounds={"scale": pair})
    with pytest.raises(OptionError, match=r"bounds\['scale'\]\[0\]: expected a positive number"):
        run(bounds={"scale": (0.0, 5.0)})
    for pair in ((4.0, 5.0), (1.0, 2.0), (3.0, 3.0), (5.0, 1.0)):
        with pytest.raises(OptionError, match="is no interval around start = 3"):
            run(bounds={"scale": pair})


def test_options_that_are_refused() -> None:
    for name, least in (("chains", 1), ("warmup", 0), ("iterations", 8)):
        with pytest.raises(OptionError, match=f"{name}: got {least - 1}; expected an integer"):
            run(**{name: least - 1})
    with pytest.raises(OptionError, match="method: got 'map'; expected 'hmc' or 'mala'"):
        run(method="map")
    with pytest.raises(OptionError, match="seed: got -1"):
        run(seed=-1)
    with pytest.raises(UnknownOptionError, match="unknown option 'chain'.*did you mean 'chains'"):
        run(chain=3)


def test_models_that_are_refused() -> None:
    def nothing_latent(y: Tensor, scale: Tensor) -> None:
        pyro.sample("y", dist.Normal(zeros(NUM), scale).to_event(1), obs=y)

    def support(y: Tensor, scale: Tensor) -> None:
        x = pyro.sample("x", dist.Uniform(zeros(NUM), scale).to_event(1))
        pyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)

    def unused(y: Tensor, scale: Tensor) -> None:
        denoising(y, zeros() + 1.0)

    with pytest.raises(ModelError, match="expected a function with pyro.sample statements, got 3"):
        run(3)
    with pytest.raises(ModelError, match="no latent site found"):
        run(nothing_latent)
    with pytest.raises(ModelError, match="site 'x': its support depends on"):
        run(support)
    with pytest.raises(ModelError, match="the model does not depend on 'scale'"):
        run(unused)
    with pytest.raises(ModelError, match="arguments do not fit its signature"):
        empirical_bayes(denoising, start={"scale": 1.0})


def test_data_that_are_refused() -> None:
    with pytest.raises(ShapeError, match="empirical_bayes takes one data set"):
        empirical_bayes(denoising, torch.stack([denoising_data] * 2), start={"scale": 1.0})
    with pytest.raises(DataError, match="argument 'y': 1 of 150 values are NaN"):
        bad = denoising_data.clone()
        bad[3] = math.nan
        empirical_bayes(denoising, bad, start={"scale": 1.0})
