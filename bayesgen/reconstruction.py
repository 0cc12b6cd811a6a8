"""Reconstructions without a generator: the baselines that every table should have."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.numerics import conjugate_gradient, iteration_tolerance
from bayesgen.operators import Gradient, Operator
from bayesgen.operators.convolution import Boundary
from bayesgen.operators.inputs import as_count, as_positive, require_finite
from bayesgen.projected_gradient import projected_gradient

__all__ = ["projected_gradient", "tikhonov", "total_variation"]


def tikhonov(
    A: Operator,
    y: Tensor,
    weight: float | Tensor,
    *,
    penalty: Operator | None = None,
    tolerance: float | None = None,
    max_steps: int = 1000,
) -> Tensor:
    r"""Minimise :math:`\|A x - y\|^2 + \lambda \|L x\|^2`, for many problems at once.

    Parameters
    ----------
    A
        Linear forward operator.
    y
        Data ``(*batch, *range_shape)``.
    weight
        :math:`\lambda > 0`; a tensor broadcasts against the batch, for a sweep over weights. With
        Gaussian noise of standard deviation sigma and a Gaussian prior of standard deviation tau
        it is ``sigma**2 / tau**2``, and the minimiser is the posterior mean.
    penalty
        :math:`L`; default the identity.
    tolerance
        Relative residual of the normal equations; default fifty roundings of the dtype, but at
        least 1e-8. For weights far below ``A.norm() ** 2`` the image can be less accurate by their
        ratio: use double precision then.
    max_steps
        Conjugate gradient steps at most.

    Returns
    -------
    Tensor
        ``(*batch, *domain_shape)``, where ``batch`` is that of ``y`` broadcast with ``weight``.

    Raises
    ------
    OptionError
        If the operator is not linear, or a weight, the tolerance or the number of steps is not
        positive.
    ShapeError
        If shapes do not fit.

    Warns
    -----
    RuntimeWarning
        If ``max_steps`` did not suffice for some problem.

    References
    ----------
    Tikhonov (1963), Solution of incorrectly formulated problems and the regularization method.

    Examples
    --------
    >>> from bayesgen.operators import Identity
    >>> tikhonov(Identity((2,)), torch.tensor([2.0, 4.0]), weight=1.0)
    tensor([1., 2.])
    """
    y, weight = _checked(A, y, weight)
    max_steps = as_count("max_steps", max_steps)
    if tolerance is None:
        tolerance = iteration_tolerance(y.dtype)
    tolerance = as_positive("tolerance", tolerance)
    if penalty is not None:
        _check_penalty(A, penalty)
    scale = weight.reshape(weight.shape + (1,) * len(A.domain_shape))

    def normal(x: Tensor) -> Tensor:
        smooth = x if penalty is None else penalty.adjoint(penalty(x))
        return A.adjoint(A(x)) + scale * smooth

    with torch.no_grad():
        back = A.adjoint(y)
        x, residual = conjugate_gradient(
            normal,
            back,
            event_dims=len(A.domain_shape),
            tolerance=tolerance,
            max_steps=max_steps,
        )
    _warn_unless_converged("tikhonov", residual, tolerance, max_steps)
    return x


def total_variation(
    A: Operator,
    y: Tensor,
    weight: float | Tensor,
    *,
    boundary: Boundary = "reflect",
    bounds: tuple[float | None, float | None] | None = None,
    tolerance: float = 1e-3,
    max_steps: int = 5000,
) -> Tensor:
    r"""Minimise :math:`\|A x - y\|^2 + \beta \, \mathrm{TV}(x)`, for many problems at once.

    The total variation is isotropic: the sum over pixels (and channels) of the length of the
    gradient, by forward differences. Solved by the primal-dual method of Chambolle and Pock, with
    the gradient scaled to the norm of ``A``: unscaled, hundreds of steps are far from converged.

    Parameters
    ----------
    A
        Linear forward operator on images ``(y, x)`` or ``(channel, y, x)``.
    y
        Data ``(*batch, *range_shape)``.
    weight
        :math:`\beta > 0`; a tensor broadcasts against the batch, for a sweep over weights.
    boundary
        Of the differences, as for `Gradient`: the default counts no edge of the image; ``"zero"``
        counts the steps to zero beyond the last row and column, as ODL's default does.
    bounds
        Smallest and largest intensity allowed, of which one may be None; default no bounds.
    tolerance
        Stop once the residuals of the optimality conditions, primal and dual, are so small
        relative to what they are made of.
    max_steps
        Steps at most, each with a product with ``A`` and its adjoint.

    Returns
    -------
    Tensor
        ``(*batch, *domain_shape)``, where ``batch`` is that of ``y`` broadcast with ``weight``.

    Raises
    ------
    OptionError
        If the operator is not linear, a weight, the tolerance or the number of steps is not
        positive, or bounds are empty.
    ShapeError
        If shapes do not fit.

    Warns
    -----
    RuntimeWarning
        If ``max_steps`` did not suffice for some problem.

    References
    ----------
    Rudin, Osher and Fatemi (1992), Nonlinear total variation based noise removal algorithms;
    Chambolle and Pock (2011), A first-order primal-dual algorithm, algorithm 1; Goldstein, Li and
    Yuan (2015), Adaptive primal-dual splitting methods, on the residuals.

    Examples
    --------
    >>> from bayesgen.operators import Identity
    >>> steps = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> total_variation(Identity((1, 4)), steps, weight=0.4).round(decimals=3)
    tensor([[0.1000, 0.1000, 0.9000, 0.9000]])
    """
    y, weight = _checked(A, y, weight)
    max_steps, tolerance = as_count("max_steps", max_steps), as_positive("tolerance", tolerance)
    limits = None if bounds is None else _as_limits(bounds)
    D = Gradient(A.domain_shape, boundary)
    with torch.no_grad():
        x, residual = _primal_dual(A, D, y, weight, limits, tolerance, max_steps)
    _warn_unless_converged("total_variation", residual, tolerance, max_steps)
    return x


class _State(NamedTuple):
    """Image, the dual variables of data and gradient, and what their adjoints make of them."""

    x: Tensor
    p: Tensor
    q: Tensor
    back: Tensor


def _primal_dual(
    A: Operator,
    D: Gradient,
    y: Tensor,
    weight: Tensor,
    bounds: tuple[float, float] | None,
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, Tensor]:
    batch = y.shape[: y.ndim - len(A.range_shape)]
    norm = A.norm() or 1.0
    scale = norm / (D.norm() or 1.0)
    radius = _per_problem(weight / scale, D.range_shape)
    x = y.new_zeros(batch + A.domain_shape)
    state = _State(x, torch.zeros_like(y), y.new_zeros(batch + D.range_shape), x)
    # Steps of image and dual variables, for each problem: |(A, scale D)|^2 <= 2 |A|^2 bounds their
    # product, their ratio is free and decides the speed.
    ratio, change = y.new_full(batch, 1 / norm), 0.5
    residual = y.new_full(batch, float("inf"))
    for k in range(max_steps):
        tau = _per_problem(ratio / (2**0.5 * norm), A.domain_shape)
        sigma = 1 / (ratio * 2**0.5 * norm)
        x = state.x - tau * state.back
        if bounds is not None:
            x = x.clamp(*bounds)
        ahead = 2 * x - state.x
        # Proximal maps of the conjugates of |. - y|^2 and of the weighted sum of lengths.
        sigma_p, sigma_q = _per_problem(sigma, A.range_shape), _per_problem(sigma, D.range_shape)
        p = (state.p + sigma_p * (A(ahead) - y)) / (1 + sigma_p / 2)
        q = state.q + sigma_q * scale * D(ahead)
        q = q / torch.clamp(q.norm(dim=-len(D.range_shape), keepdim=True) / radius, min=1.0)
        last, state = state, _State(x, p, q, A.adjoint(p) + scale * D.adjoint(q))
        if k % 20 == 19 or k + 1 == max_steps:
            primal = (last.x - x) / tau - (last.back - state.back)
            dual = (last.p - p) / sigma_p - A(last.x - x)
            turned = (last.q - q) / sigma_q - scale * D(last.x - x)
            # In the optimum the parts of ``back`` cancel: measure against one of them.
            primal_part = _length(primal, A.domain_shape) / _size(A.adjoint(p), A.domain_shape)
            dual_part = torch.hypot(_length(dual, A.range_shape), _length(turned, D.range_shape))
            dual_part = dual_part / _size(y, A.range_shape)
            residual = torch.maximum(primal_part, dual_part)
            if bool((residual <= tolerance).all()):
                break
            # Give the larger residual the longer step, by ever smaller changes.
            factor = torch.where(primal_part > 2 * dual_part, 1 / (1 - change), 1.0)
            factor = torch.where(dual_part > 2 * primal_part, 1 - change, factor)
            ratio, change = ratio * factor, 0.95 * change
    return state.x, residual


def _per_problem(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One number for each problem, to broadcast against tensors of an event shape."""
    return values.reshape(values.shape + (1,) * len(shape))


