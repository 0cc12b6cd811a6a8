"""Operators made from a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators.base import Operator
from bayesgen.operators.inputs import as_shape


class Function(Operator):
    """An operator whose forward map is a torch function; made by `from_function`.

    Parameters
    ----------
    function, adjoint
        As in `from_function`, but taking batches.
    domain_shape, range_shape
        Shapes of one image and of its data.
    linear
        Whether the function is linear.
    dtype
        One that the function takes, if it is no module with parameters of its own.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        domain_shape: Sequence[int],
        range_shape: Sequence[int],
        adjoint: Callable[[Tensor], Tensor] | None = None,
        linear: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(domain_shape, range_shape)
        self.linear = linear
        self.dtype = dtype
        # A module is registered, so that its parameters are converted and checked with the rest.
        self.function = function
        self.adjoint_function = adjoint

    def _example(self) -> Tensor:
        own = any(tensor.is_floating_point() for tensor in self._tensors())
        return super()._example() if own else torch.empty((), dtype=self.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return super()._adjoint(y) if self.adjoint_function is None else self.adjoint_function(y)


class Nonlinear(Function):
    """A differentiable map that is not linear, from any torch function.

    ``A.derivative(x)`` is its derivative at an image, a linear operator whose adjoint comes from
    automatic differentiation.

    Parameters
    ----------
    function
        From ``(*batch, *domain_shape)`` to ``(*batch, *range_shape)``, in differentiable torch
        functions; a ``torch.nn.Module`` is converted with the operator by ``A.to``.
    domain_shape
        Shape of one image.
    range_shape
        Shape of its data. Default: found by trying the function on one image.
    batched
        Whether the function takes leading batch dimensions itself. If not, it is vectorised by
        ``torch.vmap``.

    Raises
    ------
    ShapeError
        If what the function returns for one image has another shape.
    OptionError
        If it returns something else for a batch than for one image after the other.

    Examples
    --------
    >>> A = Nonlinear(lambda x: torch.exp(-x), (4, 4))  # Beer and Lambert's law
    >>> x = torch.full((4, 4), 2.0)
    >>> torch.allclose(A.derivative(x).adjoint(torch.ones(4, 4)), -torch.exp(-x))
    True
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        domain_shape: Sequence[int],
        range_shape: Sequence[int] | None = None,
        *,
        batched: bool = True,
    ) -> None:
        domain_shape = as_shape("domain_shape", domain_shape)
        with torch.no_grad():
            image = _try(function, domain_shape)
            found = _shape_of_data(function, image, range_shape)
            if not batched:
                function = _Vectorised(function, len(domain_shape))
            _require_batches(function, image, "function")
        super().__init__(function, domain_shape, found, linear=False, dtype=image.dtype)


def from_function(
    function: Callable[[Tensor], Tensor],
    domain_shape: Sequence[int],
    range_shape: Sequence[int] | None = None,
    *,
    adjoint: Callable[[Tensor], Tensor] | None = None,
    batched: bool = True,
) -> Function:
    """A linear operator from a torch function; `Nonlinear` is for functions that are not linear.

    Parameters
    ----------
    function
        From images to data, in torch functions; a ``torch.nn.Module`` is converted with the
        operator by ``A.to``.
    domain_shape
        Shape of one image.
    range_shape
        Shape of its data. Default: found by trying the function on one image.
    adjoint
        From data to images. Default: by automatic differentiation of ``function``. Check one that
        you give with `check_operator`.
    batched
        Whether the functions take leading batch dimensions themselves. If not, they are vectorised
        by ``torch.vmap``.

    Raises
    ------
    ShapeError
        If what the function returns for one image has another shape.
    OptionError
        If the function is not linear, or returns something else for a batch than for one image
        after the other.

    Examples
    --------
    >>> A = from_function(lambda x: x.cumsum(-1), (3, 4))
    >>> A.adjoint(torch.ones(3, 4))[0]
    tensor([4., 3., 2., 1.])
    """
    domain_shape = as_shape("domain_shape", domain_shape)
    with torch.no_grad():
        image = _try(function, domain_shape)
        found = _shape_of_data(function, image, range_shape)
        _require_linear(function, image)
        if not batched:
            function = _Vectorised(function, len(domain_shape))
            adjoint = None if adjoint is None else _Vectorised(adjoint, len(found))
        _require_batches(function, image, "function")
        if adjoint is not None:
            _require_adjoint(adjoint, function(image), domain_shape)
    return Function(function, domain_shape, found, adjoint, dtype=image.dtype)


def _try(function: Callable[[Tensor], Tensor], domain_shape: tuple[int, ...]) -> Tensor:
    """An image of the dtype and on the device that the function takes."""
    if not callable(function):
        raise DtypeError(f"function: expected a function, got {type(function).__name__}")
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(domain_shape, generator=rng)
    if isinstance(function, torch.nn.Module):
        tensors = (*function.parameters(), *function.buffers())
        return image.to(next((t for t in tensors if t.is_floating_point()), image))
    try:
        function(image.double())
    except (RuntimeError, DtypeError):  # it may hold tensors in single precision
        function(image)
        return image
    return image.double()


def _shape_of_data(
    function: Callable[[Tensor], Tensor], image: Tensor, given: Sequence[int] | None
) -> tuple[int, ...]:
    data = function(image)
    if not isinstance(data, Tensor):
        raise DtypeError(f"function: expected it to return a tensor, got {type(data).__name__}")
    if data.is_complex():
        raise DtypeError(
            f"function: expected real data, got {data.dtype}; torch.view_as_real gives real and "
            "imaginary part a dimension of their own"
        )
    found = as_shape("range_shape", tuple(data.shape))
    if given is not None and as_shape("range_shape", given) != found:
        raise ShapeError(f"range_shape: {tuple(given)} was given, but the function returns {found}")
    return found


def _require_linear(function: Callable[[Tensor], Tensor], image: Tensor) -> None:
    a, b = image - 0.5, image.flip(0)
    expected = 2 * function(a) - 3 * function(b)
    error = float((function(2 * a - 3 * b) - expected).norm())
    size = float(2 * function(a).norm() + 3 * function(b).norm())
    if not error <= 1e-3 * size:
        relative = error / size if size else math.inf
        raise OptionError(
            f"function: is not linear (relative error {relative:.1e}); Nonlinear takes such ones"
        )


def _require_adjoint(
    adjoint: Callable[[Tensor], Tensor], data: Tensor, domain_shape: tuple[int, ...]
) -> None:
    image = adjoint(data)
    if not isinstance(image, Tensor) or tuple(image.shape) != domain_shape:
        found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ShapeError(f"adjoint: expected it to return shape {domain_shape}, got {found}")
    _require_batches(adjoint, data, "adjoint")


@dataclass(frozen=True)
class _Vectorised:
    """A function of one image as a function of batches; a class, so that it can be pickled."""

    function: Callable[[Tensor], Tensor]
    num_dims: int

    def __call__(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - self.num_dims]
        flat = x.reshape(math.prod(batch), *x.shape[len(batch) :])
        result: Tensor = torch.func.vmap(self.function)(flat)
        return result.reshape(batch + result.shape[1:])


def _require_batches(function: Callable[[Tensor], Tensor], image: Tensor, name: str) -> None:
    """Refuse a function that mixes images or loses track of which is which."""
    batch = torch.stack([image, image.flip(0) / 2, image / 3])
    try:
        together, apart = function(batch), torch.stack([function(one) for one in batch])
        fits = together.shape == apart.shape
        fits = fits and torch.allclose(together, apart, rtol=1e-3, atol=1e-5, equal_nan=True)
    except RuntimeError:
        fits = False
    if not fits:
        raise OptionError(
            f"{name}: gives something else for a batch of images than for one after the other; "
            "batched=False vectorises a function of one image"
        )
