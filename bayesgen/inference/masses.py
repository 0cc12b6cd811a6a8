"""Inverse mass matrices of Hamiltonian methods: diagonal ``(*problems, 1, n)``, or dense.

A dense one has the shape ``(*problems, n, n)``; in one dimension the two are the same. With one
axis more, ``(*problems, groups, n, n)``, equal groups of neighbouring chains have their own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(inverse_mass: Tensor) -> bool:
    """Whether it holds more than the diagonal."""
    return inverse_mass.shape[-2] > 1


def variances(inverse_mass: Tensor) -> Tensor:
    """Its diagonal, ``(*problems, 1, n)``, of each group if there are any."""
    if not is_dense(inverse_mass):
        return inverse_mass
    return inverse_mass.diagonal(dim1=-2, dim2=-1)[..., None, :]


def velocity(momentum: Tensor, inverse_mass: Tensor) -> Tensor:
    """Inverse mass times momenta ``(*problems, chains, n)``.

    Examples
    --------
    >>> p = torch.tensor([[1.0, 2.0]])
    >>> velocity(p, torch.tensor([[3.0, 1.0]])), velocity(p, torch.tensor([[3.0, 1.0], [1.0, 1.0]]))
    (tensor([[3., 2.]]), tensor([[5., 3.]]))
    """
    if not is_dense(inverse_mass):
        return momentum * inverse_mass
    return (_in_groups(momentum, inverse_mass) @ inverse_mass).reshape(momentum.shape)


def whiten(values: Tensor, inverse_mass: Tensor) -> Tensor:
    """Positions in units in which the inverse mass is the identity."""
    if not is_dense(inverse_mass):
        return values / inverse_mass.sqrt()
    return torch.linalg.solve_triangular(_factor(inverse_mass), values.mT, upper=False).mT


def momentum_of(noise: Tensor, inverse_mass: Tensor) -> Tensor:
    """Momenta, whose precision is the inverse mass, from standard normal noise."""
    if not is_dense(inverse_mass):
        return noise / inverse_mass.sqrt()
    rows = _in_groups(noise, inverse_mass)
    found = torch.linalg.solve_triangular(_factor(inverse_mass), rows, upper=False, left=False)
    return found.reshape(noise.shape)


def mean_log(inverse_mass: Tensor) -> Tensor:
    """Mean logarithm of the eigenvalues, ``(*problems, 1, 1)``."""
    if not is_dense(inverse_mass):
        return inverse_mass.log().mean(-1, keepdim=True)
    diagonal = _factor(inverse_mass).diagonal(dim1=-2, dim2=-1)
    return 2.0 * diagonal.log().mean(-1)[..., None, None]


def _in_groups(rows: Tensor, inverse_mass: Tensor) -> Tensor:
    """Rows ``(*problems, chains, n)`` of each group on their own, if there are groups."""
    if inverse_mass.ndim == rows.ndim:
        return rows
    return rows.unflatten(-2, (inverse_mass.shape[-3], -1))


def _factor(inverse_mass: Tensor) -> Tensor:
    """Cholesky factor; where there is none, as when chains run off, trajectories diverge."""
    found: Tensor = torch.linalg.cholesky_ex(inverse_mass).L
    return found
