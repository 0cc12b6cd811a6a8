"""Noise models at observed sites: vectorised and recorded, found by MAP, diagnosed, refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen import distributions
from bayesgen.diagnostics import data_misfit
from bayesgen.distributions import (
    DataSpectrum,
    Deviation,
    GaussianNoise,
    ImageGivenData,
    IntegratedDeviation,
    IteratedDeviation,
    LaplaceNoise,
    Noise,
    PoissonGaussianNoise,
    PoissonNoise,
    RicianNoise,
    StructuredDeviation,
    StructuredNormal,
    StudentTNoise,
    TotalVariation,
)
from bayesgen.errors import DataError, DtypeError, ModelError, ShapeError
from bayesgen.log_density import LogDensity
from bayesgen.model_sites import isolated
from bayesgen.operators import Identity

pytestmark = pytest.mark.usefixtures("recorded_at_once")

float64 = torch.float64
Likelihood = Callable[..., Noise]


def _matrix(rows: int, columns: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(rows, columns, generator=rng, dtype=float64)


A = 0.5 * _matrix(6, 2)
SPECTRUM = DataSpectrum(Identity((2, 3)), A)
LINKS = 0.2 * _matrix(4, 6).reshape(4, 2, 3)
CHOLESKY = torch.eye(6, dtype=float64) + 0.2 * _matrix(6, 6).tril(-1)
ZERO, LEVEL = torch.zeros(2, dtype=float64), torch.tensor(-1.0, dtype=float64)
TRUTH = torch.tensor([0.8, -0.5], dtype=float64)
# Of a positive mean and a width that the model infers.
LIKELIHOODS: dict[str, Likelihood] = {
    "gaussian": GaussianNoise,
    "structured": lambda m, s, **more: StructuredNormal(m, -s.log(), LINKS / s, **more),
    "integrated": lambda m, s, event_dim=2, **more: IntegratedDeviation(
        m, SPECTRUM, s, 0.5, **more
    ),
    "full gaussian": lambda m, s, **more: GaussianNoise(m, cholesky=s * CHOLESKY, **more),
    "laplace": LaplaceNoise,
    "student t": lambda m, s, **more: StudentTNoise(m, s, 4.0, **more),
    "poisson": lambda m, s, **more: PoissonNoise(m, gain=0.25, background=s, **more),
    "poisson-gaussian": lambda m, s, **more: PoissonGaussianNoise(m, s, 0.25, s, **more),
    "rician": RicianNoise,
}

CORRELATED = [LIKELIHOODS[name] for name in ("structured", "integrated", "full gaussian")]


def image(z: Tensor) -> Tensor:
    return (A @ z).exp().reshape(2, 3)


def model_of(likelihood: Likelihood) -> Callable[[Tensor], None]:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(ZERO, 1.0).to_event(1))
        s = pyro.sample("s", dist.LogNormal(LEVEL, 0.3))
        x = pyro.deterministic("x", image(z))
        pyro.sample("y", likelihood(x, s), obs=y)

    return model


def data_of(likelihood: Likelihood, *shape: int) -> Tensor:
    noise = likelihood(image(TRUTH), torch.tensor(0.3, dtype=float64))
    with isolated(0):
        y: Tensor = noise.sample(torch.Size(shape))
    return y


@pytest.fixture(params=LIKELIHOODS)
def likelihood(request: pytest.FixtureRequest) -> Likelihood:
    return LIKELIHOODS[request.param]


def by_hand(likelihood: Likelihood, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Log density and gradient at one point, without Pyro's handlers, vmap or recording."""
    v = v.detach().requires_grad_()
    z, log_s = v[:2], v[2]
    value = dist.Normal(ZERO, 1.0).log_prob(z).sum() + dist.Normal(LEVEL, 0.3).log_prob(log_s)
    value = value + likelihood(image(z), log_s.exp()).log_prob(y)
    (gradient,) = torch.autograd.grad(value, v)
    return value.detach(), gradient


