"""Operators given by a sparse matrix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen._linear_map import LinearMap
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators.base import Operator
from bayesgen.operators.inputs import expect_size, require_finite
from bayesgen.operators.opaque import Opaque

# So many images stay in the processor's cache while the matrix streams past them.
_BLOCK = 32


class SparseMatrix(Opaque):
    """``A(x) = matrix @ x.flatten()`` with a sparse matrix, reshaped to ``range_shape``.

    Products take time and memory in proportion to the entries that are not zero. The transpose is
    stored too, once an adjoint or a gradient is asked for: products with it are then as fast.

    Parameters
    ----------
    matrix
        ``(rows, columns)``, real floating-point: any SciPy sparse matrix or array, or a sparse
        torch tensor. It is copied.
    domain_shape
        Shape of the image, of ``columns`` entries; default ``(columns,)``.
    range_shape
        Shape of the data, of ``rows`` entries; default ``(rows,)``.

    Raises
    ------
    ShapeError
        If it is not a matrix, or the shapes do not fit its rows and columns.
    DtypeError
        If it is not sparse, or not real floating-point.
    DataError
        If an entry is not finite.
    OptionError
        If it has 2**31 entries or more that are not zero.

    Examples
    --------
    >>> import scipy.sparse
    >>> A = SparseMatrix(scipy.sparse.diags_array([1.0, 2.0, 3.0]), (3, 1), (1, 3))
    >>> A(torch.ones(3, 1, dtype=torch.float64))
    tensor([[1., 2., 3.]], dtype=torch.float64)
    """

    values: Tensor
    columns: Tensor
    row_starts: Tensor

    def __init__(
        self,
        matrix: Any,
        domain_shape: Sequence[int] | None = None,
        range_shape: Sequence[int] | None = None,
    ) -> None:
        row_starts, columns, values, (num_rows, num_columns) = _compressed_rows(matrix)
        require_finite("matrix", values)
        super().__init__(domain_shape or (num_columns,), range_shape or (num_rows,))
        expect_size("domain_shape", self.domain_shape, num_columns, "columns")
        expect_size("range_shape", self.range_shape, num_rows, "rows")
        self.register_buffer("row_starts", row_starts)
        self.register_buffer("columns", columns)
        self.register_buffer("values", values)
        self._product: _SparseProduct | None = None

    def _select(self, indices: Tensor) -> Operator:
        rows = self.to_scipy()[indices.flatten().cpu().numpy()]
        selected = SparseMatrix(rows, self.domain_shape, tuple(indices.shape))
        return selected.to(self.values.device)

    def to_scipy(self) -> Any:
        """The matrix as a ``scipy.sparse.csr_array``, sharing memory with the operator."""
        import scipy.sparse

        parts = (self.values, self.columns, self.row_starts)
        shape = (math.prod(self.range_shape), math.prod(self.domain_shape))
        return scipy.sparse.csr_array(tuple(part.cpu().numpy() for part in parts), shape=shape)

    @property
    def num_bytes(self) -> int:
        """Memory of the matrix and, as products with the adjoint need it, its transpose."""
        parts = (self.values, self.columns, self.row_starts)
        return 2 * sum(part.numel() * part.element_size() for part in parts)

    def __getstate__(self) -> dict[str, Any]:
        """Copies build their own product: it is made of nothing but the buffers."""
        return {**self.__dict__, "_product": None}

    def _map(self) -> _SparseProduct:
        if self._product is None or not self._product.is_of(self.values):
            self._product = _SparseProduct(self)
        return self._product


class _SparseProduct(LinearMap):
    """The products of a `SparseMatrix`, as its buffers are now."""

    def __init__(self, operator: SparseMatrix) -> None:
        super().__init__(math.prod(operator.domain_shape), math.prod(operator.range_shape))
        self.parts = (operator.row_starts, operator.columns, operator.values)
        self.version = _version(operator.values)

    def is_of(self, values: Tensor) -> bool:
        """Whether the operator still has the values that this product was made of."""
        return values is self.parts[2] and _version(values) == self.version

    # Made on first use, which is inside the opaque operation: torch cannot record or vmap what
    # makes a sparse tensor.

    @cached_property
    def matrix(self) -> Tensor:
        return _sparse_csr(*self.parts, (self.range_size, self.domain_size))

    @cached_property
    def transpose(self) -> Tensor:
        return _transposed(self.matrix)

    def forward(self, x: Tensor) -> Tensor:
        self._require_unchanged()
        return _product(self.matrix, x)

    def adjoint(self, y: Tensor) -> Tensor:
        self._require_unchanged()
        return _product(self.transpose, y)

    def _require_unchanged(self) -> None:
        """Products belong to gradients and recorded graphs, which a change would make wrong."""
        if _version(self.parts[2]) != self.version:
            raise RuntimeError(
                "the values of a sparse matrix were changed in place after they were used in a "
                "computation that is now being differentiated or repeated"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Sparse tensors can be neither copied nor pickled; they are made again."""
        return {k: v for k, v in self.__dict__.items() if k not in ("matrix", "transpose")}


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    if len(x) == 1:
        return (matrix @ x[0])[None]
    y = x.new_empty(len(x), matrix.shape[0])
    for images, data in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
        data.copy_((matrix @ images.T).T)
    return y


def _version(values: Tensor) -> int:
    return 0 if values.is_inference() else values._version


def _transposed(matrix: Tensor) -> Tensor:
    """In SciPy, whose conversion takes linear time."""
    import scipy.sparse

    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    rows = scipy.sparse.csr_array(tuple(part.cpu().numpy() for part in parts), shape=matrix.shape)
    columns = rows.tocsc()
    starts, indices, values = (
        torch.from_numpy(part).to(matrix.device)
        for part in (columns.indptr, columns.indices, columns.data)
    )
    return _sparse_csr(starts, indices, values, (matrix.shape[1], matrix.shape[0]))


def _sparse_csr(
    row_starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]
) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(
            row_starts, columns, values, shape, check_invariants=False, requires_grad=False
        )


def _compressed_rows(matrix: Any) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Row starts, columns, values and shape, with sorted columns and nothing stored twice."""
    import scipy.sparse

    if isinstance(matrix, Tensor):
        matrix = _to_scipy(matrix)
    if not scipy.sparse.issparse(matrix):
        raise DtypeError(
            f"matrix: expected a SciPy sparse matrix or a sparse tensor, got "
            f"{type(matrix).__name__}; Matrix takes dense ones"
        )
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ShapeError(f"matrix: expected (rows, columns), got shape {matrix.shape}")
    if matrix.dtype not in (np.float32, np.float64):
        raise DtypeError(f"matrix: expected float32 or float64, got {matrix.dtype}")
    if matrix.nnz >= 2**31:
        raise OptionError(f"matrix: {matrix.nnz} entries are more than 32-bit indices can count")
    rows = matrix.tocsr(copy=True)
    rows.sum_duplicates()
    parts = (rows.indptr.astype(np.int32), rows.indices.astype(np.int32), rows.data)
    starts, columns, values = (torch.from_numpy(part) for part in parts)
    return starts, columns, values, matrix.shape


def _to_scipy(matrix: Tensor) -> Any:
    import scipy.sparse

    if matrix.layout == torch.strided:
        return matrix
    entries = matrix.detach().cpu().to_sparse_coo().coalesce()
    return scipy.sparse.coo_array(
        (entries.values().numpy(), tuple(entries.indices().numpy())), shape=tuple(matrix.shape)
    )
