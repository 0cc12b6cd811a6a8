"""Orders of measurement that take no notice of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Ranking, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.chance import uniform
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.types import check_count, check_positive

# Coordinates of candidates, one or several each.
Positions = Tensor | Sequence[float] | Sequence[Sequence[float]]


class _Ordered(Acquisition):
    """The first in an order that is available and affordable."""

    task = "either"

    def sequence(self, num_candidates: int) -> Sequence[int]:
        """Candidates from the first to the last; those that are missing are never chosen."""
        raise NotImplementedError

    def may_choose(self, num_candidates: int) -> Tensor:
        """Those that the order lists."""
        listed = torch.zeros(num_candidates, dtype=torch.bool)
        listed[list(self.sequence(num_candidates))] = True
        return listed

    def begin(self, belief: Belief) -> Scorer:
        """How many come later in the order."""
        num = belief.num_candidates
        order = torch.as_tensor(self.sequence(num), device=belief.data.device)
        scores = belief.data.new_full((num,), -float("inf"))
        later = torch.arange(len(order) - 1, -1, -1, device=order.device)
        scores[order] = later.to(scores)
        return Ranking(scores)


@dataclass(frozen=True)
class FixedOrder(_Ordered):
    """A given order, such as one learned beforehand by `pca_order` or `lbcs_order`.

    Parameters
    ----------
    order
        Distinct numbers of candidates; those that are missing are never chosen.

    Examples
    --------
    >>> FixedOrder([3, 1, 2])
    FixedOrder(3 candidates: 3, 1, 2)
    """

    name = "fixed"
    reference = "an order given by the user"

    order: Sequence[int] | Tensor

    def __post_init__(self) -> None:
        try:
            numbers = [_as_number(index) for index in self.order]
        except TypeError as error:
            raise DtypeError(
                f"order: expected numbers of candidates, got {self.order!r}"
            ) from error
        if not numbers or any(number < 0 or number % 1 != 0 for number in numbers):
            raise OptionError("order: expected integers from 0, at least one")
        if len(set(numbers)) < len(numbers):
            raise OptionError("order: expected each candidate once at most")
        object.__setattr__(self, "order", tuple(int(number) for number in numbers))

    def sequence(self, num_candidates: int) -> Sequence[int]:
        """The order given."""
        order = [int(index) for index in self.order]
        if max(order) >= num_candidates:
            raise OptionError(
                f"order: there are {num_candidates} candidates, but it lists {max(order)}"
            )
        return order

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.order[:6])) + (", ..." if len(self.order) > 6 else "")
        return f"FixedOrder({len(self.order)} candidates: {shown})"


def _as_number(value: Any) -> float:
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Equispaced(_Ordered):
    """Candidates at equal distances, all that were measured so far taken together.

    Candidates are taken to be equally spaced themselves, on a circle (angles of a half or full
    turn) or a line.

    Parameters
    ----------
    total
        Number of measurements after which they are exactly equispaced, to within the rounding to
        candidates; further ones go between. None for as nearly as can be at every number: the
        binary fractions 0, 1/2, 1/4, 3/4, 1/8, ... of the candidates, whose gaps differ by a factor
        of two at most.

    References
    ----------
    van der Corput (1935), *Verteilungsfunktionen*, for the binary fractions.

    Examples
    --------
    >>> Equispaced().sequence(8)
    [0, 4, 2, 6, 1, 5, 3, 7]
    >>> Equispaced(total=3).sequence(9)[:3]
    [0, 3, 6]
    """

    name = "equispaced"
    reference = "van der Corput (1935), Verteilungsfunktionen"

    total: int | None = None

    def __post_init__(self) -> None:
        if self.total is not None:
            check_count("total", self.total)

    def sequence(self, num_candidates: int) -> Sequence[int]:
        """Equispaced first, then by binary fractions."""
        rest = _binary_fractions(num_candidates)
        if self.total is None:
            return rest
        if self.total > num_candidates:
            raise OptionError(f"total: got {self.total}, but there are {num_candidates} candidates")
        steps = _binary_fractions(self.total)
        return list(dict.fromkeys([i * num_candidates // self.total for i in steps] + rest))


def _binary_fractions(num: int) -> list[int]:
    """All of 0, ..., num - 1, in the order of the van der Corput sequence."""
    bits = (num - 1).bit_length()
    fractions = (int(f"{i:0{bits}b}"[::-1], 2) if bits else 0 for i in range(2**bits))
    return list(dict.fromkeys(num * fraction >> bits for fraction in fractions))


@dataclass(frozen=True)
class LowFrequency(_Ordered):
    """From the centre outwards: in k-space, the lowest frequencies first.

    Parameters
    ----------
    positions
        Coordinates of the candidates relative to the centre, ``(n,)`` or ``(n, d)``. None for
        candidates in a row, with the centre at number n // 2, where a shifted Fourier transform has
        frequency zero.

    Examples
    --------
    >>> LowFrequency().sequence(6)
    [3, 2, 4, 1, 5, 0]
    """

    name = "low-frequency"
    reference = "the usual order of acquisition in k-space"

    positions: Positions | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", _as_positions(self.positions))

    def sequence(self, num_candidates: int) -> Sequence[int]:
        """By distance from the centre."""
        distances = _distances(self.positions, num_candidates)
        order: list[int] = distances.sort(stable=True).indices.tolist()
        return order


@dataclass(frozen=True)
class VariableDensity(Acquisition):
    """At random, but more densely towards the centre, with a density that falls polynomially.

    The density is (1 - r)^power at the distance r from the centre, in units of a little more than
    the largest, so that no candidate is excluded.

    Parameters
    ----------
    power
        2, between the 1 and 6 that are usual.
    centre
        Number of candidates nearest to the centre that come first.
    positions
        As for `LowFrequency`.

    References
    ----------
    Lustig, Donoho and Pauly (2007), *Sparse MRI*.

    Examples
    --------
    >>> VariableDensity()
    VariableDensity(power=2.0, centre=0)
    """

    name = "variable-density"
    reference = "Lustig, Donoho and Pauly (2007), Sparse MRI"
    task = "either"

    power: float = 2.0
    centre: int = 0
    positions: Positions | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_positive("power", self.power)
        check_count("centre", self.centre, minimum=0)
        object.__setattr__(self, "positions", _as_positions(self.positions))

    def begin(self, belief: Belief) -> Scorer:
        """Logarithm of the density plus Gumbel noise: the largest is a draw from the density."""
        num = belief.num_candidates
        distances = _distances(self.positions, num).to(belief.data.device)
        farthest = distances.max().clamp(min=1e-300) * (num + 1) / num
        density = self.power * (1.0 - distances / farthest).log()
        scores = density - (-uniform(belief, num).clamp(min=1e-300).log()).log()
        first = distances.sort(stable=True).indices[: self.centre]
        scores[first] = scores.max() + torch.arange(len(first), 0, -1).to(scores)
        return Ranking(scores)


def _as_positions(positions: Positions | None) -> tuple[tuple[float, ...], ...] | None:
    """Coordinates as numbers, so that settings can be compared."""
    if positions is None:
        return None
    try:
        values = torch.as_tensor(positions, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"positions: expected coordinates of candidates: {error}") from error
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.numel() == 0:
        raise ShapeError(f"positions: expected shape (n,) or (n, d), got {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise DataError("positions: expected finite coordinates")
    return tuple(tuple(row) for row in values.tolist())


def _distances(positions: Positions | None, num: int) -> Tensor:
    """Of each candidate from the centre, ``(n,)``."""
    if positions is None:
        return (torch.arange(num, dtype=torch.float64) - num // 2).abs()
    if len(positions) != num:
        raise ShapeError(f"positions: got those of {len(positions)} candidates, there are {num}")
    return torch.as_tensor(positions, dtype=torch.float64).norm(dim=1)
