"""The covariance of what a generator leaves out, from images it has not been trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesgen.distributions.covariance import (
    Covariance,
    Diagonal,
    Isotropic,
    LogScale,
    check_log_scale,
)
from bayesgen.distributions.dense_covariance import Dense, LowRank
from bayesgen.distributions.stationary import Stationary, mean_autocovariance
from bayesgen.errors import DataError, OptionError, unknown_option
from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import check_images, decode, encode
from bayesgen.models.evaluation.reconstruction import nearest_latent
from bayesgen.types import check_count, check_positive, strict_options

KINDS = ("isotropic", "diagonal", "dense", "low_rank", "stationary", "structured")
# Pixels for which a matrix of their number squared is decomposed.
MOST_PIXELS = 4096
# Draws of N(0, C) that tell how much its energies vary: their mean logarithm to 2 %.
DRAWS = 2000
# A step of images of 8 bits, beside which no residual is known better.
FLOOR = 1 / 255
# Least spread of the logarithm of s, where energies vary no more than those of N(0, C).
LEAST_SPREAD = 0.05


@dataclass(frozen=True)
class Structured:
    """The covariance Sigma(z) that the generator itself predicts, such as `StructuredVAE`.

    Attributes
    ----------
    log_scale
        Mean and standard deviation of the logarithm of s, where images deviate by s times what is
        predicted; None for s = 1.

    Examples
    --------
    >>> Structured(log_scale=(-0.5, 0.2))
    Structured(log_scale=(-0.5, 0.2))
    """

    log_scale: LogScale | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_scale", check_log_scale(self.log_scale))


@strict_options
def residual_covariance(
    G: Generator,
    images: Tensor,
    *,
    kind: str = "dense",
    rank: int = 64,
    wrap: bool = False,
    shrinkage: float | None = None,
    correction: float | None = None,
    floor: float = FLOOR,
    seed: int = 0,
) -> Covariance | Structured:
    r"""Covariance of what a generator leaves out of images, and how single images differ in it.

    From residuals :math:`r = x - G(z)`, with z from the encoder, or nearest to the image where
    there is none, C is :math:`c` times their mean square, of the kind wanted. The scale s of an
    image has a lognormal law, with the mean and variance of :math:`\tfrac12 \log |r|^2` less those
    that :math:`N(0, C)` itself would give.

    Parameters
    ----------
    G
        The generator.
    images
        ``(N, *image_shape)``, on which it has not been trained: what it leaves out of its training
        images is less.
    kind
        See `bayesgen.covariances`.
    rank
        Number of modes, for ``"low_rank"``; at most N and the number of pixels.
    wrap
        For ``"stationary"``: whether opposite edges are neighbours.
    shrinkage
        How far correlations are drawn to zero, from 0 to 1, for ``"dense"`` and ``"low_rank"``.
        By default so far that the expected squared error is least, as estimated from the images:
        fewer images shrink more. Variances stay.
    correction
        c. An encoder's guess is not the nearest latent vector. By default c is the ratio of the
        squared residuals after a search from that guess and before it, for up to 64 of the images;
        for ``"structured"`` it is 1.
    floor
        Standard deviation of white noise that is added to C, so that it is not singular where the
        images given are constant. The default is a step of images with 8 bits and intensities in
        [0, 1].
    seed
        Of the draws that tell how energies of N(0, C) vary.

    Returns
    -------
    Covariance
        In the dtype and on the device of the images, with ``log_scale``; or `Structured`.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If the images do not fit the generator, or leave no residual.
    OptionError
        If the kind is unknown, does not fit the generator or the size of its images, or a number
        is out of range.

    References
    ----------
    Schäfer and Strimmer (2005), A shrinkage approach to large-scale covariance matrix estimation
    and implications for functional genomics, with the diagonal as target; Ledoit and Wolf (2003),
    Improved estimation of the covariance matrix of stock returns.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, images = bg.models.load("mnist-vae-8"), bg.datasets.mnist_samples().images
    >>> C = residual_covariance(G, images, kind="low_rank", rank=4)
    >>> C(images).shape, C.log_scale is not None
    (torch.Size([20, 28, 28]), True)
    """
    if kind not in KINDS:
        raise OptionError(unknown_option("kind", kind, KINDS))
    check_images(G, images, minimum=2)
    check_count("rank", rank)
    check_positive("floor", floor)
    check_positive("correction", correction, allow_none=True)
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise OptionError(f"shrinkage: got {shrinkage!r}; expected a number from 0 to 1")
    pixels = math.prod(G.image_shape)
    if kind == "dense" and pixels > MOST_PIXELS:
        raise OptionError(
            f"kind: a dense covariance of {pixels} pixels is too large (at most {MOST_PIXELS}); "
            "take 'low_rank' or 'stationary'"
        )
    images = images.detach()
    z = encode(G, images) if G.can("encode") else nearest_latent(G, images).z
    residuals = (images - decode(G, z)).double()
    if not bool((residuals.flatten(1).abs().amax(1) > 0).all()):
        raise DataError("images: some are in the range of the generator, and leave no residual")
    if kind == "structured":
        return _structured(G, residuals.to(images), z)
    if correction is None:
        correction = _correction(G, images, residuals) if G.can("encode") else 1.0
    residuals = math.sqrt(correction) * residuals
    C = _fitted(kind, residuals, rank, wrap, shrinkage, floor, images)
    C.log_scale = _log_scale(C, residuals, seed)
    return C


def _correction(G: Generator, images: Tensor, residuals: Tensor) -> float:
    """How much less of the squared residuals a search leaves than the encoder."""
    some = torch.linspace(0, len(images) - 1, min(len(images), 64)).long().to(images.device)
    nearest = nearest_latent(G, images[some]).residual.double()
    return float(nearest.square().sum() / residuals[some].square().sum())


def _fitted(
    kind: str,
    residuals: Tensor,
    rank: int,
    wrap: bool,
    shrinkage: float | None,
    floor: float,
    like: Tensor,
) -> Covariance:
    shape = tuple(residuals.shape[1:])
    variances = residuals.square().mean(0) + floor**2
    if kind == "isotropic":
        return Isotropic(shape, variances.mean().sqrt().to(like))
    if kind == "diagonal":
        return Diagonal(variances.to(like))
    if kind == "stationary":
        autocovariance = mean_autocovariance(residuals, wrap=wrap)
        autocovariance[..., 0, 0] += floor**2
        return Stationary(autocovariance.to(like), shape)
    flat = residuals.flatten(1)
    weight = 1 - (_shrinkage(flat) if shrinkage is None else shrinkage)
    if kind == "low_rank":
        modes = math.sqrt(weight) * _modes(flat, rank).reshape(-1, *shape)
        rest = variances - modes.square().sum(0)
        return LowRank(modes.to(like), rest.clamp(min=floor**2).to(like))
    matrix = weight * flat.T @ flat / len(flat)
    matrix.diagonal().copy_(variances.flatten())
    return Dense(matrix.to(like), shape)


def _shrinkage(flat: Tensor) -> float:
    """Weight of the diagonal: estimated variance of the other entries over their squares.

    Schäfer and Strimmer, target D, about a mean of zero.
    """
    count, (_, gram) = len(flat), _gram(flat)
    squares = gram.square().sum() - flat.square().mean(0).square().sum()
    products = flat.square().sum(1).square().sum() - flat.pow(4).sum()
    variance = (products - count * squares) / (count * (count - 1))
    return min(max(float(variance / squares), 0.0), 1.0) if float(squares) > 0 else 1.0


def _modes(flat: Tensor, rank: int) -> Tensor:
    """Leading eigenvectors of the mean square, times the roots of their eigenvalues, ``(k, n)``."""
    by_image, gram = _gram(flat)
    values, vectors = torch.linalg.eigh(gram)
    vectors, values = vectors[:, -rank:].flip(1), values[-rank:].flip(0).clamp(min=0.0)
    if by_image:
        return vectors.T @ flat / math.sqrt(len(flat))
    return (vectors * values.sqrt()).T


def _gram(flat: Tensor) -> tuple[bool, Tensor]:
    """Products of images or of pixels, whichever are fewer, and whether they are of images."""
    by_image = len(flat) < flat.shape[1]
    return by_image, (flat @ flat.T if by_image else flat.T @ flat) / len(flat)


def _log_scale(C: Covariance, residuals: Tensor, seed: int) -> LogScale:
    """Mean and spread of log s from energies, beside those of N(0, C)."""
    rng = torch.Generator().manual_seed(seed)
    like = C.variance
    draws = [
        C.factor(torch.randn(len(part), *C.noise_shape, generator=rng).to(like))
        for part in torch.empty(DRAWS).split(100)
    ]
    return _difference(_log_norms(residuals), _log_norms(torch.cat(draws)))


def _structured(G: Generator, residuals: Tensor, z: Tensor) -> Structured:
    """Scales from whitened residuals, whose energies should be chi-square."""
    if not hasattr(G, "conditional"):
        raise OptionError(
            f"kind: {type(G).__name__} does not predict a covariance for each z, as StructuredVAE "
            "does; take another than 'structured'"
        )
    prior: Any = G.residual_prior
    with torch.no_grad():
        white = torch.cat(
            [
                prior(some).whiten(part)
                for part, some in zip(residuals.split(256), z.split(256), strict=True)
            ]
        )
    half = 0.5 * torch.tensor(float(math.prod(G.image_shape)))
    mean = 0.5 * (torch.digamma(half) + math.log(2))
    spread = 0.5 * torch.polygamma(1, half).sqrt()
    return Structured(_log_difference(_log_norms(white), float(mean), float(spread)))


def _log_norms(images: Tensor) -> Tensor:
    return images.flatten(1).double().norm(dim=1).log()


def _difference(found: Tensor, expected: Tensor) -> LogScale:
    return _log_difference(found, float(expected.mean()), float(expected.std()))


def _log_difference(found: Tensor, mean: float, spread: float) -> LogScale:
    variance = float(found.var()) - spread**2
    return float(found.mean()) - mean, math.sqrt(max(variance, LEAST_SPREAD**2))
