"""What a forward operator is, and how operators combine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen._batching import native_batch
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.numerics import largest_singular_value
from bayesgen.operators.rows import Rows, as_indices


class Operator(torch.nn.Module):
    r"""A forward map :math:`A` from images to data, with its adjoint :math:`A^*`.

    To write an operator:

    - call ``super().__init__(domain_shape, range_shape)``;
    - register what it is made of (matrices, kernels, index tables) with ``register_buffer``, so
      that ``A.to(dtype_or_device)`` converts it;
    - define `_forward`, in differentiable torch functions, for any number of leading batch
      dimensions, also of size 0; the input has been checked;
    - define `_adjoint` likewise if you know it: the default differentiates `_forward`;
    - define `_norm` if there is a closed form, `_select` if ``A[rows]`` can be had for less than
      computing every row;
    - set the class attribute ``linear = False`` if it is not linear;
    - prove it with `bayesgen.operators.check_operator`.

    Users call ``A(x)`` and ``A.adjoint(y)``. Both take and return real floating-point tensors,
    ``(*batch, *domain_shape)`` and ``(*batch, *range_shape)``; inner products are Euclidean sums
    over entries. ``A.T``, ``A @ B``, ``c * A``, ``A[rows]`` share the memory of ``A`` where they
    can: converting one with ``.to`` converts the parts they have in common.

    Parameters
    ----------
    domain_shape, range_shape
        Shapes of one image and of its data.

    Raises
    ------
    ShapeError
        If a trailing shape does not fit, on construction, composition or use.
    DtypeError
        If an input is not real floating-point, or differs in dtype or device from the operator.

    Examples
    --------
    >>> class Gain(Operator):
    ...     def __init__(self, gain):
    ...         super().__init__(gain.shape, gain.shape)
    ...         self.register_buffer("gain", gain)
    ...
    ...     def _forward(self, x):
    ...         return self.gain * x
    >>> A = Gain(torch.tensor([1.0, 2.0, 4.0]))
    >>> A(torch.ones(5, 3)).shape, A.adjoint(torch.ones(3)), round(A.norm(), 5)
    (torch.Size([5, 3]), tensor([1., 2., 4.]), 4.0)
    >>> A[[2, 0]](torch.ones(3)), (2 * A @ A)(torch.ones(3))
    (tensor([4., 1.]), tensor([ 2.,  8., 32.]))
    """

    linear: bool = True
    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    def __init__(self, domain_shape: Sequence[int], range_shape: Sequence[int]) -> None:
        super().__init__()
        self.domain_shape = as_shape("domain_shape", domain_shape)
        self.range_shape = as_shape("range_shape", range_shape)
        self._known_norm: tuple[float, list[tuple[Tensor, int]]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator: ``(*batch, *domain_shape) -> (*batch, *range_shape)``."""
        self._check("x", x, self.domain_shape)
        return native_batch(self._forward, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint: ``(*batch, *range_shape) -> (*batch, *domain_shape)``.

        Raises
        ------
        OptionError
            If the operator is not linear.
        """
        self._require_linear("adjoint")
        self._check("y", y, self.range_shape)
        return native_batch(self._adjoint, y)

    def norm(self) -> float:
        """Spectral norm, the largest singular value.

        Exact where there is a closed form, else iterated in the operator's dtype to a relative
        residual of 1e-8 (6e-6 in single precision), from a fixed start. The value is kept until
        a buffer or parameter changes.

        Raises
        ------
        OptionError
            If the operator is not linear.
        """
        self._require_linear("norm")
        # Tensors made in inference mode do not count their changes, but can hardly be changed.
        tensors = [(t, 0 if t.is_inference() else t._version) for t in self._tensors()]
        if self._known_norm is not None:
            value, seen = self._known_norm
            if len(seen) == len(tensors) and all(
                a is b and i == j for (a, i), (b, j) in zip(seen, tensors, strict=True)
            ):
                return value
        with torch.no_grad():
            value = self._norm()
        self._known_norm = value, tensors
        return value

    def normalised(self) -> Operator:
        """``A / A.norm()``, of norm one.

        Raises
        ------
        DataError
            If the operator is zero.
        """
        norm = self.norm()
        if norm == 0.0:
            raise DataError(f"{self}: cannot be normalised, for it maps every image to zero")
        return self / norm

    @property
    def T(self) -> Operator:
        """The adjoint as an operator."""
        self._require_linear("T")
        return Adjoint(self)

    def __matmul__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            raise DtypeError(
                f"{self} @ {type(other).__name__}: @ composes two operators; to apply one to a "
                "tensor, call it: A(x)"
            )
        return Composition(self, other)

    def __mul__(self, factor: float) -> Operator:
        return Scaled(self, _as_factor(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Operator:
        divisor = _as_factor(divisor)
        if divisor == 0.0:
            raise OptionError(f"{self} / 0: the divisor must not be zero")
        return Scaled(self, 1 / divisor)

    def __neg__(self) -> Operator:
        return Scaled(self, -1.0)

    def __getitem__(self, rows: Rows) -> Operator:
        """Keep some entries of the flattened data, in the order given; the range is ``(k,)``.

        ``rows`` is an index, a list, slice or integer tensor of indices (negative ones count from
        the end), or a boolean mask in the shape of the range.
        """
        return self._select(as_indices(rows, self.range_shape))

    # Python would otherwise iterate by calling A[0], A[1], ...
    __iter__ = None

    def __str__(self) -> str:
        return str(self._get_name())

    def extra_repr(self) -> str:
        """Shapes, for ``repr``."""
        return f"{self.domain_shape} -> {self.range_shape}"

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _forward")

    def _adjoint(self, y: Tensor) -> Tensor:
        batch = y.shape[: y.ndim - len(self.range_shape)]
        x: Tensor = torch.func.vjp(self._forward, y.new_zeros(batch + self.domain_shape))[1](y)[0]
        return x

    def _norm(self) -> float:
        like = next((tensor for tensor in self._tensors() if tensor.is_floating_point()), None)
        dtype, device = (torch.float64, None) if like is None else (like.dtype, like.device)
        # Drawn on the CPU, so that the start is the same on every device.
        rng = torch.Generator().manual_seed(0)
        start = torch.randn(self.domain_shape, generator=rng, dtype=torch.float64)
        return largest_singular_value(self._forward, self._adjoint, start.to(device, dtype))

    def _select(self, indices: Tensor) -> Operator:
        return Composition(Selection(self.range_shape, indices.to(self._device())), self)

    def _tensors(self) -> Iterator[Tensor]:
        return chain(self.buffers(), self.parameters())

    def _device(self) -> torch.device | None:
        return next((tensor.device for tensor in self._tensors()), None)

    def _require_linear(self, what: str) -> None:
        if not self.linear:
            raise OptionError(
                f"{self}.{what}: the operator is not linear; linearise it about a point with "
                "torch.func.jvp and torch.func.vjp"
            )

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        """Refuse an input whose trailing shape, dtype or device does not fit the operator."""
        if not isinstance(value, Tensor):
            raise DtypeError(
                f"{self}: {name} must be a torch tensor, got {type(value).__name__}; "
                "torch.as_tensor converts"
            )
        if value.is_complex():
            raise DtypeError(
                f"{self}: {name} must be real, got {value.dtype}; pass real and imaginary part as "
                "two channels"
            )
        if not value.is_floating_point():
            raise DtypeError(
                f"{self}: {name} must be floating-point, got {value.dtype}; convert it with "
                f"{name}.float() or {name}.double()"
            )
        if value.shape[max(value.ndim - len(shape), 0) :] != shape:
            wanted = ", ".join(["*batch", *map(str, shape)])
            raise ShapeError(f"{self}: {name} must have shape ({wanted}), got {tuple(value.shape)}")
        for tensor in self._tensors():
            if tensor.device != value.device:
                raise DtypeError(
                    f"{self}: {name} is on {value.device}, the operator on {tensor.device}; move "
                    f"one of them: A.to({name}.device) or {name}.to({str(tensor.device)!r})"
                )
            if tensor.is_floating_point() and tensor.dtype != value.dtype:
                raise DtypeError(
                    f"{self}: {name} is {value.dtype}, the operator {tensor.dtype}; convert one of "
                    f"them: A.to({value.dtype}) or {name}.to({tensor.dtype})"
                )


class Adjoint(Operator):
    """``A.T``: the adjoint of a linear operator."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.range_shape, operator.domain_shape)
        self.operator = operator

    @property
    def T(self) -> Operator:
        return self.operator

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator._forward(y)

    def _norm(self) -> float:
        return self.operator.norm()

    def _get_name(self) -> str:
        return f"{self.operator}.T"


class Scaled(Operator):
    """``factor * A``."""

    def __init__(self, operator: Operator, factor: float) -> None:
        super().__init__(operator.domain_shape, operator.range_shape)
        self.linear = operator.linear
        self.operator = operator
        self.factor = factor

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator._adjoint(y)

    def _norm(self) -> float:
        return abs(self.factor) * self.operator.norm()

    def _select(self, indices: Tensor) -> Operator:
        return Scaled(self.operator._select(indices), self.factor)

    def _get_name(self) -> str:
        return f"{self.factor:.3g} * {self.operator}"


class Composition(Operator):
    """``outer @ inner``: first ``inner``, then ``outer``."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        if outer.domain_shape != inner.range_shape:
            raise ShapeError(
                f"{outer} @ {inner}: the right one yields {inner.range_shape}, the left one takes "
                f"{outer.domain_shape}"
            )
        super().__init__(inner.domain_shape, outer.range_shape)
        self.linear = outer.linear and inner.linear
        self.outer = outer
        self.inner = inner

    def _forward(self, x: Tensor) -> Tensor:
        return self.outer._forward(self.inner._forward(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.inner._adjoint(self.outer._adjoint(y))

    def _select(self, indices: Tensor) -> Operator:
        return Composition(self.outer._select(indices), self.inner)

    def _get_name(self) -> str:
        return f"({self.outer} @ {self.inner})"


class Selection(Operator):
    """Keep the flattened entries with the given distinct ``indices``, in that order."""

    indices: Tensor

    def __init__(self, domain_shape: Sequence[int], indices: Tensor) -> None:
        super().__init__(domain_shape, (len(indices),))
        self.register_buffer("indices", indices)

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.domain_shape)).index_select(-1, self.indices)

    def _adjoint(self, y: Tensor) -> Tensor:
        flat = y.new_zeros((*y.shape[:-1], math.prod(self.domain_shape)))
        return flat.index_copy(-1, self.indices, y).reshape(y.shape[:-1] + self.domain_shape)

    def _norm(self) -> float:
        return 1.0

    def _select(self, indices: Tensor) -> Operator:
        return Selection(self.domain_shape, self.indices[indices.to(self.indices.device)])


def as_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple of Python integers, all positive."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if not sizes or any(not isinstance(n, int | np.integer) or n < 1 for n in sizes):
        raise OptionError(f"{name}: expected a tuple of positive integers, got {shape!r}")
    return tuple(int(n) for n in sizes)


def _as_factor(factor: Any) -> float:
    if isinstance(factor, Tensor) and (factor.requires_grad or factor.grad_fn is not None):
        raise DtypeError(
            "an operator cannot be scaled by a variable: write a * A(x), not (a * A)(x)"
        )
    if isinstance(factor, Tensor | np.ndarray) and factor.ndim == 0:
        factor = factor.item()
    if not isinstance(factor, Real):
        raise DtypeError(f"an operator can be scaled by a real number, got {factor!r}")
    if not math.isfinite(factor):
        raise OptionError(f"an operator can be scaled by a finite number, got {factor}")
    return float(factor)
