"""Make a classifier's scores mean what they say: log odds."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_STEPS = 100


@torch.no_grad()
def fit_log_odds(real: Tensor, fake: Tensor) -> tuple[float, float]:
    r"""Fit :math:`a`, :math:`b` so that :math:`a s + b` are the log odds of "real" given a score s.

    Maximum likelihood of a logistic model with as many real as generated images. The targets are
    not 1 and 0 but :math:`(N + 1) / (N + 2)` and :math:`1 / (N + 2)`, as if one more of each had
    been seen with the wrong label: scores that part the images of a sample completely would
    otherwise get an infinite slope.

    Parameters
    ----------
    real, fake
        Scores ``(N,)`` and ``(M,)``, at least one each, of images that the classifier has not
        learned from.

    Returns
    -------
    scale, offset
        :math:`a` and :math:`b`; 1 and 0 if the scores are all equal.

    References
    ----------
    Platt (1999), Probabilistic outputs for support vector machines.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> real, fake = torch.randn(2, 100_000, generator=rng)
    >>> scale, offset = fit_log_odds(0.1 * (real + 1), 0.1 * (fake - 1))  # log odds are 2 x
    >>> round(scale), abs(offset) < 0.1
    (20, True)
    """
    scores = torch.cat([real, fake]).double()
    spread = scores.std(correction=0)
    if not spread > 0:
        return 1.0, 0.0
    centre = scores.mean()
    design = torch.stack([(scores - centre) / spread, torch.ones_like(scores)], 1)
    targets = torch.cat([_target(real, True), _target(fake, False)])
    # Classes of unequal size count alike.
    weights = torch.cat([torch.full_like(part, 1 / len(part)) for part in (real, fake)]).double()
    found = _newton(design, targets, weights)
    scale = found[0] / spread
    return scale.item(), (found[1] - scale * centre).item()


def _target(scores: Tensor, is_real: bool) -> Tensor:
    num = len(scores)
    value = (num + 1) / (num + 2) if is_real else 1 / (num + 2)
    return torch.full((num,), value, dtype=torch.float64, device=scores.device)


def _newton(design: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Minimise the weighted cross entropy of a logistic model; steps are halved until it falls."""

    def loss(coefficients: Tensor) -> Tensor:
        logits = design @ coefficients
        return (weights * (torch.nn.functional.softplus(logits) - targets * logits)).sum()

    found = design.new_zeros(2)
    for _ in range(_MAX_STEPS):
        odds = (design @ found).sigmoid()
        gradient = design.T @ (weights * (odds - targets))
        if gradient.abs().max() < 1e-12:
            break
        curvature = design.T @ ((weights * odds * (1 - odds))[:, None] * design)
        step = torch.linalg.solve(curvature, gradient)
        length = 1.0
        while loss(found - length * step) > loss(found) and length > 1e-8:
            length /= 2
        found = found - length * step
    return found
