r"""Lower triangular matrices over the pixels of an image, non-zero near the diagonal only.

The column of pixel :math:`p` of such an :math:`L` holds the diagonal entry and one entry for each
pixel that comes after :math:`p` in raster order and lies within ``radius`` of it along both axes,
at :math:`p + \delta_k`. All of them together are a *factor*, a stack of maps ``(*batch, 1 + K, y,
x)`` with the diagonal first and ``K = 2 * radius * (radius + 1)`` others in the order of `offsets`;
entries that would lie outside the image are ignored. No matrix is ever formed.

A solve visits pixel ``(i, j)`` at time ``j + (radius + 1) * i``, forwards for :math:`L` and
backwards for :math:`L^T`: whatever a pixel depends on has had its turn before, and the pixels that
share a time do not depend on each other and are solved for at once, for the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# Numbers in a chunk of unit vectors: 16 MiB in single precision.
_CHUNK = 2**22


def offsets(radius: int) -> list[tuple[int, int]]:
    """Where the neighbours after a pixel are, ``(dy, dx)`` in raster order.

    Examples
    --------
    >>> offsets(1)
    [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    same_row = [(0, dx) for dx in range(1, radius + 1)]
    below = [(dy, dx) for dy in range(1, radius + 1) for dx in range(-radius, radius + 1)]
    return same_row + below


def radius_of(num_maps: int) -> int | None:
    """The radius for which there are so many neighbours after a pixel; None if for no radius.

    Examples
    --------
    >>> [radius_of(num_maps) for num_maps in (0, 4, 12, 13)]
    [0, 1, 2, None]
    """
    radius = (math.isqrt(1 + 2 * num_maps) - 1) // 2
    return radius if 2 * radius * (radius + 1) == num_maps else None


def multiply(factor: Tensor, x: Tensor, *, transpose: bool = False) -> Tensor:
    """``L x``, or ``L^T x``; differentiable to any order.

    Parameters
    ----------
    factor
        ``(*batch, 1 + K, y, x)``.
    x
        ``(*batch, y, x)``, of the factor's dtype; the batch dimensions broadcast.
    transpose
        Whether to multiply by the transpose.

    Examples
    --------
    >>> factor = torch.ones(5, 1, 3)  # ones on the diagonal and right of each pixel
    >>> x = torch.tensor([[1.0, 10.0, 100.0]])
    >>> multiply(factor, x), multiply(factor, x, transpose=True)
    (tensor([[  1.,  11., 110.]]), tensor([[ 11., 110., 100.]]))
    """
    result: Tensor = _Apply.apply(factor, x, False, transpose)
    return result


def solve(factor: Tensor, b: Tensor, *, transpose: bool = False) -> Tensor:
    """Solution of ``L x = b``, or of ``L^T x = b``; differentiable to any order.

    Parameters
    ----------
    factor
        ``(*batch, 1 + K, y, x)``. What batches of ``b`` share is not copied.
    b
        ``(*batch, y, x)``, of the factor's dtype; the batch dimensions broadcast.
    transpose
        Whether to solve with the transpose.

    Notes
    -----
    Takes ``width + (radius + 1) * (height - 1)`` steps, whatever the batch, and another solve for
    the gradient. Small batches pay for the steps, large ones for the arithmetic.

    Examples
    --------
    >>> factor = torch.ones(5, 1, 3)
    >>> solve(factor, torch.tensor([[1.0, 11.0, 110.0]]))
    tensor([[  1.,  10., 100.]])
    """
    result: Tensor = _Apply.apply(factor, b, True, transpose)
    return result


def inverse_diagonal(factor: Tensor) -> Tensor:
    r"""Diagonal of :math:`(L L^T)^{-1}`: ``(*batch, 1 + K, y, x) -> (*batch, y, x)``.

    Exact: the squared length of :math:`L^{-1} e_p` for each of the n pixels, in chunks that bound
    the memory. Time grows with n squared. The gradient takes two more solves a pixel.

    Examples
    --------
    >>> inverse_diagonal(torch.ones(5, 1, 3))
    tensor([[3., 2., 1.]])
    """
    result: Tensor = _InverseDiagonal.apply(factor)
    return result


# ---------------------------------------------------------------------- products


def _multiply(factor: Tensor, x: Tensor, transpose: bool) -> Tensor:
    out = (factor[..., 0, :, :] * x).contiguous()
    for k, offset in enumerate(offsets(_radius(factor)), 1):
        here, there = _overlap(offset, *x.shape[-2:])
        entries = factor[..., k, *here]
        if transpose:
            out[..., *here].addcmul_(entries, x[..., *there])
        else:
            out[..., *there].addcmul_(entries, x[..., *here])
    return out


def _overlap(
    offset: tuple[int, int], height: int, width: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The pixels that have a neighbour at this offset, and those neighbours."""
    dy, dx = offset
    here = slice(0, max(height - dy, 0)), slice(max(-dx, 0), max(width - max(dx, 0), 0))
    there = slice(dy, height), slice(max(dx, 0), max(width + min(dx, 0), 0))
    return here, there


def _near_products(u: Tensor, v: Tensor, like: Tensor) -> Tensor:
    """``u_p v_{p + offset}``, summed over batches: the entries of ``v u^T`` that a factor has."""
    radius, (height, width) = _radius(like), u.shape[-2:]
    shape = like.shape[:-3] + like.shape[-2:]
    padded = pad(v, (radius, radius, 0, radius))
    maps = [
        u * padded[..., dy : dy + height, radius + dx : radius + dx + width]
        for dy, dx in [(0, 0), *offsets(radius)]
    ]
    return torch.stack([m.sum_to_size(shape) for m in maps], dim=-3)


def _radius(factor: Tensor) -> int:
    radius = radius_of(factor.shape[-3] - 1)
    if radius is None:
        raise ValueError(f"factor: has {factor.shape[-3]} maps; expected 1, 5, 13, 25, ...")
    return radius


# ---------------------------------------------------------------------- solves


class _Plan(NamedTuple):
    """In which order to solve for the pixels; rows are places in that order.

    Attributes
    ----------
    order, place
        The pixel at each place, and the place of each pixel, ``(n,)``.
    entries
        Where in the flattened factor the coefficients of the K neighbours are, ``(n * K,)``; any
        will do for neighbours outside the image, which are zero.
    fronts
        First and last place (plus one) of the pixels of one time, and the places of their
        neighbours, pixel by pixel; n stands for outside.
    """

    order: Tensor
    place: Tensor
    entries: Tensor
    fronts: list[tuple[int, int, Tensor]]


def _time(row: Tensor, column: Tensor, radius: int) -> Tensor:
    return column + (radius + 1) * row


@lru_cache(maxsize=16)
def _plan(height: int, width: int, radius: int, transpose: bool, device: torch.device) -> _Plan:
    num = height * width
    pixel = torch.arange(num)
    row, column = pixel // width, pixel % width
    sign = 1 if transpose else -1  # the neighbours come after the pixel, or before
    time = -sign * _time(row, column, radius)
    order = time.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = pixel
    dy, dx = torch.tensor(offsets(radius), dtype=torch.long).reshape(-1, 2).T
    y, x = row[order, None] + sign * dy, column[order, None] + sign * dx
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    neighbour = torch.where(outside, 0, y * width + x)
    # The entry that links two pixels is in the column of the earlier one.
    owner = order[:, None] if transpose else neighbour
    entries = torch.where(outside, 0, num * torch.arange(1, len(dy) + 1) + owner)
    places = torch.where(outside, num, place[neighbour]).to(device)
    stops = time[order].unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    fronts = [
        (start, stop, places[start:stop].flatten())
        for start, stop in zip([0, *stops[:-1]], stops, strict=True)
    ]
    return _Plan(order.to(device), place.to(device), entries.flatten().to(device), fronts)


def _solve(factor: Tensor, b: Tensor, transpose: bool) -> Tensor:
    height, width = b.shape[-2:]
    batch = torch.broadcast_shapes(factor.shape[:-3], b.shape[:-2])
    radius = _radius(factor)
    plan = _plan(height, width, radius, transpose, factor.device)
    num, num_neighbours = height * width, factor.shape[-3] - 1
    # Pixels first, so that a front is a contiguous block and a gather copies whole batches.
    entries = _pixels_first(factor, 3, len(batch))
    pivots = entries.index_select(0, plan.order)
    x = factor.new_zeros(num + 1, *batch)  # the last row is what lies outside the image
    torch.div(_pixels_first(b, 2, len(batch)).index_select(0, plan.order), pivots, out=x[:num])
    if radius:
        weights = entries.index_select(0, plan.entries)
        weights = weights.unflatten(0, (num, num_neighbours)).div_(pivots.unsqueeze(1))
        for start, stop, places in plan.fronts:
            solved = x.index_select(0, places).unflatten(0, (stop - start, num_neighbours))
            x[start:stop].sub_(solved.mul_(weights[start:stop]).sum(1))
    x = x.index_select(0, plan.place)
    return x.movedim(0, -1).contiguous().reshape(*batch, height, width)


def _pixels_first(maps: Tensor, dims: int, num_batch_dims: int) -> Tensor:
    """The last dimensions as one, in front of the batch dimensions, of which some may be new."""
    batch = maps.shape[:-dims]
    ones = (1,) * (num_batch_dims - len(batch))
    return maps.flatten(-dims).movedim(-1, 0).contiguous().reshape(-1, *ones, *batch)


# ---------------------------------------------------------------------- derivatives


# One node in a recorded graph instead of some thousands.
@torch.library.custom_op("bayesgen::sparse_cholesky", mutates_args=())
def _operation(factor: Tensor, x: Tensor, solving: bool, transpose: bool) -> Tensor:
    factor, x = factor.detach(), x.detach()
    if 0 in factor.shape or 0 in x.shape:
        return _result_like(factor, x, solving, transpose)
    return _solve(factor, x, transpose) if solving else _multiply(factor, x, transpose)


@_operation.register_fake
def _result_like(factor: Tensor, x: Tensor, solving: bool, transpose: bool) -> Tensor:
    batch = torch.broadcast_shapes(factor.shape[:-3], x.shape[:-2])
    return x.new_empty(batch + x.shape[-2:])


class _Apply(torch.autograd.Function):
    """``M x``, or ``M^-1 x`` when solving, where M is L or its transpose."""

    @staticmethod
    def forward(factor: Tensor, x: Tensor, solving: bool, transpose: bool) -> Tensor:
        result: Tensor = torch.ops.bayesgen.sparse_cholesky(factor, x, solving, transpose)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool, bool], output: Tensor) -> None:
        factor, x, ctx.solving, ctx.transpose = inputs
        ctx.x_shape = x.shape
        kept = factor, output if ctx.solving else x
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        (factor, right), (left,) = ctx.saved_tensors, grad_outputs
        grad_x = grad_factor = None
        if ctx.solving or ctx.needs_input_grad[1]:
            back = _Apply.apply(factor, left, ctx.solving, not ctx.transpose)
            grad_x = back.sum_to_size(ctx.x_shape)
            left = -back if ctx.solving else left
        if ctx.needs_input_grad[0]:
            # Of M: the outer product of left and right.
            u, v = (left, right) if ctx.transpose else (right, left)
            grad_factor = _near_products(u, v, factor)
        return grad_factor, grad_x, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        (factor, right), (d_factor, dx) = ctx.saved_tensors, grad_inputs[:2]
        change = _Apply.apply(d_factor, right, False, ctx.transpose)
        if ctx.solving:
            return solve(factor, dx - change, transpose=ctx.transpose)
        return multiply(factor, dx, transpose=ctx.transpose) + change

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, int | None, None, None],
        factor: Tensor,
        x: Tensor,
        solving: bool,
        transpose: bool,
    ) -> tuple[Tensor, int]:
        """The mapped dimension becomes the first of the batch dimensions."""
        rank = max(
            factor.ndim - 3 - (in_dims[0] is not None), x.ndim - 2 - (in_dims[1] is not None)
        )
        factor = _leading(factor, in_dims[0], rank + 4)
        x = _leading(x, in_dims[1], rank + 3)
        return _Apply.apply(factor, x, solving, transpose), 0


def _leading(tensor: Tensor, dim: int | None, ndim: int) -> Tensor:
    """``tensor`` with ``dim`` in front, and then ones to fill up to ``ndim`` dimensions."""
    if dim is None:
        return tensor
    tensor = tensor.movedim(dim, 0)
    ones = (1,) * (ndim - tensor.ndim)
    return tensor.reshape(tensor.shape[0], *ones, *tensor.shape[1:])


class _InverseDiagonal(torch.autograd.Function):
    """With its own gradient, for the solutions of all unit vectors must not be kept."""

    @staticmethod
    def forward(factor: Tensor) -> Tensor:
        variances = [
            solve(factor, unit).square().sum((-2, -1)) for _, unit in _unit_vectors(factor)
        ]
        return torch.cat(variances).movedim(0, -1).reshape(factor.shape[:-3] + factor.shape[-2:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (factor,), (gradient,) = ctx.saved_tensors, grad_outputs
        total = torch.zeros_like(factor)
        for pixels, unit in _unit_vectors(factor):
            weight = -2 * gradient.flatten(-2)[..., pixels].movedim(-1, 0)[..., None, None]
            half = solve(factor, unit)
            column = solve(factor, half, transpose=True)
            total = total + _near_products(weight * half, column, factor)
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], factor: Tensor) -> tuple[Tensor, int]:
        return _InverseDiagonal.apply(factor.movedim(in_dims[0], 0)), 0


def _unit_vectors(factor: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of pixels with their unit vectors ``(chunk, *ones, y, x)``."""
    height, width = factor.shape[-2:]
    num = height * width
    ones = (1,) * (factor.ndim - 3)
    numbers = max(math.prod(factor.shape[:-3]), 1) * num
    size = max(_CHUNK // numbers, 1)
    every = torch.arange(num, device=factor.device)
    for start in range(0, num, size):
        unit = (every == every[start : start + size, None]).to(factor.dtype)
        yield slice(start, start + size), unit.reshape(-1, *ones, height, width)
