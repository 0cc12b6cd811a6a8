"""Least squares and priors with kinks: found where they are, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from bayesgen.distributions import GaussianNoise, LaplaceNoise, StructuredNormal, TotalVariation
from bayesgen.errors import OptionError
from bayesgen.inference.standardised import Standardised
from bayesgen.log_density import LogDensity
from bayesgen.operators import GaussianMatrix
from bayesgen.traces import normalised_residuals

pytestmark = pytest.mark.usefixtures("recorded_at_once")

float64 = torch.float64
Model = Callable[[Tensor], None]


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


MATRIX, Y = random(6, 4), random(6, seed=1)
FACTOR = torch.eye(6, dtype=float64) + 0.3 * random(6, 6, seed=2).tril(-1)
STD = torch.linspace(0.2, 1.0, 6, dtype=float64)
IMAGE = random(2, 2, seed=3)
OPERATOR = GaussianMatrix((2, 2), 6, seed=0, dtype=float64)


def standard(*shape: int, scale: float = 1.0) -> dist.Distribution:
    return dist.Normal(torch.zeros(shape, dtype=float64), scale).to_event(len(shape))


def nonlinear(y: Tensor) -> None:
    z = pyro.sample("z", standard(4, scale=3.0))
    pyro.sample("y", dist.Normal((MATRIX @ z).tanh(), 0.3).to_event(1), obs=y)


def plates(y: Tensor) -> None:
    with pyro.plate("groups", 2):
        m = pyro.sample("m", standard(2))
    pyro.deterministic("x", m.sum())
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(MATRIX @ m.flatten(), STD), obs=y)


def scaled(y: Tensor) -> None:
    z = pyro.sample("z", standard(4))
    with poutine.scale(scale=0.25):
        pyro.sample("y", dist.Normal(MATRIX @ z.sin(), 0.5).to_event(1), obs=y)


def multivariate(y: Tensor) -> None:
    covariance = torch.eye(4, dtype=float64) + 0.5
    z = pyro.sample("z", dist.MultivariateNormal(torch.ones(4, dtype=float64), covariance))
    pyro.sample("y", dist.MultivariateNormal(MATRIX @ z, scale_tril=FACTOR), obs=y)


def structured(y: Tensor) -> None:
    law = StructuredNormal(IMAGE, 0.5, torch.full((4, 1, 1), -0.3, dtype=float64))
    u = pyro.sample("u", law)
    pyro.sample("y", GaussianNoise(OPERATOR(u.exp()), 0.4), obs=y)


def data_in_an_operator(y: Tensor) -> None:
    u = pyro.sample("u", standard(2, 2))
    pyro.sample("y", GaussianNoise(OPERATOR(u - OPERATOR.adjoint(y)), 0.4), obs=y)


def correlated_noise(y: Tensor) -> None:
    u = pyro.sample("u", standard(2, 2))
    pyro.sample("y", GaussianNoise(OPERATOR(u.tanh()), cholesky=FACTOR), obs=y)


def in_a_loop(y: Tensor) -> None:
    z = pyro.sample("z", standard(4))
    shift = 1.0 if float(z.detach().sum()) > 1e6 else 0.0
    pyro.sample("y", dist.Normal(MATRIX @ z.sin() + shift, 0.5).to_event(1), obs=y)


FITTING: list[Model] = [
    nonlinear,
    plates,
    scaled,
    multivariate,
    structured,
    data_in_an_operator,
    correlated_noise,
]


def laplace_noise(y: Tensor) -> None:
    z = pyro.sample("z", standard(4))
    pyro.sample("y", LaplaceNoise(MATRIX @ z, 0.5), obs=y)


def latent_scale_of_data(y: Tensor) -> None:
    s = pyro.sample("s", standard())
    pyro.sample("y", dist.Normal(torch.zeros(6, dtype=float64), s.exp()).to_event(1), obs=y)


def latent_scale_of_prior(y: Tensor) -> None:
    s = pyro.sample("s", standard())
    z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=float64), s.exp()).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX @ z, 0.5).to_event(1), obs=y)


def latent_covariance(y: Tensor) -> None:
    s = pyro.sample("s", standard())
    pyro.sample(
        "y", dist.MultivariateNormal(torch.zeros(6).double(), scale_tril=FACTOR * s.exp()), obs=y
    )


def masked(y: Tensor) -> None:
    z = pyro.sample("z", standard(4))
    with poutine.mask(mask=torch.arange(6) > 1):
        pyro.sample("y", dist.Normal(MATRIX @ z, 0.5), obs=y)


def factor(y: Tensor) -> None:
    z = pyro.sample("z", standard(4))
    pyro.factor("energy", -z.square().sum())
    pyro.sample("y", dist.Normal(MATRIX @ z, 0.5).to_event(1), obs=y)


def positive(y: Tensor) -> None:
    z = pyro.sample("z", dist.LogNormal(torch.zeros(4, dtype=float64), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX @ z, 0.5).to_event(1), obs=y)


class Sine(torch.autograd.Function):
    """Without a forward derivative, as operators of other libraries are."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        return g * ctx.saved_tensors[0].cos()


