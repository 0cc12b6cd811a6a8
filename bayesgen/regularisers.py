r"""Generative regularisers as Pyro models: short functions to use, to print, and to copy and edit.

Each returns a model of one image x, data y and, where there is a generator, its latent vector z:

========================= ========================= =============================================
function                  image                     minus the log prior, up to a constant
========================= ========================= =============================================
`hard`                    x = G(z)                  w |z|^2 / 2
`relaxed`                 x = G(z) + u              w |z|^2 / 2 + |u|^2 / (2 s^2)
`sparse`                  x = G(z) + u              w |z|^2 / 2 + |u|_1 / s
`sparse_tv`               x = G(z) + u              w |z|^2 / 2 + TV(u) / s
`structured`              x = G(z) + u              w |z|^2 / 2 + u' Sigma(z)^-1 u / 2 + c log det
`tikhonov`                x                         |x|^2 / (2 s^2)
`total_variation`         x                         TV(x) / s
========================= ========================= =============================================

with |z|^2 / 2 for the standard normal prior that most generators have, and minus the log likelihood
|A x - y|^2 / (2 sigma^2). In the weights of Duff, Campbell and Ehrhardt, for that data term: lambda
is w / 2 for `hard`, 1 / (2 s^2) for `relaxed`, and 1 / s for `sparse` and `sparse_tv`; lambda mu is
w / 2 for these three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from bayesgen.distributions import GaussianNoise
from bayesgen.distributions.total_variation import TotalVariation
from bayesgen.errors import DtypeError, OptionError
from bayesgen.models.base import Generator
from bayesgen.operators import Operator
from bayesgen.types import check_positive

Model = Callable[..., Any]

# Data up to which the covariance of all of them is factorised.
_MOST_DATA = 4096


def hard(G: Generator, A: Operator, sigma: float, *, latent_weight: float = 1.0) -> Model:
    """The image is in the range of the generator, x = G(z).

    Parameters
    ----------
    G
        The generator.
    A
        The forward operator.
    sigma
        Standard deviation of the noise.
    latent_weight
        w: the latent prior counts so many times. 1 gives the posterior; the papers tune it.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``z``, ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma or the weight is not a positive number.

    References
    ----------
    Bora, Jalal, Price and Dimakis (2017), Compressed sensing using generative models; Duff,
    Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine learning
    models.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 150, seed=0)
    >>> y = A(G(torch.zeros(8)))
    >>> posterior = bg.infer(hard(G, A, sigma=0.1), y, method="map", progress=False)
    >>> posterior.mode("x").shape
    torch.Size([28, 28])
    """
    check_positive("sigma", sigma)
    check_positive("latent_weight", latent_weight)

    def model(y: Tensor | None = None) -> None:
        with poutine.scale(scale=latent_weight):
            z = pyro.sample("z", G.prior())
        x = pyro.deterministic("x", G(z))
        pyro.sample("y", GaussianNoise(A(x), sigma), obs=y)

    return model


def relaxed(
    G: Generator,
    A: Operator,
    sigma: float,
    scale: float,
    *,
    latent_weight: float = 1.0,
    integrated: bool = True,
) -> Model:
    r"""The image deviates from the range by white noise, x = G(z) + u with u ~ N(0, s^2 I).

    Integrated out, the deviation leaves :math:`y | z \sim N(A G(z), \sigma^2 I + s^2 A A^T)`, and x
    is its mean given z and y, :math:`G(z) + s^2 A^T (\sigma^2 I + s^2 A A^T)^{-1} (y - A G(z))`.
    Only z is left to be sought, and the optimum is the same.

    Parameters
    ----------
    G, A, sigma, latent_weight
        As for `hard`; the operator is linear.
    scale
        s, in intensities.
    integrated
        Whether u is integrated out. It needs the factor of a matrix as large as the data squared,
        computed once: up to 4096 numbers.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``z``, ``x`` and ``y``, and ``u`` if it is not integrated out.

    Raises
    ------
    OptionError
        If sigma, the scale or the weight is not a positive number, the operator is not linear, or
        there are too many data to integrate u out.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 50, seed=0)
    >>> y = A(G(torch.zeros(8)))
    >>> posterior = bg.infer(relaxed(G, A, 0.1, 0.1), y, method="map", progress=False)
    >>> posterior.mode("x").shape
    torch.Size([28, 28])
    """
    check_positive("scale", scale)
    if not integrated:
        return _deviating(G, A, sigma, lambda: _independent(dist.Normal, G, scale), latent_weight)
    check_positive("sigma", sigma)
    check_positive("latent_weight", latent_weight)
    factor = _data_factor(A, _zero(G), sigma, scale)

    def model(y: Tensor | None = None) -> None:
        with poutine.scale(scale=latent_weight):
            z = pyro.sample("z", G.prior())
        mean = G(z)
        predicted = A(mean)
        data = pyro.sample("y", GaussianNoise(predicted, cholesky=factor), obs=y)
        difference = (data - predicted).reshape(-1, 1)
        unexplained = torch.cholesky_solve(difference, factor).reshape(A.range_shape)
        pyro.deterministic("x", mean + scale**2 * A.adjoint(unexplained))

    return model


def sparse(
    G: Generator, A: Operator, sigma: float, scale: float, *, latent_weight: float = 1.0
) -> Model:
    """The image deviates from the range in few pixels, x = G(z) + u with Laplace u.

    Parameters
    ----------
    G, A, sigma, latent_weight
        As for `hard`.
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
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 50, seed=0)
    >>> y = A(G(torch.zeros(8)))
    >>> posterior = bg.infer(sparse(G, A, 0.1, 0.05), y, method="map", progress=False)
    >>> (posterior.mode("u") == 0).float().mean() > 0.9  # the solver is exact about zeros
    tensor(True)
    """
    check_positive("scale", scale)
    return _deviating(G, A, sigma, lambda: _independent(dist.Laplace, G, scale), latent_weight)


def sparse_tv(
    G: Generator, A: Operator, sigma: float, scale: float, *, latent_weight: float = 1.0
) -> Model:
    """The deviation from the range has few edges: total-variation prior on u = x - G(z).

    Parameters
    ----------
    G, A, sigma, latent_weight
        As for `hard`.
    scale
        s of `bayesgen.distributions.total_variation.TotalVariation`, in intensities.

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
    >>> import bayesgen as bg
    >>> G = bg.models.load("mnist-vae-8")
    >>> model = sparse_tv(G, bg.operators.Identity((28, 28)), 0.1, 0.05)
    >>> posterior = bg.infer(model, G(torch.zeros(8)), method="map", progress=False)
    >>> posterior.mode("u").shape
    torch.Size([28, 28])
    """
    check_positive("scale", scale)
    dtype = _zero(G).dtype
    return _deviating(
        G, A, sigma, lambda: TotalVariation(G.image_shape, scale, dtype=dtype), latent_weight
    )


def structured(
    G: Generator,
    A: Operator,
    sigma: float,
    *,
    latent_weight: float = 1.0,
    logdet_weight: float = 0.5,
) -> Model:
    r"""The deviation has the covariance that the generator predicts, u ~ N(0, Sigma(z)).

    Parameters
    ----------
    G
        A generator with ``residual_prior(z)``, such as `bayesgen.models.StructuredVAE`.
    A, sigma, latent_weight
        As for `hard`.
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
    >>> import bayesgen as bg
    >>> G = bg.models.load("mnist-structured-vae")
    >>> model = structured(G, bg.operators.Identity((28, 28)), 0.1)
    >>> bg.LogDensity(model, G(torch.zeros(16)))
    LogDensity(model: R^800 [z(16,), u(28, 28)])
    """
    check_positive("sigma", sigma)
    check_positive("latent_weight", latent_weight)
    check_positive("logdet_weight", logdet_weight)
    if not hasattr(G, "conditional"):
        raise DtypeError(
            f"G: expected a generator whose residuals have a law given z, such as StructuredVAE; "
            f"got {type(G).__name__}"
        )
    constant = 0.5 * math.prod(G.image_shape) * (1 + math.log(2 * math.pi))

    def model(y: Tensor | None = None) -> None:
        with poutine.scale(scale=latent_weight):
            z = pyro.sample("z", G.prior())
        law = G.residual_prior(z)
        # The entropy is half the log-determinant of the covariance, and a constant.
        excess = (2 * logdet_weight - 1) * (law.entropy() - constant)
        pyro.factor("log_determinant", -excess)
        u = pyro.sample("u", law)
        x = pyro.deterministic("x", G(z) + u)
        pyro.sample("y", GaussianNoise(A(x), sigma), obs=y)

    return model


def tikhonov(A: Operator, sigma: float, scale: float) -> Model:
    """No generator: independent normal pixels, for comparison.

    Parameters
    ----------
    A, sigma
        As for `hard`.
    scale
        s, in intensities.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma or the scale is not a positive number.

    Examples
    --------
    >>> import bayesgen as bg
    >>> model = tikhonov(bg.operators.Identity((2, 2)), sigma=1.0, scale=1.0)
    >>> bg.infer(model, torch.ones(2, 2), method="map", progress=False).mode("x")
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    check_positive("scale", scale)
    return _plain(A, sigma, lambda: dist.Normal(0.0, scale).expand(A.domain_shape).to_event())


