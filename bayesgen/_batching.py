"""Hand whole batches to operators and generators, also from inside ``torch.func.vmap``.

Operators and generators are written for any number of leading batch dimensions. A Pyro model is
written for one latent vector and vectorised over chains by ``vmap``, which would rewrite every
convolution and matrix product inside them (1.4 times the cost for convolutions) and fails on
sparse ones. `native_batch` is the bridge: under `native_batching` the vmapped dimensions become
ordinary leading dimensions for the duration of the call, so the function sees one big batch and
ordinary automatic differentiation passes through it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_vmap_depth: ContextVar[int] = ContextVar("bayesgen_vmap_depth", default=0)
# Arguments of which calls are shared, and the functions, arguments and results of such calls.
_Calls = tuple[Sequence[Tensor], list[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]]]
_shared: ContextVar[_Calls] = ContextVar("bayesgen_shared_calls", default=((), []))


@contextlib.contextmanager
def native_batching(depth: int) -> Iterator[None]:
    """Declare that the code inside runs under exactly ``depth`` nested vmaps and nothing else.

    Parameters
    ----------
    depth
        Number of ``torch.func.vmap`` levels around the model; 0 switches the mechanism off.
    """
    token = _vmap_depth.set(depth)
    try:
        yield
    finally:
        _vmap_depth.reset(token)


@contextlib.contextmanager
def shared_calls(arguments: Sequence[Tensor]) -> Iterator[None]:
    """Call functions only once for these arguments, which nothing inside may change in place.

    Two models that are run on the same latent vectors then generate their images once. Each has a
    copy, as models may change their images in place.
    """
    token = _shared.set((arguments, []))
    try:
        yield
    finally:
        _shared.reset(token)


def native_batch(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Evaluate ``fn(x)``, handing vmapped dimensions to ``fn`` as leading dimensions.

    Parameters
    ----------
    fn
        A differentiable function that accepts any number of leading batch dimensions.
    x
        Its argument.

    Examples
    --------
    >>> import torch
    >>> from bayesgen._batching import native_batch, native_batching
    >>> seen = []
    >>> def fn(x):
    ...     seen.append(tuple(x.shape))
    ...     return 2 * x
    >>> with native_batching(1):
    ...     y = torch.func.vmap(lambda x: native_batch(fn, x))(torch.ones(5, 3))
    >>> seen
    [(5, 3)]
    """
    depth, (arguments, calls) = _vmap_depth.get(), _shared.get()
    for known, argument, result in calls:
        if known == fn and argument is x:
            return result.clone()
    result = _NativeBatch.apply(fn, depth, x) if depth else fn(x)
    if not any(argument is x for argument in arguments):
        return result
    calls.append((fn, x, result))
    return result.clone()


class _NativeBatch(torch.autograd.Function):
    """``fn`` with a vmap rule that calls ``fn`` itself on the batch."""

    @staticmethod
    def forward(fn: Callable[[Tensor], Tensor], depth: int, x: Tensor) -> Tensor:
        # Reached only when x does not depend on a vmapped value (a constant of the model).
        return fn(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.fn = inputs[0]
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, Tensor]:
        x = ctx.saved_tensors[0]
        vjp: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(ctx.fn, x)[1]
        return None, None, vjp(grad_outputs[0])[0]

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[None, None, int],
        fn: Callable[[Tensor], Tensor],
        depth: int,
        x: Tensor,
    ) -> tuple[Tensor, int]:
        batch = x.movedim(in_dims[2], 0)
        if depth > 1:
            return _NativeBatch.apply(fn, depth - 1, batch), 0
        return fn(batch), 0
