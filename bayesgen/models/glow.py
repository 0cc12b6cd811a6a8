"""Glow: a normalising flow of convolutional couplings at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesgen.errors import OptionError
from bayesgen.models.coupling import (
    ActNorm,
    AffineCoupling,
    Chain,
    Flatten,
    Invertible,
    Mixing,
    Split,
    Squeeze,
)
from bayesgen.models.flow import Flow
from bayesgen.models.networks import planes
from bayesgen.models.settings import TrainingSettings
from bayesgen.types import check_count

# Largest change of the logarithm of a scale in one coupling. With twice as much, rare images
# stretch so far on the way that single precision cannot bring them back to five digits.
_BOUND = 1.0
# Of sides that fit into memory.
_MOST_LEVELS = 32


@dataclass(frozen=True)
class GlowConfig:
    """Everything that fixes the architecture of a `Glow`; see there for the fields."""

    image_shape: tuple[int, ...]
    levels: int = 2
    steps: tuple[int, ...] = (8, 8)
    width: int = 32
    quantisation: int = 256
    per_channel: bool = False

    def __post_init__(self) -> None:
        for name in ("image_shape", "steps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.image_shape) not in (2, 3) or min(self.image_shape) < 1:
            raise OptionError(
                f"image_shape: expected (y, x) or (channel, y, x), got {self.image_shape}"
            )
        check_count("levels", self.levels)
        halvings = min(self.levels, _MOST_LEVELS)
        if any(size % 2**halvings for size in self.image_shape[-2:]):
            raise OptionError(
                f"levels: each halves the image, so {self.levels} need sides divisible by "
                f"2**{self.levels}, but image_shape is {self.image_shape}; take fewer levels, or "
                "crop or pad the images"
            )
        if len(self.steps) != self.levels:
            raise OptionError(
                f"steps: expected one number, or one for each of {self.levels} levels, "
                f"got {self.steps}"
            )
        for steps in self.steps:
            check_count("steps", steps, maximum=1000)
        check_count("width", self.width)
        check_count("quantisation", self.quantisation, minimum=2)

    @property
    def latent_dim(self) -> int:
        """The number of pixels: a bijection keeps the dimension."""
        return math.prod(self.image_shape)


class Glow(Flow):
    r"""Normalising flow for images: every image has a latent vector of as many numbers as pixels.

    On each level the image is squeezed to half its sides and four times its channels, and passes
    steps of normalisation, channel mixing and affine coupling. Then half of the channels become
    latent variables, given the other half Gaussian with learnt mean and variance.

    The defaults suit images of 28 by 28 pixels on one CPU core.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, intensities near [0, 1]. Sides are divisible by
        ``2**levels``.
    levels
        How often sides are halved.
    steps
        Steps on each level, from fine to coarse; one number if all have the same.
    width
        Channels of the two hidden layers of each coupling.
    quantisation
        Number of grey levels that pixels are rounded to: integers over ``quantisation - 1``.
    per_channel
        Normalise channel by channel, as published. By default every pixel has a scale of its own,
        which also tells the convolutions where they are: fewer bits for objects in a fixed frame.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : GlowConfig
        The settings above, without the seed.
    card : dict
        The model card: on what and how the model was trained and how good it is, as found by
        `bayesgen.models.load`.

    References
    ----------
    Kingma and Dhariwal (2018), Glow: generative flow with invertible 1x1 convolutions.
    Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP.

    Examples
    --------
    >>> G = Glow((28, 28), steps=2, width=8)
    >>> z = torch.linspace(-1, 1, 784)
    >>> x = G(z)
    >>> x.shape, torch.allclose(G.encode(x), z, atol=1e-5)
    (torch.Size([28, 28]), True)
    """

    config: GlowConfig
    default_settings = TrainingSettings(epochs=10, learning_rate=2e-3, gradient_clip=10.0)

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        levels: int = GlowConfig.levels,
        steps: int | Sequence[int] = GlowConfig.steps[0],
        width: int = GlowConfig.width,
        quantisation: int = GlowConfig.quantisation,
        per_channel: bool = GlowConfig.per_channel,
        seed: int = 0,
    ) -> None:
        config = GlowConfig(
            tuple(image_shape),
            levels,
            # No image can be halved more often; the configuration then says so.
            (steps,) * min(levels, _MOST_LEVELS) if isinstance(steps, int) else tuple(steps),
            width,
            quantisation,
            per_channel,
        )
        super().__init__(config, seed)

    @classmethod
    def published(cls, image_shape: Sequence[int] = (3, 64, 64), *, seed: int = 0) -> Glow:
        """Make the network of the published inverse problems with faces: a hundred times larger.

        Its authors train with images of 32 grey levels, batches of 3 and learning rate 1e-4.

        Parameters
        ----------
        image_shape
            ``(channel, y, x)``, sides divisible by 16.
        seed
            Seed of the initial weights.

        References
        ----------
        Asim, Daniels, Leong, Ahmed and Hand (2020), Invertible generative models for inverse
        problems: mitigating representation error and dataset bias; sizes as in the code published
        with it, whose fourth level has one step.
        """
        return cls(
            image_shape,
            levels=4,
            steps=(48, 48, 48, 1),
            width=512,
            quantisation=32,
            per_channel=True,
            seed=seed,
        )

    @property
    def cell(self) -> float:
        """Distance of two grey levels."""
        return 1 / (self.config.quantisation - 1)

    def layers(self) -> list[Invertible]:
        """Return the layers, from images ``(N, channel, y, x)`` to latent vectors."""
        return _levels(planes(self.image_shape), self.config.steps, self.config)

    def dequantise(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Add noise, uniform between half a grey level below and above.

        The images that are rounded to the given grey levels are thereby spread over all of the
        space, without which their density would have no bound.

        Parameters
        ----------
        x
            Images of any shape.
        rng
            Source of the noise.
        """
        noise = torch.rand(x.shape, generator=rng, dtype=x.dtype, device=x.device)
        return x + self.cell * (noise - 0.5)

    @torch.no_grad()
    def bits_per_dimension(self, images: Tensor, *, draws: int = 1, seed: int = 0) -> Tensor:
        r"""Return how many bits describe a pixel, an upper bound.

        A rounded image has the probability :math:`P(x) = \int p(x + u) du` over the cell of
        images rounded to it. By Jensen's inequality :math:`-\log P(x)` is at most the mean of
        :math:`-\log p(x + u)` over uniform :math:`u`, minus the logarithm of the cell's volume.

        Parameters
        ----------
        images
            ``(*batch, *image_shape)``, with grey levels that are integers over
            ``quantisation - 1``; for others the number is no code length.
        draws
            How many :math:`u` to average over, for each image.
        seed
            Seed of :math:`u`.

        Returns
        -------
        Tensor
            Of shape ``(*batch,)``.

        References
        ----------
        Ho, Chen, Srinivas, Duan and Abbeel (2019), Flow++: improving flow-based generative models
        with variational dequantization and architecture design, section 3.1.
        """
        self._check("images", images, self.image_shape)
        check_count("draws", draws)
        batch = images.shape[: images.ndim - len(self.image_shape)]
        rng = torch.Generator(images.device).manual_seed(seed)
        bits = [
            torch.stack([self._bits(self.dequantise(part, rng)) for _ in range(draws)]).mean(0)
            for part in torch.split(images.reshape(-1, *self.image_shape), 500)
        ]
        return torch.cat(bits).reshape(batch)


