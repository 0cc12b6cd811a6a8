"""The networks that generators are made of, by layout.

A layout names a decoder, an encoder and a critic that go together. ``"perceptron"`` and
``"convolution"`` are ours, chosen for faithful reconstructions per floating-point operation on a
CPU; the layouts of the papers are in `bayesgen.models.published`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bayesgen.errors import OptionError, unknown_option
from bayesgen.models.published import LAYOUTS as PUBLISHED
from bayesgen.models.published import Layout
from bayesgen.types import check_count


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that fixes the networks of a generator.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, intensities in [0, 1].
    latent_dim
        Length of a latent vector, at most the number of pixels.
    layout
        ``"perceptron"``, ``"convolution"``, or one of the papers' layouts, which ignore the sizes
        below; see `bayesgen.models.networks`.
    width
        Units of each hidden layer of the decoder; the encoder's hidden layer has half as many.
    blocks
        Residual blocks between the decoder's first and last linear layer.
    channels
        Channels of the convolutions.
    """

    image_shape: tuple[int, ...]
    latent_dim: int
    layout: str = "perceptron"
    width: int = 512
    blocks: int = 1
    channels: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        whole = all(isinstance(size, int) and size > 0 for size in self.image_shape)
        if not whole or len(self.image_shape) not in (2, 3) or min(self.image_shape[-2:]) < 4:
            raise OptionError(
                "image_shape: expected (y, x) or (channel, y, x) of at least 4 by 4 pixels, "
                f"got {self.image_shape}"
            )
        num_pixels = math.prod(self.image_shape)
        if not isinstance(self.latent_dim, int) or not 1 <= self.latent_dim <= num_pixels:
            raise OptionError(
                f"latent_dim: expected 1 to {num_pixels} (the pixels of one image), "
                f"got {self.latent_dim}"
            )
        if self.layout not in _LAYOUTS:
            raise OptionError(unknown_option("layout", self.layout, _LAYOUTS))
        published = _LAYOUTS[self.layout].image_shape
        if published not in (None, planes(self.image_shape)):
            raise OptionError(
                f"image_shape: layout {self.layout!r} is for images of shape {published}, got "
                f"{self.image_shape}"
            )
        for name in ("width", "channels"):
            check_count(name, getattr(self, name), minimum=2)
        check_count("blocks", self.blocks, minimum=0, maximum=1000)


def decoder(config: NetworkConfig) -> nn.Sequential:
    """From ``(N, latent_dim)`` to pixels, with any trailing shape."""
    return _layout(config).decoder(config)


def encoder(config: NetworkConfig, outputs: int) -> nn.Sequential:
    """From ``(N, channel, y, x)`` to ``(N, outputs)``."""
    return _layout(config).encoder(config, outputs)


def critic(config: NetworkConfig) -> nn.Sequential:
    """From ``(N, channel, y, x)`` to ``(N, 1)``."""
    return _layout(config).critic(config)


def planes(image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape with a channel dimension, which convolutions need.

    Examples
    --------
    >>> planes((28, 28))
    (1, 28, 28)
    """
    return (1,) * (3 - len(image_shape)) + image_shape


def _layout(config: NetworkConfig) -> Layout:
    return _LAYOUTS[config.layout]


class Residual(nn.Module):
    """``x + silu(W x + b)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.silu(self.linear(x))


class Crop(nn.Module):
    """The first rows and columns of images that are somewhat too large."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.rows, : self.columns]


def _perceptron(config: NetworkConfig, outputs: int) -> list[nn.Module]:
    """Residual multilayer perceptron; its smooth activations suit gradient-based samplers."""
    return [
        nn.Linear(config.latent_dim, config.width),
        nn.SiLU(),
        *(Residual(config.width) for _ in range(config.blocks)),
        nn.Linear(config.width, outputs),
    ]


def _perceptron_decoder(config: NetworkConfig) -> nn.Sequential:
    return nn.Sequential(*_perceptron(config, math.prod(config.image_shape)), nn.Sigmoid())


def _convolution_decoder(config: NetworkConfig) -> nn.Sequential:
    channel = planes(config.image_shape)[0]
    return map_decoder(config, channel).append(nn.Sigmoid())


def map_decoder(config: NetworkConfig, num_maps: int) -> nn.Sequential:
    """From ``(N, latent_dim)`` to real maps ``(N, num_maps, y, x)`` of the images' size.

    Pixels come from maps of a quarter of the resolution, sixteen at a time: all convolutions work
    at that resolution, where they are cheap.
    """
    _, rows, columns = planes(config.image_shape)
    coarse = (math.ceil(rows / 4), math.ceil(columns / 4))
    maps = config.channels
    return nn.Sequential(
        *_perceptron(config, maps * math.prod(coarse)),
        nn.SiLU(),
        nn.Unflatten(-1, (maps, *coarse)),
        nn.Conv2d(maps, 2 * maps, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(2 * maps, 16 * num_maps, 3, padding=1),
        nn.PixelShuffle(4),
        Crop(rows, columns),
    )


def _encoder(config: NetworkConfig, outputs: int) -> nn.Sequential:
    # One wide convolution with a large stride: two of stride 2 took three times as long on a CPU.
    channel, rows, columns = planes(config.image_shape)
    stride, maps = _stride(config), config.channels
    return nn.Sequential(
        nn.Conv2d(channel, maps, stride + 4, stride=stride, padding=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(maps * (rows // stride) * (columns // stride), config.width // 2),
        nn.SiLU(),
        nn.Linear(config.width // 2, outputs),
    )


class Patches(nn.Module):
    """Overlapping patches ``(N, rows, columns, pixels)`` of images ``(N, channel, y, x)``.

    A linear layer on patches is a convolution with a stride, but one whose second derivatives,
    which gradient penalties need, take about 0.6 of the time on a CPU.
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, (size - stride) // 2

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (self.padding,) * 4)
        rows = padded.unfold(-2, self.size, self.stride)
        return rows.unfold(-2, self.size, self.stride).movedim(1, 3).flatten(3)


def _perceptron_critic(config: NetworkConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(config.image_shape), config.width),
        nn.LeakyReLU(0.2),
        *_critic_head(config.width, config.width),
    )


def _convolution_critic(config: NetworkConfig) -> nn.Sequential:
    channel, rows, columns = planes(config.image_shape)
    stride = _stride(config)
    size, patches = stride + 4, (rows // stride) * (columns // stride)
    return nn.Sequential(
        Patches(size, stride),
        nn.Linear(channel * size**2, config.channels),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        *_critic_head(config.channels * patches, config.width),
    )


def _critic_head(features: int, width: int) -> list[nn.Module]:
    """No normalisation over the batch: gradient penalties need each image by itself."""
    return [
        nn.Linear(features, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, 1),
    ]


def _stride(config: NetworkConfig) -> int:
    """Of the first convolution. The perceptron's is for small images, whatever their size."""
    large = config.layout == "convolution" and min(config.image_shape[-2:]) >= 48
    return 8 if large else 4


_LAYOUTS: Mapping[str, Layout] = {
    "perceptron": Layout(_perceptron_decoder, _encoder, _perceptron_critic),
    "convolution": Layout(_convolution_decoder, _encoder, _convolution_critic),
    **PUBLISHED,
}
