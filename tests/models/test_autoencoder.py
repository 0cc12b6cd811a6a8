"""The plain autoencoder: its loss, its coordinates, its prior.

The one statistical check has a false-alarm rate of 1e-6.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.model_sites import isolated
from bayesgen.models import (
    AE,
    AEConfig,
    TrainingSettings,
    check_generator,
    load,
    save_generator,
    train,
)
from bayesgen.models.mixture import fit_mixture

float64 = torch.float64


def make(dim: int = 2, **options: Any) -> AE:
    return AE((8, 8), dim, width=8, channels=2, **options)


@pytest.fixture
def images() -> Tensor:
    """Left halves and lower halves, each brighter or darker: two clusters."""
    rng = torch.Generator().manual_seed(5)
    x = 0.1 * torch.rand(200, 8, 8, generator=rng)
    level = 0.5 + 0.2 * torch.rand(200, 1, 1, generator=rng)
    x[:100, :, :4] += level[:100]
    x[100:, 4:, :] += level[100:]
    return x


@pytest.fixture
def finished(images: Tensor) -> AE:
    """With a prior of two components, and otherwise initial weights."""
    G = make(components=2)
    G.finish(images, images[::2])
    return G.eval().requires_grad_(False)


def test_it_keeps_the_promises_of_a_generator() -> None:
    for G in (make(), AE((2, 9, 7), 3, layout="convolution", width=8, channels=2, components=2)):
        report = check_generator(G)
        assert report.passed, report


def test_loss_by_hand(images: Tensor, rng: torch.Generator) -> None:
    G, x = make(seed=3), images[:5]
    losses = G.loss(x, rng)
    by_hand = []
    for image in x:
        error = image - G(G.encode(image))
        by_hand.append(sum(float(pixel) ** 2 for pixel in error.detach().flatten()))
    mean = sum(by_hand) / 5
    torch.testing.assert_close(losses["loss"].item(), mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["mse"].item(), mean / 64, rtol=1e-5, atol=0)
    assert list(losses) == ["loss", "mse"]
    # No random numbers are used.
    assert torch.equal(G.loss(x, rng)["loss"], losses["loss"])


def test_everything_learns_in_one_stage() -> None:
    G = make(components=2)
    (stage,) = G.stages()
    (player,) = stage.players
    assert len(player.parameters) == len(list(G.parameters())) > 0
    assert (stage.images, stage.monitored, player.every) == ("training", True, 1)


def test_finishing_standardises_and_measures_held_out_images(images: Tensor) -> None:
    G = make().double()
    x, held_out = images.double()[::2], images.double()[1::2]
    before = G(G.encode(x))
    G.finish(x, held_out)
    z = G.encode(x)
    torch.testing.assert_close(G(z), before, rtol=0, atol=1e-10)
    zero, one = torch.zeros(2, dtype=float64), torch.eye(2, dtype=float64)
    torch.testing.assert_close(z.mean(0), zero, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cov(z.T, correction=0), one, rtol=0, atol=1e-10)
    expected = (held_out - G(G.encode(held_out))).square().mean(0).sqrt()
    torch.testing.assert_close(G.residual_std, expected)
    wrong = (x - G(z)).square().mean(0).sqrt()
    assert (wrong - expected).abs().max() > 1e-4
    prior = G.residual_prior()
    assert prior.event_shape == (8, 8) and torch.equal(prior.stddev, G.residual_std)


def test_the_prior_of_one_component_is_standard_normal(images: Tensor) -> None:
    G = make()
    G.finish(images, images)
    z = torch.tensor([[0.3, -2.0], [1.0, 0.5]])
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(G.prior().log_prob(z), expected)
    assert not hasattr(G, "means")


def test_before_training_any_prior_is_standard_normal() -> None:
    z = torch.tensor([[0.3, -2.0], [1.0, 0.5]])
    found = make(components=3).prior().log_prob(z)
    torch.testing.assert_close(found, make().prior().log_prob(z))


def test_the_mixture_is_fitted_to_the_encoded_training_images(finished: AE, images: Tensor) -> None:
    prior, z = finished.prior(), finished.encode(images)
    assert (prior.event_shape, prior.batch_shape) == ((2,), ())
    fitted = fit_mixture(z, 2)
    for mine, found in zip(
        (finished.log_weights, finished.means, finished.scale_tril), fitted, strict=True
    ):
        torch.testing.assert_close(mine, found)
    # The mixture has the moments of what it was fitted to: mean zero and unit covariance.
    torch.testing.assert_close(prior.mean, torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(prior.variance, torch.ones(2), rtol=1e-3, atol=0)
    standard = make().prior().log_prob(z).mean()
    assert prior.log_prob(z).mean() > standard + 0.5


def test_the_density_of_the_mixture_integrates_to_one(finished: AE) -> None:
    G = finished.double()
    axis = torch.linspace(-6, 6, 1201, dtype=float64)
    density = G.prior().log_prob(torch.cartesian_prod(axis, axis)).exp()
    # Of a smooth density the rectangle rule is exact to rounding; what is beyond six is not seen.
    torch.testing.assert_close(density.sum().item() * 0.01**2, 1.0, rtol=0, atol=1e-4)


def test_draws_of_the_mixture_follow_it(finished: AE) -> None:
    prior = finished.prior()
    with isolated(0):
        z = prior.sample((20_000,))
    score = (z.mean(0) - prior.mean) / prior.stddev * 20_000**0.5
    assert score.abs().max() < norm.isf(0.25e-6)
    values = prior.log_prob(z)
    halves = values[:10_000], values[10_000:]
    gap = (halves[0].mean() - halves[1].mean()) / (values.std() * (2 / 10_000) ** 0.5)
    assert abs(float(gap)) < norm.isf(0.25e-6)


def test_saved_and_loaded_priors_are_the_same(finished: AE, tmp_path: Path) -> None:
    path = tmp_path / "ae.safetensors"
    save_generator(finished, path)
    loaded = load(path)
    assert isinstance(loaded, AE) and loaded.config == finished.config
    z = torch.tensor([[0.3, -2.0], [1.0, 0.5]])
    assert torch.equal(loaded.prior().log_prob(z), finished.prior().log_prob(z))
    assert torch.equal(loaded(z), finished(z))
    save_generator(finished, path, half=True)
    torch.testing.assert_close(
        load(path).prior().log_prob(z), finished.prior().log_prob(z), rtol=0, atol=0.05
    )


def test_the_settings_make_the_same_generator() -> None:
    config = make(components=3, layout="convolution", blocks=2).config
    assert config == AEConfig((8, 8), 2, "convolution", 8, 2, 2, 3)
    assert AE(**asdict(config)).config == config


@pytest.mark.parametrize("method", ["map", "hmc"])
def test_the_mixture_is_a_prior_for_inference(method: str, finished: AE, images: Tensor) -> None:
    y = images[0]

    def model(y: Tensor) -> None:
        z = pyro.sample("z", finished.prior())
        x = pyro.deterministic("x", finished(z))
        pyro.sample("y", dist.Normal(x, 0.1).to_event(2), obs=y)

    budget = {"draws": 30, "warmup": 30} if method == "hmc" else {}
    posterior = bg.infer(model, y, method=method, chains=2, progress=False, **budget)  # type: ignore[arg-type]
    z = posterior.draws("z")
    assert z.shape[0] == 2 and z.shape[-1] == 2 and z.isfinite().all()
    best = posterior.log_prob.max()
    prior = finished.prior().log_prob(z)
    fit = dist.Normal(finished(z), 0.1).log_prob(y).sum((-2, -1))
    torch.testing.assert_close((prior + fit).max(), best, rtol=1e-4, atol=1e-3)


def test_a_training_ends_with_a_prior(images: Tensor) -> None:
    settings = TrainingSettings(epochs=8, batch_size=20, validation=40, average=0.9)
    trained, history = train(make(components=2), images, settings, progress=False)
    assert history[-1]["validation_loss"] < 0.8 * history[0]["validation_loss"]
    z = trained.encode(images)
    # Forty of the images were not among those the coordinates were made with.
    assert (z.mean(0)).abs().max() < 0.3 and (z.std(0) - 1).abs().max() < 0.3
    standard = make().prior().log_prob(z).mean()
    assert trained.prior().log_prob(z).mean() > standard + 0.2


def test_a_training_with_too_few_different_images_keeps_its_weights(images: Tensor) -> None:
    """A mixture of encoded images that lie in a plane does not exist, a trained network does."""
    settings = TrainingSettings(epochs=1, validation=2)
    copies = images[:5].repeat(4, 1, 1)
    with pytest.warns(RuntimeWarning, match="components: no mixture fits.*lie in a plane"):
        trained, _ = train(make(6, components=2), copies, settings, progress=False)
    z = torch.tensor([0.1, 0.2, 0.3, -0.4, -2.0, 1.0])
    torch.testing.assert_close(trained.prior().log_prob(z), make(6).prior().log_prob(z))


@pytest.mark.parametrize(
    ("dim", "components", "num", "needed"), [(2, 50, 69, 50), (6, 2, 26, 7), (2, 500, 200, 500)]
)
def test_too_few_images_for_the_components_are_refused_before_training(
    dim: int, components: int, num: int, needed: int, images: Tensor, tmp_path: Path
) -> None:
    settings = TrainingSettings(epochs=1, validation=20)
    message = (
        rf"components: {components} in {dim} latent dimensions are fitted to at least {needed} "
        rf"training images, but there are {num - 20}, without those held out"
    )
    G, steps, path = make(dim, components=components), [], tmp_path / "state"
    with pytest.raises(OptionError, match=message):
        train(
            G,
            images[:num],
            settings,
            checkpoint=path,
            progress=False,
            each_step=lambda step, losses: steps.append(step),
        )
    assert not steps and not path.exists()
    G.require_images(needed)
    make(dim).require_images(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": 0}, "components: got 0; expected an integer of at least 1"),
        ({"components": 1.5}, "components: got 1.5"),
        ({"latent_dim": 65}, "latent_dim: expected 1 to 64"),
        ({"layout": "asim-dcgan"}, "layout 'asim-dcgan' is for images of shape"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AE(**{"image_shape": (8, 8), "latent_dim": 2, **arguments})


def test_images_are_checked_at_the_door() -> None:
    G = make()
    with pytest.raises(ShapeError, match=r"x: expected shape \(\*batch, 8, 8\), got \(5, 8, 9\)"):
        G.encode(torch.zeros(5, 8, 9))
    with pytest.raises(DtypeError, match=r"x: is torch.float64.*torch.float32"):
        G.encode(torch.zeros(5, 8, 8, dtype=float64))
    with pytest.raises(DtypeError, match="x: expected a floating-point tensor, got torch.uint8"):
        G.encode(torch.zeros(5, 8, 8, dtype=torch.uint8))
