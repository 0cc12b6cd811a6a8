from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.models import (
    VAE,
    Generator,
    TrainingSettings,
    VAEConfig,
    check_generator,
    load,
    save_generator,
    train,
)
from bayesgen.models.vae import divergence_from_prior

float64 = torch.float64


@pytest.fixture
def vae() -> VAE:
    return VAE((8, 12), latent_dim=3, width=16, channels=4, noise_level=0.3).double()


@pytest.fixture
def learning() -> VAE:
    """Learns its noise level as well."""
    config = {"width": 16, "channels": 4, "noise_level": 0.3, "learn_noise": True}
    return VAE((8, 12), latent_dim=3, **config).double()  # type: ignore[arg-type]


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.rand(50, 8, 12, generator=rng, dtype=float64) ** 2


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def drawn(G: VAE, x: Tensor) -> Tensor:
    """The latent vectors that a loss with the random numbers of `seeded` uses."""
    law = G.encoding(x)
    noise = torch.randn(law.mean.shape, generator=seeded(), dtype=x.dtype)
    return law.mean + law.stddev * noise


# ---------------------------------------------------------------------------- the map


def test_it_keeps_the_promises_of_a_generator() -> None:
    for G in (VAE((2, 8, 12), 3, width=16, channels=4), VAE((9, 7), 2, layout="convolution")):
        report = check_generator(G)
        assert report.passed, report


def test_shapes_with_and_without_channels() -> None:
    for shape in [(8, 12), (2, 9, 7), (28, 28), (4, 4)]:
        model = VAE(shape, 3, width=8, channels=2)
        for batch in [(), (0,), (2, 5)]:
            x = model(torch.zeros(*batch, 3))
            assert x.shape == (*batch, *shape)
            assert model.encode(x).shape == (*batch, 3)


def test_images_are_between_zero_and_one(vae: VAE, rng: torch.Generator) -> None:
    x = vae(10 * torch.randn(100, 3, generator=rng, dtype=float64))
    assert 0 <= x.min() < x.max() <= 1