def no_forward_derivative(y: Tensor) -> None:
    z = pyro.sample("z", standard(4))
    pyro.sample("y", dist.Normal(MATRIX @ Sine.apply(z), 0.5).to_event(1), obs=y)


OTHERS: list[Model] = [
    laplace_noise,
    latent_scale_of_data,
    latent_scale_of_prior,
    latent_covariance,
    masked,
    factor,
    positive,
    no_forward_derivative,
]


def residual_at(log_density: LogDensity, v: Tensor) -> Tensor:
    found = normalised_residuals(log_density.trace(log_density.constrain(v)))
    assert found is not None
    return found


@pytest.mark.parametrize("model", FITTING)
def test_linearisation_is_that_of_the_residuals(model: Model) -> None:
    log_density = LogDensity(model, Y)
    least_squares = log_density.least_squares
    assert least_squares is not None
    v = random(2, 3, 4, seed=5)
    value, gradient, matrix = least_squares.linearise(v)
    exact = log_density.value_and_grad(v, jacobian=False)
    assert torch.allclose(value, -exact[0], rtol=1e-10, atol=1e-10)
    assert torch.allclose(gradient, -exact[1], rtol=1e-10, atol=1e-10)
    assert matrix.shape == (2, 3, 4, 4)
    for i in range(2):
        for j in range(3):
            J = torch.autograd.functional.jacobian(lambda v: residual_at(log_density, v), v[i, j])
            assert torch.allclose(matrix[i, j], J.T @ J, rtol=1e-10, atol=1e-10)
    assert least_squares.linearise(v[:, :0])[2].shape == (2, 0, 4, 4)


def test_units_of_the_prior() -> None:
    log_density = LogDensity(nonlinear, Y)
    density, w = Standardised(log_density), random(2, 4, seed=5)
    assert density.is_least_squares and float(density.scale.max()) == 3.0
    value, gradient, matrix = density.linearise(w)
    plain = log_density.least_squares.linearise(3 * w)  # type: ignore[union-attr]
    for found, expected in zip((value, gradient, matrix), plain, strict=True):
        factor = 3 ** (found.ndim - 1)
        assert torch.allclose(found, factor * expected, rtol=1e-12)


def test_models_that_run_in_a_loop() -> None:
    with pytest.warns(RuntimeWarning, match="runs in a loop"):
        log_density = LogDensity(in_a_loop, Y)
    assert not log_density.vectorised
    # A number read off a tensor has no forward derivative either.
    if log_density.least_squares is not None:
        v = random(2, 4, seed=5)
        value, gradient, _ = log_density.least_squares.linearise(v)
        exact = log_density.value_and_grad(v)
        assert torch.allclose(value, -exact[0]) and torch.allclose(gradient, -exact[1])


@pytest.mark.parametrize("model", OTHERS)
def test_not_least_squares(model: Model) -> None:
    assert LogDensity(model, Y).least_squares is None


@pytest.mark.parametrize("model", FITTING)
def test_problems_are_linearised_on_their_own(model: Model) -> None:
    data, v = torch.stack([Y, 2 * Y, -Y]), random(3, 2, 4, seed=5)
    together = LogDensity(model, data, batched=True).least_squares
    assert together is not None
    parts = together.linearise(v)
    for i in range(3):
        alone = LogDensity(model, data[i]).least_squares
        assert alone is not None
        for part, expected in zip(parts, alone.linearise(v[i]), strict=True):
            assert torch.allclose(part[i], expected, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- kinks


def sparse(y: Tensor) -> None:
    z = pyro.sample("z", standard(4))
    scale = torch.linspace(0.2, 1.0, 6, dtype=float64)
    u = pyro.sample("u", dist.Laplace(torch.zeros(6, dtype=float64), scale).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX @ z.tanh() + u, 0.3).to_event(1), obs=y)


