"""Data of an image that deviates, integrated out without any decomposition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesgen.distributions.covariance import Covariance, Isotropic
from bayesgen.distributions.deviation import check_covariance
from bayesgen.distributions.integrated import Integrated, require_linear
from bayesgen.errors import OptionError
from bayesgen.operators import Operator
from bayesgen.types import check_positive

# Products with A and its adjoint that one evaluation may take.
MOST_STEPS = 300


class IteratedDeviation(Integrated):
    r"""Data of an image that deviates from a given one by a Gaussian image, of any size.

    .. math:: y \sim N(A x_0,\; \sigma^2 I + s^2 A C A^T)

    as `IntegratedDeviation`, but :math:`S^{-1} (y - A x_0)`, S the covariance, is found by
    Chebyshev's iteration, which needs products with A, its adjoint and C only. Unlike conjugate
    gradients it is linear in the data, so that it can be recorded, mapped and differentiated; the
    largest eigenvalue, :math:`\sigma^2 + s^2 |A C A^T|`, and the least are known. Its steps, about
    :math:`s |A C A^T|^{1/2} / \sigma` times eight in single precision, follow from the accuracy.

    Parameters
    ----------
    image
        :math:`x_0`, ``(*batch, *domain_shape)``.
    A
        A linear forward operator.
    std, scale
        :math:`\sigma` and s; numbers, for steps and the constant of the density depend on them.
    covariance
        C; the identity by default.
    norm
        :math:`|A C A^T|`, where it is known.
    validate_args
        As for all distributions.

    Raises
    ------
    OptionError
        If the operator is not linear, sigma or s is no positive number, or more than 300 steps
        were needed.
    ShapeError, DtypeError
        If image or covariance do not fit the operator, or a value not the data.

    Notes
    -----
    The density lacks its constant, the determinant of S: there is no cheap way to it.

    References
    ----------
    Saad (2003), Iterative methods for sparse linear systems, algorithm 12.1.

    Examples
    --------
    >>> from bayesgen.operators import Identity
    >>> law = IteratedDeviation(torch.zeros(2, 2), Identity((2, 2)), std=0.6, scale=0.8)
    >>> law.log_prob(torch.ones(2, 2)) - law.log_prob(torch.zeros(2, 2))
    tensor(-2.)
    """

    is_normalised = False

    def __init__(
        self,
        image: Tensor,
        A: Operator,
        std: float,
        scale: float,
        *,
        covariance: Covariance | None = None,
        norm: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        require_linear(A)
        check_positive("std", std)
        check_positive("scale", scale)
        check_positive("norm", norm, allow_none=True)
        if covariance is not None:
            check_covariance(covariance, A)
        self.covariance = covariance
        shape = torch.Size(A.domain_shape) if covariance is None else covariance.noise_shape
        super().__init__(image, A, std, scale, shape, validate_args)
        self._norm = data_norm(A, covariance) if norm is None else norm
        self._levels = float(std) ** 2, float(scale) ** 2
        self.least, self.largest = std**2, std**2 + scale**2 * self._norm
        self.num_steps = _steps(self.largest / self.least, torch.finfo(image.dtype).eps)
        if self.num_steps > MOST_STEPS:
            raise OptionError(
                f"scale: {scale:g} is so much larger than the noise, {std:g}, that {self.num_steps}"
                f" steps an evaluation were needed (at most {MOST_STEPS}); keep the deviation as a "
                "site (integrated=False)"
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> IteratedDeviation:
        image = self.image.expand(*torch.Size(batch_shape), *self.A.domain_shape)
        std, scale = (math.sqrt(square) for square in self._levels)
        return IteratedDeviation(
            image,
            self.A,
            std,
            scale,
            covariance=self.covariance,
            norm=self._norm,
            validate_args=False,
        )

    def coloured(self, noise: Tensor) -> Tensor:
        return noise if self.covariance is None else self.covariance.factor(noise)

    def explained(self, residual: Tensor) -> Tensor:
        return self._levels[1] * self._correlated(self.A.adjoint(self._solved(residual)))

    def deviation_log_prob(self, deviation: Tensor) -> Tensor:
        raise NotImplementedError("IteratedDeviation: densities lack their constant")

    def _chi_square(self, value: Tensor) -> Tensor:
        difference = value - self.mean
        solved = self._solved(difference)
        # The error is of second order in that of the solution.
        dims = tuple(range(-len(self.event_shape), 0))
        return 2 * (difference * solved).sum(dims) - (solved * self._covered(solved)).sum(dims)

    def _solved(self, difference: Tensor) -> Tensor:
        """The inverse of the covariance applied to data."""
        centre, radius = 0.5 * (self.largest + self.least), 0.5 * (self.largest - self.least)
        residual, direction = difference, difference / centre
        solved, ratio = torch.zeros_like(difference), radius / centre
        for _ in range(self.num_steps):
            solved = solved + direction
            residual = residual - self._covered(direction)
            following = 1 / (2 * centre / radius - ratio)
            direction = following * ratio * direction + 2 * following / radius * residual
            ratio = following
        return solved

    def _covered(self, data: Tensor) -> Tensor:
        """The covariance applied to data."""
        noise, square = self._levels
        return noise * data + square * self.A(self._correlated(self.A.adjoint(data)))

    def _correlated(self, images: Tensor) -> Tensor:
        """C applied to images."""
        return images if self.covariance is None else self.covariance(images)


def data_norm(A: Operator, covariance: Covariance | None = None) -> float:
    """Return the largest eigenvalue of A C A^T."""
    if covariance is None or isinstance(covariance, Isotropic):
        return A.norm() ** 2 * (1.0 if covariance is None else covariance.norm())
    return (A @ covariance @ A.T).norm()


def _steps(condition: float, accuracy: float) -> int:
    """Steps after which Chebyshev's iteration has come so near, from its bound."""
    root = math.sqrt(condition)
    if root - 1 < 1e-9:
        return 1
    return math.ceil(math.log(2 / accuracy) / math.log((root + 1) / (root - 1)))
