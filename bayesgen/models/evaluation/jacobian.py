"""Derivatives of a generator along latent directions, by automatic differentiation forwards."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.func import jvp, vmap

from bayesgen.errors import ModelError
from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import CHUNK

# Jacobians of more columns cost more than they tell.
MAX_COLUMNS = 64


def jacobian(generator: Generator, z: Tensor) -> Tensor:
    r"""All columns of :math:`\partial G / \partial z`, for many latent vectors at once.

    Parameters
    ----------
    generator
        The generator.
    z
        ``(N, latent_dim)``.

    Returns
    -------
    Tensor
        ``(N, pixels, latent_dim)``.

    Raises
    ------
    ModelError
        If an operation of the generator has no derivative in forward mode.

    Examples
    --------
    >>> class Ramp(Generator):
    ...     def decode(self, z):
    ...         return z * torch.linspace(0, 1, 3, dtype=z.dtype)
    >>> jacobian(Ramp(image_shape=(3,), latent_dim=1), torch.ones(1, 1))
    tensor([[[0.0000],
             [0.5000],
             [1.0000]]])
    """
    directions = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    return directional_derivatives(generator, z, directions).permute(1, 2, 0)


def directional_derivatives(generator: Generator, z: Tensor, directions: Tensor) -> Tensor:
    r"""Products :math:`(\partial G / \partial z) e` for each direction at each latent vector.

    Parameters
    ----------
    generator
        The generator.
    z
        ``(N, latent_dim)``.
    directions
        ``(K, latent_dim)``.

    Returns
    -------
    Tensor
        ``(K, N, pixels)``.

    Raises
    ------
    ModelError
        As `jacobian`.
    """

    at_once = max(1, CHUNK // (max(1, len(z)) * math.prod(generator.image_shape)))

    # Only the tangents are vectorised: the values are computed once, with the batch as it is.
    def product(direction: Tensor) -> Tensor:
        return derivative(generator, z, direction.expand_as(z)).flatten(1)

    return vmap(product, chunk_size=at_once)(directions)


def derivative(generator: Generator, z: Tensor, direction: Tensor) -> Tensor:
    r"""Derivative of ``G`` at ``z`` along ``direction``, both ``(*batch, latent_dim)``.

    Raises
    ------
    ModelError
        As `jacobian`.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # On first use PyTorch sets forward mode up with a compiler that it has deprecated.
            warnings.filterwarnings("ignore", ".torch.jit.script", DeprecationWarning)
            tangent: Tensor = jvp(generator, (z,), (direction,))[1]
            return tangent
    except (NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{type(generator).__name__}: could not be differentiated in forward mode ({error}); "
            "where there is a choice of solver, take one that needs gradients only"
        ) from error
