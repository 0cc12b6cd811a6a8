"""Penalties by hand, their gradients by differences, in batches, and inside models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.models import AE, GAN, VAE, WGAN, Generator, LinearGenerator
from bayesgen.numerics import gradient_error
from bayesgen.penalties import (
    Penalty,
    discriminator_loss,
    encoder_consistency,
    encoder_norm,
    image_total_variation,
)
from bayesgen.recording import record

pytestmark = pytest.mark.usefixtures("recorded_at_once")

float64 = torch.float64
SHAPE = (6, 5)
WEIGHT, SMOOTHING = 1.7, 0.05


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=float64)


def small(kind: Any) -> Any:
    """An untrained generator in double precision."""
    return kind(SHAPE, 3, width=6).double().eval().requires_grad_(False)


def tv_by_hand(x: Tensor) -> Tensor:
    total = torch.zeros((), dtype=x.dtype)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            down = x[i + 1, j] - x[i, j] if i + 1 < x.shape[0] else 0.0
            right = x[i, j + 1] - x[i, j] if j + 1 < x.shape[1] else 0.0
            total = total + math.sqrt(down**2 + right**2 + SMOOTHING**2) - SMOOTHING
    return total


def linear_logit(x: Tensor) -> Tensor:
    return 3 * x.mean() - 1


# The penalty of a generator, the generator, and what it should be, without its weight.
CASES: dict[str, tuple[Any, Any, Callable[[Any, Tensor], Tensor]]] = {
    "total variation": (
        lambda G, w: image_total_variation(w, SMOOTHING),
        VAE,
        lambda G, x: tv_by_hand(x),
    ),
    "discriminator": (
        discriminator_loss,
        GAN,
        lambda G, x: -torch.log(torch.sigmoid(G.discriminate(x))),
    ),
    "critic": (discriminator_loss, WGAN, lambda G, x: -G.critic(x[None, None])[0, 0]),
    "function": (
        lambda G, w: discriminator_loss(linear_logit, w),
        VAE,
        lambda G, x: -torch.log(torch.sigmoid(3 * x.mean() - 1)),
    ),
    "encoder norm": (encoder_norm, VAE, lambda G, x: G.encoding(x).mean.square().sum()),
    "consistency": (encoder_consistency, AE, lambda G, x: (x - G(G.encode(x))).square().sum()),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Penalty, Generator, Callable[[Tensor], Tensor]]:
    make, kind, by_hand = CASES[request.param]
    G = small(kind)
    return make(G, WEIGHT), G, lambda x: WEIGHT * by_hand(G, x)


def test_values_by_hand(case: Any) -> None:
    penalty, G, by_hand = case
    for seed in range(3):
        # Also images that the generator does not draw.
        for x in (G(random(3, seed=seed)), random(*SHAPE, seed=seed)):
            found = penalty(random(3), x)
            assert found.shape == ()
            torch.testing.assert_close(found, by_hand(x), rtol=1e-10, atol=1e-12)
            for wrong in (-by_hand(x), 2 * by_hand(x)):
                assert not torch.allclose(found, wrong, rtol=1e-6)


def test_gradients_by_differences(case: Any) -> None:
    penalty, G, _ = case
    for seed in range(3):
        # Latents that make images with more contrast than untrained weights do of smaller ones.
        z, direction = 5 * random(3, seed=seed), random(3, seed=seed + 10)
        assert gradient_error(lambda z: penalty(z, G(z)), z, direction) < 1e-6
        wrong = gradient_error(lambda z: penalty(z, G(z)) + penalty(z, G(z.detach())), z, direction)
        assert wrong > 1e-3


def test_batches_equal_loops(case: Any) -> None:
    penalty, G, _ = case
    z = random(4, 3)
    x = G(z)
    loop = torch.stack([penalty(*pair) for pair in zip(z, x, strict=True)])
    together = torch.func.vmap(penalty)(z, x)
    torch.testing.assert_close(together, loop)
    recorded = record(torch.func.vmap(penalty), z, x)
    torch.testing.assert_close(recorded(z.flip(0), x.flip(0)), loop.flip(0))
    assert loop.unique().numel() == 4


def test_models_take_them(case: Any) -> None:
    """As a factor, in a batch, in a recorded graph: of loops or Pyro's handlers a warning tells."""
    penalty, G, by_hand = case
    z, y = random(4, 3), G(random(3, seed=1))

    def model(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        x = G(z)
        pyro.factor("penalty", -penalty(z, x))
        pyro.sample("y", dist.Normal(x, 0.1).to_event(2), obs=y)

    density = bg.LogDensity(model, y)
    found, gradient = density.value_and_grad(z)
    one = torch.ones((), dtype=float64)
    expected = dist.Normal(0 * one, one).log_prob(z).sum(1)
    expected = expected + dist.Normal(G(z), 0.1 * one).log_prob(y).sum((1, 2))
    expected = expected - torch.stack([by_hand(x) for x in G(z)])
    assert density.vectorised
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert bool((gradient != 0).all())


TRAINED = {
    "total variation": ("mnist-vae-8", lambda G, w: image_total_variation(w), 10.0),
    "discriminator": ("mnist-gan-16", discriminator_loss, 100.0),
    "encoder norm": ("mnist-vae-8", encoder_norm, 50.0),
    "consistency": ("mnist-vae-8", encoder_consistency, 20.0),
}


@pytest.mark.parametrize("name", TRAINED)
def test_heavier_penalties_are_smaller_at_the_optimum(name: str) -> None:
    """Of several problems with few data; the heavier search starts where the lighter one ended."""
    generator, make, weight = TRAINED[name]
    G: Generator = bg.models.load(generator)
    A = bg.operators.GaussianMatrix((28, 28), 20, seed=0)
    rng = torch.Generator().manual_seed(0)
    y = A(G(1.5 * torch.randn(2, G.latent_dim, generator=rng)))
    y = y + 0.2 * torch.randn(y.shape, generator=rng)
    penalty, method = make(G, 1.0), bg.inference.MAP(max_iterations=30)

    def optima(weight: float, start: Tensor) -> Tensor:
        weighted = make(G, weight)

        def model(y: Tensor) -> None:
            z = pyro.sample("z", G.prior())
            x = pyro.deterministic("x", G(z))
            pyro.factor("penalty", -weighted(z, x))
            pyro.sample("y", dist.Normal(A(x), 0.2).to_event(1), obs=y)

        found = bg.infer(
            model, y, batched=True, method=method, chains=1, start={"z": start}, progress=False
        )
        return found.mode("z")

    light = optima(1e-9, torch.zeros(G.latent_dim))
    heavy = optima(weight, light[:, None])
    before, after = (torch.func.vmap(penalty)(z, G(z)) for z in (light, heavy))
    assert bool((after <= before).all())
    assert after.mean() < 0.9 * before.mean()


def test_the_smoothing_of_total_variation() -> None:
    """It takes away at most itself from each pixel, in images of any number of channels."""
    x = random(2, 6, 5).float()
    exact = -bg.distributions.total_variation.TotalVariation(x.shape, 1.0).log_prob(x)
    for smoothing in (1e-4, 1e-2, 1.0):
        found = image_total_variation(1.0, smoothing)(torch.zeros(3), x)
        assert exact - smoothing * x.numel() <= found <= exact
    flat = torch.ones(6, 5, requires_grad=True)
    image_total_variation(1.0)(torch.zeros(3), flat).backward()
    assert flat.grad is not None and bool((flat.grad == 0).all())


def test_double_precision_agrees_with_single() -> None:
    G = bg.models.load("mnist-gan-16")
    double = copy.deepcopy(G).double()
    z = random(16)
    single = discriminator_loss(G, 1.0)(z.float(), G(z.float()))
    torch.testing.assert_close(
        single.double(), discriminator_loss(double, 1.0)(z, double(z)), rtol=1e-3, atol=1e-4
    )


def test_what_is_refused() -> None:
    vae, gan = small(VAE), small(GAN)
    for make in (
        image_total_variation,
        lambda w: discriminator_loss(gan, w),
        lambda w: encoder_norm(vae, w),
        lambda w: encoder_consistency(vae, w),
    ):
        for weight in (0.0, -1.0, math.nan):
            with pytest.raises(OptionError, match="weight: got .*; expected a positive finite"):
                make(weight)
    with pytest.raises(OptionError, match="smoothing: got 0.0"):
        image_total_variation(1.0, smoothing=0.0)
    with pytest.raises(DtypeError, match="D: expected a generator with a discriminator or a cri"):
        discriminator_loss(vae, 1.0)
    with pytest.raises(DtypeError, match="D: expected a generator or a function.*got float"):
        discriminator_loss(0.5, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"D: returned shape \(2,\) for one image"):
        discriminator_loss(lambda x: x[0, :2], 1.0)(torch.zeros(3), torch.zeros(4, 4))
    with pytest.raises(ShapeError, match="domain_shape: expected"):
        image_total_variation(1.0)(torch.zeros(3), torch.zeros(4))
    for make in (encoder_norm, encoder_consistency):
        for bad in (gan, None):
            with pytest.raises(DtypeError, match="G: expected a generator with an encoder, got"):
                make(bad, 1.0)
    assert encoder_norm(LinearGenerator(SHAPE, 2), 1.0)
