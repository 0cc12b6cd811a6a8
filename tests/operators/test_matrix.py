from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import GaussianMatrix, Matrix, matrix


def test_matrix_is_a_copy() -> None:
    entries = np.ones((2, 3), dtype=np.float32)
    A = Matrix(entries)
    entries[:] = 7.0
    assert torch.equal(A.matrix, torch.ones(2, 3))


def test_matrix_in_any_memory_order() -> None:
    entries = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(Matrix(entries.T.contiguous().T)(torch.ones(3)), entries.sum(1))


def test_large_matrices_are_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    A = GaussianMatrix((12, 9), rows=30, dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(A.matrix, 2))
    assert A.norm() == pytest.approx(exact, rel=1e-14)
    monkeypatch.setattr(matrix, "_SMALL", 10)
    twin = GaussianMatrix((12, 9), rows=30, dtype=torch.float64)
    assert twin.norm() == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3),), ShapeError, r"expected \(rows, columns\), got shape \(3,\)"),
        ((torch.ones(0, 3),), ShapeError, r"got shape \(0, 3\)"),
        ((torch.ones(2, 3, dtype=torch.int64),), DtypeError, r"got torch.int64; use .float\(\)"),
        ((torch.ones(2, 3) * 1j,), DtypeError, "real floating-point, got torch.complex64"),
        ((torch.tensor([[1.0, torch.nan]]),), DataError, "an entry is NaN or infinite"),
        ((torch.tensor([[1.0, torch.inf]]),), DataError, "an entry is NaN or infinite"),
        (
            (torch.ones(2, 6), (2, 2)),
            ShapeError,
            r"domain_shape: \(2, 2\) has 4 entries, but the matrix has 6 columns",
        ),
        (
            (torch.ones(2, 6), (2, 3), (3,)),
            ShapeError,
            r"range_shape: \(3,\) has 3 entries, but the matrix has 2 rows",
        ),
    ],
)
def test_bad_matrices(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Matrix(*arguments)


def test_zero_matrix_cannot_be_normalised() -> None:
    A = Matrix(torch.zeros(2, 3))
    assert A.norm() == 0.0
    with pytest.raises(DataError, match="Matrix: cannot be normalised"):
        A.normalised()


def test_gaussian_matrix_is_the_same_in_both_dtypes() -> None:
    double = GaussianMatrix((5, 4), rows=7, seed=3, dtype=torch.float64)
    single = GaussianMatrix((5, 4), rows=7, seed=3)
    assert single.matrix.dtype == torch.float32
    assert torch.equal(double.matrix.float(), single.matrix)
    assert not torch.equal(GaussianMatrix((5, 4), rows=7, seed=4).matrix, single.matrix)


def test_gaussian_matrix_has_the_stated_entries() -> None:
    """40 000 standardised entries: mean and variance within five standard errors (6e-7 each)."""
    for std in (None, 2.0):
        A = GaussianMatrix((20, 20), rows=100, dtype=torch.float64, std=std)
        entries = A.matrix / (0.1 if std is None else std)
        assert abs(float(entries.mean())) < 5 / 200
        assert abs(float(entries.var()) - 1) < 5 * 2**0.5 / 200
    # A variance of 1 / columns, the usual mistake, is far outside.
    assert abs(400 / 100 - 1) > 5 * 2**0.5 / 200


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": 0}, OptionError, "rows: expected a positive integer, got 0"),
        ({"rows": 2.5}, OptionError, "rows: expected a positive integer, got 2.5"),
        ({"rows": 2, "std": 0.0}, OptionError, "std: expected a positive number, got 0.0"),
        ({"rows": 2, "std": torch.nan}, OptionError, "std: expected a positive number, got nan"),
        ({"rows": 2, "dtype": torch.int64}, DtypeError, "dtype: expected a real floating-point"),
        ({"rows": 2, "domain_shape": (0, 2)}, OptionError, "domain_shape: expected a tuple of"),
    ],
)
def test_bad_gaussian_matrices(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GaussianMatrix(**{"domain_shape": (2, 2), **options})