def test_every_class_is_tried() -> None:
    exported = {getattr(distributions, name) for name in distributions.__all__}
    one = torch.ones(2, 3, dtype=float64)
    tried = {type(make(one, one[0, 0])) for make in LIKELIHOODS.values()}
    # Of fixed widths only.
    others = {
        Noise,
        TotalVariation,
        DataSpectrum,
        Deviation,
        ImageGivenData,
        IteratedDeviation,
        StructuredDeviation,
    }
    assert {item for item in exported if inspect.isclass(item)} - others == tried


@pytest.mark.parametrize("chains", [1, 5])
def test_the_log_density_is_vectorised_recorded_and_right(
    likelihood: Likelihood, chains: int
) -> None:
    """A fallback would warn, and warnings are errors."""
    y = data_of(likelihood)
    log_density = LogDensity(model_of(likelihood), y)
    assert log_density.vectorised
    v = 0.7 * _matrix(chains, 3)
    value, gradient = log_density.value_and_grad(v)
    assert all(isinstance(graph, torch.fx.GraphModule) for graph in log_density._graphs.values())
    for i in range(chains):
        expected = by_hand(likelihood, y, v[i])
        assert torch.allclose(value[i], expected[0], rtol=1e-10)
        assert torch.allclose(gradient[i], expected[1], rtol=1e-9, atol=1e-9)
    other = LogDensity(model_of(likelihood), y, compile=False).value_and_grad(v)
    assert torch.allclose(other[0], value) and torch.allclose(other[1], gradient)


def test_looking_at_values_would_be_noticed() -> None:
    class Clipped(LaplaceNoise):
        def log_prob(self, value: Tensor) -> Tensor:
            log_prob = super().log_prob(value)
            return log_prob if log_prob > -1e9 else log_prob / 2

    with pytest.warns(RuntimeWarning, match="cannot be vectorised"):
        assert not LogDensity(model_of(Clipped), data_of(LaplaceNoise)).vectorised


def test_several_problems_at_once(likelihood: Likelihood) -> None:
    y, v = data_of(likelihood, 3), 0.7 * _matrix(3, 3).unsqueeze(1)
    value, _ = LogDensity(model_of(likelihood), y, batched=True).value_and_grad(v)
    expected = torch.stack([by_hand(likelihood, y[i], v[i, 0])[0] for i in range(3)])
    assert torch.allclose(value[:, 0], expected, rtol=1e-10)


def test_batch_dimensions_belong_to_plates(likelihood: Likelihood) -> None:
    y = data_of(likelihood, 4)

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(ZERO, 1.0).to_event(1))
        s = pyro.sample("s", dist.LogNormal(LEVEL, 0.3))
        with pyro.plate("images", 4):
            pyro.sample("y", likelihood(image(z).expand(4, 2, 3), s, event_dim=2), obs=y)

    v = 0.7 * _matrix(1, 3)
    value, _ = LogDensity(model, y).value_and_grad(v)
    mean, s = image(v[0, :2]), v[0, 2].exp()
    terms = torch.stack([likelihood(mean, s).log_prob(one) for one in y])
    expected = by_hand(likelihood, y[0], v[0])[0] + terms[1:].sum()
    assert torch.allclose(value[0], expected, rtol=1e-10)


