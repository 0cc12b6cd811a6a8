"""Quasi-Newton history of L-BFGS, one a row of a batch (Nocedal and Wright 2006, section 7.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def empty_history(position: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps s, changes y and 1/<s, y> of L-BFGS, none of them used yet."""
    pairs = position.new_zeros((length, *position.shape))
    return pairs, pairs, position.new_zeros((length, *position.shape[:-1]))


def two_loops(history: Any, q: Tensor, scale: Tensor) -> Tensor:
    """L-BFGS's inverse Hessian times ``q``; ``scale`` is the initial one (Algorithm 7.4)."""
    alphas = []
    pairs = list(zip(*history[:3], strict=True))
    for s, y, rho in reversed(pairs):
        alpha = rho * (s * q).sum(-1)
        q = q - alpha[..., None] * y
        alphas.append(alpha)
    q = q * scale[..., None]
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = rho * (y * q).sum(-1)
        q = q + (alpha - beta)[..., None] * s
    return q


def remember(
    history: Any, step: Tensor, change: Tensor, moved: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The history with a new pair where rows moved along positive curvature, unused elsewhere."""
    product = (step * change).sum(-1)
    positive = moved & (product > 1e-10 * step.norm(dim=-1) * change.norm(dim=-1))
    positive = positive & torch.isfinite(1.0 / product)
    rho = torch.where(positive, 1.0 / product, 0.0)
    steps, changes, products = history[:3]
    return (
        torch.cat([steps[1:], step[None]]),
        torch.cat([changes[1:], change[None]]),
        torch.cat([products[1:], rho[None]]),
    )
