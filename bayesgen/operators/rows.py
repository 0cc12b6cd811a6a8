"""What stands between the brackets of ``A[rows]``, as a checked tensor of indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError

Rows = int | slice | Sequence[int] | Tensor


def as_indices(rows: Rows, shape: tuple[int, ...]) -> Tensor:
    """Distinct indices between 0 and ``prod(shape) - 1``, int64, in the order asked for.

    Raises
    ------
    DtypeError
        If ``rows`` is of another kind.
    ShapeError
        If a mask has not the shape ``shape``, or indices have more than one dimension.
    OptionError
        If there are none, or one is out of range or given twice.

    Examples
    --------
    >>> as_indices([2, -1], (2, 3)), as_indices(slice(0, 6, 4), (2, 3))
    (tensor([2, 5]), tensor([0, 4]))
    """
    num_rows = math.prod(shape)
    indices = _as_tensor(rows, num_rows)
    if indices.dtype == torch.bool:
        if tuple(indices.shape) not in (shape, (num_rows,)):
            raise ShapeError(
                f"A[rows]: a mask must have the shape {shape} of the data, got "
                f"{tuple(indices.shape)}"
            )
        indices = indices.flatten().nonzero().flatten()
    if indices.ndim != 1:
        raise ShapeError(
            "A[rows]: indices count the flattened data and have one dimension, got "
            f"{tuple(indices.shape)}"
        )
    if len(indices) == 0:
        raise OptionError("A[rows]: expected at least one row, got none")
    outside = indices[(indices < -num_rows) | (indices >= num_rows)]
    if len(outside):
        raise OptionError(
            f"A[rows]: the data have {num_rows} entries, index {int(outside[0])} is out of range"
        )
    indices = indices % num_rows
    repeated = (indices.bincount() > 1).nonzero()
    if len(repeated):
        raise OptionError(f"A[rows]: every row can be taken once, {int(repeated[0])} came twice")
    return indices


def _as_tensor(rows: Rows, num_rows: int) -> Tensor:
    """Any of the allowed kinds as a tensor of int64 or bool."""
    expected = "expected an index, a list, slice or integer tensor of indices, or a boolean mask"
    if isinstance(rows, tuple):
        raise DtypeError(f"A[rows]: {expected}, got a tuple; rows count the flattened data")
    try:
        if isinstance(rows, slice):
            rows = range(num_rows)[rows]
        indices = torch.as_tensor(list(rows) if isinstance(rows, range) else rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"A[rows]: {expected}, got {rows!r}") from error
    if indices.numel() == 0 and not isinstance(rows, Tensor):
        return indices.to(torch.int64)
    if indices.is_floating_point() or indices.is_complex():
        raise DtypeError(f"A[rows]: {expected}, got {indices.dtype}")
    if indices.dtype == torch.bool:
        return indices
    return (indices.unsqueeze(0) if indices.ndim == 0 else indices).to(torch.int64)
