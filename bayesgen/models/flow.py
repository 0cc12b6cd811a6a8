"""Normalising flows: generators that are bijections, hence have a density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesgen._batching import native_batch
from bayesgen.models.coupling import Chain, Invertible
from bayesgen.models.networks import planes
from bayesgen.models.trainable import Player, Stage, Trainable


class Flow(Trainable):
    r"""A generator that is invertible: every image has one latent vector, and a density.

    .. math:: \log p(x) = \log N(G^{-1}(x); 0, I) + \log|\det \partial G^{-1} / \partial x|

    To write one:

    - define `layers`, which lists invertible layers from the data to the latent vectors;
    - override `dequantise` and `cell` if the data are rounded.

    Its range is everything, so no deviation from the range needs to be modelled. For samples of
    a lower "temperature" T, as in the literature, decode ``T * z``; the prior stays what it is.

    References
    ----------
    Papamakarios, Nalisnick, Rezende, Mohamed and Lakshminarayanan (2021), Normalizing flows for
    probabilistic modeling and inference, equation 3.
    """

    @property
    def cell(self) -> float:
        """Width of the interval that each value was rounded to; one without rounding."""
        return 1.0

    def layers(self) -> Sequence[Invertible]:
        """Return the layers, from data ``(N, ...)`` to latent vectors ``(N, latent_dim)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define layers")

    def build(self) -> None:
        """Compose the layers."""
        self.flow = Chain(self.layers())

    def decode(self, z: Tensor) -> Tensor:
        """Decode without checks; call the generator itself, ``G(z)``."""
        x, _ = self.flow.inverse(z.reshape(-1, self.latent_dim))
        return x.reshape(*z.shape[:-1], *self.image_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latent vectors ``(*batch, latent_dim)`` of ``(*batch, *image_shape)``."""
        self._check("x", x, self.image_shape)
        return native_batch(lambda x: self._latent(x)[0], x)

    def log_abs_det(self, z: Tensor) -> Tensor:
        r"""Return :math:`\log |\det \partial G / \partial z|`.

        Parameters
        ----------
        z
            Latent vectors ``(*batch, latent_dim)``.

        Returns
        -------
        Tensor
            Of shape ``(*batch,)``.
        """
        self._check("z", z, (self.latent_dim,))

        def log_det(z: Tensor) -> Tensor:
            return self.flow.inverse(z.reshape(-1, self.latent_dim))[1].reshape(z.shape[:-1])

        return native_batch(log_det, z)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of images, in nats.

        Parameters
        ----------
        x
            Images ``(*batch, *image_shape)``.

        Returns
        -------
        Tensor
            Of shape ``(*batch,)``.
        """
        self._check("x", x, self.image_shape)
        return native_batch(self._log_prob, x)

    def dequantise(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Undo rounding by random numbers; nothing by default."""
        return x

    def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the negative log-likelihood in bits per dimension, averaged over a batch.

        Parameters
        ----------
        x
            Images ``(batch, *image_shape)``.
        rng
            Source of the noise that undoes rounding.

        Returns
        -------
        dict
            ``"loss"``.
        """
        return {"loss": self._bits(self.dequantise(x, rng)).mean()}

    def stages(self) -> Sequence[Stage]:
        """Maximum likelihood."""
        return (Stage("likelihood", (Player((self.flow,), self.loss),)),)

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Normalise the input of every layer.

        Parameters
        ----------
        images
            A batch of training images.
        """
        self._check("images", images, self.image_shape)
        rng = torch.Generator(images.device).manual_seed(0)
        self.flow.prepare(self._arrays(self.dequantise(images, rng)))

    def _latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent vectors, and log-determinants of the inverse map."""
        batch = x.shape[: x.ndim - len(self.image_shape)]
        z, log_det = self.flow(self._arrays(x))
        return z.reshape(*batch, self.latent_dim), log_det.reshape(batch)

    def _log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self._latent(x)
        log_normal = -0.5 * (z.square().sum(-1) + self.latent_dim * math.log(2 * math.pi))
        return log_normal + log_det

    def _bits(self, x: Tensor) -> Tensor:
        """Bits per dimension of images that are not rounded."""
        log_mass = self._log_prob(x) / self.latent_dim + math.log(self.cell)
        return -log_mass / math.log(2)

    def _arrays(self, x: Tensor) -> Tensor:
        """One batch dimension, and a channel dimension for images."""
        shape = planes(self.image_shape) if len(self.image_shape) > 1 else self.image_shape
        return x.reshape(-1, *shape)
