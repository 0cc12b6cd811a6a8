"""The generator whose densities and posteriors have closed forms: probabilistic PCA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen.distributions import GaussianNoise
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models.base import Generator
from bayesgen.operators import Operator
from bayesgen.operators.inputs import as_constant, as_shape, check_input, require_finite
from bayesgen.types import check_count

# Images that are converted to double precision at a time.
_BLOCK = 1000


@dataclass(frozen=True)
class LinearConfig:
    """Everything about a `LinearGenerator` but its tensors; see there for the fields."""

    image_shape: tuple[int, ...]
    latent_dim: int
    noise_level: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", as_shape("image_shape", self.image_shape))
        check_count("latent_dim", self.latent_dim)
        if self.latent_dim > math.prod(self.image_shape):
            raise OptionError(
                f"latent_dim: expected 1 to {math.prod(self.image_shape)} (the pixels of one "
                f"image), got {self.latent_dim}"
            )
        _check_noise(self.noise_level)


class LinearGenerator(Generator):
    r"""Linear map of the latent vector, with Gaussian residuals: probabilistic PCA.

    An image is modelled as :math:`x = \mu + W z + \rho\,\epsilon` with :math:`z` and
    :math:`\epsilon` standard normal. Everything that other generators have to estimate is known
    here: the density of images, the latent vector of an image, the posterior for linear
    measurements. That makes it the baseline for learned generators and the truth in tests.

    The constructor draws the first pixels, one for each latent coordinate. To get tensors of
    your own, use `from_tensors`; to learn them, `fit`. Do not change them in place.

    Parameters
    ----------
    image_shape
        Shape of one image, of n pixels.
    latent_dim
        Length d of a latent vector, at most n.
    noise_level
        :math:`\rho`. Zero means that images are exactly in the generator's range: with d = n it is
        then invertible, with d < n images have no density.

    Attributes
    ----------
    config : LinearConfig
        The settings above.
    weight : Tensor
        :math:`W`, ``(*image_shape, latent_dim)``.
    mean : Tensor
        :math:`\mu`, ``image_shape``.
    card : dict
        The model card; see `bayesgen.models.load`.

    References
    ----------
    Tipping and Bishop (1999), Probabilistic principal component analysis.
    Bishop (2006), Pattern recognition and machine learning, section 12.2.

    Examples
    --------
    >>> weight = torch.tensor([[2.0], [0.0]])
    >>> G = LinearGenerator.from_tensors(weight, mean=torch.tensor([0.0, 1.0]), noise_level=1.0)
    >>> G(torch.tensor([1.0])), G.encode(torch.tensor([2.0, 5.0]))
    (tensor([2., 1.]), tensor([0.8000]))
    >>> truth = torch.distributions.Normal(torch.tensor([0.0, 1.0]), torch.tensor([5**0.5, 1.0]))
    >>> x = torch.tensor([2.0, 5.0])
    >>> torch.allclose(G.log_prob(x), truth.log_prob(x).sum())
    True
    """

    weight: Tensor
    mean: Tensor
    # Singular value decomposition of the weight as a matrix: left * values @ right.
    _left: Tensor
    _values: Tensor
    _right: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        noise_level: float = LinearConfig.noise_level,
    ) -> None:
        config = LinearConfig(tuple(image_shape), latent_dim, noise_level)
        super().__init__(config.image_shape, config.latent_dim)
        self.config = config
        self.card: dict[str, Any] = {}
        start = torch.eye(math.prod(self.image_shape), latent_dim)
        self.register_buffer("weight", start.reshape(*self.image_shape, latent_dim))
        self.register_buffer("mean", torch.zeros(self.image_shape))
        # Not saved, but computed anew: rounded to another dtype they would fit the weight no more.
        self.register_buffer("_left", start.clone(), persistent=False)
        self.register_buffer("_values", torch.ones(latent_dim), persistent=False)
        self.register_buffer("_right", torch.eye(latent_dim), persistent=False)

    @classmethod
    def from_tensors(cls, weight: Tensor, mean: Tensor, noise_level: float) -> LinearGenerator:
        """Make the generator ``mean + weight @ z``.

        Parameters
        ----------
        weight
            ``(*image_shape, latent_dim)``; copied, as is the mean.
        mean
            ``image_shape``.
        noise_level
            As for the class.

        Raises
        ------
        ShapeError, DtypeError, DataError
            If the tensors do not fit each other, or an entry is not finite.
        """
        weight, mean = as_constant("weight", weight), as_constant("mean", mean)
        if mean.ndim < 1 or weight.shape[:-1] != mean.shape:
            raise ShapeError(
                "weight: expected the shape of the mean and one more axis, "
                f"({', '.join(map(str, (*mean.shape, 'latent_dim')))}), got {tuple(weight.shape)}"
            )
        for name, value in (("weight", weight), ("mean", mean)):
            if not value.is_floating_point():
                raise DtypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
            require_finite(name, value)
        if (weight.dtype, weight.device) != (mean.dtype, mean.device):
            raise DtypeError(
                f"weight: is {weight.dtype} on {weight.device}, the mean {mean.dtype} on "
                f"{mean.device}; expected the same"
            )
        G = cls(mean.shape, weight.shape[-1], noise_level=noise_level)
        G.weight, G.mean = weight.clone(), mean.clone()
        G._decompose()
        return G

    @classmethod
    def fit(
        cls, images: Tensor, latent_dim: int, *, noise_level: float | None = None
    ) -> LinearGenerator:
        r"""Find the generator that makes given images most likely.

        With eigenvalues :math:`\lambda_i` and vectors :math:`u_i` of the images' covariance,

        .. math:: W = (u_i \sqrt{\max(\lambda_i - \rho^2, 0)})_{i \le d}, \quad
            \rho^2 = \frac{1}{n - d} \sum_{i > d} \lambda_i.

        Columns are in the order of their norms, the largest entry of each is positive. The
        decomposition takes :math:`O(n \min(n, N)^2)` operations, and the memory of an n by n
        or, if there are fewer images than pixels, of an N by n matrix, in double precision.

        Parameters
        ----------
        images
            ``(N, *image_shape)``.
        latent_dim
            Length d of a latent vector, at most the number n of pixels.
        noise_level
            :math:`\rho` if it is known; the weights are then the most likely ones for it.

        Raises
        ------
        DataError
            If an image holds NaN or infinity, or no noise level is given and the images lie in a
            plane of d dimensions: the smaller the noise, the more likely they are, without bound.

        References
        ----------
        Bishop (2006), equations 12.45 and 12.46.

        Examples
        --------
        >>> images = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
        >>> G = LinearGenerator.fit(images, latent_dim=1)
        >>> G.mean, G.weight  # the variances are 9/2 and 1/2
        (tensor([0., 1.]), tensor([[2.],
                [0.]]))
        """
        _check_images(images)
        size = images[0].numel()
        config = LinearConfig(images.shape[1:], latent_dim, noise_level or 0.0)
        mean, variances, directions = _principal_components(images)
        floor = size * torch.finfo(torch.float64).eps * float(variances[0])
        rest = float(variances[latent_dim:].sum()) / max(size - latent_dim, 1)
        if noise_level is None:
            last = rest if latent_dim < size else float(variances[-1])
            if last <= floor:
                raise DataError(
                    f"images: {len(images)} images with {size} pixels lie in a plane of no more "
                    f"than latent_dim = {latent_dim} dimensions, so the most likely noise level "
                    "is zero; take fewer latent dimensions, or give a noise_level"
                )
            noise_level = rest**0.5
        scales = (variances[:latent_dim] - noise_level**2).clamp(min=0).sqrt()
        columns = directions[:, :latent_dim] * scales
        columns = torch.nn.functional.pad(columns, (0, latent_dim - len(scales)))
        weight = columns.reshape(*config.image_shape, latent_dim)
        return cls.from_tensors(
            weight.to(images.dtype), mean.reshape(config.image_shape).to(images.dtype), noise_level
        )

    def decode(self, z: Tensor) -> Tensor:
        """Decode without checks; call the generator itself, ``G(z)``."""
        x = z @ self.weight.flatten(0, -2).T
        return x.reshape(*z.shape[:-1], *self.image_shape) + self.mean

    def encode(self, x: Tensor) -> Tensor:
        r"""Return the posterior mean of z given x, ``(*batch, latent_dim)``.

        .. math:: (W^T W + \rho^2 I)^{-1} W^T (x - \mu),

        for noise level zero its limit, the pseudo-inverse: the inverse where there is one.

        References
        ----------
        Bishop (2006), equation 12.42.
        """
        self._check("x", x, self.image_shape)
        gains = _gains(self._values, self.config.noise_level, self.mean.numel())
        return (self._offset(x) @ self._left * gains) @ self._right

    def residual_prior(self, z: Tensor | None = None) -> dist.TorchDistribution:
        """Return independent normals of width ``noise_level``, whatever ``z`` is."""
        if self.config.noise_level == 0:
            raise NotImplementedError(
                "LinearGenerator with noise_level=0 leaves nothing out: images are in its range"
            )
        return GaussianNoise(torch.zeros_like(self.mean), self.config.noise_level)

    def log_abs_det(self, z: Tensor) -> Tensor:
        """Log of the product of the weight's singular values, the same for every ``z``."""
        self._check("z", z, (self.latent_dim,))
        if not self._invertible:
            raise NotImplementedError(
                "LinearGenerator is invertible only if the latent vector is as long as the image "
                "has pixels, the noise level is zero, and the weight has full rank"
            )
        return self._values.log().sum().expand(z.shape[:-1])

    def can(self, ability: str) -> bool:
        """Whether an optional method is there, which here depends on the settings too."""
        depends = {
            "log_abs_det": self._invertible,
            "residual_prior": self.config.noise_level > 0,
        }
        return super().can(ability) and depends.get(ability, True)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log density of images, ``(*batch, *image_shape) -> (*batch,)``.

        That of :math:`N(\mu, W W^T + \rho^2 I)`, in the basis of its principal axes.

        Raises
        ------
        OptionError
            If the images fill only a plane, because the noise level is zero.
        """
        self._check("x", x, self.image_shape)
        size, noise = self.mean.numel(), self.config.noise_level
        if noise == 0 and not self._invertible:
            raise OptionError(
                f"noise_level: is 0, and the images fill a plane of at most {self.latent_dim} of "
                f"{size} dimensions, so they have no density; expected a positive noise level"
            )
        offset = self._offset(x)
        along = offset @ self._left
        variances = self._values.square() + noise**2
        distance = (along.square() / variances).sum(-1)
        log_det = variances.log().sum()
        if self.latent_dim < size:
            # By itself, not as the difference of two squares that may be almost equal.
            across = offset - along @ self._left.T
            distance = distance + across.square().sum(-1) / noise**2
            log_det = log_det + 2 * (size - self.latent_dim) * math.log(noise)
        return -0.5 * (distance + log_det + size * math.log(2 * math.pi))

    @torch.no_grad()
    def posterior(self, A: Operator, y: Tensor, noise_level: float) -> tuple[Tensor, Tensor]:
        r"""Return the Gaussian posterior of z given :math:`y = A(G(z)) + \sigma\,\epsilon`.

        Images are taken to be in the generator's range, without residual.

        Parameters
        ----------
        A
            A linear operator on images.
        y
            Data, ``(*batch, *A.range_shape)``.
        noise_level
            :math:`\sigma`; zero for data without noise, where the posterior is the limit.

        Returns
        -------
        mean, covariance
            ``(*batch, latent_dim)`` and ``(latent_dim, latent_dim)``, which does not depend on the
            data.

        Examples
        --------
        >>> from bayesgen.operators import Identity
        >>> G = LinearGenerator((2,), latent_dim=1)
        >>> G.posterior(Identity((2,)), torch.tensor([3.0, 1.0]), noise_level=1.0)
        (tensor([1.5000]), tensor([[0.5000]]))
        """
        if not A.linear or A.domain_shape != self.image_shape:
            raise ShapeError(
                f"A: expected a linear operator on images of shape {self.image_shape}, got {A!r}"
            )
        check_input(A, "y", y, A.range_shape, (self.weight, *A.buffers(), *A.parameters()))
        _check_noise(noise_level)
        matrix = A(self.weight.movedim(-1, 0)).flatten(1).T.double()
        rest = (y - A(self.mean)).flatten(y.ndim - len(A.range_shape)).double()
        # With fewer data than coordinates the others keep their prior: all vectors are needed.
        full = matrix.shape[0] < matrix.shape[1]
        left, values, right = torch.linalg.svd(matrix, full_matrices=full)
        gains = _gains(values, noise_level, max(matrix.shape))
        mean = (rest @ left * gains) @ right[: len(values)]
        variances = torch.ones_like(right[0])
        # 1 - value * gain, without cancellation.
        seen = noise_level**2 / (values.square() + noise_level**2)
        variances[: len(values)] = torch.where(gains > 0, seen, 1.0)
        return mean.to(y.dtype), ((right.T * variances) @ right).to(y.dtype)

    @property
    def _invertible(self) -> bool:
        square = self.latent_dim == self.mean.numel() and self.config.noise_level == 0
        return square and bool((_gains(self._values, 0.0, self.latent_dim) > 0).all())

    def _offset(self, x: Tensor) -> Tensor:
        return (x - self.mean).flatten(x.ndim - self.mean.ndim)

    @torch.no_grad()
    def _decompose(self) -> None:
        matrix = self.weight.flatten(0, -2)
        parts = torch.linalg.svd(matrix.double(), full_matrices=False)
        self._left, self._values, self._right = (part.to(matrix.dtype) for part in parts)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> LinearGenerator:
        before = self.weight
        super()._apply(fn, recurse)
        if self.weight is not before:
            self._decompose()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._decompose()


def _check_noise(noise_level: float) -> None:
    real = isinstance(noise_level, Real) and not isinstance(noise_level, bool)
    if not (real and 0 <= noise_level < math.inf):
        raise OptionError(f"noise_level: expected zero or a positive number, got {noise_level!r}")


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise DtypeError(f"images: expected a floating-point tensor, got {kind}")
    if images.ndim < 2 or images.numel() == 0:
        raise ShapeError(
            f"images: expected (N, *image_shape) with at least one image, got {tuple(images.shape)}"
        )
    require_finite("images", images)


def _gains(values: Tensor, noise: float, size: int) -> Tensor:
    """``s / (s^2 + noise^2)`` for singular values in falling order; without noise, 1 / s or 0."""
    gains = values / (values.square() + noise**2)
    if noise > 0:
        return gains
    # What is below the rounding errors of the largest counts as zero.
    least = size * torch.finfo(values.dtype).eps * values[:1]
    return torch.where(values > least, gains, 0.0)


@torch.no_grad()
def _principal_components(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``(n,)``, falling variances ``(k,)``, directions ``(n, k)``; k is the less of N, n."""
    parts = images.flatten(1).split(_BLOCK)
    mean = sum((part.double().sum(0) for part in parts), torch.zeros(())) / len(images)
    if len(images) < parts[0].shape[1]:
        centred = torch.cat([part.double() - mean for part in parts])
        _, values, transposed = torch.linalg.svd(centred, full_matrices=False)
        variances, directions = values.square() / len(images), transposed.T
    else:
        products = ((part.double() - mean).T @ (part.double() - mean) for part in parts)
        covariance = sum(products, torch.zeros(())) / len(images)
        variances, directions = (part.flip(-1) for part in torch.linalg.eigh(covariance))
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return mean, variances.clamp(min=0), directions * torch.where(largest < 0, -1.0, 1.0)
