"""Covariances of images: what one is, and those of independent pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen._batching import native_batch
from bayesgen.errors import DataError, DtypeError, OptionError
from bayesgen.operators.base import Operator
from bayesgen.operators.inputs import as_constant, as_positive, require_finite
from bayesgen.types import check_positive

# Mean and standard deviation of the logarithm of the scale that an image's deviation has.
LogScale = tuple[float, float]


class Covariance(Operator):
    r"""Covariance C of how images deviate, :math:`u \sim N(0, C)`: a symmetric linear operator.

    ``C(u)`` is the product with images; C may be singular. To write one:

    - call ``super().__init__(image_shape, noise_shape, log_scale)``;
    - register the tensors it is made of with ``register_buffer``, those that the constructor takes
      under the names of its parameters and all others as not persistent;
    - define `_forward`, the product with images ``(*batch, *image_shape)``;
    - define `_factor`, :math:`C^{1/2} \xi` for ``(*batch, *noise_shape)``, where
      :math:`C^{1/2} (C^{1/2})^T = C`;
    - define `variance`;
    - define `_whiten`, the inverse of `_factor`, and `_log_det`, or set ``has_density = False``
      where C is singular or there is no cheap way to them;
    - add it to the table in ``tests/test_covariances.py``.

    Parameters
    ----------
    image_shape
        Shape of one image.
    noise_shape
        Shape of the standard normal numbers that an image is made of.
    log_scale
        Mean and standard deviation of the logarithm of s, where single images deviate by
        :math:`s u`; None if that has not been looked at.

    Attributes
    ----------
    image_shape, noise_shape, log_scale
        As given.
    has_density : bool
        Whether there are `whiten` and `log_prob`.

    Examples
    --------
    >>> C = Diagonal(torch.tensor([[1.0, 4.0]]))
    >>> C(torch.ones(1, 2)), C.factor(torch.ones(1, 2)), C.norm()
    (tensor([[1., 4.]]), tensor([[1., 2.]]), 4.0)
    """

    has_density: bool = True

    def __init__(
        self, image_shape: Sequence[int], noise_shape: Sequence[int], log_scale: LogScale | None
    ) -> None:
        super().__init__(image_shape, image_shape)
        self.image_shape, self.noise_shape = self.domain_shape, torch.Size(noise_shape)
        self.log_scale = check_log_scale(log_scale)

    def factor(self, noise: Tensor) -> Tensor:
        """Images ``(*batch, *image_shape)`` with this covariance from ``(*batch, *noise_shape)``.

        Raises
        ------
        ShapeError, DtypeError
            If the noise does not fit.
        """
        self._check("noise", noise, tuple(self.noise_shape))
        return native_batch(self._factor, noise)

    @property
    def variance(self) -> Tensor:
        """Of each pixel, ``image_shape``: the diagonal of C."""
        raise NotImplementedError(f"{type(self).__name__} does not define variance")

    def whiten(self, u: Tensor) -> Tensor:
        """The noise ``(*batch, *noise_shape)`` that `factor` makes images of.

        Raises
        ------
        NotImplementedError
            If C is singular, so that there is none, or it is not known.
        ShapeError, DtypeError
            If the images do not fit.
        """
        if not self.has_density:
            raise NotImplementedError(
                f"{type(self).__name__}: the covariance is singular, or its determinant not known, "
                "so that images have no density"
            )
        self._check("u", u, self.image_shape)
        return native_batch(self._whiten, u)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log density of N(0, C), ``(*batch, *image_shape) -> (*batch,)``.

        Raises
        ------
        NotImplementedError, ShapeError, DtypeError
            As `whiten` does.
        """
        squares = self.whiten(u).square().sum(tuple(range(-len(self.noise_shape), 0)))
        constant = math.prod(self.image_shape) * math.log(2 * math.pi)
        return -0.5 * (squares + self._log_det() + constant)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def _factor(self, noise: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _factor")

    def _whiten(self, u: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _whiten")

    def _log_det(self) -> Tensor:
        """Logarithm of the determinant of C."""
        raise NotImplementedError(f"{type(self).__name__} does not define _log_det")


class Isotropic(Covariance):
    """White noise of one level, C = std^2 I.

    Parameters
    ----------
    image_shape
        Shape of one image.
    std
        Standard deviation of each pixel.
    log_scale
        See `Covariance`.

    Examples
    --------
    >>> Isotropic((2, 2), 0.5)(torch.ones(2, 2))
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]])
    """

    std: Tensor

    def __init__(
        self, image_shape: Sequence[int], std: float | Tensor, *, log_scale: LogScale | None = None
    ) -> None:
        super().__init__(image_shape, image_shape, log_scale)
        like = std if isinstance(std, Tensor) else torch.empty(())
        self.register_buffer("std", like.new_tensor(as_positive("std", std)))

    @property
    def variance(self) -> Tensor:
        return self.std.square().expand(self.image_shape)

    def _forward(self, x: Tensor) -> Tensor:
        return self.std.square() * x

    def _factor(self, noise: Tensor) -> Tensor:
        return self.std * noise

    def _norm(self) -> float:
        return float(self.std) ** 2

    def _whiten(self, u: Tensor) -> Tensor:
        return u / self.std

    def _log_det(self) -> Tensor:
        return 2 * math.prod(self.image_shape) * self.std.log()


class Diagonal(Covariance):
    """Independent pixels.

    Parameters
    ----------
    variances
        Of each pixel, ``image_shape``; not negative.
    log_scale
        See `Covariance`.

    Raises
    ------
    DtypeError, DataError
        If variances are not floating-point, or not finite and at least zero.

    Examples
    --------
    >>> Diagonal(torch.tensor([1.0, 4.0])).factor(torch.ones(2))
    tensor([1., 2.])
    """

    variances: Tensor

    def __init__(self, variances: Tensor, *, log_scale: LogScale | None = None) -> None:
        variances = as_values("variances", variances, minimum=0.0)
        super().__init__(variances.shape, variances.shape, log_scale)
        self.has_density = bool((variances > 0).all())
        self.register_buffer("variances", variances.clone())

    @property
    def variance(self) -> Tensor:
        return self.variances

    def _forward(self, x: Tensor) -> Tensor:
        return self.variances * x

    def _factor(self, noise: Tensor) -> Tensor:
        return self.variances.sqrt() * noise

    def _norm(self) -> float:
        return float(self.variances.max())

    def _whiten(self, u: Tensor) -> Tensor:
        return u / self.variances.sqrt()

    def _log_det(self) -> Tensor:
        return self.variances.log().sum()


def check_log_scale(log_scale: Any) -> LogScale | None:
    """Refuse what is no pair of a mean and a positive standard deviation, or None."""
    if log_scale is None:
        return None
    if not isinstance(log_scale, list | tuple) or len(log_scale) != 2:
        raise OptionError(
            f"log_scale: got {log_scale!r}; expected mean and standard deviation of a logarithm"
        )
    mean, std = log_scale
    if not isinstance(mean, int | float) or not math.isfinite(mean):
        raise OptionError(f"log_scale: got a mean of {mean!r}; expected a finite number")
    check_positive("log_scale: standard deviation", std)
    return float(mean), float(std)


def scale_prior(log_scale: LogScale, like: Tensor) -> dist.LogNormal:
    """The law of s, in the dtype and on the device of a tensor."""
    mean, std = (like.new_tensor(number) for number in log_scale)
    return dist.LogNormal(mean, std)


def as_values(name: str, values: Any, *, minimum: float | None = None) -> Tensor:
    """Floating-point numbers that are finite, and at least so large, without gradients."""
    values = as_constant(name, values)
    if not values.is_floating_point() or values.ndim == 0 or values.numel() == 0:
        raise DtypeError(
            f"{name}: expected a floating-point tensor with entries, got {values.dtype} of shape "
            f"{tuple(values.shape)}"
        )
    require_finite(name, values)
    if minimum is not None and bool((values < minimum).any()):
        raise DataError(f"{name}: the least is {float(values.min()):.3g}; expected {minimum:g}")
    return values
