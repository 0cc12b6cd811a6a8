"""How much an image moves when its latent vector does: singular values of the Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp

from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import check_is_generator, prior_draws, rows_at_once
from bayesgen.models.evaluation.jacobian import MAX_COLUMNS, derivative, jacobian
from bayesgen.numerics import largest_singular_value
from bayesgen.types import check_count

_QUANTILES = {"smallest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "largest": 1.0}


@dataclass(frozen=True)
class Smoothness:
    r"""Singular values of :math:`\partial G / \partial z` at draws of the prior, ``(count,)`` each.

    Attributes
    ----------
    largest
        The largest: the local Lipschitz constant. Where it is large, a small step in latent space
        changes the image much, and samplers need small steps.
    smallest
        The smallest. Where it is zero, moving the latent vector in some direction changes nothing
        and data cannot determine it.
    condition
        Their ratio, which slows samplers and minimisers down.
    effective_rank
        Exponential of the entropy of the squared singular values, normalised to sum 1: how many
        directions in latent space matter.

    All but the first are NaN where only the largest singular value was computed.
    """

    largest: Tensor
    smallest: Tensor
    condition: Tensor
    effective_rank: Tensor

    def summary(self) -> dict[str, dict[str, float]]:
        """By attribute, quantiles over the draws: ``"smallest"``, ``"5 %"``, ``"median"``, ..."""
        names = ("largest", "smallest", "condition", "effective_rank")
        return {name: _quantiles(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        lines = [" ".join([f"{'':14}", *(f"{name:>9}" for name in _QUANTILES)])]
        for name, values in self.summary().items():
            lines.append(" ".join([f"{name:14}", *(f"{v:9.3g}" for v in values.values())]))
        return "\n".join(lines)


def smoothness(
    generator: Generator, *, count: int = 100, seed: int = 0, exact: bool | None = None
) -> Smoothness:
    r"""Measure local Lipschitz constants of a generator over its prior.

    A generator that is to serve in gradient-based reconstruction should be differentiable, should
    not change the image much for a small change of the latent vector, and should not have
    directions that do nothing.

    Parameters
    ----------
    generator
        The generator.
    count
        Number of draws of the prior at which to look.
    seed
        Seed of the draws.
    exact
        Whether to compute whole Jacobians, by forward differentiation, and all their singular
        values, or the largest only, from products with the Jacobian and its transpose. By default
        the former for up to 64 latent dimensions.

    Returns
    -------
    Smoothness
        Singular values, condition number and effective rank at each draw.

    Raises
    ------
    DtypeError
        If the generator is none.
    OptionError
        If ``count`` is not a positive integer.
    ModelError
        If an operation of the generator has no derivative in forward mode.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, the section on what a generative model should have; Roy and Vetterli (2007),
    The effective rank (there of the singular values, here of their squares).

    Examples
    --------
    >>> class Ellipse(Generator):
    ...     def decode(self, z):
    ...         return z * torch.tensor([3.0, 1.0])
    >>> found = smoothness(Ellipse(image_shape=(2,), latent_dim=2), count=1)
    >>> found.largest, found.smallest, found.condition
    (tensor([3.]), tensor([1.]), tensor([3.]))
    """
    check_is_generator(generator)
    check_count("count", count)
    z = prior_draws(generator, count, seed=seed)
    if exact if exact is not None else generator.latent_dim <= MAX_COLUMNS:
        rows = rows_at_once(generator, tangents=generator.latent_dim)
        spectra = [torch.linalg.svdvals(jacobian(generator, part)) for part in z.split(rows)]
        return _describe(torch.cat(spectra))
    largest = torch.stack([_largest(generator, point, seed) for point in z])
    unknown = torch.full_like(largest, math.nan)
    return Smoothness(largest, unknown, unknown, unknown)


def _describe(spectra: Tensor) -> Smoothness:
    """Summaries of singular values ``(count, k)``, in falling order."""
    largest, smallest = spectra[:, 0], spectra[:, -1]
    squares = spectra.square()
    total = squares.sum(1, keepdim=True)
    shares = torch.where(total > 0, squares / total, 1 / spectra.shape[1])
    rank = torch.special.entr(shares).sum(1).exp()
    return Smoothness(largest, smallest, largest / smallest, torch.where(largest > 0, rank, 0.0))


def _largest(generator: Generator, z: Tensor, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(z.shape, generator=rng, dtype=z.dtype).to(z.device)

    def forward(direction: Tensor) -> Tensor:
        return derivative(generator, z, direction)

    pulled: Callable[[Tensor], tuple[Tensor]] = vjp(generator, z)[1]
    return z.new_tensor(largest_singular_value(forward, lambda x: pulled(x)[0].detach(), start))


def _quantiles(values: Tensor) -> dict[str, float]:
    return {name: values.quantile(level).item() for name, level in _QUANTILES.items()}
