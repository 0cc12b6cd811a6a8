"""Gaussian noise, independent or with full covariance."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesgen.distributions.base import Constraints, Noise, Parameter
from bayesgen.errors import OptionError, ShapeError


class GaussianNoise(Noise):
    r"""Additive Gaussian noise, independent or with full covariance.

    .. math:: y \sim N(m, \operatorname{diag}(\sigma^2)) \quad\text{or}\quad y \sim N(m, L L^T)

    Parameters
    ----------
    mean
        What the operator predicts, ``A(x)``, of any shape.
    std
        Standard deviation of each entry; a number, or a tensor that broadcasts against the mean.
    cholesky
        Instead of ``std``: lower Cholesky factor of the covariance of the flattened event,
        ``(*batch, n, n)`` with n the number of entries of an event.
    event_dim, validate_args
        See `Noise`. The default takes the whole mean for one event.

    Raises
    ------
    OptionError
        Unless exactly one of ``std`` and ``cholesky`` is given; and see `Noise`.

    Examples
    --------
    >>> noise = GaussianNoise(torch.zeros(28, 28), 0.05)
    >>> noise
    GaussianNoise(batch_shape=(), event_shape=(28, 28))
    >>> round(float(noise.log_prob(torch.zeros(28, 28))), 1)  # 784 * -log(0.05 * sqrt(2 pi))
    1628.2
    >>> L = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> GaussianNoise(torch.zeros(2), cholesky=L).variance
    tensor([1., 2.])
    """

    arg_constraints = Constraints(
        mean=constraints.real, std=constraints.positive, cholesky=constraints.lower_cholesky
    )

    def __init__(
        self,
        mean: Tensor,
        std: Parameter | None = None,
        *,
        cholesky: Tensor | None = None,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if cholesky is None and std is not None:
            super().__init__(event_dim, validate_args, mean=mean, std=std)
        elif std is None and cholesky is not None:
            super().__init__(event_dim, validate_args, mean=mean, cholesky=cholesky)
        else:
            both = "both" if std is not None else "neither"
            raise OptionError(f"GaussianNoise: expected either std or cholesky, got {both}")

    def _elementwise(self, mean: Tensor, std: Tensor) -> TorchDistribution:
        return dist.Normal(mean, std, validate_args=False)

    def _broadcast(self, event_dim: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if "cholesky" not in tensors:
            return super()._broadcast(event_dim, tensors)
        mean, cholesky = tensors.values()
        batch, event_shape = _split(mean.shape, event_dim)
        num = math.prod(event_shape)
        try:
            torch.broadcast_shapes(batch, cholesky.shape[:-2])
            fits = cholesky.shape[-2:] == (num, num)
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(
                f"GaussianNoise: cholesky has shape {tuple(cholesky.shape)}; expected "
                f"(*batch, {num}, {num}), for the {num} entries of events of shape "
                f"{tuple(event_shape)}, and batch broadcasting against {tuple(batch)}"
            )
        return tensors

    def _base(self, event_dim: int, broadcast: dict[str, Tensor]) -> tuple[TorchDistribution, int]:
        if "cholesky" not in broadcast:
            return super()._base(event_dim, broadcast)
        mean, cholesky = broadcast.values()
        batch, event_shape = _split(mean.shape, event_dim)
        vector = mean.reshape(*batch, math.prod(event_shape))
        flat = dist.MultivariateNormal(vector, scale_tril=cholesky, validate_args=False)
        return CorrelatedNormal(flat, event_shape), 0


class CorrelatedNormal(TorchDistribution):
    """Pyro's ``MultivariateNormal`` of the flattened event, in the event's shape.

    Parameters
    ----------
    flat
        Distribution of vectors of length n.
    event_shape
        A shape of n entries.
    """

    arg_constraints = Constraints()
    has_rsample = True

    def __init__(self, flat: dist.MultivariateNormal, event_shape: torch.Size) -> None:
        self.flat = flat
        super().__init__(flat.batch_shape, event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._restored(self.flat.mean)

    @property
    def variance(self) -> Tensor:
        return self._restored(self.flat.variance)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> CorrelatedNormal:
        return CorrelatedNormal(self.flat.expand(torch.Size(batch_shape)), self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._restored(self.flat.rsample(torch.Size(sample_shape)))

    def whiten(self, value: Tensor) -> Tensor:
        """Independent standard normal numbers, in one row, that ``value`` would be made of."""
        flat = value.reshape(*value.shape[: value.ndim - len(self.event_shape)], -1)
        difference = (flat - self.flat.loc).unsqueeze(-1)
        factor = self.flat.scale_tril
        return torch.linalg.solve_triangular(factor, difference, upper=False).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.ndim - len(self.event_shape)]
        flat = value.reshape(*batch, math.prod(self.event_shape))
        log_prob: Tensor = self.flat.log_prob(flat)
        return log_prob

    def _restored(self, flat: Tensor) -> Tensor:
        return flat.reshape(flat.shape[:-1] + self.event_shape)


def _split(shape: torch.Size, event_dim: int) -> tuple[torch.Size, torch.Size]:
    """Batch shape and event shape."""
    return shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
