"""Is an operator right? The same checks for users' operators and for our own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen._batching import native_batching
from bayesgen.errors import BayesgenError, DtypeError
from bayesgen.numerics import gradient_error, largest_singular_value
from bayesgen.operators.base import Operator

# Rounding errors relative to norms; the iterated norm and difference quotients are less accurate.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
_NORM_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_DIFFERENCE_TOLERANCE = {torch.float32: 2e-2, torch.float64: 1e-6}


@dataclass(frozen=True)
class Check:
    """Outcome of one check.

    Attributes
    ----------
    name
        What was checked.
    error
        Relative error found; infinite if the check could not be carried out.
    tolerance
        Largest error that passes.
    note
        What went wrong, or what else was measured.
    """

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; not if it is NaN."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        relation = "<=" if self.passed else "not <="
        note = f"  ({self.note})" if self.note else ""
        return f"{verdict:8}{self.name:12}{self.error:.1e} {relation} {self.tolerance:.0e}{note}"


@dataclass(frozen=True)
class OperatorReport:
    """What `check_operator` found; printing it gives one line for each check.

    Attributes
    ----------
    operator
        What was checked, with its shapes, dtype and device.
    checks
        Their outcomes.
    adjoint_scale
        The factor ``s`` for which ``<A x, y>`` comes closest to ``s <x, A* y>``: 1 for a right
        adjoint. Another value with a small error left is the sign of weighted inner products.
        None if it could not be had.
    """

    operator: str
    checks: tuple[Check, ...]
    adjoint_scale: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        return "\n".join([self.operator, *(f"  {check}" for check in self.checks)])

    def raise_if_failed(self) -> None:
        """Raise `BayesgenError` with the report if a check failed."""
        if not self.passed:
            raise BayesgenError(str(self))


def check_operator(
    operator: Operator, *, dtype: torch.dtype | None = None, seed: int = 0
) -> OperatorReport:
    r"""Check that an operator is what inference takes it to be.

    - shapes, dtype and device of ``A(x)`` and ``A.adjoint(y)``; inputs are left as they are;
    - an image does not depend on the others in its batch, for batches of any shape (none, one,
      many, empty, non-contiguous);
    - ``A(2 x - 3 x')`` is ``2 A(x) - 3 A(x')``;
    - :math:`\langle A x, y\rangle = \langle x, A^* y\rangle`, relative to the product of norms;
    - ``A.norm()`` agrees with an iteration on :math:`A^* A`;
    - the gradient agrees with the adjoint, and with central differences;
    - under ``torch.func.vmap``, as in inference, values and gradients stay the same.

    Of an operator that is not linear, only what makes sense is checked.

    Parameters
    ----------
    operator
        The operator; it is left as it is.
    dtype
        Check a copy converted to this dtype. Default: the operator's own, or double precision if
        it has none.
    seed
        Seed of the images and data tried.

    Returns
    -------
    OperatorReport
        True in ``passed`` only if all is well. A check that raises has failed.

    References
    ----------
    Claerbout (1992), Earth Soundings Analysis, on the dot-product test.

    Examples
    --------
    >>> from bayesgen.operators import GaussianMatrix
    >>> report = check_operator(GaussianMatrix((8, 8), rows=20))
    >>> report.passed, round(report.adjoint_scale, 6)
    (True, 1.0)
    """
    if not isinstance(operator, Operator):
        raise DtypeError(
            f"operator: expected an Operator, got {type(operator).__name__}; of a Convolution, "
            "check what given(x) returns"
        )
    if dtype is not None:
        operator = copy.deepcopy(operator).to(dtype)
    dtype = dtype or operator._example().dtype
    rng = torch.Generator().manual_seed(seed)
    x = _probes(operator.domain_shape, rng).to(operator._device(), dtype)
    y = _probes(operator.range_shape, rng).to(operator._device(), dtype)
    checks = [_attempt(check, operator, x, y) for check in _CHECKS]
    if operator.linear:
        checks += [_attempt(check, operator, x, y) for check in _LINEAR_CHECKS]
    title = f"{operator}: {operator.extra_repr()}, {dtype} on {x.device}"
    try:
        scale = _adjoint_scale(operator, x, y)
    except Exception:
        scale = None
    return OperatorReport(title, tuple(checks), scale)


_Map = Callable[[Tensor], Tensor]
_Outcome = tuple[float, float, str]


def _attempt(
    check: Callable[[Operator, Tensor, Tensor], _Outcome], A: Operator, x: Tensor, y: Tensor
) -> Check:
    """Run one check, which returns error, tolerance and note, or raises."""
    name = check.__name__.strip("_").replace("_", " ")
    try:
        return Check(name, *check(A, x, y))
    except Exception as problem:
        return Check(name, math.inf, _TOLERANCE[x.dtype], f"{type(problem).__name__}: {problem}")


def _maps(A: Operator, x: Tensor, y: Tensor) -> Iterator[tuple[str, _Map, Tensor, Tensor]]:
    """Name, function, input and something like the output, of the operator and its adjoint."""
    yield "A(x)", A, x, y
    if A.linear:
        yield "A.adjoint(y)", A.adjoint, y, x


def _shapes(A: Operator, x: Tensor, y: Tensor) -> _Outcome:
    for name, function, value, like in _maps(A, x, y):
        before = value.clone()
        result = function(value)
        _expect(f"shape of {name}", tuple(result.shape), tuple(like.shape))
        _expect(f"dtype of {name}", result.dtype, value.dtype)
        _expect(f"device of {name}", result.device, value.device)
        if not torch.equal(value, before):
            raise ValueError(f"{name} changed its input")
    return 0.0, 0.0, ""


def _batches(A: Operator, x: Tensor, y: Tensor) -> _Outcome:
    errors = []
    for name, function, value, like in _maps(A, x, y):
        together = function(value)
        _expect(
            f"shape of {name} for an empty batch", function(value[:0]).shape, (0, *like.shape[1:])
        )
        # One batch whose images are apart in memory, and one whose images are transposed in it.
        apart = value.repeat_interleave(2, 0)[::2]
        transposed = value.transpose(0, -1).contiguous().transpose(0, -1)
        # And one that starts at an odd place in memory, as parts of longer vectors do.
        inside = torch.cat([value.flatten()[:1], value.flatten()])[1:].reshape(value.shape)
        errors += [
            _distance(torch.stack([function(one) for one in value]), together),
            _distance(function(value[:1]), together[:1]),
            _distance(function(torch.stack([value[:3], value[3:]])).flatten(0, 1), together),
            _distance(function(apart), together),
            _distance(function(transposed), together),
            _distance(function(inside), together),
        ]
        empty = value[:0].detach().requires_grad_()
        _expect(f"gradient of {name} for an empty batch", function(empty).requires_grad, True)
    return max(errors), _TOLERANCE[x.dtype], ""


def _vmap(A: Operator, x: Tensor, y: Tensor) -> _Outcome:
    errors = []
    for _, function, value, _ in _maps(A, x, y):
        result, gradient = _value_and_gradient(function, value)
        with native_batching(1):
            mapped = _value_and_gradient(torch.func.vmap(function), value)
        errors += [_distance(mapped[0], result), _distance(mapped[1], gradient)]
    return max(errors), _TOLERANCE[x.dtype], ""


def _differences(A: Operator, x: Tensor, y: Tensor) -> _Outcome:
    error = gradient_error(lambda x: (A(x) * y).sum(), x, x.flip(0))
    return error, _DIFFERENCE_TOLERANCE[x.dtype], ""


def _linearity(A: Operator, x: Tensor, y: Tensor) -> _Outcome:
    other = x.flip(0)
    combined = A(2 * x - 3 * other)
    scale = _gain(A, x) * (2 * _norms(x) + 3 * _norms(other))
    return _ratio(_norms(combined - 2 * A(x) + 3 * A(other)), scale), _TOLERANCE[x.dtype], ""


def _adjoint(A: Operator, x: Tensor, y: Tensor) -> _Outcome:
    scale = _gain(A, x) * _norms(x) * _norms(y)
    there, back = _inner(A(x), y), _inner(x, A.adjoint(y))
    if not back.any():
        return _ratio(there.abs(), scale), _TOLERANCE[x.dtype], "<x, A* y> is zero"
    factor = _adjoint_scale(A, x, y)
    rest = _ratio((there - factor * back).abs(), scale)
    note = f"<A x, y> = {factor:.6g} <x, A* y> fits best, to {rest:.1e}"
    return _ratio((there - back).abs(), scale), _TOLERANCE[x.dtype], note


def _gradient(A: Operator, x: Tensor, y: Tensor) -> _Outcome:
    """Back-propagation through ``A`` is ``A*``, and through ``A*`` is ``A``."""
    gain = _gain(A, x)
    through, back = _pullback(A, x, y), _pullback(A.adjoint, y, x)
    errors = (
        _ratio(_norms(through - A.adjoint(y)), gain * _norms(y)),
        _ratio(_norms(back - A(x)), gain * _norms(x)),
    )
    return max(errors), _TOLERANCE[x.dtype], ""


def _norm(A: Operator, x: Tensor, y: Tensor) -> _Outcome:
    with torch.no_grad():
        tolerance = _NORM_TOLERANCE[x.dtype]
        iterated = largest_singular_value(A, A.adjoint, x[-1], tolerance=tolerance)
    claimed = A.norm()
    error = abs(claimed - iterated) / iterated if iterated else claimed
    note = f"A.norm() = {claimed:.6g}, iterated {iterated:.6g}"
    return error, _NORM_TOLERANCE[x.dtype], note


_CHECKS = (_shapes, _batches, _vmap, _differences)
_LINEAR_CHECKS = (_linearity, _adjoint, _gradient, _norm)


def _probes(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Six images: three as bright as images are, three of both signs."""
    bright = torch.rand(3, *shape, generator=rng, dtype=torch.float64)
    signed = torch.randn(3, *shape, generator=rng, dtype=torch.float64)
    return torch.cat([bright, signed])


def _gain(A: Operator, x: Tensor) -> float:
    """Largest amplification of the images tried, an estimate of the norm from below."""
    return _ratio(_norms(A(x)), _norms(x))


def _adjoint_scale(A: Operator, x: Tensor, y: Tensor) -> float:
    there, back = _inner(A(x), y), _inner(x, A.adjoint(y))
    return float(((there @ back) / (back @ back)).detach())


def _value_and_gradient(function: _Map, value: Tensor) -> tuple[Tensor, Tensor]:
    value = value.detach().requires_grad_()
    result = function(value)
    return result.detach(), torch.autograd.grad(result.square().sum(), value)[0]


def _pullback(function: _Map, at: Tensor, cotangent: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    gradient: Tensor = torch.autograd.grad(function(at), at, cotangent)[0]
    return gradient


def _norms(x: Tensor) -> Tensor:
    return x.double().flatten(1).norm(dim=1)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)


def _ratio(error: Tensor, scale: Tensor) -> float:
    """Largest quotient; zero over zero is zero."""
    scale = scale.clamp(min=torch.finfo(torch.float64).tiny)
    return float((error / scale).detach().max())


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ")
    return _ratio((a - b).abs().max().double(), b.abs().max().double())


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{what} is {found}, expected {expected}")
