"""What a learned prior is: a map from a latent vector to an image."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen._batching import native_batch
from bayesgen.errors import DtypeError, OptionError, ShapeError, unknown_option

_ABILITIES = ("encode", "residual_prior", "discriminate", "log_abs_det")


class Generator(torch.nn.Module):
    r"""A map :math:`G` from latent vectors to images, with a prior on the latent vectors.

    To write a generator:

    - call ``super().__init__(image_shape, latent_dim)``;
    - define `decode`, which takes any number of leading batch dimensions, also of size 0;
    - define `encode` if there is a natural guess of the latent vector of an image;
    - override `prior` if the latent vectors are not standard normal;
    - define `residual_prior` if it is known how far images are from the generator's range;
    - define `discriminate` if it comes with a classifier of real and generated images;
    - define `log_abs_det` if it is invertible; `encode` is then the exact inverse;
    - prove it with `bayesgen.models.check_generator`.

    Users call the generator itself, ``G(z)``, which checks ``z`` and then decodes it.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``, or any other shape of one image.
    latent_dim
        Length of a latent vector.

    Examples
    --------
    >>> class Ramp(Generator):
    ...     def decode(self, z):
    ...         return z * torch.linspace(0, 1, 4, dtype=z.dtype)
    >>> G = Ramp(image_shape=(4,), latent_dim=1)
    >>> G(torch.ones(5, 1)).shape, G.prior().event_shape
    (torch.Size([5, 4]), torch.Size([1]))
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        if not self.image_shape or any(size < 1 for size in self.image_shape):
            raise OptionError(f"image_shape: expected positive sizes, got {self.image_shape}")
        if latent_dim < 1:
            raise OptionError(f"latent_dim: expected at least 1, got {latent_dim}")

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``z`` of shape ``(*batch, latent_dim)`` into ``(*batch, *image_shape)``."""
        self._check("z", z, (self.latent_dim,))
        x = native_batch(self.decode, z)
        if x.shape != z.shape[:-1] + self.image_shape:
            raise ShapeError(
                f"{type(self).__name__}.decode: made shape {tuple(x.shape)} of latent vectors "
                f"{tuple(z.shape)}; expected {tuple(z.shape[:-1] + self.image_shape)}"
            )
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Decode without checks; `forward` is the public door."""
        raise NotImplementedError(f"{type(self).__name__} does not define decode")

    def encode(self, x: Tensor) -> Tensor:
        """Guess latent vectors ``(*batch, latent_dim)`` for images ``(*batch, *image_shape)``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no encoder; find the latent vector of an image by "
            "minimising the distance between the image and G(z)"
        )

    def prior(self) -> dist.TorchDistribution:
        """Distribution of the latent vectors: standard normal, in the generator's dtype."""
        weight = self._weight()
        dtype, device = (None, None) if weight is None else (weight.dtype, weight.device)
        zero = torch.zeros(self.latent_dim, dtype=dtype, device=device)
        return dist.Independent(dist.Normal(zero, torch.ones_like(zero)), 1)

    def residual_prior(self, z: Tensor | None = None) -> dist.TorchDistribution:
        """Distribution of x - G(z), what the generator leaves out of images like those it knows.

        A site ``u`` with this prior, added to ``G(z)``, lets a model leave the generator's range;
        without it credible intervals are too narrow.

        Parameters
        ----------
        z
            Latent vectors ``(*batch, latent_dim)``; needed only by generators whose residuals
            depend on them.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not know how far images are from its range; give the "
            "deviation a prior of your own, such as Normal(0, 0.1)"
        )

    def discriminate(self, x: Tensor) -> Tensor:
        """Log odds ``(*batch,)`` that images ``(*batch, *image_shape)`` are real, not generated.

        Where the classifier is as good as can be, this is the logarithm of the ratio of the two
        densities, which corrects a sampling distribution by its weight.
        """
        raise NotImplementedError(f"{type(self).__name__} has no discriminator")

    def log_abs_det(self, z: Tensor) -> Tensor:
        r"""Return :math:`\log |\det \partial G / \partial z|` of an invertible G, ``(*batch,)``."""
        raise NotImplementedError(f"{type(self).__name__} is not invertible")

    def can(self, ability: str) -> bool:
        """Whether an optional method is there: ``"encode"``, ``"residual_prior"``, ...

        Examples
        --------
        >>> from bayesgen.models import VAE
        >>> G = VAE((28, 28), latent_dim=16)
        >>> G.can("encode"), G.can("log_abs_det")
        (True, False)
        """
        if ability not in _ABILITIES:
            raise OptionError(unknown_option("ability", ability, _ABILITIES))
        return getattr(type(self), ability) is not getattr(Generator, ability)

    def _weight(self) -> Tensor | None:
        """Any floating-point weight: it tells the generator's dtype and device."""
        tensors = (*self.parameters(), *self.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), None)

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        """Refuse a tensor whose trailing shape, dtype or device does not fit the generator."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise DtypeError(f"{name}: expected a floating-point tensor, got {kind}")
        if value.shape[-len(shape) :] != shape:
            wanted = ", ".join(["*batch", *map(str, shape)])
            raise ShapeError(f"{name}: expected shape ({wanted}), got {tuple(value.shape)}")
        weight = self._weight()
        if weight is not None and (value.dtype, value.device) != (weight.dtype, weight.device):
            raise DtypeError(
                f"{name}: is {value.dtype} on {value.device}, but the generator's weights are "
                f"{weight.dtype} on {weight.device}; convert one of them with .to(...)"
            )
