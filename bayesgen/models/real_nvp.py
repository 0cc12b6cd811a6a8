"""Real NVP: a normalising flow for vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bayesgen.errors import OptionError
from bayesgen.models.coupling import ActNorm, AffineCoupling, Invertible, Mixing
from bayesgen.models.flow import Flow
from bayesgen.types import check_count


@dataclass(frozen=True)
class RealNVPConfig:
    """Everything that fixes the architecture of a `RealNVP`; see there for the fields."""

    image_shape: tuple[int, ...]
    layers: int = 8
    width: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        if len(self.image_shape) != 1 or self.image_shape[0] < 2:
            raise OptionError(
                f"image_shape: expected the length of a vector, at least 2, got {self.image_shape}"
            )
        check_count("layers", self.layers, maximum=1000)
        check_count("width", self.width)

    @property
    def latent_dim(self) -> int:
        """The same length: a bijection keeps the dimension."""
        return self.image_shape[0]


class RealNVP(Flow):
    """Normalising flow for vectors, such as the latent vectors of another generator.

    Its layers normalise, mix and couple: half of the coordinates are scaled and shifted by a
    multilayer perceptron of the others. Learnt invertible matrices, random rotations at first, take
    the place of the published alternation between two fixed halves.

    Parameters
    ----------
    image_shape
        Length of a vector, or ``(length,)``; at least 2.
    layers
        Number of couplings.
    width
        Units of the two hidden layers of each coupling.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : RealNVPConfig
        The settings above, without the seed.
    card : dict
        The model card: on what and how the model was trained and how good it is, as found by
        `bayesgen.models.load`.

    References
    ----------
    Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP.
    Kingma and Dhariwal (2018), Glow: generative flow with invertible 1x1 convolutions, section 3.2.

    Examples
    --------
    >>> import torch
    >>> G = RealNVP(16)
    >>> z = G.encode(torch.zeros(5, 16))
    >>> G.log_prob(torch.zeros(5, 16)).shape, torch.allclose(G(z), torch.zeros(5, 16))
    (torch.Size([5]), True)
    """

    config: RealNVPConfig

    def __init__(
        self,
        image_shape: int | Sequence[int],
        *,
        layers: int = RealNVPConfig.layers,
        width: int = RealNVPConfig.width,
        seed: int = 0,
    ) -> None:
        shape = (image_shape,) if isinstance(image_shape, int) else tuple(image_shape)
        super().__init__(RealNVPConfig(shape, layers, width), seed)

    def layers(self) -> list[Invertible]:
        """Return the layers, from vectors ``(N, dim)`` to latent vectors."""
        parts = [_layer(self.latent_dim, self.config.width) for _ in range(self.config.layers)]
        return [*(layer for part in parts for layer in part), ActNorm((self.latent_dim,))]


def _layer(dim: int, width: int) -> list[Invertible]:
    passive = dim // 2
    network = nn.Sequential(
        nn.Linear(passive, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 2 * (dim - passive)),
    )
    return [ActNorm((dim,)), Mixing(dim), AffineCoupling(network, passive)]
