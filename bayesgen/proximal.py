"""Proximal maps of priors: what makes problems with kinks solvable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesgen.traces import base_law

# From values ``(*batch, *shape)``, a step for each of them, ``(*batch,)`` or ``(*batch, *shape)``,
# what the last call returned beside the result, and by how much the objective may be missed,
# ``(*batch,)`` or None, to the result and where to begin next time.
ProximalMap = Callable[[Tensor, Tensor, Any, Tensor | None], tuple[Tensor, Any]]


def proximal_map(prior: Any) -> ProximalMap | None:
    r"""Return :math:`(v, t) \mapsto \arg\min_u \tfrac12 |u - v|^2 + t\,g(u)`, or None.

    With g the prior's negative log density.

    Parameters
    ----------
    prior
        A distribution: independent Laplace variables, or one with a method ``proximal_map``, such
        as `bayesgen.distributions.TotalVariation`.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> soft_threshold = proximal_map(dist.Laplace(torch.zeros(3), 0.5).to_event(1))
    >>> soft_threshold(torch.tensor([-3.0, 0.5, 3.0]), torch.tensor(1.0), None, None)[0]
    tensor([-1.,  0.,  1.])
    """
    own: ProximalMap | None = getattr(prior, "proximal_map", None)
    if own is not None:
        return own
    base = base_law(prior)
    if not isinstance(base, torch.distributions.Laplace):
        return None
    loc, scale = base.loc, base.scale

    def soft_threshold(
        value: Tensor, step: Tensor, memory: Any, accuracy: Tensor | None
    ) -> tuple[Tensor, None]:
        threshold = step.reshape(step.shape + (1,) * (value.ndim - step.ndim)) / scale
        difference = value - loc
        return loc + difference.sign() * (difference.abs() - threshold).clamp(min=0), None

    return soft_threshold
