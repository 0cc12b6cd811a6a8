"""Normal laws at all optima that restarts find, weighed by importance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import ResultError
from bayesgen.inference.base import Drawn, Population
from bayesgen.inference.curvature import Normals, Unconstrained, check_normal_laws_fit, normals_at
from bayesgen.inference.map import MAP
from bayesgen.inference.pareto import log_volume, pareto_smoothed
from bayesgen.inference.solvers import SolverState
from bayesgen.inference.tempering import effective_fraction, systematic
from bayesgen.types import Density, check_count, check_positive

# Optima are one if their log densities and their places, in standard deviations of the normal law
# at the better of them, are no further apart: the rule of `bayesgen.Posterior.basins`.
_GAP, _DISTANCE = 0.1, 0.1


class LaplaceMixtureInfo(NamedTuple):
    """How the search for optima stands; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    converged
        Share of the restarts that have arrived at an optimum.
    log_prob
        Highest log density found.
    """

    converged: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class LaplaceMixture(Population):
    r"""Independent draws from normal laws at many optima, corrected by importance resampling.

    Every chain searches from its own restarts, keeps each optimum :math:`v_j` once and proposes
    from the mixture of :math:`N(v_j, H_j^{-1})` with weights proportional to
    :math:`p(v_j, y) |H_j|^{-1/2}`, :math:`H_j` being the curvature there (Gauss-Newton's where all
    sites of the model are normal). Proposals are resampled by their Pareto-smoothed ratios to the
    true density.

    The statistic ``pareto_k`` says how far to trust that: below 0.7 the draws are good; above, the
    posterior has shapes that no normal law at an optimum covers. It cannot see a mode that no
    restart has found; chains that disagree can. ``log_evidence`` is the importance estimate, and
    ``num_modes`` counts the optima.

    Parameters
    ----------
    restarts
        Optimisations a chain starts, from draws of the prior: a mode that attracts one of them in
        five is missed by 16 (the default) three times in a hundred.
    oversampling
        Proposals for each draw that is kept.
    max_iterations
        Iterations after which optimisations that have not converged are used as they are.
    tolerance
        As of `bayesgen.inference.MAP`.

    References
    ----------
    Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 13.3 (mixtures of normal laws
    at modes); Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> import bayesgen as bg
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(0.0, 2.0))
    ...     pyro.sample("y", dist.Normal(z.square(), 0.5), obs=y)
    >>> found = bg.infer(model, torch.tensor(4.0), method=LaplaceMixture(), progress=False)
    >>> found.stats["num_modes"].max(), bool((found.stats["pareto_k"] < 0.7).all())
    (tensor(2.), True)
    """

    name: ClassVar[str] = "laplace-mixture"
    reference: ClassVar[str] = "Gelman et al. (2013), Bayesian Data Analysis, section 13.3"
    exact: ClassVar[bool] = False
    caveat: ClassVar[str] = "an approximation by normal laws at optima"

    restarts: int = 16
    oversampling: int = 5
    max_iterations: int = 500
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_count("restarts", self.restarts)
        check_count("oversampling", self.oversampling)
        check_count("max_iterations", self.max_iterations)
        check_positive("tolerance", self.tolerance)

    @property
    def _optimiser(self) -> MAP:
        return MAP("lbfgs", self.max_iterations, self.tolerance)

    def num_starts(self, draws: int) -> int:
        """One for each restart."""
        return self.restarts

    def init(self, log_density: Density, position: Tensor) -> SolverState:
        """Evaluate the density at all starts ``(*problems, chains, restarts, n)``.

        Raises
        ------
        OptionError
            If the model is too large, or some prior has kinks.
        """
        check_normal_laws_fit(log_density, self.name)
        return self._optimiser.init(Unconstrained(log_density), position)

    def step(
        self, log_density: Density, state: SolverState, rng: torch.Generator
    ) -> tuple[SolverState, LaplaceMixtureInfo]:
        """One iteration of every restart that has not stopped."""
        state, info = self._optimiser.step(Unconstrained(log_density), state, rng)
        share = info.converged.to(state.log_prob).mean(-1)
        return state, LaplaceMixtureInfo(share, state.log_prob.amax(-1))

    def finished(self, state: SolverState) -> bool:
        """Whether every restart has stopped."""
        return self._optimiser.finished(state)

    def draw(
        self, log_density: Density, state: SolverState, draws: int, rng: torch.Generator
    ) -> Drawn:
        """Resample proposals from the mixture.

        Raises
        ------
        ResultError
            If no restart of some chain ended at a strict maximum.
        """
        normals, log_weights = mixture_at(log_density, state.position, state.log_prob)
        # In rounds of equal size, so that memory does not grow with their number.
        rounds = [
            _propose(log_density, normals, log_weights, draws, rng)
            for _ in range(self.oversampling)
        ]
        position = torch.cat([v for v, _, _ in rounds], -2)
        log_prob, log_ratio = (torch.cat([r[i] for r in rounds], -1) for i in (1, 2))
        log_ratio = log_ratio + log_volume(log_density, position)
        smoothed, pareto_k = pareto_smoothed(log_ratio)
        # Sorted, so that copies of one proposal follow each other and count as one.
        chosen = systematic(smoothed.double(), rng, draws)
        log_evidence = log_ratio.logsumexp(-1) - math.log(log_ratio.shape[-1])
        facts = {
            "pareto_k": pareto_k,
            "importance_ess": effective_fraction(smoothed) * smoothed.shape[-1],
            "log_evidence": log_evidence,
            "num_modes": torch.isfinite(log_weights).sum(-1).to(log_prob),
        }
        return Drawn(
            torch.take_along_dim(position, chosen.unsqueeze(-1), -2),
            torch.take_along_dim(log_prob, chosen, -1),
            {name: fact.unsqueeze(-1).expand(chosen.shape) for name, fact in facts.items()},
        )


def mixture_at(log_density: Density, position: Tensor, log_prob: Tensor) -> tuple[Normals, Tensor]:
    """Normal laws at restarts ``(*batch, restarts, n)`` and the logarithms of their weights.

    The weights ``(*batch, restarts)`` add up to one; a restart that is not the best of its basin,
    or no strict maximum, has none.
    """
    normals, fits, _ = normals_at(log_density, position)
    log_prob = torch.where(fits & torch.isfinite(log_prob), log_prob, -torch.inf)
    log_prob = torch.where(_distinct(normals, log_prob), log_prob, -torch.inf)
    log_weights = log_prob - normals.half_log_det
    lost = ~torch.isfinite(log_weights).any(-1)
    if bool(lost.any()):
        raise ResultError(
            f"laplace-mixture: no restart of {int(lost.sum())} of {lost.numel()} chains ended at a "
            "strict maximum; raise restarts or max_iterations, or sample, with 'smc' for example"
        )
    return normals, log_weights.log_softmax(-1)


def _distinct(normals: Normals, log_prob: Tensor) -> Tensor:
    """Which restarts are the best of their basin, ``(*batch, restarts)``."""
    order = log_prob.argsort(dim=-1, descending=True, stable=True)
    value = torch.take_along_dim(log_prob, order, -1)
    place = torch.take_along_dim(normals.mean, order.unsqueeze(-1), -2)
    factor = torch.take_along_dim(normals.factor, order[..., None, None], -3)
    # From each, whitened by its own law, to the others.
    apart = (place.unsqueeze(-3) - place.unsqueeze(-2)) @ factor
    same = (value.unsqueeze(-1) - value.unsqueeze(-2) <= _GAP) & (
        apart.square().mean(-1).sqrt() <= _DISTANCE
    )
    best = torch.zeros_like(value, dtype=torch.bool)
    for i in range(value.shape[-1]):
        best[..., i] = ~(best & same[..., i])[..., :i].any(-1)
    return torch.zeros_like(best).scatter(-1, order, best)


def _propose(
    log_density: Density, normals: Normals, log_weights: Tensor, num: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of the mixture, their log density, and its ratio to the mixture's."""
    component = _multinomial(log_weights, num, rng)
    shape = (*component.shape, normals.mean.shape[-1])
    noise = torch.randn(shape, generator=rng, dtype=normals.mean.dtype, device=rng.device)
    noise = noise.to(normals.mean.device).unsqueeze(-3)
    every = normals.spread(noise.expand(*normals.mean.shape[:-1], *noise.shape[-2:]))
    v = torch.take_along_dim(every, component[..., None, :, None], -3).squeeze(-3)
    log_prob = log_density.value_and_grad(v)[0]
    each = normals.log_prob(v.unsqueeze(-3)) + log_weights.unsqueeze(-1)
    return v, log_prob, log_prob - each.logsumexp(-2)


def _multinomial(log_weights: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """Numbers ``(*batch, num)`` drawn with probabilities that need not add up to one."""
    weights = log_weights.double().softmax(-1).reshape(-1, log_weights.shape[-1]).to(rng.device)
    chosen = torch.multinomial(weights, num, replacement=True, generator=rng)
    return chosen.reshape(*log_weights.shape[:-1], num).to(log_weights.device)
