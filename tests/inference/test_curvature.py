"""Normal laws at optima, against closed forms and each other."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import LogDensity
from bayesgen.errors import OptionError
from bayesgen.inference.curvature import (
    Normals,
    Unconstrained,
    check_normal_laws_fit,
    curvature,
    normals_at,
)
from bayesgen.inference.standardised import Standardised
from bayesgen.inference.targets import GaussianTarget

float64 = torch.float64


class OnlyGradients:
    """A Gaussian of which nothing but value and gradient is known."""

    def __init__(self, target: GaussianTarget) -> None:
        self.num_dims, self.value_and_grad = target.num_dims, target.value_and_grad


def model(y: Tensor) -> None:
    """Sites of different widths, one of them constrained."""
    s = pyro.sample("s", dist.Gamma(torch.tensor(3.0).to(y), 2.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(2).to(y), 5.0).to_event(1))
    pyro.sample("y", dist.Normal(s * z.tanh(), 0.5).to_event(1), obs=y)


def least_squares(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2).to(y), 5.0).to_event(1))
    pyro.sample("y", dist.Normal(z.tanh(), 0.5).to_event(1), obs=y)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_differences_of_gradients(dtype: torch.dtype) -> None:
    target = GaussianTarget.with_condition(4, 1e4, dtype=dtype)
    v = torch.ones(3, 4, dtype=dtype)
    found, kind = curvature(OnlyGradients(target), v)
    truth = torch.linalg.inv(target.covariance.double())
    error = (found.double() - truth).abs().max() / truth.abs().max()
    assert kind == "Hessian" and found.shape == (3, 4, 4)
    assert error < (1e-3 if dtype == torch.float32 else 1e-9)


def test_the_hessian_of_a_model_in_its_units_and_of_each_problem() -> None:
    y = torch.tensor([[1.0, -0.5], [0.2, 2.0]], dtype=float64)
    density = LogDensity(model, y, batched=True)
    v = density.prior_draws(3, torch.Generator().manual_seed(0))
    found, kind = curvature(density, v)
    assert kind == "Hessian" and found.shape == (2, 3, 3, 3)
    alone, _ = curvature(LogDensity(model, y[1]), v[1])
    torch.testing.assert_close(found[1], alone)

    # Nothing of Pyro: the formula, differentiated by torch.
    def log_prob(v: Tensor) -> Tensor:
        s, z = v[0].exp(), v[1:]
        prior = 3.0 * v[0] - 2.0 * s - 0.5 * (z / 5).square().sum()
        return prior - 2.0 * (s * z.tanh() - y[1]).square().sum()

    exact: Tensor = -torch.autograd.functional.hessian(log_prob, v[1, 0])
    torch.testing.assert_close(found[1, 0], exact)
    standardised = Standardised(density)
    units = torch.as_tensor(standardised.units(v))
    scaled, _ = curvature(standardised, v / units)
    torch.testing.assert_close(scaled, found * units.unsqueeze(-1) * units.unsqueeze(-2))


def test_least_squares_take_gauss_newton() -> None:
    density = LogDensity(least_squares, torch.tensor([0.5, -3.0], dtype=float64))
    v = torch.tensor([0.3, 2.0], dtype=float64)
    found, kind = curvature(density, v)
    slope = 1 - v.tanh().square()
    assert kind == "Gauss-Newton"
    torch.testing.assert_close(found, torch.diag(1 / 25 + (slope / 0.5) ** 2))
    # The Hessian, which the residual bends, is another.
    assert (_hessian_of(density, v) - found).abs().max() > 0.1


def _hessian_of(density: LogDensity, v: Tensor) -> Tensor:
    hessian: Tensor = torch.autograd.functional.hessian(lambda v: -density.log_prob(v), v)
    return hessian


def test_normal_laws_are_torchs() -> None:
    target = GaussianTarget.with_condition(3, 10.0)
    normals, fits, _ = normals_at(target, torch.stack([target.mean, target.mean + 1]))
    noise = torch.randn(2, 20_000, 3, generator=torch.Generator().manual_seed(0), dtype=float64)
    draws = normals.spread(noise)
    law = torch.distributions.MultivariateNormal(normals.mean, target.covariance)
    torch.testing.assert_close(normals.log_prob(draws), law.log_prob(draws.transpose(0, 1)).T)
    assert bool(fits.all())
    whitened = (draws - normals.mean.unsqueeze(-2)) @ normals.factor
    torch.testing.assert_close(whitened, noise)
    # Draws with the factor of the covariance in its place are seen.
    wrong = Normals(normals.mean, torch.linalg.cholesky(target.covariance).expand(2, 3, 3))
    error = torch.cov(wrong.spread(noise)[0].T) - target.covariance
    assert error.abs().max() > 1 > 5 * (torch.cov(draws[0].T) - target.covariance).abs().max()


def test_saddles_do_not_fit() -> None:
    class Saddle:
        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            sign = torch.tensor([1.0, -1.0], dtype=v.dtype)
            return 0.5 * (sign * v.square()).sum(-1), sign * v

    normals, fits, _ = normals_at(Saddle(), torch.zeros(3, 2, dtype=float64))
    assert not bool(fits.any())
    assert torch.equal(normals.factor, torch.eye(2, dtype=float64).expand(3, 2, 2))


def test_the_jacobian_always_counts() -> None:
    density = LogDensity(model, torch.tensor([1.0, 0.0], dtype=float64))
    v = torch.zeros(1, 3, dtype=float64)
    value, gradient = Unconstrained(density).value_and_grad(v, jacobian=False)
    assert torch.equal(value, density.value_and_grad(v)[0])
    assert not torch.equal(gradient, density.value_and_grad(v, jacobian=False)[1])


def test_what_no_normal_law_fits_is_refused() -> None:
    def spikes(y: Tensor) -> None:
        u = pyro.sample("u", dist.Laplace(torch.zeros(2).to(y), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(u, 1.0).to_event(1), obs=y)

    with pytest.raises(OptionError, match=r"here: the priors of \['u'\] have kinks"):
        check_normal_laws_fit(LogDensity(spikes, torch.zeros(2)), "here")
    large = GaussianTarget(torch.zeros(1001), torch.eye(1001))
    with pytest.raises(OptionError, match="here: the model has 1001 unknowns; expected at most"):
        check_normal_laws_fit(large, "here")


def test_linear_densities_have_no_curvature() -> None:
    class Linear(OnlyGradients):
        def log_prob(self, v: Tensor) -> Tensor:
            return math.pi * v.sum(-1)

    density = Linear(GaussianTarget.with_condition(2, 2.0))
    assert torch.equal(curvature(density, torch.ones(3, 2))[0], torch.zeros(3, 2, 2))
