"""A Pyro model as a batched function: values, gradients, transforms, fallbacks, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from bayesgen._batching import native_batch
from bayesgen.errors import DataError, DtypeError, ModelError, OptionError, ShapeError
from bayesgen.log_density import LogDensity

pytestmark = pytest.mark.usefixtures("recorded_at_once")

float64 = torch.float64


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=float64)


def _matrix(rows: int, cols: int) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(rows, cols, generator=rng, dtype=float64)


MATRIX = _matrix(6, 4)
DATA = _matrix(6, 1)[:, 0]


def linear(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(zeros(4), 1.0).to_event(1))
    x = pyro.deterministic("x", z * 2.0)
    pyro.sample("y", dist.Normal(x @ MATRIX.T, 0.5).to_event(1), obs=y)


def plates(y: Tensor) -> None:
    with pyro.plate("groups", 3):
        m = pyro.sample("m", dist.Normal(zeros(()), 1.0))
    s = pyro.sample("s", dist.LogNormal(zeros(()), 1.0))
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        pyro.sample("y", dist.Normal(m, s), obs=y.reshape(2, 3))


def simplex_and_interval(y: Tensor) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3, dtype=float64)))
    r = pyro.sample("r", dist.Uniform(zeros(()), 2.0))
    pyro.sample("y", dist.Normal(r * w[0], 1.0).expand([6]).to_event(1), obs=y)


def factors_and_masks(y: Tensor) -> None:
    z = pyro.sample("z", dist.StudentT(3.0, zeros(4), 1.0).to_event(1))
    pyro.factor("energy", -(z.square().sum() ** 2))
    with pyro.poutine.scale(scale=0.5), pyro.poutine.mask(mask=torch.arange(6) > 2):
        pyro.sample("y", dist.Normal(MATRIX @ z, 1.0), obs=y)


def several_observations(y: Tensor) -> None:
    z = pyro.sample("z", dist.Laplace(zeros(4), 1.0).to_event(1))
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=float64), 1.0))
    pyro.sample("y", dist.Normal(MATRIX @ z, 1.0).to_event(1), obs=y)
    pyro.sample("counts", dist.Poisson(rate).expand([3]).to_event(1), obs=torch.tensor([1, 0, 2]))


def mixture(y: Tensor) -> None:
    components = dist.Normal(torch.tensor([-1.0, 1.0], dtype=float64), 0.3)
    weights = dist.Categorical(torch.tensor([0.3, 0.7], dtype=float64))
    z = pyro.sample("z", dist.MixtureSameFamily(weights, components).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX @ z, 1.0).to_event(1), obs=y)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)).double()

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


NETWORK = Network()


def with_network(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(zeros(4), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(native_batch(NETWORK, z), 0.5).to_event(1), obs=y)


def with_pyro_module_statement(y: Tensor) -> None:
    network = pyro.module("network", NETWORK)
    z = pyro.sample("z", dist.Normal(zeros(4), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(network(z), 0.5).to_event(1), obs=y)


class Regression(PyroModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(zeros(4), 1.0).to_event(1))

    def forward(self, y: Tensor) -> None:
        pyro.sample("y", dist.Normal(MATRIX @ self.weight, 1.0).to_event(1), obs=y)


def dependent_priors(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0, dtype=float64)))
    z = pyro.sample("z", dist.Normal(zeros(4), scale).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX @ z, 1.0).to_event(1), obs=y)


MODELS: dict[str, Callable[..., None]] = {
    "linear": linear,
    "plates": plates,
    "simplex_and_interval": simplex_and_interval,
    "factors_and_masks": factors_and_masks,
    "several_observations": several_observations,
    "mixture": mixture,
    "with_network": with_network,
    "with_pyro_module_statement": with_pyro_module_statement,
    "pyro_module": Regression(),
    "dependent_priors": dependent_priors,
}


def by_hand(model: Callable[..., None], log_density: LogDensity, v: Tensor, y: Tensor) -> Tensor:
    """The log density of one point from Pyro's own trace, with the Jacobian from autograd."""
    values = log_density.constrain(v)
    trace = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(y)
    total = trace.log_prob_sum()
    for site in log_density.sites.latent.values():
        u = v[site.start : site.stop]
        jacobian = torch.autograd.functional.jacobian(
            lambda u, site=site: site.transform(u.reshape(site.unconstrained_shape)).flatten(), u
        )
        # A simplex has one coordinate fewer than entries; its density is over all but the last.
        square = jacobian[: len(u)]
        total = total + torch.linalg.slogdet(square).logabsdet
    return total


