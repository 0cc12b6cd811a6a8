"""Operators given by a dense matrix; compressed sensing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators.base import Operator
from bayesgen.operators.inputs import as_constant, as_shape, expect_size, require_finite

# Up to this many rows or columns the singular values are computed, beyond it iterated.
_SMALL = 1024


class Matrix(Operator):
    """``A(x) = matrix @ x.flatten()``, reshaped to ``range_shape``.

    Parameters
    ----------
    matrix
        ``(rows, columns)``, real floating-point; a tensor or an array. It is copied.
    domain_shape
        Shape of the image, of ``columns`` entries; default ``(columns,)``.
    range_shape
        Shape of the data, of ``rows`` entries; default ``(rows,)``.

    Raises
    ------
    ShapeError
        If it is not a matrix, or the shapes do not fit its rows and columns.
    DtypeError
        If it is not real floating-point.
    DataError
        If an entry is not finite.

    Examples
    --------
    >>> A = Matrix(torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> A(torch.tensor([1.0, 1.0])), A.adjoint(torch.ones(3)), A[1:].range_shape
    (tensor([3., 1., 1.]), tensor([2., 3.]), (2,))
    """

    matrix: Tensor

    def __init__(
        self,
        matrix: Any,
        domain_shape: Sequence[int] | None = None,
        range_shape: Sequence[int] | None = None,
    ) -> None:
        matrix = as_constant("matrix", matrix)
        if matrix.ndim != 2 or matrix.numel() == 0:
            raise ShapeError(f"matrix: expected (rows, columns), got shape {tuple(matrix.shape)}")
        if not matrix.is_floating_point():
            raise DtypeError(
                f"matrix: expected real floating-point, got {matrix.dtype}; use .float()"
            )
        require_finite("matrix", matrix)
        rows, columns = matrix.shape
        super().__init__(domain_shape or (columns,), range_shape or (rows,))
        expect_size("domain_shape", self.domain_shape, columns, "columns")
        expect_size("range_shape", self.range_shape, rows, "rows")
        self.register_buffer("matrix", matrix.clone(memory_format=torch.contiguous_format))

    def _forward(self, x: Tensor) -> Tensor:
        y = x.flatten(-len(self.domain_shape)) @ self.matrix.T
        return y.reshape(y.shape[:-1] + self.range_shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        x = y.flatten(-len(self.range_shape)) @ self.matrix
        return x.reshape(x.shape[:-1] + self.domain_shape)

    def _norm(self) -> float:
        if min(self.matrix.shape) > _SMALL:
            return super()._norm()
        return float(torch.linalg.matrix_norm(self.matrix.double(), ord=2))

    def _select(self, indices: Tensor) -> Operator:
        rows = self.matrix[indices.flatten().to(self.matrix.device)]
        return Matrix(rows, self.domain_shape, tuple(indices.shape))


class GaussianMatrix(Matrix):
    """Compressed sensing: a matrix of independent normal entries.

    Parameters
    ----------
    domain_shape
        Shape of the image.
    rows
        Number of measurements.
    seed
        Seed of the entries. They are drawn in double precision and then rounded, so that both
        dtypes hold the same matrix.
    dtype
        Of the matrix, and so of the images it takes.
    std
        Standard deviation of the entries; default ``rows ** -0.5``, with which the expected
        squared norm of the data is that of the image.

    Raises
    ------
    OptionError
        If ``rows`` is not a positive integer or ``std`` not positive.

    References
    ----------
    Candès and Tao (2006), Near-optimal signal recovery from random projections.

    Examples
    --------
    >>> A = GaussianMatrix((28, 28), rows=150, seed=0)
    >>> A(torch.zeros(2, 28, 28)).shape, round(A.normalised().norm(), 6)
    (torch.Size([2, 150]), 1.0)
    """

    def __init__(
        self,
        domain_shape: Sequence[int],
        rows: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        std: float | None = None,
    ) -> None:
        if not isinstance(rows, int) or rows < 1:
            raise OptionError(f"rows: expected a positive integer, got {rows!r}")
        if not dtype.is_floating_point:
            raise DtypeError(f"dtype: expected a real floating-point one, got {dtype}")
        std = rows**-0.5 if std is None else std
        if not (math.isfinite(std) and std > 0):
            raise OptionError(f"std: expected a positive number, got {std}")
        columns = math.prod(as_shape("domain_shape", domain_shape))
        rng = torch.Generator().manual_seed(seed)
        entries = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
        super().__init__((std * entries).to(dtype), domain_shape)
