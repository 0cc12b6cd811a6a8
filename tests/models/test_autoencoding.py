from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from bayesgen.model_sites import isolated
from bayesgen.models import AE, VAE, autoencoding
from bayesgen.models.autoencoding import (
    encode_all,
    pixelwise,
    residual_std,
    run_decoder,
    run_encoder,
    standardise,
)

float64 = torch.float64
SHAPE = (4, 5)


def networks(
    rng: torch.Generator, dim: int = 3, outputs: int | None = None
) -> tuple[nn.Sequential, nn.Sequential]:
    """A decoder and an encoder of images `SHAPE` with random weights, biases included."""
    with isolated(0):
        decoder = nn.Sequential(nn.Linear(dim, 7), nn.Tanh(), nn.Linear(7, 20))
        encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, outputs or dim)
        )
    for network in (decoder, encoder):
        network.double().requires_grad_(False)
        for parameter in network.parameters():
            parameter.normal_(generator=rng)
    return decoder, encoder


def encoded(encoder: nn.Module, images: Tensor) -> Tensor:
    return run_encoder(encoder, images, SHAPE)


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.mean(0), (z - z.mean(0)).T @ (z - z.mean(0)) / len(z)


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.rand(300, *SHAPE, generator=rng, dtype=float64)


# ---------------------------------------------------------------------------- batches


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (3, 4, 5)])
@pytest.mark.parametrize("batch", [(), (0,), (6,), (2, 3), (2, 0)])
def test_any_batch_is_encoded_and_decoded_image_by_image(
    shape: tuple[int, ...], batch: tuple[int, ...], rng: torch.Generator
) -> None:
    pixels = torch.Size(shape).numel()
    with isolated(0):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2))
        decoder = nn.Sequential(nn.Linear(2, pixels))
    x = torch.rand(*batch, *shape, generator=rng)
    z = run_encoder(encoder, x, shape)
    assert z.shape == (*batch, 2)
    torch.testing.assert_close(z, encoder[1](x.flatten(len(batch))))
    again = run_decoder(decoder, z, shape)
    assert again.shape == x.shape
    torch.testing.assert_close(again, decoder(z).reshape(x.shape))


