"""What could be measured: parts of the data of one operator, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import Identity, Operator
from bayesgen.operators.inputs import as_shape, require_finite

Movement = Tensor | Callable[[int, int], float]


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
        What going from one candidate to another costs on top: a tensor ``(n, n)``, from row to
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
        members: Tensor | None = None,
        costs: float | Sequence[float] | Tensor = 1.0,
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
        costs: float | Sequence[float] | Tensor = 1.0,
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
        costs: float | Sequence[float] | Tensor = 1.0,
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
        costs: float | Sequence[float] | Tensor = 1.0,
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
        chosen = [int(c) for c in candidates]
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


def _as_members(members: Tensor, operator: Operator) -> Tensor:
    members = torch.as_tensor(members)
    if members.is_floating_point() or members.dtype == torch.bool:
        raise DtypeError(f"members: expected integers, got {members.dtype}")
    if members.ndim != 2 or members.numel() == 0:
        raise ShapeError(
            "members: expected positions in the flattened data, (candidates, numbers of each), got "
            f"shape {tuple(members.shape)}"
        )
    size, members = math.prod(operator.range_shape), members.cpu().long()
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


def _as_costs(costs: float | Sequence[float] | Tensor, count: int) -> Tensor:
    values = torch.as_tensor(costs, dtype=torch.float64).cpu()
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
        movement = torch.tensor([[movement(i, j) for j in range(count)] for i in range(count)])
    if not isinstance(movement, Tensor) or movement.shape != (count, count):
        what = tuple(movement.shape) if isinstance(movement, Tensor) else type(movement).__name__
        raise ShapeError(f"movement: expected ({count}, {count}) costs, got {what}")
    require_finite("movement", movement)
    if bool((movement < 0).any()):
        raise DataError(f"movement: expected no negative costs, got {float(movement.min()):g}")
    return movement.double().cpu()
