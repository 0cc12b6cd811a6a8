"""Orders that take no notice of data: spacings, distances, densities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.design.fixed import (
    Equispaced,
    FixedOrder,
    LowFrequency,
    VariableDensity,
    _binary_fractions,
)
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError

# ----------------------------------------------------------------------------------- equispaced


def gaps(chosen: list[int], n: int) -> list[int]:
    """Distances between neighbours on a circle of n."""
    places = sorted(chosen)
    return [(b - a) % n or n for a, b in zip(places, [*places[1:], places[0] + n], strict=True)]


def is_nearly_equispaced(order: list[int], n: int) -> bool:
    """Gaps differ by a factor of two at most, but for rounding, however many are taken."""
    every = (gaps(order[:num], n) for num in range(1, n + 1))
    return all(max(g) <= 2 * (min(g) + 1) for g in every)


@pytest.mark.parametrize("n", [1, 2, 7, 40, 64, 181, 200])
def test_every_beginning_is_nearly_equispaced(n: int) -> None:
    order = list(Equispaced().sequence(n))
    assert sorted(order) == list(range(n))
    assert is_nearly_equispaced(order, n)
    if n > 7:
        assert not is_nearly_equispaced(list(range(n)), n)
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
        assert not is_nearly_equispaced(shuffled, n)


@pytest.mark.parametrize(("n", "total"), [(200, 40), (200, 7), (181, 20), (5, 5), (9, 1)])
def test_a_total_is_equispaced(n: int, total: int) -> None:
    order = list(Equispaced(total=total).sequence(n))
    assert sorted(order) == list(range(n))
    spacings = gaps(order[:total], n)
    assert max(spacings) - min(spacings) <= 1
    if n % total == 0:
        assert set(spacings) == {n // total}


def test_binary_fractions_are_van_der_corput() -> None:
    assert _binary_fractions(1) == [0]
    assert _binary_fractions(16)[:8] == [0, 8, 4, 12, 2, 10, 6, 14]
    expected = [math.floor(n * 10 / 8) for n in (0, 4, 2, 6, 1, 5, 3, 7)]
    assert _binary_fractions(10)[:8] == expected


def test_equispaced_skips_what_is_not_available(problem: Any) -> None:
    available = torch.ones(8, dtype=torch.bool)
    available[[0, 2]] = False
    assert Equispaced().choose(problem(n=8).but(available=available), 4).indices == [4, 6, 1, 5]


def test_costs_only_exclude(problem: Any) -> None:
    costs = torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0])
    belief = problem(n=8).but(costs_from=lambda last: costs)
    assert Equispaced().choose(belief, 3).indices == [0, 4, 2]
    assert Equispaced().choose(belief, 3, 5.0).indices == [0, 2, 6]


# -------------------------------------------------------------------------------------- centre


def test_from_the_centre_outwards() -> None:
    assert LowFrequency().sequence(5) == [2, 1, 3, 0, 4]
    assert LowFrequency([-1.0, 0.0, 2.0, 0.5]).sequence(4) == [1, 3, 0, 2]
    grid = torch.cartesian_prod(torch.arange(-1.0, 2.0), torch.arange(-1.0, 2.0))
    order = list(LowFrequency(grid).sequence(9))
    assert order[0] == 4 and set(order[1:5]) == {1, 3, 5, 7}
    assert LowFrequency(grid) == LowFrequency(grid.tolist())


def counts_of(acquisition: Any, belief: Any, repeats: int = 1500) -> torch.Tensor:
    counts = torch.zeros(belief.num_candidates, dtype=torch.float64)
    for _ in range(repeats):
        counts[acquisition.choose(belief).indices[0]] += 1
    return counts


def density_z(power: float, belief: Any, expected_power: float) -> float:
    """Largest deviation of the first choice's counts from a density, in standard errors."""
    n = belief.num_candidates
    r = (torch.arange(n, dtype=torch.float64) - n // 2).abs()
    p = (1 - r / (r.max() * (n + 1) / n)) ** expected_power * belief.available
    p = (p / p.sum())[belief.available]
    counts = counts_of(VariableDensity(power=power), belief)[belief.available]
    total = counts.sum()
    return float(((counts - total * p) / (total * p * (1 - p)).sqrt()).abs().max())


def test_density_falls_as_it_says(problem: Any) -> None:
    available = torch.ones(9, dtype=torch.bool)
    available[[4, 6]] = False
    belief = problem(n=9).but(available=available)
    # A false alarm has a probability of 1e-6 for seven counts.
    assert density_z(2.0, belief, 2.0) < 5.3
    assert density_z(2.0, belief, 1.0) > 5.3
    assert density_z(1.0, belief, 2.0) > 5.3


def test_no_candidate_is_excluded_and_the_centre_comes_first(problem: Any) -> None:
    belief = problem(n=9).belief
    for _ in range(20):
        order = VariableDensity(power=6.0, centre=3).choose(belief, 9).indices
        assert order[:3] == [4, 3, 5] and sorted(order) == list(range(9))
    assert VariableDensity(centre=20).choose(belief, 9).indices == LowFrequency().sequence(9)
    single = VariableDensity().choose(problem(n=1).belief).indices
    assert single == [0]


# ---------------------------------------------------------------------------------- given orders


def test_a_given_order(problem: Any) -> None:
    available = torch.tensor([True, True, False, True, True])
    belief = problem(n=5).but(available=available)
    order = FixedOrder(torch.tensor([3, 2, 0]))
    assert order.choose(belief, 5).indices == [3, 0]
    assert order == FixedOrder((3, 2, 0)) and order != FixedOrder((3, 0, 2))
    assert repr(FixedOrder(range(40))) == "FixedOrder(40 candidates: 0, 1, 2, 3, 4, 5, ...)"
    with pytest.raises(OptionError, match="available: none of the candidates that the order lists"):
        FixedOrder([2]).choose(belief)
    with pytest.raises(OptionError, match="order: there are 5 candidates, but it lists 7"):
        FixedOrder([1, 7]).choose(belief)


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ([], OptionError),
        ([1, 1], OptionError),
        ([-1], OptionError),
        ([0.5], OptionError),
        (3, DtypeError),
        (["a"], DtypeError),
        ("012", DtypeError),
        (["0", "1"], DtypeError),
        ([True, False], DtypeError),
        (torch.tensor([True, False]), DtypeError),
        ([float("nan")], OptionError),
        ([float("inf")], OptionError),
    ],
)
def test_bad_orders_are_refused(order: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="order: expected"):
        FixedOrder(order)


