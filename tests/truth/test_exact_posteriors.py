"""Posteriors known in closed form, through the whole path: model, log density, sampler.

Each has a mutant, a model or density that is wrong in one place, which the same check rejects.
False-alarm rate of every check: 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.inference import HMC, MALA, Sampler, run_sampler
from bayesgen.inference.checks import GaussianTarget, MethodReport, check_method, moment_report
from bayesgen.log_density import LogDensity

SAMPLERS: dict[str, Sampler] = {"hmc": HMC(), "mala": MALA()}
float64 = torch.float64


def sample(
    sampler: Sampler, model: Callable[[Tensor], None], y: Tensor, *, jacobian: bool = True
) -> Tensor:
    """Draws in the unconstrained space, ``(chains, draws, n)``."""
    log_density = LogDensity(model, y)
    rng = torch.Generator().manual_seed(1)
    start = log_density.prior_draws(64, rng)
    target = log_density if jacobian else WithoutJacobian(log_density)
    return run_sampler(sampler, target, start, rng, draws=400, warmup=400).position


class WithoutJacobian:
    """A log density that forgets the change of variables."""

    def __init__(self, log_density: LogDensity) -> None:
        self.num_dims = log_density.num_dims
        self.log_density = log_density

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        return self.log_density.value_and_grad(v, jacobian=False)


class LinearProblem:
    """x = W z + b, y = A x + noise: the posterior of z is Gaussian."""

    def __init__(self, sigma: float = 0.3) -> None:
        rng = torch.Generator().manual_seed(0)
        self.weight = torch.randn(12, 4, generator=rng, dtype=float64)
        self.shift = torch.randn(12, generator=rng, dtype=float64)
        self.matrix = torch.randn(6, 12, generator=rng, dtype=float64) / 12**0.5
        self.sigma = sigma
        z = torch.randn(4, generator=rng, dtype=float64)
        noise = torch.randn(6, generator=rng, dtype=float64)
        self.y = self.matrix @ (self.weight @ z + self.shift) + sigma * noise

    def model(self, y: Tensor, sigma: float | None = None) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=float64), 1.0).to_event(1))
        x = pyro.deterministic("x", z @ self.weight.T + self.shift)
        noise = self.sigma if sigma is None else sigma
        pyro.sample("y", dist.Normal(x @ self.matrix.T, noise).to_event(1), obs=y)

    def posterior(self) -> tuple[Tensor, Tensor]:
        forward = self.matrix @ self.weight
        precision = torch.eye(4, dtype=float64) + forward.T @ forward / self.sigma**2
        covariance = torch.linalg.inv(precision)
        residual = self.y - self.matrix @ self.shift
        return covariance @ (forward.T @ residual) / self.sigma**2, covariance


@pytest.mark.parametrize("name", SAMPLERS)
def test_linear_generator_and_gaussian_noise(name: str) -> None:
    problem = LinearProblem()
    draws = sample(SAMPLERS[name], problem.model, problem.y)
    moment_report(name, draws, *problem.posterior()).raise_if_failed()


def test_linear_generator_with_a_wrong_noise_scale_is_rejected() -> None:
    problem = LinearProblem()
    draws = sample(HMC(), lambda y: problem.model(y, sigma=0.33), problem.y)
    assert not moment_report("", draws, *problem.posterior()).passed


def gamma_model(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=float64), 1.0))
    pyro.sample("y", dist.Exponential(rate).expand([3]).to_event(1), obs=y)


def gamma_report(draws: Tensor, y: Tensor) -> MethodReport:
    """Conjugate: rate | y ~ Gamma(2 + 3, 1 + sum y). Compares rate and rate^2."""
    shape, rate = 5.0, 1.0 + float(y.sum())
    moments = [1.0]
    for k in range(4):
        moments.append(moments[-1] * (shape + k) / rate)
    x = draws.exp()[..., 0]
    features = torch.stack([x, x.square()], dim=-1)
    mean = torch.tensor(moments[1:3], dtype=float64)
    second = torch.tensor([[moments[2], moments[3]], [moments[3], moments[4]]], dtype=float64)
    return moment_report("gamma", features, mean, second - torch.outer(mean, mean))


@pytest.mark.parametrize("name", SAMPLERS)
def test_positive_support_through_its_transform(name: str) -> None:
    y = torch.tensor([0.5, 0.2, 1.0], dtype=float64)
    gamma_report(sample(SAMPLERS[name], gamma_model, y), y).raise_if_failed()


def test_positive_support_without_the_jacobian_is_rejected() -> None:
    y = torch.tensor([0.5, 0.2, 1.0], dtype=float64)
    draws = sample(HMC(), gamma_model, y, jacobian=False)
    assert not gamma_report(draws, y).passed


@pytest.mark.parametrize(
    ("sampler", "draws"),
    # Random-walk behaviour: MALA needs about a thousand steps to forget, HMC some tens.
    [(HMC(trajectory=10.0), 500), pytest.param(MALA(), 20_000, marks=pytest.mark.slow)],
    ids=["hmc", "mala"],
)
def test_fifty_dimensions_with_condition_number_1000(sampler: Sampler, draws: int) -> None:
    target = GaussianTarget.with_condition(50, 1000.0)
    check_method(sampler, target, draws=draws, warmup=draws).raise_if_failed()


def test_fifty_dimensions_with_one_variance_too_large_are_rejected() -> None:
    right = GaussianTarget.with_condition(50, 1000.0)
    covariance = right.covariance.clone()
    covariance[0, 0] *= 1.3
    wrong = GaussianTarget(right.mean, covariance)
    rng = torch.Generator().manual_seed(0)
    start = right.starts(64, rng)
    run = run_sampler(HMC(trajectory=10.0), right, start, rng, draws=500, warmup=500)
    assert not moment_report("", run.position, wrong.mean, wrong.covariance).passed
