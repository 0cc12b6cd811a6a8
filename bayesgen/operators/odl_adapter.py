"""Operators from and for ODL, the Operator Discretization Library."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen.errors import DtypeError, MissingPackageError, OptionError, ShapeError
from bayesgen.operators.base import Operator
from bayesgen.operators.external import Array, External


def from_odl(operator: Any) -> Operator:
    """An operator from a linear ``odl.Operator``.

    ODL weights its inner products, by the cell volume for discretised functions, and its adjoint is
    the one for those. Ours is Euclidean: the weights are divided out, so that ``A.adjoint`` is the
    transpose and gradients are right.

    Each image of a batch is computed in turn, in NumPy. Where that is too slow, `Radon`, `Gradient`
    and the others here do a whole batch at once. ASTRA computes in single precision only: give a
    RayTransform a space of ``dtype="float32"``.

    Parameters
    ----------
    operator
        Linear, between real spaces. A power space such as the range of ``odl.Gradient`` gives its
        power as the first axis; other product spaces are flattened, part after part.

    Raises
    ------
    DtypeError
        If it is no ODL operator, or a space is complex.
    OptionError
        If it is not linear, or a space's inner product is not weighted entry by entry.

    Examples
    --------
    >>> odl = import_odl()  # doctest: +SKIP
    >>> A = from_odl(odl.Gradient(odl.uniform_discr([-1, -1], [1, 1], (8, 8))))  # doctest: +SKIP
    """
    odl = import_odl()
    if not isinstance(operator, odl.Operator):
        raise DtypeError(f"operator: expected an odl.Operator, got {type(operator).__name__}")
    if not operator.is_linear:
        raise OptionError(
            f"operator: {type(operator).__name__} is not linear; wrap a torch function in Nonlinear"
        )
    for space in (operator.domain, operator.range):
        if not hasattr(space, "weighting"):
            raise OptionError(
                f"operator: expected spaces of arrays, but {type(operator).__name__} has {space!r}"
            )
    try:
        adjoint = operator.adjoint
    except NotImplementedError as error:
        raise OptionError(f"operator: {type(operator).__name__} has no adjoint") from error
    weights = _weights(odl, operator.domain), _weights(odl, operator.range)
    shapes = _shape(odl, operator.domain), _shape(odl, operator.range)
    single = all(_dtype(odl, space) == np.float32 for space in (operator.domain, operator.range))
    return External(
        f"from_odl({type(operator).__name__})",
        *shapes,
        partial(_apply_to_each, operator, 1.0, 1.0),
        partial(_apply_to_each, adjoint, 1 / weights[1], weights[0]),
        torch.float32 if single else torch.float64,
    )


def _apply_to_each(operator: Any, before: Any, after: Any, batch: Array) -> Array:
    """Apply an ODL operator to flat vectors, multiplied by weights before and after."""
    odl = import_odl()
    results = [_flat(odl, operator(_element(odl, operator.domain, x))) for x in batch * before]
    return np.stack(results) * after


def to_odl(operator: Operator, domain: Any = None, range: Any = None) -> Any:
    """A linear operator as an ``odl.Operator``, for ODL's functionals and solvers.

    Parameters
    ----------
    operator
        Any linear operator.
    domain
        An ODL space of the shape of the image. Default: for two-dimensional images
        ``odl.uniform_discr`` with cells of side one about the origin, so that the inner product is
        Euclidean; otherwise ``odl.rn``.
    range
        An ODL space of the shape of the data. Default: ``odl.rn``.

    Raises
    ------
    DtypeError
        If it is no operator.
    OptionError
        If it is not linear.
    ShapeError
        If a space has another shape.
    """
    odl = import_odl()
    if not isinstance(operator, Operator):
        raise DtypeError(f"operator: expected an Operator, got {type(operator).__name__}")
    operator._require_linear("to_odl")
    like = operator._example()
    dtype = str(like.numpy(force=True).dtype)
    if domain is None:
        domain = _default_domain(odl, operator.domain_shape, dtype)
    if range is None:
        range = odl.rn(operator.range_shape, dtype=dtype)
    for name, space, shape in (
        ("domain", domain, operator.domain_shape),
        ("range", range, operator.range_shape),
    ):
        if _shape(odl, space) != shape:
            raise ShapeError(f"{name}: expected shape {shape}, got {_shape(odl, space)}")
    return _odl_operator(odl, operator, like, domain, range)


def _odl_operator(odl: Any, operator: Operator, like: Tensor, domain: Any, data: Any) -> Any:
    weights = _weights(odl, domain), _weights(odl, data)

    def compute(function: Any, shape: tuple[int, ...], array: Array) -> Array:
        with torch.no_grad():
            result: Tensor = function(torch.as_tensor(array.reshape(shape)).to(like))
        return np.asarray(result.flatten().cpu().numpy())

    class Wrapped(odl.Operator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(domain, data, linear=True)

        def _call(self, x: Any) -> Any:
            y = compute(operator, operator.domain_shape, _flat(odl, x))
            return _element(odl, data, y)

        @property
        def adjoint(self) -> Any:
            return WrappedAdjoint()

        def __repr__(self) -> str:
            return f"to_odl({operator})"

    class WrappedAdjoint(odl.Operator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(data, domain, linear=True)

        def _call(self, y: Any) -> Any:
            weighted = _flat(odl, y) * weights[1]
            x = compute(operator.adjoint, operator.range_shape, weighted) / weights[0]
            return _element(odl, domain, x)

        @property
        def adjoint(self) -> Any:
            return Wrapped()

        def __repr__(self) -> str:
            return f"to_odl({operator}).adjoint"

    return Wrapped()


def import_odl() -> Any:
    """The module ``odl``, without what importing it does to NumPy's print options.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    options = np.get_printoptions()
    try:
        import odl
    except ImportError as error:
        raise MissingPackageError(
            f"this needs ODL, which could not be imported ({error}): pip install 'bayesgen[odl]'"
        ) from error
    finally:
        np.set_printoptions(**options)
    return odl


