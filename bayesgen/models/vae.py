"""The variational autoencoder: a generator learned together with an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesgen.errors import OptionError
from bayesgen.models.autoencoding import (
    encode_all,
    pixelwise,
    residual_std,
    run_decoder,
    run_encoder,
    standardise,
)
from bayesgen.models.networks import NetworkConfig, decoder, encoder
from bayesgen.models.trainable import Player, Stage, Trainable
from bayesgen.types import check_positive

# Intensities just below 1 in single precision are that far apart. Its inverse square, by which
# errors are multiplied, and the square of that, which Adam takes, are still far from overflow.
_LEAST_NOISE = 2.0**-24


@dataclass(frozen=True)
class VAEConfig(NetworkConfig):
    """Everything that fixes the architecture of a `VAE`; see there for the fields."""

    noise_level: float = 0.1
    learn_noise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise_level(self.noise_level)


class VAE(Trainable):
    r"""Variational autoencoder with Gaussian pixels of one noise level.

    An image is modelled as :math:`x = G(z) + \rho\,\epsilon` with :math:`z` and :math:`\epsilon`
    standard normal, and the encoder as :math:`z | x \sim N(m(x), \operatorname{diag} s(x)^2)`.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, intensities in [0, 1].
    latent_dim
        Length of a latent vector, at most the number of pixels.
    layout
        The networks; see `bayesgen.models.networks`. The default, a residual multilayer perceptron,
        is the fastest for small images; ``"convolution"`` fits images of moving objects better.
    width
        Units of each hidden layer of the decoder; the encoder's hidden layer has half as many.
    blocks
        Residual blocks between the decoder's first and last linear layer.
    channels
        Channels of the convolutions.
    noise_level
        :math:`\rho`, in units of intensity. Small values favour faithful reconstructions, large
        ones latent vectors that follow the prior. The default is a little above the root mean
        square residual of a 16-dimensional model of handwritten digits, 0.08.
    learn_noise
        Learn :math:`\rho` as well, from ``noise_level`` on. It ends at the root mean square
        residual of the training images.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : VAEConfig
        The settings above, without the seed.
    residual_std : Tensor
        Root mean square of x - G(m(x)) in every pixel, over images that were not trained on; the
        noise level until training has finished. The encoder's m(x) is not the best latent vector,
        so this is somewhat wider than the distance from the range.
    card : dict
        The model card: on what and how the model was trained and how good it is, as found by
        `bayesgen.models.load`.

    Raises
    ------
    OptionError
        If a setting is out of its range.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes.
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, equation 6.

    Examples
    --------
    >>> G = VAE((28, 28), latent_dim=16)
    >>> G(torch.zeros(3, 16)).shape, G.encode(torch.zeros(3, 28, 28)).shape
    (torch.Size([3, 28, 28]), torch.Size([3, 16]))
    """

    config: VAEConfig
    residual_std: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        layout: str = VAEConfig.layout,
        width: int = VAEConfig.width,
        blocks: int = VAEConfig.blocks,
        channels: int = VAEConfig.channels,
        noise_level: float = VAEConfig.noise_level,
        learn_noise: bool = VAEConfig.learn_noise,
        seed: int = 0,
    ) -> None:
        sizes = (layout, width, blocks, channels)
        config = VAEConfig(tuple(image_shape), latent_dim, *sizes, noise_level, learn_noise)
        super().__init__(config, seed)
        self.residual_std.fill_(noise_level)
        if learn_noise:
            nn.init.constant_(self.log_noise, math.log(noise_level))

    def build(self) -> None:
        self.encoder = encoder(self.config, 2 * self.latent_dim)
        self.decoder = decoder(self.config)
        self.register_buffer("residual_std", torch.empty(self.image_shape))
        if self.config.learn_noise:
            self.log_noise = nn.Parameter(torch.empty(()))

    @property
    def noise_level(self) -> float:
        r""":math:`\rho`, given or learned."""
        return self.log_noise.exp().item() if self.config.learn_noise else self.config.noise_level

    def decode(self, z: Tensor) -> Tensor:
        """Decode without checks; call the generator itself, ``G(z)``."""
        return run_decoder(self.decoder, z, self.image_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return the encoder's mean, ``(*batch, latent_dim)``, for ``(*batch, *image_shape)``."""
        return self.encoding(x).mean

    def encoding(self, x: Tensor) -> dist.TorchDistribution:
        """Return the encoder's distribution of the latent vectors of ``(*batch, *image_shape)``."""
        self._check("x", x, self.image_shape)
        mean, log_std = self._posterior(x)
        return dist.Independent(dist.Normal(mean, log_std.exp()), 1)

    def conditional(self, z: Tensor) -> dist.TorchDistribution:
        """Return the law of images given ``z`` that training assumes, N(G(z), rho^2 I)."""
        normal = dist.Normal(self(z), self.noise_level)
        return dist.Independent(normal, len(self.image_shape))

    def residual_prior(self, z: Tensor | None = None) -> dist.TorchDistribution:
        """Return independent normals of width ``residual_std``, whatever ``z``."""
        return pixelwise(self.residual_std)

    def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        r"""Return the negative evidence lower bound, up to a constant, averaged over a batch.

        .. math:: \|x - G(z)\|^2 / (2\rho^2) + n \log\rho
            + KL(N(m(x), \operatorname{diag} s(x)^2), N(0, I))

        with one random :math:`z` from the encoder for each image. The middle term is left out where
        :math:`\rho` is given.

        Parameters
        ----------
        x
            Images ``(batch, *image_shape)``.
        rng
            Source of the random latent vectors.

        Returns
        -------
        dict
            ``"loss"`` and its parts: ``"mse"``, the squared error per pixel, and ``"kl"``, in nats;
            ``"noise"``, if it is learned.
        """
        mean, log_std = self._posterior(x)
        num_pixels = math.prod(self.image_shape)
        noise = torch.randn(mean.shape, generator=rng, dtype=x.dtype, device=x.device)
        residual = x - self.decode(mean + log_std.exp() * noise)
        sse = residual.flatten(1).square().sum(1).mean()
        kl = divergence_from_prior(mean, log_std).mean()
        parts = {"mse": sse / num_pixels, "kl": kl}
        if not self.config.learn_noise:
            return {"loss": sse / (2 * self.config.noise_level**2) + kl, **parts}
        fit = 0.5 * sse * (-2 * self.log_noise).exp() + num_pixels * self.log_noise
        return {"loss": fit + kl, **parts, "noise": self.log_noise.exp()}

    def stages(self) -> tuple[Stage, ...]:
        """One stage: everything learns from `loss`."""
        return (Stage("evidence bound", (Player((self,), self.loss),)),)

    def finish(self, images: Tensor, held_out: Tensor) -> None:
        """Standardise the latent coordinates and measure the residuals of held-out images."""
        mean, log_std = encode_all(self.encoder, images, self.image_shape).chunk(2, -1)
        standardise([self.decoder], self.encoder, mean, (2 * log_std).exp())
        z = encode_all(self.encoder, held_out, self.image_shape).chunk(2, -1)[0]
        self.residual_std.copy_(residual_std(self, held_out, z))

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the encoder's distribution."""
        mean, log_std = run_encoder(self.encoder, x, self.image_shape).chunk(2, -1)
        return mean, log_std


def divergence_from_prior(mean: Tensor, log_std: Tensor) -> Tensor:
    """Kullback-Leibler divergence of diagonal Gaussians ``(*batch, d)`` from N(0, I), in nats."""
    return (0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std).sum(-1)


def check_noise_level(noise_level: float) -> None:
    """Refuse a level of pixel noise that is no positive number, or beyond all sense."""
    check_positive("noise_level", noise_level)
    if not _LEAST_NOISE <= noise_level <= 1 / _LEAST_NOISE:
        raise OptionError(
            f"noise_level: got {noise_level!r}; expected {_LEAST_NOISE:.1g} to "
            f"{1 / _LEAST_NOISE:.1g}, for intensities are in [0, 1] and themselves rounded to "
            f"{_LEAST_NOISE:.1g} in single precision; customary is 0.01 to 1"
        )
