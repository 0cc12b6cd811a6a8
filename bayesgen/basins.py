"""How many minima the restarts of an optimiser found: "best of starts" hides non-convexity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import ResultError
from bayesgen.posterior import Posterior
from bayesgen.types import check_positive


@dataclass(frozen=True)
class Basin:
    """Restarts that ended at the same optimum.

    Attributes
    ----------
    log_prob
        Log density of the best of them.
    restarts
        Their numbers, the best first.
    converged
        Whether that one has converged.
    """

    log_prob: float
    restarts: tuple[int, ...]
    converged: bool


def find_basins(
    posterior: Posterior, *, tolerance: float = 0.1, distance: float = 0.1
) -> list[Basin] | list[list[Basin]]:
    """Cluster the restarts of a point estimate; see `bayesgen.Posterior.basins`."""
    if not posterior.is_point_estimate:
        raise ResultError(
            "basins: this result holds draws from the posterior; expected the optima of MAP"
        )
    check_positive("tolerance", tolerance)
    check_positive("distance", distance)
    points = _standardised(posterior)
    log_prob, converged = posterior.log_prob[..., 0], posterior.stats["converged"][..., 0]
    if posterior.num_problems is None:
        return _cluster(points, log_prob, converged, tolerance, distance)
    return [
        _cluster(*problem, tolerance, distance)
        for problem in zip(points, log_prob, converged, strict=True)
    ]


def _standardised(posterior: Posterior) -> Tensor:
    """Optima ``(*problems, restarts, n)`` in prior standard deviations, if the model is there."""
    lead, rows = posterior.log_prob.ndim - 1, []
    draws = None
    if posterior.has_model:
        model, rng = posterior.model, torch.Generator().manual_seed(0)
        draws = model.constrain(model.prior_draws(100, rng))
    # Not in unconstrained coordinates, which are infinite at the wall of a box.
    for name, value in posterior.last_draws().items():
        flat = value.reshape(*value.shape[:lead], -1)
        if draws is not None:
            prior = draws[name].reshape(*draws[name].shape[:lead], -1)
            spread = prior.std(-2, keepdim=True)
            flat = flat / torch.where(spread > 0, spread, 1.0)
        rows.append(flat)
    return torch.cat(rows, -1)


def _cluster(
    points: Tensor, log_prob: Tensor, converged: Tensor, tolerance: float, distance: float
) -> list[Basin]:
    order = log_prob.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
    found: list[list[int]] = []
    for restart in order:
        for members in found:
            best = members[0]
            gap = float(log_prob[best] - log_prob[restart])
            apart = float((points[best] - points[restart]).square().mean().sqrt())
            if gap <= tolerance and apart <= distance:
                members.append(restart)
                break
        else:
            found.append([restart])
    return [Basin(float(log_prob[m[0]]), tuple(m), bool(converged[m[0]])) for m in found]
