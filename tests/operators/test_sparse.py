from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, ShapeError
from bayesgen.operators import Matrix, SparseMatrix, check_operator
from bayesgen.recording import record

DENSE = torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.5], [4.0, 0.0, 0.0]])


def _sparse(dtype: Any = np.float32) -> SparseMatrix:
    return SparseMatrix(scipy.sparse.csr_array(DENSE.numpy().astype(dtype)))


@pytest.mark.parametrize(
    "matrix",
    [
        scipy.sparse.csr_array(DENSE.numpy()),
        scipy.sparse.csc_array(DENSE.numpy()),
        scipy.sparse.coo_matrix(DENSE.numpy()),
        scipy.sparse.lil_array(DENSE.numpy()),
        DENSE.to_sparse_coo(),
    ],
)
def test_every_sparse_format(matrix: Any) -> None:
    A = SparseMatrix(matrix)
    assert torch.equal(A(torch.eye(3)).T, DENSE)
    assert torch.equal(A.adjoint(torch.eye(4)), DENSE)
    assert np.array_equal(A.to_scipy().toarray(), DENSE.numpy())


@pytest.mark.filterwarnings("ignore:Sparse C.. tensor support is in beta:UserWarning")
def test_compressed_sparse_tensors() -> None:
    for matrix in (DENSE.to_sparse_csr(), DENSE.to_sparse_csc()):
        assert torch.equal(SparseMatrix(matrix)(torch.eye(3)).T, DENSE)


def test_duplicates_are_summed_and_the_caller_keeps_the_matrix() -> None:
    rows, columns = np.array([0, 0, 1]), np.array([1, 1, 0])
    matrix = scipy.sparse.coo_array((np.array([1.0, 2.0, 5.0]), (rows, columns)), shape=(2, 2))
    A = SparseMatrix(matrix)
    assert A(torch.eye(2, dtype=torch.float64)).T.tolist() == [[0.0, 3.0], [5.0, 0.0]]
    csr = scipy.sparse.csr_array(matrix)
    B = SparseMatrix(csr)
    csr.data[:] = 0.0
    assert B.values.tolist() == [3.0, 5.0]


def test_products_follow_the_values() -> None:
    A, x = _sparse(), torch.ones(3)
    before = A(x)
    A.values.mul_(2)
    assert torch.equal(A(x), 2 * before)
    assert torch.equal(A.adjoint(torch.ones(4)), 2 * DENSE.sum(0))
    A.values = A.values / 2
    assert torch.equal(A(x), before)
    assert A.double()(x.double()).dtype == torch.float64


def test_gradients_and_recorded_graphs_notice_changes() -> None:
    A, x = _sparse(), torch.ones(3, requires_grad=True)
    value = A(x).sum()
    graph = record(lambda x: A(x).sum(), torch.ones(3))
    with torch.no_grad():
        A.values.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after they were used"):
        torch.autograd.grad(value, x)
    with pytest.raises(RuntimeError, match="changed in place after they were used"):
        graph(torch.ones(3))
    assert torch.equal(A(torch.ones(3)), 2 * DENSE.sum(1))


def test_copies_outlive_the_original() -> None:
    A, x = _sparse(), torch.ones(2, 3)
    expected = A(x)
    copies = [copy.deepcopy(A), pickle.loads(pickle.dumps(A)), A.normalised(), A[1:]]
    del A
    gc.collect()
    assert torch.equal(copies[0](x), expected)
    assert torch.equal(copies[1](x), expected)
    assert torch.allclose(copies[2](x), expected / copies[0].norm())
    assert torch.equal(copies[3](x), expected[:, 1:])
    for A in copies:
        check_operator(A).raise_if_failed()


def test_memory_is_stated() -> None:
    # Five values and columns and five row starts of four bytes each, and as much for the transpose.
    assert _sparse().num_bytes == 2 * 4 * (5 + 5 + 5)


def test_empty_rows_matrices_and_batches() -> None:
    A = SparseMatrix(scipy.sparse.csr_array((2, 3), dtype=np.float64))
    assert torch.equal(A(torch.ones(3).double()), torch.zeros(2).double())
    assert A.norm() == 0.0
    with pytest.raises(DataError, match="SparseMatrix: cannot be normalised"):
        A.normalised()
    assert _sparse()(torch.ones(0, 2, 3)).shape == (0, 2, 4)


@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_the_dense_matrix(batch: tuple[int, ...], dtype: Any, rng: torch.Generator) -> None:
    entries = torch.randn(40, 30, generator=rng).double()
    entries[torch.rand(40, 30, generator=rng) < 0.8] = 0.0
    A = SparseMatrix(scipy.sparse.csr_array(entries.numpy().astype(dtype)), (5, 6), (4, 10))
    B = Matrix(entries.to(A.values.dtype), (5, 6), (4, 10))
    x = torch.randn(*batch, 5, 6, generator=rng).to(A.values.dtype)
    assert torch.allclose(A(x), B(x), atol=1e-5 if dtype == np.float32 else 1e-13)
    assert torch.allclose(A.adjoint(B(x)), B.adjoint(B(x)), atol=1e-4)


def _with(value: float) -> Any:
    matrix = scipy.sparse.csr_array(DENSE.numpy())
    matrix.data[1] = value
    return matrix


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((DENSE,), DtypeError, "expected a SciPy sparse matrix or a sparse tensor, got Tensor"),
        ((DENSE.numpy(),), DtypeError, "got ndarray; Matrix takes dense ones"),
        ((_with(np.nan),), DataError, "matrix: an entry is NaN or infinite"),
        ((_with(np.inf),), DataError, "matrix: an entry is NaN or infinite"),
        ((scipy.sparse.eye_array(3, dtype=int),), DtypeError, "float32 or float64, got int64"),
        ((scipy.sparse.eye_array(3, dtype=complex),), DtypeError, "float64, got complex128"),
        ((scipy.sparse.csr_array((0, 3)),), ShapeError, r"\(rows, columns\), got shape \(0, 3\)"),
        ((_with(1.0), (2, 2)), ShapeError, r"domain_shape: \(2, 2\) has 4 .* the matrix has 3 col"),
        ((_with(1.0), (3,), (5,)), ShapeError, r"range_shape: \(5,\) has 5 .* has 4 rows"),
    ],
)
def test_bad_matrices(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SparseMatrix(*arguments)


def test_input_is_checked() -> None:
    def used(x: Tensor) -> Tensor:
        return _sparse()(x)

    with pytest.raises(DtypeError, match="x is torch.float64, the operator torch.float32"):
        used(torch.ones(3).double())
    with pytest.raises(ShapeError, match=r"x must have shape \(\*batch, 3\), got \(4,\)"):
        used(torch.ones(4))
