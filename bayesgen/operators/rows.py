"""What stands between the brackets of ``A[index]``, as checked indices into the flat data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError

Axis = int | slice | Sequence[int] | Tensor
Index = Axis | tuple[Axis, ...]


def as_indices(index: Index, shape: tuple[int, ...]) -> Tensor:
    """Where in the flattened data each entry of ``data[index]`` comes from.

    Parameters
    ----------
    index
        For the first axis: an integer, a list, slice or tensor of integers (negative ones count
        from the end) or of booleans. Or a boolean mask in the shape of the data, or a tuple with
        something for each of several axes, of which one at most is a list, tensor or mask.
    shape
        Of the data.

    Returns
    -------
    Tensor
        Distinct flat indices, int64, in the shape that NumPy gives the selected data; a single
        entry has the shape ``(1,)``.

    Raises
    ------
    DtypeError
        If ``index`` is of another kind.
    ShapeError
        If a mask does not fit the data, or there are more entries in the tuple than axes.
    OptionError
        If nothing is selected, or an index is out of range or given twice.

    Examples
    --------
    >>> as_indices([1, -2], (2, 3)), as_indices((slice(None), 2), (2, 3))
    (tensor([[3, 4, 5],
            [0, 1, 2]]), tensor([2, 5]))
    """
    parts = index if isinstance(index, tuple) else (index,)
    axes: list[Any] = []
    axis = 0
    for part in parts:
        axes.append(_as_axis(part, shape, axis))
        axis += max(getattr(axes[-1], "ndim", 1), 1) if _is_mask(axes[-1]) else 1
    if axis > len(shape):
        raise ShapeError(f"A[index]: the data have {len(shape)} axes, got indices for {axis}")
    if sum(isinstance(part, np.ndarray) for part in axes) > 1:
        raise DtypeError("A[index]: one axis at most can be given a list, tensor or mask")
    chosen = np.arange(math.prod(shape)).reshape(shape)[tuple(axes)]
    if chosen.size == 0:
        raise OptionError("A[index]: expected at least one entry of the data, got none")
    indices = torch.from_numpy(np.array(chosen, dtype=np.int64, ndmin=1))
    repeated = (indices.flatten().bincount() > 1).nonzero()
    if len(repeated):
        where = tuple(int(i) for i in np.unravel_index(int(repeated[0, 0]), shape))
        raise OptionError(
            f"A[index]: nothing can be taken twice, but entry {where} of the data came twice"
        )
    return indices


def _is_mask(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.dtype == bool


def _as_axis(part: Axis, shape: tuple[int, ...], axis: int) -> slice | int | np.ndarray[Any, Any]:
    """One of the allowed kinds, checked against the axis it is for (a mask: and those after)."""
    if isinstance(part, slice):
        _expect_integers(part)
        return part
    values = _as_array(part)
    if values.dtype == bool:
        if values.ndim == 0 or values.shape != shape[axis : axis + values.ndim]:
            raise ShapeError(
                f"A[index]: a mask must have the shape {shape} of the data or of its first axes, "
                f"got {values.shape}"
            )
        return values
    if values.ndim > 1:
        raise ShapeError(f"A[index]: expected one dimension of indices, got {values.shape}")
    size = shape[axis] if axis < len(shape) else 0
    outside = values[(values < -size) | (values >= size)]
    if outside.size and size:
        raise OptionError(
            f"A[index]: axis {axis} of the data has {size} entries, index {outside[0]} is out of "
            "range"
        )
    return int(values) if values.ndim == 0 else values


def _expect_integers(part: slice) -> None:
    try:
        part.indices(1)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"A[index]: {error}, got {part!r}") from error


def _as_array(part: Any) -> np.ndarray[Any, Any]:
    expected = "expected an integer, a list, slice or tensor of integers, or a boolean mask"
    if isinstance(part, Tensor):
        part = part.detach().cpu().numpy()
    elif not isinstance(part, int | Sequence | np.ndarray | np.integer) or isinstance(part, str):
        raise DtypeError(f"A[index]: {expected}, got {part!r}")
    try:
        values = np.asarray(part)
    except ValueError as error:
        raise DtypeError(f"A[index]: {expected}, got {part!r}") from error
    if values.size == 0 and values.dtype != bool:
        return values.astype(np.int64)
    if values.dtype != bool and not np.issubdtype(values.dtype, np.integer):
        raise DtypeError(f"A[index]: {expected}, got {part!r}")
    return values if values.dtype == bool else values.astype(np.int64)
