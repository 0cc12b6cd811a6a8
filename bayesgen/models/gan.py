"""Generative adversarial networks: a generator and the critic it learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesgen.errors import OptionError
from bayesgen.models.autoencoding import encode_all, run_decoder, run_encoder
from bayesgen.models.calibration import fit_log_odds
from bayesgen.models.networks import NetworkConfig, critic, decoder
from bayesgen.models.settings import TrainingSettings
from bayesgen.models.trainable import Player, Stage, Trainable
from bayesgen.types import check_count

# Adversaries change all the time; momentum would follow where they were.
_BETAS = (0.0, 0.99)
_ADVERSARIAL = TrainingSettings(batch_size=64, learning_rate=3e-4)
# As published with the gradient penalty.
_WGAN_BETAS = (0.0, 0.9)


@dataclass(frozen=True)
class GANConfig(NetworkConfig):
    """Everything that fixes a `GAN`; see there for the fields."""

    penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_penalty(self.penalty)


@dataclass(frozen=True)
class WGANConfig(NetworkConfig):
    """Everything that fixes a `WGAN`; see there for the fields."""

    penalty: float = 10.0
    critic_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_penalty(self.penalty)
        check_count("critic_steps", self.critic_steps)


class GAN(Trainable):
    r"""Generative adversarial network whose discriminator tells real from generated images.

    .. math:: \min_D E[\operatorname{softplus}(-D(x))] + E[\operatorname{softplus}(D(G(z)))]
        + \tfrac\gamma2 E\|\nabla D(x)\|^2, \qquad \min_G E[\operatorname{softplus}(-D(G(z)))]

    At its best and without penalty, :math:`D(x)` is the logarithm of the ratio of the densities of
    real and generated images. The penalty, which the game needs to converge, makes it many times
    flatter. After training its scale and offset are therefore fitted to images that were not
    trained on, so that what `discriminate` returns are log odds: those of the best guess that this
    discriminator allows, which is less than the ratio of the densities tells.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, intensities in [0, 1].
    latent_dim
        Length of a latent vector, at most the number of pixels.
    layout, width, blocks, channels
        The networks; see `bayesgen.models.networks.NetworkConfig`.
    penalty
        :math:`\gamma`, without which the game need not converge (Mescheder et al.); 0 gives the
        published form.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : GANConfig
        The settings above, without the seed.
    card : dict
        The model card; see `bayesgen.models.load`.

    Raises
    ------
    OptionError
        If a setting is out of its range.

    References
    ----------
    Goodfellow et al. (2014), Generative adversarial nets.
    Mescheder, Geiger and Nowozin (2018), Which training methods for GANs do actually converge?,
    equation 9.

    Examples
    --------
    >>> G = GAN((28, 28), latent_dim=8)
    >>> G.discriminate(G(torch.zeros(3, 8))).shape
    torch.Size([3])
    """

    config: GANConfig
    calibration: Tensor
    default_settings = _ADVERSARIAL

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        layout: str = GANConfig.layout,
        width: int = GANConfig.width,
        blocks: int = GANConfig.blocks,
        channels: int = GANConfig.channels,
        penalty: float = GANConfig.penalty,
        seed: int = 0,
    ) -> None:
        sizes = (layout, width, blocks, channels)
        super().__init__(GANConfig(tuple(image_shape), latent_dim, *sizes, penalty), seed)
        self.calibration.copy_(torch.tensor([1.0, 0.0]))

    def build(self) -> None:
        self.decoder = decoder(self.config)
        self.discriminator = critic(self.config)
        self.register_buffer("calibration", torch.empty(2))

    def decode(self, z: Tensor) -> Tensor:
        """Decode without checks; call the generator itself, ``G(z)``."""
        return run_decoder(self.decoder, z, self.image_shape)

    def discriminate(self, x: Tensor) -> Tensor:
        """Return the log odds ``(*batch,)`` that images ``(*batch, *image_shape)`` are real.

        Examples
        --------
        >>> GAN((8, 8), latent_dim=2).discriminate(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1])
        """
        self._check("x", x, self.image_shape)
        scale, offset = self.calibration
        return scale * self._score(x) + offset

    def discriminator_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the cross entropy of real and generated images, and the gradient penalty.

        Parameters
        ----------
        x
            Images ``(batch, *image_shape)``.
        rng
            Source of the random latent vectors.

        Returns
        -------
        dict
            ``"loss"`` and its parts: ``"discriminator"``, the cross entropy in nats, and
            ``"penalty"``, without its factor.
        """
        with torch.no_grad():
            fake = self.decode(draw_latent(self, len(x), rng))
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            real = self._score(x)
            (gradient,) = torch.autograd.grad(real.sum(), x, create_graph=True)
        entropy = nn.functional.softplus(-real) + nn.functional.softplus(self._score(fake))
        penalty = gradient.flatten(1).square().sum(1)
        loss = (entropy + 0.5 * self.config.penalty * penalty).mean()
        return {"loss": loss, "discriminator": entropy.mean(), "penalty": penalty.mean()}

    def generator_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return how readily the discriminator sees that generated images are not real.

        Arguments as of `discriminator_loss`; log 2 where the discriminator cannot tell.
        """
        score = self._score(self.decode(draw_latent(self, len(x), rng)))
        loss = nn.functional.softplus(-score).mean()
        return {"loss": loss, "generator": loss}

    def stages(self) -> tuple[Stage, ...]:
        """One stage, in which discriminator and generator take turns."""
        players = (
            Player((self.discriminator,), self.discriminator_loss, betas=_BETAS),
            Player((self.decoder,), self.generator_loss, betas=_BETAS),
        )
        return (Stage("game", players, monitored=False),)

    def finish(self, images: Tensor, held_out: Tensor) -> None:
        """Calibrate the discriminator, with as many generated images as were held out."""
        rng = torch.Generator(held_out.device).manual_seed(0)
        # Some at a time, so that memory beyond that of the images does not grow with their number.
        parts = [self.decode(draw_latent(self, len(x), rng)) for x in torch.split(held_out, 1000)]
        scores = [
            encode_all(self.discriminator, images, self.image_shape).squeeze(-1)
            for images in (held_out, torch.cat(parts))
        ]
        self.calibration.copy_(torch.tensor(fit_log_odds(*scores)))

    def _score(self, x: Tensor) -> Tensor:
        return run_encoder(self.discriminator, x, self.image_shape).squeeze(-1)


class WGAN(Trainable):
    r"""Wasserstein generative adversarial network with gradient penalty.

    .. math:: \min_C E[C(G(z))] - E[C(x)] + \lambda E(\|\nabla C(\hat x)\| - 1)^2,
        \qquad \min_G -E[C(G(z))]

    with :math:`\hat x` on the segment between a real and a generated image, and the norm over all
    pixels of an image. Every step draws fresh latent vectors and images.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, intensities in [0, 1].
    latent_dim
        Length of a latent vector, at most the number of pixels.
    layout, width, blocks, channels
        The networks; see `bayesgen.models.networks.NetworkConfig`.
    penalty
        :math:`\lambda`, 10 as published.
    critic_steps
        Steps of the critic for each of the generator, 5 as published.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : WGANConfig
        The settings above, without the seed.
    critic : torch.nn.Sequential
        From images ``(N, channel, y, x)`` to ``(N, 1)``; larger for real ones.
    card : dict
        The model card; see `bayesgen.models.load`.

    Raises
    ------
    OptionError
        If a setting is out of its range.

    Notes
    -----
    The critic's values are no log odds, so `discriminate` is not there.

    References
    ----------
    Gulrajani et al. (2017), Improved training of Wasserstein GANs, algorithm 1.
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, section 3.3.

    Examples
    --------
    >>> G = WGAN((28, 28), latent_dim=8)
    >>> G(torch.zeros(3, 8)).shape
    torch.Size([3, 28, 28])
    """

    config: WGANConfig
    default_settings = _ADVERSARIAL

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        layout: str = WGANConfig.layout,
        width: int = WGANConfig.width,
        blocks: int = WGANConfig.blocks,
        channels: int = WGANConfig.channels,
        penalty: float = WGANConfig.penalty,
        critic_steps: int = WGANConfig.critic_steps,
        seed: int = 0,
    ) -> None:
        sizes = (layout, width, blocks, channels)
        settings = (penalty, critic_steps)
        super().__init__(WGANConfig(tuple(image_shape), latent_dim, *sizes, *settings), seed)

    def build(self) -> None:
        self.decoder = decoder(self.config)
        self.critic = critic(self.config)

    def decode(self, z: Tensor) -> Tensor:
        """Decode without checks; call the generator itself, ``G(z)``."""
        return run_decoder(self.decoder, z, self.image_shape)

    def critic_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return minus the estimated Wasserstein distance, and the gradient penalty.

        Parameters
        ----------
        x
            Images ``(batch, *image_shape)``.
        rng
            Source of the random latent vectors and points on the segments.

        Returns
        -------
        dict
            ``"loss"`` and its parts: ``"distance"``, the mean value of real less that of generated
            images, and ``"penalty"``, without its factor.
        """
        with torch.no_grad():
            fake = self.decode(draw_latent(self, len(x), rng))
        sides = (len(x), *(1 for _ in self.image_shape))
        part = torch.rand(sides, generator=rng, dtype=x.dtype, device=x.device)
        between = torch.lerp(x, fake, part).requires_grad_()
        with torch.enable_grad():
            total = self._score(between).sum()
            (gradient,) = torch.autograd.grad(total, between, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        distance = (self._score(x) - self._score(fake)).mean()
        loss = self.config.penalty * penalty - distance
        return {"loss": loss, "distance": distance, "penalty": penalty}

    def generator_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return minus the critic's value of generated images.

        Arguments as of `critic_loss`.
        """
        loss = -self._score(self.decode(draw_latent(self, len(x), rng))).mean()
        return {"loss": loss, "generator": loss}

    def stages(self) -> tuple[Stage, ...]:
        """One stage, in which the critic learns at every step and the generator at some."""
        every = self.config.critic_steps
        players = (
            Player((self.critic,), self.critic_loss, betas=_WGAN_BETAS),
            Player((self.decoder,), self.generator_loss, every=every, betas=_WGAN_BETAS),
        )
        return (Stage("game", players, monitored=False),)

    def _score(self, x: Tensor) -> Tensor:
        return run_encoder(self.critic, x, self.image_shape).squeeze(-1)


def draw_latent(generator: Trainable, num: int, rng: torch.Generator) -> Tensor:
    """Standard normal latent vectors ``(num, latent_dim)`` of the generator's dtype and device.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> draw_latent(GAN((8, 8), latent_dim=2), 3, rng).shape
    torch.Size([3, 2])
    """
    weight = next(generator.parameters())
    shape = (num, generator.latent_dim)
    return torch.randn(shape, generator=rng, dtype=weight.dtype, device=weight.device)


def _check_penalty(penalty: float) -> None:
    if not isinstance(penalty, int | float) or not 0 <= penalty < float("inf"):
        raise OptionError(f"penalty: got {penalty!r}; expected a number of at least 0")
