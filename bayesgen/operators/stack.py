"""Several measurements of one image, taken as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators.base import Operator


class Stack(Operator):
    """All that several operators measure of the same image, end to end in one flat vector.

    Parameters
    ----------
    operators
        At least one, with the same ``domain_shape``; their data can have any shapes.

    Raises
    ------
    OptionError
        If there is none.
    DtypeError
        If one is no operator.
    ShapeError
        If their domains differ.

    Examples
    --------
    >>> from bayesgen.operators import Blur, Mask
    >>> blurred, known = Blur((3, 3), torch.ones(2, 2)), Mask(torch.eye(3) > 0)
    >>> A = Stack([blurred, known])
    >>> A(torch.ones(5, 3, 3)).shape
    torch.Size([5, 12])
    >>> [tuple(part.shape) for part in A.split(A(torch.ones(5, 3, 3)))]
    [(5, 3, 3), (5, 3)]
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        operators = list(operators)
        if not operators:
            raise OptionError("operators: expected at least one, got none")
        for operator in operators:
            if not isinstance(operator, Operator):
                raise DtypeError(f"operators: expected operators, got {type(operator).__name__}")
            if operator.domain_shape != operators[0].domain_shape:
                raise ShapeError(
                    f"operators: {operators[0]} takes {operators[0].domain_shape}, but {operator} "
                    f"takes {operator.domain_shape}"
                )
        self._sizes = [math.prod(operator.range_shape) for operator in operators]
        super().__init__(operators[0].domain_shape, (sum(self._sizes),))
        self.linear = all(operator.linear for operator in operators)
        self.operators = torch.nn.ModuleList(operators)

    def split(self, y: Tensor) -> list[Tensor]:
        """Data ``(*batch, size)`` as those of each operator, ``(*batch, *range_shape)``."""
        self._check("y", y, self.range_shape)
        return self._split(y)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Data of each operator as one vector; the inverse of `split`.

        Raises
        ------
        ShapeError
            If there are more or fewer parts than operators, or one has another shape.
        """
        if len(parts) != len(self.operators):
            raise ShapeError(f"parts: expected {len(self.operators)}, got {len(parts)}")
        for operator, part in zip(self._all(), parts, strict=True):
            operator._check("parts", part, operator.range_shape)
        return self._join(list(parts))

    def _forward(self, x: Tensor) -> Tensor:
        return self._join([operator._forward(x) for operator in self._all()])

    def _adjoint(self, y: Tensor) -> Tensor:
        parts = zip(self._all(), self._split(y), strict=True)
        images = [operator._adjoint(part) for operator, part in parts]
        return torch.stack(images).sum(0)

    def _all(self) -> list[Operator]:
        return list(self.operators)  # type: ignore[arg-type]

    def _split(self, y: Tensor) -> list[Tensor]:
        parts = zip(self._all(), y.split(self._sizes, -1), strict=True)
        return [part.reshape(y.shape[:-1] + operator.range_shape) for operator, part in parts]

    def _join(self, parts: list[Tensor]) -> Tensor:
        pairs = zip(self._all(), parts, strict=True)
        return torch.cat([part.flatten(-len(op.range_shape)) for op, part in pairs], -1)
