"""What could be measured: parts of the data of one operator, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import Identity, Operator
from bayesgen.operators.inputs import as_shape, require_finite

Costs = float | Sequence[float] | Tensor | NDArray[Any]
Movement = Tensor | NDArray[Any] | Sequence[Sequence[float]] | Callable[[int, int], float]


class Pool:
    """Candidate measurements: disjoint parts of the data of one operator.

    By default a candidate is an entry of the first axis of the data, which is a row of a matrix, an
    angle of a `Radon` transform, a line of a `Fourier` transform. Other parts are chosen by
    `entries`, `pixels` and `blocks`, or given as ``members``. No candidate is measured twice.

    Parameters
    ----------
    operator
        Forward operator of the measurement of all candidates.
    members
        Where each candidate's numbers are in the flattened data: distinct integers ``(n, q)``, the
        same number q for all of the n candidates.
    costs
        What measuring a candidate costs: one positive number for all (1 by default, so that a
        budget counts measurements), or one each.
    movement
        What going from one candidate to another costs on top: numbers ``(n, n)``, from row to
        column, or a function of two candidates; not negative. Nothing by default. The first
        measurement has nowhere to come from.

    Raises
    ------
    DtypeError, ShapeError, OptionError, DataError
        If members overlap or are not in the data, costs are not positive, or anything is of the
        wrong kind or shape.

    Examples
    --------
    >>> import bayesgen as bg
    >>> angles = bg.design.Pool(bg.operators.Radon((28, 28), angles=60))
    >>> angles
    Pool(60 candidates of 41 numbers, from Radon)
    >>> angles.at([30, 4]).range_shape
    (2, 41)
    >>> bg.design.Pool.pixels((28, 28), costs=0.5)
    Pool(784 candidates of 1 number, from Identity)
    """

    def __init__(
        self,
        operator: Operator,
        *,
        members: Tensor | Sequence[Sequence[int]] | NDArray[Any] | None = None,
        costs: Costs = 1.0,
        movement: Movement | None = None,
    ) -> None:
        if not isinstance(operator, Operator):
            raise DtypeError(
                f"operator: got {type(operator).__name__}; expected one of bayesgen.operators"
            )
        self.operator = operator
        self._along_first = members is None
        self.members = _first_axis(operator) if members is None else _as_members(members, operator)
        self.costs = _as_costs(costs, self.num_candidates)
        self._movement = _as_movement(movement, self.num_candidates)

    # ------------------------------------------------------------------ kinds of pools

    @classmethod
    def entries(
        cls,
        operator: Operator,
        *,
        costs: Costs = 1.0,
        movement: Movement | None = None,
    ) -> Pool:
        """Every number of the data is a candidate, in their order."""
        numbers = torch.arange(math.prod(operator.range_shape))[:, None]
        return cls(operator, members=numbers, costs=costs, movement=movement)

    @classmethod
    def pixels(
        cls,
        image_shape: Sequence[int],
        *,
        costs: Costs = 1.0,
        movement: Movement | None = None,
    ) -> Pool:
        """Every pixel is a candidate, row after row."""
        return cls.entries(Identity(image_shape), costs=costs, movement=movement)

    @classmethod
    def blocks(
        cls,
        image_shape: Sequence[int],
        size: int | tuple[int, int],
        *,
        costs: Costs = 1.0,
        movement: Movement | None = None,
    ) -> Pool:
        """Blocks of ``size`` pixels (a side, or height and width) that tile the image.

        Examples
        --------
        >>> Pool.blocks((28, 28), 7)
        Pool(16 candidates of 49 numbers, from Identity)
        """
        shape = as_shape("image_shape", image_shape)
        sides = as_shape("size", (size, size) if isinstance(size, int) else size)
        if len(shape) != 2 or len(sides) != 2 or shape[0] % sides[0] or shape[1] % sides[1]:
            raise OptionError(
                f"size: blocks of {sides} pixels do not tile an image of {shape}; all candidates "
                "have to be of one size"
            )
        grid = torch.arange(math.prod(shape)).reshape(
            shape[0] // sides[0], sides[0], shape[1] // sides[1], sides[1]
        )
        members = grid.transpose(1, 2).reshape(-1, math.prod(sides))
        return cls(Identity(shape), members=members, costs=costs, movement=movement)

    # ------------------------------------------------------------------ what it holds

    @property
    def num_candidates(self) -> int:
        """Candidates n."""
        return len(self.members)

    @property
    def num_numbers(self) -> int:
        """Numbers q that one measurement gives."""
        return int(self.members.shape[1])

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Shape of one candidate's data: without the first axis, ``()`` or ``(q,)``."""
        if self._along_first:
            return self.operator.range_shape[1:]
        return () if self.num_numbers == 1 else (self.num_numbers,)

    def __repr__(self) -> str:
        numbers = "1 number" if self.num_numbers == 1 else f"{self.num_numbers} numbers"
        name = self.operator._get_name()
        return f"Pool({self.num_candidates} candidates of {numbers}, from {name})"

    def costs_from(self, last: int | None) -> Tensor:
        """Costs of measuring each candidate next, movement from the last one included, ``(n,)``."""
        if last is None or self._movement is None:
            return self.costs
        return self.costs + self._movement[last]

    def cost_of(self, measured: Sequence[int]) -> float:
        """Cost of measuring these candidates in this order, movement included.

        Examples
        --------
        >>> Pool.pixels((4,), movement=lambda i, j: 0.5 * abs(i - j)).cost_of([1, 3, 2])
        4.5
        """
        path = [None, *self._checked(measured)] if len(measured) else []
        return float(sum(float(self.costs_from(i)[j]) for i, j in pairwise(path) if j is not None))

    @property
    def highest_cost(self) -> float:
        """More than measuring all candidates can cost in any order, or as much."""
        farthest = 0.0 if self._movement is None else float(self._movement.max())
        return float(self.costs.sum()) + (self.num_candidates - 1) * farthest

    # ------------------------------------------------------------------ measuring

    def at(self, candidates: Sequence[int]) -> Operator:
        """The operator that measures these candidates only, in ascending order of their data."""
        chosen = self._checked(candidates)
        if self._along_first:
            return self.operator[sorted(chosen)]
        mask = torch.zeros(math.prod(self.operator.range_shape), dtype=torch.bool)
        mask[self.members[chosen].flatten()] = True
        return self.operator[mask.reshape(self.operator.range_shape)]

    def arrange(self, values: Tensor, candidates: Sequence[int]) -> Tensor:
        """Data of the operator ``at(candidates)`` from values ``(k, q)`` in the order given."""
        order = self.members[self._checked(candidates)].flatten().argsort()
        flat = values.flatten()[order.to(values.device)]
        if not self._along_first:
            return flat
        return flat.reshape(len(candidates), *self.value_shape)

    def data(self, images: Tensor) -> Tensor:
        """Noise-free data of every candidate, ``(*batch, *image) -> (*batch, n, q)``."""
        y = self.operator(images)
        batch = y.shape[: y.ndim - len(self.operator.range_shape)]
        return y.reshape(*batch, -1)[..., self.members.to(y.device)]

    def _checked(self, candidates: Sequence[int]) -> list[int]:
        try:
            chosen = [index(c) for c in candidates]
        except TypeError:
            chosen = []
        wrong = [c for c in chosen if not 0 <= c < self.num_candidates]
        if wrong or not chosen or len(set(chosen)) != len(chosen):
            raise OptionError(
                f"candidates: got {candidates!r}; expected distinct numbers from 0 to "
                f"{self.num_candidates - 1}"
            )
        return chosen


