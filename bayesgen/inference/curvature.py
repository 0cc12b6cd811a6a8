"""Normal laws at optima: how sharply a log density bends there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.inference.standardised import Standardised
from bayesgen.types import Density

# Unknowns up to which a matrix of their number squared is computed column by column.
MOST_UNKNOWNS = 1000


class Normals(NamedTuple):
    """Normal laws, one for each optimum.

    Attributes
    ----------
    mean
        ``(*batch, n)``.
    factor
        Lower Cholesky factors of their precisions, ``(*batch, n, n)``.
    """

    mean: Tensor
    factor: Tensor

    def spread(self, noise: Tensor) -> Tensor:
        """Draws ``(*batch, num, n)`` made of standard normal numbers of that shape."""
        steps = torch.linalg.solve_triangular(self.factor.mT, noise.mT, upper=True).mT
        return self.mean.unsqueeze(-2) + steps

    def log_prob(self, v: Tensor) -> Tensor:
        """Log densities ``(*batch, num)`` at ``(*batch, num, n)``, normalised."""
        whitened = (v - self.mean.unsqueeze(-2)) @ self.factor
        constant = self.half_log_det - 0.5 * v.shape[-1] * math.log(2.0 * math.pi)
        return constant.unsqueeze(-1) - 0.5 * whitened.square().sum(-1)

    @property
    def half_log_det(self) -> Tensor:
        """Half the logarithms of the determinants of the precisions, ``(*batch,)``."""
        return self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class Unconstrained:
    """A log density whose Jacobian always counts, so that optima are those of unconstrained v.

    Parameters
    ----------
    log_density
        The log density; optimisers, which leave out the Jacobian, are given this one instead.
    """

    def __init__(self, log_density: Density) -> None:
        self.log_density = log_density
        self.num_dims = log_density.num_dims
        self.scale: Tensor | float = getattr(log_density, "scale", 1.0)
        self.takes_where: bool = getattr(log_density, "takes_where", False)

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Log density and its gradient, with the Jacobian whatever is asked for."""
        return self.log_density.value_and_grad(v, **options)


def check_normal_laws_fit(log_density: Density, name: str) -> None:
    """Refuse densities at whose optima there is no normal law, or one too large to compute.

    Raises
    ------
    OptionError
        If there are more than 1000 unknowns, or some prior has kinks.
    """
    if log_density.num_dims > MOST_UNKNOWNS:
        raise OptionError(
            f"{name}: the model has {log_density.num_dims} unknowns; expected at most "
            f"{MOST_UNKNOWNS}; sample instead"
        )
    kinks = sorted(getattr(log_density, "proximal", {}))
    if kinks:
        raise OptionError(
            f"{name}: the priors of {kinks} have kinks, where no normal law fits; sample instead"
        )


def normals_at(log_density: Density, v: Tensor) -> tuple[Normals, Tensor, str]:
    """Normal laws with the curvature of a log density at its optima.

    Parameters
    ----------
    log_density
        The log density, in whose units the laws are.
    v
        Optima ``(*batch, n)``, after an axis of problems if there are several.

    Returns
    -------
    normals, fits, kind
        The laws; whether the curvature is positive definite, ``(*batch,)``, the factor being the
        identity where it is not; and what it was computed by.

    References
    ----------
    MacKay (2003), Information Theory, Inference, and Learning Algorithms, chapter 27.

    Examples
    --------
    >>> from bayesgen.inference.checks import GaussianTarget
    >>> target = GaussianTarget.with_condition(2, 4.0)
    >>> normals, fits, _ = normals_at(target, target.mean)
    >>> precision = normals.factor @ normals.factor.T
    >>> bool(fits) and torch.allclose(precision, torch.linalg.inv(target.covariance))
    True
    """
    precision, kind = curvature(log_density, v)
    factor, failed = torch.linalg.cholesky_ex(precision)
    fits = (failed == 0) & torch.isfinite(factor).flatten(-2).all(-1)
    eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    return Normals(v, torch.where(fits[..., None, None], factor, eye)), fits, kind


def curvature(log_density: Density, v: Tensor) -> tuple[Tensor, str]:
    """Minus the second derivatives of a log density, ``(*batch, n, n)``, and what they are.

    ``"Gauss-Newton"`` where all sites of a model are normal: it is positive definite however far
    the optimum is from exact. ``"Hessian"`` else, by differentiating twice, or by differences of
    gradients where a density offers no more than those.
    """
    if isinstance(log_density, Standardised):
        units = log_density.units(v)
        matrix, kind = curvature(log_density.log_density, v * units)
        log_density.count += log_density.num_dims
        if isinstance(units, Tensor):
            matrix = matrix * units.unsqueeze(-1) * units.unsqueeze(-2)
        return matrix, kind
    least_squares = getattr(log_density, "least_squares", None)
    if least_squares is not None and not getattr(log_density, "has_jacobian", False):
        return least_squares.linearise(v)[2], "Gauss-Newton"
    log_prob = getattr(log_density, "log_prob", None)
    matrix = _differences(log_density, v) if log_prob is None else _hessian(log_prob, v)
    return 0.5 * (matrix + matrix.mT), "Hessian"


def _hessian(log_prob: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """By automatic differentiation: one pass for each unknown, all points at once."""
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(v).sum(), v, create_graph=True)
        if not gradient.requires_grad:
            return v.new_zeros(*v.shape, v.shape[-1])
        rows = [
            torch.autograd.grad(part, v, retain_graph=True, materialize_grads=True)[0]
            for part in gradient.reshape(-1, v.shape[-1]).sum(0).unbind()
        ]
    return -torch.stack(rows, -2)


def _differences(log_density: Density, v: Tensor) -> Tensor:
    """By central differences of gradients, with steps that suit the curvature itself."""
    relative = torch.finfo(v.dtype).eps ** (1 / 3)
    eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    length = torch.ones_like(v)
    # The first pass finds how far each coordinate reaches.
    for _ in range(2):
        steps = relative * length.unsqueeze(-2) * eye
        after = log_density.value_and_grad(v.unsqueeze(-2) + steps)[1]
        before = log_density.value_and_grad(v.unsqueeze(-2) - steps)[1]
        matrix = (before - after) / (2 * relative * length.unsqueeze(-1))
        reach = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
        length = torch.where(torch.isfinite(reach), reach, length)
    return matrix
