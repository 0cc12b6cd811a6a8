"""Images that deviate from the range of a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from bayesgen.distributions import GaussianNoise
from bayesgen.distributions.total_variation import TotalVariation
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
from bayesgen.regularisers.soft_range import soft_range, white
from bayesgen.types import check_positive


def relaxed(
    G: Generator,
    A: Operator,
    sigma: Level,
    scale: Level,
    *,
    latent_weight: float | Tensor = 1.0,
    latent_prior: LatentPrior | None = None,
    penalties: Sequence[Penalty] = (),
    integrated: bool = True,
) -> Model:
    r"""The image deviates from the range by white noise, x = G(z) + u with u ~ N(0, s^2 I).

    Integrated out, the deviation leaves :math:`y | z \sim N(A G(z), \sigma^2 I + s^2 A A^T)`. Only
    z is left to be sought, and the optimum is the same; x given z and y is normal with mean
    :math:`G(z) + s^2 A^T (\sigma^2 I + s^2 A A^T)^{-1} (y - A G(z))`.

    Parameters
    ----------
    G, A, sigma, latent_weight, latent_prior, penalties
        As for `hard`; the operator is linear.
    scale
        s, in intensities; ``"estimate"`` or a distribution make it a latent site. With u integrated
        out, MAP then gives the most likely scale.
    integrated
        Whether u is integrated out. Up to 4096 numbers, the smaller of image and data, it takes one
        eigendecomposition of a matrix of that size squared; beyond, an iteration in every
        evaluation (see `bayesgen.distributions.IteratedDeviation`), for which sigma and s must be
        numbers.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``z``, ``x`` and ``y``, and ``u`` if it is not integrated out.

    Raises
    ------
    OptionError
        If sigma, the scale or the weight is not a positive number; if the operator is not linear,
        or too large to estimate sigma or s; or if a scale is to be estimated together with u
        itself, where the density has no maximum.

    See Also
    --------
    bayesgen.regularisers.soft_range : the same with a covariance learned from images.

    Notes
    -----
    With u integrated out, every draw of ``x`` is exact given z and the data; optimisers report its
    mean, which is the optimum.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models.

    Examples
    --------
    >>> import torch, bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 50, seed=0)
    >>> y = A(G(torch.zeros(8)))
    >>> posterior = bg.infer(relaxed(G, A, 0.1, 0.1), y, method="map", progress=False)
    >>> posterior.mode("x").shape
    torch.Size([28, 28])
    """
    check_level("scale", scale)
    if not integrated:
        if not isinstance(scale, float | int | Tensor):
            raise OptionError(
                "scale: with u as a site the density has no maximum in the scale (it grows as u "
                "and the scale shrink); give a number, or integrated=True"
            )
        return _deviating(
            G,
            A,
            sigma,
            lambda: _independent(dist.Normal, G, scale),
            latent_weight,
            latent_prior,
            penalties,
        )
    check_generative(G, A, latent_prior, penalties)
    return soft_range(
        G,
        A,
        sigma,
        covariance=white(A, G),
        scale=scale,
        latent_weight=latent_weight,
        latent_prior=latent_prior,
        penalties=penalties,
    )


def sparse(
    G: Generator,
    A: Operator,
    sigma: Level,
    scale: float | Tensor,
    *,
    latent_weight: float | Tensor = 1.0,
    latent_prior: LatentPrior | None = None,
    penalties: Sequence[Penalty] = (),
) -> Model:
    """The image deviates from the range in few pixels, x = G(z) + u with Laplace u.

    Parameters
    ----------
    G, A, sigma, latent_weight, latent_prior, penalties
        As for `hard`; sigma cannot be ``"estimate"``, as u can explain all data.
    scale
        s, the mean magnitude of u under its prior, in intensities.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``z``, ``u``, ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma, the scale or the weight is not a positive number.

    References
    ----------
    Dhar, Grover and Ermon (2018), Modeling sparse
    deviations for compressed sensing using generative models.

    Examples
    --------
    >>> import torch, bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 50, seed=0)
    >>> y = A(G(torch.zeros(8)))
    >>> posterior = bg.infer(sparse(G, A, 0.1, 0.05), y, method="map", progress=False)
    >>> (posterior.mode("u") == 0).float().mean() > 0.9  # the solver is exact about zeros
    tensor(True)
    """
    check_weight("scale", scale)
    return _deviating(
        G,
        A,
        sigma,
        lambda: _independent(dist.Laplace, G, scale),
        latent_weight,
        latent_prior,
        penalties,
    )


def sparse_tv(
    G: Generator,
    A: Operator,
    sigma: Level,
    scale: float,
    *,
    smoothing: float = 0.0,
    latent_weight: float | Tensor = 1.0,
    latent_prior: LatentPrior | None = None,
    penalties: Sequence[Penalty] = (),
) -> Model:
    """The deviation from the range has few edges: total-variation prior on u = x - G(z).

    Parameters
    ----------
    G, A, sigma, latent_weight, latent_prior, penalties
        As for `hard`; sigma cannot be ``"estimate"``, as u can explain all data.
    scale
        s of `bayesgen.distributions.total_variation.TotalVariation`, in intensities.
    smoothing
        Of its kinks, in intensities. With a hundredth of the contrast, MAP takes L-BFGS and
        minutes become seconds where A is badly conditioned, as in tomography.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``z``, ``u``, ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma, the scale or the weight is not a positive number.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models.

    Examples
    --------
    >>> import torch, bayesgen as bg
    >>> G = bg.models.load("mnist-vae-8")
    >>> model = sparse_tv(G, bg.operators.Identity((28, 28)), 0.1, 0.05)
    >>> posterior = bg.infer(model, G(torch.zeros(8)), method="map", progress=False)
    >>> posterior.mode("u").shape
    torch.Size([28, 28])
    """
    check_positive("scale", scale)
    if smoothing:
        check_positive("smoothing", smoothing)
    dtype = zero_of(G).dtype
    return _deviating(
        G,
        A,
        sigma,
        lambda: TotalVariation(G.image_shape, scale, smoothing=smoothing, dtype=dtype),
        latent_weight,
        latent_prior,
        penalties,
    )


def structured(
    G: Generator,
    A: Operator,
    sigma: Level,
    *,
    latent_weight: float | Tensor = 1.0,
    latent_prior: LatentPrior | None = None,
    penalties: Sequence[Penalty] = (),
    logdet_weight: float = 0.5,
) -> Model:
    r"""The deviation has the covariance that the generator predicts, u ~ N(0, Sigma(z)).

    Parameters
    ----------
    G
        A generator with ``residual_prior(z)``, such as `bayesgen.models.StructuredVAE`.
    A, sigma, latent_weight, latent_prior, penalties
        As for `hard`; sigma cannot be ``"estimate"``, as u can explain all data.
    logdet_weight
        Weight of :math:`\log\det\Sigma(z)`: 1/2 is that of the density; 1 was published.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``z``, ``u``, ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma or a weight is not a positive number.
    DtypeError
        If the generator's residuals have no law that depends on z.

    Notes
    -----
    The joint maximum over z and u prefers latent vectors with small variances: the density of u at
    its mode grows without a better image. Sampling does not share this.

    References
    ----------
    Duff, Simpson, Ehrhardt and Campbell (2023), VAEs with structured image covariance applied to
    compressed sensing MRI.

    Examples
    --------
    >>> import torch, bayesgen as bg
    >>> G = bg.models.load("mnist-structured-vae")
    >>> model = structured(G, bg.operators.Identity((28, 28)), 0.1)
    >>> bg.LogDensity(model, G(torch.zeros(16)))
    LogDensity(model: R^800 [z(16,), u(28, 28)])
    """
    check_generative(G, A, latent_prior, penalties)
    _check_level_with_u(sigma)
    check_weight("latent_weight", latent_weight)
    check_positive("logdet_weight", logdet_weight)
    if not hasattr(G, "conditional"):
        raise DtypeError(
            f"G: expected a generator whose residuals have a law given z, such as StructuredVAE; "
            f"got {type(G).__name__}"
        )
    constant = 0.5 * math.prod(G.image_shape) * (1 + math.log(2 * math.pi))

    def model(y: Tensor | None = None) -> None:
        z, mean = latent_image(G, latent_weight, latent_prior, penalties)
        law = G.residual_prior(z)
        # The entropy is half the log-determinant of the covariance, and a constant.
        excess = (2 * logdet_weight - 1) * (law.entropy() - constant)
        pyro.factor("log_determinant", -excess)
        u = pyro.sample("u", law)
        x = pyro.deterministic("x", mean + u)
        pyro.sample("y", GaussianNoise(A(x), level_of("sigma", sigma, x)), obs=y)

    return model


def _deviating(
    G: Generator,
    A: Operator,
    sigma: Level,
    u_prior: Callable[[], Any],
    latent_weight: float | Tensor,
    latent_prior: LatentPrior | None,
    penalties: Sequence[Penalty],
) -> Model:
    check_generative(G, A, latent_prior, penalties)
    _check_level_with_u(sigma)
    check_weight("latent_weight", latent_weight)

    def model(y: Tensor | None = None) -> None:
        _, mean = latent_image(G, latent_weight, latent_prior, penalties)
        u = pyro.sample("u", u_prior())
        x = pyro.deterministic("x", mean + u)
        pyro.sample("y", GaussianNoise(A(x), level_of("sigma", sigma, x)), obs=y)

    return model


def _check_level_with_u(sigma: Level) -> None:
    check_level("sigma", sigma)
    if isinstance(sigma, str):
        raise OptionError(
            "sigma: with u as a site the density has no maximum in sigma (u can explain all data); "
            "give a number or a prior, or use relaxed, which integrates u out"
        )


def _independent(law: Any, G: Generator, scale: float | Tensor) -> Any:
    return law(zero_of(G), scale).expand(G.image_shape).to_event(len(G.image_shape))
