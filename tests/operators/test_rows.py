from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators.rows import as_indices

SHAPE = (2, 3)
MASK = [[True, False, False], [False, True, True]]


@pytest.mark.parametrize(
    ("index", "indices"),
    [
        (1, [3, 4, 5]),
        (-2, [0, 1, 2]),
        (np.int64(1), [3, 4, 5]),
        (torch.tensor(1), [3, 4, 5]),
        ([1, 0], [[3, 4, 5], [0, 1, 2]]),
        ([-1], [[3, 4, 5]]),
        (range(1, 2), [[3, 4, 5]]),
        (slice(None), [[0, 1, 2], [3, 4, 5]]),
        (slice(None, None, -1), [[3, 4, 5], [0, 1, 2]]),
        (torch.tensor([1]), [[3, 4, 5]]),
        (torch.tensor([1], dtype=torch.uint8), [[3, 4, 5]]),
        (np.array([1, 0]), [[3, 4, 5], [0, 1, 2]]),
        ([False, True], [[3, 4, 5]]),
        (torch.tensor(MASK), [0, 4, 5]),
        (np.array(MASK), [0, 4, 5]),
        (MASK, [0, 4, 5]),
        ((0, 2), [2]),
        ((slice(None), [2, 0]), [[2, 0], [5, 3]]),
        ((slice(None), [True, False, True]), [[0, 2], [3, 5]]),
        ((1, slice(0, 2)), [3, 4]),
    ],
)
def test_all_ways_to_index(index: Any, indices: list[Any]) -> None:
    found = as_indices(index, SHAPE)
    assert found.dtype == torch.int64
    assert found.tolist() == indices


@given(st.data(), hnp.array_shapes(max_dims=4, max_side=5))
def test_basic_indexing_is_that_of_numpy(data: st.DataObject, shape: tuple[int, ...]) -> None:
    index = data.draw(hnp.basic_indices(shape, allow_ellipsis=False, allow_newaxis=False))
    expected = np.arange(np.prod(shape)).reshape(shape)[index]
    if expected.size == 0:
        with pytest.raises(OptionError, match="got none"):
            as_indices(index, shape)
    else:
        assert as_indices(index, shape).tolist() == np.atleast_1d(expected).tolist()


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([], OptionError, "at least one entry of the data, got none"),
        (slice(2, 2), OptionError, "at least one entry of the data, got none"),
        (torch.zeros(2, 3, dtype=torch.bool), OptionError, "at least one entry"),
        (torch.zeros(0, dtype=torch.int64), OptionError, "at least one entry"),
        (2, OptionError, "axis 0 of the data has 2 entries, index 2 is out of range"),
        ([0, -3], OptionError, "axis 0 of the data has 2 entries, index -3 is out of range"),
        ((0, 3), OptionError, "axis 1 of the data has 3 entries, index 3 is out of range"),
        ([1, 0, 1], OptionError, r"nothing can be taken twice, but entry \(1, 0\)"),
        ([1, -1], OptionError, r"nothing can be taken twice, but entry \(1, 0\)"),
        ([[0, 1]], ShapeError, r"one dimension of indices, got \(1, 2\)"),
        ([True, False, True], ShapeError, r"mask must have the shape \(2, 3\) .* got \(3,\)"),
        (True, ShapeError, r"mask must have the shape .* got \(\)"),
        (torch.ones(3, 2) > 0, ShapeError, r"mask must have .* got \(3, 2\)"),
        ((0, 0, 0), ShapeError, "the data have 2 axes, got indices for 3"),
        ((torch.tensor(MASK), 0), ShapeError, "the data have 2 axes, got indices for 3"),
        (([0, 1], [0, 1]), DtypeError, "one axis at most can be given a list"),
        ([0.5], DtypeError, "tensor of integers, or a boolean mask, got .0.5."),
        (torch.tensor([0.5]), DtypeError, "tensor of integers, or a boolean mask"),
        ("all", DtypeError, "got 'all'"),
        (None, DtypeError, "got None"),
        (..., DtypeError, "got Ellipsis"),
        ([[0], [0, 1]], DtypeError, "expected an integer"),
        (slice(0.5), DtypeError, "slice indices must be integers"),
        (slice(None, None, 0), DtypeError, "slice step cannot be zero"),
    ],
)
def test_what_is_refused(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_indices(index, SHAPE)
