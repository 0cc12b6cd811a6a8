"""Linear maps that torch cannot look into, as one operation that it can differentiate.

Sparse products, and operators that live in another library, are opaque to ``vmap``, ``make_fx`` and
double backward. They are linear, though, so all that these need to know is the adjoint: the
derivative of the map is the map, its transpose is the adjoint, and the transpose of the adjoint is
the map again. `apply` gives any `LinearMap` derivatives of every order, a rule for ``vmap``, and
one node in a recorded graph.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx

# A recorded graph can hold integers but no Python objects: the handles of the maps that are alive.
_handles: WeakValueDictionary[int, LinearMap] = WeakValueDictionary()
_next_handle = itertools.count()


class LinearMap(ABC):
    """A linear map between flat vectors.

    To write one, define `forward` and `adjoint` for batches: they are called outside automatic
    differentiation, with contiguous tensors ``(batch, size)`` of the dtype and device in use and
    ``batch >= 1``, and return new tensors.

    Parameters
    ----------
    domain_size, range_size
        Lengths of the vectors.
    """

    def __init__(self, domain_size: int, range_size: int) -> None:
        self.domain_size = domain_size
        self.range_size = range_size
        self._register()

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``(batch, domain_size) -> (batch, range_size)``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """``(batch, range_size) -> (batch, domain_size)``."""

    def _register(self) -> None:
        self._handle = next(_next_handle)
        _handles[self._handle] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another map: it gets a handle of its own."""
        self.__dict__.update(state)
        self._register()


def apply(linear_map: LinearMap, x: Tensor, *, adjoint: bool = False) -> Tensor:
    """Apply a map, or its adjoint, to the last dimension of ``x``; differentiable to any order.

    Parameters
    ----------
    linear_map
        The map. Gradients keep it alive; of a graph of operations, see `maps_in`.
    x
        ``(*batch, domain_size)``, or ``(*batch, range_size)`` for the adjoint.
    adjoint
        Whether to apply the adjoint.
    """
    handle = linear_map._handle
    result: Tensor = _Apply.apply(x, ~handle if adjoint else handle)
    return result


def maps_in(graph: fx.Graph) -> list[LinearMap]:
    """The maps that a recorded graph applies; keep them as long as the graph."""
    nodes = (node for node in graph.nodes if node.target is _applied_op())
    return [_find(int(node.args[1]))[0] for node in nodes]


def _find(handle: int) -> tuple[LinearMap, bool]:
    """The map of a handle, and whether its adjoint is meant (negative handles)."""
    try:
        return _handles[max(handle, ~handle)], handle < 0
    except KeyError:
        raise RuntimeError("the operator that this function was recorded with is gone") from None


@torch.library.custom_op("bayesgen::linear_map", mutates_args=())
def _linear_map(x: Tensor, handle: int) -> Tensor:
    linear_map, adjoint = _find(handle)
    batch = x.shape[:-1]
    flat = x.detach().reshape(-1, x.shape[-1]).contiguous()
    if len(flat) == 0:
        return _result_like(x, handle)
    result = linear_map.adjoint(flat) if adjoint else linear_map.forward(flat)
    return result.reshape(*batch, result.shape[-1])


@_linear_map.register_fake
def _result_like(x: Tensor, handle: int) -> Tensor:
    linear_map, adjoint = _find(handle)
    size = linear_map.domain_size if adjoint else linear_map.range_size
    return x.new_empty((*x.shape[:-1], size))


def _applied_op() -> Any:
    return torch.ops.bayesgen.linear_map.default


class _Apply(torch.autograd.Function):
    """The derivatives: ``~handle`` is the adjoint of ``handle``."""

    @staticmethod
    def forward(x: Tensor, handle: int) -> Tensor:
        result: Tensor = torch.ops.bayesgen.linear_map(x, handle)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.handle = inputs[1]
        ctx.keeps_alive = _find(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _Apply.apply(grad_outputs[0], ~ctx.handle), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        tangent: Tensor = _Apply.apply(grad_inputs[0], ctx.handle)
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, handle: int) -> tuple[Tensor, int]:
        return _Apply.apply(x.movedim(in_dims[0], 0), handle), 0
