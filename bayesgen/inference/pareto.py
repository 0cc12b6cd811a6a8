"""Importance ratios: smoothing their tail, and the units they are in."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from bayesgen.errors import ResultError
from bayesgen.inference.standardised import Standardised
from bayesgen.types import Density


def log_volume(log_density: Density, v: Tensor) -> Tensor:
    """Logarithm of the volume of the unit of a standardised density, one for each chain of ``v``.

    To be added to ratios of its values to densities in its units. ``v`` is ``(*problems, chains,
    draws, n)``, the result broadcasts against ``(*problems, chains, draws)``.
    """
    units = log_density.units(v) if isinstance(log_density, Standardised) else 1.0
    return torch.as_tensor(units, dtype=v.dtype, device=v.device).expand(v.shape).log().sum(-1)


def pareto_smoothed(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    r"""Smooth the largest importance ratios, and say how heavy their tail is.

    Parameters
    ----------
    log_ratio
        ``(*batch, draws)``; what is not finite counts as no weight.

    Returns
    -------
    log_weights, pareto_k
        Of shapes ``(*batch, draws)`` and ``(*batch,)``. The weights add up to one. The mean of a
        function with these weights is reliable if :math:`\hat k < 0.7`. Ratios that are all equal
        have no tail, :math:`\hat k = 0`; infinite says that too few of them, five, make a tail.

    Raises
    ------
    ResultError
        If no ratio of some row is finite.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.

    Examples
    --------
    >>> import torch
    >>> noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    >>> bool(pareto_smoothed(0.1 * noise)[1] < 0.5), bool(pareto_smoothed(5.0 * noise)[1] > 0.7)
    (True, True)
    """
    from bayesgen._arviz import import_arviz, major_version

    ratio = torch.where(torch.isfinite(log_ratio), log_ratio.double(), -torch.inf)
    top = ratio.amax(-1, keepdim=True)
    if bool((top == -torch.inf).any()):
        raise ResultError(
            "importance: the log density is not finite at any of the proposals; the approximation "
            "lies outside the model's domain"
        )
    ratio = ratio - top
    rounding = 1e2 * torch.finfo(log_ratio.dtype).eps * (1.0 + top.abs())
    equal = ratio.amin(-1, keepdim=True) > -rounding
    ratio = torch.where(equal, 0.0, ratio)
    # Tails of ties have no fit, and are left as they are.
    with np.errstate(all="ignore"):
        if major_version() >= 1:
            # It takes log likelihoods, whose reciprocals are the weights of leave-one-out.
            array_stats = import_module("arviz_stats.base").array_stats
            smoothed, pareto_k = array_stats.psislw(-ratio.cpu().numpy())
        else:
            smoothed, pareto_k = import_arviz().psislw(ratio.cpu().numpy())
    smoothed = torch.as_tensor(smoothed).to(ratio.device).log_softmax(-1)
    k = torch.where(equal.squeeze(-1), 0.0, torch.as_tensor(pareto_k).to(ratio.device))
    return smoothed.to(log_ratio), k.to(log_ratio)
