"""Noise with independent entries other than Gaussian: heavy-tailed, counting, magnitudes."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayesgen.distributions.base import Constraints, Noise, Parameter
from bayesgen.distributions.elementwise import Rice, ScaledPoisson, StudentT


class LaplaceNoise(Noise):
    r"""Additive noise with density :math:`\exp(-|y - m| / b) / (2 b)`: robust to outliers.

    Parameters
    ----------
    mean
        What the operator predicts, of any shape.
    scale
        :math:`b`; the standard deviation is :math:`\sqrt 2 b`.
    event_dim, validate_args
        See `Noise`, also for what is raised.

    Examples
    --------
    >>> import torch
    >>> LaplaceNoise(torch.zeros(3), 0.5).variance
    tensor([0.5000, 0.5000, 0.5000])
    """

    arg_constraints = Constraints(mean=constraints.real, scale=constraints.positive)

    def __init__(
        self,
        mean: Tensor,
        scale: Parameter,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(event_dim, validate_args, mean=mean, scale=scale)

    def _elementwise(self, mean: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Laplace(mean, scale, validate_args=False)


class StudentTNoise(Noise):
    r"""Additive noise ``scale`` times Student's t: Gaussian but for its heavy tails.

    Parameters
    ----------
    mean
        What the operator predicts, of any shape; the centre, also where ``df`` leaves no mean.
    scale
        Width of the centre, not the standard deviation, which is
        :math:`\text{scale} \sqrt{\nu / (\nu - 2)}`.
    df
        Degrees of freedom :math:`\nu`. About 4 tolerates outliers; beyond 30 the noise is all but
        Gaussian. The variance is infinite up to 2, and the mean undefined (NaN) up to 1.
    event_dim, validate_args
        See `Noise`, also for what is raised.

    Examples
    --------
    >>> import torch
    >>> StudentTNoise(torch.zeros(2), scale=1.0, df=4.0).variance
    tensor([2., 2.])
    """

    arg_constraints = Constraints(
        mean=constraints.real, scale=constraints.positive, df=constraints.positive
    )

    def __init__(
        self,
        mean: Tensor,
        scale: Parameter,
        df: Parameter,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(event_dim, validate_args, mean=mean, scale=scale, df=df)

    def _elementwise(self, mean: Tensor, scale: Tensor, df: Tensor) -> TorchDistribution:
        return StudentT(df, mean, scale, validate_args=False)


class PoissonNoise(Noise):
    r"""Counting noise: photons, decays, electrons.

    .. math:: y = g k, \qquad k \sim \operatorname{Poisson}\bigl((m + b) / g\bigr)

    so that ``y`` has mean :math:`m + b` and variance :math:`g (m + b)`. The log density is that of
    the count ``k``.

    Parameters
    ----------
    mean
        What the operator predicts, of any shape, in the units of the data.
    gain
        :math:`g`, the data's units per count; 1 for data that are counts. Not to be inferred: the
        data pin it, as multiples of one gain are not multiples of another. `PoissonGaussianNoise`
        has no such lattice.
    background
        :math:`b`, what is counted without any signal, in the units of the data.
    event_dim, validate_args
        See `Noise`, also for what is raised.

    Notes
    -----
    Where the intensity :math:`m + b` is negative there is no such distribution: the log density is
    minus infinity with gradient zero, and draws are NaN. At intensity zero it is zero for ``y = 0``
    and minus infinity, with gradient zero, for any other ``y``. Chains cannot start there: take an
    operator and a generator without negative values, or give ``start=`` to `bayesgen.infer`.

    Data must be non-negative multiples of the gain, up to rounding and a thousandth of a count.
    Without validation other data are rounded to the nearest.

    Examples
    --------
    >>> import torch
    >>> noise = PoissonNoise(torch.tensor([0.4, 0.9]), gain=0.1, background=0.1)
    >>> noise.mean, noise.variance
    (tensor([0.5000, 1.0000]), tensor([0.0500, 0.1000]))
    >>> noise.log_prob(torch.tensor([0.35, 1.0]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bayesgen.errors.DataError: PoissonNoise: value: 1 of 2 values are not in the support, ...
    """

    arg_constraints = Constraints(
        mean=constraints.real, gain=constraints.positive, background=constraints.real
    )

    def __init__(
        self,
        mean: Tensor,
        gain: Parameter = 1.0,
        background: Parameter = 0.0,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(event_dim, validate_args, mean=mean, gain=gain, background=background)

    def _elementwise(self, mean: Tensor, gain: Tensor, background: Tensor) -> TorchDistribution:
        return ScaledPoisson(mean + background, gain)


class PoissonGaussianNoise(Noise):
    r"""Counting noise with Gaussian read-out noise, as of a camera, approximated by a Gaussian.

    .. math:: y \sim N\bigl(m + b,\; g \max(m + b, 0) + \sigma^2\bigr)

    with the first two moments of the exact sum; good from about ten counts on.

    Parameters
    ----------
    mean
        What the operator predicts, of any shape, in the units of the data.
    std
        :math:`\sigma`, of the read-out noise.
    gain, background
        As for `PoissonNoise`; the gain may be inferred.
    event_dim, validate_args
        See `Noise`, also for what is raised.

    Notes
    -----
    A negative intensity :math:`m + b` counts as zero in the variance, and unchanged in the mean, so
    that the density pulls it back.

    References
    ----------
    Foi, Trimeche, Katkovnik and Egiazarian (2008), Practical Poissonian-Gaussian noise modeling
    and fitting for single-image raw-data.

    Examples
    --------
    >>> import torch
    >>> noise = PoissonGaussianNoise(torch.tensor([0.9]), std=0.2, gain=0.1, background=0.1)
    >>> noise.mean, noise.variance
    (tensor([1.]), tensor([0.1400]))
    """

    arg_constraints = Constraints(
        mean=constraints.real,
        std=constraints.positive,
        gain=constraints.positive,
        background=constraints.real,
    )

    def __init__(
        self,
        mean: Tensor,
        std: Parameter,
        gain: Parameter = 1.0,
        background: Parameter = 0.0,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            event_dim, validate_args, mean=mean, std=std, gain=gain, background=background
        )

    def _elementwise(
        self, mean: Tensor, std: Tensor, gain: Tensor, background: Tensor
    ) -> TorchDistribution:
        intensity = mean + background
        variance = gain * intensity.clamp(min=0) + std.square()
        return dist.Normal(intensity, variance.sqrt(), validate_args=False)


class RicianNoise(Noise):
    r"""Magnitude of a complex signal with Gaussian noise on both parts, as in magnitude MRI.

    .. math::
        p(y) = \frac{y}{\sigma^2} \exp\Bigl(-\frac{y^2 + \nu^2}{2 \sigma^2}\Bigr)
               I_0\Bigl(\frac{y \nu}{\sigma^2}\Bigr)

    Parameters
    ----------
    magnitude
        :math:`\nu`, the magnitude without noise, of any shape. The density is even and smooth in
        it, so that slightly negative predictions do no harm.
    std
        :math:`\sigma`, of the noise of the real and of the imaginary part.
    event_dim, validate_args
        See `Noise`, also for what is raised.

    Notes
    -----
    Data must be positive: the density is zero at ``y = 0``. Leave out pixels that a scanner has
    set to zero.

    References
    ----------
    Gudbjartsson and Patz (1995), The Rician distribution of noisy MRI data.

    Examples
    --------
    >>> import torch
    >>> RicianNoise(torch.tensor([0.0, 100.0]), std=1.0).mean  # biased where the signal is weak
    tensor([  1.2533, 100.0050])
    """

    arg_constraints = Constraints(magnitude=constraints.real, std=constraints.positive)

    def __init__(
        self,
        magnitude: Tensor,
        std: Parameter,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(event_dim, validate_args, magnitude=magnitude, std=std)

    def _elementwise(self, magnitude: Tensor, std: Tensor) -> TorchDistribution:
        return Rice(magnitude, std)