def test_orders_may_be_of_any_integers() -> None:
    for order in (np.array([3, 1]), [np.int32(3), 1.0], torch.tensor([3.0, 1.0]), range(3, 0, -2)):
        assert FixedOrder(order) == FixedOrder((3, 1))  # type: ignore[arg-type]


def test_which_are_ever_chosen() -> None:
    assert FixedOrder([3, 1]).may_choose(5).tolist() == [False, True, False, True, False]
    for acquisition in (Equispaced(), LowFrequency(), VariableDensity()):
        assert acquisition.may_choose(5).tolist() == [True] * 5


def test_impossible_settings_are_refused(problem: Any) -> None:
    belief = problem(n=5).belief
    with pytest.raises(OptionError, match="total: got 0"):
        Equispaced(total=0)
    with pytest.raises(OptionError, match="total: got 6, but there are 5"):
        Equispaced(total=6).choose(belief)
    with pytest.raises(OptionError, match="power: got 0.0"):
        VariableDensity(power=0.0)
    with pytest.raises(OptionError, match="centre: got -1"):
        VariableDensity(centre=-1)
    for make in (LowFrequency, VariableDensity):
        with pytest.raises(ShapeError, match="positions: got those of 2 candidates, there are 5"):
            make(positions=[0.0, 1.0]).choose(belief)
        with pytest.raises(ShapeError, match=r"positions: expected shape .*got \(\)"):
            make(positions=torch.tensor(1.0))
        with pytest.raises(DataError, match="positions: expected finite"):
            make(positions=[0.0, float("nan")])
        with pytest.raises(DtypeError, match="positions: expected coordinates"):
            make(positions=["left", "right"])
