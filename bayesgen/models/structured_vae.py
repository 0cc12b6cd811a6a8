"""A variational autoencoder that also says how its residuals are correlated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesgen._batching import native_batch
from bayesgen.distributions import StructuredNormal
from bayesgen.errors import DtypeError, OptionError, unknown_option
from bayesgen.models.autoencoding import encode_all, run_decoder, run_encoder, standardise
from bayesgen.models.networks import NetworkConfig, decoder, encoder, map_decoder, planes
from bayesgen.models.trainable import Player, Stage, Trainable
from bayesgen.models.vae import VAE, check_noise_level, divergence_from_prior
from bayesgen.types import check_count, check_positive

_COVARIANCES = ("structured", "diagonal", "identity")


@dataclass(frozen=True)
class StructuredVAEConfig(NetworkConfig):
    """Everything that fixes a `StructuredVAE`; see there for the fields."""

    noise_level: float = 0.1
    covariance: str = "structured"
    radius: int = 2
    noise_floor: float = 0.01
    fixed_mean: bool = False
    joint: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise_level(self.noise_level)
        check_count("radius", self.radius)
        if self.covariance not in _COVARIANCES:
            raise OptionError(unknown_option("covariance", self.covariance, _COVARIANCES))
        check_positive("noise_floor", self.noise_floor)
        if self.noise_floor >= 1:
            raise OptionError(
                f"noise_floor: got {self.noise_floor}; expected less than 1, all of the range of "
                "intensities"
            )
        if self.fixed_mean and self.joint:
            raise OptionError("joint: the means cannot be fine-tuned where fixed_mean is set")

    @property
    def num_neighbours(self) -> int:
        """Pixels after a pixel, in raster order, that it is tied to."""
        return 2 * self.radius * (self.radius + 1) if self.covariance == "structured" else 0


class StructuredVAE(Trainable):
    r"""Variational autoencoder with correlated residuals.

    .. math:: x | z \sim N(G(z), \Sigma(z)), \qquad \Sigma(z)^{-1} = L(z) L(z)^T

    with :math:`L` a sparse Cholesky factor (see `bayesgen.distributions.StructuredNormal`). A
    second decoder predicts, for each pixel p, its conditional standard deviation :math:`e^{-a_p}`
    given the pixels after it, and its weights on those, :math:`w_{pk}`, so that
    :math:`(L^T r)_p = e^{a_p} (r_p + \sum_k w_{pk} r_{p + \delta_k})`.

    Training has two stages, or three. First the means learn as in a `VAE`. Then they are fixed and
    the covariance learns from the residuals of *reserved* images, which the means have not seen:
    those of training images are smaller and would make it over-confident. A joint stage at a tenth
    of the step size is optional.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, intensities in [0, 1]. Channels are independent given z.
    latent_dim
        Length of a latent vector, at most the number of pixels.
    layout, width, blocks, channels
        The networks; see `bayesgen.models.networks.NetworkConfig`. The covariance decoder is always
        convolutional.
    noise_level
        :math:`\rho` of the first stage, see `VAE`; also the standard deviation of all pixels
        before the second.
    covariance
        ``"structured"``; or ``"diagonal"``, independent pixels with variances that depend on z; or
        ``"identity"``, one learned variance.
    radius
        Neighbours up to so many rows and columns away are tied; 1, 2, 3 mean 4, 12, 24 weights a
        pixel.
    noise_floor
        Standard deviation of white noise that the residuals are taken to contain, beside what they
        are: the least that a pixel's conditional standard deviation can be. It decides where the
        data does not speak. Where images are flat, neighbours predict each other whatever their
        weights, and draws with the weights that then happen to be learned can be thousands of
        times wider than residuals; with noise on them, flat pixels are independent. 0.01 is small
        beside the residuals of strokes and edges; take less for images of little contrast.
    fixed_mean
        Leave out the first stage; see `from_vae`.
    joint
        Add the third stage.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : StructuredVAEConfig
        The settings above, without the seed.
    card : dict
        The model card; see `bayesgen.models.load`.

    Raises
    ------
    OptionError
        If a setting is out of its range.

    References
    ----------
    Dorta, Vicente, Agapito, Campbell and Simpson (2018), Structured uncertainty prediction
    networks.
    Duff, Simpson, Ehrhardt and Campbell (2023), VAEs with structured image covariance applied to
    compressed sensing MRI.

    Examples
    --------
    >>> G = StructuredVAE((28, 28), latent_dim=16, radius=2)
    >>> z = torch.zeros(3, 16)
    >>> G.conditional(z)
    StructuredNormal(batch_shape=(3,), event_shape=(28, 28))
    """

    config: StructuredVAEConfig

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        layout: str = StructuredVAEConfig.layout,
        width: int = StructuredVAEConfig.width,
        blocks: int = StructuredVAEConfig.blocks,
        channels: int = StructuredVAEConfig.channels,
        noise_level: float = StructuredVAEConfig.noise_level,
        covariance: str = StructuredVAEConfig.covariance,
        radius: int = StructuredVAEConfig.radius,
        noise_floor: float = StructuredVAEConfig.noise_floor,
        fixed_mean: bool = StructuredVAEConfig.fixed_mean,
        joint: bool = StructuredVAEConfig.joint,
        seed: int = 0,
    ) -> None:
        sizes = (layout, width, blocks, channels)
        stages = (fixed_mean, joint)
        config = StructuredVAEConfig(
            tuple(image_shape),
            latent_dim,
            *sizes,
            noise_level,
            covariance,
            radius,
            noise_floor,
            *stages,
        )
        super().__init__(config, seed)
        self._start_at_noise_level()

    @classmethod
    def from_vae(
        cls,
        vae: VAE | StructuredVAE,
        *,
        covariance: str | None = None,
        radius: int | None = None,
        noise_floor: float | None = None,
        seed: int = 0,
    ) -> StructuredVAE:
        """Add a covariance to a trained generator, whose means and encoder stay as they are.

        Train the result on other images than the generator was trained on, or a `StructuredVAE`
        on the same images with the same seed and validation: the same images are then reserved,
        from which the means have not learned.

        Parameters
        ----------
        vae
            The trained generator.
        covariance, radius, noise_floor
            See `StructuredVAE`; by default as those of the generator, if it has any.
        seed
            Seed of the initial weights.

        Returns
        -------
        StructuredVAE
            In the dtype and on the device of the generator.

        Raises
        ------
        DtypeError
            If the generator is of another kind.
        OptionError
            If a setting is out of its range.

        Examples
        --------
        >>> vae = VAE((28, 28), latent_dim=16)
        >>> G, z = StructuredVAE.from_vae(vae, radius=1), torch.zeros(16)
        >>> torch.equal(G(z), vae(z))
        True
        """
        if not isinstance(vae, VAE | StructuredVAE):
            raise DtypeError(f"vae: expected a VAE or a StructuredVAE, got {type(vae).__name__}")
        names = [field.name for field in dataclasses.fields(NetworkConfig)]
        given = {"covariance": covariance, "radius": radius, "noise_floor": noise_floor}
        for name, value in given.items():
            default = getattr(vae.config, name, getattr(StructuredVAEConfig, name))
            given[name] = default if value is None else value
        settings: Any = {name: getattr(vae.config, name) for name in names} | given
        level = vae.noise_level if isinstance(vae, VAE) else vae.config.noise_level
        model = cls(**settings, noise_level=level, fixed_mean=True, seed=seed)
        model.to(next(vae.parameters()))
        model.encoder.load_state_dict(vae.encoder.state_dict())
        model.decoder.load_state_dict(vae.decoder.state_dict())
        return model

    def build(self) -> None:
        self.encoder = encoder(self.config, 2 * self.latent_dim)
        self.decoder = decoder(self.config)
        channels = planes(self.image_shape)[0]
        if self.config.covariance == "identity":
            self.covariance_decoder: _OneNumber | nn.Sequential = _OneNumber()
        else:
            maps = channels * (1 + self.config.num_neighbours)
            self.covariance_decoder = map_decoder(self.config, maps)

    @torch.no_grad()
    def _start_at_noise_level(self) -> None:
        """Begin with independent pixels of the first stage's noise level."""
        fraction = math.log(self.config.noise_level) / math.log(self.config.noise_floor)
        fraction = min(max(fraction, 0.02), 0.98)
        level = math.log(fraction / (1 - fraction))
        if isinstance(self.covariance_decoder, _OneNumber):
            self.covariance_decoder.value.fill_(level)
            return
        last = [layer for layer in self.covariance_decoder if isinstance(layer, nn.Conv2d)][-1]
        last.weight.mul_(0.01)
        # Sixteen sub-pixels of the first map of every channel.
        bias = cast(Tensor, last.bias).reshape(planes(self.image_shape)[0], -1, 16)
        bias[:, 0] = level

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

    def conditional(self, z: Tensor) -> StructuredNormal:
        """Return the law of images given ``z``, N(G(z), Sigma(z)).

        Parameters
        ----------
        z
            Latent vectors ``(*batch, latent_dim)``.

        Examples
        --------
        >>> law = StructuredVAE((8, 8), latent_dim=2).conditional(torch.zeros(2))
        >>> law.log_prob(torch.zeros(5, 8, 8)).shape
        torch.Size([5])
        """
        return self._normal(self(z), *self._maps(z))

    def residual_prior(self, z: Tensor | None = None) -> StructuredNormal:
        """Return the law N(0, Sigma(z)) of x - G(z).

        Parameters
        ----------
        z
            Latent vectors ``(*batch, latent_dim)``.

        Raises
        ------
        OptionError
            If ``z`` is not given.

        Examples
        --------
        >>> StructuredVAE((8, 8), latent_dim=2).residual_prior(torch.zeros(5, 2))
        StructuredNormal(batch_shape=(5,), event_shape=(8, 8))
        """
        if z is None:
            raise OptionError("z: the residuals of this generator depend on z; residual_prior(z)")
        self._check("z", z, (self.latent_dim,))
        return self._normal(z.new_zeros(*z.shape[:-1], *self.image_shape), *self._maps(z))

    def mean_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the negative evidence lower bound with noise of one level; see `VAE.loss`.

        Parameters
        ----------
        x
            Images ``(batch, *image_shape)``.
        rng
            Source of the random latent vectors.

        Returns
        -------
        dict
            ``"loss"`` and its parts: ``"mse"``, the squared error a pixel, and ``"kl"``, in nats.
        """
        z, kl = self._draw(x, rng)
        sse = (x - self.decode(z)).flatten(1).square().sum(1).mean()
        loss = sse / (2 * self.config.noise_level**2) + kl
        return {"loss": loss, "mse": sse / x[0].numel(), "kl": kl}

    def covariance_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the negative log density of residuals and noise of `noise_floor`, in nats a pixel.

        Arguments as of `mean_loss`; ``"loss"`` is its only part.
        """
        z, _ = self._draw(x, rng)
        return {"loss": self._surprise(x, z.detach(), rng)}

    def joint_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the negative evidence lower bound with correlated residuals, in nats a pixel.

        Arguments as of `mean_loss`; ``"loss"`` is the sum of ``"nll"``, see `covariance_loss`, and
        ``"kl"``.
        """
        z, kl = self._draw(x, rng)
        nll, kl = self._surprise(x, z, rng), kl / x[0].numel()
        return {"loss": nll + kl, "nll": nll, "kl": kl}

    def stages(self) -> tuple[Stage, ...]:
        """Means, then covariance on reserved images, then, if asked for, all together."""
        mean = Stage("mean", (Player((self.encoder, self.decoder), self.mean_loss),))
        learner = Player((self.covariance_decoder,), self.covariance_loss)
        covariance = Stage("covariance", (learner,), images="reserved")
        joint = Stage("joint", (Player((self,), self.joint_loss, learning_rate=0.1),), share=0.3)
        before = () if self.config.fixed_mean else (mean,)
        return (*before, covariance, *([joint] if self.config.joint else []))

    def finish(self, images: Tensor, held_out: Tensor) -> None:
        """Standardise the latent coordinates."""
        if self.config.fixed_mean:
            return
        decoders = [self.decoder]
        if isinstance(self.covariance_decoder, nn.Sequential):
            decoders.append(self.covariance_decoder)
        mean, log_std = encode_all(self.encoder, images, self.image_shape).chunk(2, -1)
        standardise(decoders, self.encoder, mean, (2 * log_std).exp())

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = run_encoder(self.encoder, x, self.image_shape).chunk(2, -1)
        return mean, log_std

    def _draw(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One latent vector for each image, and the mean divergence of their laws."""
        mean, log_std = self._posterior(x)
        noise = torch.randn(mean.shape, generator=rng, dtype=x.dtype, device=x.device)
        return mean + log_std.exp() * noise, divergence_from_prior(mean, log_std).mean()

    def _surprise(self, x: Tensor, z: Tensor, rng: torch.Generator) -> Tensor:
        """Negative log density a pixel, given ``z``, of images with the least noise."""
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)
        noisy = x + self.config.noise_floor * noise
        return -self._normal(self.decode(z), *self._maps(z)).log_prob(noisy).mean() / x[0].numel()

    def _normal(
        self, loc: Tensor, log_diagonal: Tensor, weights: Tensor | None
    ) -> StructuredNormal:
        off_diagonal = None if weights is None else log_diagonal.exp().unsqueeze(-3) * weights
        event_dim = len(self.image_shape)
        return StructuredNormal(
            loc, log_diagonal, off_diagonal, event_dim=event_dim, validate_args=False
        )

    def _maps(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log inverse conditional standard deviations, and weights of the neighbours."""
        if isinstance(self.covariance_decoder, _OneNumber):
            log_diagonal = self._log_inverse_std(self.covariance_decoder.value)
            return log_diagonal.expand(*z.shape[:-1], *self.image_shape), None
        maps = native_batch(self._decode_maps, z)
        log_diagonal = self._log_inverse_std(maps[..., 0, :, :])
        return log_diagonal, maps[..., 1:, :, :] if self.config.num_neighbours else None

    def _log_inverse_std(self, logit: Tensor) -> Tensor:
        """Of a pixel given those after it: between the noise floor and all of [0, 1]."""
        return -math.log(self.config.noise_floor) * logit.sigmoid()

    def _decode_maps(self, z: Tensor) -> Tensor:
        """``(*batch, 1 + num_neighbours, y, x)``, with the channels, if any, before the maps."""
        *channels, rows, columns = self.image_shape
        maps: Tensor = self.covariance_decoder(z.reshape(-1, self.latent_dim))
        shape = (*channels, 1 + self.config.num_neighbours, rows, columns)
        return maps.reshape(*z.shape[:-1], *shape)


class _OneNumber(nn.Module):
    """The same number whatever the latent vector."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(()))