def total_variation(A: Operator, sigma: float, scale: float) -> Model:
    """No generator: an image with few edges, for comparison.

    Parameters
    ----------
    A, sigma
        As for `hard`.
    scale
        s of `bayesgen.distributions.total_variation.TotalVariation`, in intensities.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma or the scale is not a positive number.

    See Also
    --------
    bayesgen.reconstruction.total_variation : the same optimum by a solver for nothing else.

    Examples
    --------
    >>> import bayesgen as bg
    >>> model = total_variation(bg.operators.Identity((1, 2)), sigma=1.0, scale=1.0)
    >>> bg.infer(model, torch.tensor([[0.0, 4.0]]), method="map", progress=False).mode("x")
    tensor([[1., 3.]])
    """
    check_positive("scale", scale)
    return _plain(A, sigma, lambda: TotalVariation(A.domain_shape, scale))


def _deviating(
    G: Generator,
    A: Operator,
    sigma: float,
    u_prior: Callable[[], Any],
    latent_weight: float,
) -> Model:
    check_positive("sigma", sigma)
    check_positive("latent_weight", latent_weight)

    def model(y: Tensor | None = None) -> None:
        with poutine.scale(scale=latent_weight):
            z = pyro.sample("z", G.prior())
        u = pyro.sample("u", u_prior())
        x = pyro.deterministic("x", G(z) + u)
        pyro.sample("y", GaussianNoise(A(x), sigma), obs=y)

    return model


