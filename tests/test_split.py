"""Prior and likelihood apart, and which coordinates have a normal prior."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import infer
from bayesgen.errors import ModelError
from bayesgen.inference import SMC, ParallelTempering
from bayesgen.inference.checks import GaussianTarget, moment_report
from bayesgen.inference.standardised import Standardised
from bayesgen.log_density import LogDensity

pytestmark = pytest.mark.usefixtures("recorded_at_once")

float64 = torch.float64


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.ones(3).to(y), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()).to(y), 1.0))
    pyro.factor("penalty", -(z[0] ** 4))
    pyro.sample("y", dist.Normal(z, scale).to_event(1), obs=y)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("lead", [(), (5,)])
@pytest.mark.parametrize("batch", [(4,), (4, 2), (0,)])
def test_the_parts_add_up(
    dtype: torch.dtype, lead: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    y = torch.arange(3.0, dtype=dtype).expand(*lead, 3).clone()
    log_density = LogDensity(model, y, batched=bool(lead))
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(*lead, *batch, 4, generator=rng, dtype=dtype)
    for density in (log_density, Standardised(log_density)):
        parts, (value, gradient) = density.split(v), density.value_and_grad(v)
        torch.testing.assert_close(parts.prior + parts.likelihood, value)
        torch.testing.assert_close(parts.prior_gradient + parts.likelihood_gradient, gradient)


def test_the_prior_is_that_of_the_unconstrained_sites() -> None:
    v = torch.tensor([[0.5, -1.0, 2.0, 0.3]], dtype=float64)
    parts = LogDensity(model, torch.zeros(3, dtype=float64)).split(v)
    one = torch.ones(3, dtype=float64)
    # The logarithm of a log-normal variable is normal: its Jacobian belongs to the prior.
    expected = dist.Normal(one, 2.0).log_prob(v[0, :3]).sum() + dist.Normal(
        0.0 * one[0], 1.0
    ).log_prob(v[0, 3])
    torch.testing.assert_close(parts.prior[0], expected)
    likelihood = dist.Normal(v[0, :3], v[0, 3].exp()).log_prob(torch.zeros(3)).sum() - 0.5**4
    torch.testing.assert_close(parts.likelihood[0], likelihood)


def test_rows_may_be_left_out() -> None:
    density = Standardised(LogDensity(model, torch.zeros(3, dtype=float64)))
    v = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=float64)
    where = torch.zeros(40, dtype=torch.bool)
    where[[3, 17]] = True
    few, all_ = density.split(v, where=where), density.split(v)
    for ours, expected in zip(few, all_, strict=True):
        torch.testing.assert_close(ours[where], expected[where])


def test_normal_priors_are_found_and_others_are_not() -> None:
    log_density = LogDensity(model, torch.zeros(3))
    mean, precision = log_density.normal_prior
    assert mean.tolist() == [1.0, 1.0, 1.0, 0.0] and precision.tolist() == [0.25, 0.25, 0.25, 0.0]
    mean, precision = Standardised(log_density).normal_prior
    assert mean.tolist() == [0.5, 0.5, 0.5, 0.0] and precision.tolist() == [1.0, 1.0, 1.0, 0.0]

    def scaled(y: Tensor) -> None:
        with pyro.poutine.scale(scale=3.0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        u = pyro.sample("u", dist.Normal(z, 1.0))
        pyro.sample("y", dist.Normal(u, 1.0), obs=y)

    assert not LogDensity(scaled, torch.tensor(0.0)).normal_prior[1].any()


def test_improper_priors_cannot_be_split() -> None:
    def improper(y: Tensor) -> None:
        flat = dist.ImproperUniform(dist.constraints.positive, (), ())
        scale = pyro.sample("scale", flat)
        pyro.sample("y", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=y)

    log_density = LogDensity(improper, torch.ones(3))
    with pytest.raises(ModelError, match=r"priors of \['scale'\] are improper"):
        log_density.split(torch.zeros(1, 1))


def test_a_density_without_parts_says_so() -> None:
    class Plain:
        num_dims = 1

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            return -0.5 * v[..., 0] ** 2, -v

    with pytest.raises(ModelError, match="has no split"):
        Standardised(Plain()).split(torch.zeros(1, 1))
    assert Standardised(Plain()).normal_prior[1].tolist() == [0.0]


def test_the_gaussian_target_splits() -> None:
    target, rng = GaussianTarget.with_condition(3, 10.0), torch.Generator().manual_seed(0)
    v = target.prior_draws(200_000, rng)
    parts, (value, gradient) = target.split(v), target.value_and_grad(v)
    torch.testing.assert_close(parts.prior + parts.likelihood, value)
    torch.testing.assert_close(parts.prior_gradient + parts.likelihood_gradient, gradient)
    weights = parts.likelihood.exp()
    error = float(weights.std() / len(v) ** 0.5 / weights.mean())
    assert error < 0.05 and abs(float(weights.mean().log()) - target.log_evidence) < 5 * error


@pytest.mark.parametrize("weight", [0.1, 9.0])
def test_weights_of_priors_belong_to_the_likelihood(weight: float) -> None:
    """Draws from the prior follow the law that tempering begins at, whatever the prior counts."""

    def weighted(y: Tensor) -> None:
        with pyro.poutine.scale(scale=weight):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=float64), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y, v = torch.tensor(2.0, dtype=float64), torch.linspace(-2, 2, 5, dtype=float64)[:, None]
    log_density = LogDensity(weighted, y)
    parts, (value, _) = log_density.split(v), log_density.value_and_grad(v)
    torch.testing.assert_close(parts.prior, dist.Normal(0.0, 1.0).log_prob(v[:, 0]))
    torch.testing.assert_close(parts.prior + parts.likelihood, value)


@pytest.mark.parametrize("method", ["smc", "pt"])
def test_tempering_with_a_weighted_prior(method: str) -> None:
    """The posterior of a prior that counts nine times is N(0.2, 0.1)."""

    def weighted(y: Tensor) -> None:
        with pyro.poutine.scale(scale=9.0):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=float64), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    weak = {
        "smc": SMC(particles=512, moves=1, max_moves=1, leapfrog=1),
        "pt": ParallelTempering(replicas=4),
    }
    posterior = infer(
        weighted,
        torch.tensor(2.0, dtype=float64),
        method=weak[method],
        chains=32,
        draws=512,
        progress=False,
    )
    draws = posterior.draws("z")[..., None]
    truth = torch.tensor([0.2], dtype=float64), torch.tensor([[0.1]], dtype=float64)
    moment_report(method, draws, *truth).raise_if_failed()
