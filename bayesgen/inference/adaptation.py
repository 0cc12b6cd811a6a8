"""Warm-up: dual averaging of the step size, pooled estimates of the scales, and their schedule.

All quantities carry leading axes for independent problems and keep the chain axis with length one,
so that they broadcast against positions of shape ``(*problems, chains, num_dims)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DualAveraging(NamedTuple):
    """State of the step-size search of Nesterov (2009) as used by Hoffman and Gelman (2014).

    Attributes
    ----------
    log_step
        Logarithm of the step size to use next.
    log_average
        Weighted average of it, the step size to keep when warm-up ends.
    error
        Running mean of (target - acceptance).
    centre
        Value towards which ``log_step`` is drawn.
    updates
        Number of updates so far.
    """

    log_step: Tensor
    log_average: Tensor
    error: Tensor
    centre: Tensor
    updates: int

    @classmethod
    def start(cls, step: Tensor) -> DualAveraging:
        """Begin at ``step``, drawn towards ten times its size (larger steps are cheaper)."""
        log_step = step.log()
        zero = torch.zeros_like(log_step)
        return cls(log_step, zero, zero, log_step + 2.302585092994046, 0)

    def update(
        self, acceptance: Tensor, target: float, longest: Tensor | None = None
    ) -> DualAveraging:
        """Hoffman and Gelman (2014), equation 6, with gamma 0.05, t0 10, kappa 0.75.

        No step exceeds ``longest``, by default any.
        """
        updates = self.updates + 1
        weight = 1.0 / (updates + 10.0)
        error = (1.0 - weight) * self.error + weight * (target - acceptance)
        log_step = self.centre - error * updates**0.5 / 0.05
        if longest is not None:
            log_step = torch.minimum(log_step, longest.log())
        decay = updates**-0.75
        log_average = decay * log_step + (1.0 - decay) * self.log_average
        return DualAveraging(log_step, log_average, error, self.centre, updates)


class PooledVariance(NamedTuple):
    """Running variance over chains and iterations together (Chan et al. 1979).

    Attributes
    ----------
    points
        Number of points seen.
    mean
        Their mean, ``(*problems, 1, num_dims)``.
    sum_of_squares
        Sum of squared deviations from the mean.
    """

    points: int
    mean: Tensor
    sum_of_squares: Tensor

    @classmethod
    def start(cls, position: Tensor) -> PooledVariance:
        """Nothing seen yet."""
        zero = torch.zeros_like(position[..., :1, :])
        return cls(0, zero, zero)

    def update(self, position: Tensor) -> PooledVariance:
        """Add one point from every chain."""
        chains = position.shape[-2]
        mean = position.mean(-2, keepdim=True)
        squares = (position - mean).square().sum(-2, keepdim=True)
        count = self.points + chains
        shift = mean - self.mean
        return PooledVariance(
            count,
            self.mean + shift * (chains / count),
            self.sum_of_squares + squares + shift.square() * (self.points * chains / count),
        )

    def estimate(self) -> Tensor:
        """Variance, shrunk a little towards 1e-3 so that a short window cannot give zero."""
        n = self.points
        variance = self.sum_of_squares / max(n - 1, 1)
        return variance * (n / (n + 5.0)) + 1e-3 * (5.0 / (n + 5.0))


class PooledCovariance(NamedTuple):
    """Running covariance over chains and iterations together.

    Attributes
    ----------
    points
        Number of points seen.
    mean
        Their mean, ``(*problems, 1, num_dims)``.
    products
        Sum of products of deviations from the mean, ``(*problems, num_dims, num_dims)``.
    """

    points: int
    mean: Tensor
    products: Tensor

    @classmethod
    def start(cls, position: Tensor) -> PooledCovariance:
        """Nothing seen yet."""
        zero = torch.zeros_like(position[..., :1, :])
        return cls(0, zero, zero.mT @ zero)

    def update(self, position: Tensor) -> PooledCovariance:
        """Add one point from every chain."""
        chains = position.shape[-2]
        mean = position.mean(-2, keepdim=True)
        centred = position - mean
        count = self.points + chains
        shift = mean - self.mean
        return PooledCovariance(
            count,
            self.mean + shift * (chains / count),
            self.products
            + centred.mT @ centred
            + shift.mT @ shift * (self.points * chains / count),
        )

    def estimate(self) -> Tensor:
        """Covariance, its correlations shrunk as much as so few points, not independent, ask for.

        Without correlations, and where they are beyond rounding, it is what `PooledVariance`
        estimates.
        """
        n, num_dims = self.points, self.mean.shape[-1]
        squares = self.products.diagonal(dim1=-2, dim2=-1)[..., None, :]
        variance = PooledVariance(n, self.mean, squares).estimate()
        return correlated(variance, self.products, torch.tensor(n / (n + 10.0 * num_dims)))


def correlated(variance: Tensor, products: Tensor, kept: Tensor) -> Tensor:
    """A covariance of given variances, with correlations that are shrunk towards none.

    Parameters
    ----------
    variance
        ``(*batch, 1, num_dims)``.
    products
        Sums of products of deviations from the mean, in any unit, ``(*batch, num_dims, num_dims)``.
    kept
        What is left of the correlations, ``(*batch,)``, below one. Where correlations are beyond
        rounding, nothing is.

    Examples
    --------
    >>> variance, products = torch.tensor([[4.0, 1.0]]), torch.tensor([[4.0, 4.0], [4.0, 9.0]])
    >>> correlated(variance, products, torch.tensor(0.5))
    tensor([[4.0000, 0.6667],
            [0.6667, 1.0000]])
    """
    squares = products.diagonal(dim1=-2, dim2=-1)[..., None, :]
    deviation = squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()
    correlation = products / (deviation.mT * deviation) * kept.to(products)[..., None, None]
    correlation.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    usable = torch.linalg.cholesky_ex(correlation.nan_to_num(2.0)).info == 0
    nothing = torch.eye(products.shape[-1], dtype=products.dtype, device=products.device)
    spread = variance.sqrt()
    correlation = torch.where(usable[..., None, None], correlation, nothing)
    # Zero times an infinite spread is no number.
    dense = correlation * spread.mT * spread
    return torch.where(usable[..., None, None], dense, torch.diag_embed(variance[..., 0, :]))


class Schedule(NamedTuple):
    """Phases of warm-up, after Stan's.

    Attributes
    ----------
    search
        Iterations in which every chain has its own step size and finds the typical set. A chain
        that starts far out needs a far smaller step than the others; with a shared one it would
        never move.
    window_ends
        Last iterations of the windows that estimate scales, each about twice as long as the one
        before and starting afresh. After the last one only the step size is tuned.
    """

    search: int
    window_ends: tuple[int, ...]

    @classmethod
    def of(cls, warmup: int) -> Schedule:
        """15 % search, windows, 10 % step size; without windows if there is no room for them.

        Examples
        --------
        >>> Schedule.of(500)
        Schedule(search=75, window_ends=(99, 149, 249, 449))
        >>> Schedule.of(10)
        Schedule(search=5, window_ends=())
        """
        if warmup < 60:
            return cls(warmup // 2, ())
        search, last = min(75, int(0.15 * warmup)), min(50, int(0.1 * warmup))
        ends, begin, length = [], search, 25
        while begin < warmup - last:
            end = begin + length
            # The final window takes what is left, rather than leaving a short one behind.
            if end + 2 * length > warmup - last:
                end = warmup - last
            ends.append(end - 1)
            begin, length = end, 2 * length
        return cls(search, tuple(ends))