def plated(y: Tensor) -> None:
    with pyro.plate("pixels", 6):
        u = pyro.sample("u", dist.Laplace(torch.zeros((), dtype=float64), 0.7))
        pyro.sample("y", dist.Normal(u, 0.3), obs=y)


def edges(y: Tensor) -> None:
    u = pyro.sample("u", TotalVariation((2, 3), 0.5, dtype=float64))
    w = pyro.sample("w", dist.Laplace(torch.zeros(6, dtype=float64), 0.7).to_event(1))
    pyro.sample("y", dist.Normal(u.flatten() + w, 0.3).to_event(1), obs=y)


def under_scale(y: Tensor) -> None:
    with poutine.scale(scale=0.5):
        u = pyro.sample("u", TotalVariation((2, 3), 0.5, dtype=float64))
        w = pyro.sample("w", dist.Laplace(torch.zeros(6, dtype=float64), 0.7).to_event(1))
    pyro.sample("y", dist.Normal(u.flatten() + w, 0.3).to_event(1), obs=y)


def under_mask(y: Tensor) -> None:
    with poutine.mask(mask=torch.tensor(False)):
        u = pyro.sample("u", TotalVariation((2, 3), 0.5, dtype=float64))
    pyro.sample("y", dist.Normal(u.flatten(), 0.3).to_event(1), obs=y)


def latent_scale(y: Tensor) -> None:
    s = pyro.sample("s", standard())
    u = pyro.sample("u", dist.Laplace(torch.zeros(6, dtype=float64), s.exp()).to_event(1))
    pyro.sample("y", dist.Normal(u, 0.3).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (sparse, ["u"]),
        (plated, ["u"]),
        (edges, ["u", "w"]),
        (under_scale, []),
        (under_mask, []),
        (latent_scale, []),
        (nonlinear, []),
        (positive, []),
    ],
)
def test_priors_with_proximal_maps(model: Model, names: list[str]) -> None:
    assert list(LogDensity(model, Y).proximal) == names
    assert list(LogDensity(model, torch.stack([Y, -Y]), batched=True).proximal) == names


@pytest.mark.parametrize("model", [sparse, plated, edges, latent_scale])
@pytest.mark.parametrize("batched", [False, True])
def test_smooth_part_and_penalty_add_up(model: Model, batched: bool) -> None:
    log_density = LogDensity(model, torch.stack([Y, -Y]) if batched else Y, batched=batched)
    density = Standardised(log_density)
    v = random(2, 3, log_density.num_dims, seed=5)
    value, gradient = density.value_and_grad(v, jacobian=False)
    smooth, slope = density.value_and_grad(v, jacobian=False, smooth=True)
    w = v.clone().requires_grad_()
    penalty = density.penalty(w)
    assert penalty.shape == (2, 3)
    assert torch.allclose(smooth - penalty, value, rtol=1e-12)
    if log_density.proximal:
        (rest,) = torch.autograd.grad(penalty.sum(), w)
        assert float(rest.abs().max()) > 0.1
        assert torch.allclose(slope - rest, gradient, rtol=1e-10, atol=1e-10)
    else:
        assert torch.equal(slope, gradient) and not bool(penalty.any())


def test_proximal_steps_are_in_units_of_the_prior() -> None:
    """The step minimises |w - w0|^2 / (2 t) plus the penalty, both in these units."""
    density, w0 = Standardised(LogDensity(sparse, Y)), random(3, 10, seed=5)
    t = torch.tensor([0.1, 0.5, 2.0], dtype=float64)
    found, _ = density.proximal_step(w0, {"u": t}, {})

    def objective(w: Tensor) -> Tensor:
        return 0.5 * (w - w0).square().sum(-1) / t + density.penalty(w)

    assert torch.equal(found[:, :4], w0[:, :4]) and bool((found[:, 4:] == 0).any())
    for size in (1e-1, 1e-3):
        moved = found + size * random(200, 3, 10, seed=6)
        assert bool((objective(moved) >= objective(found) - 1e-12).all())


def test_a_map_that_is_not_there_is_explained() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        u = pyro.sample("u", dist.Laplace(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z + u, 1.0).to_event(1), obs=y)

    maps = LogDensity(model, torch.zeros(2)).proximal
    with pytest.raises(OptionError, match="site 'z': its prior has no proximal map; those of"):
        maps["z"]
    assert "z" not in maps and list(maps) == ["u"]
