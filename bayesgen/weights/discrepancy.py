"""The discrepancy principle: fit the data as well as the truth would, and no better."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import OptionError, ResultError
from bayesgen.operators import Operator
from bayesgen.operators.inputs import as_positive
from bayesgen.types import check_count
from bayesgen.weights.choice import Choice, Estimator, as_data, check_problem, image_at, misfit


def morozov(
    estimate: Estimator,
    A: Operator,
    y: Tensor,
    sigma: float,
    *,
    between: tuple[float, float] = (1e-4, 1e4),
    tau: float = 1.0,
    tolerance: float = 0.01,
    max_evaluations: int = 40,
) -> Choice:
    r"""Choose the weight with which the misfit is what the noise makes it.

    .. math:: \|A x_w - y\|^2 = \tau^2 m \sigma^2

    The right side, for :math:`\tau = 1`, is the expectation of the noise's squared norm. Solved for
    :math:`\log w` by inverse quadratic interpolation, with a bisection wherever that is not safe.
    The misfit may grow with the weight (a penalty's) or fall (a prior's scale).

    Parameters
    ----------
    estimate
        ``(y, weight) -> image``, of shape ``domain_shape``.
    A
        The forward operator, linear or not.
    y
        One data set, ``range_shape``. Complex data, as those of `bayesgen.operators.Fourier`, hold
        real and imaginary parts, and both count among the m numbers.
    sigma
        Standard deviation of the noise of each of the m numbers.
    between
        Smallest and largest weight. The default spans what a weight in natural units may be.
    tau
        At least 1 in theory, where it guards against a noise level that is too small.
    tolerance
        Of the misfit, relative to the level. The default is far below the spread of the noise's
        squared norm, which is sqrt(2 / m) of it.
    max_evaluations
        Estimates at most; a handful is usual.

    Returns
    -------
    Choice
        Its values are squared misfits.

    Raises
    ------
    OptionError
        If an option is not positive, ``between`` not an interval, or ``max_evaluations`` below 3.
    ShapeError, DtypeError, DataError
        If the data or an image that the estimator returns cannot be used.
    ResultError
        If the level is not between the misfits at the ends: the message says what is, and why that
        may be.

    Warns
    -----
    RuntimeWarning
        If the level was not met to the tolerance: the misfit jumps across it, as when MAP lands in
        other optima, or evaluations ran out. The choice is then the nearest that was tried.

    References
    ----------
    Morozov (1966), On the solution of functional equations by the method of regularization;
    Chandrupatla (1997), A new hybrid quadratic/bisection algorithm for finding the zero of a
    nonlinear function without using derivatives.

    Examples
    --------
    >>> import bayesgen as bg
    >>> A, y = bg.operators.Identity((4,)), torch.tensor([3.0, -1.0, 1.0, 5.0])
    >>> found = morozov(lambda y, w: bg.reconstruction.tikhonov(A, y, w), A, y, sigma=1.5)
    >>> round(found.weight, 1), found.level  # exact: |y| w / (1 + w) = 3
    (1.0, 9.0)
    """
    check_problem(estimate, A)
    y, sigma = as_data(A, y), as_positive("sigma", sigma)
    low, high = _as_interval(between)
    tau, tolerance = as_positive("tau", tau), as_positive("tolerance", tolerance)
    check_count("max_evaluations", max_evaluations, minimum=3)
    level = tau**2 * y.numel() * sigma**2
    tried: list[_Trial] = []

    def excess(log_weight: float) -> float:
        weight = math.exp(log_weight)
        image = image_at(estimate, A, y, weight)
        tried.append(_Trial(weight, misfit(A, image, y), image))
        # Misfits are powers of the weight over long stretches: their logarithms, almost straight.
        return math.log(max(tried[-1].misfit, 1e-300) / level)

    ends = _Bracket(low, excess(low), high, excess(high))
    if not any(_met(trial, level, tolerance) for trial in tried):
        if ends.f_a * ends.f_b > 0:
            raise ResultError(_unreachable(tried, level, sigma, y))
        # A misfit that is smooth in the weight grows with its square at most, near enough; one
        # that is still off the level so close to it jumps.
        width = max(tolerance / 10, 1e-14)
        _search(
            excess,
            ends,
            lambda bracket: (
                _met(tried[-1], level, tolerance)
                or abs(bracket.b - bracket.a) <= width
                or len(tried) >= max_evaluations
            ),
        )
    return _choice(tried, level, tolerance)


class _Trial(NamedTuple):
    weight: float
    misfit: float
    image: Tensor


class _Bracket(NamedTuple):
    """Two points with values of opposite sign."""

    a: float
    f_a: float
    b: float
    f_b: float


def _search(
    function: Callable[[float], float], bracket: _Bracket, done: Callable[[_Bracket], bool]
) -> None:
    """Narrow the bracket around a zero until ``done`` (Chandrupatla 1997)."""
    a, f_a, b, f_b = bracket
    share = 0.5
    while True:
        x = a + share * (b - a)
        f_x = function(x)
        if f_x * f_a > 0:
            c, f_c = a, f_a
        else:
            c, f_c, b, f_b = b, f_b, a, f_a
        a, f_a = x, f_x
        if done(_Bracket(a, f_a, b, f_b)):
            return
        xi, phi = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
        share = 0.5
        # Where the inverse of the quadratic through the three points is single-valued.
        if phi**2 < xi and (1 - phi) ** 2 < 1 - xi:
            share = f_a / (f_b - f_a) * f_c / (f_b - f_c)
            share += (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
        share = min(max(share, 1e-3), 1 - 1e-3)


def _apart(trial: _Trial, level: float) -> float:
    """Distance in logarithms: an image that interpolates the data is no neighbour of any level."""
    return abs(math.log(max(trial.misfit, 1e-300) / level))


def _met(trial: _Trial, level: float, tolerance: float) -> bool:
    return abs(trial.misfit - level) <= tolerance * level


def _choice(tried: list[_Trial], level: float, tolerance: float) -> Choice:
    # The last of equals: at a jump between two optima, the one beside it.
    best = min(reversed(tried), key=lambda trial: _apart(trial, level))
    tried = sorted(tried, key=lambda trial: trial.weight)
    if not _met(best, level, tolerance):
        warnings.warn(
            f"morozov: {len(tried)} estimates did not meet the level {level:.4g} to {tolerance:g}; "
            f"the nearest misfit is {best.misfit:.4g}, at weight {best.weight:.4g}. The misfit may "
            "jump, as when an estimator lands in other optima: give it more restarts or a smaller "
            "tolerance",
            RuntimeWarning,
            stacklevel=3,
        )
    return Choice(
        weight=best.weight,
        image=best.image,
        weights=torch.tensor([trial.weight for trial in tried], dtype=torch.float64),
        values=torch.tensor([trial.misfit for trial in tried], dtype=torch.float64),
        level=level,
        criterion="misfit |A x - y|^2",
    )


def _unreachable(tried: list[_Trial], level: float, sigma: float, y: Tensor) -> str:
    low, high = tried[0].weight, tried[1].weight
    nearest = min(tried, key=lambda trial: _apart(trial, level))
    reached = f"{nearest.misfit:.4g}, at weight {nearest.weight:.4g}"
    if nearest.misfit > level:
        return (
            f"morozov: no weight between {low:.4g} and {high:.4g} fits the data to the level "
            f"{level:.4g}; the least misfit is {reached}. Either the generator's range is too "
            "small for this image (allow a deviation from it, as in bayesgen.regularisers.relaxed "
            f"or sparse), or sigma = {sigma:g} is too small, or an optimiser stops in a poor "
            "optimum (more restarts), or between is too narrow"
        )
    return (
        f"morozov: all weights between {low:.4g} and {high:.4g} fit the data more closely than the "
        f"level {level:.4g}; the largest misfit is {reached}, and |y|^2 is "
        f"{float(y.double().square().sum()):.4g}. Either sigma = {sigma:g} is too large, or "
        "between is too narrow"
    )


def _as_interval(between: Any) -> tuple[float, float]:
    """Logarithms of the ends."""
    try:
        low, high = between
    except (TypeError, ValueError) as error:
        raise OptionError(f"between: expected (smallest, largest), got {between!r}") from error
    low, high = as_positive("between[0]", low), as_positive("between[1]", high)
    if not low < high:
        raise OptionError(f"between: expected (smallest, largest), got {between!r}")
    return math.log(low), math.log(high)