def _levels(shape: tuple[int, ...], steps: Sequence[int], config: GlowConfig) -> list[Invertible]:
    """Layers of the first level and, inside its last one, of all that follow."""
    shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
    layers: list[Invertible] = [Squeeze()]
    for _ in range(steps[0]):
        layers += _step(shape, config)
    if len(steps) == 1:
        return [*layers, _normalisation(shape, config), Flatten(shape)]
    half = (shape[0] // 2, *shape[1:])
    gaussian = nn.Sequential(nn.Conv2d(half[0], 2 * half[0], 3, padding=1))
    rest = Chain(_levels(half, steps[1:], config))
    return [*layers, Split(AffineCoupling(gaussian, half[0], bound=_BOUND), rest, half)]


def _step(shape: tuple[int, ...], config: GlowConfig) -> list[Invertible]:
    channels, width = shape[0], config.width
    # Smooth activations, as everywhere here: samplers follow gradients of G.
    network = nn.Sequential(
        nn.Conv2d(channels // 2, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 1),
        nn.SiLU(),
        nn.Conv2d(width, channels, 3, padding=1),
    )
    coupling = AffineCoupling(network, channels // 2, bound=_BOUND)
    return [_normalisation(shape, config), Mixing(channels), coupling]


def _normalisation(shape: tuple[int, ...], config: GlowConfig) -> ActNorm:
    # Some pixels are dark in nearly all images. Divided by so small a deviation, those of the
    # few other images would be enormous; couplings learn to tell them apart.
    return ActNorm((shape[0], 1, 1)) if config.per_channel else ActNorm(shape, floor=0.2)
