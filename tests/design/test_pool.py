"""Pools: which data belong to which candidate, in which order, and at what cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.design import Pool, simulate
from bayesgen.errors import BayesgenError, DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators.mri import cartesian_mask

float64 = torch.float64
POOLS = {
    "rows": lambda: Pool(bg.operators.GaussianMatrix((8, 8), rows=10, seed=0)),
    "angles": lambda: Pool(bg.operators.Radon((8, 8), angles=6)),
    "lines": lambda: Pool(bg.operators.Fourier((8, 8), cartesian_mask(8, acceleration=2))),
    "entries": lambda: Pool.entries(bg.operators.Radon((8, 8), angles=3)),
    "pixels": lambda: Pool.pixels((8, 8)),
    "channels": lambda: Pool.pixels((3, 4, 4)),
    "blocks": lambda: Pool.blocks((8, 8), (2, 4)),
}


def image(pool: Pool) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(pool.operator.domain_shape, generator=rng)


@pytest.mark.parametrize("name", POOLS)
def test_the_operator_of_some_measures_what_they_measure(name: str) -> None:
    """In whatever order they were measured."""
    pool = POOLS[name]()
    x = image(pool)
    for chosen in ([0], [pool.num_candidates - 1, 0, 1]):
        values = pool.data(x)[chosen]
        assert values.shape == (len(chosen), pool.num_numbers)
        operator = pool.at(chosen)
        expected = operator(x)
        assert pool.arrange(values, chosen).shape == operator.range_shape == expected.shape
        torch.testing.assert_close(pool.arrange(values, chosen), expected)


@pytest.mark.parametrize("name", POOLS)
def test_the_order_of_measuring_matters_to_nobody_but_the_mutant(name: str) -> None:
    pool = POOLS[name]()
    x = image(pool)
    chosen = [pool.num_candidates - 1, 0]
    unsorted = pool.data(x)[chosen].flatten()
    assert not torch.allclose(unsorted, pool.at(chosen)(x).flatten())


@pytest.mark.parametrize("name", POOLS)
def test_every_number_belongs_to_one_candidate(name: str) -> None:
    pool = POOLS[name]()
    assert len(pool.members.unique()) == pool.members.numel()
    batch = torch.stack([image(pool), 2 * image(pool)])
    data = pool.data(batch)
    assert data.shape == (2, pool.num_candidates, pool.num_numbers)
    torch.testing.assert_close(data[1], 2 * data[0])


@pytest.mark.parametrize("name", POOLS)
def test_simulated_measurements(name: str) -> None:
    pool = POOLS[name]()
    x = image(pool)
    clean, noisy = simulate(pool, x), simulate(pool, x, noise=0.1, seed=1)
    assert clean([1, 0]).shape == (2, *pool.value_shape)
    torch.testing.assert_close(clean([1, 0]).reshape(2, -1), pool.data(x)[[1, 0]])
    # The noise belongs to the candidate, not to the order.
    assert torch.equal(noisy([1, 0]), noisy([0, 1]).flip(0))
    assert not torch.equal(noisy([1]), clean([1]))


def test_blocks_tile_the_image() -> None:
    pool = Pool.blocks((4, 6), (2, 3))
    x = torch.arange(24.0).reshape(4, 6)
    assert pool.data(x)[1].tolist() == [3, 4, 5, 9, 10, 11]
    assert pool.value_shape == (6,)


def test_costs_and_movement() -> None:
    pool = Pool.pixels((1, 3), costs=[1.0, 2.0, 3.0], movement=lambda i, j: abs(i - j))
    assert pool.costs_from(None).tolist() == [1, 2, 3]
    assert pool.costs_from(2).tolist() == [3, 3, 3]
    distances = torch.tensor([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]])
    other = Pool.pixels((1, 3), costs=[1.0, 2.0, 3.0], movement=distances)
    assert torch.equal(other.costs_from(1), pool.costs_from(1))


def test_costs_and_movement_may_be_lists_and_arrays() -> None:
    distances = [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    flipped = np.array(distances)[::-1, ::-1]  # negative strides
    kinds: list[Any] = [distances, torch.tensor(distances), flipped, np.array(distances, np.int64)]
    kinds += [lambda i, j: torch.tensor(abs(i - j)), lambda i, j: np.float32(abs(i - j))]
    for movement in kinds:
        pool = Pool.pixels((1, 3), costs=np.array([1.0, 2.0, 3.0]), movement=movement)
        assert pool.costs_from(2).tolist() == [3, 3, 3]
        assert pool.costs_from(1).dtype == torch.float64


def test_what_a_pool_is_given_may_change_later() -> None:
    costs, movement = torch.ones(3, dtype=float64), torch.ones(3, 3, dtype=float64)
    members = torch.tensor([[0], [1], [2]])
    cases: list[tuple[Any, Any, Any]] = [(costs, movement, members)]
    cases += [(costs.clone().numpy(), movement.clone().numpy(), members.clone().numpy())]
    for given in cases:
        A = bg.operators.Identity((3,))
        pool = Pool(A, members=given[2], costs=given[0], movement=given[1])
        for part in given:
            part[:] = -5
        assert pool.costs_from(None).tolist() == [1, 1, 1]
        assert pool.costs_from(0).tolist() == [2, 2, 2]
        assert pool.members.tolist() == [[0], [1], [2]]


A = bg.operators.Identity((2, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Pool(lambda x: x), DtypeError, "operator: got function"),
        (lambda: Pool.pixels((2, 3), costs=0.0), OptionError, "costs: expected positive"),
        (lambda: Pool.pixels((2, 3), costs=-1.0), OptionError, "positive numbers, got -1"),
        (lambda: Pool.pixels((2, 3), costs=[1.0, 2.0]), ShapeError, "each of 6 candidates"),
        (lambda: Pool.pixels((2, 3), costs=float("nan")), OptionError, "costs"),
        (lambda: Pool.pixels((2, 3), costs="1"), OptionError, "costs: expected numbers; got <U1"),
        (lambda: Pool(A, costs=[1.0, [2.0]]), OptionError, "costs: expected numbers"),
        (lambda: Pool(A, costs=[1.0, "b"]), OptionError, "costs: expected numbers"),
        (lambda: Pool(A, costs=None), OptionError, "costs: expected numbers; got object"),
        (lambda: Pool(A, costs=1j * torch.ones(2)), OptionError, "costs: .*complex64"),
        (lambda: Pool(A, movement="near"), OptionError, "movement: expected numbers"),
        (lambda: Pool(A, movement=[[1.0], [1.0, 2.0]]), OptionError, "movement: expected numbers"),
        (lambda: Pool(A, movement=lambda i, j: torch.ones(2)), OptionError, "movement: .*return"),
        (lambda: Pool(A, movement=lambda i, j: "1"), OptionError, "to return a number, got '1'"),
        (lambda: Pool(A, movement=lambda i, j: None), OptionError, "to return a number, got None"),
        (lambda: Pool(A, movement=[1.0, 2.0]), ShapeError, r"costs, got shape \(2,\)"),
        (lambda: Pool(A, members=[[0], [1, 2]]), ShapeError, "members: expected integers, as many"),
        (lambda: Pool(A, members=[["a"]]), ShapeError, "members: expected integers"),
        (lambda: Pool(A, members=torch.tensor([[0j]])), DtypeError, "members: expected integers"),
        (lambda: Pool(A, movement=torch.zeros(3, 3)), ShapeError, r"\(2, 2\) costs"),
        (lambda: Pool(A, movement=-torch.ones(2, 2)), DataError, "no negative costs"),
        (lambda: Pool(A, members=torch.tensor([[0], [0]])), OptionError, r"candidates \[0, 1\]"),
        (lambda: Pool(A, members=torch.tensor([[0], [6]])), OptionError, "out of range"),
        (lambda: Pool(A, members=torch.tensor([0, 1])), ShapeError, "members"),
        (lambda: Pool(A, members=torch.zeros(0, 1).long()), ShapeError, "members"),
        (lambda: Pool(A, members=torch.tensor([[0.0]])), DtypeError, "expected integers"),
        (lambda: Pool.blocks((5, 4), 2), OptionError, "do not tile"),
        (lambda: Pool.blocks((3, 4, 4), 2), OptionError, "do not tile"),
        (lambda: Pool(A).at([]), OptionError, "distinct numbers from 0 to 1"),
        (lambda: Pool(A).at([0, 0]), OptionError, "distinct numbers"),
        (lambda: Pool(A).at([2]), OptionError, "distinct numbers"),
        (lambda: Pool(A).at([0.7]), OptionError, "distinct numbers"),
        (lambda: simulate(Pool(A), torch.zeros(2, 3), noise=-1.0), OptionError, "noise"),
        (lambda: simulate(Pool(A), torch.full((2, 3), float("nan"))), DataError, "truth"),
        (lambda: simulate(Pool(A), torch.zeros(4, 2, 3)), ShapeError, r"truth: .*got \(4, 2, 3\)"),
        (lambda: simulate(Pool(A), torch.zeros(3, 2)), ShapeError, r"truth: expected shape \(2, 3"),
        (lambda: simulate(Pool(A), [[0.0]]), DtypeError, "truth: expected a tensor, got list"),
        (lambda: simulate(Pool(A), torch.zeros(2, 3))([-1]), OptionError, r"candidates: got \[-1"),
        (lambda: simulate(Pool(A), torch.zeros(2, 3))([0, 2]), OptionError, "from 0 to 1"),
        (
            lambda: simulate(Pool(A), torch.zeros(2, 3))([0.5]),
            OptionError,
            r"candidates: got \[0.5",
        ),
        (lambda: simulate(Pool(A), torch.zeros(2, 3))(1), OptionError, "candidates: got 1"),
    ],
)
def test_bad_pools(make: Any, error: type[BayesgenError], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
