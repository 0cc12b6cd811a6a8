"""Images near the range of a generator, with deviations as they are seen in other images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
from torch import Tensor

from bayesgen.covariances import Covariance, Isotropic, Structured
from bayesgen.distributions import GaussianNoise, IteratedDeviation
from bayesgen.distributions.covariance import scale_prior
from bayesgen.distributions.deviation import (
    MOST_NUMBERS,
    DataSpectrum,
    IntegratedDeviation,
    check_covariance,
)
from bayesgen.distributions.integrated import Deviation, Integrated
from bayesgen.distributions.iterated_deviation import data_norm
from bayesgen.distributions.structured_deviation import StructuredDeviation, operator_rows
from bayesgen.errors import DtypeError, OptionError
from bayesgen.models.base import Generator
from bayesgen.operators import Operator
from bayesgen.regularisers.pieces import (
    LatentPrior,
    Level,
    Model,
    Penalty,
    check_generative,
    check_level,
    check_weight,
    latent_image,
    level_of,
    zero_of,
)

# Nothing depends on such a site: it is no coordinate of the posterior, but drawn afterwards.
GENERATED: Any = {"generated": True}


def soft_range(
    G: Generator,
    A: Operator,
    sigma: Level,
    *,
    covariance: Covariance | Structured,
    scale: Level | None = None,
    latent_weight: float | Tensor = 1.0,
    latent_prior: LatentPrior | None = None,
    penalties: Sequence[Penalty] = (),
    integrated: bool = True,
) -> Model:
    r"""The image deviates from the range by a Gaussian image, x = G(z) + s u with u ~ N(0, C).

    Integrated out, the deviation leaves :math:`y | z, s \sim N(A G(z), S)` with :math:`S = \sigma^2
    I + s^2 A C A^T`. Only z and s are sampled, and every draw of x is exact, from its normal law
    given these and the data (see `bayesgen.distributions.integrated.ImageGivenData`).

    Parameters
    ----------
    G, A, sigma, latent_weight, latent_prior, penalties
        As for `hard`; the operator is linear.
    covariance
        C, from `bayesgen.covariances.residual_covariance`, or one of that module's.
    scale
        s; ``"estimate"`` or a distribution make it a latent site. By default it has the law that
        was found along with the covariance, or is 1 if none was.
    integrated
        Whether u is integrated out. Up to 4096 numbers, the smaller of image and data, it takes one
        eigendecomposition of a matrix of that size squared, and an evaluation what `hard` takes.
        Beyond, it takes an iteration in every evaluation (see
        `bayesgen.distributions.IteratedDeviation`), and sigma and s must be numbers. With a
        `Structured` covariance the data may have up to 500 numbers.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``z``, ``x`` and ``y``, and ``u`` if it is not integrated out;
        ``sigma`` and ``scale`` if they are latent.

    Raises
    ------
    OptionError
        If sigma, the scale or the weight is not a positive number; if the operator is not linear,
        or too large; or if a level is to be estimated together with u itself, where the density has
        no maximum.
    ShapeError, DtypeError
        If generator, operator and covariance do not fit each other.

    Notes
    -----
    Without data the site ``y`` is drawn from its law given z and s, and ``x`` from its law given
    ``y``: together they are a draw of the image and its data.

    Optimisers report the mean of x given z, s and the data.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, the relaxed regulariser, which has C = I.

    Examples
    --------
    >>> import torch, bayesgen as bg
    >>> from bayesgen.covariances import residual_covariance
    >>> G, images = bg.models.load("mnist-vae-8"), bg.datasets.mnist_samples().images
    >>> A = bg.operators.GaussianMatrix((28, 28), 50, seed=0)
    >>> C = residual_covariance(G, images[1:])
    >>> model = soft_range(G, A, sigma=0.1, covariance=C)
    >>> method = bg.inference.HMC(max_steps=4)
    >>> posterior = bg.infer(model, A(images[0]), method=method, draws=4, warmup=4, progress=False)
    >>> posterior.std("x").shape
    torch.Size([28, 28])
    """
    check_generative(G, A, latent_prior, penalties)
    check_level("sigma", sigma)
    check_weight("latent_weight", latent_weight)
    _check_fit(G, A, covariance)
    if scale is None:
        known = covariance.log_scale
        scale = 1.0 if known is None else scale_prior(known, zero_of(G))
    check_level("scale", scale)

    if integrated:
        law_of = data_law(G, A, sigma, scale, covariance)

        def model(y: Tensor | None = None) -> None:
            z, mean = latent_image(G, latent_weight, latent_prior, penalties)
            std, s = level_of("sigma", sigma, mean), level_of("scale", scale, mean)
            law = law_of(z, mean, std, s)
            data = pyro.sample("y", law, obs=y)
            pyro.sample("x", law.image_given(data), infer=GENERATED)

        return model

    _check_plain(sigma, scale, covariance)

    def plain(y: Tensor | None = None) -> None:
        z, mean = latent_image(G, latent_weight, latent_prior, penalties)
        std, s = level_of("sigma", sigma, mean), level_of("scale", scale, mean)
        u = pyro.sample("u", deviation_prior(G, covariance, z))
        x = pyro.deterministic("x", mean + s * u)
        pyro.sample("y", GaussianNoise(A(x), std), obs=y)

    return plain


def data_law(
    G: Generator, A: Operator, sigma: Level, scale: Level, covariance: Covariance | Structured
) -> Callable[..., Integrated]:
    """The law of data given z, G(z), sigma and s.

    What does not depend on these is computed here, once.
    """
    if isinstance(covariance, Structured):
        prior: Any = G.residual_prior
        rows = operator_rows(A, zero_of(G))
        return lambda z, mean, std, s: StructuredDeviation(mean, prior(z), A, rows, std, s)
    count = min(math.prod(A.domain_shape), math.prod(A.range_shape))
    known = all(isinstance(level, int | float) for level in (sigma, scale))
    if A.linear and count > MOST_NUMBERS and known:
        norm = data_norm(A, covariance)
        return lambda z, mean, std, s: IteratedDeviation(
            mean, A, std, s, covariance=covariance, norm=norm
        )
    spectrum = DataSpectrum(A, zero_of(G), covariance)
    return lambda z, mean, std, s: IntegratedDeviation(mean, spectrum, std, s)


def deviation_prior(G: Generator, covariance: Covariance | Structured, z: Tensor) -> Any:
    """The law of u."""
    if isinstance(covariance, Structured):
        return G.residual_prior(z)
    return Deviation(covariance)


def white(A: Operator, G: Generator) -> Isotropic:
    """The covariance of deviations that are white, in intensities."""
    return Isotropic(A.domain_shape, zero_of(G) + 1)


def _check_fit(G: Generator, A: Operator, covariance: Any) -> None:
    if isinstance(covariance, Structured):
        if not hasattr(G, "conditional"):
            raise DtypeError(
                f"G: {type(G).__name__} does not predict a covariance for each z, as "
                "StructuredVAE does; give one from bayesgen.covariances.residual_covariance"
            )
        return
    if not isinstance(covariance, Covariance):
        raise DtypeError(
            f"covariance: got {type(covariance).__name__}; expected one of bayesgen.covariances"
        )
    check_covariance(covariance, A)
    kind, like = covariance.variance, zero_of(G)
    if (kind.dtype, kind.device) != (like.dtype, like.device):
        raise DtypeError(
            f"covariance: is {kind.dtype} on {kind.device}, but the generator's weights are "
            f"{like.dtype} on {like.device}; convert one of them with .to(...)"
        )


def _check_plain(sigma: Level, scale: Level, covariance: Covariance | Structured) -> None:
    """Refuse what goes only with u integrated out."""
    for name, level in (("sigma", sigma), ("scale", scale)):
        if isinstance(level, str):
            raise OptionError(
                f"{name}: with u as a site the density has no maximum in {name}; give a number or "
                "a prior, or integrated=True"
            )
    if isinstance(covariance, Covariance) and not covariance.has_density:
        raise OptionError(
            f"covariance: {type(covariance).__name__} has no density (it is singular, or its "
            "determinant not known), so that u cannot be a site; give integrated=True"
        )
