"""The variational autoencoder: a generator learned together with an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesgen.errors import OptionError
from bayesgen.models.base import Generator


@dataclass(frozen=True)
class VAEConfig:
    """Everything that fixes the architecture of a `VAE`; see there for the fields."""

    image_shape: tuple[int, ...]
    latent_dim: int
    width: int = 512
    blocks: int = 1
    channels: int = 32
    noise_level: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        if len(self.image_shape) not in (2, 3) or min(self.image_shape[-2:]) < 4:
            raise OptionError(
                "image_shape: expected (y, x) or (channel, y, x) of at least 4 by 4 pixels, "
                f"got {self.image_shape}"
            )
        if not 1 <= self.latent_dim <= math.prod(self.image_shape):
            raise OptionError(
                f"latent_dim: expected 1 to {math.prod(self.image_shape)} (the pixels of one "
                f"image), got {self.latent_dim}"
            )
        for name in ("width", "channels"):
            if getattr(self, name) < 2:
                raise OptionError(f"{name}: expected at least 2, got {getattr(self, name)}")
        if self.blocks < 0:
            raise OptionError(f"blocks: expected at least 0, got {self.blocks}")
        if not 0 < self.noise_level < math.inf:
            raise OptionError(f"noise_level: expected a positive number, got {self.noise_level}")


class VAE(Generator):
    r"""Variational autoencoder with Gaussian pixels of fixed noise level.

    An image is modelled as :math:`x = G(z) + \rho\,\epsilon` with :math:`z` and :math:`\epsilon`
    standard normal, and the encoder as :math:`z | x \sim N(m(x), \operatorname{diag} s(x)^2)`.

    The decoder, which inference evaluates many thousand times, is a residual multilayer perceptron
    with sigmoid output: on a CPU it reconstructs better than transposed convolutions of the same
    running time, and its smooth activations suit gradient-based samplers. The encoder, used in
    training and for starting points only, is convolutional.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, intensities in [0, 1].
    latent_dim
        Length of a latent vector, at most the number of pixels.
    width
        Units of each hidden layer of the decoder; the encoder's hidden layer has half as many.
    blocks
        Residual blocks between the decoder's first and last layer.
    channels
        Channels of the encoder's convolution.
    noise_level
        :math:`\rho`, in units of intensity. Small values favour faithful reconstructions, large
        ones latent vectors that follow the prior. The default is a little above the root mean
        square residual of a 16-dimensional model of handwritten digits, 0.08.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : VAEConfig
        The settings above, without the seed.
    residual_std : Tensor
        Root mean square of x - G(m(x)) in every pixel, over images that were not trained on; the
        noise level until `fit_residual` is called. The encoder's m(x) is not the best latent
        vector, so this is somewhat wider than the distance from the range.
    card : dict
        The model card: on what and how the model was trained and how good it is, as found by
        `bayesgen.models.load`.

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

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        width: int = VAEConfig.width,
        blocks: int = VAEConfig.blocks,
        channels: int = VAEConfig.channels,
        noise_level: float = VAEConfig.noise_level,
        seed: int = 0,
    ) -> None:
        config = VAEConfig(tuple(image_shape), latent_dim, width, blocks, channels, noise_level)
        super().__init__(image_shape, latent_dim)
        self.config = config
        self.card: dict[str, Any] = {}
        # Built without storage, hence without random numbers: weights come from our own generator.
        with torch.device("meta"):
            self.encoder = _encoder(config)
            self.decoder = _decoder(config)
        self.to_empty(device="cpu")
        _initialise(self, torch.Generator().manual_seed(seed))
        self.residual_std: Tensor
        self.register_buffer("residual_std", torch.full(self.image_shape, config.noise_level))

    def decode(self, z: Tensor) -> Tensor:
        """Decode without checks; call the generator itself, ``G(z)``."""
        logits: Tensor = self.decoder(z)
        return logits.sigmoid().reshape(*z.shape[:-1], *self.image_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return the encoder's mean, ``(*batch, latent_dim)``, for ``(*batch, *image_shape)``."""
        self._check("x", x, self.image_shape)
        return self._posterior(x)[0]

    def residual_prior(self) -> dist.TorchDistribution:
        """Return independent normals of width ``residual_std``."""
        std = self.residual_std
        normal = dist.Normal(torch.zeros_like(std), std)
        return dist.Independent(normal, len(self.image_shape))

    @torch.no_grad()
    def fit_residual(self, images: Tensor) -> None:
        """Measure ``residual_std`` on images that were not trained on.

        Parameters
        ----------
        images
            ``(N, *image_shape)``.
        """
        self._check("images", images, self.image_shape)
        parts = torch.split(images, 1000)
        squares = sum((part - self(self.encode(part))).square().sum(0) for part in parts)
        # Eight-bit images are known to half a grey level; no pixel is modelled more sharply.
        self.residual_std.copy_((squares / len(images)).sqrt().clamp(min=0.5 / 255))

    def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        r"""Return the negative evidence lower bound, up to a constant, averaged over a batch.

        .. math:: \|x - G(z)\|^2 / (2\rho^2) + KL(N(m(x), \operatorname{diag} s(x)^2), N(0, I))

        with one random :math:`z` from the encoder for each image.

        Parameters
        ----------
        x
            Images ``(batch, *image_shape)``.
        rng
            Source of the random latent vectors.

        Returns
        -------
        dict
            ``"loss"`` and its parts: ``"mse"``, the squared error per pixel, and ``"kl"``, in nats.
        """
        mean, log_std = self._posterior(x)
        noise = torch.randn(mean.shape, generator=rng, dtype=x.dtype, device=x.device)
        residual = x - self.decode(mean + log_std.exp() * noise)
        kl = 0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std
        sse, kl = residual.flatten(1).square().sum(1).mean(), kl.sum(1).mean()
        total = sse / (2 * self.config.noise_level**2) + kl
        return {"loss": total, "mse": sse / math.prod(self.image_shape), "kl": kl}

    @torch.no_grad()
    def standardise(self, images: Tensor) -> None:
        r"""Change latent coordinates so that encoded images have mean zero and unit covariance.

        Training only pulls the encoded images towards the prior. What remains of mean :math:`m`
        and covariance :math:`S^2` is removed exactly: :math:`G(m + S z)`, folded into the first
        layer of the decoder and the last of the encoder, has the same images and a better prior.

        Parameters
        ----------
        images
            ``(N, *image_shape)``, the training images or many of them.
        """
        parts = [self._posterior(part) for part in torch.split(images, 1000)]
        means, log_stds = (torch.cat(part) for part in zip(*parts, strict=True))
        shift = means.mean(0)
        covariance = torch.cov(means.T, correction=0).reshape(self.latent_dim, -1)
        covariance = covariance + torch.diag((2 * log_stds).exp().mean(0))
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        # The symmetric root changes the coordinates as little as possible.
        scale = vectors * eigenvalues.sqrt() @ vectors.T
        first, last = cast(nn.Linear, self.decoder[0]), cast(nn.Linear, self.encoder[-1])
        first.bias.add_(first.weight @ shift)
        first.weight.copy_(first.weight @ scale)
        last.bias[: self.latent_dim] -= shift
        for parameter in (last.weight, last.bias):
            mean = parameter[: self.latent_dim]
            mean.copy_(torch.linalg.solve(scale, mean))
        # The encoder's distribution stays diagonal, which is exact if the scale is.
        last.bias[self.latent_dim :] -= scale.diagonal().log()

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the encoder's distribution."""
        batch = x.shape[: x.ndim - len(self.image_shape)]
        planes = x.reshape(-1, *_planes(self.image_shape))
        mean, log_std = self.encoder(planes).reshape(*batch, 2 * self.latent_dim).chunk(2, -1)
        return mean, log_std


class _Residual(nn.Module):
    """``x + silu(W x + b)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.silu(self.linear(x))


def _planes(image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape with a channel dimension, which convolutions need."""
    return (1,) * (3 - len(image_shape)) + image_shape


def _decoder(config: VAEConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.latent_dim, config.width),
        nn.SiLU(),
        *(_Residual(config.width) for _ in range(config.blocks)),
        nn.Linear(config.width, math.prod(config.image_shape)),
    )


def _encoder(config: VAEConfig) -> nn.Sequential:
    # One wide convolution of stride 4: two of stride 2 took three times as long on a CPU.
    channel, rows, columns = _planes(config.image_shape)
    features = config.channels * (rows // 4) * (columns // 4)
    return nn.Sequential(
        nn.Conv2d(channel, config.channels, 8, stride=4, padding=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(features, config.width // 2),
        nn.SiLU(),
        nn.Linear(config.width // 2, 2 * config.latent_dim),
    )


def _initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Draw weights with variance 1 / fan-in; biases start at zero."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            scale = parameter[0].numel() ** -0.5
            with torch.no_grad():
                parameter.normal_(std=scale, generator=rng)
        else:
            nn.init.zeros_(parameter)
