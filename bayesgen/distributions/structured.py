"""Images with a Gaussian law whose precision has a sparse Cholesky factor."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesgen.distributions.base import Constraints, Noise, Parameter
from bayesgen.distributions.sparse_cholesky import inverse_diagonal, multiply, radius_of, solve
from bayesgen.errors import DtypeError, OptionError, ShapeError

# Numbers drawn at a time: 16 MiB in single precision.
_CHUNK = 2**22


class StructuredNormal(Noise):
    r"""Gaussian images, correlated between neighbouring pixels.

    .. math::
        x \sim N(\mu, \Sigma), \qquad \Sigma^{-1} = L L^T, \qquad
        \log p(x) = -\tfrac12 \|L^T (x - \mu)\|^2 + \sum_p a_p - \tfrac n2 \log 2 \pi

    with :math:`L` lower triangular in raster order, :math:`e^{a_p}` on its diagonal, and in the
    column of pixel :math:`p` non-zero only at the pixels after :math:`p` that lie within a radius r
    of it along both axes. Correlations reach further: the inverse of :math:`L` is full. Densities
    cost one pass over the maps, draws one triangular solve; no matrix is formed.

    Parameters
    ----------
    loc
        :math:`\mu`, of shape ``(*batch, y, x)``, or ``(*batch, channel, y, x)``.
    log_diagonal
        :math:`a`; a number, or a tensor that broadcasts against ``loc``. Alone, the pixels are
        independent with standard deviation ``exp(-log_diagonal)``.
    off_diagonal
        ``(*batch, 2 r (r + 1), y, x)``: the other entries of each pixel's column, in raster order
        of the neighbours, ``(0, 1), (0, 2), ..., (1, -r), ..., (r, r)``; so 4, 12 or 24 maps. Those
        of neighbours outside the image are ignored. With ``event_dim=3`` the dimension of the
        channels goes before the maps. All dimensions but that of the maps broadcast against
        ``loc``; what batches share is not copied. The default, none, is r = 0.
    event_dim
        2 for images ``(y, x)``; 3 for images of several channels, which are independent.
    validate_args
        See `Noise`, also for what else is raised.

    Raises
    ------
    OptionError
        If ``event_dim`` is neither 2 nor 3.
    ShapeError
        If ``loc`` has no dimensions for an image, or the number of maps belongs to no radius.

    Notes
    -----
    ``variance`` is exact, for which it solves for every pixel: time grows with the square of their
    number (see `estimated_variance`). `bayesgen.infer` asks the prior of a latent site for it once.

    References
    ----------
    Dorta, Vicente, Agapito, Campbell and Simpson (2018), Structured uncertainty prediction
    networks.

    Examples
    --------
    >>> law = StructuredNormal(torch.zeros(28, 28), 1.0, torch.full((4, 28, 28), -0.6))
    >>> law
    StructuredNormal(batch_shape=(), event_shape=(28, 28))
    >>> noise = torch.randn(28, 28, generator=torch.Generator().manual_seed(0))
    >>> x = law.colour(noise)  # a draw
    >>> float(law.log_prob(x)) > float(law.log_prob(x.flip(0)))
    True
    >>> torch.allclose(law.whiten(x), noise, atol=1e-4)
    True
    """

    arg_constraints = Constraints(
        loc=constraints.real, log_diagonal=constraints.real, off_diagonal=constraints.real
    )
    base_dist: SparseCholeskyNormal

    def __init__(
        self,
        loc: Tensor,
        log_diagonal: Parameter,
        off_diagonal: Tensor | None = None,
        *,
        event_dim: int = 2,
        validate_args: bool | None = None,
    ) -> None:
        parameters: dict[str, Any] = {"loc": loc, "log_diagonal": log_diagonal}
        if off_diagonal is not None:
            parameters["off_diagonal"] = off_diagonal
        elif isinstance(loc, Tensor):  # else refused
            parameters["off_diagonal"] = loc.new_zeros(0, 1, 1)
        super().__init__(event_dim, validate_args, **parameters)

    def whiten(self, value: Tensor) -> Tensor:
        r"""Standard normal pixels :math:`L^T (x - \mu)` of an image, ``(*sample, *batch, *event)``.

        Examples
        --------
        >>> StructuredNormal(torch.ones(1, 2), math.log(2.0)).whiten(torch.zeros(1, 2))
        tensor([[-2., -2.]])
        """
        self._check_shape_of(value)
        return self.base_dist.whiten(value)

    def colour(self, value: Tensor) -> Tensor:
        r"""The image :math:`\mu + L^{-T} \varepsilon`; inverse of `whiten`."""
        self._check_shape_of(value)
        return self.base_dist.colour(value)

    def precision_matmul(self, value: Tensor) -> Tensor:
        r"""Product :math:`L L^T v` with images ``(*sample, *batch, *event)``."""
        self._check_shape_of(value)
        factor = self.base_dist.factor
        return multiply(factor, multiply(factor, value, transpose=True))

    def covariance_matmul(self, value: Tensor) -> Tensor:
        r"""Product :math:`L^{-T} L^{-1} v` with images ``(*sample, *batch, *event)``."""
        self._check_shape_of(value)
        factor = self.base_dist.factor
        return solve(factor, solve(factor, value), transpose=True)

    def estimated_variance(self, num_draws: int, rng: torch.Generator) -> Tensor:
        """Variance of each pixel from draws, where `variance` would take too long.

        The mean square of draws of ``x - loc``: without bias, and with a relative standard error of
        exactly ``sqrt(2 / num_draws)`` at every pixel, which is 3 % for 2000 draws.

        Parameters
        ----------
        num_draws
            How many, at least one; a few at a time are in memory.
        rng
            Source of randomness, on the device of the parameters.

        Raises
        ------
        OptionError
            If ``num_draws`` is not a positive integer.

        Examples
        --------
        >>> law = StructuredNormal(torch.zeros(3, 4), 0.0)
        >>> estimate = law.estimated_variance(20_000, torch.Generator().manual_seed(0))
        >>> bool(((estimate - law.variance).abs() < 5 * 0.01).all())
        True
        """
        if not isinstance(num_draws, int) or isinstance(num_draws, bool) or num_draws < 1:
            raise OptionError(f"num_draws: expected a positive integer, got {num_draws!r}")
        factor = self.base_dist.factor
        shape = factor.shape[:-3] + factor.shape[-2:]
        size = max(_CHUNK // max(math.prod(shape), 1), 1)
        total = factor.new_zeros(shape)
        for start in range(0, num_draws, size):
            noise = torch.randn(
                (min(size, num_draws - start), *shape),
                generator=rng,
                dtype=factor.dtype,
                device=factor.device,
            )
            total = total + solve(factor, noise, transpose=True).square().sum(0)
        return (total / num_draws).expand(self.batch_shape + self.event_shape)

    def _as_event_dim(self, event_dim: int | None, predicted: str, mean: Tensor) -> int:
        if isinstance(event_dim, bool) or event_dim not in (2, 3):
            raise OptionError(
                f"StructuredNormal: event_dim: got {event_dim!r}; expected 2, for images (y, x), "
                "or 3, for images (channel, y, x)"
            )
        image = ("*batch", "channel", "y", "x")
        if mean.ndim < event_dim or 0 in mean.shape[mean.ndim - event_dim :]:
            expected = ", ".join([image[0], *image[4 - event_dim :]])
            raise ShapeError(
                f"StructuredNormal: {predicted} has shape {tuple(mean.shape)}; expected "
                f"({expected}) with at least one pixel"
            )
        return event_dim

    def _broadcast(self, event_dim: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        off_diagonal = tensors["off_diagonal"]
        shape = off_diagonal.shape
        if len(shape) < 3 or radius_of(shape[-3]) is None:
            raise ShapeError(
                f"StructuredNormal: off_diagonal has shape {tuple(shape)}; expected "
                "(*batch, 2 r (r + 1), y, x), with 4, 12, 24, ... maps for radius r = 1, 2, 3, ..."
            )
        # The maps of one pixel are no dimension of the image.
        one_map = off_diagonal.new_empty(()).expand(shape[:-3] + shape[-2:])
        broadcast = super()._broadcast(event_dim, {**tensors, "off_diagonal": one_map})
        return {**broadcast, "off_diagonal": off_diagonal, "given": tensors["log_diagonal"]}

    def _base(self, event_dim: int, broadcast: dict[str, Tensor]) -> tuple[TorchDistribution, int]:
        loc, log_diagonal = broadcast["loc"], broadcast["log_diagonal"]
        image = loc.shape[-2:]
        # As given, without the dimensions of a batch that shares them.
        given, others = broadcast["given"], broadcast["off_diagonal"]
        diagonal = given.expand(torch.broadcast_shapes(given.shape, image)).exp().unsqueeze(-3)
        batch = torch.broadcast_shapes(diagonal.shape[:-3], others.shape[:-3])
        maps = [part.expand(*batch, part.shape[-3], *image) for part in (diagonal, others)]
        law = SparseCholeskyNormal(loc, log_diagonal, torch.cat(maps, dim=-3), event_dim)
        return law, 0

    def _check_shape_of(self, value: Tensor) -> None:
        super()._check_shape_of(value)
        loc = self.base_dist.loc
        if value.dtype != loc.dtype or value.device != loc.device:
            raise DtypeError(
                f"StructuredNormal: value is {value.dtype} on {value.device}, loc {loc.dtype} on "
                f"{loc.device}; convert one of them with .to"
            )


class SparseCholeskyNormal(TorchDistribution):
    """The law behind `StructuredNormal`, of parameters that have been checked.

    Parameters
    ----------
    loc, log_diagonal
        ``(*batch, *event)``.
    factor
        See `bayesgen.distributions.sparse_cholesky`; its batch dimensions, the channels among
        them, broadcast against those of ``loc``.
    event_dim
        Number of dimensions of an event.
    """

    arg_constraints = Constraints()
    has_rsample = True

    def __init__(self, loc: Tensor, log_diagonal: Tensor, factor: Tensor, event_dim: int) -> None:
        self.loc, self.log_diagonal, self.factor = loc, log_diagonal, factor
        split = loc.ndim - event_dim
        super().__init__(loc.shape[:split], loc.shape[split:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return inverse_diagonal(self.factor).expand(self.loc.shape)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SparseCholeskyNormal:
        shape = torch.Size(batch_shape) + self.event_shape
        loc, log_diagonal = self.loc.expand(shape), self.log_diagonal.expand(shape)
        return SparseCholeskyNormal(loc, log_diagonal, self.factor, self.event_dim)

    def whiten(self, x: Tensor) -> Tensor:
        """``L^T (x - loc)``."""
        return multiply(self.factor, x - self.loc, transpose=True)

    def colour(self, noise: Tensor) -> Tensor:
        """``loc + L^-T noise``."""
        return self.loc + solve(self.factor, noise, transpose=True)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.colour(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        squares = self.whiten(value).square().sum(self._event_dims)
        return -0.5 * squares + self._half_log_det - 0.5 * self._num_pixels * math.log(2 * math.pi)

    def entropy(self) -> Tensor:
        """``(*batch,)``, in nats."""
        return 0.5 * self._num_pixels * (1 + math.log(2 * math.pi)) - self._half_log_det

    @property
    def _half_log_det(self) -> Tensor:
        """Of the precision."""
        return self.log_diagonal.sum(self._event_dims)

    @property
    def _event_dims(self) -> tuple[int, ...]:
        return tuple(range(-self.event_dim, 0))

    @property
    def _num_pixels(self) -> int:
        return math.prod(self.event_shape)
