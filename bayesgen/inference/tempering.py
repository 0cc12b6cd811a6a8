"""From prior to posterior by degrees: the tempered law, and what choosing its degrees takes."""

from __future__ import annotations

import functools
import math
from typing import cast

import torch
from torch import Tensor

from bayesgen.inference.leapfrog import choose
from bayesgen.types import Density, Split, SplitDensity

# Halvings of an interval of inverse temperatures; likelihoods of any size are told apart by them.
_HALVINGS = 60


class Tempered:
    """The density prior times likelihood to the power beta.

    Parameters
    ----------
    log_density
        The posterior's.
    beta
        Inverse temperatures between 0 (the prior) and 1 (the posterior); broadcast against the
        leading axes of points.
    where
        Which points are wanted; all by default. The others have log density NaN, so that a
        Metropolis test refuses them.

    Attributes
    ----------
    last : Split
        Prior and likelihood at the points last evaluated, for those who need them apart.
    """

    last: Split
    takes_where = True

    def __init__(self, log_density: Density, beta: Tensor, where: Tensor | None = None) -> None:
        self.num_dims = log_density.num_dims
        self._split = cast(SplitDensity, log_density).split
        # Where all have arrived, nothing more need be known of where they came from.
        if hasattr(log_density, "between") and not bool((beta >= 1).all()):
            self._split = functools.partial(log_density.between, beta=beta)
        self._beta, self._where = beta, where

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool = True, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log density, always with the Jacobian, and its gradient.

        Rows that ``where`` leaves out keep their place in `last`.
        """
        wanted = self._where if where is None or self._where is None else self._where & where
        split = self._split(v, where=where if wanted is None else wanted)
        value, gradient = temper(split, self._beta)
        if self._where is not None:
            value = torch.where(self._where, value, math.nan)
        self.last = split if where is None else chosen(where, split, self.last)
        return value, gradient


def temper(split: Split, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Log density and gradient of the tempered law at points whose parts are known.

    At beta = 0 the likelihood does not count, not even where it is zero.
    """
    beta = beta.to(split.prior.dtype)
    value = torch.where(beta > 0, split.prior + beta * split.likelihood, split.prior)
    beta = beta[..., None]
    tempered = split.prior_gradient + beta * split.likelihood_gradient
    return value, torch.where(beta > 0, tempered, split.prior_gradient)


def log_likelihood(split: Split) -> Tensor:
    """Log likelihoods in double precision; minus infinity where it is no finite number."""
    likelihood = split.likelihood.double()
    return torch.where(torch.isfinite(likelihood), likelihood, -math.inf)


def after_move(before: Tensor, after: Tensor, old: Split, last: Split) -> Split:
    """Parts at the points ``after`` a Metropolis step whose proposals were evaluated last."""
    return chosen((after != before).any(-1), last, old)


def chosen(rows: Tensor, new: Split, old: Split) -> Split:
    """``new`` at ``rows`` ``(*batch,)``, else ``old``."""
    return Split(*choose(rows, new, old))


