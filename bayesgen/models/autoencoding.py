"""What autoencoders share: encoder statistics, latent coordinates, residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesgen.models.networks import planes

# Images at a time, so that memory does not grow with the data set.
_CHUNK = 1000
# Eight-bit images are known to half a grey level; no pixel is modelled more sharply.
_LEAST_STD = 0.5 / 255


def run_encoder(encoder: nn.Module, x: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """Outputs ``(*batch, outputs)`` of an encoder for images ``(*batch, *image_shape)``."""
    batch = x.shape[: x.ndim - len(image_shape)]
    outputs: Tensor = encoder(x.reshape(-1, *planes(image_shape)))
    return outputs.reshape(*batch, outputs.shape[-1])


def run_decoder(decoder: nn.Module, z: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """Images ``(*batch, *image_shape)`` that a decoder makes of ``(*batch, latent_dim)``."""
    images: Tensor = decoder(z.reshape(-1, z.shape[-1]))
    return images.reshape(*z.shape[:-1], *image_shape)


@torch.no_grad()
def encode_all(encoder: nn.Module, images: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """Outputs of an encoder for a whole data set, some images at a time."""
    parts = torch.split(images, _CHUNK)
    return torch.cat([run_encoder(encoder, part, image_shape) for part in parts])


@torch.no_grad()
def residual_std(generator: Callable[[Tensor], Tensor], images: Tensor, z: Tensor) -> Tensor:
    """Root mean square of x - G(z) in every pixel."""
    pairs = zip(torch.split(images, _CHUNK), torch.split(z, _CHUNK), strict=True)
    squares = sum((part - generator(code)).square().sum(0) for part, code in pairs)
    return (cast(Tensor, squares) / len(images)).sqrt().clamp(min=_LEAST_STD)


def pixelwise(std: Tensor) -> dist.TorchDistribution:
    """Images of independent normal pixels with mean zero and standard deviations ``std``."""
    return dist.Independent(dist.Normal(torch.zeros_like(std), std), std.ndim)


@torch.no_grad()
def standardise(
    decoders: Sequence[nn.Sequential],
    encoder: nn.Sequential,
    mean: Tensor,
    variance: Tensor | None = None,
) -> None:
    r"""Change latent coordinates so that encoded images have mean zero and unit covariance.

    Training at best pulls the encoded images towards the prior. What remains of mean :math:`m` and
    covariance :math:`S^2` is folded into the first layer of the decoders, :math:`G(m + S z)`, and
    the last of the encoder, so that the generator has the same images and a better prior. For
    decoders and the encoder's means the change is exact. An encoder's distributions stay diagonal,
    with standard deviations divided by the diagonal of S: exact only where S is diagonal, otherwise
    near, and then so is the unit covariance. Networks that do not begin or end with a linear layer,
    as some of the papers', stay as they are.

    Parameters
    ----------
    decoders, encoder
        The networks, changed in place.
    mean
        ``(N, latent_dim)``, the encoder's means of many images.
    variance
        ``(N, latent_dim)``, its variances, if the encoder has log standard deviations as well.
    """
    firsts, last = [decoder[0] for decoder in decoders], encoder[-1]
    if not all(isinstance(layer, nn.Linear) for layer in (*firsts, last)):
        return
    latent_dim = mean.shape[-1]
    shift = mean.mean(0)
    covariance = torch.cov(mean.T, correction=0).reshape(latent_dim, latent_dim)
    if variance is not None:
        covariance = covariance + torch.diag(variance.mean(0))
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    # A coordinate that the encoder ignores, but for rounding, keeps its scale.
    rounding = torch.finfo(mean.dtype).eps * mean.square().mean()
    least = torch.maximum(1e-6 * eigenvalues.max(), rounding)
    eigenvalues = torch.where(eigenvalues > least, eigenvalues, 1.0)
    # The symmetric root changes the coordinates as little as possible.
    scale = vectors * eigenvalues.sqrt() @ vectors.T
    for first in cast(list[nn.Linear], firsts):
        first.bias.add_(first.weight @ shift)
        first.weight.copy_(first.weight @ scale)
    last = cast(nn.Linear, last)
    last.bias[:latent_dim] -= shift
    for parameter in (last.weight, last.bias):
        rows = parameter[:latent_dim]
        rows.copy_(torch.linalg.solve(scale, rows))
    if variance is not None:
        # The encoder's distribution stays diagonal, which is exact only if the scale is.
        last.bias[latent_dim:] -= scale.diagonal().log()
