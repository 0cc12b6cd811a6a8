"""What goes into an operator, checked at the door: shapes, factors, images and data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError


def as_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple of Python integers, all positive."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if not sizes or any(not isinstance(n, int | np.integer) or n < 1 for n in sizes):
        raise OptionError(f"{name}: expected a tuple of positive integers, got {shape!r}")
    return tuple(int(n) for n in sizes)


def as_factor(factor: Any) -> float:
    """What an operator is multiplied by, as a Python number."""
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


def as_constant(name: str, values: Any) -> Tensor:
    """What an operator is made of, as a tensor without gradients.

    Raises
    ------
    DtypeError
        If it is a variable: its gradient would be lost without a word.
    """
    if isinstance(values, Tensor):
        if values.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(values):
            raise DtypeError(
                f"{name}: operators are made of constants, but this is a variable, whose gradient "
                "would be lost; detach it, or write the map as a function of it (Convolution takes "
                "its kernel as an argument)"
            )
        return values.detach()
    # torch takes no arrays with negative strides, which flipped kernels have.
    return torch.as_tensor(
        np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
    )


def as_count(name: str, value: Any) -> int:
    """A positive integer, also one of NumPy's or a tensor of one."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise OptionError(f"{name}: expected a positive integer, got {value!r}")
    return int(value)


def as_positive(name: str, value: Any) -> float:
    """A positive, finite number, also one of NumPy's or a tensor of one."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and value > 0):
        raise OptionError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def require_finite(name: str, values: Tensor) -> None:
    """Refuse what an operator is made of if an entry is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise DataError(f"{name}: an entry is NaN or infinite")


def expect_size(name: str, shape: tuple[int, ...], size: int, what: str) -> None:
    """Refuse a shape with another number of entries than a matrix has rows or columns."""
    if math.prod(shape) != size:
        raise ShapeError(
            f"{name}: {shape} has {math.prod(shape)} entries, but the matrix has {size} {what}"
        )


def check_input(
    owner: object, name: str, value: Tensor, shape: tuple[int, ...], parts: Iterable[Tensor]
) -> None:
    """Refuse an input whose trailing shape, dtype or device does not fit the operator.

    Parameters
    ----------
    owner, name
        The operator and the argument, for the message.
    value
        What came.
    shape
        Its trailing shape as it should be.
    parts
        The operator's buffers and parameters.
    """
    if not isinstance(value, Tensor):
        raise DtypeError(
            f"{owner}: {name} must be a torch tensor, got {type(value).__name__}; "
            "torch.as_tensor converts"
        )
    if value.is_complex():
        raise DtypeError(
            f"{owner}: {name} must be real, got {value.dtype}; pass real and imaginary part as "
            "two channels"
        )
    if not value.is_floating_point():
        raise DtypeError(
            f"{owner}: {name} must be floating-point, got {value.dtype}; convert it with "
            f"{name}.float() or {name}.double()"
        )
    if value.shape[max(value.ndim - len(shape), 0) :] != shape:
        wanted = ", ".join(["*batch", *map(str, shape)])
        raise ShapeError(f"{owner}: {name} must have shape ({wanted}), got {tuple(value.shape)}")
    for part in parts:
        if part.device != value.device:
            raise DtypeError(
                f"{owner}: {name} is on {value.device}, the operator on {part.device}; move "
                f"one of them: A.to({name}.device) or {name}.to({str(part.device)!r})"
            )
        if part.is_floating_point() and part.dtype != value.dtype:
            raise DtypeError(
                f"{owner}: {name} is {value.dtype}, the operator {part.dtype}; convert one of "
                f"them: A.to({value.dtype}) or {name}.to({part.dtype})"
            )


def as_kernel(values: Any) -> Tensor:
    """A finite, real, two-dimensional convolution kernel."""
    kernel = as_constant("kernel", values)
    if kernel.ndim != 2 or kernel.numel() == 0:
        raise ShapeError(f"kernel: expected two dimensions (y, x), got {tuple(kernel.shape)}")
    if not kernel.is_floating_point():
        raise DtypeError(
            f"kernel: expected real floating-point, got {kernel.dtype}; convert it with .float()"
        )
    require_finite("kernel", kernel)
    return kernel
