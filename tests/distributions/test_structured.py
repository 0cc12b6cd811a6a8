"""Structured Gaussian images against the dense multivariate normal, alone and in models.

Statistical tests run on fixed seeds and reject scores beyond 5.5 standard errors, which by chance
with other seeds is 4e-8 for each of at most 102 numbers: below 1e-5. The same scores reject the
wrong draws of `WRONG_DRAWS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import bayesgen as bg
from bayesgen.distributions import structured
from bayesgen.distributions.sparse_cholesky import multiply, solve
from bayesgen.distributions.structured import StructuredNormal
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.log_density import LogDensity
from bayesgen.model_sites import isolated
from bayesgen.numerics import gradient_error

pytestmark = pytest.mark.usefixtures("recorded_at_once")

float64 = torch.float64
SIZES = [(3, 4, 0), (3, 4, 1), (5, 3, 2), (4, 5, 3), (2, 3, 3), (1, 5, 2), (1, 1, 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


def parameters_of(height: int, width: int, radius: int, *batch: int) -> tuple[Tensor, ...]:
    loc = random(*batch, height, width, seed=1)
    log_diagonal = 0.5 * random(*batch, height, width, seed=2)
    maps = 2 * radius * (radius + 1)
    return loc, log_diagonal, 0.4 * random(*batch, maps, height, width, seed=3)


def precision_of(law: StructuredNormal) -> Tensor:
    """Dense, of the flattened image; from the definition of the density, not from the solves."""
    height, width = law.event_shape
    units = torch.eye(height * width, dtype=float64).unflatten(1, (height, width))
    rows = torch.stack([law.whiten(unit + law.loc) for unit in units]).flatten(-2)  # of L
    return rows @ rows.mT


def dense_of(law: StructuredNormal) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(law.mean.flatten(), precision_matrix=precision_of(law))


def draws_of(law: Any, num: int) -> Tensor:
    with isolated(0):
        draws: Tensor = law.sample((num,))
    return draws


def density_error(log_prob: Callable[[Tensor], Tensor], law: StructuredNormal) -> float:
    y = law.mean + 2 * random(20, *law.event_shape, seed=4)
    exact = dense_of(law).log_prob(y.flatten(-2))
    return float(((log_prob(y) - exact).abs() / exact.abs().clamp(min=1)).max())


@pytest.mark.parametrize("size", SIZES)
def test_log_density_and_moments(size: tuple[int, int, int]) -> None:
    law = StructuredNormal(*parameters_of(*size))
    exact, shape = dense_of(law), size[:2]
    assert density_error(law.log_prob, law) < 1e-10
    assert torch.equal(law.mean.flatten(), exact.mean)
    assert torch.allclose(law.variance, exact.variance.reshape(shape), rtol=1e-10)
    assert torch.allclose(law.entropy(), exact.entropy(), rtol=1e-10)
    assert torch.equal(law.stddev, law.variance.sqrt())
    v = random(2, *shape, seed=5)
    products = [
        (law.precision_matmul(v), exact.precision_matrix),
        (law.covariance_matmul(v), exact.covariance_matrix),
    ]
    for found, matrix in products:
        expected = (v.flatten(1) @ matrix).reshape(v.shape)
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10)
    assert torch.allclose(law.colour(law.whiten(v)), v, atol=1e-10)
    assert torch.allclose(law.whiten(law.colour(v)), v, atol=1e-10)


def test_the_neighbours_are_where_they_are_said_to_be() -> None:
    """One link: the residual of a pixel takes in that of the pixel below on its left."""
    off_diagonal = torch.zeros(4, 3, 3, dtype=float64)
    off_diagonal[1, 0, 2] = -0.5  # (1, -1)
    law = StructuredNormal(torch.zeros(3, 3, dtype=float64), 0.0, off_diagonal)
    x = random(3, 3)
    expected = x.clone()
    expected[0, 2] -= 0.5 * x[1, 1]
    assert torch.equal(law.whiten(x), expected)
    assert law.variance[0, 2] == 1.25 and law.variance.sum() == 9.25


def wrong_densities(law: StructuredNormal) -> dict[str, Callable[[Tensor], Tensor]]:
    factor, n = law.base_dist.factor, law.loc.numel()
    half_log_det = law.log_diagonal.sum()

    def density(white: Tensor, log_det: Tensor) -> Tensor:
        return -0.5 * white.square().sum((-2, -1)) + log_det - n / 2 * math.log(2 * math.pi)

    return {
        "right": lambda y: density(law.whiten(y), half_log_det),
        "L for its transpose": lambda y: density(multiply(factor, y - law.loc), half_log_det),
        "covariance for precision": lambda y: density(
            solve(factor, y - law.loc, transpose=True), -half_log_det
        ),
        "no log determinant": lambda y: density(law.whiten(y), 0 * half_log_det),
        "log determinant twice": lambda y: density(law.whiten(y), 2 * half_log_det),
        "no normaliser": lambda y: law.log_prob(y) + n / 2 * math.log(2 * math.pi),
        "no mean": lambda y: density(law.whiten(y + law.loc), half_log_det),
    }


def test_wrong_densities_are_noticed() -> None:
    law = StructuredNormal(*parameters_of(3, 4, 1))
    for name, density in wrong_densities(law).items():
        assert (density_error(density, law) < 1e-10) == (name == "right"), name


def test_independent_pixels() -> None:
    loc, log_diagonal, _ = parameters_of(3, 4, 0, 2)
    y = random(5, 2, 3, 4)
    for given in (0.3, log_diagonal, log_diagonal[0], log_diagonal[0, 0], log_diagonal[:, :, :1]):
        law = StructuredNormal(loc, given)
        std = (-torch.as_tensor(given, dtype=float64)).exp()
        same = dist.Normal(loc, std).to_event(2)
        assert torch.allclose(law.log_prob(y), same.log_prob(y), rtol=1e-12)
        assert torch.allclose(law.variance, same.variance, rtol=1e-12)
        assert torch.allclose(law.entropy(), same.entropy(), rtol=1e-12)
        assert law.off_diagonal.shape[-3] == 0


def test_channels_are_independent() -> None:
    loc, log_diagonal, off_diagonal = parameters_of(3, 4, 1, 5, 2)
    law = StructuredNormal(loc, log_diagonal, off_diagonal, event_dim=3)
    each = StructuredNormal(loc, log_diagonal, off_diagonal)
    y = random(6, 5, 2, 3, 4)
    assert (law.batch_shape, law.event_shape, law.event_dim) == ((5,), (2, 3, 4), 3)
    assert torch.allclose(law.log_prob(y), each.log_prob(y).sum(-1), rtol=1e-12)
    assert torch.allclose(law.entropy(), each.entropy().sum(-1), rtol=1e-12)
    assert torch.equal(law.variance, each.variance)
    assert torch.equal(draws_of(law, 3), draws_of(each, 3))
    # The channels may share the structure.
    shared = StructuredNormal(loc, log_diagonal[0, 0], off_diagonal[0, 0], event_dim=3)
    first = StructuredNormal(loc, log_diagonal[0, 0], off_diagonal[0, 0]).log_prob(y)
    assert torch.allclose(shared.log_prob(y), first.sum(-1), rtol=1e-12)
    own = StructuredNormal(loc[0], 0.0, off_diagonal[0, :, :, :1, :1], event_dim=3)
    alone = StructuredNormal(loc[0, 1], 0.0, off_diagonal[0, 1, :, :1, :1].expand(4, 3, 4))
    assert torch.allclose(own.variance[1], alone.variance, rtol=1e-12)


BATCHES: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    ((), (5,), ()),
    ((5,), (), ()),
    ((), (), (5,)),
    ((2, 1), (5,), (2, 1)),
    ((1,), (1,), (1,)),
    ((0,), (), ()),
    ((), (0,), (1,)),
]


@pytest.mark.parametrize(("of_loc", "of_diagonal", "of_others"), BATCHES)
def test_batches_broadcast(
    of_loc: tuple[int, ...], of_diagonal: tuple[int, ...], of_others: tuple[int, ...]
) -> None:
    loc = parameters_of(3, 4, 1, *of_loc)[0]
    log_diagonal = parameters_of(3, 4, 1, *of_diagonal)[1]
    off_diagonal = parameters_of(3, 4, 1, *of_others)[2]
    law = StructuredNormal(loc, log_diagonal, off_diagonal)
    batch = torch.broadcast_shapes(of_loc, of_diagonal, of_others)
    assert (law.batch_shape, law.event_shape) == (batch, (3, 4))
    full = (
        loc.expand(*batch, 3, 4).reshape(-1, 3, 4),
        log_diagonal.expand(*batch, 3, 4).reshape(-1, 3, 4),
        off_diagonal.expand(*batch, 4, 3, 4).reshape(-1, 4, 3, 4),
    )
    y = draws_of(law, 2)
    assert y.shape == (2, *batch, 3, 4) and law.log_prob(y).shape == (2, *batch)
    assert law.mean.shape == law.variance.shape == (*batch, 3, 4)
    assert law.entropy().shape == batch
    assert law.estimated_variance(3, torch.Generator().manual_seed(0)).shape == (*batch, 3, 4)
    for i, parameters in enumerate(zip(*full, strict=True)):
        single = StructuredNormal(*parameters)
        mine = y.reshape(2, -1, 3, 4)[:, i]
        assert torch.allclose(law.log_prob(y).reshape(2, -1)[:, i], single.log_prob(mine))
        assert torch.allclose(law.variance.reshape(-1, 3, 4)[i], single.variance)
        white = law.whiten(y).reshape(2, -1, 3, 4)[:, i]
        assert torch.allclose(single.whiten(mine), white, rtol=1e-10, atol=1e-12)


def test_expand_copies_nothing() -> None:
    law = StructuredNormal(*parameters_of(3, 4, 1, 5, 1))
    wide = law.expand((2, 5, 3))
    y = draws_of(wide, 1)[0]
    assert type(wide) is StructuredNormal
    assert (wide.batch_shape, wide.event_shape) == ((2, 5, 3), (3, 4))
    assert wide.mean.shape == wide.variance.shape == y.shape == (2, 5, 3, 3, 4)
    assert torch.allclose(wide.log_prob(y), law.log_prob(y), rtol=1e-12)
    assert torch.allclose(wide.whiten(y), law.whiten(y), rtol=1e-12)
    assert wide.base_dist.factor is law.base_dist.factor
    assert law.batch_shape == (5, 1) and law.expand_by((2,)).batch_shape == (2, 5, 1)
    shared = StructuredNormal(random(50, 3, 4), *parameters_of(3, 4, 1)[1:])
    assert shared.base_dist.factor.shape == (5, 3, 4)


def test_the_tools_of_pyro_apply() -> None:
    law = StructuredNormal(*parameters_of(3, 4, 1, 5))
    y = draws_of(law, 1)[0]
    assert repr(law) == "StructuredNormal(batch_shape=(5,), event_shape=(3, 4))"
    assert torch.allclose(law.to_event(1).log_prob(y), law.log_prob(y).sum())
    masked = law.mask(torch.arange(5) > 3).log_prob(y)
    assert (masked[:4] == 0).all() and masked[4] == law.log_prob(y)[4]
    assert law.support.check(y).all() and law.support.check(y).shape == (5,)
    assert law.has_rsample and not y.requires_grad


# ---------------------------------------------------------------------- draws

PARAMETERS = parameters_of(3, 4, 1)
LAW = StructuredNormal(*PARAMETERS)
FACTOR = LAW.base_dist.factor
NOISE = random(20_000, 3, 4, seed=6)
WRONG_DRAWS: dict[str, Tensor] = {
    "L for its transpose": LAW.loc + solve(FACTOR, NOISE),
    "product for solve": LAW.loc + multiply(FACTOR, NOISE, transpose=True),
    "no structure": LAW.loc + NOISE * LAW.stddev,
    "no mean": LAW.colour(NOISE) - LAW.loc,
    "upside down": LAW.loc + solve(FACTOR.flip(-2), NOISE, transpose=True),
    "diagonal squared": LAW.loc
    + solve(torch.cat([FACTOR[:1] ** 2, FACTOR[1:]]), NOISE, transpose=True),
}


def moment_score(draws: Tensor) -> float:
    """Largest deviation of the means and second moments, all 12 + 78, in standard errors."""
    exact = dense_of(LAW)
    residual = draws.flatten(1) - exact.mean
    i, j = torch.tril_indices(12, 12)
    products = residual[:, i] * residual[:, j]
    scores = [
        (sample.mean(0) - expected) / (sample.std(0) / math.sqrt(len(draws)))
        for sample, expected in [
            (residual, torch.zeros(12)),
            (products, exact.covariance_matrix[i, j]),
        ]
    ]
    return float(torch.cat(scores).abs().max())


def test_draws() -> None:
    assert moment_score(draws_of(LAW, 20_000)) < 5.5
    assert moment_score(LAW.colour(NOISE)) < 5.5


@pytest.mark.parametrize("name", WRONG_DRAWS)
def test_wrong_draws_are_rejected(name: str) -> None:
    assert moment_score(WRONG_DRAWS[name]) > 5.5


@pytest.mark.parametrize("chunk", [12, 2**22])
def test_estimated_variance_is_as_accurate_as_it_says(chunk: int) -> None:
    """Of 12 pixels; and the spread of many estimates is the one stated."""
    rng = torch.Generator().manual_seed(0)
    with mock.patch.object(structured, "_CHUNK", chunk):
        estimate = LAW.estimated_variance(2000, rng)
        again = LAW.estimated_variance(2000, torch.Generator().manual_seed(0))
    score = (estimate / LAW.variance - 1) / math.sqrt(2 / 2000)
    assert torch.equal(estimate, again) and float(score.abs().max()) < 5.5
    many = LAW.expand((500,)).estimated_variance(50, rng)
    assert torch.equal(many[0], many[1])  # what a batch shares is estimated once
    several = StructuredNormal(LAW.loc, LAW.log_diagonal.expand(500, 3, 4), LAW.off_diagonal)
    spread = (several.estimated_variance(50, rng) / LAW.variance - 1).std(0)
    # The standard deviation of 500 numbers, of kurtosis 3 + 12 / 50, to 3.4 %.
    assert ((spread / math.sqrt(2 / 50) - 1).abs() < 5.5 * 0.034).all()


def test_draws_carry_gradients() -> None:
    inputs = [t.clone() for t in parameters_of(3, 4, 1)]
    for i, x in enumerate(inputs):

        def total(x: Tensor, i: int = i) -> Tensor:
            law = StructuredNormal(*(x if j == i else t for j, t in enumerate(inputs)))
            with isolated(0):
                draws: Tensor = law.rsample((3,))
            return draws.pow(3).sum()

        assert gradient_error(total, x, random(*x.shape, seed=7)) < 1e-7


# ---------------------------------------------------------------------- derivatives, models


def test_first_and_second_derivatives() -> None:
    y = random(2, 3, 3, seed=8)
    inputs = [t.requires_grad_() for t in parameters_of(3, 3, 1)]

    def density(*inputs: Tensor) -> Tensor:
        return StructuredNormal(*inputs).log_prob(y)

    def variance(_: Tensor, *structure: Tensor) -> Tensor:
        return StructuredNormal(inputs[0].detach(), *structure).variance

    with isolated(0):
        assert torch.autograd.gradcheck(density, inputs)
        assert torch.autograd.gradgradcheck(density, inputs)
        assert torch.autograd.gradcheck(variance, inputs)
    value = density(*inputs).sum()
    dense = dense_of(StructuredNormal(*inputs)).log_prob(y.flatten(1)).sum()
    for a, b in zip(
        torch.autograd.grad(value, inputs), torch.autograd.grad(dense, inputs), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_vmapped_and_recorded() -> None:
    """Over images, and over the structure as when a network predicts it."""
    y, (loc, log_diagonal, off_diagonal) = random(3, 4), parameters_of(3, 4, 1, 5)

    def density(*parameters: Tensor) -> Tensor:
        law = StructuredNormal(*parameters)
        return law.log_prob(y) + law.variance.sum() + law.colour(y).sum()

    for in_dims in [(0, None, None), (0, 0, 0), (None, None, 0), (None, 0, None)]:
        inputs = [
            t if dim == 0 else t[0]
            for t, dim in zip((loc, log_diagonal, off_diagonal), in_dims, strict=True)
        ]
        evaluate = torch.func.grad_and_value(density, argnums=(0, 1, 2))
        single = [
            evaluate(*(t[i] if dim == 0 else t for t, dim in zip(inputs, in_dims, strict=True)))
            for i in range(5)
        ]
        batched = torch.func.vmap(evaluate, in_dims)
        with pyro.validation_enabled(False):
            for run in (batched, make_fx(batched)(*inputs)):
                gradients, value = run(*inputs)
                assert torch.allclose(value, torch.stack([v for _, v in single]), rtol=1e-12)
                for k in range(3):
                    expected = torch.stack([g[k] for g, _ in single])
                    assert torch.allclose(gradients[k], expected, rtol=1e-10, atol=1e-10)


A = 0.5 * random(12, 2, seed=9)
SPREAD = 0.3 * random(4 * 12, 2, seed=10)


def observed_model(y: Tensor) -> None:
    """Mean and structure depend on the latent vector, as they do for a generator."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=float64), 1.0).to_event(1))
    level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=float64), 0.5))
    off_diagonal = (SPREAD @ z).reshape(4, 3, 4)
    pyro.sample("y", StructuredNormal((A @ z).reshape(3, 4), level, off_diagonal), obs=y)