def test_chunks_do_not_matter(
    images: Tensor, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, encoder = networks(rng)

    def generate(z: Tensor) -> Tensor:
        return run_decoder(decoder, z, SHAPE)

    z = encoded(encoder, images)
    expected = (images - generate(z)).square().mean(0).sqrt()
    for chunk in (1000, 300, 299, 7):
        monkeypatch.setattr(autoencoding, "_CHUNK", chunk)
        torch.testing.assert_close(encode_all(encoder, images, SHAPE), z)
        torch.testing.assert_close(residual_std(generate, images, z), expected)


def test_no_pixel_is_modelled_more_sharply_than_half_a_grey_level() -> None:
    images = torch.full((3, 4, 5), 0.5, dtype=float64)
    found = residual_std(lambda z: images[: len(z)], images, torch.zeros(3, 1))
    torch.testing.assert_close(found, torch.full(SHAPE, 0.5 / 255, dtype=float64))


def test_pixelwise_is_a_law_of_images(rng: torch.Generator) -> None:
    std = torch.rand(3, 4, 5, generator=rng, dtype=float64) + 0.1
    law, x = pixelwise(std), torch.rand(7, 3, 4, 5, generator=rng, dtype=float64)
    assert (law.batch_shape, law.event_shape) == ((), (3, 4, 5))
    expected = torch.distributions.Normal(0.0, std).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(law.log_prob(x), expected)


# ---------------------------------------------------------------------------- coordinates


@pytest.mark.parametrize("dim", [1, 3])
def test_standardised_codes_have_mean_zero_and_unit_covariance(
    dim: int, images: Tensor, rng: torch.Generator
) -> None:
    decoder, encoder = networks(rng, dim)
    before = decoder(encoded(encoder, images))
    mean, covariance = moments(encoded(encoder, images))
    assert mean.abs().max() > 0.1 and (covariance - torch.eye(dim)).abs().max() > 0.1
    standardise([decoder], encoder, encoded(encoder, images))
    z = encoded(encoder, images)
    torch.testing.assert_close(decoder(z), before, rtol=0, atol=1e-10)
    mean, covariance = moments(z)
    torch.testing.assert_close(mean, torch.zeros(dim, dtype=float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance, torch.eye(dim, dtype=float64), rtol=0, atol=1e-10)


def test_the_root_is_the_symmetric_one(images: Tensor, rng: torch.Generator) -> None:
    """Coordinates keep their meaning: the Cholesky factor, as good a root, would mix them more."""
    decoder, encoder = networks(rng)
    old = encoded(encoder, images)
    mean, covariance = moments(old)
    root = torch.from_numpy(sqrtm(covariance.numpy()).real)
    standardise([decoder], encoder, old)
    new = encoded(encoder, images)
    torch.testing.assert_close(new @ root + mean, old)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(new @ torch.linalg.cholesky(covariance).T + mean, old)


def test_log_standard_deviations_are_scaled_too(images: Tensor, rng: torch.Generator) -> None:
    """The aggregate covariance is that of the means plus the mean of the variances."""
    decoder, encoder = networks(rng, outputs=6)
    mean, log_std = encoded(encoder, images).chunk(2, -1)
    variance = (2 * log_std).exp()
    standardise([decoder], encoder, mean, variance)
    new_mean, new_log_std = encoded(encoder, images).chunk(2, -1)
    shift, covariance = moments(mean)
    aggregate = covariance + torch.diag(variance.mean(0))
    root = torch.from_numpy(sqrtm(aggregate.numpy()).real)
    torch.testing.assert_close(new_mean @ root + shift, mean)
    torch.testing.assert_close(new_log_std, log_std - root.diagonal().log())
    # Where the root is diagonal nothing is lost: means and variances add up to the identity.
    last: Any = encoder[-1]
    last.weight[1:3] = last.weight[4:] = 0.0
    mean, log_std = encoded(encoder, images).chunk(2, -1)
    standardise([decoder], encoder, mean, (2 * log_std).exp())
    mean, log_std = encoded(encoder, images).chunk(2, -1)
    aggregate = moments(mean)[1] + torch.diag((2 * log_std).exp().mean(0))
    torch.testing.assert_close(aggregate, torch.eye(3, dtype=float64), rtol=0, atol=1e-10)


def test_every_decoder_follows(images: Tensor, rng: torch.Generator) -> None:
    first, encoder = networks(rng)
    second, _ = networks(rng)
    third, _ = networks(rng)
    z = encoded(encoder, images)
    before = [decoder(z) for decoder in (first, second, third)]
    standardise([first, second], encoder, z)
    z = encoded(encoder, images)
    torch.testing.assert_close(first(z), before[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(second(z), before[1], rtol=0, atol=1e-10)
    # One that was forgotten makes other images of the new coordinates.
    assert (third(z) - before[2]).abs().max() > 0.1


@pytest.mark.parametrize("spread", [0.0, 1e-5])
def test_a_coordinate_that_the_encoder_ignores_keeps_its_scale(
    spread: float, images: Tensor, rng: torch.Generator
) -> None:
    decoder, encoder = networks(rng)
    last: Any = encoder[-1]
    last.weight[1] *= spread
    old = encoded(encoder, images)
    before = decoder(old)
    standardise([decoder], encoder, old)
    z = encoded(encoder, images)
    torch.testing.assert_close(decoder(z), before, rtol=0, atol=1e-10)
    mean, covariance = moments(z)
    torch.testing.assert_close(mean, torch.zeros(3, dtype=float64), rtol=0, atol=1e-10)
    # Not blown up to unit variance by the square of a hundred thousand.
    assert covariance[1, 1] < 1e-6
    others = covariance[[0, 2]][:, [0, 2]]
    torch.testing.assert_close(others, torch.eye(2, dtype=float64), rtol=0, atol=1e-4)


def test_few_images_do_not_break_it(images: Tensor, rng: torch.Generator) -> None:
    for num in (1, 2):
        decoder, encoder = networks(rng)
        old = encoded(encoder, images[:num])
        before = decoder(old)
        standardise([decoder], encoder, old)
        z = encoded(encoder, images[:num])
        torch.testing.assert_close(decoder(z), before, rtol=0, atol=1e-8)
        assert z.mean(0).abs().max() < 1e-8 and z.isfinite().all()


NOT_LINEAR: dict[str, Callable[[nn.Sequential, nn.Sequential], tuple[nn.Sequential, ...]]] = {
    "decoder": lambda decoder, encoder: (nn.Sequential(nn.Identity(), *decoder), encoder),
    "encoder": lambda decoder, encoder: (decoder, nn.Sequential(*encoder, nn.Identity())),
}


@pytest.mark.parametrize("which", NOT_LINEAR)
def test_networks_with_other_ends_are_left_alone(
    which: str, images: Tensor, rng: torch.Generator
) -> None:
    decoder, encoder = NOT_LINEAR[which](*networks(rng))
    parameters = [*decoder.parameters(), *encoder.parameters()]
    before = [parameter.clone() for parameter in parameters]
    standardise([decoder], encoder, encoded(encoder, images))
    # Nor is one of several decoders changed without the others.
    other, _ = networks(rng)
    first: Any = other[0]
    weight = first.weight.clone()
    standardise([other, decoder], encoder, encoded(encoder, images))
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    assert torch.equal(first.weight, weight)


@pytest.mark.parametrize("layout", ["perceptron", "convolution", "duff-mnist"])
def test_the_layouts_of_autoencoders_are_standardised(layout: str, rng: torch.Generator) -> None:
    G = AE((28, 28), latent_dim=3, layout=layout, width=8, channels=2).eval().double()
    images = torch.rand(20, 28, 28, generator=rng, dtype=float64)
    before = G(G.encode(images))
    G.finish(images, images)
    torch.testing.assert_close(G(G.encode(images)), before, rtol=0, atol=1e-10)
    mean, covariance = moments(G.encode(images))
    torch.testing.assert_close(mean, torch.zeros(3, dtype=float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=float64), rtol=0, atol=1e-10)


def test_a_layout_that_cannot_be_standardised_is_finished_all_the_same(
    rng: torch.Generator,
) -> None:
    G = VAE((32, 32), latent_dim=4, layout="ang-vae").eval()
    before = [parameter.clone() for parameter in G.parameters()]
    images = torch.rand(6, 32, 32, generator=rng)
    G.finish(images, images)
    assert all(torch.equal(a, b) for a, b in zip(G.parameters(), before, strict=True))
    expected = (images - G(G.encode(images))).square().mean(0).sqrt()
    torch.testing.assert_close(G.residual_std, expected.detach())


def test_codes_that_differ_by_rounding_alone_keep_their_scale(rng: torch.Generator) -> None:
    """As of images that are all the same: their covariance is nothing but rounding."""
    decoder, encoder = (network.float() for network in networks(rng))
    codes = (
        torch.rand(1, 3, generator=rng).float() + 1e-8 * torch.rand(50, 3, generator=rng).float()
    )
    before = decoder(codes)
    standardise([decoder], encoder, codes)
    torch.testing.assert_close(decoder(codes - codes.mean(0)), before, rtol=0, atol=1e-4)