def test_initial_weights_follow_the_seed() -> None:
    one, same, other = (VAE((8, 8), 2, width=8, channels=2, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)
        assert a.isfinite().all()


def test_the_settings_make_the_same_generator() -> None:
    config = VAE((8, 8), 2, width=8, channels=2, noise_level=0.2, learn_noise=True).config
    assert config == VAEConfig((8, 8), 2, "perceptron", 8, 1, 2, 0.2, True)
    assert VAE(**asdict(config)).config == config


# ---------------------------------------------------------------------------- the laws


def test_the_encoding_is_the_law_that_the_loss_draws_from(vae: VAE, images: Tensor) -> None:
    law = vae.encoding(images.reshape(5, 10, 8, 12))
    assert (law.batch_shape, law.event_shape) == ((5, 10), (3,))
    assert torch.equal(law.mean, vae.encode(images.reshape(5, 10, 8, 12)))
    torch.testing.assert_close(law.mean.flatten(0, 1), vae.encoding(images).mean)
    # The network gives means and log standard deviations.
    outputs = vae.encoder(images.unsqueeze(1))
    torch.testing.assert_close(vae.encoding(images).stddev, outputs[:, 3:].exp())
    z = drawn(vae, images)
    found = vae.loss(images, seeded())["mse"]
    torch.testing.assert_close(found, (images - vae(z)).square().mean())


def test_the_conditional_has_the_noise_level(vae: VAE, learning: VAE, images: Tensor) -> None:
    with torch.no_grad():
        learning.log_noise.fill_(math.log(0.7))
    assert math.isclose(learning.noise_level, 0.7) and vae.noise_level == 0.3
    for G, rho in ((vae, 0.3), (learning, 0.7)):
        z = G.encode(images)
        law = G.conditional(z)
        assert (law.batch_shape, law.event_shape) == ((50,), (8, 12))
        square = (images - G(z)).square().sum((1, 2)) / rho**2
        expected = -0.5 * square - 96 * math.log(rho * math.sqrt(2 * math.pi))
        torch.testing.assert_close(law.log_prob(images), expected)


def test_divergence_is_that_of_torch(rng: torch.Generator) -> None:
    mean, log_std = torch.randn(2, 4, 5, 3, generator=rng, dtype=float64)
    law = torch.distributions.Normal(mean, log_std.exp())
    prior = torch.distributions.Normal(torch.zeros(3, dtype=float64), 1.0)
    expected = torch.distributions.kl_divergence(law, prior).sum(-1)
    torch.testing.assert_close(divergence_from_prior(mean, log_std), expected)
    assert divergence_from_prior(torch.zeros(3), torch.zeros(3)) == 0


def test_loss_is_the_evidence_bound_up_to_the_constant(
    vae: VAE, learning: VAE, images: Tensor
) -> None:
    """By torch.distributions, for the very latent vectors that the loss draws."""
    half_log = 0.5 * 96 * math.log(2 * math.pi)
    for G, constant in ((vae, half_log + 96 * math.log(0.3)), (learning, half_log)):
        fit = G.conditional(drawn(G, images)).log_prob(images)
        kl = divergence_from_prior(*G._posterior(images))
        bound = (fit - kl).mean()
        losses = G.loss(images, seeded())
        torch.testing.assert_close(losses["loss"], -bound - constant, rtol=1e-12, atol=0)
        torch.testing.assert_close(losses["kl"], kl.mean())
        # Where the noise is learned the term n log rho counts.
        assert abs(96 * math.log(0.3)) > 100
    assert set(G.loss(images, seeded())) == {"loss", "mse", "kl", "noise"}


def test_loss_is_the_evidence_bound_by_quadrature(vae: VAE, rng: torch.Generator) -> None:
    """Average over many latent draws: the two parts, by torch.distributions and by quadrature."""
    x = torch.rand(1, 8, 12, generator=rng, dtype=float64)
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


def test_the_best_noise_level_is_that_of_the_residuals(learning: VAE, images: Tensor) -> None:
    G = learning
    residuals = images - G(drawn(G, images))
    rms = residuals.square().mean().sqrt().item()

    def slope(rho: float) -> float:
        with torch.no_grad():
            G.log_noise.fill_(math.log(rho))
        loss = G.loss(images, seeded())["loss"]
        return torch.autograd.grad(loss, G.log_noise)[0].item()

    # In units of the pixels' number: d loss / d log rho = n (1 - rms^2 / rho^2).
    assert abs(slope(rms)) < 1e-10
    for rho in (0.5 * rms, 2 * rms):
        assert math.isclose(slope(rho), 96 * (1 - rms**2 / rho**2), rel_tol=1e-10)


def test_learned_noise_is_a_weight_that_files_keep(learning: VAE, tmp_path: Path) -> None:
    G = learning.float()
    assert math.isclose(G.noise_level, 0.3, rel_tol=1e-6)
    reported = G.loss(torch.rand(2, 8, 12, generator=seeded()), seeded())["noise"]
    torch.testing.assert_close(reported.item(), 0.3, rtol=1e-6, atol=0)
    (stage,) = G.stages()
    assert any(p is G.log_noise for player in stage.players for p in player.parameters)
    assert "log_noise" not in dict(VAE((8, 8), 2, width=8, channels=2).named_parameters())
    with torch.no_grad():
        G.log_noise.fill_(-3.0)
    for half in (False, True):
        save_generator(G, tmp_path / "G.safetensors", half=half)
        loaded = load(tmp_path / "G.safetensors")
        assert isinstance(loaded, VAE)
        assert math.isclose(loaded.noise_level, math.exp(-3.0), rel_tol=1e-6)
        assert loaded.config == G.config and loaded.config.noise_level == 0.3


# ---------------------------------------------------------------------------- after training


def test_finishing_changes_coordinates_only(vae: VAE, rng: torch.Generator) -> None:
    images = torch.rand(2500, 8, 12, generator=rng, dtype=float64) ** 2
    before = vae(vae.encode(images))
    vae.finish(images, images[:50])
    torch.testing.assert_close(vae(vae.encode(images)), before, rtol=0, atol=1e-10)
    mean = vae.encode(images).mean(0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-10)


def test_standardised_encodings_are_standard_normal_to_second_order(rng: torch.Generator) -> None:
    """With a sharp encoder the aggregate covariance is that of the encoder's means."""
    vae = VAE((8, 12), latent_dim=3, width=16, channels=4).double()
    last: Any = vae.encoder[-1]
    last.bias.data[3:] = -20
    images = torch.rand(2500, 8, 12, generator=rng, dtype=float64) ** 2
    vae.finish(images, images[:50])
    covariance = torch.cov(vae.encode(images).T, correction=0)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=float64))


def test_a_wide_encoder_counts_too(images: Tensor) -> None:
    """An encoder that knows nothing already agrees with the prior, and nothing changes."""
    vae = VAE((8, 12), latent_dim=3, width=16, channels=4).double()
    with torch.no_grad():
        last: Any = vae.encoder[-1]
        last.weight.zero_()
        before = [parameter.clone() for parameter in vae.parameters()]
    vae.finish(images, images)
    for now, then in zip(vae.parameters(), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-12)


