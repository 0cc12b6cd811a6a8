"""Operators that compute in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.errors import DataError
from bayesgen.operators.external import External


def test_results_of_the_wrong_shape_are_noticed() -> None:
    A = External("theirs", (3,), (2,), lambda x: x, lambda y: y, torch.float64)
    with pytest.raises(DataError, match=r"the library returned shape \(1, 3\), not \(1, 2\)"):
        A(torch.ones(3))


def test_the_library_cannot_change_our_tensors() -> None:
    def greedy(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x *= 2
        return x

    A, x = External("theirs", (3,), (3,), greedy, greedy, torch.float64), torch.ones(3).double()
    y = A(x)
    assert x.tolist() == [1.0, 1.0, 1.0]
    A(x + 1)
    assert y.tolist() == [2.0, 2.0, 2.0]
