"""Operators from and for SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from bayesgen.errors import DtypeError, OptionError
from bayesgen.operators.base import Operator
from bayesgen.operators.external import Array, External
from bayesgen.operators.inputs import as_shape, expect_size
from bayesgen.operators.sparse import SparseMatrix


def from_scipy(
    matrix: Any,
    domain_shape: Sequence[int] | None = None,
    range_shape: Sequence[int] | None = None,
) -> Operator:
    """An operator from a SciPy sparse matrix or ``scipy.sparse.linalg.LinearOperator``.

    Parameters
    ----------
    matrix
        ``(rows, columns)``. A sparse matrix is copied and becomes a `SparseMatrix`; a linear
        operator stays as it is and is called with blocks of vectors.
    domain_shape
        Shape of the image, of ``columns`` entries; default ``(columns,)``.
    range_shape
        Shape of the data, of ``rows`` entries; default ``(rows,)``.

    Raises
    ------
    DtypeError
        If it is neither, or complex.
    ShapeError
        If the shapes do not fit its rows and columns.

    Examples
    --------
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> A = from_scipy(aslinearoperator(np.array([[1.0, 2.0], [0.0, 3.0]])), (2, 1))
    >>> A.adjoint(torch.tensor([1.0, 1.0]))
    tensor([[1.],
            [5.]])
    """
    import scipy.sparse
    from scipy.sparse.linalg import LinearOperator

    if scipy.sparse.issparse(matrix):
        return SparseMatrix(matrix, domain_shape, range_shape)
    if not isinstance(matrix, LinearOperator):
        raise DtypeError(
            "matrix: expected a SciPy sparse matrix or LinearOperator, got "
            f"{type(matrix).__name__}; Matrix takes dense ones"
        )
    dtype = np.dtype(matrix.dtype if matrix.dtype is not None else np.float64)
    if np.issubdtype(dtype, np.complexfloating):
        raise DtypeError(f"matrix: expected a real operator, got {dtype}")
    rows, columns = matrix.shape
    domain = as_shape("domain_shape", (columns,) if domain_shape is None else domain_shape)
    data = as_shape("range_shape", (rows,) if range_shape is None else range_shape)
    expect_size("domain_shape", domain, columns, "columns")
    expect_size("range_shape", data, rows, "rows")
    return External(
        f"from_scipy({type(matrix).__name__})",
        domain,
        data,
        partial(_product, matrix),
        partial(_adjoint_product, matrix),
        torch.float32 if dtype == np.float32 else torch.float64,
    )


def _product(matrix: Any, x: Array) -> Array:
    y: Array = matrix.matmat(x.T).T
    return y


def _adjoint_product(matrix: Any, y: Array) -> Array:
    try:
        x: Array = matrix.rmatmat(y.T).T
    except (NotImplementedError, TypeError) as error:
        raise OptionError(
            f"{type(matrix).__name__}: has no adjoint; give the LinearOperator its rmatvec="
        ) from error
    return x


def to_scipy(operator: Operator) -> Any:
    """A linear operator as a ``scipy.sparse.linalg.LinearOperator`` on flat vectors.

    Parameters
    ----------
    operator
        Any linear operator. It computes in its own dtype (double precision if it has none) and on
        its own device.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator
        Of shape ``(prod(range_shape), prod(domain_shape))``; blocks of vectors are one batch.

    Raises
    ------
    DtypeError
        If it is no operator.
    OptionError
        If it is not linear.

    Examples
    --------
    >>> from scipy.sparse.linalg import lsqr
    >>> from bayesgen.operators import Blur
    >>> A = Blur((4, 4), torch.tensor([[1.0, 2.0, 1.0]]) / 4)
    >>> solution = lsqr(to_scipy(A), np.ones(16))[0]
    >>> bool(np.allclose(to_scipy(A) @ solution, 1.0, atol=1e-4))
    True
    """
    from scipy.sparse.linalg import LinearOperator

    if not isinstance(operator, Operator):
        raise DtypeError(f"operator: expected an Operator, got {type(operator).__name__}")
    operator._require_linear("to_scipy")
    like = operator._example()

    def blocks(function: Any, shape: tuple[int, ...]) -> Any:
        def block(columns: Array) -> Array:
            if np.iscomplexobj(columns):
                raise DtypeError(f"{operator}: expected real vectors, got {columns.dtype}")
            batch = torch.as_tensor(np.ascontiguousarray(columns.T)).to(like)
            with torch.no_grad():
                result = function(batch.reshape(len(batch), *shape))
            return np.asarray(result.flatten(1).T.cpu().numpy())

        return block

    forward = blocks(operator, operator.domain_shape)
    adjoint = blocks(operator.adjoint, operator.range_shape)
    return LinearOperator(
        (math.prod(operator.range_shape), math.prod(operator.domain_shape)),
        matvec=lambda x: forward(x.reshape(-1, 1))[:, 0],
        rmatvec=lambda y: adjoint(y.reshape(-1, 1))[:, 0],
        matmat=forward,
        rmatmat=adjoint,
        dtype=like.numpy(force=True).dtype,
    )