@pytest.mark.parametrize("name", MODELS)
def test_equals_pyro_one_chain_at_a_time(name: str, rng: torch.Generator) -> None:
    model = MODELS[name]
    with pyro.get_param_store().scope():
        log_density = LogDensity(model, DATA)
        v = log_density.prior_draws(5, rng)
        value, _ = log_density.value_and_grad(v)
        expected = torch.stack([by_hand(model, log_density, row, DATA) for row in v])
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    assert log_density.vectorised


@pytest.mark.parametrize("name", MODELS)
def test_gradient_equals_finite_differences(name: str, rng: torch.Generator) -> None:
    log_density = LogDensity(MODELS[name], DATA)
    v = log_density.prior_draws(3, rng)
    _, gradient = log_density.value_and_grad(v)
    step = 1e-6
    for i in range(log_density.num_dims):
        shift = torch.zeros_like(v)
        shift[:, i] = step
        up, down = (log_density.value_and_grad(v + sign * shift)[0] for sign in (1, -1))
        numeric = (up - down) / (2 * step)
        scale = 1.0 + gradient.abs().max()
        assert (numeric - gradient[:, i]).abs().max() <= 1e-6 * scale


@pytest.mark.parametrize("name", MODELS)
def test_recorded_loop_and_uncompiled_evaluations_agree(name: str, rng: torch.Generator) -> None:
    recorded = LogDensity(MODELS[name], DATA)
    direct = LogDensity(MODELS[name], DATA, compile=False)
    loop = LogDensity(MODELS[name], DATA)
    loop.vectorised = False
    v = recorded.prior_draws(7, rng)
    for batch in (v, v[:1], v[:0], v.reshape(7, 1, -1), v.T.contiguous().T):
        expected = direct.value_and_grad(batch)
        for other in (recorded, loop):
            for a, b in zip(other.value_and_grad(batch), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_what_is_evaluated_a_few_times_only_is_not_recorded(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording pays from some tens of evaluations on, and changes nothing but rounding."""
    monkeypatch.setattr("bayesgen.log_density.RECORD_AFTER", 3)
    log_density = LogDensity(plates, DATA)
    v = log_density.prior_draws(5, rng)
    found = []
    for call in range(5):
        found.append(log_density.value_and_grad(v))
        log_density.value_and_grad(v[:2])
        assert len(log_density._graphs) == (2 if call >= 3 else 0)
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-10, atol=1e-10)


def test_chains_as_many_as_data_are_not_broadcast_against_them(rng: torch.Generator) -> None:
    """Leading batch dimensions fed to the model itself would be silently wrong here."""
    log_density = LogDensity(plates, DATA)
    v = log_density.prior_draws(6, rng)
    value, _ = log_density.value_and_grad(v)
    single = torch.cat([log_density.value_and_grad(row[None])[0] for row in v])
    torch.testing.assert_close(value, single)


def test_without_jacobian_the_density_is_that_of_the_sites(rng: torch.Generator) -> None:
    def model(y: Tensor) -> None:
        s = pyro.sample("s", dist.Exponential(torch.tensor(1.0, dtype=float64)))
        pyro.sample("y", dist.Normal(0.0 * s, s).expand([6]).to_event(1), obs=y)

    log_density = LogDensity(model, DATA)
    v = log_density.prior_draws(4, rng)
    with_, _ = log_density.value_and_grad(v)
    without, _ = log_density.value_and_grad(v, jacobian=False)
    torch.testing.assert_close(with_ - without, v[:, 0])  # s = exp(v): log |ds/dv| = v


@pytest.mark.parametrize("name", MODELS)
def test_constrain_and_unconstrain_are_inverse(name: str, rng: torch.Generator) -> None:
    log_density = LogDensity(MODELS[name], DATA)
    v = log_density.prior_draws(4, rng)
    values = log_density.constrain(v)
    torch.testing.assert_close(log_density.unconstrain(values), v, rtol=1e-8, atol=1e-8)
    for site_name, site in log_density.sites.latent.items():
        assert values[site_name].shape == (4, *site.shape)
        assert bool(site.prior.support.check(values[site_name]).all())


@pytest.mark.parametrize("model", [linear, plates, with_network])
def test_problems_are_evaluated_as_if_alone(
    model: Callable[..., None], rng: torch.Generator
) -> None:
    data = torch.randn(3, 6, generator=rng, dtype=float64)
    batched = LogDensity(model, data, batched=True)
    assert batched.num_problems == 3
    v = batched.prior_draws(5, rng)
    assert v.shape == (3, 5, batched.num_dims)
    value, gradient = batched.value_and_grad(v)
    for i in range(3):
        alone = LogDensity(model, data[i])
        a, b = alone.value_and_grad(v[i])
        torch.testing.assert_close(value[i], a)
        torch.testing.assert_close(gradient[i], b)
        torch.testing.assert_close(batched.problem(i).value_and_grad(v[i])[0], a)
    loop = LogDensity(model, data, batched=True)
    loop.vectorised = False
    torch.testing.assert_close(loop.value_and_grad(v)[0], value)


@settings(max_examples=20, deadline=None)
@given(chains=st.integers(0, 9), extra=st.integers(1, 3))
def test_any_batch_shape(chains: int, extra: int) -> None:
    log_density = LogDensity(linear, DATA, compile=False)
    v = torch.linspace(-1, 1, chains * extra * 4, dtype=float64).reshape(chains, extra, 4)
    value, gradient = log_density.value_and_grad(v)
    assert value.shape == (chains, extra) and gradient.shape == v.shape


def test_prior_draws_have_the_priors_moments(rng: torch.Generator) -> None:
    for model, name, std in ((linear, "z", 1.0), (dependent_priors, "scale", None)):
        log_density = LogDensity(model, DATA)
        assert log_density.sites.prior_is_static is (std is not None)
        draws = log_density.constrain(log_density.prior_draws(2000, rng))[name]
        expected = std if std is not None else math.sqrt(1 - 2 / math.pi)
        # Standard error of a standard deviation is about std/sqrt(2 n); 4.5 of them.
        assert abs(float(draws.std()) - expected) < 4.5 * expected / math.sqrt(2 * 2000)


def test_scale_is_how_far_coordinates_range_under_the_prior() -> None:
    widths = torch.tensor([1e-3, 1.0, 10.0], dtype=float64)

    def model(y: Tensor) -> None:
        pyro.sample("a", dist.Normal(torch.zeros(3, dtype=float64), widths).to_event(1))
        s = pyro.sample("s", dist.LogNormal(zeros(()), 0.1))
        c = pyro.sample("c", dist.Cauchy(zeros(()), 2.0))
        pyro.sample("y", dist.Normal(c, s).expand([6]).to_event(1), obs=y)

    scale = LogDensity(model, DATA).scale
    assert torch.equal(scale[:3], widths)
    assert 0.07 < float(scale[3]) < 0.14 and 2.0 < float(scale[4]) < 6.0
    batched = LogDensity(model, DATA.expand(2, 6), batched=True)
    assert batched.scale.shape == (2, 1, 5)


def test_priors_that_depend_on_the_problem_are_drawn_for_each(rng: torch.Generator) -> None:
    def model(y: Tensor, centre: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(centre, 0.1))
        pyro.sample("y", dist.Normal(z, 1.0).expand([6]).to_event(1), obs=y)

    centres = torch.tensor([-5.0, 0.0, 5.0], dtype=float64)
    log_density = LogDensity(model, DATA.expand(3, 6), centres, batched=True)
    draws = log_density.prior_draws(20, rng)
    torch.testing.assert_close(draws.mean(1)[:, 0], centres, rtol=0, atol=0.2)


def test_prior_draws_depend_on_the_generator_alone() -> None:
    log_density = LogDensity(dependent_priors, DATA)
    first = log_density.prior_draws(3, torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = log_density.prior_draws(3, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, log_density.prior_draws(3, torch.Generator().manual_seed(2)))


def test_map_draws_runs_the_model_on_every_draw(rng: torch.Generator) -> None:
    log_density = LogDensity(linear, DATA)
    z = torch.randn(7, 4, generator=rng, dtype=float64)
    found = log_density.map_draws(lambda t: {"x": t.nodes["x"]["value"]}, {"z": z})
    torch.testing.assert_close(found["x"], 2.0 * z)


# ---------------------------------------------------------------------- models that need care


def test_a_model_that_cannot_be_vectorised_runs_in_a_loop_and_says_where() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(4), 1.0).to_event(1))
        sign = 1.0 if z[0] > 0 else -1.0
        pyro.sample("y", dist.Normal(sign * (MATRIX @ z), 1.0).to_event(1), obs=y)

    with pytest.warns(RuntimeWarning, match=r"if z\[0\] > 0"):
        log_density = LogDensity(model, DATA)
    assert not log_density.vectorised
    v = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], dtype=float64)
    value, _ = log_density.value_and_grad(v)
    for row, sign, found in zip(v, (1, -1), value, strict=True):
        expected = dist.Normal(zeros(4), 1.0).log_prob(row).sum()
        expected += dist.Normal(sign * (MATRIX @ row), 1.0).log_prob(DATA).sum()
        torch.testing.assert_close(found, expected)


def test_an_operator_that_is_wrong_for_batches_is_found_out() -> None:
    def wrong_for_batches(x: Tensor) -> Tensor:
        return x.flatten()[:4] @ MATRIX.T + 0.0 * x.sum()

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(native_batch(wrong_for_batches, z), 1.0).to_event(1), obs=y)

    with pytest.warns(RuntimeWarning, match="(leading batch|vectorised)"):
        log_density = LogDensity(model, DATA)
    v = torch.eye(4, dtype=float64)[:3]
    value, _ = log_density.value_and_grad(v)
    expected = dist.Normal(zeros(4), 1.0).log_prob(v).sum(-1)
    expected = expected + dist.Normal(v @ MATRIX.T, 1.0).log_prob(DATA).sum(-1)
    torch.testing.assert_close(value, expected)


def test_a_random_density_is_refused() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(4), 1.0).to_event(1))
        noise = nn.functional.dropout(z, 0.5)
        pyro.sample("y", dist.Normal(MATRIX @ noise, 1.0).to_event(1), obs=y)

    with pytest.raises(ModelError, match="eval mode"):
        LogDensity(model, DATA)


def test_discrete_sites_are_refused_with_the_remedy() -> None:
    def model(y: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k.double(), 1.0).expand([6]).to_event(1), obs=y)

    with pytest.raises(ModelError, match=r"'k'.*discrete.*MixtureSameFamily"):
        LogDensity(model, DATA)


def test_supports_that_depend_on_other_sites_are_refused_with_the_remedy() -> None:
    def model(y: Tensor, low: float) -> None:
        a = pyro.sample("a", dist.Uniform(zeros(()), 1.0))
        b = pyro.sample("b", dist.Uniform(low * a, a))
        pyro.sample("y", dist.Normal(b, 1.0).expand([6]).to_event(1), obs=y)

    for low in (0.0, -1.0):  # symmetric about zero, the support maps zero to zero whatever a is
        with pytest.raises(ModelError, match=r"'b'.*support depends"):
            LogDensity(model, DATA, low)


def test_supports_that_depend_on_the_problem_are_refused() -> None:
    def model(y: Tensor, top: Tensor) -> None:
        r = pyro.sample("r", dist.Uniform(zeros(()), top))
        pyro.sample("y", dist.Normal(r, 1.0).expand([6]).to_event(1), obs=y)

    tops = torch.tensor([1.0, 5.0, 1.0], dtype=float64)
    with pytest.raises(ModelError, match=r"'r'.*on the data"):
        LogDensity(model, DATA.expand(3, 6), tops, batched=True)


def test_data_outside_the_likelihoods_support_are_refused() -> None:
    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=float64), 1.0))
        pyro.sample("y", dist.Exponential(rate).expand([6]).to_event(1), obs=y)

    with pytest.raises(DataError, match=r"argument 'y'.*outside the support"):
        LogDensity(model, -DATA.abs())
    with pytest.raises(DataError, match=r"outside the support"):
        LogDensity(model, torch.stack([DATA.abs(), -DATA.abs()]), batched=True)


def test_a_model_that_looks_into_its_data_runs_unrecorded_and_says_where() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(()), 1.0))
        sign = 1.0 if y.mean() > 0 else -1.0
        pyro.sample("y", dist.Normal(sign * z, 1.0).expand([6]).to_event(1), obs=y)

    log_density = LogDensity(model, DATA)
    v = torch.linspace(-1, 1, 3, dtype=float64)[:, None]
    with pytest.warns(RuntimeWarning, match=r"recorded.*y.mean\(\) > 0"):
        value, _ = log_density.value_and_grad(v)
    torch.testing.assert_close(value, log_density.log_prob(v))


def test_weights_that_want_gradients_do_not_leak_them() -> None:
    with torch.random.fork_rng():
        network = nn.Linear(4, 6).double()
    assert network.weight.requires_grad

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(network(z), 1.0).to_event(1), obs=y)

    value, gradient = LogDensity(model, DATA).value_and_grad(torch.ones(3, 4, dtype=float64))
    assert not value.requires_grad and not gradient.requires_grad


def test_subsampling_plates_are_refused() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(()), 1.0))
        with pyro.plate("data", 6, subsample_size=2) as i:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    with pytest.raises(ModelError, match="subsample_size"):
        LogDensity(model, DATA)


def test_sites_that_come_and_go_are_refused() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(()), 1.0))
        for i in range(int(10 * z.abs())):
            pyro.sample(f"w{i}", dist.Normal(z, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0).expand([6]).to_event(1), obs=y)

    with pytest.raises(ModelError, match="some runs only"):
        LogDensity(model, DATA)


def test_nothing_latent_or_nothing_observed_is_refused() -> None:
    def no_latent(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(zeros(6), 1.0).to_event(1), obs=y)

    def no_data(y: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(zeros(6), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    with pytest.raises(ModelError, match="no latent site"):
        LogDensity(no_latent, DATA)
    with pytest.raises(ModelError, match=r"no observed site.*passed on to infer"):
        LogDensity(no_data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (DATA[:5], ShapeError, r"argument 'y' .*\(5,\).*\(6,\)"),
        (DATA[:1], ShapeError, r"argument 'y' .*\(1,\).*\(6,\)"),
        (DATA[None].repeat(2, 1), ShapeError, r"argument 'y' .*\(2, 6\).*\(6,\)"),
        (DATA.float(), DtypeError, r"argument 'y' .*float32.*float64"),
        (torch.ones(6, dtype=torch.int64), DtypeError, r"argument 'y' .*int64.*float64"),
        (torch.where(torch.arange(6) == 2, math.nan, DATA), DataError, r"'y'.*index \(2,\)"),
        (torch.where(torch.arange(6) == 0, math.inf, DATA), DataError, r"'y'.*1 of 6"),
        (DATA.to("meta"), DataError, r"argument 'y'.*no values"),
        ([1.0] * 6, DtypeError, r"'y'.*list.*torch.Tensor"),
    ],
)
def test_data_that_do_not_fit_are_refused_by_name(
    data: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LogDensity(linear, data)


def test_an_invalid_scale_is_reported_with_its_line() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(6), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, -0.05).to_event(1), obs=y)

    with pytest.raises(ModelError, match=r"dist.Normal\(z, -0.05\).*scale"):
        LogDensity(model, DATA)


def test_a_model_that_fails_is_reported_with_its_line() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(5), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(MATRIX @ z, 1.0).to_event(1), obs=y)

    with pytest.raises(ModelError, match=r"MATRIX @ z"):
        LogDensity(model, DATA)


def test_arguments_that_do_not_fit_the_signature() -> None:
    with pytest.raises(ModelError, match="signature"):
        LogDensity(linear)
    with pytest.raises(ModelError, match="expected a function"):
        LogDensity("linear", DATA)  # type: ignore[arg-type]


def test_batched_arguments_must_agree() -> None:
    def model(y: Tensor, scale: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(zeros(6), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, scale).to_event(1), obs=y)

    data, one = DATA.expand(3, 6), torch.ones((), dtype=float64)
    with pytest.raises(ShapeError, match=r"different leading axes.*'y': 3.*'scale': 2"):
        LogDensity(model, data, one.expand(2), batched=True)
    with pytest.raises(ShapeError, match="'scale' has no leading axis"):
        LogDensity(model, data, one, batched=True)
    with pytest.raises(ShapeError, match="zero problems"):
        LogDensity(model, data[:0], one.expand(0), batched=True)


def test_points_of_the_wrong_shape_are_refused() -> None:
    log_density = LogDensity(linear, DATA)
    with pytest.raises(ShapeError, match=r"\(3, 5\).*\*batch, 4"):
        log_density.value_and_grad(zeros(3, 5))
    with pytest.raises(ShapeError, match=r"values\['z'\].*\(5,\)"):
        log_density.unconstrain({"z": zeros(5)})
    with pytest.raises(OptionError, match=r"\['w'\].*\['z'\]"):
        log_density.unconstrain({"w": zeros(4)})


def test_latent_sites_of_different_dtypes_are_refused() -> None:
    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(zeros(6), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(a + b, 1.0).to_event(1), obs=y)

    with pytest.raises(DtypeError, match="different dtypes"):
        LogDensity(model, DATA)


@pytest.mark.parametrize("batched", [False, True])
def test_rows_that_nobody_wants_are_left_out(batched: bool) -> None:
    rows: list[int] = []

    def counted(v: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(v.shape[:-1].numel())
        shift = data[0].reshape(*data[0].shape[:-1], *(1,) * (v.ndim - data[0].ndim), -1)
        return (v + shift).sum(-1), v * 2

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) if batched else torch.ones(3)
    log_density = LogDensity(model, y, batched=batched, compile=False)
    v = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(1))
    every = log_density.evaluate("sum", counted, v)
    for wanted in ([], [3], [0, 7, 39], list(range(0, 40, 5)), list(range(20)), list(range(40))):
        where = torch.zeros(40, dtype=torch.bool)
        where[wanted] = True
        where = where.reshape(5, 8)
        found = log_density.evaluate("sum", counted, v, where)
        assert rows[-1] <= max(4, 4 * len(wanted))
        for a, b in zip(found, every, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a[where], b[where])
    # A row with another problem's data would be seen.
    assert not batched or not torch.allclose(every[0][0], every[0][1])
    value = log_density.value_and_grad(v, where=where)[0]
    torch.testing.assert_close(value, log_density.value_and_grad(v)[0])
