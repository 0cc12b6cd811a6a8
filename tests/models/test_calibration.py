"""Calibrated scores are log odds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayesgen.models.calibration import fit_log_odds


@pytest.fixture
def scores() -> tuple[Tensor, Tensor]:
    """Gaussians at +1 and -1: the log odds of a score x are 2 x."""
    rng = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 20_000, generator=rng, dtype=torch.float64)
    return real + 1, fake - 1


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.05, 3.0), (40.0, -7.0), (-1.0, 0.0)])
def test_log_odds_are_found_whatever_the_scale(
    scores: tuple[Tensor, Tensor], scale: float, offset: float
) -> None:
    real, fake = (scale * part + offset for part in scores)
    found = fit_log_odds(real, fake)
    # Errors of the slope 2 are about 0.03 with 40,000 scores; six of them.
    assert found[0] * scale == pytest.approx(2, abs=0.18)
    assert found[1] + found[0] * offset == pytest.approx(0, abs=0.1)


def test_the_fit_is_stationary(scores: tuple[Tensor, Tensor]) -> None:
    real, fake = (part[:50] for part in scores)
    ab = torch.tensor(fit_log_odds(real, fake), dtype=torch.float64, requires_grad=True)
    high, low = 51 / 52, 1 / 52

    def entropy(logits: Tensor, target: float) -> Tensor:
        goal = torch.full_like(logits, target)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, goal)

    loss = entropy(ab[0] * real + ab[1], high) + entropy(ab[0] * fake + ab[1], low)
    (gradient,) = torch.autograd.grad(loss, ab)
    assert gradient.abs().max() < 1e-10
    (mutant,) = torch.autograd.grad(entropy(ab[0] * real + ab[1], 1.0), ab)
    assert mutant.abs().max() > 1e-4


def test_classes_of_unequal_size_count_alike(scores: tuple[Tensor, Tensor]) -> None:
    scale, offset = fit_log_odds(scores[0], scores[1][:2000])
    assert scale == pytest.approx(2, abs=0.3) and offset == pytest.approx(0, abs=0.3)


def test_separable_scores_get_a_finite_slope() -> None:
    scale, offset = fit_log_odds(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, -2.0]))
    assert 0 < scale < 100 and abs(offset) < 100


def test_equal_scores_are_left_alone() -> None:
    assert fit_log_odds(torch.zeros(5), torch.zeros(5)) == (1.0, 0.0)
