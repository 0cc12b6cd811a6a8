r"""Where to begin: latent vectors near the answer, for optimisers and Markov chains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import (
    encode,
    encoder_draws,
    prior_draws,
    rows_at_once,
)
from bayesgen.operators import Operator
from bayesgen.operators.inputs import require_finite
from bayesgen.regularisers.pieces import check_fit, check_generator_type
from bayesgen.types import check_count, check_positive

# Draws of the prior: enough for the covariance of images, of which far fewer directions matter.
_DRAWS = 1000


def encoder_start(
    G: Generator, A: Operator, y: Tensor, sigma: float, *, chains: int = 8, seed: int = 0
) -> dict[str, Tensor]:
    """Latent vectors that the encoder makes of a linear estimate of the image.

    The first chain of each problem begins at the encoding of `linear_estimate`. Half of the chains
    begin at draws of the prior, so that a wrong encoding cannot trap all of them, and the others at
    draws of the encoder's law; where it has none they would all be equal, and are draws of the
    prior as well. Without an encoder, chains begin at `nearest_draws`.

    Parameters
    ----------
    G
        The generator.
    A
        The forward operator.
    y
        Data, ``(*batch, *range_shape)``.
    sigma
        Standard deviation of the noise.
    chains
        Starts of each problem; 8 leaves three draws of the encoder.
    seed
        Seed of all draws.

    Returns
    -------
    dict
        ``{"z": (*batch, chains, latent_dim)}``, to be passed to `bayesgen.infer` as ``start``: for
        one problem, or, with ``batched=True``, for a batch of one axis.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If generator, operator and data do not fit each other, or data are not finite.
    OptionError
        If sigma, the number of chains or the seed is out of range.

    References
    ----------
    Duff, Simpson, Ehrhardt and Campbell (2023), VAEs with structured image covariance applied to
    compressed sensing MRI, where the encoding of a pseudo-inverse starts the search.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 100, seed=0)
    >>> y = A(G(torch.ones(8)))
    >>> start = encoder_start(G, A, y, sigma=0.1, chains=4)
    >>> model = bg.regularisers.hard(G, A, sigma=0.1)
    >>> bg.infer(model, y, method="map", chains=4, start=start, progress=False).mode("z").shape
    torch.Size([8])
    """
    check_problem(G, A, y)
    check_positive("sigma", sigma)
    check_count("chains", chains)
    _check_seed(seed)
    if not G.can("encode"):
        return {"z": nearest_draws(G, A, y, count=chains, seed=seed)}
    batch = y.shape[: y.ndim - len(A.range_shape)]
    images = linear_estimate(G, A, y, sigma, seed=seed).reshape(-1, *G.image_shape)
    # Of an encoder without a law, one start is all there is.
    encoded = chains - chains // 2 if hasattr(G, "encoding") else 1
    # The first draws belong to the linear estimate.
    drawn = prior_draws(G, _DRAWS + len(images) * (chains - encoded), seed=seed)[_DRAWS:]
    repeated = images.repeat_interleave(encoded - 1, dim=0)
    parts = (encode(G, images), encoder_draws(G, repeated, seed=seed), drawn)
    problems, size = len(images), G.latent_dim
    rows = [part.reshape(problems, len(part) // max(problems, 1), size) for part in parts]
    return {"z": torch.cat(rows, 1).reshape(*batch, chains, size)}


def encoded_optimum(
    G: Generator, z: Tensor, *, chains: int = 8, seed: int = 0
) -> dict[str, Tensor]:
    """Latent vectors that the encoder makes of the image of an optimum: MAP, then the encoder.

    An optimum may lie far out in the latent space; its image, encoded, is where the prior expects
    such an image. The first chain of each problem begins at the encoding, the others at draws of
    the encoder's law, or, if it has none, at the same place.

    Parameters
    ----------
    G
        The generator; it has an encoder.
    z
        The optimum, ``(*batch, latent_dim)``: ``posterior.mode("z")`` of a result of ``"map"``.
    chains
        Starts of each problem.
    seed
        Seed of the draws.

    Returns
    -------
    dict
        ``{"z": (*batch, chains, latent_dim)}``, to be passed to `bayesgen.infer` as ``start``.

    Raises
    ------
    DtypeError
        If the generator has no encoder.
    ShapeError
        If z does not consist of its latent vectors.
    OptionError
        If the number of chains or the seed is out of range.

    References
    ----------
    Ang (2021), Using deep generative priors for inverse problems and Bayesian optimisation.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G = bg.models.load("mnist-vae-8")
    >>> encoded_optimum(G, torch.ones(5, 8), chains=4)["z"].shape
    torch.Size([5, 4, 8])
    """
    check_generator_type(G)
    if not G.can("encode"):
        raise DtypeError(
            f"G: {type(G).__name__} has no encoder; start at the optimum itself (start='map')"
        )
    if not isinstance(z, Tensor) or z.shape[-1:] != (G.latent_dim,):
        shape = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ShapeError(f"z: has shape {shape}; expected (*batch, {G.latent_dim})")
    check_count("chains", chains)
    _check_seed(seed)
    flat = z.detach().reshape(-1, G.latent_dim)
    with torch.no_grad():
        images = torch.cat([G(part) for part in flat.split(rows_at_once(G))])
    encoded = encode(G, images).unsqueeze(1)
    if hasattr(G, "encoding"):
        repeated = images.repeat_interleave(chains - 1, dim=0)
        drawn = encoder_draws(G, repeated, seed=seed)
        drawn = drawn.reshape(len(flat), chains - 1, G.latent_dim)
        encoded = torch.cat([encoded, drawn], 1)
    return {"z": encoded.expand(-1, chains, -1).reshape(*z.shape[:-1], chains, G.latent_dim)}


def linear_estimate(G: Generator, A: Operator, y: Tensor, sigma: float, *, seed: int = 0) -> Tensor:
    r"""Best linear estimate of the image under the generator: a learned pseudo-inverse.

    .. math:: \mu + C A^T (A C A^T + \sigma^2 I)^{-1} (y - A \mu)

    with mean :math:`\mu` and covariance C of the images of 1000 draws of the prior.

    Parameters
    ----------
    G, A, y, sigma, seed
        As for `encoder_start`.

    Returns
    -------
    Tensor
        ``(*batch, *image_shape)``; not in the range of the generator.

    Raises
    ------
    DtypeError, ShapeError, DataError, OptionError
        As `encoder_start`.

    Notes
    -----
    With the centred draws :math:`X`, one a row and divided by :math:`\sqrt{999}`, and their data
    :math:`Y = X A^T`, the estimate is :math:`\mu + X^T (Y Y^T + \sigma^2 I)^{-1} Y (y - A\mu)`, and
    the largest matrix is as large as the number of draws squared. For an operator that is not
    linear, Y are the centred data of the draws, as in an ensemble Kalman filter.

    References
    ----------
    Evensen (2003), The ensemble Kalman filter: theoretical formulation and practical
    implementation; Woodbury (1950), Inverting modified matrices.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 100, seed=0)
    >>> x = G(torch.ones(8))
    >>> float((linear_estimate(G, A, A(x), sigma=0.1) - x).norm() / x.norm()) < 0.5
    True
    """
    check_problem(G, A, y)
    check_positive("sigma", sigma)
    _check_seed(seed)
    _, X, Y = _simulated(G, A, _DRAWS, seed)
    # Sums over many pixels, in which small variances must not be lost.
    X, Y = X.flatten(1), Y.flatten(1).double()
    mean, measured = X.mean(0), Y.mean(0)
    X, Y = (X - mean) / (_DRAWS - 1) ** 0.5, (Y - measured) / (_DRAWS - 1) ** 0.5
    matrix = Y @ Y.T
    # With hardly any noise: as much as rounding leaves of the smallest variances.
    noise = max(sigma**2, 1e-13 * float(matrix.trace()))
    matrix.diagonal().add_(noise)
    rest = y.detach().reshape(-1, Y.shape[1]).double() - measured
    weights = torch.cholesky_solve(Y @ rest.T, torch.linalg.cholesky(matrix)).T
    batch = y.shape[: y.ndim - len(A.range_shape)]
    return (mean + weights.to(X) @ X).reshape(*batch, *G.image_shape)


def nearest_draws(G: Generator, A: Operator, y: Tensor, *, count: int, seed: int = 0) -> Tensor:
    r"""The draws of the prior, out of a thousand, with the smallest misfit :math:`|A G(z) - y|`.

    Parameters
    ----------
    G, A, y, seed
        As for `encoder_start`.
    count
        How many for each problem; beyond a thousand, all that are drawn.

    Returns
    -------
    Tensor
        ``(*batch, count, latent_dim)``, the best first.

    Raises
    ------
    DtypeError, ShapeError, DataError, OptionError
        As `encoder_start`.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-gan-16"), bg.operators.Identity((28, 28))
    >>> nearest_draws(G, A, torch.zeros(5, 28, 28), count=3).shape
    torch.Size([5, 3, 16])
    """
    check_problem(G, A, y)
    check_count("count", count)
    _check_seed(seed)
    z, _, Y = _simulated(G, A, max(_DRAWS, count), seed)
    batch = y.shape[: y.ndim - len(A.range_shape)]
    misfit = torch.cdist(y.detach().reshape(-1, Y[0].numel()), Y.flatten(1))
    nearest = misfit.topk(count, largest=False).indices
    return z[nearest].reshape(*batch, count, G.latent_dim)


def check_problem(G: Generator, A: Operator, y: Tensor) -> None:
    """Refuse a generator, an operator and data that do not fit each other.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If they do not, or an entry of the data is NaN or infinite.
    """
    check_fit(G, A)
    A._check("y", y, A.range_shape)
    weight = G._weight()
    if weight is not None and (y.dtype, y.device) != (weight.dtype, weight.device):
        raise DtypeError(
            f"y: is {y.dtype} on {y.device}, but the generator's weights are {weight.dtype} on "
            f"{weight.device}; convert one of them with .to(...)"
        )
    require_finite("y", y)


@torch.no_grad()
def _simulated(G: Generator, A: Operator, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of the prior, their images and data without noise."""
    z = prior_draws(G, count, seed=seed)
    pairs = [(x, A(x)) for x in map(G, z.split(rows_at_once(G)))]
    images, data = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return z, images, data


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**62:
        raise OptionError(f"seed: got {seed!r}; expected an integer from 0 to 2**62 - 1")
