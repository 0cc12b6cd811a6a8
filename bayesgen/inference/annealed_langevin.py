"""Langevin steps that let the data in little by little: a search for modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import check_target
from bayesgen.inference.langevin import ULA, LangevinState
from bayesgen.types import SplitDensity, check_count, check_positive

# Of the adjusted steps below beta = 1; optimal in high dimension (Roberts and Rosenthal 1998).
_TARGET = 0.574


class AnnealedState(NamedTuple):
    """Where the chains are, and how much the data counts.

    Attributes
    ----------
    position, log_prob
        Points ``(*problems, chains, n)`` and their log densities at the current beta.
    chain
        The chains with their step size and scales.
    beta
        Weight of the likelihood.
    entering
        Whether beta has just changed, so that densities and step sizes are those of the last.
    """

    position: Tensor
    log_prob: Tensor
    chain: LangevinState
    beta: float
    entering: bool


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    r"""Anneal from the prior towards the posterior in warm-up, then unadjusted Langevin steps.

    The first half of warm-up samples :math:`p(v)\, p(y \mid v)^\beta` at weights :math:`\beta`
    that rise geometrically to 1, by Langevin steps with a Metropolis test; the second half and the
    draws are those of `bayesgen.inference.ULA`. While :math:`\beta` is small the likelihood is flat
    and chains cross between what will be separate modes.

    A heuristic to find modes: chains are shared out between modes by what these weighed at some
    :math:`\beta < 1`, which nothing corrects, and draws have the bias of unadjusted steps. Where
    weights of modes matter, use sequential Monte Carlo or parallel tempering, which anneal along
    the same path and correct for it.

    Parameters
    ----------
    levels
        Number of weights below 1, each for an equal part of half the warm-up.
    first
        Smallest :math:`\beta`. The default 1e-3 widens Gaussian noise 30 times; the likelihood
        should hardly be felt there.
    target_acceptance
        As for `bayesgen.inference.ULA`, at :math:`\beta = 1`.
    denoise
        As for `bayesgen.inference.ULA`.
    adapt_mass
        Whether warm-up estimates the posterior variances, pooled over chains; else they are 1. If
        chains end in several modes, this is their distance as well.

    References
    ----------
    Song and Ermon (2019), Generative modeling by estimating gradients of the data distribution,
    algorithm 1; Jalal et al. (2021), Robust compressed sensing MRI with deep generative priors.

    Examples
    --------
    >>> AnnealedLangevin(levels=10)
    AnnealedLangevin(levels=10, first=0.001, target_acceptance=0.98, denoise=None, adapt_mass=True)
    """

    name = "annealed-langevin"
    reference = "Song and Ermon (2019), Generative modeling by estimating gradients"
    exact: ClassVar[bool] = False
    caveat: ClassVar[str] = "a heuristic for finding modes, and unadjusted: its draws are biased"

    levels: int = 20
    first: float = 1e-3
    target_acceptance: float = 0.98
    denoise: float | None = None
    adapt_mass: bool = True

    def __post_init__(self) -> None:
        check_count("levels", self.levels)
        if not isinstance(self.first, float) or not 0.0 < self.first < 1.0:
            raise OptionError(f"first: got {self.first!r}; expected a number between 0 and 1")
        check_target(self.target_acceptance)
        check_positive("denoise", self.denoise, allow_none=True)

    @property
    def _kernel(self) -> ULA:
        return ULA(
            target_acceptance=self.target_acceptance,
            denoise=self.denoise,
            adapt_mass=self.adapt_mass,
        )

    def init(self, log_density: SplitDensity, position: Tensor) -> AnnealedState:  # type: ignore[override]
        """First state, at the posterior: annealing begins with warm-up."""
        chain = self._kernel.init(_WithWeight(log_density, 1.0), position)
        return AnnealedState(position, chain.log_prob, chain, 1.0, entering=False)

    def step(  # type: ignore[override]
        self, log_density: SplitDensity, state: AnnealedState, rng: torch.Generator
    ) -> tuple[AnnealedState, Any]:
        """One Langevin step at the current weight; on entering a weight, find a step size first."""
        density, chain = _WithWeight(log_density, state.beta), state.chain
        if state.entering:
            # Each weight has its own step size, found anew.
            settled = ULA(target_acceptance=_TARGET) if state.beta < 1 else self._kernel
            chain = settled.init(density, chain.position)._replace(adjusted=True)
        chain, info = self._kernel.step(density, chain, rng)
        return AnnealedState(chain.position, chain.log_prob, chain, state.beta, False), info

    def combine(self, earlier: Any, later: Any) -> Any:
        """Divergences of steps that thinning drops still count."""
        return self._kernel.combine(earlier, later)

    def adapt(self, state: AnnealedState, info: Any, iteration: int, warmup: int) -> AnnealedState:
        """Tune the step size, and move on to the next weight when it is time."""
        annealing, following = warmup // 2, iteration + 1
        if iteration >= annealing:
            chain = self._kernel.adapt(state.chain, info, iteration - annealing, warmup - annealing)
            return state._replace(chain=chain)
        level = following * self.levels // annealing
        beta = self.first ** (1.0 - level / self.levels)
        if beta != state.beta:
            return state._replace(beta=beta, entering=True)
        return state._replace(chain=_tuned(state.chain, info.acceptance_rate))


def _tuned(state: LangevinState, acceptance: Tensor) -> LangevinState:
    """Every chain with a step size of its own, by dual averaging."""
    averaging = state.chain.averaging.update(acceptance[..., None], _TARGET)
    step_size = averaging.log_step.exp()
    return state._replace(chain=state.chain._replace(averaging=averaging, step_size=step_size))


class _WithWeight:
    """Log prior plus a multiple of the log likelihood."""

    def __init__(self, log_density: SplitDensity, beta: float) -> None:
        self.num_dims = log_density.num_dims
        self._log_density, self._beta = log_density, beta

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        if self._beta == 1.0:
            return self._log_density.value_and_grad(v, jacobian=jacobian)
        parts = self._log_density.split(v)
        return (
            parts.prior + self._beta * parts.likelihood,
            parts.prior_gradient + self._beta * parts.likelihood_gradient,
        )
