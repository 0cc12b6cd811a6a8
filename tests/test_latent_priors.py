"""Latent priors: their densities by hand, their optima in closed form, and at a wall."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DtypeError, OptionError
from bayesgen.inference import MAP
from bayesgen.latent_priors import LatentPrior, box, own, sphere
from bayesgen.models import Generator, LinearGenerator

pytestmark = pytest.mark.usefixtures("recorded_at_once")

float64 = torch.float64
SIGMA = 0.3
LATENT = {"own": own(), "sphere": sphere(), "small": sphere(0.5), "box": box(1.5)}


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=float64)


def identity(dim: int, dtype: torch.dtype = float64) -> LinearGenerator:
    """The image is the latent vector."""
    return LinearGenerator.from_tensors(
        torch.eye(dim, dtype=dtype), torch.zeros(dim, dtype=dtype), noise_level=0.1
    )


def model_of(prior: LatentPrior, G: Generator, sigma: float = SIGMA) -> Callable[..., Any]:
    def model(y: Tensor | None = None) -> None:
        x = pyro.deterministic("x", G(prior(G)))
        pyro.sample("y", dist.Normal(x, sigma).to_event(x.ndim), obs=y)

    return model


def optimum(prior: LatentPrior, y: Tensor, sigma: float = SIGMA, **settings: Any) -> bg.Posterior:
    model = model_of(prior, identity(len(y), y.dtype), sigma)
    return bg.infer(model, y, method=MAP(**settings), chains=4, progress=False)


def normal(value: Tensor, mean: Any = 0.0, std: float = 1.0) -> Tensor:
    mean, std = torch.as_tensor(mean, dtype=float64), torch.as_tensor(std, dtype=float64)
    return dist.Normal(mean, std).log_prob(value).sum(-1)


def test_own_by_hand() -> None:
    y, z = random(3), random(5, 3, seed=1)
    density = bg.LogDensity(model_of(own(), identity(3)), y)
    torch.testing.assert_close(density.log_prob(z), normal(z) + normal(y, z, SIGMA))
    assert density.least_squares is not None


@pytest.mark.parametrize("radius", [None, 0.5])
def test_sphere_by_hand(radius: float | None) -> None:
    y, v = random(3), random(5, 3, seed=1)
    length = v.norm(dim=-1, keepdim=True)
    z = (radius or math.sqrt(3)) * v / length
    density = bg.LogDensity(model_of(sphere(radius), identity(3)), y)
    found = density.log_prob(v)
    expected = normal(v) + 3 * length[:, 0].log() + normal(y, z, SIGMA)
    torch.testing.assert_close(found, expected)
    # The exponent is the dimension; with any other the value differs.
    assert not torch.allclose(found, expected - length[:, 0].log())
    assert list(density.sites.latent) == ["direction"]
    assert density.sites.deterministic["z"] == (3,)


def test_box_by_hand() -> None:
    y, v = random(3), random(5, 3, seed=1)
    z = 1.5 * torch.tanh(v / 2)
    density = bg.LogDensity(model_of(box(1.5), identity(3)), y)
    torch.testing.assert_close(density.constrain(v)["z"], z)
    found = density.log_prob(v, jacobian=False)
    torch.testing.assert_close(found, -3 * math.log(3.0) * torch.ones(5) + normal(y, z, SIGMA))


def test_the_radial_mode_is_far_from_the_singularity() -> None:
    """Gradient zero and curvature 2 at |v| = sqrt(d), in whichever direction."""
    d = 6
    flat = bg.LogDensity(model_of(sphere(), identity(d), sigma=1e6), torch.zeros(d, dtype=float64))
    directions = torch.nn.functional.normalize(random(4, d), dim=1)

    def radial(log_prob: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        r = torch.full((4,), math.sqrt(d), dtype=float64, requires_grad=True)
        value = log_prob(r[:, None] * directions)
        (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), r)
        return slope.detach(), curvature

    slope, curvature = radial(flat.log_prob)
    torch.testing.assert_close(slope, torch.zeros(4, dtype=float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(curvature, torch.full((4,), -2.0, dtype=float64), rtol=0, atol=1e-9)
    # Without the factor the mode is at the origin.
    slope, _ = radial(normal)
    assert slope.max() < -2


def test_the_nearest_point_of_the_sphere() -> None:
    y = random(5)
    found = optimum(sphere(), y, tolerance=1e-9)
    exact = math.sqrt(5) * y / y.norm()
    assert bool(found.stats["converged"].all())
    torch.testing.assert_close(found.mode("x"), exact, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.mode("direction"), exact, rtol=0, atol=1e-7)
    assert (optimum(own(), y).mode("x") - exact).abs().max() > 0.1


def test_draws_are_uniform_on_the_sphere() -> None:
    """Without information: mean 0 and variance radius^2 / d, within five standard errors."""
    model = model_of(sphere(), identity(3), sigma=1e3)
    y = torch.zeros(3, dtype=float64)
    posterior = bg.infer(model, y, chains=8, draws=300, warmup=100, progress=False)
    z = posterior.draws("x").reshape(-1, 3)
    torch.testing.assert_close(z.norm(dim=1), torch.full((2400,), 3**0.5, dtype=float64))
    # A component of a point that is uniform on this sphere is uniform in [-sqrt 3, sqrt 3]. Half
    # of the draws count as independent.
    error = 5 / 1200**0.5
    assert z.mean(0).abs().max() < error
    assert (z.square().mean(0) - 1).abs().max() < error
    assert (z.pow(4).mean(0) - 9 / 5).abs().max() < 3 * error  # 3 if it were normal


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_optima_at_the_walls_of_a_box(sigma: float, dtype: torch.dtype) -> None:
    """Two coordinates are pulled through the walls, by 1.5 and by no more than 0.1; one is not."""
    y = torch.tensor([3.0, 0.5, -1.6], dtype=dtype)
    exact = torch.tensor([1.5, 0.5, -1.5], dtype=dtype)
    found = optimum(box(1.5), y, sigma)
    z = found.mode("z")
    # Slopes at the walls, in nats; the tolerance is 1e-3 in units of v's spread, about 2.
    slopes = torch.tensor([1.5, 1.0, 0.1], dtype=dtype) / sigma**2
    assert bool(((z - exact).abs() <= 2e-3 / slopes + 2e-3 * sigma + 1e-5).all())
    assert bool((z.abs() <= 1.5).all())
    assert (optimum(own(), y, sigma).mode("z") - exact).abs().max() > 0.05


def test_values_have_the_dtype_of_the_generator() -> None:
    for prior in LATENT.values():
        for dtype in (torch.float32, float64):
            G = identity(3, dtype)
            model = model_of(prior, G)
            assert bg.LogDensity(model, torch.zeros(3, dtype=dtype)).dtype is dtype


@pytest.mark.parametrize("name", LATENT)
def test_trained_generators_and_weights(name: str) -> None:
    """All run as recorded graphs, of which a warning would tell, also under a scale."""
    G = bg.models.load("mnist-vae-8")
    y = G(torch.full((8,), 0.4))

    def model(y: Tensor) -> None:
        with pyro.poutine.scale(scale=0.1):
            z = LATENT[name](G)
        pyro.sample("y", dist.Normal(G(z), 0.1).to_event(2), obs=y)

    density = bg.LogDensity(model, y)
    value, gradient = density.value_and_grad(density.prior_draws(3, torch.Generator()))
    assert density.vectorised
    assert bool(value.isfinite().all() and gradient.isfinite().all())


def test_what_is_refused() -> None:
    for radius in (0.0, -1.0, math.inf):
        with pytest.raises(OptionError, match="radius: got .*; expected a positive finite number"):
            sphere(radius)
    with pytest.raises(OptionError, match="half_width: got 0.0"):
        box(0.0)
    with pytest.raises(OptionError, match="sphere: in one latent dimension it is two points"):
        sphere()(identity(1))
    for prior in LATENT.values():
        with pytest.raises(DtypeError, match="G: expected a Generator, got Tensor"):
            prior(torch.zeros(3))  # type: ignore[arg-type]
