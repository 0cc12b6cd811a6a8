"""SciPy's operators here, and ours there."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators import (
    Blur,
    Gradient,
    Identity,
    Nonlinear,
    Radon,
    SparseMatrix,
    check_operator,
    from_scipy,
    to_scipy,
)


def _dense(rng: torch.Generator, rows: int = 6, columns: int = 4) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = torch.randn(rows, columns, generator=rng).double().numpy()
    return array


class TestSciPy:
    def test_linear_operators(self, rng: torch.Generator) -> None:
        dense = _dense(rng)
        A = from_scipy(scipy.sparse.linalg.aslinearoperator(dense), (2, 2), (3, 2))
        for dtype in (torch.float32, torch.float64):
            check_operator(A, dtype=dtype).raise_if_failed()
        x = torch.randn(5, 2, 2, generator=rng).double()
        assert np.allclose(A(x).reshape(5, 6), x.reshape(5, 4).numpy() @ dense.T)

    def test_those_that_know_only_one_vector(self, rng: torch.Generator) -> None:
        dense = _dense(rng)
        theirs = scipy.sparse.linalg.LinearOperator(
            (6, 4), matvec=lambda x: dense @ x, rmatvec=lambda y: dense.T @ y, dtype=np.float64
        )
        check_operator(from_scipy(theirs)).raise_if_failed()

    def test_sparse_matrices_stay_sparse(self, rng: torch.Generator) -> None:
        A = from_scipy(scipy.sparse.random_array((6, 4), density=0.5, rng=0), (2, 2))
        assert isinstance(A, SparseMatrix)
        assert A.domain_shape == (2, 2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_ours_there(self, dtype: torch.dtype, rng: torch.Generator) -> None:
        A = Blur((4, 5), torch.rand(3, 3, generator=rng, dtype=dtype), "reflect")
        theirs = to_scipy(A)
        assert theirs.shape == (20, 20)
        assert theirs.dtype == (np.float32 if dtype == torch.float32 else np.float64)
        x = torch.rand(7, 4, 5, generator=rng, dtype=dtype)
        assert np.allclose(theirs @ x.reshape(7, 20).numpy().T, A(x).reshape(7, 20).numpy().T)
        assert np.allclose(theirs @ x[0].flatten().numpy(), A(x[0]).flatten())
        assert np.allclose(theirs.T @ x[0].flatten().numpy(), A.adjoint(x[0]).flatten())
        assert np.allclose(theirs.rmatmat(x.reshape(7, 20).numpy().T).T, A.adjoint(x).flatten(1))
        again = from_scipy(theirs, (4, 5), (4, 5))
        assert torch.allclose(again(x), A(x), atol=1e-6)

    def test_their_solvers_take_ours(self) -> None:
        A = Radon((8, 7), 20, dtype=torch.float64)
        x = torch.arange(56.0, dtype=torch.float64).reshape(8, 7)
        found = scipy.sparse.linalg.lsqr(
            to_scipy(A), A(x).flatten().numpy(), atol=1e-12, btol=1e-12
        )
        assert np.allclose(found[0].reshape(8, 7), x, atol=1e-6)

    def test_bad_input(self, rng: torch.Generator) -> None:
        linear = scipy.sparse.linalg.aslinearoperator(_dense(rng))
        with pytest.raises(DtypeError, match="or LinearOperator, got ndarray; Matrix takes dense"):
            from_scipy(_dense(rng))
        with pytest.raises(DtypeError, match="expected a real operator, got complex128"):
            from_scipy(scipy.sparse.linalg.aslinearoperator(1j * _dense(rng)))
        with pytest.raises(ShapeError, match=r"domain_shape: \(5,\) has 5 .* 4 columns"):
            from_scipy(linear, (5,))
        with pytest.raises(ShapeError, match=r"range_shape: \(7,\) has 7 .* 6 rows"):
            from_scipy(linear, (4,), (7,))
        with pytest.raises(DtypeError, match="expected an Operator, got MatrixLinearOperator"):
            to_scipy(linear)
        with pytest.raises(OptionError, match="to_scipy: the operator is not linear"):
            to_scipy(Nonlinear(torch.sin, (3,)))
        with pytest.raises(DtypeError, match="expected real vectors, got complex128"):
            to_scipy(Identity((3,))) @ (1j * np.ones(3))
        forward = scipy.sparse.linalg.LinearOperator((3, 3), matvec=lambda x: x, dtype=np.float64)
        assert from_scipy(forward)(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]
        with pytest.raises(
            OptionError, match="has no adjoint; give the LinearOperator its rmatvec"
        ):
            from_scipy(forward).adjoint(torch.ones(3))

    def test_pickling(self, rng: torch.Generator) -> None:
        A = from_scipy(scipy.sparse.linalg.aslinearoperator(_dense(rng)))
        x = torch.randn(4, generator=rng)
        assert torch.equal(pickle.loads(pickle.dumps(A))(x), A(x))


def test_inner_products_agree_everywhere(rng: torch.Generator) -> None:
    """SciPy's own check of an adjoint, on ours."""
    for A in (Radon((6, 5), 4, dtype=torch.float64), Gradient((6, 5))):
        theirs = to_scipy(A)
        x = torch.randn(math.prod(A.domain_shape), generator=rng).double().numpy()
        y = torch.randn(math.prod(A.range_shape), generator=rng).double().numpy()
        assert (theirs @ x) @ y == pytest.approx(x @ (theirs.H @ y), rel=1e-12)
