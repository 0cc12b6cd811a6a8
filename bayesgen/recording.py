"""Record a function of tensors once as a plain graph of tensor operations.

Pyro's effect handlers and functorch cost 0.3 to 3 ms an evaluation, and the operations they end up
performing never change. They are recorded for one set of input shapes; what never changes from
call to call is evaluated once, and the bookkeeping that vmap and autograd leave behind (views of
views, detaches, gradients of one) is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from bayesgen._linear_map import maps_in

aten = torch.ops.aten

# In-place operations that change a tensor's shape only, and their out-of-place twins.
_RESHAPING_IN_PLACE = {
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.unsqueeze_.default: aten.unsqueeze.default,
}
_IDENTITIES = {aten.detach.default, aten.alias.default}
# Views that keep the order of the elements of a contiguous tensor.
_RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}
# Operations whose result depends on the shape of their operand alone.
_FILLS = {
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.full_like.default,
    aten.new_full.default,
}


def record(fn: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """The operations ``fn`` performs on inputs of these shapes, as a callable graph.

    Parameters
    ----------
    fn
        Function of tensors that returns a tensor or a tuple of tensors; it may itself call
        ``torch.autograd.grad`` or ``torch.func`` transforms.
    *inputs
        Tensors with the shapes, dtypes and device the graph is for.

    Returns
    -------
    torch.fx.GraphModule
        Python control flow, Python numbers and captured tensors are frozen into it. Captured
        weights are read when the graph is recorded: record again after changing them.

    Raises
    ------
    RuntimeError
        If ``fn`` draws random numbers or cannot be recorded.

    Examples
    --------
    >>> import torch
    >>> scale = torch.tensor(2.0)
    >>> graph = record(lambda x: scale.exp() * x, torch.ones(3))
    >>> graph(torch.ones(3)) == scale.exp()
    tensor([True, True, True])
    >>> sum(node.op == "call_function" for node in graph.graph.nodes)  # exp() was folded
    1
    """
    recorded = make_fx(fn)(*inputs)
    graph = recorded.graph
    for node in graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise RuntimeError(f"the function draws fresh random numbers ({node.target})")
    _replace_reshaping_in_place(graph)
    if not any(_is_mutable(node) for node in graph.nodes):
        _drop_identities(graph)
        _fold_constants(recorded)
        _merge_reshapes(graph)
    graph.eliminate_dead_code()
    recorded.recompile()
    # The graph knows opaque linear maps by number only; it must outlive no map that it applies.
    vars(recorded)["linear_maps"] = maps_in(graph)
    return recorded


def _is_mutable(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _replace_reshaping_in_place(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.target in _RESHAPING_IN_PLACE and len(node.args[0].users) == 1:
            node.target = _RESHAPING_IN_PLACE[node.target]


def _drop_identities(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        # x ** 1 comes from the gradient of x ** 2, in every Gaussian.
        power_of_one = node.target is aten.pow.Tensor_Scalar and node.args[1] == 1
        same_shape = node.target is aten.expand.default and _shape(node) == _shape(node.args[0])
        if node.target in _IDENTITIES or power_of_one or same_shape:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _fold_constants(module: fx.GraphModule) -> None:
    """Evaluate every operation whose operands are all known, and store its result."""
    known: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = _attribute(module, node.target)
        elif node.op == "call_function":
            if node.target in _FILLS and not all(n in known for n in node.all_input_nodes):
                example = torch.empty(
                    _shape(node.args[0]), dtype=_value(node).dtype, device=_value(node).device
                )
                known[node] = node.target(example, *node.args[1:], **node.kwargs)
            elif all(n in known for n in node.all_input_nodes):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                with torch.no_grad():
                    known[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(known.items()):
        used = any(user not in known for user in node.users)
        if node.op == "get_attr" or not used or not isinstance(value, Tensor):
            continue
        name = f"_constant{number}"
        module.register_buffer(name, value, persistent=False)
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
    module.graph.eliminate_dead_code()


def _merge_reshapes(graph: fx.Graph) -> None:
    """Replace chains of reshapes of a contiguous tensor by one view, or by nothing."""
    for node in list(graph.nodes):
        if node.target not in _RESHAPES:
            continue
        source = node.args[0]
        while source.target in _RESHAPES:
            source = source.args[0]
        if not _is_contiguous(source):
            continue
        if _shape(source) == _shape(node):
            node.replace_all_uses_with(source)
        else:
            node.target, node.args = aten.view.default, (source, list(_shape(node)))
            node.kwargs = {}
    graph.eliminate_dead_code()


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(_value(node).shape)


def _is_contiguous(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_contiguous()


def _attribute(module: fx.GraphModule, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
