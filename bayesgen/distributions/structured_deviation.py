"""Data of an image whose deviation has a covariance of its own, integrated out."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayesgen.distributions.base import Parameter
from bayesgen.distributions.integrated import Integrated, flattened, lifted, require_linear
from bayesgen.distributions.sparse_cholesky import solve
from bayesgen.distributions.structured import StructuredNormal
from bayesgen.errors import OptionError, ShapeError
from bayesgen.operators import Operator

# Data for which solves and a Cholesky factor in every evaluation are worth while.
MOST_DATA = 500


class StructuredDeviation(Integrated):
    r"""Data of an image that deviates from a given one with the covariance of a `StructuredNormal`.

    .. math:: y \sim N(A x_0,\; S), \qquad S = \sigma^2 I + s^2 A \Sigma A^T
        = \sigma^2 I + s^2 W^T W, \qquad W = L^{-1} A^T

    with :math:`\Sigma^{-1} = L L^T`, which depends on the latent vector: an evaluation takes a
    triangular solve for each of the m data, and a Cholesky factor of S.

    Parameters
    ----------
    image
        :math:`x_0`, ``(*batch, *domain_shape)``.
    deviation_law
        N(0, Sigma), of the batch's shape.
    A
        A linear forward operator.
    rows
        Its rows as images, from `operator_rows`, which the law of every batch has in common.
    std, scale
        :math:`\sigma` and s, numbers or tensors that broadcast against the batch.
    validate_args
        As for all distributions.

    Raises
    ------
    OptionError
        If the operator is not linear.
    ShapeError, DtypeError
        If image or law do not fit the operator, or a value not the data.

    References
    ----------
    Duff, Simpson, Ehrhardt and Campbell (2023), VAEs with structured image covariance applied to
    compressed sensing MRI, whose deviation it integrates out.

    Examples
    --------
    >>> from bayesgen.operators import Identity
    >>> A, zero = Identity((2, 2)), torch.zeros(2, 2)
    >>> unit = StructuredNormal(zero, 0.0)
    >>> rows = operator_rows(A, zero)
    >>> law = StructuredDeviation(zero, unit, A, rows, std=0.6, scale=0.8)
    >>> law.log_prob(torch.ones(2, 2)) - law.log_prob(zero)
    tensor(-2.)
    """

    def __init__(
        self,
        image: Tensor,
        deviation_law: StructuredNormal,
        A: Operator,
        rows: Tensor,
        std: Parameter,
        scale: Parameter,
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.Size(A.domain_shape)
        if deviation_law.event_shape != shape:
            raise ShapeError(
                f"deviation_law: is of images {tuple(deviation_law.event_shape)}; A takes images "
                f"{tuple(shape)}"
            )
        super().__init__(image, A, std, scale, shape, validate_args)
        self.deviation_law, self.rows = deviation_law, rows

    def expand(self, batch_shape: Any, _instance: Any = None) -> StructuredDeviation:
        batch = torch.Size(batch_shape)
        image = self.image.expand(batch + self.noise_shape)
        law = self.deviation_law
        return StructuredDeviation(
            image, law, self.A, self.rows, self.std, self.scale, validate_args=False
        )

    @property
    def variance(self) -> Tensor:
        total = self._factor.square().sum(-1).reshape(self._batch + self.event_shape)
        return total.expand(self.batch_shape + self.event_shape)

    def coloured(self, noise: Tensor) -> Tensor:
        return self.deviation_law.colour(noise)

    def explained(self, residual: Tensor) -> Tensor:
        flat = flattened(residual, len(self.event_shape)).unsqueeze(-1)
        solved = torch.cholesky_solve(flat, self._factor).reshape(residual.shape)
        images = self.deviation_law.covariance_matmul(self.A.adjoint(solved))
        return lifted(self.scale.square(), len(self.noise_shape)) * images

    def deviation_log_prob(self, deviation: Tensor) -> Tensor:
        units = deviation / lifted(self.scale, len(self.noise_shape))
        return self.deviation_law.log_prob(units) - self.noise_shape.numel() * self.scale.log()

    def _chi_square(self, value: Tensor) -> Tensor:
        residual = flattened(value - self.mean, len(self.event_shape)).unsqueeze(-1)
        white = torch.linalg.solve_triangular(self._factor, residual, upper=False).squeeze(-1)
        return white.square().sum(-1)

    def _log_det(self) -> Tensor:
        return 2 * self._factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @property
    def _batch(self) -> torch.Size:
        """Of what S depends on."""
        law, levels = self.deviation_law.batch_shape, (self.std.shape, self.scale.shape)
        return torch.broadcast_shapes(law, *levels)

    @cached_property
    def _factor(self) -> Tensor:
        """Cholesky factor of S, ``(*batch, m, m)``."""
        dims, batch = len(self.noise_shape), self.deviation_law.batch_shape
        rows = self.rows.reshape(-1, *[1] * len(batch), *self.noise_shape)
        factor = self.deviation_law.base_dist.factor
        half = flattened(solve(factor, rows), dims).movedim(0, -1)
        half = half.expand(*batch, *half.shape[-2:])
        eye = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
        square = lifted(self.std.square(), 2) * eye + lifted(self.scale.square(), 2) * (
            half.mT @ half
        )
        # Where rounding or overflow left no covariance, its logarithm is none either.
        return torch.linalg.cholesky_ex(square).L


@torch.no_grad()
def operator_rows(A: Operator, like: Tensor) -> Tensor:
    """Rows of a linear operator as images, ``(m, *domain_shape)``.

    Raises
    ------
    OptionError
        If the operator is not linear, or has more than 500 rows.
    """
    require_linear(A)
    count = math.prod(A.range_shape)
    if count > MOST_DATA:
        raise OptionError(
            f"A: yields {count} numbers, and every evaluation would solve for each (at most "
            f"{MOST_DATA}); take a covariance that does not depend on z, or keep the deviation as "
            "a site (integrated=False)"
        )
    units = torch.eye(count, dtype=like.dtype, device=like.device)
    return A.adjoint(units.reshape(-1, *A.range_shape))
