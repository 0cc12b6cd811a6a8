"""What operators have in common whose products torch cannot look into."""

from __future__ import annotations

from torch import Tensor

from bayesgen import _linear_map
from bayesgen._linear_map import LinearMap
from bayesgen.operators.base import Operator


class Opaque(Operator):
    """An operator that is a `LinearMap` between its flattened images and data.

    To write one, define `_map`; whatever holds the map keeps it alive.
    """

    def _map(self) -> LinearMap:
        raise NotImplementedError(f"{type(self).__name__} does not define _map")

    def _forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - len(self.domain_shape)]
        y = _linear_map.apply(self._map(), x.flatten(len(batch)))
        return y.reshape(batch + self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        batch = y.shape[: y.ndim - len(self.range_shape)]
        x = _linear_map.apply(self._map(), y.flatten(len(batch)), adjoint=True)
        return x.reshape(batch + self.domain_shape)