def _default_domain(odl: Any, shape: tuple[int, ...], dtype: str) -> Any:
    if len(shape) != 2:
        return odl.rn(shape, dtype=dtype)
    corner = np.array(shape) / 2
    return odl.uniform_discr(-corner, corner, shape, dtype=dtype)


def _parts(odl: Any, space: Any) -> list[Any] | None:
    """Of a product space; None for others."""
    return list(space) if isinstance(space, odl.ProductSpace) else None


def _shape(odl: Any, space: Any) -> tuple[int, ...]:
    parts = _parts(odl, space)
    if parts is None:
        return tuple(space.shape)
    shapes = [_shape(odl, part) for part in parts]
    if len(set(shapes)) == 1:
        return (len(parts), *shapes[0])
    return (sum(math.prod(shape) for shape in shapes),)


def _dtype(odl: Any, space: Any) -> np.dtype[Any]:
    parts = _parts(odl, space)
    if parts is not None:
        return _dtype(odl, parts[0])
    return np.dtype(str(space.dtype).removeprefix("torch."))


def _weights(odl: Any, space: Any) -> Array:
    """Of each entry of the flat vector in the space's inner product."""
    parts = _parts(odl, space)
    weighting = space.weighting
    if parts is not None:
        outer = np.broadcast_to(_entrywise(weighting, space), len(parts))
        pairs = zip(outer, parts, strict=True)
        return np.concatenate([w * _weights(odl, part) for w, part in pairs])
    if np.issubdtype(_dtype(odl, space), np.complexfloating):
        raise DtypeError(f"operator: expected real spaces, got {space!r}")
    weights = np.asarray(_entrywise(weighting, space), dtype=np.float64)
    return np.broadcast_to(weights, space.shape).flatten()


def _entrywise(weighting: Any, space: Any) -> Any:
    if hasattr(weighting, "const"):
        return weighting.const
    if hasattr(weighting, "array") and np.shape(weighting.array) == space.shape:
        return weighting.array
    raise OptionError(f"operator: the inner product of {space!r} is not weighted entry by entry")


def _element(odl: Any, space: Any, flat: Array) -> Any:
    parts = _parts(odl, space)
    if parts is None:
        return space.element(flat.reshape(space.shape).astype(_dtype(odl, space)))
    ends = np.cumsum([math.prod(_shape(odl, part)) for part in parts])
    pieces = zip(parts, np.split(flat, ends[:-1]), strict=True)
    return space.element([_element(odl, part, piece) for part, piece in pieces])


def _flat(odl: Any, element: Any) -> Array:
    parts = _parts(odl, element.space)
    if parts is None:
        array = element.asarray()
        return np.asarray(array.numpy(force=True) if isinstance(array, Tensor) else array).flatten()
    return np.concatenate([_flat(odl, part) for part in element])
