"""Differences of neighbouring pixels: what total variation is the sum of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError, unknown_option
from bayesgen.operators.base import Operator
from bayesgen.operators.convolution import Boundary
from bayesgen.operators.inputs import as_shape


class Gradient(Operator):
    r"""Forward differences along ``y`` and ``x``, of each channel.

    .. math:: (A x)_{0, i, j} = x_{i + 1, j} - x_{i, j}, \qquad
              (A x)_{1, i, j} = x_{i, j + 1} - x_{i, j}

    in units of intensity per pixel. The range is ``(2, *domain_shape)``.

    Parameters
    ----------
    domain_shape
        ``(y, x)`` or ``(channel, y, x)``.
    boundary
        What lies beyond the last pixel ``d`` of a row ``a b c d |``: ``"zero"`` (``0``; the
        difference there is ``-d``), ``"periodic"`` (``a``), or ``"reflect"`` (``d``; the difference
        there is zero). The default, reflection, makes the edge of the picture cost nothing and
        constant images the null space, as total variation wants it.

    Raises
    ------
    ShapeError
        If the domain is not that of an image.
    OptionError
        If the boundary is unknown.

    References
    ----------
    Chambolle (2004), An algorithm for total variation minimization and applications. Strang
    (1999), The discrete cosine transform, for the eigenvalues behind the norm.

    Examples
    --------
    >>> A = Gradient((2, 3))
    >>> A(torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]))
    tensor([[[ 0., -1., -3.],
             [ 0.,  0.,  0.]],
    <BLANKLINE>
            [[ 1.,  2.,  0.],
             [ 0.,  0.,  0.]]])
    """

    def __init__(self, domain_shape: Sequence[int], boundary: Boundary = "reflect") -> None:
        shape = as_shape("domain_shape", domain_shape)
        if len(shape) not in (2, 3):
            raise ShapeError(f"domain_shape: expected (y, x) or (channel, y, x), got {shape}")
        if boundary not in get_args(Boundary):
            raise OptionError(unknown_option("boundary", boundary, get_args(Boundary)))
        super().__init__(shape, (2, *shape))
        self.boundary = boundary

    def _forward(self, x: Tensor) -> Tensor:
        differences = [self._following(x, dim) - x for dim in (-2, -1)]
        return torch.stack(differences, -1 - len(self.domain_shape))

    def _adjoint(self, y: Tensor) -> Tensor:
        along_y, along_x = y.unbind(-1 - len(self.domain_shape))
        return self._difference_adjoint(along_y, -2) + self._difference_adjoint(along_x, -1)

    def _norm(self) -> float:
        # Differences along the axes commute: the largest eigenvalues of A* A along each of them
        # belong to one image and add up.
        return math.sqrt(sum(self._largest_eigenvalue(n) for n in self.domain_shape[-2:]))

    def _following(self, x: Tensor, dim: int) -> Tensor:
        """The next pixel of each."""
        if self.boundary == "periodic":
            return x.roll(-1, dim)
        last = x.narrow(dim, x.shape[dim] - 1, 1)
        beyond = torch.zeros_like(last) if self.boundary == "zero" else last
        return torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), beyond], dim)

    def _difference_adjoint(self, y: Tensor, dim: int) -> Tensor:
        if self.boundary == "periodic":
            return y.roll(1, dim) - y
        rest, last = y.narrow(dim, 0, y.shape[dim] - 1), y.narrow(dim, y.shape[dim] - 1, 1)
        nothing = torch.zeros_like(last)
        before = torch.cat([nothing, rest], dim)
        return before - (y if self.boundary == "zero" else torch.cat([rest, nothing], dim))

    def _largest_eigenvalue(self, n: int) -> float:
        """Of ``A* A`` along an axis of ``n`` pixels: that of its fastest oscillation."""
        angle = {
            "zero": math.pi * (2 * n - 1) / (4 * n + 2),
            "periodic": math.pi * (n // 2) / n,
            "reflect": math.pi * (n - 1) / (2 * n),
        }[self.boundary]
        return 4 * math.sin(angle) ** 2
