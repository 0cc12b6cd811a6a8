"""Data of an image that deviates by white noise, integrated out without any decomposition."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesgen.distributions.base import Constraints
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators import Operator
from bayesgen.types import check_positive

# Products with A and its adjoint that one evaluation may take.
MOST_STEPS = 300


class IteratedDeviation(TorchDistribution):
    r"""Data of an image that deviates from a given one by white noise, for images of any size.

    .. math:: y \sim N(A x_0,\; \sigma^2 I + s^2 A A^T)

    as `IntegratedDeviation`, but :math:`S^{-1} (y - A x_0)`, S the covariance, is found by
    Chebyshev's iteration, which needs products with A and its adjoint only. Unlike conjugate
    gradients it is linear in the data, so that it can be recorded, mapped and differentiated; the
    largest eigenvalue, :math:`\sigma^2 + s^2 |A|^2`, and the least are known. Its steps, about
    :math:`s |A| / \sigma` times eight in single precision, follow from the accuracy.

    Parameters
    ----------
    image
        :math:`x_0`, ``(*batch, *domain_shape)``.
    A
        A linear forward operator.
    std, scale
        :math:`\sigma` and s; numbers, for steps and the constant of the density depend on them.
    validate_args
        As for all distributions.

    Raises
    ------
    OptionError
        If the operator is not linear, sigma or s is no positive number, or more than 300 steps
        were needed.
    ShapeError, DtypeError
        If the image does not fit the operator, or a value not the data.

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

    arg_constraints = Constraints()
    has_rsample = True

    def __init__(
        self,
        image: Tensor,
        A: Operator,
        std: float,
        scale: float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not A.linear:
            raise OptionError(
                "A: is not linear, so a deviation cannot be integrated out; keep it as a site "
                "(integrated=False)"
            )
        check_positive("std", std)
        check_positive("scale", scale)
        shape = tuple(A.domain_shape)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise DtypeError(f"image: expected a floating-point tensor, got {kind}")
        if tuple(image.shape[-len(shape) :]) != shape:
            raise ShapeError(
                f"image: has shape {tuple(image.shape)}; expected (*batch, "
                f"{', '.join(map(str, shape))})"
            )
        self.image, self.A, self.std, self.scale = image, A, float(std), float(scale)
        self.least, self.largest = std**2, std**2 + (scale * A.norm()) ** 2
        self.num_steps = _steps(self.largest / self.least, torch.finfo(image.dtype).eps)
        if self.num_steps > MOST_STEPS:
            raise OptionError(
                f"scale: {scale:g} is so much larger than the noise, {std:g}, that {self.num_steps}"
                f" steps an evaluation were needed (at most {MOST_STEPS}); keep the deviation as a "
                "site (integrated=False)"
            )
        batch = image.shape[: image.ndim - len(shape)]
        super().__init__(batch, torch.Size(A.range_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.A(self.image)

    def expand(self, batch_shape: Any, _instance: Any = None) -> IteratedDeviation:
        image = self.image.expand(*torch.Size(batch_shape), *self.A.domain_shape)
        return IteratedDeviation(image, self.A, self.std, self.scale, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.image.shape
        deviation = torch.randn(shape, dtype=self.image.dtype, device=self.image.device)
        data = self.A(self.image + self.scale * deviation)
        noise = torch.randn(data.shape, dtype=data.dtype, device=data.device)
        return data + self.std * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Without the constant."""
        difference, solved = self._solved(value)
        # The error is of second order in that of the solution.
        dims = tuple(range(-len(self.event_shape), 0))
        quadratic = 2 * (difference * solved).sum(dims) - (solved * self._covered(solved)).sum(dims)
        return -0.5 * quadratic

    def deviation(self, value: Tensor) -> Tensor:
        r"""Mean of u given the data, :math:`s^2 A^T S^{-1} (y - A x_0)`."""
        return self.scale**2 * self.A.adjoint(self._solved(value)[1])

    def _solved(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The residual, and the inverse of the covariance applied to it."""
        if value.shape[value.ndim - len(self.event_shape) :] != self.event_shape:
            raise ShapeError(
                f"value: has shape {tuple(value.shape)}; expected data {tuple(self.event_shape)}"
            )
        if value.dtype != self.image.dtype:
            raise DtypeError(f"value: is {value.dtype}; expected {self.image.dtype}")
        difference = value - self.mean
        centre, radius = 0.5 * (self.largest + self.least), 0.5 * (self.largest - self.least)
        residual, direction = difference, difference / centre
        solved, ratio = torch.zeros_like(difference), radius / centre
        for _ in range(self.num_steps):
            solved = solved + direction
            residual = residual - self._covered(direction)
            following = 1 / (2 * centre / radius - ratio)
            direction = following * ratio * direction + 2 * following / radius * residual
            ratio = following
        return difference, solved

    def _covered(self, data: Tensor) -> Tensor:
        """The covariance applied to data."""
        return self.std**2 * data + self.scale**2 * self.A(self.A.adjoint(data))


def _steps(condition: float, accuracy: float) -> int:
    """Steps after which Chebyshev's iteration has come so near, from its bound."""
    root = math.sqrt(condition)
    if root - 1 < 1e-9:
        return 1
    return math.ceil(math.log(2 / accuracy) / math.log((root + 1) / (root - 1)))
