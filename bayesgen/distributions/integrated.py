r"""Gaussian deviations integrated out of linear data, and put back into the image exactly.

With :math:`y = A (x_0 + s u) + \sigma \epsilon` and :math:`u \sim N(0, C)` everything is Gaussian:
the data given :math:`x_0` and the two scales, and the image given these and the data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesgen.distributions.base import Constraints, Parameter
from bayesgen.distributions.covariance import Covariance
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators.base import Operator


class Integrated(TorchDistribution):
    r"""Data of an image that deviates from a given one by a Gaussian image.

    .. math:: y \sim N(A x_0,\; S), \qquad S = \sigma^2 I + s^2 A C A^T

    To write one, which is to say how to invert S:

    - call ``super().__init__(image, A, std, scale, noise_shape, validate_args)``;
    - define `coloured`, :math:`C^{1/2} \xi`, and `explained`, :math:`s^2 C A^T S^{-1} r`;
    - define `_chi_square`, :math:`r^T S^{-1} r` for :math:`r = y - A x_0`, and `expand`;
    - define `_log_det`, :math:`\log\det S`, or set ``is_normalised = False``;
    - define `deviation_log_prob` if u has a density.

    Parameters
    ----------
    image
        :math:`x_0`, ``(*batch, *domain_shape)``.
    A
        A linear forward operator.
    std, scale
        :math:`\sigma` and s, numbers or tensors that broadcast against the batch.
    noise_shape
        Of the standard normal numbers :math:`\xi`.
    validate_args
        As for all distributions.

    Raises
    ------
    OptionError
        If the operator is not linear.
    ShapeError, DtypeError
        If the image does not fit the operator, or a value not the data.
    """

    arg_constraints = Constraints(std=constraints.positive, scale=constraints.positive)
    has_rsample = True
    # Whether log_prob is known with its constant.
    is_normalised = True

    def __init__(
        self,
        image: Tensor,
        A: Operator,
        std: Parameter,
        scale: Parameter,
        noise_shape: torch.Size,
        validate_args: bool | None,
    ) -> None:
        require_linear(A)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise DtypeError(f"image: expected a floating-point tensor, got {kind}")
        shape = tuple(A.domain_shape)
        if tuple(image.shape[-len(shape) :]) != shape:
            raise ShapeError(
                f"image: has shape {tuple(image.shape)}; expected (*batch, "
                f"{', '.join(map(str, shape))})"
            )
        self.A, self.noise_shape = A, noise_shape
        self.std, self.scale = (
            torch.as_tensor(p, dtype=image.dtype, device=image.device) for p in (std, scale)
        )
        batch = torch.broadcast_shapes(image.shape[: -len(shape)], self.std.shape, self.scale.shape)
        self.image = image.expand(*batch, *shape)
        super().__init__(batch, torch.Size(A.range_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.A(self.image)

    def coloured(self, noise: Tensor) -> Tensor:
        r"""Images :math:`C^{1/2} \xi` from ``(*sample, *batch, *noise_shape)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define coloured")

    def explained(self, residual: Tensor) -> Tensor:
        """Mean of the deviation given what data differ by from those of the image."""
        raise NotImplementedError(f"{type(self).__name__} does not define explained")

    def deviation_log_prob(self, deviation: Tensor) -> Tensor:
        """Log density of N(0, s^2 C)."""
        raise NotImplementedError(f"{type(self).__name__} does not define deviation_log_prob")

    def chi_square(self, value: Tensor) -> Tensor:
        r""":math:`r^T S^{-1} r` of residuals :math:`r = y - A x_0`, ``(*batch,)``.

        Of data with this law it is a chi-square variable with as many degrees of freedom as data.
        """
        self._check_value(value)
        return self._chi_square(value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of data, ``(*batch,)``; without its constant unless ``is_normalised``."""
        squares = self.chi_square(value)
        if not self.is_normalised:
            return -0.5 * squares
        constant = self.event_shape.numel() * math.log(2 * math.pi)
        return -0.5 * (squares + self._log_det() + constant)

    def deviation(self, value: Tensor) -> Tensor:
        r"""Mean of the deviation given the data, :math:`s^2 C A^T S^{-1} (y - A x_0)`."""
        self._check_value(value)
        return self.explained(value - self.mean)

    def image_given(self, value: Tensor) -> ImageGivenData:
        """The law of the image given the data."""
        self._check_value(value)
        return ImageGivenData(self, value)

    def deviated(self, noise: Tensor) -> Tensor:
        r"""Images :math:`x_0 + s C^{1/2} \xi`."""
        return self.image + lifted(self.scale, len(self.A.domain_shape)) * self.coloured(noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        lead = torch.Size(sample_shape) + self.batch_shape
        kind: Any = {"dtype": self.image.dtype, "device": self.image.device}
        data = self.A(self.deviated(torch.randn(lead + self.noise_shape, **kind)))
        noise = torch.randn(lead + self.event_shape, **kind)
        return data + lifted(self.std, len(self.event_shape)) * noise

    def _chi_square(self, value: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _chi_square")

    def _log_det(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _log_det")

    def _check_value(self, value: Tensor) -> None:
        if value.shape[value.ndim - len(self.event_shape) :] != self.event_shape:
            raise ShapeError(
                f"value: has shape {tuple(value.shape)}; expected data {tuple(self.event_shape)}"
            )
        if value.dtype != self.image.dtype:
            raise DtypeError(f"value: is {value.dtype}; expected {self.image.dtype}")
        # torch's own check cannot reshape empty batches.
        if self._validate_args and value.numel():
            self._validate_sample(value)


class ImageGivenData(TorchDistribution):
    r"""The image given its data, with its deviation drawn exactly.

    .. math:: x | y \sim N\bigl(x_0 + s^2 C A^T S^{-1} (y - A x_0),\;
        s^2 C - s^4 C A^T S^{-1} A C\bigr)

    A draw corrects one of the image and its data that do not know of y (Matheron's rule), with
    standard normal :math:`\xi` and :math:`\epsilon`:

    .. math:: x = x_1 + s^2 C A^T S^{-1} (y - A x_1 - \sigma \epsilon), \qquad
        x_1 = x_0 + s C^{1/2} \xi.

    Parameters
    ----------
    data_law
        Of the data, an `Integrated`.
    value
        The data y.

    Attributes
    ----------
    noise_shape : torch.Size
        Of the standard normal numbers a draw is made of: those of :math:`\xi`, then
        :math:`\epsilon`, in one row.

    References
    ----------
    Wilson, Borovitskiy, Terenin, Mostowsky and Deisenroth (2021), Pathwise conditioning of Gaussian
    processes.

    Examples
    --------
    >>> from bayesgen.distributions import DataSpectrum, IntegratedDeviation
    >>> from bayesgen.operators import Identity
    >>> spectrum = DataSpectrum(Identity((1, 2)), torch.zeros(()))
    >>> law = IntegratedDeviation(torch.zeros(1, 2), spectrum, std=1.0, scale=1.0)
    >>> image = law.image_given(torch.tensor([[0.0, 2.0]]))
    >>> image.mean, image.from_noise(torch.ones(image.noise_shape))
    (tensor([[0., 1.]]), tensor([[0., 1.]]))
    """

    arg_constraints = Constraints()
    has_rsample = True

    def __init__(self, data_law: Integrated, value: Tensor) -> None:
        self.data_law, self.value = data_law, value
        split = value.ndim - len(data_law.event_shape)
        batch = torch.broadcast_shapes(data_law.batch_shape, value.shape[:split])
        numbers = data_law.noise_shape.numel() + data_law.event_shape.numel()
        self.noise_shape = torch.Size([numbers])
        super().__init__(batch, torch.Size(data_law.A.domain_shape), validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.data_law.image + self.data_law.deviation(self.value)

    def from_noise(self, noise: Tensor) -> Tensor:
        """The draw that standard normal numbers ``(*sample, *batch, *noise_shape)`` make."""
        law, lead = self.data_law, noise.shape[:-1]
        first, second = noise.split([law.noise_shape.numel(), law.event_shape.numel()], -1)
        x = law.deviated(first.reshape(lead + law.noise_shape))
        error = lifted(law.std, len(law.event_shape)) * second.reshape(lead + law.event_shape)
        return x + law.explained(self.value - law.A(x) - error)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.noise_shape
        like = self.data_law.image
        return self.from_noise(torch.randn(shape, dtype=like.dtype, device=like.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, by Bayes' rule.

        Raises
        ------
        NotImplementedError
            If the deviation has no density, or the data's density not its constant.
        """
        law = self.data_law
        prior = law.deviation_log_prob(value - law.image)
        dims = tuple(range(-len(law.event_shape), 0))
        std = lifted(law.std, len(law.event_shape))
        error = (self.value - law.A(value)) / std
        constant = law.event_shape.numel() * (law.std.log() + 0.5 * math.log(2 * math.pi))
        return prior - 0.5 * error.square().sum(dims) - constant - law.log_prob(self.value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ImageGivenData:
        batch = torch.Size(batch_shape)
        value = self.value.expand(batch + self.data_law.event_shape)
        return ImageGivenData(self.data_law.expand(batch), value)


class Deviation(TorchDistribution):
    """Images with mean zero and a given covariance, N(0, C), as a prior.

    Parameters
    ----------
    covariance
        C.

    Attributes
    ----------
    noise_shape : torch.Size
        Of the standard normal numbers a draw is made of.

    Examples
    --------
    >>> from bayesgen.distributions.covariance import Diagonal
    >>> Deviation(Diagonal(torch.tensor([1.0, 4.0]))).stddev
    tensor([1., 2.])
    """

    arg_constraints = Constraints()
    has_rsample = True

    def __init__(self, covariance: Covariance, batch_shape: torch.Size | None = None) -> None:
        self.covariance, self.noise_shape = covariance, covariance.noise_shape
        batch = torch.Size() if batch_shape is None else batch_shape
        super().__init__(batch, torch.Size(covariance.image_shape), validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.variance)

    @property
    def variance(self) -> Tensor:
        return self.covariance.variance.expand(self.batch_shape + self.event_shape)

    def from_noise(self, noise: Tensor) -> Tensor:
        """The draw that standard normal numbers ``(*sample, *batch, *noise_shape)`` make."""
        return self.covariance.factor(noise)

    def whiten(self, value: Tensor) -> Tensor:
        """Standard normal numbers in the shape of the image that they make."""
        return self.covariance.whiten(value).reshape(value.shape)

    def colour(self, value: Tensor) -> Tensor:
        """The image that such numbers make; inverse of `whiten`."""
        lead = value.shape[: value.ndim - len(self.event_shape)]
        return self.from_noise(value.reshape(lead + self.noise_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.noise_shape
        like = self.covariance.variance
        return self.from_noise(torch.randn(shape, dtype=like.dtype, device=like.device))

    def log_prob(self, value: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(
            value.shape[: value.ndim - len(self.event_shape)], self.batch_shape
        )
        return self.covariance.log_prob(value).expand(lead)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Deviation:
        return Deviation(self.covariance, torch.Size(batch_shape))


def require_linear(A: Operator) -> None:
    """Refuse an operator from whose data no deviation can be integrated out."""
    if not A.linear:
        raise OptionError(
            "A: is not linear, so a deviation cannot be integrated out; keep it as a site "
            "(integrated=False)"
        )


def lifted(parameter: Tensor, dims: int) -> Tensor:
    """``(*batch,)`` with ones behind, to broadcast against events of so many dimensions."""
    return parameter[(...,) + (None,) * dims]


def flattened(tensor: Tensor, dims: int) -> Tensor:
    """The last dimensions as one, of batches of any size, zero included."""
    batch, event = tensor.shape[: tensor.ndim - dims], tensor.shape[tensor.ndim - dims :]
    return tensor.reshape(*batch, math.prod(event))
