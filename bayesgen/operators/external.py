"""Operators that compute in NumPy: the bridge to other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen import _linear_map
from bayesgen._linear_map import LinearMap
from bayesgen.errors import DataError
from bayesgen.operators.base import Operator

Array = np.ndarray[Any, Any]


class External(Operator):
    """A linear operator computed by functions of NumPy arrays; made by the adapters.

    It has derivatives of every order and can be vectorised and recorded, like all others. It takes
    either dtype, but computes in the library's. Computations happen on the CPU: tensors on other
    devices are copied there and back.

    Parameters
    ----------
    name
        What to call it in messages.
    domain_shape, range_shape
        Shapes of one image and of its data.
    forward, adjoint
        From flat batches ``(batch, size)`` to flat batches, in the Euclidean inner product.
    dtype
        In which they compute.
    """

    def __init__(
        self,
        name: str,
        domain_shape: Sequence[int],
        range_shape: Sequence[int],
        forward: Callable[[Array], Array],
        adjoint: Callable[[Array], Array],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(domain_shape, range_shape)
        self.name = name
        self.map = _NumpyMap(self.domain_shape, self.range_shape, forward, adjoint, dtype)

    def _example(self) -> Tensor:
        return torch.empty((), dtype=self.map.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.domain_shape)]
        return _linear_map.apply(self.map, x.flatten(len(batch))).reshape(batch + self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        batch = y.shape[: y.ndim - len(self.range_shape)]
        x = _linear_map.apply(self.map, y.flatten(len(batch)), adjoint=True)
        return x.reshape(batch + self.domain_shape)

    def _get_name(self) -> str:
        return self.name


class _NumpyMap(LinearMap):
    def __init__(
        self,
        domain_shape: tuple[int, ...],
        range_shape: tuple[int, ...],
        forward: Callable[[Array], Array],
        adjoint: Callable[[Array], Array],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(math.prod(domain_shape), math.prod(range_shape))
        self.dtype = dtype
        self._functions = forward, adjoint

    def forward(self, x: Tensor) -> Tensor:
        return self._call(self._functions[0], x, self.range_size)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._call(self._functions[1], y, self.domain_size)

    def _call(self, function: Callable[[Array], Array], x: Tensor, size: int) -> Tensor:
        # A copy: what the library does with its argument is not ours to know.
        result = function(x.detach().to("cpu", self.dtype, copy=True).numpy())
        if result.shape != (len(x), size):
            raise DataError(f"the library returned shape {result.shape}, not {(len(x), size)}")
        return torch.from_numpy(np.array(result)).to(x)
