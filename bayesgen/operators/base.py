"""What a forward operator is, and how operators combine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from bayesgen._batching import native_batch
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.numerics import largest_singular_value
from bayesgen.operators.inputs import as_constant, as_factor, as_shape, check_input, require_finite
from bayesgen.operators.rows import Index, as_indices


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
    over entries. NaN and infinity pass through, as in torch: products run where values cannot be
    looked at, and data are checked by `bayesgen.infer`. ``A.T``, ``A @ B``, ``c * A``, ``A[rows]``
    share the memory of ``A`` where they can: converting one with ``.to`` converts the parts they
    have in common.

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
        a buffer or parameter changes; what a function holds besides these must not change.

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
        return Scaled(self, as_factor(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Operator:
        divisor = as_factor(divisor)
        if divisor == 0.0:
            raise OptionError(f"{self} / 0: the divisor must not be zero")
        return Scaled(self, 1 / divisor)

    def __neg__(self) -> Operator:
        return Scaled(self, -1.0)

    def __add__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            raise DtypeError(f"{self} + {type(other).__name__}: + adds two operators")
        return Sum(self, other)

    def __sub__(self, other: Operator) -> Operator:
        return self + (-other)

    def __getitem__(self, index: Index) -> Operator:
        """Keep some of the data, indexed as NumPy would: ``A[index](x)`` is ``A(x)[index]``.

        ``index`` is an integer, a list, slice or tensor of integers, a boolean mask, or a tuple
        of one for each axis of the data (of one image, without batch dimensions). No entry can be
        taken twice; a single one has the shape ``(1,)``.
        """
        return self._select(as_indices(index, self.range_shape))

    def derivative(self, x: Tensor) -> Operator:
        """The derivative at the image ``x``, a linear operator; of a linear one, itself.

        Parameters
        ----------
        x
            Where to differentiate, ``domain_shape``; it is copied.
        """
        if self.linear:
            return self
        self._check("x", x, self.domain_shape)
        if x.ndim != len(self.domain_shape):
            raise ShapeError(
                f"{self}.derivative: x must be one image of shape {self.domain_shape}, got "
                f"{tuple(x.shape)}"
            )
        x = as_constant("x", x)
        require_finite("x", x)
        return Derivative(self, x)

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
        # Drawn on the CPU, so that the start is the same on every device.
        rng = torch.Generator().manual_seed(0)
        start = torch.randn(self.domain_shape, generator=rng, dtype=torch.float64)
        return largest_singular_value(self._forward, self._adjoint, start.to(self._example()))

    def _select(self, indices: Tensor) -> Operator:
        return Composition(Selection(self.range_shape, indices.to(self._device())), self)

    def _tensors(self) -> Iterator[Tensor]:
        return chain(self.buffers(), self.parameters())

    def _example(self) -> Tensor:
        """Something of the dtype and on the device of the operator; double if it has none."""
        floating = (tensor for tensor in self._tensors() if tensor.is_floating_point())
        return next(floating, torch.empty((), dtype=torch.float64, device=self._device()))

    def _device(self) -> torch.device | None:
        return next((tensor.device for tensor in self._tensors()), None)

    def _require_linear(self, what: str) -> None:
        if not self.linear:
            raise OptionError(
                f"{self}.{what}: the operator is not linear; A.derivative(x) is, the derivative "
                "at an image x"
            )

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        check_input(self, name, value, shape, self._tensors())


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
    """Keep the entries with the given distinct flat ``indices``, in the shape of ``indices``."""

    indices: Tensor
    _places: Tensor

    def __init__(self, domain_shape: Sequence[int], indices: Tensor) -> None:
        super().__init__(domain_shape, tuple(indices.shape))
        self.register_buffer("indices", indices)
        # Where each pixel's value is among the data; past their end for those that are not kept.
        places = torch.full((math.prod(self.domain_shape),), indices.numel(), device=indices.device)
        places[indices.flatten()] = torch.arange(indices.numel(), device=indices.device)
        self.register_buffer("_places", places)

    def _forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.domain_shape)]
        y = x.flatten(len(batch)).index_select(-1, self.indices.flatten())
        return y.reshape(batch + self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        batch = y.shape[: y.ndim - len(self.range_shape)]
        followed_by_zero = torch.nn.functional.pad(y.flatten(len(batch)), (0, 1))
        return followed_by_zero.index_select(-1, self._places).reshape(batch + self.domain_shape)

    def _norm(self) -> float:
        return 1.0

    def _select(self, indices: Tensor) -> Operator:
        chosen = self.indices.flatten()[indices.to(self.indices.device)]
        return Selection(self.domain_shape, chosen)


class Sum(Operator):
    """``A + B``: both measure the same image, and their data are added."""

    def __init__(self, first: Operator, second: Operator) -> None:
        for what in ("domain_shape", "range_shape"):
            one, other = getattr(first, what), getattr(second, what)
            if one != other:
                raise ShapeError(f"{first} + {second}: {what} {one} and {other} differ")
        super().__init__(first.domain_shape, first.range_shape)
        self.linear = first.linear and second.linear
        self.first = first
        self.second = second

    def _forward(self, x: Tensor) -> Tensor:
        return self.first._forward(x) + self.second._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.first._adjoint(y) + self.second._adjoint(y)

    def _select(self, indices: Tensor) -> Operator:
        return Sum(self.first._select(indices), self.second._select(indices))

    def _get_name(self) -> str:
        return f"({self.first} + {self.second})"


class Derivative(Operator):
    """``A.derivative(point)`` of an operator that is not linear."""

    point: Tensor

    def __init__(self, operator: Operator, point: Tensor) -> None:
        super().__init__(operator.domain_shape, operator.range_shape)
        self.operator = operator
        self.register_buffer("point", point.detach().clone())

    def _forward(self, x: Tensor) -> Tensor:
        # The derivative is the transpose of its transpose: this needs reverse mode only, which
        # every differentiable torch function has.
        batch = x.shape[: x.ndim - len(self.domain_shape)]
        y: Tensor = torch.func.vjp(self._adjoint, x.new_zeros(batch + self.range_shape))[1](x)[0]
        return y

    def _adjoint(self, y: Tensor) -> Tensor:
        batch = y.shape[: y.ndim - len(self.range_shape)]
        at = self.point.expand(batch + self.domain_shape)
        x: Tensor = torch.func.vjp(self.operator._forward, at)[1](y)[0]
        return x

    def _get_name(self) -> str:
        return f"{self.operator}'"
