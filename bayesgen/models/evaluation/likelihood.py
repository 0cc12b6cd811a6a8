"""How probable a generator finds images it has not seen, and whether its residuals fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen.errors import DtypeError
from bayesgen.models.evaluation.access import check_images
from bayesgen.models.structured_vae import StructuredVAE
from bayesgen.models.vae import VAE
from bayesgen.types import check_count

# Numbers that decoded images, or their covariances, may hold at once.
_CHUNK = 2**24
# Lags at which whitened residuals should be uncorrelated.
_LAGS = (1, 2, 3)


@torch.no_grad()
def importance_weighted_bound(
    generator: VAE | StructuredVAE, images: Tensor, *, samples: int = 500, seed: int = 0
) -> Tensor:
    r"""Return lower bounds ``(N,)`` of :math:`\log p(x)`, in nats.

    .. math:: \log \frac1K \sum_k \frac{p(x | z_k)\, p(z_k)}{q(z_k | x)}, \qquad z_k \sim q(z | x)

    On average below the log density, and closer to it the more samples; one sample gives the
    evidence lower bound. The density is that of the continuous intensities, which may be above 1.

    Parameters
    ----------
    generator
        A variational autoencoder.
    images
        ``(N, *image_shape)``, at least one.
    samples
        K.
    seed
        Seed of the samples.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If the generator is of another kind, or the images do not fit it or are not finite.
    OptionError
        If ``samples`` is not a positive integer.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, equation 8.

    Examples
    --------
    >>> G = VAE((8, 8), latent_dim=2)
    >>> importance_weighted_bound(G, torch.zeros(5, 8, 8), samples=10).shape
    torch.Size([5])
    """
    _check_vae(generator)
    check_images(generator, images, minimum=1)
    check_count("samples", samples)
    rng = torch.Generator(images.device).manual_seed(seed)
    bounds = [_bound(generator, x, samples, rng) for x in _parts(generator, images, samples)]
    return torch.cat(bounds)


def _bound(generator: VAE | StructuredVAE, x: Tensor, samples: int, rng: torch.Generator) -> Tensor:
    encoding = generator.encoding(x)
    z = _draw(encoding, samples, rng)
    log_weights = (
        generator.conditional(z).log_prob(x) + generator.prior().log_prob(z) - encoding.log_prob(z)
    )
    return log_weights.logsumexp(0) - math.log(samples)


@torch.no_grad()
def negative_log_density(
    generator: VAE | StructuredVAE, images: Tensor, *, samples: int = 8, seed: int = 0
) -> Tensor:
    r"""Return :math:`-\log p(x | z)`, in nats a pixel, ``(N,)``: how well residuals are described.

    Averaged over ``samples`` latent vectors of the encoder's distribution of each image.

    Parameters
    ----------
    generator
        A variational autoencoder.
    images
        ``(N, *image_shape)``, at least one.
    samples
        Latent vectors for each image.
    seed
        Seed of the latent vectors.

    Raises
    ------
    DtypeError, ShapeError, DataError, OptionError
        As `importance_weighted_bound`.

    Examples
    --------
    >>> G = VAE((8, 8), latent_dim=2, noise_level=0.5)
    >>> negative_log_density(G, torch.full((1, 8, 8), 0.5)) < 0.5
    tensor([True])
    """
    _check_vae(generator)
    check_images(generator, images, minimum=1)
    check_count("samples", samples)
    rng = torch.Generator(images.device).manual_seed(seed)
    found = []
    for x in _parts(generator, images, samples):
        z = _draw(generator.encoding(x), samples, rng)
        found.append(-generator.conditional(z).log_prob(x).mean(0) / math.prod(x.shape[1:]))
    return torch.cat(found)


@dataclass(frozen=True)
class WhitenedResiduals:
    r"""Statistics of :math:`L^T (x - G(z))`, which are standard normal if the covariance is right.

    Attributes
    ----------
    mean, std
        Over all pixels of all images; ideally 0 and 1.
    std_by_brightness
        Of the pixels whose mean G(z) is in the lowest, middle and highest third of the range that
        means have; ideally 1 in each. Where pixels are flat it is below 1: no residuals are as
        small as the noise floor. Above 1, bands of uncertainty are too narrow there.
    drawn_width
        Root mean square of residuals drawn from the law over that of the actual ones; ideally 1,
        and far above it if the covariance is of no use to draw from.
    beyond_two
        Part of the pixels beyond two standard deviations; 4.6 % of a normal law.
    row_correlation, column_correlation
        Correlation of pixels so many columns, or rows, apart, by lag; ideally 0.
    raw_row_correlation, raw_column_correlation
        The same of :math:`x - G(z)`, for comparison.
    """

    mean: float
    std: float
    std_by_brightness: tuple[float, float, float]
    drawn_width: float
    beyond_two: float
    row_correlation: dict[int, float]
    column_correlation: dict[int, float]
    raw_row_correlation: dict[int, float]
    raw_column_correlation: dict[int, float]


@torch.no_grad()
def whitened_residuals(
    generator: StructuredVAE, images: Tensor, *, seed: int = 0
) -> WhitenedResiduals:
    """Check a structured covariance on images that it has not seen.

    Each image is taken with one latent vector of the encoder's distribution, as in training: at
    the encoder's mean residuals are smaller.

    Parameters
    ----------
    generator
        A generator with correlated residuals.
    images
        ``(N, *image_shape)``, at least one.
    seed
        Seed of the latent vectors and of the residuals drawn.

    Returns
    -------
    WhitenedResiduals

    Raises
    ------
    DtypeError, ShapeError, DataError
        If the generator is of another kind, or the images do not fit it or are not finite.

    Examples
    --------
    >>> G = StructuredVAE((8, 8), latent_dim=2, noise_level=0.5)
    >>> whitened_residuals(G, G(torch.zeros(1, 2))).beyond_two  # no residuals to speak of
    0.0
    """
    if not isinstance(generator, StructuredVAE):
        raise DtypeError(f"generator: expected a StructuredVAE, got {type(generator).__name__}")
    check_images(generator, images, minimum=1)
    rng = torch.Generator(images.device).manual_seed(seed)
    parts = []
    for x in _parts(generator, images, 1):
        law = generator.conditional(_draw(generator.encoding(x), 1, rng)[0])
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)
        parts.append((law.whiten(x), x - law.mean, law.mean, law.colour(noise) - law.mean))
    residuals, before, means, drawn = (torch.cat(part) for part in zip(*parts, strict=True))
    return WhitenedResiduals(
        mean=residuals.mean().item(),
        std=residuals.std(correction=0).item(),
        std_by_brightness=_spread_by_thirds(residuals, means),
        drawn_width=(drawn.square().mean() / before.square().mean()).sqrt().item(),
        beyond_two=(residuals.abs() > 2).to(residuals).mean().item(),
        row_correlation={lag: _autocorrelation(residuals, lag, -1) for lag in _LAGS},
        column_correlation={lag: _autocorrelation(residuals, lag, -2) for lag in _LAGS},
        raw_row_correlation={lag: _autocorrelation(before, lag, -1) for lag in _LAGS},
        raw_column_correlation={lag: _autocorrelation(before, lag, -2) for lag in _LAGS},
    )


def _spread_by_thirds(residuals: Tensor, means: Tensor) -> tuple[float, float, float]:
    """Standard deviations where means are in the lowest, middle and highest third of theirs."""
    low, high = means.min(), means.max()
    third = ((means - low) * (3 / (high - low))).nan_to_num(0).long().clamp(max=2)
    spread = [
        residuals[third == i].std(correction=0).item() if (third == i).any() else math.nan
        for i in range(3)
    ]
    return spread[0], spread[1], spread[2]


def _autocorrelation(x: Tensor, lag: int, dim: int) -> float:
    if x.shape[dim] <= lag:
        return math.nan
    near = x.narrow(dim, 0, x.shape[dim] - lag)
    far = x.narrow(dim, lag, x.shape[dim] - lag)
    scale = near.square().mean().sqrt() * far.square().mean().sqrt()
    return ((near * far).mean() / scale).item()


def _draw(encoding: dist.TorchDistribution, samples: int, rng: torch.Generator) -> Tensor:
    """Latent vectors ``(samples, N, latent_dim)`` of the encoder's distribution."""
    mean = encoding.mean
    shape = (samples, *mean.shape)
    noise = torch.randn(shape, generator=rng, dtype=mean.dtype, device=mean.device)
    return mean + encoding.stddev * noise


def _parts(generator: VAE | StructuredVAE, images: Tensor, samples: int) -> tuple[Tensor, ...]:
    """Images, as many at a time as fit into memory with so many latent vectors each."""
    maps = 1 + generator.config.num_neighbours if isinstance(generator, StructuredVAE) else 1
    return images.split(max(_CHUNK // (samples * maps * math.prod(generator.image_shape)), 1))


def _check_vae(generator: VAE | StructuredVAE) -> None:
    if not isinstance(generator, VAE | StructuredVAE):
        raise DtypeError(
            f"generator: expected a VAE or a StructuredVAE, got {type(generator).__name__}"
        )
