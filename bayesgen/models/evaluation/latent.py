"""Is the latent space what the prior says? Encoded images, interpolation, far-off vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import (
    check_images,
    check_is_generator,
    check_latent,
    decode,
    encode,
    encoder_draws,
    prior_draws,
    prior_moments,
)
from bayesgen.models.evaluation.energy import energy_test
from bayesgen.models.evaluation.jacobian import directional_derivatives
from bayesgen.models.evaluation.reconstruction import nearest_latent
from bayesgen.types import check_count, check_positive

# Images of the prior to which far-off images are compared, and random directions along which the
# generator is differentiated there and here.
_NEAR_IMAGES, _NEAR_PROBES, _DIRECTIONS = 1000, 200, 16


@dataclass(frozen=True)
class LatentAgreement:
    """How well latent vectors of images follow the prior.

    With many images every difference is significant: look at the effects, and at the p-values to
    see whether an effect is there at all.

    Attributes
    ----------
    num_images
        Number of latent vectors.
    mean, std
        Root mean square over coordinates of the mean and of the standard deviation, in units of
        the prior's; ideally 0 and 1.
    correlation
        Largest correlation between two coordinates; ideally 0 if those of the prior are
        independent.
    norm
        Mean of the squared norm of the standardised vectors, over the dimension; ideally 1.
    norm_effect, norm_p_value
        Largest difference between the distribution function of that squared norm and the
        chi-square's, and the probability of so large a one (Kolmogorov-Smirnov test). None unless
        the prior is normal with independent coordinates.
    effect, p_value
        Energy distance to draws of the prior, from 0 to 1, and the probability of so large a one,
        as `bayesgen.models.evaluation.energy.energy_test` has them. In two dimensions a shift
        of all vectors by half a standard deviation has an effect of about 0.03, by one of 0.11.
    """

    num_images: int
    mean: float
    std: float
    correlation: float
    norm: float
    norm_effect: float | None
    norm_p_value: float | None
    effect: float
    p_value: float


def latent_agreement(
    generator: Generator,
    images: Tensor | None = None,
    *,
    z: Tensor | None = None,
    max_points: int = 1000,
    permutations: int = 999,
    seed: int = 0,
) -> LatentAgreement:
    """Compare the latent vectors of images with the prior.

    Inference takes latent vectors to follow the prior. Where those of real images do not, the
    prior favours others than the ones sought.

    Parameters
    ----------
    generator
        The generator.
    images
        ``(N, *image_shape)``, at least two, better not those trained on. Their latent vectors are
        drawn from the encoder's law, one for each image, where there is one (``encoding``): that
        mixture is what should match the prior, and the means alone are narrower. Otherwise they are
        the encoder's or, where there is none, those of `nearest_latent`.
    z
        Other latent vectors to look at, ``(N, latent_dim)``; no images are needed then.
    max_points
        The energy distance is computed from so many vectors at most, chosen at random, and as many
        draws of the prior; time and memory grow with the square.
    permutations
        Of the test of the energy distance.
    seed
        Seed of everything random.

    Returns
    -------
    LatentAgreement
        Moments, distribution of the norm, and distance from the prior.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If images or vectors do not fit the generator, are fewer than two, or are not finite.
    OptionError
        If a count is out of range.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, which shows projections of both to the eye; Székely and Rizzo (2013), Energy
    statistics.

    Examples
    --------
    >>> from bayesgen.models import load
    >>> G = load("mnist-vae")
    >>> z = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    >>> found = latent_agreement(G, z=z), latent_agreement(G, z=0.5 * z)
    >>> [round(agreement.effect, 1) for agreement in found]
    [0.0, 0.1]
    """
    check_is_generator(generator)
    check_count("max_points", max_points, minimum=2)
    check_count("permutations", permutations)
    if z is None:
        if images is None:
            raise OptionError("images: expected images or z=, got neither")
        z = latent_draws(generator, images, seed=seed)
    check_latent(generator, "z", z, minimum=2)
    z = z.detach()
    mean, scale = (moment.to(z) for moment in prior_moments(generator))
    u = (z - mean) / scale
    norm_effect, norm_p_value = _norm_test(generator, u)
    rng = torch.Generator().manual_seed(seed)
    chosen = u[torch.randperm(len(u), generator=rng)[:max_points].to(u.device)]
    draws = (prior_draws(generator, len(chosen), seed=seed).to(z) - mean) / scale
    test = energy_test(chosen, draws, permutations=permutations, seed=seed)
    location, width, correlation = latent_moments(u)
    squared = u.square().sum(1).mean().item() / generator.latent_dim
    return LatentAgreement(
        num_images=len(z),
        mean=location,
        std=width,
        correlation=correlation,
        norm=squared,
        norm_effect=norm_effect,
        norm_p_value=norm_p_value,
        effect=test.effect,
        p_value=test.p_value,
    )


def latent_vectors(generator: Generator, images: Tensor, *, seed: int = 0) -> Tensor:
    """The encoder's guesses of latent vectors, or the nearest ones where there is no encoder."""
    check_images(generator, images)
    if generator.can("encode"):
        return encode(generator, images.detach())
    return nearest_latent(generator, images, seed=seed).z


def latent_draws(generator: Generator, images: Tensor, *, seed: int = 0) -> Tensor:
    """As `latent_vectors`, but drawn from the encoder's law where there is one."""
    check_images(generator, images, minimum=2)
    if generator.can("encode"):
        return encoder_draws(generator, images.detach(), seed=seed)
    return nearest_latent(generator, images, seed=seed).z


