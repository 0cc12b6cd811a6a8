"""Images in the range of a generator."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor

from bayesgen.distributions import GaussianNoise
from bayesgen.errors import DtypeError
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
)


def hard(
    G: Generator,
    A: Operator,
    sigma: Level,
    *,
    latent_weight: float | Tensor = 1.0,
    latent_prior: LatentPrior | None = None,
    penalties: Sequence[Penalty] = (),
) -> Model:
    """The image is in the range of the generator, x = G(z).

    Parameters
    ----------
    G
        The generator.
    A
        The forward operator.
    sigma
        Standard deviation of the noise; ``"estimate"`` or a distribution make it a latent site.
    latent_weight
        w: the latent prior counts so many times. 1 gives the posterior; the papers tune it.
    latent_prior
        Instead of the generator's own: see `bayesgen.latent_priors`.
    penalties
        Functions of z and G(z) to subtract from the log density: see `bayesgen.penalties`.

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
    >>> import torch, bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 150, seed=0)
    >>> y = A(G(torch.zeros(8)))
    >>> posterior = bg.infer(hard(G, A, sigma=0.1), y, method="map", progress=False)
    >>> posterior.mode("x").shape
    torch.Size([28, 28])
    """
    check_generative(G, A, latent_prior, penalties)
    check_level("sigma", sigma)
    check_weight("latent_weight", latent_weight)

    def model(y: Tensor | None = None) -> None:
        _, mean = latent_image(G, latent_weight, latent_prior, penalties)
        x = pyro.deterministic("x", mean)
        pyro.sample("y", GaussianNoise(A(x), level_of("sigma", sigma, x)), obs=y)

    return model


def flow(
    G: Generator,
    A: Operator,
    sigma: Level,
    *,
    latent_weight: float | Tensor = 1.0,
    latent_prior: LatentPrior | None = None,
    penalties: Sequence[Penalty] = (),
) -> Model:
    """The generator is invertible: every image is in its range, x = G(z), dim z = dim x.

    Parameters
    ----------
    G
        An invertible generator, such as `bayesgen.models.Glow`.
    A, sigma, latent_weight, latent_prior, penalties
        As for `hard`. The published weight is gamma = w sigma^2 for the data term |A x - y|^2.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``z``, ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma or the weight is not a positive number.
    DtypeError
        If the generator is not invertible.

    Notes
    -----
    The optimum is that of the density of z, as published, not of x: their modes differ, their
    posteriors do not. Start at zero, as Asim et al. advise: ``start={"z": torch.zeros(n)}``.

    References
    ----------
    Asim, Daniels, Leong, Ahmed and Hand (2020), Invertible generative models for inverse problems,
    eq. 3.

    Examples
    --------
    >>> import torch, bayesgen as bg
    >>> G = bg.models.load("mnist-glow")
    >>> model = flow(G, bg.operators.Identity((28, 28)), sigma=0.2)
    >>> start, method = {"z": torch.zeros(784)}, bg.inference.MAP(max_iterations=5)
    >>> y = torch.zeros(28, 28)
    >>> posterior = bg.infer(model, y, method=method, chains=1, start=start, progress=False)
    >>> posterior.mode("x").shape
    torch.Size([28, 28])
    """
    if not (isinstance(G, Generator) and G.can("log_abs_det")):
        raise DtypeError(f"G: expected an invertible generator, got {type(G).__name__}")
    return hard(
        G,
        A,
        sigma,
        latent_weight=latent_weight,
        latent_prior=latent_prior,
        penalties=penalties,
    )
