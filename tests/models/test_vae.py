from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.models import VAE, Generator


@pytest.fixture
def vae() -> VAE:
    return VAE((8, 12), latent_dim=3, width=16, channels=4, noise_level=0.3).double()


def test_shapes_with_and_without_channels() -> None:
    for shape in [(8, 12), (2, 9, 7), (28, 28), (4, 4)]:
        model = VAE(shape, 3, width=8, channels=2)
        for batch in [(), (0,), (2, 5)]:
            x = model(torch.zeros(*batch, 3))
            assert x.shape == (*batch, *shape)
            assert model.encode(x).shape == (*batch, 3)


def test_images_are_between_zero_and_one(vae: VAE, rng: torch.Generator) -> None:
    x = vae(10 * torch.randn(100, 3, generator=rng, dtype=torch.float64))
    assert 0 <= x.min() < x.max() <= 1


def test_initial_weights_follow_the_seed() -> None:
    one, same, other = (VAE((8, 8), 2, width=8, channels=2, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)
        assert a.isfinite().all()


def test_loss_is_the_evidence_bound_by_hand(vae: VAE, rng: torch.Generator) -> None:
    """Average over many latent draws: the two parts, by torch.distributions and by quadrature."""
    x = torch.rand(1, 8, 12, generator=rng, dtype=torch.float64)
    losses = vae.loss(x.expand(20000, 8, 12), rng)
    mean, log_std = vae._posterior(x[0])
    posterior = torch.distributions.Normal(mean, log_std.exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    kl = torch.distributions.kl_divergence(posterior, prior).sum()
    torch.testing.assert_close(losses["kl"], kl)
    # The probabilists' Gauss-Hermite rule in three dimensions.
    nodes, weights = map(torch.from_numpy, _gauss_hermite(9))
    z = mean + log_std.exp() * torch.cartesian_prod(nodes, nodes, nodes)
    weight = torch.cartesian_prod(weights, weights, weights).prod(-1)
    mse = weight @ (vae(z) - x).square().mean((-2, -1))
    # Twenty thousand draws: the estimate is within 2 % of the integral, ten standard errors.
    torch.testing.assert_close(losses["mse"], mse, rtol=0.02, atol=0)
    total = mse * 96 / (2 * 0.3**2) + kl
    torch.testing.assert_close(losses["loss"], total, rtol=0.02, atol=0)


def _gauss_hermite(order: int) -> tuple[Any, Any]:
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return nodes, weights / math.sqrt(2 * math.pi)


def test_standardising_changes_coordinates_only(vae: VAE, rng: torch.Generator) -> None:
    images = torch.rand(2500, 8, 12, generator=rng, dtype=torch.float64) ** 2
    before = vae(vae.encode(images))
    vae.standardise(images)
    torch.testing.assert_close(vae(vae.encode(images)), before)
    mean = vae.encode(images).mean(0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-10)


def test_standardised_encodings_are_standard_normal_to_second_order(rng: torch.Generator) -> None:
    """With a sharp encoder the aggregate covariance is that of the encoder's means."""
    vae = VAE((8, 12), latent_dim=3, width=16, channels=4).double()
    vae.encoder[-1].bias.data[3:] = -20  # type: ignore[index, union-attr]
    images = torch.rand(2500, 8, 12, generator=rng, dtype=torch.float64) ** 2
    vae.standardise(images)
    covariance = torch.cov(vae.encode(images).T, correction=0)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim: expected 1 to 64"),
        ({"latent_dim": 65}, r"latent_dim: expected 1 to 64 \(the pixels of one image\), got 65"),
        ({"image_shape": (64,)}, r"image_shape: expected \(y, x\)"),
        ({"image_shape": (3, 8)}, "at least 4 by 4"),
        ({"width": 1}, "width: expected at least 2, got 1"),
        ({"blocks": -1}, "blocks"),
        ({"channels": 0}, "channels"),
        ({"noise_level": 0.0}, "noise_level: expected a positive number, got 0"),
        ({"noise_level": math.nan}, "noise_level"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        VAE(**{"image_shape": (8, 8), "latent_dim": 2, **arguments})


def test_encode_checks_its_images(vae: VAE) -> None:
    with pytest.raises(ShapeError, match=r"x: expected shape \(\*batch, 8, 12\), got \(5, 12, 8\)"):
        vae.encode(torch.zeros(5, 12, 8, dtype=torch.float64))


def test_the_residual_is_what_the_generator_cannot_draw() -> None:
    G = VAE((8, 8), latent_dim=3, width=8, channels=2)
    assert torch.equal(G.residual_std, torch.full((8, 8), G.config.noise_level))
    images = torch.rand(50, 8, 8, generator=torch.Generator().manual_seed(0))
    G.fit_residual(images)
    expected = (images - G(G.encode(images))).square().mean(0).sqrt()
    torch.testing.assert_close(G.residual_std, expected.detach())
    prior = G.residual_prior()
    assert prior.event_shape == (8, 8) and torch.equal(prior.stddev, G.residual_std)


def test_no_pixel_is_modelled_more_sharply_than_half_a_grey_level() -> None:
    G = VAE((8, 8), latent_dim=3, width=8, channels=2)
    with torch.no_grad():
        G.decoder[-1].weight.zero_()
        G.fit_residual(torch.full((3, 8, 8), 0.5))  # which it then draws exactly
    torch.testing.assert_close(G.residual_std, torch.full((8, 8), 0.5 / 255))


def test_generators_without_residual_say_what_to_do() -> None:
    class Flat(Generator):
        def decode(self, z: Tensor) -> Tensor:
            return z

    with pytest.raises(NotImplementedError, match="Flat.*Normal"):
        Flat((2,), 2).residual_prior()
