"""The plain autoencoder: faithful, but without a prior until one is fitted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen.errors import DataError, OptionError
from bayesgen.models.autoencoding import (
    encode_all,
    pixelwise,
    residual_std,
    run_decoder,
    run_encoder,
    standardise,
)
from bayesgen.models.mixture import fit_mixture, mixture
from bayesgen.models.networks import NetworkConfig, decoder, encoder
from bayesgen.models.trainable import Player, Stage, Trainable
from bayesgen.types import check_count


@dataclass(frozen=True)
class AEConfig(NetworkConfig):
    """Everything that fixes the architecture of an `AE`; see there for the fields."""

    components: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("components", self.components)


class AE(Trainable):
    r"""Autoencoder: :math:`\min \|x - G(E(x))\|^2`, and a latent prior fitted afterwards.

    Nothing in the training says which latent vectors are likely. After it, latent coordinates are
    changed so that encoded training images have mean zero and unit covariance, which makes
    :math:`N(0, I)` the Gaussian that fits them best; with several components a Gaussian mixture is
    fitted instead.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, intensities in [0, 1].
    latent_dim
        Length of a latent vector, at most the number of pixels.
    layout, width, blocks, channels
        The networks; see `bayesgen.models.networks.NetworkConfig`.
    components
        Components of the latent prior: 1, the default, is the standard normal that the papers use.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : AEConfig
        The settings above, without the seed.
    residual_std : Tensor
        Root mean square of x - G(E(x)) in every pixel, over images that were not trained on.
    card : dict
        The model card; see `bayesgen.models.load`.

    Raises
    ------
    OptionError
        If a setting is out of its range.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, section 3.1.

    Examples
    --------
    >>> G = AE((28, 28), latent_dim=8)
    >>> G(G.encode(torch.zeros(3, 28, 28))).shape
    torch.Size([3, 28, 28])
    """

    config: AEConfig
    residual_std: Tensor
    log_weights: Tensor
    means: Tensor
    scale_tril: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        layout: str = AEConfig.layout,
        width: int = AEConfig.width,
        blocks: int = AEConfig.blocks,
        channels: int = AEConfig.channels,
        components: int = AEConfig.components,
        seed: int = 0,
    ) -> None:
        sizes = (layout, width, blocks, channels)
        super().__init__(AEConfig(tuple(image_shape), latent_dim, *sizes, components), seed)
        self.residual_std.fill_(0.1)
        if components > 1:
            self.log_weights.fill_(1 / components).log_()
            self.means.zero_()
            self.scale_tril.copy_(torch.eye(latent_dim).expand_as(self.scale_tril))

    def build(self) -> None:
        self.encoder = encoder(self.config, self.latent_dim)
        self.decoder = decoder(self.config)
        self.register_buffer("residual_std", torch.empty(self.image_shape))
        if self.config.components > 1:
            size, dim = self.config.components, self.latent_dim
            self.register_buffer("log_weights", torch.empty(size))
            self.register_buffer("means", torch.empty(size, dim))
            self.register_buffer("scale_tril", torch.empty(size, dim, dim))

    def decode(self, z: Tensor) -> Tensor:
        """Decode without checks; call the generator itself, ``G(z)``."""
        return run_decoder(self.decoder, z, self.image_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latent vectors ``(*batch, latent_dim)`` of ``(*batch, *image_shape)``."""
        self._check("x", x, self.image_shape)
        return run_encoder(self.encoder, x, self.image_shape)

    def prior(self) -> dist.TorchDistribution:
        """Return the fitted prior: standard normal, or a Gaussian mixture."""
        if self.config.components == 1:
            return super().prior()
        return mixture(self.log_weights, self.means, self.scale_tril)

    def residual_prior(self, z: Tensor | None = None) -> dist.TorchDistribution:
        """Return independent normals of width ``residual_std``, whatever ``z``."""
        return pixelwise(self.residual_std)

    def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the squared error of an image, averaged over a batch ``(batch, *image_shape)``."""
        residual = x - self.decode(run_encoder(self.encoder, x, self.image_shape))
        sse = residual.flatten(1).square().sum(1).mean()
        return {"loss": sse, "mse": sse / x[0].numel()}

    def stages(self) -> tuple[Stage, ...]:
        """One stage: everything learns from `loss`."""
        return (Stage("squared error", (Player((self,), self.loss),)),)

    def require_images(self, num: int) -> None:
        """Refuse a number of training images that no mixture can be fitted to.

        Parameters
        ----------
        num
            How many images `finish` will be given.

        Raises
        ------
        OptionError
            If they are fewer than components, or do not span the latent space.

        Examples
        --------
        >>> AE((8, 8), latent_dim=2, components=3).require_images(3)
        """
        needed = max(self.config.components, self.latent_dim + 1)
        if self.config.components > 1 and num < needed:
            raise OptionError(
                f"components: {self.config.components} in {self.latent_dim} latent dimensions are "
                f"fitted to at least {needed} training images, but there are {num}, without those "
                "held out; take fewer components or more images"
            )

    def finish(self, images: Tensor, held_out: Tensor) -> None:
        """Standardise the latent coordinates, fit the prior, measure the residuals.

        Warns
        -----
        RuntimeWarning
            If no mixture could be fitted, or the fit has not converged.
        """
        z = encode_all(self.encoder, images, self.image_shape)
        standardise([self.decoder], self.encoder, z)
        if self.config.components > 1:
            self._fit_prior(encode_all(self.encoder, images, self.image_shape))
        z = encode_all(self.encoder, held_out, self.image_shape)
        self.residual_std.copy_(residual_std(self, held_out, z))

    def _fit_prior(self, z: Tensor) -> None:
        try:
            fitted = fit_mixture(z, self.config.components)
        except DataError as problem:
            # A finished training is worth more than its prior.
            warnings.warn(
                f"components: no mixture fits the encoded training images, so the prior is the "
                f"standard normal; {problem}",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        prior = (self.log_weights, self.means, self.scale_tril)
        for mine, found in zip(prior, fitted, strict=True):
            mine.copy_(found)