def test_map_and_diagnostics(likelihood: Likelihood) -> None:
    y = data_of(likelihood)
    model = model_of(likelihood)
    posterior = bg.infer(model, y, method="map", progress=False)
    mode = posterior.mode("z"), posterior.mode("s")
    noise = likelihood(image(mode[0]), mode[1])

    def objective(z: Tensor, s: Tensor) -> Tensor:
        prior = dist.Normal(ZERO, 1.0).log_prob(z).sum() + dist.LogNormal(LEVEL, 0.3).log_prob(s)
        return prior + likelihood(image(z), s).log_prob(y)

    steps = 0.02 * _matrix(50, 3)
    values = torch.stack([objective(mode[0] + d[:2], mode[1] * d[2].exp()) for d in steps])
    assert (values <= objective(*mode) + 1e-6).all()
    misfit, count = data_misfit(posterior)
    expected = ((y - noise.mean).square() / noise.variance).sum()
    if likelihood in CORRELATED:
        # The density is normal: its fall from the peak is half of what is wanted.
        expected = 2 * (noise.log_prob(noise.mean) - noise.log_prob(y))
    assert count == 6 and torch.allclose(misfit, expected, rtol=1e-3)


def test_hmc_finds_the_exact_posterior() -> None:
    """Conjugate: Gamma(3, 2) and counts give Gamma(3 + sum k, 2 + number)."""
    y = torch.tensor([0.2, 0.5, 0.3, 0.7], dtype=float64)

    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0, dtype=float64), 2.0))
        pyro.sample("y", PoissonNoise((0.1 * rate).expand(4), gain=0.1), obs=y)

    posterior = bg.infer(model, y, draws=1000, progress=False)
    # 17 counts. Five standard errors of at least 1000 effective draws: 1e-6 by chance.
    spread = 20**0.5 / 6
    assert abs(float(posterior.mean("rate")) - 20 / 6) < 5 * spread / 1000**0.5


def linear_model(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.ones(3, dtype=float64), 1.0).to_event(1))
    pyro.sample("y", PoissonNoise(x, gain=0.5), obs=y)


def test_negative_intensities_are_impossible_but_harmless() -> None:
    y = torch.tensor([0.5, 1.0, 0.0], dtype=float64)
    v = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, 0.0]], dtype=float64)
    value, gradient = LogDensity(linear_model, y).value_and_grad(v)
    assert torch.isfinite(value).tolist() == [True, False, True]
    assert not value.isnan().any() and torch.isfinite(gradient).all()
    y = torch.tensor([0.5, 1.0, 3.0], dtype=float64)
    with pytest.raises(ModelError, match="start: the log density is not finite"):
        bg.infer(linear_model, y, method="map", chains=16, progress=False)
    start = {"x": torch.ones(3, dtype=float64)}
    posterior = bg.infer(linear_model, y, method="map", start=start, progress=False)
    # Stationary where count / x - 1 / gain = x - 1, the slope of the prior.
    exact = (-1 + (1 + 4 * y / 0.5).sqrt()) / 2
    assert torch.allclose(posterior.mode("x"), exact, rtol=1e-3)


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (torch.tensor([0.5, 0.7, 0.0]).double(), DataError, "argument 'y'.*multiples of gain"),
        (torch.tensor([0.5, -0.5, 0.0]).double(), DataError, "argument 'y'.*multiples of gain"),
        (torch.tensor([0.5, 1.0]).double(), ShapeError, r"argument 'y'.*\(2,\).*\(3,\)"),
        (torch.tensor([0.5, 1.0, 0.0]), DtypeError, "argument 'y'.*float32"),
    ],
)
def test_data_that_do_not_fit_are_refused(y: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LogDensity(linear_model, y)


def test_a_wrong_parameter_is_reported_with_its_line() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", GaussianNoise(x, std=-0.1), obs=y)

    with pytest.raises(DataError, match=r"in model\(\), line .*std=-0.1.*std: 1 of 1 values") as e:
        LogDensity(model, torch.zeros(3))
    assert not isinstance(e.value, ModelError) and len(str(e.value)) < 300


def test_counts_may_be_stored_as_integers() -> None:
    def model(y: Any) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0), 2.0))
        pyro.sample("y", PoissonNoise(rate.expand(3)), obs=y)

    v = torch.tensor([[0.3]])
    values = [LogDensity(model, y).log_prob(v) for y in (torch.arange(3), torch.arange(3.0))]
    assert torch.equal(*values)