def _plain(A: Operator, sigma: float, prior: Callable[[], Any]) -> Model:
    check_positive("sigma", sigma)

    def model(y: Tensor | None = None) -> None:
        x = pyro.sample("x", prior())
        pyro.sample("y", GaussianNoise(A(x), sigma), obs=y)

    return model


def _independent(law: Any, G: Generator, scale: float) -> Any:
    return law(_zero(G), scale).expand(G.image_shape).to_event(len(G.image_shape))


def _zero(G: Generator) -> Tensor:
    """A number of the generator's dtype and device."""
    return next(iter(G.state_dict().values()), torch.zeros(())).new_zeros(())


@torch.no_grad()
def _data_factor(A: Operator, like: Tensor, sigma: float, scale: float) -> Tensor:
    """Cholesky factor of the covariance of data given z, in one row."""
    count = math.prod(A.range_shape)
    if not A.linear:
        raise OptionError("A: is not linear, so u cannot be integrated out; integrated=False")
    if count > _MOST_DATA:
        raise OptionError(
            f"integrated: {count} data are too many to factorise their covariance (at most "
            f"{_MOST_DATA}); integrated=False keeps u as a site"
        )
    columns = torch.eye(count, dtype=like.dtype, device=like.device).reshape(count, *A.range_shape)
    covariance = scale**2 * A(A.adjoint(columns)).reshape(count, count).double()
    covariance = 0.5 * (covariance + covariance.T)
    covariance.diagonal().add_(sigma**2)
    return torch.linalg.cholesky(covariance).to(like)
