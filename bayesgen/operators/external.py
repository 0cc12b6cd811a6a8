"""Operators that compute in NumPy: the bridge to other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen._linear_map import LinearMap
from bayesgen.errors import DataError
from bayesgen.operators.opaque import Opaque

Array = np.ndarray[Any, Any]


class External(Opaque):
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

    def _map(self) -> LinearMap:
        return self.map

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
