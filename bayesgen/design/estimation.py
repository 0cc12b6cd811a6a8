"""Acquisition functions that estimate the image, from the second moments of the draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.draw_space import DrawSpace, best_shrinkage
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError


class Conditioned(Scorer):
    """Scores of a space of draws that is conditioned on every choice."""

    def __init__(
        self, space: DrawSpace, score: Callable[[DrawSpace], Tensor], *, exact: bool = False
    ) -> None:
        self.space, self.score, self.exact = space, score, exact

    def scores(self) -> Tensor:
        """Scores given the choices so far."""
        return self.score(self.space)

    def take(self, index: int) -> None:
        """Condition on this candidate's data, whatever they will be."""
        self.space.condition(index, exact=self.exact)


@dataclass(frozen=True)
class Variance(Acquisition):
    r"""Posterior variance of the noise-free data, summed over the numbers of a candidate.

    .. math:: \mathrm{tr}(A_a C A_a^T)

    Batches are the candidates of the highest variance, which may all tell the same: for batches
    prefer `InformationGain` or `GoalVariance`.

    References
    ----------
    Cohn, Ghahramani and Jordan (1996), *Active learning with statistical models*, for the principle
    of measuring where one is least certain.

    Examples
    --------
    >>> Variance()
    Variance()
    """

    name = "variance"
    reference = "Cohn, Ghahramani and Jordan (1996), Active learning with statistical models"
    task = "image"

    def begin(self, belief: Belief) -> Scorer:
        """Variances."""
        return Scorer(belief.centred.square().sum((0, 2)))


@dataclass(frozen=True)
class InformationGain(Acquisition):
    r"""Nats that a measurement tells of the image, if image and noise are Gaussian.

    .. math:: \tfrac12 \log\det(I + \Sigma_a^{-1/2} A_a C A_a^T \Sigma_a^{-1/2})

    with the covariance C of the posterior draws and the variances Sigma of the noise. Each
    candidate of a batch is scored given those before it, whatever they will measure: the batch is
    the greedy one, which gains at least 1 - 1/e of what the best of its size would.

    Parameters
    ----------
    shrinkage
        How far the sample covariance of the data is shrunk towards its diagonal: from 0, not at
        all, to 1, or ``"auto"`` for an estimate of the best value. With few draws, chance
        correlations make candidates look as if they told of each other. The estimate takes the
        draws for independent.

    References
    ----------
    Krause, Singh and Guestrin (2008), *Near-optimal sensor placements in Gaussian processes*;
    Nemhauser, Wolsey and Fisher (1978) for the bound of greedy choices; Schäfer and Strimmer (2005)
    for the shrinkage.

    Examples
    --------
    >>> InformationGain()
    InformationGain(shrinkage=0.0)
    """

    name = "information-gain"
    reference = (
        "Krause, Singh and Guestrin (2008), Near-optimal sensor placements in Gaussian processes"
    )
    task = "image"
    needs_noise = True

    shrinkage: float | Literal["auto"] = 0.0

    def __post_init__(self) -> None:
        rho = self.shrinkage
        number = isinstance(rho, int | float) and not isinstance(rho, bool)
        if rho != "auto" and not (number and 0.0 <= rho <= 1.0):
            raise OptionError(f"shrinkage: got {rho!r}; expected a number from 0 to 1 or 'auto'")

    def begin(self, belief: Belief) -> Scorer:
        """Half log determinants, conditioned on each choice."""
        blocks = belief.centred / belief.positive_noise
        rho = self.shrinkage
        rho = best_shrinkage(blocks.flatten(1)) if isinstance(rho, str) else rho
        # What shrinking leaves on the diagonal alone tells of one number only, like noise of it.
        own = rho * blocks.square().sum(0)
        alone = 0.5 * own.log1p().sum(-1)
        space = DrawSpace(blocks * ((1.0 - rho) / (1.0 + own)).sqrt())
        return Conditioned(space, lambda space: alone + space.log_determinants())


@dataclass(frozen=True)
class PrincipalDirections(Acquisition):
    r"""Measurements along which the posterior draws spread most, as their principal directions do.

    .. math:: \| A_a X \|_F^2

    with the centred draws X, of which each choice of a batch takes away what its noise-free data
    determine; if all directions of the image were candidates, the batch would span the principal
    subspace. The first choice is that of `Variance`. The noise need not be known.

    References
    ----------
    Elata, Michaeli and Elad (2024), *Adaptive compressed sensing with diffusion-based posterior
    sampling*, with a given set of measurements.

    Examples
    --------
    >>> PrincipalDirections()
    PrincipalDirections()
    """

    name = "principal-directions"
    reference = (
        "Elata, Michaeli and Elad (2024), Adaptive compressed sensing with diffusion-based "
        "posterior sampling"
    )
    task = "image"

    def begin(self, belief: Belief) -> Scorer:
        """Spreads, less what the choices determine."""
        return Conditioned(DrawSpace(belief.centred), DrawSpace.variances, exact=True)


@dataclass(frozen=True)
class GoalVariance(Acquisition):
    r"""How much a measurement lowers the variance of what one wants to know of the image.

    .. math:: \mathrm{tr}(C_{ga} (C_{aa} + \Sigma_a)^{-1} C_{ag})

    with the draws' covariances of the goal g and the data of candidate a. It is the fall of the
    expected squared error of the goal's best linear estimate, which is the posterior mean if all is
    Gaussian. Batches are chosen one given the others.

    Parameters
    ----------
    goal
        Takes images ``(S, *image_shape)`` and returns what is wanted of each, ``(S,)`` or
        ``(S, k)``: a region, a volume, a mean. None for the image itself, in all its pixels.

    References
    ----------
    Attia, Alexanderian and Saibaba (2018), *Goal-oriented optimal design of experiments for
    large-scale Bayesian linear inverse problems*; Cohn, Ghahramani and Jordan (1996) for the
    criterion.

    Examples
    --------
    >>> GoalVariance(goal=lambda x: x[:, 10:20, 10:20].flatten(1))  # doctest: +ELLIPSIS
    GoalVariance(goal=<function <lambda> at ...>)
    """

    name = "goal-variance"
    reference = (
        "Attia, Alexanderian and Saibaba (2018), Goal-oriented optimal design of experiments for "
        "large-scale Bayesian linear inverse problems"
    )
    task = "image"
    needs_noise = True

    goal: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.goal is not None and not callable(self.goal):
            raise OptionError(f"goal: got {self.goal!r}; expected a function of images, or None")

    @torch.no_grad()
    def begin(self, belief: Belief) -> Scorer:
        """Reductions of the variance, conditioned on each choice."""
        wanted = self._wanted(belief)
        wanted = (wanted - wanted.mean(0)) / (belief.num_draws - 1) ** 0.5
        space = DrawSpace(belief.centred / belief.positive_noise, wanted)
        return Conditioned(space, DrawSpace.goal_reductions)

    def _wanted(self, belief: Belief) -> Tensor:
        num = belief.num_draws
        values = belief.images.flatten(1) if self.goal is None else self.goal(belief.images)
        if not isinstance(values, Tensor):
            raise DtypeError(f"goal: expected it to return a tensor, got {type(values).__name__}")
        if values.ndim not in (1, 2) or len(values) != num or values.numel() == 0:
            raise ShapeError(
                f"goal: expected values of {num} images, ({num},) or ({num}, k), got shape "
                f"{tuple(values.shape)}"
            )
        values = values.to(belief.data).reshape(num, -1)
        if not bool(torch.isfinite(values).all()):
            raise DataError("goal: its values of some posterior draws are not finite")
        return values
