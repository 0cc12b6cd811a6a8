"""Covariances between all pixels of an image: dense, or of low rank plus diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesgen.distributions.covariance import Covariance, LogScale, as_values
from bayesgen.errors import DataError, ShapeError


class Dense(Covariance):
    """Any covariance of images of up to some thousand pixels.

    Parameters
    ----------
    matrix
        ``(n, n)``, symmetric and positive semi-definite, for images of n pixels.
    image_shape
        Shape of one image.
    log_scale
        See `Covariance`.

    Raises
    ------
    ShapeError, DtypeError, DataError
        If the matrix does not fit the image, is not floating-point, or no covariance.

    Notes
    -----
    One eigendecomposition on construction, in double precision. C counts as singular if its least
    eigenvalue is below ten roundings of the largest.

    Examples
    --------
    >>> C = Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), (1, 2))
    >>> C(torch.tensor([[1.0, 0.0]])), round(float(C.log_prob(torch.zeros(1, 2))), 4)
    (tensor([[2., 1.]]), -2.3872)
    """

    matrix: Tensor
    _root: Tensor
    _values: Tensor

    def __init__(
        self, matrix: Tensor, image_shape: Sequence[int], *, log_scale: LogScale | None = None
    ) -> None:
        super().__init__(image_shape, (math.prod(image_shape),), log_scale)
        matrix, n = as_values("matrix", matrix), math.prod(self.image_shape)
        if matrix.shape != (n, n):
            raise ShapeError(
                f"matrix: has shape {tuple(matrix.shape)}; expected ({n}, {n}) for images "
                f"{self.image_shape}"
            )
        rounding = 10 * torch.finfo(matrix.dtype).eps
        size = matrix.abs().max()
        if bool((matrix - matrix.T).abs().max() > rounding * size):
            raise DataError("matrix: is not symmetric")
        values, vectors = torch.linalg.eigh(matrix.double())
        if float(values[0]) < -n * rounding * float(values[-1]) or float(values[-1]) <= 0:
            raise DataError(
                f"matrix: has eigenvalues from {float(values[0]):.3g} to {float(values[-1]):.3g}; "
                "expected a covariance, which has none that is negative"
            )
        self.has_density = bool(values[0] > rounding * values[-1])
        values = torch.where(values > rounding * values[-1], values, 0.0)
        self.register_buffer("matrix", matrix.clone())
        self.register_buffer("_root", (vectors * values.sqrt()).to(matrix), persistent=False)
        self.register_buffer("_values", values.to(matrix), persistent=False)

    @property
    def variance(self) -> Tensor:
        return self.matrix.diagonal().reshape(self.image_shape)

    def _forward(self, x: Tensor) -> Tensor:
        return (x.flatten(-len(self.image_shape)) @ self.matrix).reshape(x.shape)

    def _factor(self, noise: Tensor) -> Tensor:
        return (noise @ self._root.T).reshape(*noise.shape[:-1], *self.image_shape)

    def _norm(self) -> float:
        return float(self._values[-1])

    def _whiten(self, u: Tensor) -> Tensor:
        # The root is that of the eigenvectors, whose columns are orthogonal.
        return u.flatten(-len(self.image_shape)) @ self._root / self._values

    def _log_det(self) -> Tensor:
        return self._values.log().sum()


class LowRank(Covariance):
    r"""A few modes, and independent pixels: :math:`C = F^T F + D`.

    Parameters
    ----------
    modes
        F, ``(rank, *image_shape)``.
    variances
        Diagonal of D, ``image_shape``; not negative.
    log_scale
        See `Covariance`.

    Raises
    ------
    ShapeError, DtypeError, DataError
        If modes and variances do not fit each other, or an entry is not allowed.

    Examples
    --------
    >>> C = LowRank(torch.tensor([[[1.0, 1.0]]]), torch.ones(1, 2))
    >>> C(torch.tensor([[1.0, 0.0]])), round(float(C.log_prob(torch.zeros(1, 2))), 4)
    (tensor([[2., 1.]]), -2.3872)
    """

    modes: Tensor
    variances: Tensor
    _directions: Tensor
    _gains: Tensor

    def __init__(
        self, modes: Tensor, variances: Tensor, *, log_scale: LogScale | None = None
    ) -> None:
        modes = as_values("modes", modes)
        variances = as_values("variances", variances, minimum=0.0)
        if modes.shape[1:] != variances.shape or (modes.dtype, modes.device) != (
            variances.dtype,
            variances.device,
        ):
            raise ShapeError(
                f"modes: have shape {tuple(modes.shape)} and {modes.dtype} on {modes.device}; "
                f"expected (rank, {', '.join(map(str, variances.shape))}) and {variances.dtype} on "
                f"{variances.device}, as the variances"
            )
        regular = bool((variances > 0).all())
        count = variances.numel()
        # Of a singular C the modes and the pixels have noise of their own.
        shape = variances.shape if regular else torch.Size([len(modes) + count])
        super().__init__(variances.shape, shape, log_scale)
        self.has_density = regular
        self.register_buffer("modes", modes.clone())
        self.register_buffer("variances", variances.clone())
        # With F D^-1/2 = U diag(w) V^T, C^1/2 = D^1/2 (I + V diag(g) V^T), 1 + g = sqrt(1 + w^2).
        scaled = modes.double() / (variances if regular else torch.ones_like(variances)).sqrt()
        _, widths, directions = torch.linalg.svd(scaled.flatten(1), full_matrices=False)
        gains = (1 + widths.square()).sqrt() - 1
        self.register_buffer("_directions", directions.to(modes), persistent=False)
        self.register_buffer("_gains", gains.to(modes), persistent=False)

    @property
    def variance(self) -> Tensor:
        return self.modes.square().sum(0) + self.variances

    def _forward(self, x: Tensor) -> Tensor:
        flat = self.modes.flatten(1)
        seen = x.flatten(-len(self.image_shape)) @ flat.T @ flat
        return seen.reshape(x.shape) + self.variances * x

    def _factor(self, noise: Tensor) -> Tensor:
        if self.has_density:
            return self.variances.sqrt() * self._amplified(noise, self._gains)
        rank = len(self.modes)
        shape = noise.shape[:-1] + self.image_shape
        common = (noise[..., :rank] @ self.modes.flatten(1)).reshape(shape)
        return common + self.variances.sqrt() * noise[..., rank:].reshape(shape)

    def _whiten(self, u: Tensor) -> Tensor:
        return self._amplified(u / self.variances.sqrt(), -self._gains / (1 + self._gains))

    def _log_det(self) -> Tensor:
        return self.variances.log().sum() + 2 * self._gains.log1p().sum()

    def _amplified(self, values: Tensor, gains: Tensor) -> Tensor:
        """Values with their parts along the modes amplified."""
        parts = values.flatten(-len(self.image_shape)) @ self._directions.T * gains
        return values + (parts @ self._directions).reshape(values.shape)
