from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bayesgen.errors import OptionError
from bayesgen.models import GAN, VAE
from bayesgen.models.networks import (
    Crop,
    NetworkConfig,
    Patches,
    Residual,
    critic,
    decoder,
    encoder,
    map_decoder,
    planes,
)
from bayesgen.models.trainable import initialise

OURS = ("perceptron", "convolution")
SHAPES = [(4, 4), (8, 8), (9, 14), (3, 10, 7), (2, 50, 49)]


def config(shape: tuple[int, ...], layout: str, **more: Any) -> NetworkConfig:
    return NetworkConfig(shape, 3, layout, **{"width": 8, "channels": 4, **more})


def made(make: Any, *arguments: Any) -> nn.Module:
    """A network with weights, by random numbers of its own."""
    with torch.device("meta"):
        network: nn.Module = make(*arguments)
    network.to_empty(device="cpu")
    initialise(network, torch.Generator().manual_seed(0))
    return network


@pytest.mark.parametrize("layout", OURS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(layout: str, shape: tuple[int, ...]) -> None:
    sizes = config(shape, layout)
    images = made(decoder, sizes)(torch.linspace(-1, 1, 15).reshape(5, 3))
    assert images.numel() == 5 * torch.Size(shape).numel()
    assert images.min() > 0 and images.max() < 1
    x = images.detach().reshape(5, *planes(shape))
    assert made(encoder, sizes, 6)(x).shape == (5, 6)
    assert made(critic, sizes)(x).shape == (5, 1)
    assert made(map_decoder, sizes, 7)(torch.zeros(5, 3)).shape == (5, 7, *shape[-2:])


@pytest.mark.parametrize("layout", OURS)
def test_sizes_count(layout: str) -> None:
    def count(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    for name, more in (("width", 16), ("channels", 8), ("blocks", 3)):
        small, large = (config((8, 8), layout, **words) for words in ({}, {name: more}))
        numbers = [
            [count(made(decoder, c)), count(made(encoder, c, 2)), count(made(critic, c))]
            for c in (small, large)
        ]
        grown = [a < b for a, b in zip(*numbers, strict=True)]
        expected = {
            "width": [True, True, True],
            "channels": [layout == "convolution", True, layout == "convolution"],
            "blocks": [True, False, False],
        }
        assert grown == expected[name], name


@pytest.mark.parametrize("layout", OURS)
def test_images_do_not_depend_on_their_batch(layout: str, rng: torch.Generator) -> None:
    """Which gradient penalties and the honest use of encoders rely on."""
    x = torch.rand(5, 1, 8, 8, generator=rng)
    for network in (made(critic, config((8, 8), layout)), made(encoder, config((8, 8), layout), 2)):
        alone = torch.cat([network(one) for one in x.split(1)])
        torch.testing.assert_close(network(x), alone)


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (12, 8)])
def test_a_linear_layer_on_patches_is_a_convolution(
    size: int, stride: int, rng: torch.Generator
) -> None:
    x = torch.rand(2, 3, 50, 49, generator=rng)
    weight = torch.randn(5, 3, size, size, generator=rng)
    expected = nn.functional.conv2d(x, weight, stride=stride, padding=2)
    found = Patches(size, stride)(x) @ weight.flatten(1).T
    assert found.shape == (2, 50 // stride, 49 // stride, 5)
    torch.testing.assert_close(found.movedim(-1, 1), expected, rtol=1e-4, atol=1e-4)
    transposed = Patches(size, stride)(x) @ weight.mT.flatten(1).T
    assert not torch.allclose(transposed.movedim(-1, 1), expected, atol=0.1), "a mutant passes"


def test_pixels_outside_of_the_image_are_cropped() -> None:
    x = torch.arange(12.0).reshape(1, 3, 4)
    assert Crop(2, 3)(x).tolist() == [[[0, 1, 2], [4, 5, 6]]]


def test_residual_adds_to_its_input() -> None:
    block = made(Residual, 3)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    x = torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(block(x), x)


def test_large_images_get_a_coarser_first_convolution() -> None:
    strides = {
        (layout, side): made(encoder, config((side, 48), layout), 2)[0].stride  # type: ignore[index, union-attr]
        for layout in OURS
        for side in (47, 48)
    }
    assert strides == {
        ("perceptron", 47): (4, 4),
        ("perceptron", 48): (4, 4),
        ("convolution", 47): (4, 4),
        ("convolution", 48): (8, 8),
    }


def test_networks_are_smooth_or_piecewise_linear_as_they_should_be() -> None:
    """Samplers follow gradients of decoders, which therefore have no kinks."""
    kinks = (nn.ReLU, nn.LeakyReLU)
    for layout in OURS:
        sizes = config((8, 8), layout)
        smooth = [made(decoder, sizes), made(encoder, sizes, 2)]
        assert not any(isinstance(m, kinks) for network in smooth for m in network.modules())
        assert any(isinstance(m, nn.LeakyReLU) for m in made(critic, sizes).modules())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent_dim": 0}, r"latent_dim: expected 1 to 64 \(the pixels of one image\), got 0"),
        ({"latent_dim": 65}, "latent_dim: expected 1 to 64"),
        ({"latent_dim": 2.0}, "latent_dim: expected 1 to 64"),
        ({"image_shape": (64,)}, r"image_shape: expected \(y, x\) or \(channel, y, x\)"),
        ({"image_shape": (3, 8)}, "at least 4 by 4 pixels, got"),
        ({"image_shape": (0, 8, 8)}, "image_shape: expected"),
        ({"image_shape": (8.0, 8)}, "image_shape: expected"),
        ({"image_shape": (2, 3, 8, 8)}, "image_shape: expected"),
        ({"layout": "perceptrons"}, "layout: unknown value 'perceptrons'.*mean 'perceptron'"),
        ({"layout": "duff-mnist"}, r"layout 'duff-mnist' is for images of shape \(1, 28, 28\)"),
        ({"width": 1}, "width: got 1; expected an integer of at least 2"),
        ({"channels": 0}, "channels: got 0"),
        ({"blocks": -1}, "blocks: got -1; expected an integer of at least 0"),
    ],
    ids=str,
)
def test_bad_configurations(words: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        NetworkConfig(**{"image_shape": (8, 8), "latent_dim": 2, **words})


def test_the_shape_may_be_a_list() -> None:
    """As files have it."""
    assert NetworkConfig([8, 8], 2) == NetworkConfig((8, 8), 2)  # type: ignore[arg-type]


def test_generators_are_made_of_their_layout() -> None:
    for kind in (VAE, GAN):
        plain, convolutional = (kind((8, 8), 2, layout=layout, width=8) for layout in OURS)
        found = [
            any(isinstance(m, nn.Conv2d) for m in model.decoder.modules())  # type: ignore[union-attr]
            for model in (plain, convolutional)
        ]
        assert found == [False, True]
        z = torch.ones(2)
        assert not torch.equal(plain(z), convolutional(z))