def draw_prior(log_density: Density, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Prior draws ``(*problems, chains, n)``, also of densities that know nothing of problems."""
    prior_draws = cast(SplitDensity, log_density).prior_draws
    draws = prior_draws(shape[-2], rng)
    if draws.shape == shape:
        return draws
    own = draws.shape[:-2]
    return prior_draws(math.prod(shape[len(own) : -1]), rng).reshape(shape)


# ------------------------------------------------------------------------------- importance weights


def effective_fraction(log_weights: Tensor) -> Tensor:
    """Effective sample size over sample size of weights ``(*batch, N)``.

    Of equally weighted particles that are about to be reweighted this is the conditional
    effective sample size,

    .. math:: \\frac{1}{N} \\frac{(\\sum_i w_i)^2}{\\sum_i w_i^2} .

    References
    ----------
    Zhou, Johansen and Aston (2016).

    Examples
    --------
    >>> effective_fraction(torch.tensor([[0.0, 0.0], [0.0, -1000.0]]))
    tensor([1.0000, 0.5000])
    """
    logs = 2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)
    return logs.exp() / log_weights.shape[-1]


def next_beta(likelihood: Tensor, beta: Tensor, alpha: float) -> Tensor:
    """The largest inverse temperature at which the weights keep the fraction ``alpha``.

    Points where the likelihood is zero are lost at any temperature and do not count.

    Parameters
    ----------
    likelihood
        Log likelihoods ``(*batch, N)`` of equally weighted particles; at least one is finite.
    beta
        Their inverse temperature, ``(*batch,)``.
    alpha
        The fraction, between 0 and 1.

    Examples
    --------
    >>> likelihood = torch.tensor([-10.0, 0.0], dtype=torch.float64)
    >>> beta = next_beta(likelihood, torch.tensor(0.0, dtype=torch.float64), 0.7)
    >>> round(float(effective_fraction(beta * likelihood)), 6)
    0.7
    """
    target = alpha * torch.isfinite(likelihood).double().mean(-1)

    def keeps(increment: Tensor) -> Tensor:
        return effective_fraction(increment[..., None] * likelihood) >= target

    low, high = torch.zeros_like(beta), 1.0 - beta
    # Where no step is left to take, 0 times an infinite likelihood would be no number.
    arrives = (high <= 0) | keeps(high.clamp(min=torch.finfo(beta.dtype).tiny))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        kept = keeps(middle)
        low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
    return torch.where(arrives, 1.0, beta + low)


def systematic(log_weights: Tensor, rng: torch.Generator, num: int | None = None) -> Tensor:
    """Numbers of the particles that systematic resampling keeps, each population on its own.

    A particle of normalised weight w is kept ``num`` w times on average, and never more than one
    time off that.

    Parameters
    ----------
    log_weights
        ``(*batch, N)``, in double precision.
    rng
        Source of one uniform number for each population.
    num
        How many to keep; N by default.

    Returns
    -------
    Tensor
        Integers ``(*batch, num)``, sorted.

    References
    ----------
    Kitagawa (1996), *Monte Carlo filter and smoother*.
    """
    num = log_weights.shape[-1] if num is None else num
    ends = log_weights.softmax(-1).cumsum(-1)
    shape = (*log_weights.shape[:-1], 1)
    offset = torch.rand(shape, generator=rng, dtype=ends.dtype, device=rng.device).to(ends.device)
    points = (offset + torch.arange(num, dtype=ends.dtype, device=ends.device)) / num
    # The last end may fall short of one by rounding.
    order = torch.searchsorted(ends / ends[..., -1:], points, right=True)
    return order.clamp(max=log_weights.shape[-1] - 1)


# ------------------------------------------------------------------------------- ladders


def power_ladder(rungs: int) -> Tensor:
    """Inverse temperatures (k / (K - 1))^5, dense near the prior, ``(K,)``.

    References
    ----------
    Friel and Pettitt (2008), who take such powers.

    Examples
    --------
    >>> power_ladder(3)
    tensor([0.0000, 0.0312, 1.0000], dtype=torch.float64)
    """
    return torch.linspace(0.0, 1.0, rungs, dtype=torch.float64) ** 5


def equalised(beta: Tensor, rejection: Tensor) -> Tensor:
    """A ladder between whose rungs swaps are refused equally often.

    The refusals of a fine ladder add up to the same barrier however it is cut; the new rungs cut
    it into equal parts, by linear interpolation.

    Parameters
    ----------
    beta
        Inverse temperatures from 0 to 1, ``(*batch, K)``.
    rejection
        Mean probability with which a swap of neighbours is refused, ``(*batch, K - 1)``.

    References
    ----------
    Syed, Bouchard-Côté, Deligiannidis and Doucet (2022), *Non-reversible parallel tempering*.

    Examples
    --------
    >>> beta = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    >>> equalised(beta, torch.tensor([0.6, 0.2], dtype=torch.float64))
    tensor([0.0000, 0.3333, 1.0000], dtype=torch.float64)
    """
    # The summand keeps rungs apart between which nothing was refused.
    barrier = torch.nn.functional.pad((rejection + 1e-6).cumsum(-1), (1, 0))
    rungs = beta.shape[-1]
    parts = torch.linspace(0.0, 1.0, rungs, dtype=beta.dtype, device=beta.device)
    wanted = barrier[..., -1:] * parts
    right = torch.searchsorted(barrier, wanted.contiguous()).clamp(1, rungs - 1)
    low, high = (barrier.gather(-1, index) for index in (right - 1, right))
    start, end = (beta.gather(-1, index) for index in (right - 1, right))
    new = start + (end - start) * (wanted - low) / (high - low)
    new[..., 0], new[..., -1] = 0.0, 1.0
    return new


def swap_ratios(likelihood: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """What swaps of neighbouring rungs depend on.

    Parameters
    ----------
    likelihood
        Log likelihoods of the replicas, ``(*batch, K, chains)``.
    beta
        Inverse temperatures, ``(*batch, K)``.

    Returns
    -------
    log_ratio, log_accept
        Log weight of each lower replica under the rung above it, and logarithm of the probability
        that the two swap, ``(*batch, K - 1, chains)``.
    """
    low, high = likelihood[..., :-1, :], likelihood[..., 1:, :]
    gaps = beta.diff(dim=-1)[..., None]
    change = gaps * (low - high)
    # A prior draw may be impossible; so may, before it first moves, the start above it.
    return gaps * low, torch.where(change.isnan(), -math.inf, change).clamp(max=0.0)


def swap_order(accepted: Tensor) -> Tensor:
    """Which rung each takes its replica from, ``(*batch, K, chains)``.

    Parameters
    ----------
    accepted
        Which rungs swap with the next one, ``(*batch, K - 1, chains)``; never two in a row.

    Examples
    --------
    >>> swap_order(torch.tensor([[True], [False], [True]])).T
    tensor([[1, 0, 3, 2]])
    """
    swaps = accepted.long()
    rung = torch.arange(swaps.shape[-2] + 1, device=swaps.device)[:, None]
    from_above = torch.nn.functional.pad(swaps, (0, 0, 0, 1))
    from_below = torch.nn.functional.pad(swaps, (0, 0, 1, 0))
    return rung + from_above - from_below
