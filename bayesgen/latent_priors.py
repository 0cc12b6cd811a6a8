"""Priors of the latent vector other than the generator's own, to be sampled inside a model.

Each function returns a callable that takes a generator, makes the ``pyro.sample`` statements, and
returns the value ``z`` of shape ``(latent_dim,)``: what the argument ``latent_prior`` of the models
in `bayesgen.regularisers` expects. With d latent dimensions:

============== =========================== =======================================================
function       latent sites                law of z
============== =========================== =======================================================
`own`          ``z``                       ``G.prior()``, for most generators N(0, I)
`sphere`       ``direction``               uniform on the sphere of radius sqrt(d)
`box`          ``z``                       uniform in [-h, h]^d
============== =========================== =======================================================
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.models.base import Generator
from bayesgen.regularisers.pieces import LatentPrior, check_generator_type, zero_of
from bayesgen.types import check_positive


def own() -> LatentPrior:
    """The generator's own prior.

    Returns
    -------
    callable
        From a generator to a value of site ``z``, ``(latent_dim,)``.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.Identity((28, 28))
    >>> def model(y):
    ...     z = own()(G)
    ...     pyro.sample("y", dist.Normal(A(G(z)), 0.1).to_event(2), obs=y)
    >>> bg.LogDensity(model, torch.zeros(28, 28))
    LogDensity(model: R^8 [z(8,)])
    """

    def sample(G: Generator) -> Tensor:
        check_generator_type(G)
        z: Tensor = pyro.sample("z", G.prior())
        return z

    return sample


def sphere(radius: float | None = None) -> LatentPrior:
    r"""Uniform on the sphere where nearly all of N(0, I) lies if there are many dimensions.

    Parameters
    ----------
    radius
        Of the sphere; default sqrt(d), the root mean square of \|z\| under N(0, I).

    Returns
    -------
    callable
        From a generator to ``z``, ``(latent_dim,)``. The latent site is ``direction``; ``z`` is
        deterministic.

    Raises
    ------
    OptionError
        If the radius is not a positive number or, when the model runs, the generator has a single
        latent dimension, in which the sphere is two points that no gradient connects.
    DtypeError
        When the model runs, if it gives no generator.

    Notes
    -----
    The site is a vector v with density proportional to :math:`|v|^d \exp(-|v|^2 / 2)`, and
    :math:`z = \sqrt{d}\, v / |v|`. The density depends on \|v\| only, so that the direction is
    uniform, exactly; and neither z nor the data depend on \|v\|. With v standard normal, as is the
    usual way to draw a direction, the joint mode would be at v = 0, where z has no derivative, and
    gradients with respect to v would grow like 1 / \|v\| on the way there. The factor
    :math:`|v|^d` moves the mode to :math:`|v| = \sqrt{d}`: there
    :math:`|v|^2 / 2 - d \log|v|` is least, with second derivative 2, and v = z if the radius is the
    default, so that steps of v and of z are the same size. A weight on the prior changes how firmly
    \|v\| is held, and nothing about z.

    References
    ----------
    Menon, Damian, Hu, Ravi and Rudin (2020), PULSE: self-supervised photo upsampling via latent
    space exploration of generative models, where the radius is sqrt(d).

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.Identity((28, 28))
    >>> def model(y):
    ...     z = sphere()(G)
    ...     pyro.sample("y", dist.Normal(A(G(z)), 0.1).to_event(2), obs=y)
    >>> posterior = bg.infer(model, G(torch.full((8,), 2.0)), method="map", progress=False)
    >>> bool((posterior.mode("z").norm() - 8**0.5).abs() < 1e-5)
    True
    """
    check_positive("radius", radius, allow_none=True)

    def sample(G: Generator) -> Tensor:
        check_generator_type(G)
        d = G.latent_dim
        if d < 2:
            raise OptionError(
                "sphere: in one latent dimension it is two points, with no way from one to the "
                "other; expected a generator with at least two"
            )
        zero = zero_of(G).expand(d)
        v = pyro.sample("direction", dist.Normal(zero, 1.0).to_event(1))
        length = v.norm()
        pyro.factor("direction_length", d * length.log())
        z: Tensor = pyro.deterministic("z", (radius or math.sqrt(d)) / length * v)
        return z

    return sample


def box(half_width: float = 1.0) -> LatentPrior:
    """Uniform in a cube around the origin, as for generators that were trained with such latents.

    Parameters
    ----------
    half_width
        h. The default is that of DCGAN, whose latents are uniform in [-1, 1]; for a generator with
        the prior N(0, I), 3 holds 99.7 % of each coordinate.

    Returns
    -------
    callable
        From a generator to a value of site ``z``, ``(latent_dim,)``.

    Raises
    ------
    OptionError
        If the half width is not a positive number.
    DtypeError
        When the model runs, if it gives no generator.

    Notes
    -----
    Methods move in :math:`v` with :math:`z = h (2 / (1 + e^{-v}) - 1)`. An optimum at a wall is at
    infinite v, and gradients with respect to v fall with the distance from the wall: `MAP` stops
    once that distance times the slope of the objective there, in nats, is below its tolerance. The
    steeper the data pull outwards, the nearer it gets.

    References
    ----------
    Radford, Metz and Chintala (2016), Unsupervised representation learning with deep convolutional
    generative adversarial networks, figure 1.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.Identity((28, 28))
    >>> def model(y):
    ...     z = box(1.5)(G)
    ...     pyro.sample("y", dist.Normal(A(G(z)), 0.1).to_event(2), obs=y)
    >>> posterior = bg.infer(model, G(torch.full((8,), 1.0)), method="map", progress=False)
    >>> bool(posterior.mode("z").abs().max() < 1.5)
    True
    """
    check_positive("half_width", half_width)

    def sample(G: Generator) -> Tensor:
        check_generator_type(G)
        high = half_width * torch.ones_like(zero_of(G).expand(G.latent_dim))
        z: Tensor = pyro.sample("z", dist.Uniform(-high, high).to_event(1))
        return z

    return sample
