"""Numerical methods that know nothing of operators, models or probability."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def iteration_tolerance(dtype: torch.dtype) -> float:
    """Relative residual at which to stop: fifty roundings of the dtype, but at least 1e-8.

    Examples
    --------
    >>> iteration_tolerance(torch.float64)
    1e-08
    """
    return max(1e-8, 50 * torch.finfo(dtype).eps)


def largest_singular_value(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float | None = None,
    max_steps: int = 300,
) -> float:
    r"""Largest singular value of a linear map by Golub-Kahan bidiagonalisation.

    From the same products with :math:`A` and :math:`A^*` as a power iteration it takes the best
    estimate over the whole Krylov space, and so needs some ten times fewer of them when the
    leading singular values lie close together, as they do for blurs and random matrices.

    Parameters
    ----------
    forward, adjoint
        The map and its adjoint, on tensors of any (fixed) shape.
    start
        A random point of the domain. Its shape, dtype and device are those of the computation.
    tolerance
        Stop once ``||A* u - s v|| <= tolerance * s`` for the estimate ``s`` with its singular
        vectors ``u``, ``v``. The estimate is then within that relative distance of a singular
        value, and in practice much closer, for the error falls with the square of the residual.
        Default: fifty roundings of the dtype, but at least 1e-8.
    max_steps
        Products with each of ``forward`` and ``adjoint`` at most. All the vectors are kept, for
        without orthogonalisation against them rounding brings copies of values already found.

    Returns
    -------
    float
        An estimate from below; 0 for the zero map.

    Warns
    -----
    RuntimeWarning
        If ``max_steps`` did not suffice; the message holds the accuracy that was reached.

    References
    ----------
    Golub and Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    >>> start = torch.ones(3, dtype=torch.float64)
    >>> round(largest_singular_value(matrix.mv, matrix.T.mv, start), 10)
    3.0
    """
    if tolerance is None:
        tolerance = iteration_tolerance(start.dtype)
    range_shape = forward(start).shape
    # One step more than the smaller space has dimensions exhausts it.
    enough = min(start.numel(), range_shape.numel()) + 1
    max_steps = min(max_steps, enough)
    right = start.new_empty(max_steps + 1, start.numel())
    left = start.new_empty(max_steps, range_shape.numel())
    bidiagonal = torch.zeros(max_steps, max_steps + 1, dtype=torch.float64)
    value, residual = 0.0, 0.0
    right[0] = start.flatten() / start.norm()
    for k in range(max_steps):
        image = forward(right[k].reshape(start.shape)).flatten()
        left[k], bidiagonal[k, k] = _orthonormalise(image, left[:k])
        back = adjoint(left[k].reshape(range_shape)).flatten()
        right[k + 1], bidiagonal[k, k + 1] = _orthonormalise(back, right[: k + 1])
        # The small decomposition is cheap, but not free: leave it out of most steps.
        if k < 10 or k % 5 == 0 or k + 1 == max_steps:
            vectors, values, _ = torch.linalg.svd(bidiagonal[: k + 1, : k + 1])
            value = float(values[0])
            residual = float(bidiagonal[k, k + 1] * vectors[-1, 0].abs())
            if residual <= tolerance * value:
                return value
    if max_steps < enough:
        warnings.warn(
            f"largest singular value: relative residual {residual / value:.1e} after {max_steps} "
            f"steps, wanted {tolerance:.1e}",
            RuntimeWarning,
            stacklevel=2,
        )
    return value


def _orthonormalise(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Direction and length of what is left of ``vector`` after projection (twice is enough)."""
    rest = vector
    for _ in range(2):
        rest = rest - (basis @ rest) @ basis
    length = rest.norm()
    # What is left of a vector in the span of the basis is rounding: call it zero.
    if length <= 10 * torch.finfo(vector.dtype).eps * vector.norm():
        return torch.zeros_like(rest), torch.zeros_like(length)
    return rest / length, length


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    event_dims: int,
    start: Tensor | None = None,
    tolerance: float | None = None,
    max_steps: int = 1000,
) -> tuple[Tensor, Tensor]:
    r"""Solve :math:`M x = b` for a symmetric positive definite map, many right-hand sides at once.

    Parameters
    ----------
    operator
        The map, on tensors like ``b``; it treats leading dimensions as a batch.
    b
        ``(*batch, *event)``, with ``event_dims`` dimensions in the event.
    event_dims
        How many of the last dimensions one system has.
    start
        First guess, like ``b``; default zero.
    tolerance
        Stop a system once ``||b - M x|| <= tolerance * ||b||``. Default: fifty roundings of the
        dtype, but at least 1e-8.
    max_steps
        Products at most.

    Returns
    -------
    x, residual
        Solutions like ``b``, and the relative residuals ``(*batch,)`` reached. A system that has
        converged is left as it is while others go on, so that none depends on its neighbours.

    References
    ----------
    Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems.

    Examples
    --------
    >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> b = torch.tensor([5.0, 10.0])
    >>> x, residual = conjugate_gradient(lambda v: v @ matrix, b, event_dims=1)
    >>> torch.allclose(x, torch.tensor([1.0, 3.0]))
    True
    """
    if tolerance is None:
        tolerance = iteration_tolerance(b.dtype)
    dims = tuple(range(-event_dims, 0))

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dims, keepdim=True)

    if b.numel() == 0:
        return torch.zeros_like(b), b.new_zeros(b.shape[: b.ndim - event_dims])
    # In units of the largest entry, lest squares of very large or small numbers leave the range.
    unit = b.abs().amax(dims, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    b, start = b / unit, None if start is None else start / unit
    x = torch.zeros_like(b) if start is None else start.clone()
    rest = b - operator(x) if start is not None else b.clone()
    direction, square = rest, inner(rest, rest)
    target = tolerance**2 * inner(b, b)
    for _ in range(max_steps):
        active = square > target
        if not bool(active.any()):
            break
        image = operator(direction)
        step = torch.where(active, square / inner(direction, image), 0.0)
        x = x + step * direction
        rest = rest - step * image
        last, square = square, torch.where(active, inner(rest, rest), square)
        direction = rest + torch.where(active, square / last, 0.0) * direction
    size = inner(b, b)
    residual = torch.where(size > 0, square / size, square).sqrt()
    return unit * x, residual.flatten(-event_dims).squeeze(-1)


def gradient_error(
    function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, *, step: float | None = None
) -> float:
    """Relative error of the gradient of a scalar function against a central difference.

    Parameters
    ----------
    function
        Differentiable, from tensors like ``x`` to a tensor of shape ``()``.
    x, direction
        Where and along what to differentiate; same shape.
    step
        Step relative to the size of ``x``; default: cube root of the dtype's precision, at which
        truncation and rounding errors of the difference quotient balance.

    Returns
    -------
    float
        ``|difference - derivative| / (||gradient|| ||direction||)``: 1e-8 or so for a right
        gradient in double precision, 1e-3 in single precision.

    Examples
    --------
    >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> gradient_error(lambda x: (x**3).sum(), x, torch.ones_like(x)) < 1e-8
    True
    """
    if step is None:
        step = torch.finfo(x.dtype).eps ** (1 / 3)
    h = step * max(float(x.norm()), 1.0) / float(direction.norm())
    point = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    with torch.no_grad():
        difference = (function(x + h * direction) - function(x - h * direction)) / (2 * h)
        derivative = (gradient * direction).sum()
        scale = gradient.norm() * direction.norm()
        scale = scale.clamp(min=torch.finfo(x.dtype).tiny)
        return float((difference - derivative).abs() / scale)
