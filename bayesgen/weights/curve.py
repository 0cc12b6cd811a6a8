"""The L-curve: where less misfit begins to cost much more penalty."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, ResultError
from bayesgen.operators import Operator
from bayesgen.weights.choice import Choice, as_data, as_image, as_weights, check_problem, misfit

# Between neighbours on the curve, in logarithms: closer ones differ by rounding or by the tolerance
# of a solver, and the direction from one to the other means nothing.
_APART = 1e-3


def l_curve(
    estimate: Callable[[Tensor, float], tuple[Tensor, Any]], A: Operator, y: Tensor, weights: Any
) -> Choice:
    r"""Choose the weight at the corner of :math:`(\log \|A x_w - y\|, \log R(x_w))`.

    The corner is the point of largest curvature, that of the circle through it and its two
    neighbours. A circle follows three estimates alone, so that one poor optimum spoils three values
    and not all, as it would through a spline; and it is the same for any spacing of the weights.

    Parameters
    ----------
    estimate
        ``(y, weight) -> (image, penalty)``, with the penalty R without its weight, such as
        ``z.square().sum()`` for `bayesgen.regularisers.hard`: an image alone does not tell z.
    A
        The forward operator, linear or not.
    y
        One data set, ``range_shape``.
    weights
        At least five, increasing, best at equal ratios of up to 10: a corner between two of them is
        seen by its neighbours.

    Returns
    -------
    Choice
        Its values are curvatures, positive where the curve bends as an L does; NaN at the ends.

    Raises
    ------
    OptionError
        If there are fewer than five weights, or they are not positive and increasing.
    ShapeError, DtypeError, DataError
        If the data or what the estimator returns cannot be used; misfit and penalty must be
        positive.
    ResultError
        If there is no corner. Well-conditioned problems have none: their misfit and penalty change
        together.

    Warns
    -----
    RuntimeWarning
        If the corner is at an end of the weights.

    Notes
    -----
    It needs no noise level, and pays for that: as the noise vanishes it does not converge to the
    truth (Vogel 1996).

    References
    ----------
    Hansen and O'Leary (1993), The use of the L-curve in the regularization of discrete ill-posed
    problems; Vogel (1996), Non-convergence of the L-curve regularization parameter selection
    method.

    Examples
    --------
    >>> import bayesgen as bg
    >>> A = bg.operators.Matrix(torch.diag(torch.tensor([1.0, 0.1, 0.01, 0.001])))
    >>> y = torch.tensor([1.0, 0.1, 0.011, -0.008])
    >>> def ridge(y, weight):
    ...     x = bg.reconstruction.tikhonov(A, y, weight)
    ...     return x, x.square().sum()
    >>> l_curve(ridge, A, y, [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]).weight
    0.0001
    """
    check_problem(estimate, A)
    y, grid = as_data(A, y), as_weights(weights, minimum=5)
    images, points = [], []
    for weight in grid:
        image, penalty = _estimated(estimate, A, y, weight)
        images.append(image)
        # Of the norm, not its square, as in the literature: the corner depends on it.
        fit = math.sqrt(_positive("misfit", misfit(A, image, y), weight))
        points.append((math.log(fit), math.log(penalty)))
    values = _curvatures(points)
    best = max(range(1, len(grid) - 1), key=lambda k: values[k])
    _check_corner(grid, values, best)
    return Choice(
        weight=grid[best],
        image=images[best],
        weights=torch.tensor(grid, dtype=torch.float64),
        values=torch.tensor(values, dtype=torch.float64),
        criterion="curvature of the L-curve",
    )


def _estimated(
    estimate: Callable[[Tensor, float], Any], A: Operator, y: Tensor, weight: float
) -> tuple[Tensor, float]:
    found = estimate(y, weight)
    if not isinstance(found, tuple) or len(found) != 2:
        raise DtypeError(
            f"estimate: at weight {weight:.6g} it returned {type(found).__name__}; expected "
            "(image, penalty)"
        )
    image = as_image(found[0], A, y, weight)
    try:
        penalty = float(found[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(
            f"estimate: at weight {weight:.6g} the penalty is {type(found[1]).__name__}; expected "
            "a number"
        ) from error
    return image, _positive("penalty", penalty, weight)


def _positive(name: str, value: float, weight: float) -> float:
    if not 0 < value < math.inf:
        raise DataError(
            f"estimate: at weight {weight:.6g} the {name} is {value}; its logarithm needs a "
            "positive number"
        )
    return value


def _curvatures(points: list[tuple[float, float]]) -> list[float]:
    """Signed inverse radii of the circles through each point and its neighbours."""
    # Along a prior's scale the curve runs backwards, and bends the other way.
    direction = 1.0 if points[-1][0] >= points[0][0] else -1.0
    inner = [
        direction * _menger(*triple) for triple in zip(points, points[1:], points[2:], strict=False)
    ]
    return [math.nan, *inner, math.nan]


def _menger(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
    """Four times the triangle's area over the product of its sides; positive for a left turn."""
    sides = math.dist(p, q), math.dist(q, r), math.dist(p, r)
    if min(sides) < _APART:
        return 0.0
    cross = (q[0] - p[0]) * (r[1] - q[1]) - (q[1] - p[1]) * (r[0] - q[0])
    return 2 * cross / math.prod(sides)


def _check_corner(grid: list[float], values: list[float], best: int) -> None:
    if values[best] <= 0:
        raise ResultError(
            f"l_curve: the curve has no corner between weights {grid[0]:.3g} and {grid[-1]:.3g}; "
            "nowhere does it bend as an L does. Widen the weights, or choose in another way"
        )
    if best in (1, len(grid) - 2):
        warnings.warn(
            f"l_curve: the corner is at weight {grid[best]:.3g}, at an end of weights; widen them",
            RuntimeWarning,
            stacklevel=3,
        )
