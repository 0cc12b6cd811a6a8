"""Operators from deepinv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, ShapeError
from bayesgen.operators.base import Operator
from bayesgen.operators.inputs import as_shape


class FromDeepinv(Operator):
    """A physics of deepinv as an operator; made by `from_deepinv`."""

    def __init__(
        self, physics: Any, domain_shape: tuple[int, ...], range_shape: tuple[int, ...]
    ) -> None:
        super().__init__(domain_shape, range_shape)
        self.linear = hasattr(physics, "A_adjoint")
        self.physics = physics

    def _forward(self, x: Tensor) -> Tensor:
        return self._batched(self.physics.A, x, self.domain_shape, self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._batched(self.physics.A_adjoint, y, self.range_shape, self.domain_shape)

    def _batched(
        self, function: Any, x: Tensor, shape: tuple[int, ...], result_shape: tuple[int, ...]
    ) -> Tensor:
        """deepinv takes one batch dimension, and not an empty one."""
        batch = x.shape[: x.ndim - len(shape)]
        if x.numel() == 0:
            return x.new_zeros(batch + result_shape) + x.sum()
        result: Tensor = function(x.reshape(-1, *shape))
        return result.reshape(batch + result_shape)

    def _get_name(self) -> str:
        return f"from_deepinv({type(self.physics).__name__})"


def from_deepinv(physics: Any, domain_shape: Sequence[int]) -> Operator:
    """An operator from a deepinv ``Physics``, linear if it has an ``A_adjoint``.

    Only the forward map and its adjoint are used; the noise belongs in the model's likelihood.
    Whether ``A_adjoint`` is the adjoint, `check_operator` tells.

    Parameters
    ----------
    physics
        Its ``A`` takes ``(batch, *domain_shape)`` and returns one real tensor.
    domain_shape
        Shape of one image, usually ``(channel, y, x)``.

    Raises
    ------
    DtypeError
        If it is no physics, or its data are not one real tensor.
    ShapeError
        If it does not take images of that shape.

    Examples
    --------
    >>> import deepinv  # doctest: +SKIP
    >>> A = from_deepinv(deepinv.physics.Inpainting((1, 28, 28), mask=0.5), (1, 28, 28))
    ... # doctest: +SKIP
    """
    forward = getattr(physics, "A", None)
    if not isinstance(physics, torch.nn.Module) or not callable(forward):
        raise DtypeError(f"physics: expected a deepinv Physics, got {type(physics).__name__}")
    shape = as_shape("domain_shape", domain_shape)
    tensors = (*physics.parameters(), *physics.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(()))
    try:
        with torch.no_grad():
            data = forward(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise ShapeError(
            f"domain_shape: {type(physics).__name__} does not take images {shape}: {error}"
        ) from error
    if not isinstance(data, Tensor) or data.is_complex():
        kind = str(data.dtype) if isinstance(data, Tensor) else type(data).__name__
        raise DtypeError(f"physics: expected its data to be one real tensor, got {kind}")
    return FromDeepinv(physics, shape, tuple(data.shape[1:]))
