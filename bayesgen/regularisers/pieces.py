"""What the ready-made models are put together from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.models.base import Generator
from bayesgen.operators import Operator
from bayesgen.types import check_positive

Model = Callable[..., Any]

# A standard deviation: known; "estimate", with a flat prior; or with a prior of one's own.
Level = float | Tensor | str | torch.distributions.Distribution

# Samples the latent vector of a generator.
LatentPrior = Callable[[Generator], Tensor]

# Of a latent vector and its image G(z): what is subtracted from the log density.
Penalty = Callable[[Tensor, Tensor], Tensor]


def check_level(name: str, level: Level) -> None:
    """Refuse what is no standard deviation.

    Tensors pass unseen: inside a model they may stand for many values at a time.
    """
    if isinstance(level, str):
        if level != "estimate":
            raise OptionError(f"{name}: got {level!r}; expected a number or 'estimate'")
    elif not isinstance(level, Tensor | torch.distributions.Distribution):
        check_positive(name, level)


def check_weight(name: str, weight: float | Tensor) -> None:
    """Refuse a number that is not positive; tensors pass unseen, see `check_level`."""
    if not isinstance(weight, Tensor):
        check_positive(name, weight)


def level_of(name: str, level: Level, like: Tensor) -> Any:
    """The standard deviation, sampled at a site of this name if it is not known."""
    if isinstance(level, str):
        flat = dist.ImproperUniform(constraints.positive, (), ())
        flat.dtype = like.dtype  # what its values are made in
        return pyro.sample(name, flat)
    law: Any = level
    return pyro.sample(name, law) if isinstance(level, torch.distributions.Distribution) else level


def latent_image(
    G: Generator,
    weight: float | Tensor,
    latent_prior: LatentPrior | None,
    penalties: Sequence[Penalty],
) -> tuple[Tensor, Tensor]:
    """Sample z; return it with G(z)."""
    with poutine.scale(scale=weight):
        z = pyro.sample("z", G.prior()) if latent_prior is None else latent_prior(G)
    x = G(z)
    for number, penalty in enumerate(penalties):
        value = penalty(z, x)
        if value.shape:
            raise ShapeError(
                f"penalties[{number}]: returned shape {tuple(value.shape)}; expected one number"
            )
        pyro.factor(f"penalty_{number}", -value)
    return z, x


def zero_of(G: Generator) -> Tensor:
    """A number of the generator's dtype and device."""
    weight = G._weight()
    return torch.zeros(()) if weight is None else weight.new_zeros(())


def check_generator_type(G: Generator) -> None:
    """Refuse what is no generator."""
    if not isinstance(G, Generator):
        raise DtypeError(f"G: expected a Generator, got {type(G).__name__}")


def check_operator_type(A: Operator) -> None:
    """Refuse what is no forward operator."""
    if not isinstance(A, Operator):
        raise DtypeError(
            f"A: expected an Operator, got {type(A).__name__}; bayesgen.operators has adapters for "
            "matrices and functions"
        )


def check_fit(G: Generator, A: Operator) -> None:
    """Refuse a generator and an operator that do not fit each other."""
    check_generator_type(G)
    check_operator_type(A)
    if tuple(A.domain_shape) != tuple(G.image_shape):
        raise ShapeError(
            f"A: takes images {tuple(A.domain_shape)}, but the generator's have shape "
            f"{tuple(G.image_shape)}"
        )


def check_generative(
    G: Generator,
    A: Operator,
    latent_prior: LatentPrior | None,
    penalties: Sequence[Penalty],
) -> None:
    """Refuse what does not fit together."""
    check_fit(G, A)
    if latent_prior is not None and not callable(latent_prior):
        raise DtypeError(
            f"latent_prior: got {latent_prior!r}; expected a function of the generator, such as "
            "bayesgen.latent_priors.sphere()"
        )
    if not isinstance(penalties, list | tuple) or not all(map(callable, penalties)):
        raise DtypeError(
            f"penalties: got {penalties!r}; expected a list of functions of z and G(z), such as "
            "those of bayesgen.penalties"
        )
