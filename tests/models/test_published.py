"""The papers' networks: every layer, its size and its place."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesgen.errors import OptionError
from bayesgen.models import AE, GAN, VAE, WGAN, Generator, check_generator
from bayesgen.models.files import load_generator, save_generator
from bayesgen.models.layers import Dropout, LogStd
from bayesgen.models.networks import NetworkConfig, critic, decoder, encoder
from bayesgen.models.published import LAYOUTS
from bayesgen.models.settings import TrainingSettings
from bayesgen.models.training import train

LATENT = {
    "duff-mnist": 8,
    "duff-shapes": 10,
    "duff-shapes-gan": 10,
    "duff-knees": 800,
    "ang-vae": 256,
    "ang-dcgan": 100,
    "asim-dcgan": 100,
}


def config(layout: str) -> NetworkConfig:
    shape = LAYOUTS[layout].image_shape
    assert shape is not None
    return NetworkConfig(shape, LATENT[layout], layout)


def network(layout: str, part: str) -> nn.Sequential:
    """A part without storage, in evaluation mode: the largest would take 630 MB."""
    with torch.device("meta"):
        if part == "encoder":
            made = encoder(config(layout), 2 * LATENT[layout])
        else:
            made = {"decoder": decoder, "critic": critic}[part](config(layout))
    return made.eval()


_NINE_UP = (16, 32, 64, 128, 356, 512, 512, 512, 512, 256, 256, 256, 256, 128, 128, 128, 128)
_KNEES_UP = (*_NINE_UP, 64, 64, 64, 64, 32, 16, 8, 4, 1)
_NINE_DOWN = (1, 8, 16, 32, 64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
_KNEES_DOWN = (*_NINE_DOWN, 128, 64, 32, 16)

# Weights and biases, counted by hand: maps in x maps out x kernel, and so on.
_THREE = (1 * 64 * 16 + 64) + 2 * (64 * 64 * 16 + 64)
COUNTS = {
    ("duff-mnist", "decoder"): (8 * 25 + 25) + (25 * 49 + 49) + _THREE + (50_176 * 784 + 784),
    ("duff-mnist", "encoder"): _THREE + (3136 * 16 + 16),
    ("duff-mnist", "critic"): _THREE + (3136 + 1),
    ("duff-shapes", "decoder"): (10 * 49 + 49) + _THREE + (50_176 * 3136 + 3136),
    ("duff-shapes", "encoder"): _THREE + (12_544 * 20 + 20),
    ("duff-shapes", "critic"): _THREE + (12_544 + 1),
    ("duff-shapes-gan", "decoder"): (10 * 49 + 49) + _THREE + (50_176 * 3136 + 3136),
    ("duff-shapes-gan", "critic"): _THREE + (12_544 + 1),
    ("duff-knees", "decoder"): (800 * 1024 + 1024)
    + sum(maps * following * 9 + following for maps, following in pairwise(_KNEES_UP)),
    ("duff-knees", "encoder"): (1024 * 1600 + 1600)
    + sum(maps * following * 9 + following for maps, following in pairwise(_KNEES_DOWN)),
    ("ang-vae", "decoder"): (256 * 1024 + 1024)
    + (64 * 64 * 9 + 64)
    + (64 * 28 * 9 + 28)
    + (28 * 1 * 9 + 1)
    + 2 * (64 + 28),
    ("ang-vae", "encoder"): (1 * 28 * 9 + 28)
    + (28 * 64 * 9 + 64)
    + (64 * 64 * 9 + 64)
    + 2 * (28 + 64 + 64)
    + (1024 * 512 + 512),
    ("ang-dcgan", "decoder"): 100 * 512 * 4
    + (512 * 256 + 256 * 128 + 128 * 64 + 64 * 1) * 16
    + 2 * (512 + 256 + 128 + 64),
    ("ang-dcgan", "critic"): (1 * 64 + 64 * 128 + 128 * 256 + 256 * 512) * 16
    + 512 * 4
    + 2 * (128 + 256 + 512),
    # As torch's tutorial counts them.
    ("asim-dcgan", "decoder"): 3_576_704,
    ("asim-dcgan", "critic"): 2_765_568,
}


def test_every_layout_is_counted() -> None:
    assert {layout for layout, _ in COUNTS} == set(LAYOUTS) == set(LATENT)


@pytest.mark.parametrize(("layout", "part"), COUNTS)
def test_number_of_weights(layout: str, part: str) -> None:
    made = network(layout, part)
    assert sum(weight.numel() for weight in made.parameters()) == COUNTS[layout, part]


# Shapes of the maps that each layer of weights makes.
SHAPES: dict[tuple[str, str], list[tuple[int, ...]]] = {
    ("duff-mnist", "encoder"): [(64, 14, 14), (64, 7, 7), (64, 7, 7), (16,)],
    ("duff-mnist", "critic"): [(64, 14, 14), (64, 7, 7), (64, 7, 7), (1,)],
    ("duff-mnist", "decoder"): [(25,), (49,), (64, 7, 7), (64, 14, 14), (64, 28, 28), (784,)],
    ("duff-shapes", "encoder"): [(64, 56, 56), (64, 28, 28), (64, 14, 14), (20,)],
    ("duff-shapes", "critic"): [(64, 56, 56), (64, 28, 28), (64, 14, 14), (1,)],
    ("duff-shapes", "decoder"): [(49,), (64, 14, 14), (64, 28, 28), (64, 28, 28), (3136,)],
    ("duff-shapes-gan", "decoder"): [(49,), (64, 14, 14), (64, 28, 28), (64, 28, 28), (3136,)],
    ("duff-shapes-gan", "critic"): [(64, 56, 56), (64, 28, 28), (64, 14, 14), (1,)],
    ("duff-knees", "encoder"): [
        *((8, 128, 128), (16, 128, 128), (32, 128, 128)),
        *[(64, 64, 64)] * 3,
        *[(128, 32, 32)] * 3,
        *[(256, 16, 16)] * 3,
        *[(512, 8, 8)] * 3,
        *((128, 8, 8), (64, 8, 8), (32, 8, 8), (16, 8, 8), (1600,)),
    ],
    ("duff-knees", "decoder"): [
        *((1024,), (32, 8, 8), (64, 8, 8), (128, 8, 8), (356, 8, 8)),
        *[(512, 8, 8)] * 4,
        *[(256, 16, 16)] * 4,
        *[(128, 32, 32)] * 4,
        *[(64, 64, 64)] * 4,
        *((32, 128, 128), (16, 128, 128), (8, 128, 128), (4, 128, 128), (1, 128, 128)),
    ],
    ("ang-vae", "encoder"): [(28, 16, 16), (64, 8, 8), (64, 4, 4), (512,)],
    ("ang-vae", "decoder"): [(1024,), (64, 8, 8), (28, 16, 16), (1, 32, 32)],
    ("ang-dcgan", "decoder"): [(512, 2, 2), (256, 4, 4), (128, 8, 8), (64, 16, 16), (1, 32, 32)],
    ("ang-dcgan", "critic"): [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (1, 1, 1)],
    ("asim-dcgan", "decoder"): [
        *((512, 4, 4), (256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 64, 64)),
    ],
    ("asim-dcgan", "critic"): [
        *((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (1, 1, 1)),
    ],
}


@pytest.mark.parametrize(("layout", "part"), COUNTS)
def test_intermediate_shapes(layout: str, part: str) -> None:
    start = (LATENT[layout],) if part == "decoder" else config(layout).image_shape
    x, found = torch.empty(3, *start, device="meta"), []
    for layer in network(layout, part):
        x = layer(x)
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            found.append(tuple(x.shape[1:]))
    assert found == SHAPES[layout, part]
    assert part == "decoder" or x.shape == (3, 1 if part == "critic" else 2 * LATENT[layout])


# What comes after the layers of weights: activation, normalisation, dropout.
_ABBREVIATIONS = {
    **{nn.LeakyReLU: "leaky", nn.ReLU: "relu", nn.Mish: "mish", nn.Tanh: "tanh"},
    **{nn.Sigmoid: "sigmoid", nn.Linear: "dense", nn.Conv2d: "conv"},
    **{nn.ConvTranspose2d: "up", nn.UpsamplingNearest2d: "twice"},
}
_DOWN, _UP = "conv leaky drop ", "up leaky drop "
ORDER = {
    ("duff-mnist", "encoder"): 3 * _DOWN + "flat dense half",
    ("duff-mnist", "critic"): 3 * _DOWN + "flat dense",
    ("duff-mnist", "decoder"): "dense leaky dense leaky map "
    + 2 * "up relu drop "
    + "up relu flat dense",
    ("duff-shapes", "decoder"): "dense leaky map " + 3 * _UP + "flat dense",
    ("duff-shapes-gan", "decoder"): "dense leaky map " + 2 * "up relu drop " + "up relu flat dense",
    ("duff-knees", "encoder"): 19 * _DOWN + "flat dense half",
    ("duff-knees", "decoder"): "dense relu map " + 24 * "up relu drop " + "up sigmoid",
    ("ang-vae", "encoder"): 3 * "conv norm leaky " + "flat dense leaky drop half",
    ("ang-vae", "decoder"): "dense leaky drop map "
    + 2 * "twice up norm leaky "
    + "twice up sigmoid",
    ("ang-dcgan", "decoder"): "map " + 4 * "up norm mish " + "up sigmoid",
    ("ang-dcgan", "critic"): "conv leaky " + 3 * "conv norm leaky " + "conv flat",
    ("asim-dcgan", "decoder"): "map " + 4 * "up norm relu " + "up tanh affine",
    ("asim-dcgan", "critic"): "affine conv leaky " + 3 * "conv norm leaky " + "conv flat",
}


@pytest.mark.parametrize(("layout", "part"), ORDER)
def test_order_of_the_layers(layout: str, part: str) -> None:
    names = {"Dropout": "drop", "BatchNorm": "norm", "LogStd": "half", "Affine": "affine"}
    names |= {"SameConv2d": "conv", "SameConvTranspose2d": "up"}
    names |= {"Flatten": "flat", "Unflatten": "map"}
    names |= {kind.__name__: name for kind, name in _ABBREVIATIONS.items()}
    found = [names[type(layer).__name__] for layer in network(layout, part)]
    assert " ".join(found) == ORDER[layout, part]


@pytest.mark.parametrize(("layout", "part"), COUNTS)
def test_slopes_and_rates(layout: str, part: str) -> None:
    slope = 0.3 if layout.startswith("duff") else 0.2 if "dcgan" in layout else 0.01
    for layer in network(layout, part):
        assert not isinstance(layer, nn.LeakyReLU) or layer.negative_slope == slope
        assert not isinstance(layer, Dropout) or layer.rate == 0.2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_another_size_are_refused(layout: str) -> None:
    shape = LAYOUTS[layout].image_shape
    assert shape is not None
    for wrong in [(24, 24), (2, *shape[1:]), (shape[0], shape[1], shape[2] + 1)]:
        expected = f"image_shape: layout '{layout}' is for images of shape .*{shape[1]}.*, got"
        with pytest.raises(OptionError, match=expected):
            NetworkConfig(wrong, 3, layout)
    assert NetworkConfig(shape, 3, layout).latent_dim == 3
    if shape[0] == 1:
        assert NetworkConfig(shape[1:], 3, layout).image_shape == shape[1:]


@pytest.mark.parametrize(
    ("kind", "layout", "message"),
    [
        (VAE, "ang-dcgan", "layout: 'ang-dcgan' has no encoder"),
        (AE, "asim-dcgan", "layout: 'asim-dcgan' has no encoder"),
        (VAE, "duff-shapes-gan", "layout: 'duff-shapes-gan' has no encoder"),
        (GAN, "ang-vae", "layout: 'ang-vae' has no critic, which GAN and WGAN need"),
        (WGAN, "duff-knees", "layout: 'duff-knees' has no critic"),
    ],
)
def test_parts_that_a_paper_does_not_have(kind: Any, layout: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        kind(config(layout).image_shape, 3, layout=layout)


def test_encoders_return_half_of_the_log_variance(rng: torch.Generator) -> None:
    G = VAE((32, 32), 5, layout="ang-vae").eval()
    x = torch.rand(4, 32, 32, generator=rng)
    mean, log_variance = G.encoder[:-1](x.unsqueeze(1)).chunk(2, -1)
    posterior = G.encoding(x)
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.variance, log_variance.exp())
    # A plain autoencoder has no variance to halve.
    plain = AE((32, 32), 6, layout="ang-vae")
    assert plain.encode(x).shape == (4, 6) and not isinstance(plain.encoder[-1], LogStd)


def test_signed_networks_see_and_make_images_between_zero_and_one(rng: torch.Generator) -> None:
    G = GAN((3, 64, 64), 7, layout="asim-dcgan").eval()
    z = 100 * torch.randn(2, 7, generator=rng)
    x = G(z)
    assert G.discriminate(G(z[:0])).shape == (0,)
    torch.testing.assert_close(x, (G.decoder[:-1](z) + 1) / 2)
    assert 0 <= x.min() < 0.5 < x.max() <= 1
    torch.testing.assert_close(G.discriminate(x), G.discriminator[1:](2 * x - 1).squeeze(-1))


def test_what_training_leaves_random_is_fixed_in_evaluation(rng: torch.Generator) -> None:
    G, z = VAE((32, 32), 5, layout="ang-vae"), torch.randn(4, 5, generator=rng)
    assert not torch.equal(G(z), G(z))
    assert torch.equal(G.eval()(z), G(z))


CHECKED = {
    "ang-vae": (VAE, AE),
    "ang-dcgan": (GAN, WGAN),
    "duff-mnist": (VAE, AE, WGAN),
    "asim-dcgan": (GAN,),
}
_CHECKS = [
    pytest.param(
        *(kind, layout),
        marks=() if layout == "ang-vae" else pytest.mark.slow,
        id=f"{kind.__name__}-{layout}",
    )
    for layout, kinds in CHECKED.items()
    for kind in kinds
]


@pytest.mark.parametrize(("kind", "layout"), _CHECKS)
def test_the_checks_pass(kind: Any, layout: str, rng: torch.Generator) -> None:
    G = kind(config(layout).image_shape, 6, layout=layout)
    with torch.no_grad():
        G(torch.randn(5, 6, generator=rng))  # moves the running moments
    report = check_generator(G.eval())
    failed = {check.name for check in report.checks if not check.passed}
    # Differences over a step of 1e-3 meet kinks of rectified linear units.
    assert failed <= {"gradient, torch.float32", "gradient, torch.float64"}, str(report)
    _check_gradient(G.double().requires_grad_(False), rng)


def _check_gradient(G: Any, rng: torch.Generator) -> None:
    """Central differences over a step that hardly meets a kink."""
    z, direction = torch.randn(2, 3, 6, generator=rng, dtype=torch.float64).unbind()
    weights = torch.randn(3, *G.image_shape, generator=rng, dtype=torch.float64)

    def scalar(z: Tensor) -> Tensor:
        return (weights * G(z)).sum()

    (gradient,) = torch.autograd.grad(scalar(z.requires_grad_()), z)
    exact, z = (gradient * direction).sum(), z.detach()
    step = 1e-7 * direction
    difference = (scalar(z + step) - scalar(z - step)) / 2e-7
    torch.testing.assert_close(difference, exact, rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_knees_do_not_depend_on_their_batch(rng: torch.Generator) -> None:
    """In place of all checks, which would take minutes."""
    G = VAE((128, 128), 6, layout="duff-knees").eval().requires_grad_(False)
    z = torch.randn(2, 6, generator=rng)
    x = G(z)
    assert x.shape == (2, 128, 128) and 0 <= x.min() < x.max() <= 1
    torch.testing.assert_close(G(z[0]), x[0])
    torch.testing.assert_close(G.encode(x)[1], G.encode(x[1]))
    assert G.encode(G(z[:0])).shape == (0, 6)


def test_the_checks_fail_in_training_mode() -> None:
    report = check_generator(VAE((32, 32), 6, layout="ang-vae"))
    failed = {check.name for check in report.checks if not check.passed}
    assert {"batches, torch.float64", "repetition, torch.float64"} <= failed


def test_the_largest_layer_of_handwritten_digits(rng: torch.Generator) -> None:
    """One image, and the limits of 39 million weights: every one of them is drawn."""
    G = VAE((28, 28), 8, layout="duff-mnist").eval()
    weight: Tensor = G.decoder[-1].weight  # type: ignore[assignment]
    limit = (6 / (50_176 + 784)) ** 0.5
    assert weight.max() <= limit and weight.min() >= -limit
    # Five standard errors: false alarms 6e-7.
    error = 5 * (0.8 / weight.numel()) ** 0.5
    assert abs(weight.double().square().mean() / (limit**2 / 3) - 1) < error
    x = G(torch.randn(1, 8, generator=rng))
    assert x.shape == (1, 28, 28) and x.isfinite().all()
    assert G.encode(G(torch.zeros(0, 8))).shape == (0, 8)
    assert x.min() < 0, "the last layer is linear"


class Interruption(Exception):  # noqa: N818
    """Not an error."""


def _interrupt(step: int, _: object) -> None:
    if step == 5:
        raise Interruption


@pytest.mark.parametrize(
    "make",
    [
        lambda: VAE((32, 32), 5, layout="ang-vae"),
        pytest.param(lambda: GAN((32, 32), 5, layout="ang-dcgan"), marks=pytest.mark.slow),
    ],
)
def test_training_resumes_to_the_bit_and_the_result_is_saved(
    make: Callable[[], Any], rng: torch.Generator, tmp_path: Path
) -> None:
    """The dropped values and running moments are part of the state; none are drawn globally."""
    images = torch.rand(30, 32, 32, generator=rng)
    settings = TrainingSettings(epochs=2, batch_size=10, validation=5)
    whole, _ = train(make(), images, settings, progress=False)
    with pytest.raises(Interruption):
        path = tmp_path / "checkpoint"
        train(
            *(make(), images, settings),
            checkpoint=path,
            progress=False,
            each_step=_interrupt,
        )
    resumed, _ = train(make(), images, settings, checkpoint=path, resume=True, progress=False)
    state = whole.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in resumed.state_dict().items())
    assert not whole.training
    save_generator(whole, tmp_path / "model.safetensors", half=True)
    loaded = load_generator(tmp_path / "model.safetensors")
    z = torch.randn(3, 5, generator=rng)
    assert isinstance(loaded, Generator)
    torch.testing.assert_close(loaded(z), whole(z), rtol=0, atol=0.02)