def _size(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return _length(x, shape).clamp(min=torch.finfo(x.dtype).tiny)


def _length(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.flatten(-len(shape)).norm(dim=-1)


def _checked(A: Operator, y: Tensor, weight: Any) -> tuple[Tensor, Tensor]:
    """Data and weights, broadcast to the same batch."""
    if not isinstance(A, Operator):
        raise DtypeError(f"A: expected an Operator, got {type(A).__name__}")
    A._require_linear("reconstruction")
    A._check("y", y, A.range_shape)
    require_finite("y", y)
    try:
        given = torch.as_tensor(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"weight: expected a number or a tensor, got {weight!r}") from error
    if given.is_complex() or given.dtype == torch.bool:
        raise DtypeError(f"weight: expected real numbers, got {given.dtype}")
    weight = given.detach().to(y)
    if not bool((torch.isfinite(weight) & (weight > 0)).all()):
        raise OptionError("weight: expected positive numbers")
    batch = y.shape[: y.ndim - len(A.range_shape)]
    try:
        batch = torch.broadcast_shapes(batch, weight.shape)
    except RuntimeError as error:
        raise ShapeError(
            f"weight: shape {tuple(weight.shape)} does not broadcast against the batch "
            f"{tuple(batch)} of y"
        ) from error
    return y.detach().expand(batch + A.range_shape), weight.expand(batch)


def _as_limits(bounds: Any) -> tuple[float, float]:
    try:
        low, high = bounds
        limits = (
            -math.inf if low is None else float(low),
            math.inf if high is None else float(high),
        )
    except (TypeError, ValueError) as error:
        raise OptionError(f"bounds: expected (smallest, largest), got {bounds!r}") from error
    if not limits[0] < limits[1]:
        raise OptionError(f"bounds: expected (smallest, largest), got {bounds!r}")
    return limits


def _check_penalty(A: Operator, penalty: Operator) -> None:
    if not isinstance(penalty, Operator):
        raise DtypeError(f"penalty: expected an Operator, got {type(penalty).__name__}")
    penalty._require_linear("penalty")
    if penalty.domain_shape != A.domain_shape:
        raise ShapeError(
            f"penalty: takes {penalty.domain_shape}, but images have shape {A.domain_shape}"
        )


def _warn_unless_converged(name: str, residual: Tensor, tolerance: float, max_steps: int) -> None:
    failed = ~(residual <= tolerance)
    if bool(failed.any()):
        warnings.warn(
            f"{name}: {int(failed.sum())} of {failed.numel()} problems did not converge in "
            f"{max_steps} steps; worst relative residual {float(residual.max()):.1e}, wanted "
            f"{tolerance:.1e}",
            RuntimeWarning,
            stacklevel=3,
        )