def _first_axis(operator: Operator) -> Tensor:
    count = operator.range_shape[0]
    return torch.arange(math.prod(operator.range_shape)).reshape(count, -1)


def _as_members(members: Any, operator: Operator) -> Tensor:
    try:
        # A copy: the caller's may change.
        members = torch.as_tensor(members).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"members: expected integers, as many of each candidate; {error}"
        ) from error
    if members.is_floating_point() or members.is_complex() or members.dtype == torch.bool:
        raise DtypeError(f"members: expected integers, got {members.dtype}")
    if members.ndim != 2 or members.numel() == 0:
        raise ShapeError(
            "members: expected positions in the flattened data, (candidates, numbers of each), got "
            f"shape {tuple(members.shape)}"
        )
    size, members = math.prod(operator.range_shape), members.long()
    if int(members.min()) < 0 or int(members.max()) >= size:
        raise OptionError(f"members: the data have {size} entries; a position is out of range")
    repeated = (members.flatten().bincount() > 1).nonzero()
    if len(repeated):
        owners = (members == repeated[0]).any(1).nonzero().flatten().tolist()
        raise OptionError(
            f"members: entry {int(repeated[0])} of the data belongs to candidates {owners}; "
            "candidates must have no data in common"
        )
    return members


def _as_numbers(name: str, values: Any) -> Tensor:
    """A copy in double precision: the caller's may change."""
    try:
        if not isinstance(values, Tensor):
            values = np.array(values)
            if values.dtype.kind not in "biuf":
                raise TypeError(f"got {values.dtype}")
            values = torch.from_numpy(values.astype(np.float64))
        if values.is_complex():
            raise TypeError(f"got {values.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{name}: expected numbers; {error}") from error
    return values.detach().to("cpu", torch.float64, copy=True)


def _as_costs(costs: Costs, count: int) -> Tensor:
    values = _as_numbers("costs", costs)
    if values.shape not in ((), (count,)):
        raise ShapeError(
            f"costs: expected a number or one for each of {count} candidates, got shape "
            f"{tuple(values.shape)}"
        )
    if not bool(((values > 0) & torch.isfinite(values)).all()):
        raise OptionError(f"costs: expected positive numbers, got {float(values.min()):g}")
    return values.expand(count)


def _as_movement(movement: Movement | None, count: int) -> Tensor | None:
    if movement is None:
        return None
    if callable(movement):
        costs = [[_as_number(movement(i, j)) for j in range(count)] for i in range(count)]
        values = torch.tensor(costs, dtype=torch.float64)
    else:
        values = _as_numbers("movement", movement)
    if values.shape != (count, count):
        raise ShapeError(
            f"movement: expected ({count}, {count}) costs, got shape {tuple(values.shape)}"
        )
    require_finite("movement", values)
    if bool((values < 0).any()):
        raise DataError(f"movement: expected no negative costs, got {float(values.min()):g}")
    return values


def _as_number(value: Any) -> float:
    """What a function of two candidates returned."""
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    if not isinstance(value, Real):
        raise OptionError(f"movement: expected the function to return a number, got {value!r}")
    return float(value)
