"""Data of an image that deviates from a given one by a Gaussian image, which is integrated out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesgen.distributions.base import Parameter
from bayesgen.distributions.covariance import Covariance, Isotropic
from bayesgen.distributions.integrated import Integrated, flattened, lifted, require_linear
from bayesgen.errors import OptionError, ShapeError
from bayesgen.operators import Operator

# The smaller of image and data that a matrix of its size squared is decomposed for: half a minute.
MOST_NUMBERS = 4096


class DataSpectrum:
    r"""Coordinates in which the data of a random image and white noise are independent.

    Images :math:`u \sim N(0, C)` have data of covariance :math:`A C A^T = U \operatorname{diag}(e)
    U^T`. Data are described by :math:`U^T y` and what is left of them, images by
    :math:`U^T A x`. One decomposition, of matrices of the size of the data or of the image,
    whichever is smaller, serves all levels of noise and deviation.

    Parameters
    ----------
    A
        A linear forward operator.
    like
        A tensor of the dtype and device wanted.
    covariance
        C; white images of unit variance by default.

    Attributes
    ----------
    squares : Tensor
        Variances e of the coordinates, ``(k,)``; for white images the squares of the operator's
        singular values.

    Raises
    ------
    OptionError
        If the operator is not linear, or both images and data have more than 4096 numbers.
    ShapeError
        If the covariance is of images of another shape.

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
    def __init__(self, A: Operator, like: Tensor, covariance: Covariance | None = None) -> None:
        images, data = math.prod(A.domain_shape), math.prod(A.range_shape)
        require_linear(A)
        if min(images, data) > MOST_NUMBERS:
            raise OptionError(
                f"A: images of {images} and data of {data} numbers are too large to decompose "
                f"(at most {MOST_NUMBERS} of one of them); give both sigma and the scale as "
                "numbers, with which the law is iterated, or keep the deviation as a site "
                "(integrated=False)"
            )
        if covariance is None:
            covariance = Isotropic(A.domain_shape, like.new_ones(()))
        check_covariance(covariance, A)
        self.A, self.covariance = A, covariance
        self.by_data = data <= images
        if self.by_data:
            matrix = _columns(lambda y: A(covariance(A.adjoint(y))), A.range_shape, like)
            squares, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
            self.squares = squares.clamp(min=0.0).to(like)
            self._vectors = vectors.to(like).contiguous()
            return
        # All data of images are in the span of A V / w, where A^T A = V diag(w^2) V^T.
        normal = _columns(lambda x: A.adjoint(A(x)), A.domain_shape, like)
        squares, vectors = torch.linalg.eigh(0.5 * (normal + normal.T))
        # Eigenvalues that are rounding would be divided by.
        kept = squares > 10 * torch.finfo(like.dtype).eps * squares[-1].clamp(min=1e-300)
        vectors, values = vectors[:, kept], squares[kept].sqrt()
        images = vectors * values
        matrix = images.T @ _columns(covariance, A.domain_shape, like) @ images
        squares, rotation = torch.linalg.eigh(0.5 * (matrix + matrix.T))
        self.squares = squares.clamp(min=0.0).to(like)
        self._images = (images @ rotation).to(like).contiguous()
        self._duals = (vectors / values @ rotation).to(like).contiguous()

    def of_data(self, y: Tensor) -> Tensor:
        """:math:`U^T y` of data ``(*batch, *range_shape)``: ``(*batch, k)``."""
        if self.by_data:
            return flattened(y, len(self.A.range_shape)) @ self._vectors
        return flattened(self.A.adjoint(y), len(self.A.domain_shape)) @ self._duals

    def of_image(self, x: Tensor) -> Tensor:
        """:math:`U^T A x` of images ``(*batch, *domain_shape)``: ``(*batch, k)``."""
        if self.by_data:
            return flattened(self.A(x), len(self.A.range_shape)) @ self._vectors
        return flattened(x, len(self.A.domain_shape)) @ self._images

    def back_projection(self, coefficients: Tensor) -> Tensor:
        """:math:`A^T U c`: from ``(*batch, k)`` to images."""
        lead = coefficients.shape[:-1]
        if self.by_data:
            data = (coefficients @ self._vectors.T).reshape(*lead, *self.A.range_shape)
            return self.A.adjoint(data)
        return (coefficients @ self._images.T).reshape(*lead, *self.A.domain_shape)

    def unexplained(self, y: Tensor) -> Tensor:
        """What is left of data in directions that no image has, ``(*batch, numbers)``."""
        flat = flattened(y, len(self.A.range_shape))
        if self.by_data:
            return torch.zeros_like(flat)
        # The difference itself, for that of the squares would be lost in rounding.
        images = (self.of_data(y) @ self._duals.T).reshape(
            *y.shape[: y.ndim - len(self.A.range_shape)], *self.A.domain_shape
        )
        return flat - flattened(self.A(images), len(self.A.range_shape))

    def data_variance(self) -> Tensor:
        """Diagonal of :math:`A C A^T`, ``range_shape``."""
        if self.by_data:
            return (self._vectors.square() @ self.squares).reshape(self.A.range_shape)
        vectors = self.A(self._duals.T.reshape(-1, *self.A.domain_shape))
        return torch.tensordot(self.squares, vectors.square(), 1)