def prior_model(y: Tensor) -> None:
    x = pyro.sample("x", StructuredNormal(*PARAMETERS))
    pyro.sample("y", dist.Normal(x[:2], 0.5).to_event(2), obs=y)


def by_hand(model: Callable[[Tensor], None], y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Through dense matrices, at one point."""
    v = v.detach().requires_grad_()
    if model is observed_model:
        z, level = v[:2], v[2]
        value = dist.Normal(0.0, 1.0).log_prob(z).sum() + dist.Normal(0.0, 0.5).log_prob(level)
        law = StructuredNormal((A @ z).reshape(3, 4), level, (SPREAD @ z).reshape(4, 3, 4))
        value = value + dense_of(law).log_prob(y.flatten())
    else:
        value = dense_of(LAW).log_prob(v)
        value = value + dist.Normal(v.reshape(3, 4)[:2], 0.5).log_prob(y).sum()
    (gradient,) = torch.autograd.grad(value, v)
    return value.detach(), gradient


@pytest.mark.parametrize("model", [observed_model, prior_model])
@pytest.mark.parametrize("chains", [1, 5])
def test_in_a_model_it_is_vectorised_recorded_and_right(
    model: Callable[[Tensor], None], chains: int
) -> None:
    """A fallback would warn, and warnings are errors."""
    y = random(3, 4, seed=11) if model is observed_model else random(2, 4, seed=11)
    log_density = LogDensity(model, y)
    assert log_density.vectorised
    v = 0.7 * random(chains, log_density.num_dims, seed=12)
    value, gradient = log_density.value_and_grad(v)
    assert all(isinstance(graph, torch.fx.GraphModule) for graph in log_density._graphs.values())
    for i in range(chains):
        expected = by_hand(model, y, v[i])
        assert torch.allclose(value[i], expected[0], rtol=1e-10)
        assert torch.allclose(gradient[i], expected[1], rtol=1e-8, atol=1e-9)
    several = LogDensity(model, torch.stack([y, -y]), batched=True)
    values, _ = several.value_and_grad(v[:1].expand(2, 1, -1))
    assert torch.allclose(values[0, 0], value[0], rtol=1e-12)
    assert torch.allclose(values[1, 0], by_hand(model, -y, v[0])[0], rtol=1e-10)


def test_the_scale_of_a_prior_is_its_standard_deviation() -> None:
    log_density = LogDensity(prior_model, random(2, 4, seed=11))
    assert torch.allclose(log_density.scale, LAW.stddev.flatten())


def test_map_and_draws_find_the_exact_posterior() -> None:
    """Unobserved pixels are filled in through the structure."""
    y = random(2, 4, seed=11)
    observe = torch.eye(12, dtype=float64)[:8]
    precision = precision_of(LAW) + observe.T @ observe / 0.5**2
    shift = precision_of(LAW) @ LAW.loc.flatten() + observe.T @ y.flatten() / 0.5**2
    exact = torch.linalg.solve(precision, shift).reshape(3, 4)
    found = bg.infer(prior_model, y, method="map", progress=False)
    assert torch.allclose(found.mode("x"), exact, atol=1e-4)
    draws = bg.infer(prior_model, y, draws=1000, seed=0, progress=False)
    # At least 1000 effective draws of 12 pixels.
    error = torch.linalg.inv(precision).diagonal().reshape(3, 4).sqrt() / math.sqrt(1000)
    assert ((draws.mean("x") - exact).abs() < 5.5 * error).all()
    assert not torch.allclose(exact[2], LAW.loc[2], atol=0.05)


# ---------------------------------------------------------------------- dtypes, layout, size


def test_single_precision() -> None:
    parameters, y = parameters_of(9, 8, 2), random(4, 9, 8)
    single, double = (
        StructuredNormal(*(t.float() for t in parameters)),
        StructuredNormal(*parameters),
    )
    assert torch.allclose(single.log_prob(y.float()).double(), double.log_prob(y), rtol=1e-4)
    assert torch.allclose(single.variance.double(), double.variance, rtol=1e-3)
    draws = draws_of(single, 2)
    assert draws.dtype == single.mean.dtype == single.variance.dtype == torch.float32


def test_memory_layout_does_not_matter() -> None:
    loc, log_diagonal, off_diagonal = parameters_of(5, 4, 1, 3)
    y = random(3, 5, 4)
    law = StructuredNormal(loc, log_diagonal, off_diagonal)
    strided = StructuredNormal(
        loc.mT.contiguous().mT,
        log_diagonal.movedim(0, -1).contiguous().movedim(-1, 0),
        off_diagonal.mT.contiguous().mT,
    )
    assert torch.allclose(strided.log_prob(y.mT.contiguous().mT), law.log_prob(y), rtol=1e-12)
    assert torch.equal(draws_of(strided, 2), draws_of(law, 2))


def test_images_of_useful_size() -> None:
    """64 x 64 pixels, r = 2, a batch of 32: what comes back is what went in, and gradients."""
    loc = torch.zeros(32, 64, 64)
    log_diagonal = torch.ones(32, 64, 64, requires_grad=True)
    off_diagonal = (0.15 * random(32, 12, 64, 64)).float().requires_grad_()
    law = StructuredNormal(loc, log_diagonal, off_diagonal)
    x = draws_of(law, 1)[0]
    white = law.whiten(x).detach()
    assert torch.allclose(law.colour(white), x, atol=1e-4)
    # Chi-square with 131072 degrees of freedom.
    assert abs(float(white.square().mean()) - 1) < 5.5 * math.sqrt(2 / 131_072)
    for gradient in torch.autograd.grad(law.log_prob(x).sum(), (log_diagonal, off_diagonal)):
        assert torch.isfinite(gradient).all()


# ---------------------------------------------------------------------- refusals

ZEROS = torch.zeros(3, 4)
FOUR = torch.zeros(4, 3, 4)
RNG = torch.Generator()
REFUSALS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: StructuredNormal([1.0], 0.0), DtypeError, "loc must be a torch tensor, got list"),
    (lambda: StructuredNormal(ZEROS.int(), 0.0), DtypeError, "loc must be real floating-point"),
    (lambda: StructuredNormal(ZEROS, None), DtypeError, "log_diagonal must be a number"),
    (lambda: StructuredNormal(ZEROS, ZEROS.double()), DtypeError, "log_diagonal is torch.float64"),
    (lambda: StructuredNormal(ZEROS, 0.0, FOUR.double()), DtypeError, "off_diagonal is torch.fl"),
    (lambda: StructuredNormal(ZEROS[0], 0.0), ShapeError, r"loc.*\(4,\).*\(\*batch, y, x\)"),
    (lambda: StructuredNormal(ZEROS[:0], 0.0), ShapeError, r"loc.*\(0, 4\).*at least one pixel"),
    (
        lambda: StructuredNormal(ZEROS, 0.0, event_dim=3),
        ShapeError,
        r"loc.*\(\*batch, channel, y, x\)",
    ),
    (lambda: StructuredNormal(ZEROS, 0.0, event_dim=1), OptionError, "event_dim: got 1; exp"),
    (lambda: StructuredNormal(ZEROS, 0.0, event_dim=True), OptionError, "event_dim: got True"),
    (lambda: StructuredNormal(ZEROS, ZEROS.T), ShapeError, r"log_diagonal has shape \(4, 3\)"),
    (lambda: StructuredNormal(ZEROS[:1], ZEROS), ShapeError, "log_diagonal has shape"),
    (lambda: StructuredNormal(ZEROS, 0.0, ZEROS), ShapeError, r"off_diagonal.*\(3, 4\).*4, 12"),
    (lambda: StructuredNormal(ZEROS, 0.0, FOUR[:3]), ShapeError, r"off_diagonal.*\(3, 3, 4\)"),
    (lambda: StructuredNormal(ZEROS, 0.0, FOUR.mT), ShapeError, "off_diagonal has shape"),
    (
        lambda: StructuredNormal(ZEROS.expand(2, 3, 4), 0.0, FOUR.expand(3, 4, 3, 4)),
        ShapeError,
        "off_diagonal has shape",
    ),
    (lambda: StructuredNormal(ZEROS, ZEROS / 0), DataError, "log_diagonal: 12 of 12 .*finite"),
    (lambda: StructuredNormal(ZEROS, 0.0, FOUR / 0), DataError, "off_diagonal: 48 of 48"),
    (lambda: LAW.log_prob(torch.zeros(4, 3).double()), ShapeError, "value has shape"),
    (lambda: LAW.log_prob(ZEROS), DtypeError, "value is torch.float32.*loc torch.float64"),
    (lambda: LAW.whiten(ZEROS), DtypeError, "value is torch.float32"),
    (lambda: LAW.colour(torch.zeros(3, 5)), ShapeError, "value has shape"),
    (lambda: LAW.precision_matmul(torch.zeros(3, 5)), ShapeError, "value has shape"),
    (lambda: LAW.covariance_matmul(torch.zeros(3, 5)), ShapeError, "value has shape"),
    (lambda: LAW.estimated_variance(0, RNG), OptionError, "num_draws: .*got 0"),
    (lambda: LAW.estimated_variance(1.5, RNG), OptionError, "num_draws: .*got 1.5"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_refusals_name_the_argument_and_stay_short(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(str(caught.value)) < 250
    assert "tensor(" not in str(caught.value)