def latent_moments(z: Tensor) -> tuple[float, float, float]:
    """Root mean square mean and standard deviation, and largest correlation of coordinates."""
    # A coordinate that does not vary is correlated with none.
    correlation = torch.corrcoef(z.T).nan_to_num()
    off_diagonal = correlation.reshape(len(z.T), -1).fill_diagonal_(0)
    return (
        z.mean(0).square().mean().sqrt().item(),
        z.var(0).mean().sqrt().item(),
        off_diagonal.abs().max().item(),
    )


def _norm_test(generator: Generator, u: Tensor) -> tuple[float | None, float | None]:
    """Kolmogorov-Smirnov test of the squared norm of standardised vectors."""
    prior = generator.prior()
    if not (isinstance(prior, dist.Independent) and isinstance(prior.base_dist, dist.Normal)):
        return None, None
    from scipy.stats import kstest

    squares = u.double().square().sum(1).cpu().numpy()
    result = kstest(squares, "chi2", args=(generator.latent_dim,))
    return float(result.statistic), float(result.pvalue)


def interpolation(
    generator: Generator, corners: Tensor | Sequence[Tensor], size: int = 10
) -> Tensor:
    r"""Decode a grid in the plane of three latent vectors, :math:`z_1 + a(z_2-z_1) + b(z_3-z_1)`.

    Parameters
    ----------
    generator
        The generator.
    corners
        Three latent vectors ``(3, latent_dim)``, or three images ``(3, *image_shape)``, whose
        latent vectors are the encoder's or, where there is none, those of `nearest_latent`. What
        has both shapes is a latent vector.
    size
        Steps of ``a`` and of ``b`` from 0 to 1, the ends included; at least 2.

    Returns
    -------
    Tensor
        Images ``(size, size, *image_shape)``: rows are steps of ``a``, columns of ``b``.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If the corners are not three latent vectors or images that fit the generator.
    OptionError
        If ``size`` is less than 2.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, the experiment on interpolation.

    Examples
    --------
    >>> from bayesgen.models import load
    >>> interpolation(load("mnist-vae"), torch.eye(3, 16), size=5).shape
    torch.Size([5, 5, 28, 28])
    """
    check_is_generator(generator)
    check_count("size", size, minimum=2)
    corners = corners if isinstance(corners, Tensor) else torch.stack(list(corners))
    if len(corners) != 3:
        raise ShapeError(f"corners: expected three, got {len(corners)}")
    if corners.shape[1:] != (generator.latent_dim,):
        corners = latent_vectors(generator, corners)
    check_latent(generator, "corners", corners)
    first, second, third = corners.detach()
    steps = torch.linspace(0, 1, size, dtype=first.dtype, device=first.device)
    along, across = steps[:, None, None] * (second - first), steps[:, None] * (third - first)
    return decode(generator, (first + along + across).flatten(0, 1)).unflatten(0, (size, size))


@dataclass(frozen=True)
class FarSamples:
    """What a generator draws far from where its prior has mass.

    Attributes
    ----------
    z, images
        Latent vectors ``(count, latent_dim)`` and their images ``(count, *image_shape)``.
    distance
        From each image to the nearest of a thousand images of the prior, in units of the median
        such distance of images of the prior themselves; ``(count,)``. Around 1 the image looks
        like any other; large values are images unlike all that the prior knows.
    sensitivity
        Root mean square derivative of G in random directions, over its median at draws of the
        prior; ``(count,)``. It is 1 for a linear generator and near 0 where the generator is
        saturated, so that gradients lead no way back.
    """

    z: Tensor
    images: Tensor
    distance: Tensor
    sensitivity: Tensor


def far_samples(
    generator: Generator, *, count: int = 10, spread: float = 50.0, seed: int = 0
) -> FarSamples:
    r"""Decode normal latent vectors many times as wide as the prior, and say how odd they look.

    Parameters
    ----------
    generator
        The generator.
    count
        Number of images.
    spread
        Width in standard deviations of the prior: :math:`N(0, 50^2 I)` by default if the prior is
        standard normal, as published.
    seed
        Seed of everything random.

    Returns
    -------
    FarSamples
        The images, how far they are from images of the prior, and whether gradients survive there.

    Raises
    ------
    DtypeError
        If the generator is none.
    OptionError
        If the count or the spread is not positive.
    ModelError
        If an operation of the generator has no derivative in forward mode.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, the experiment far from the latent distribution.

    Examples
    --------
    >>> from bayesgen.models import load
    >>> found = far_samples(load("mnist-vae"))
    >>> bool(found.distance.median() > 1), bool((found.sensitivity < 0.5).all())
    (True, True)
    """
    check_is_generator(generator)
    check_count("count", count)
    check_positive("spread", spread)
    near = prior_draws(generator, _NEAR_IMAGES + _NEAR_PROBES, seed=seed)
    mean, scale = prior_moments(generator)
    rng = torch.Generator().manual_seed(seed)
    shape = (count + _DIRECTIONS, generator.latent_dim)
    noise = torch.randn(shape, generator=rng, dtype=near.dtype).to(near.device)
    z, directions = mean + spread * scale * noise[:count], scale * noise[count:]
    images = decode(generator, z)
    known = decode(generator, near).flatten(1)
    known, probes = known[:_NEAR_IMAGES], known[_NEAR_IMAGES:]
    usual = torch.cdist(probes, known).amin(1).median()
    response = _response(generator, near[_NEAR_IMAGES:], directions).median()
    tiny = torch.finfo(images.dtype).tiny
    return FarSamples(
        z=z,
        images=images,
        distance=torch.cdist(images.flatten(1), known).amin(1) / usual.clamp(min=tiny),
        sensitivity=_response(generator, z, directions) / response.clamp(min=tiny),
    )


def _response(generator: Generator, z: Tensor, directions: Tensor) -> Tensor:
    return directional_derivatives(generator, z, directions).square().mean((0, 2)).sqrt()
