"""Entropic optimal transport between two sets of equally weighted points, in the log domain."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bayesgen.errors import ResultError
from bayesgen.models.evaluation.samples import blocks

_WINDOW = 6


def potentials(
    cost: Tensor, epsilon: float, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Dual potentials of the plan that minimises the mean cost plus a relative entropy.

    They are found by alternating updates, first at a large and then at a falling regularisation.

    Parameters
    ----------
    cost
        ``(N, M)``.
    epsilon
        Weight of the relative entropy of the plan to the product of its marginals, in units of
        the cost; positive.
    tolerance
        Sum of absolute errors left in a marginal of the plan.
    max_iterations
        Updates of both potentials.

    Returns
    -------
    tuple of Tensor
        ``(N,)`` and ``(M,)``; the sum of their means is the value of the transport problem.

    Raises
    ------
    ResultError
        If the tolerance is not reached.
    """

    def both(g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        f = _soft_minimum(cost, g, epsilon, cost.shape[1])
        return f, _soft_minimum(cost.T, f, epsilon, cost.shape[0])

    g, large = cost.new_zeros(cost.shape[1]), cost.max().item()
    while large > epsilon:
        g = both(g, large)[1]
        large /= 2
    g = _fixed_point(lambda g: both(g, epsilon)[1], g, epsilon, tolerance, max_iterations)
    return both(g, epsilon)


def self_potential(cost: Tensor, epsilon: float, tolerance: float, max_iterations: int) -> Tensor:
    """Dual potential of the transport of a set to itself, where both are the same.

    Found by averaged updates, which converge in a few iterations (Feydy et al., 2019). For
    parameters see `potentials`; ``cost`` is symmetric, and infinite on the diagonal if nothing may
    stay where it is.
    """
    num = int(cost[0].isfinite().sum())

    def update(p: Tensor) -> Tensor:
        return _soft_minimum(cost, p, epsilon, num)

    p = cost.new_zeros(len(cost))
    p = _fixed_point(update, p, epsilon, tolerance, max_iterations, damping=0.5)
    # The mean of p and its update: a pair of which one marginal is exact has their sum.
    return (p + update(p)) / 2


def _fixed_point(
    update: Callable[[Tensor], Tensor],
    p: Tensor,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
    *,
    damping: float = 1.0,
) -> Tensor:
    """Solve ``p = update(p)`` by Anderson's acceleration (Walker and Ni, 2011).

    Updates alone need many thousand iterations where a few points are far from the others. Of each
    only the share ``damping`` is taken: half where they would oscillate.
    """
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(max_iterations):
        residual = update(p) - p
        # What a marginal of the plan lacks, divided by the weights.
        error = torch.expm1(-residual / epsilon).abs().mean().item()
        if error <= tolerance:
            return p
        points, residuals = [*points, p][-_WINDOW:], [*residuals, damping * residual][-_WINDOW:]
        p = _extrapolate(points, residuals)
    raise ResultError(
        f"Sinkhorn's iteration left an error of {error:.1e} in the marginals after "
        f"{max_iterations} iterations, tolerance {tolerance:.1e}; raise regularisation or "
        "max_iterations"
    )


def _extrapolate(points: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """Step to where the residual, linear in between, is smallest, and on by that residual."""
    p, residual = points[-1], residuals[-1]
    if len(points) == 1:
        return p + residual
    steps = torch.stack(points).diff(dim=0)
    changes = torch.stack(residuals).diff(dim=0)
    gram = changes @ changes.T
    # Changes are nearly dependent when they are many; the ridge keeps the weights bounded.
    gram.diagonal().add_(1e-12 * gram.trace() + torch.finfo(gram.dtype).tiny)
    weights = torch.linalg.solve(gram, changes @ residual)
    return p + residual - weights @ (steps + changes)


def _soft_minimum(cost: Tensor, potential: Tensor, epsilon: float, num: int) -> Tensor:
    r""":math:`-\epsilon \log (\sum_j \exp((g_j - C_{ij}) / \epsilon) / n)` for each i."""
    parts = [torch.logsumexp((potential - cost[rows]) / epsilon, 1) for rows in blocks(*cost.shape)]
    return -epsilon * (torch.cat(parts) - math.log(num))