class IntegratedDeviation(Integrated):
    r"""Data of an image that deviates from a given one by a Gaussian image.

    .. math:: y \sim N(A x_0,\; \sigma^2 I + s^2 A C A^T),

    which is what :math:`y = A (x_0 + s u) + \sigma \epsilon` with :math:`u \sim N(0, C)` leaves
    of u. An evaluation costs one product with A or with a matrix, whatever the two scales.

    Parameters
    ----------
    image
        :math:`x_0`, ``(*batch, *domain_shape)``.
    spectrum
        Of the operator and C.
    std
        :math:`\sigma`, a number or a tensor that broadcasts against the batch.
    scale
        s, likewise; in intensities if C is the identity.
    validate_args
        As for all distributions.

    Raises
    ------
    ShapeError
        If the image does not have the operator's shape.
    DtypeError
        If it is not a floating-point tensor.

    See Also
    --------
    bayesgen.distributions.integrated.ImageGivenData : the image, from ``image_given(y)``.

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

    def __init__(
        self,
        image: Tensor,
        spectrum: DataSpectrum,
        std: Parameter,
        scale: Parameter,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.spectrum = spectrum
        shape = spectrum.covariance.noise_shape
        super().__init__(image, spectrum.A, std, scale, shape, validate_args)

    @property
    def variance(self) -> Tensor:
        dims = len(self.event_shape)
        std, scale = lifted(self.std.square(), dims), lifted(self.scale.square(), dims)
        total: Tensor = std + scale * self.spectrum.data_variance()
        return total.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> IntegratedDeviation:
        image = self.image.expand(*torch.Size(batch_shape), *self.A.domain_shape)
        return IntegratedDeviation(image, self.spectrum, self.std, self.scale, validate_args=False)

    def whiten(self, value: Tensor) -> Tensor:
        """Residuals in units of their deviations, ``(*batch, k + 1)``.

        The last is the length of what no image explains, in units of the noise.
        """
        data = self.spectrum.of_data(value)
        seen = (data - self.spectrum.of_image(self.image)) / self._variances().sqrt()
        rest = self.spectrum.unexplained(value).square().sum(-1)
        unseen = (rest.sqrt() / self.std).expand(seen.shape[:-1])
        return torch.cat([seen, unseen.unsqueeze(-1)], -1)

    def coloured(self, noise: Tensor) -> Tensor:
        return self.spectrum.covariance.factor(noise)

    def explained(self, residual: Tensor) -> Tensor:
        weights = self.scale.square()[..., None] / self._variances()
        images = self.spectrum.back_projection(weights * self.spectrum.of_data(residual))
        return self.spectrum.covariance(images)

    def deviation_log_prob(self, deviation: Tensor) -> Tensor:
        return scaled_log_prob(self.spectrum.covariance, deviation, self.scale)

    def _chi_square(self, value: Tensor) -> Tensor:
        return self.whiten(value).square().sum(-1)

    def _log_det(self) -> Tensor:
        rest = math.prod(self.event_shape) - len(self.spectrum.squares)
        return self._variances().log().sum(-1) + 2 * rest * self.std.log()

    def _variances(self) -> Tensor:
        """Of the data in the coordinates of the spectrum."""
        squares = self.spectrum.squares
        return self.std.square()[..., None] + self.scale.square()[..., None] * squares


def scaled_log_prob(covariance: Covariance, u: Tensor, scale: Tensor) -> Tensor:
    """Log density of N(0, scale^2 C)."""
    pixels = math.prod(covariance.image_shape)
    units = u / lifted(scale, len(covariance.image_shape))
    return covariance.log_prob(units) - pixels * scale.log()


def check_covariance(covariance: Covariance, A: Operator) -> None:
    """Refuse a covariance of images of another shape than the operator takes."""
    if tuple(covariance.image_shape) != tuple(A.domain_shape):
        raise ShapeError(
            f"covariance: is of images {tuple(covariance.image_shape)}; A takes images "
            f"{tuple(A.domain_shape)}"
        )


def _columns(product: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The matrix of a symmetric map between tensors of a shape, in double precision."""
    count = math.prod(shape)
    blocks = []
    for first in range(0, count, 512):
        some = torch.zeros(min(512, count - first), count, dtype=like.dtype, device=like.device)
        some[torch.arange(len(some)), first + torch.arange(len(some))] = 1.0
        blocks.append(product(some.reshape(-1, *shape)).reshape(-1, count).double())
    return torch.cat(blocks)
