from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators.rows import as_indices

SHAPE = (2, 3)
MASK = [[True, False, False], [False, True, True]]


@pytest.mark.parametrize(
    ("rows", "indices"),
    [
        (4, [4]),
        (-1, [5]),
        (np.int64(2), [2]),
        ([3, 0], [3, 0]),
        (range(1, 6, 2), [1, 3, 5]),
        (slice(None), [0, 1, 2, 3, 4, 5]),
        (slice(4, 1, -2), [4, 2]),
        (torch.tensor([5, -6]), [5, 0]),
        (torch.tensor(3), [3]),
        (torch.tensor([1, 2], dtype=torch.uint8), [1, 2]),
        (np.array([2, 1]), [2, 1]),
        (torch.tensor(MASK), [0, 4, 5]),
        (np.array(MASK), [0, 4, 5]),
        ([True, False, False, False, True, True], [0, 4, 5]),
    ],
)
def test_all_ways_to_name_rows(rows: Any, indices: list[int]) -> None:
    found = as_indices(rows, SHAPE)
    assert found.dtype == torch.int64
    assert found.tolist() == indices


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], OptionError, "at least one row, got none"),
        (slice(3, 3), OptionError, "at least one row, got none"),
        (torch.zeros(2, 3, dtype=torch.bool), OptionError, "at least one row, got none"),
        (torch.zeros(0, dtype=torch.int64), OptionError, "at least one row, got none"),
        (6, OptionError, "6 entries, index 6 is out of range"),
        ([0, -7], OptionError, "6 entries, index -7 is out of range"),
        ([1, 2, 1], OptionError, "every row can be taken once, 1 came twice"),
        ([5, -1], OptionError, "every row can be taken once, 5 came twice"),
        ([[0, 1]], ShapeError, r"one dimension, got \(1, 2\)"),
        ([True, False], ShapeError, r"mask must have the shape \(2, 3\) of the data, got \(2,\)"),
        (True, ShapeError, r"mask must have the shape \(2, 3\) of the data, got \(\)"),
        (torch.ones(3, 2) > 0, ShapeError, r"mask must have .* got \(3, 2\)"),
        ((0, 1), DtypeError, "got a tuple; rows count the flattened data"),
        ([0.5], DtypeError, "integer tensor of indices, or a boolean mask, got torch.float"),
        ("all", DtypeError, "got 'all'"),
        (None, DtypeError, "got None"),
        (slice(0.5), DtypeError, "got slice"),
    ],
)
def test_what_is_refused(rows: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_indices(rows, SHAPE)
