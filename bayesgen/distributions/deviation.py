"""Data of an image that deviates from a given one by white noise, which is integrated out."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesgen.distributions.base import Constraints, Parameter
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators import Operator

# The smaller of image and data that a matrix of its size squared is decomposed for: half a minute.
MOST_NUMBERS = 4096


class DataSpectrum:
    r"""Coordinates in which the data of white images and white noise are independent.

    With the singular value decomposition :math:`A = U S V^T`, data are described by :math:`U^T y`
    and what is left of them, images by :math:`S V^T x`. One eigendecomposition, of :math:`A A^T` or
    of :math:`A^T A`, whichever is smaller, serves all noise levels.

    Parameters
    ----------
    A
        A linear forward operator.
    like
        A tensor of the dtype and device wanted.

    Attributes
    ----------
    squares : Tensor
        Squares of the singular values, ``(k,)``.

    Raises
    ------
    OptionError
        If the operator is not linear, or both images and data have more than 4096 numbers.

    Examples
    --------
    >>> from bayesgen.operators import GaussianMatrix
    >>> A = GaussianMatrix((28, 28), rows=50, seed=0)
    >>> spectrum = DataSpectrum(A, torch.zeros(()))
    >>> x = torch.ones(28, 28)
    >>> torch.allclose(spectrum.of_image(x), spectrum.of_data(A(x)), atol=1e-4)
    True
    """

    @torch.no_grad()
    def __init__(self, A: Operator, like: Tensor) -> None:
        images, data = math.prod(A.domain_shape), math.prod(A.range_shape)
        if not A.linear:
            raise OptionError(
                "A: is not linear, so a deviation cannot be integrated out; keep it as a site "
                "(integrated=False)"
            )
        if min(images, data) > MOST_NUMBERS:
            raise OptionError(
                f"A: images of {images} and data of {data} numbers are too large to decompose "
                f"(at most {MOST_NUMBERS} of one of them); keep the deviation as a site "
                "(integrated=False)"
            )
        self.A = A
        self.by_data = data <= images
        matrix = _squared(A, like, self.by_data)
        squares, vectors = torch.linalg.eigh(matrix)
        # Eigenvalues that are rounding would be divided by.
        kept = squares > torch.finfo(like.dtype).eps * squares[-1].clamp(min=1e-300)
        if self.by_data:
            kept = torch.ones_like(kept)
        self.squares = squares[kept].clamp(min=0.0).to(like)
        self._vectors = vectors[:, kept].to(like).contiguous()
        self._values = self.squares.sqrt()

    def of_data(self, y: Tensor) -> Tensor:
        """:math:`U^T y` of data ``(*batch, *range_shape)``: ``(*batch, k)``."""
        if self.by_data:
            return _flat(y, len(self.A.range_shape)) @ self._vectors
        images = self.A.adjoint(y)
        return _flat(images, len(self.A.domain_shape)) @ self._vectors / self._values

    def of_image(self, x: Tensor) -> Tensor:
        """:math:`S V^T x = U^T A x` of images ``(*batch, *domain_shape)``: ``(*batch, k)``."""
        if self.by_data:
            return _flat(self.A(x), len(self.A.range_shape)) @ self._vectors
        return _flat(x, len(self.A.domain_shape)) @ self._vectors * self._values

    def back_projection(self, coefficients: Tensor) -> Tensor:
        """:math:`A^T U c`: from ``(*batch, k)`` to images."""
        lead = coefficients.shape[:-1]
        if self.by_data:
            data = (coefficients @ self._vectors.T).reshape(*lead, *self.A.range_shape)
            return self.A.adjoint(data)
        images = (coefficients * self._values) @ self._vectors.T
        return images.reshape(*lead, *self.A.domain_shape)


class IntegratedDeviation(TorchDistribution):
    r"""Data of an image that deviates from a given one by white noise.

    .. math:: y \sim N(A x_0,\; \sigma^2 I + s^2 A A^T),

    which is what :math:`y = A (x_0 + u) + \sigma \epsilon` with :math:`u \sim N(0, s^2 I)` leaves
    of u. An evaluation costs one product with A or with a matrix, whatever the two scales.

    Parameters
    ----------
    image
        :math:`x_0`, ``(*batch, *domain_shape)``.
    spectrum
        Of the operator.
    std
        :math:`\sigma`, a number or a tensor that broadcasts against the batch.
    scale
        s, likewise, in intensities.
    validate_args
        As for all distributions.

    Raises
    ------
    ShapeError
        If the image does not have the operator's shape.
    DtypeError
        If it is not a floating-point tensor.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), the relaxed regulariser, whose deviation it integrates out.

    Examples
    --------
    >>> from bayesgen.operators import Identity
    >>> spectrum = DataSpectrum(Identity((2, 2)), torch.zeros(()))
    >>> law = IntegratedDeviation(torch.zeros(2, 2), spectrum, std=0.6, scale=0.8)
    >>> law.variance
    tensor([[1., 1.],
            [1., 1.]])
    """

    arg_constraints = Constraints(std=constraints.positive, scale=constraints.positive)
    has_rsample = True

    def __init__(
        self,
        image: Tensor,
        spectrum: DataSpectrum,
        std: Parameter,
        scale: Parameter,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise DtypeError(f"image: expected a floating-point tensor, got {kind}")
        shape = tuple(spectrum.A.domain_shape)
        if tuple(image.shape[-len(shape) :]) != shape:
            raise ShapeError(
                f"image: has shape {tuple(image.shape)}; expected (*batch, "
                f"{', '.join(map(str, shape))})"
            )
        self.spectrum = spectrum
        self.std, self.scale = (
            torch.as_tensor(p, dtype=image.dtype, device=image.device) for p in (std, scale)
        )
        batch = torch.broadcast_shapes(image.shape[: -len(shape)], self.std.shape, self.scale.shape)
        self.image = image.expand(*batch, *shape)
        super().__init__(batch, torch.Size(spectrum.A.range_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.spectrum.A(self.image)

    @property
    def variance(self) -> Tensor:
        A = self.spectrum.A
        # Row by row of the operator's matrix: A itself, applied to one pixel after the other.
        pixels = torch.eye(math.prod(A.domain_shape), dtype=self.std.dtype, device=self.std.device)
        rows = A(pixels.reshape(-1, *A.domain_shape)).square().sum(0)
        lift = (...,) + (None,) * len(self.event_shape)
        return self.std.square()[lift] + self.scale.square()[lift] * rows.expand(
            *self.batch_shape, *self.event_shape
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> IntegratedDeviation:
        batch = torch.Size(batch_shape)
        image = self.image.expand(*batch, *self.spectrum.A.domain_shape)
        return IntegratedDeviation(image, self.spectrum, self.std, self.scale, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.image.shape
        lift = (...,) + (None,) * len(self.spectrum.A.domain_shape)
        deviation = torch.randn(shape, dtype=self.image.dtype, device=self.image.device)
        data = self.spectrum.A(self.image + self.scale[lift] * deviation)
        noise = torch.randn(data.shape, dtype=data.dtype, device=data.device)
        return data + self.std[(...,) + (None,) * len(self.event_shape)] * noise

    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape[value.ndim - len(self.event_shape) :] != self.event_shape:
            raise ShapeError(
                f"value: has shape {tuple(value.shape)}; expected data {tuple(self.event_shape)}"
            )
        if value.dtype != self.image.dtype:
            raise DtypeError(f"value: is {value.dtype}; expected {self.image.dtype}")
        # torch's own check cannot reshape empty batches.
        if self._validate_args and value.numel():
            self._validate_sample(value)
        count = math.prod(self.event_shape)
        rest = count - len(self.spectrum.squares)
        log_det = self._variances().log().sum(-1) + 2 * rest * self.std.log()
        squares = self.whiten(value).square().sum(-1)
        return -0.5 * (squares + log_det + count * math.log(2 * math.pi))

    def whiten(self, value: Tensor) -> Tensor:
        """Residuals in units of their deviations, ``(*batch, k + 1)``.

        The last is the length of what no image explains, in units of the noise.
        """
        data = self.spectrum.of_data(value)
        seen = (data - self.spectrum.of_image(self.image)) / self._variances().sqrt()
        # It depends on the data alone, so that what differences lose does not matter for z.
        flat = _flat(value, len(self.event_shape))
        rest = (flat.square().sum(-1) - data.square().sum(-1)).clamp(min=0.0)
        if len(self.spectrum.squares) == math.prod(self.event_shape):
            rest = torch.zeros_like(rest)
        unseen = (rest.sqrt() / self.std).expand(seen.shape[:-1])
        return torch.cat([seen, unseen.unsqueeze(-1)], -1)

    def deviation(self, value: Tensor) -> Tensor:
        r"""Mean of u given the data, :math:`s^2 A^T (\sigma^2 I + s^2 A A^T)^{-1} (y - A x_0)`."""
        difference = self.spectrum.of_data(value) - self.spectrum.of_image(self.image)
        weights = self.scale.square()[..., None] / self._variances()
        return self.spectrum.back_projection(weights * difference)

    def _variances(self) -> Tensor:
        """Of the data in the coordinates of the spectrum."""
        squares = self.spectrum.squares
        return self.std.square()[..., None] + self.scale.square()[..., None] * squares


def _squared(A: Operator, like: Tensor, by_data: bool) -> Tensor:
    """A times its transpose, or its transpose times A, in double precision."""
    shape = A.range_shape if by_data else A.domain_shape
    count = math.prod(shape)
    blocks = []
    for first in range(0, count, 512):
        some = torch.zeros(min(512, count - first), count, dtype=like.dtype, device=like.device)
        some[torch.arange(len(some)), first + torch.arange(len(some))] = 1.0
        some = some.reshape(-1, *shape)
        block = A(A.adjoint(some)) if by_data else A.adjoint(A(some))
        blocks.append(block.reshape(-1, count).double())
    matrix = torch.cat(blocks)
    return 0.5 * (matrix + matrix.T)


def _flat(tensor: Tensor, dims: int) -> Tensor:
    batch, event = tensor.shape[: tensor.ndim - dims], tensor.shape[tensor.ndim - dims :]
    return tensor.reshape(*batch, math.prod(event))