def test_the_spread_of_the_encoder_counts(images: Tensor) -> None:
    """Exact for one coordinate: variance of the means and mean variance add up to one."""
    vae = VAE((8, 12), latent_dim=1, width=16, channels=4).double()
    with torch.no_grad():
        last: Any = vae.encoder[-1]
        last.weight[0] *= 20
        last.bias.copy_(torch.tensor([0.3, -0.5]))
    vae.finish(images, images)
    law = vae.encoding(images)
    between, within = law.mean.var(correction=0).item(), law.variance.mean().item()
    assert math.isclose(between + within, 1.0, rel_tol=1e-10)
    assert 0.05 < between < 0.95


def test_the_residual_is_what_the_generator_cannot_draw(images: Tensor) -> None:
    G = VAE((8, 12), latent_dim=3, width=8, channels=2).double()
    assert torch.equal(G.residual_std, torch.full((8, 12), 0.1).double())
    seen, held_out = images[:30], images[30:]
    G.finish(seen, held_out)
    expected = (held_out - G(G.encode(held_out))).square().mean(0).sqrt()
    torch.testing.assert_close(G.residual_std, expected.detach())
    prior = G.residual_prior()
    assert prior.event_shape == (8, 12) and torch.equal(prior.stddev, G.residual_std)
    assert torch.equal(G.residual_prior(torch.zeros(5, 3)).stddev, G.residual_std)
    # Not that of the images it learned from.
    wrong = (seen - G(G.encode(seen))).square().mean(0).sqrt()
    assert (wrong - expected).abs().max() > 0.01


def test_generators_without_residual_say_what_to_do() -> None:
    class Flat(Generator):
        def decode(self, z: Tensor) -> Tensor:
            return z

    with pytest.raises(NotImplementedError, match="Flat.*Normal"):
        Flat((2,), 2).residual_prior()


# ---------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim: expected 1 to 64"),
        ({"latent_dim": 65}, r"latent_dim: expected 1 to 64 \(the pixels of one image\), got 65"),
        ({"image_shape": (64,)}, r"image_shape: expected \(y, x\)"),
        ({"image_shape": (3, 8)}, "at least 4 by 4"),
        ({"width": 1}, "width: got 1; expected an integer of at least 2"),
        ({"blocks": -1}, "blocks: got -1"),
        ({"channels": 0}, "channels: got 0"),
        ({"noise_level": 0.0}, "noise_level: got 0.0; expected a positive finite number"),
        ({"noise_level": math.nan}, "noise_level: got nan"),
        ({"noise_level": 1e-30}, "noise_level: got 1e-30; expected 6e-08 to .* rounded to 6e-08"),
        ({"noise_level": 5e-8}, "noise_level: got 5e-08; expected 6e-08 to 2e"),
        ({"noise_level": 1e200}, r"noise_level: got 1e\+200; expected 6e-08 to 2e\+07"),
        ({"noise_level": 10**400}, "noise_level: got 1000"),
        ({"noise_level": "0.1"}, "noise_level: got '0.1'"),
        (
            {"layout": "perceptrons"},
            "layout: unknown value 'perceptrons'.*did you mean 'perceptron'",
        ),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        VAE(**{"image_shape": (8, 8), "latent_dim": 2, **arguments})


@pytest.mark.parametrize("method", ["encode", "encoding"])
def test_images_are_checked_at_the_door(vae: VAE, method: str) -> None:
    with pytest.raises(ShapeError, match=r"x: expected shape \(\*batch, 8, 12\), got \(5, 12, 8\)"):
        getattr(vae, method)(torch.zeros(5, 12, 8, dtype=float64))
    with pytest.raises(DtypeError, match="x: is torch.float32"):
        getattr(vae, method)(torch.zeros(5, 8, 12))


def test_latent_vectors_are_checked_at_the_door(vae: VAE) -> None:
    with pytest.raises(ShapeError, match=r"z: expected shape \(\*batch, 3\), got \(5, 2\)"):
        vae.conditional(torch.zeros(5, 2, dtype=float64))


@pytest.mark.parametrize("noise_level", [2.0**-24, 2.0**24])
@pytest.mark.parametrize("learn_noise", [False, True])
def test_the_extreme_noise_levels_can_be_trained_with(
    noise_level: float, learn_noise: bool
) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(60, 28, 28, generator=rng)
    G = VAE((28, 28), 2, width=8, channels=2, noise_level=noise_level, learn_noise=learn_noise)
    settings = TrainingSettings(epochs=3, batch_size=10, validation=10)
    trained, history = train(G, images, settings, progress=False)
    assert all(math.isfinite(value) for value in history[-1].values())
    assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())
