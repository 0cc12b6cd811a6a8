from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayesgen.errors import ResultError
from bayesgen.models.evaluation.sinkhorn import potentials, self_potential


@pytest.fixture
def cost(rng: torch.Generator) -> Tensor:
    return 3 * torch.rand(5, 8, generator=rng, dtype=torch.float64)


def test_the_plan_has_the_marginals_and_the_value(cost: Tensor) -> None:
    """Primal and dual value agree, so both are the optimum."""
    for epsilon in (0.05, 1.0, 100.0):
        f, g = potentials(cost, epsilon, 1e-10, 2000)
        plan = ((f[:, None] + g - cost) / epsilon).exp() / 40
        torch.testing.assert_close(plan.sum(0), torch.full((8,), 1 / 8, dtype=torch.float64))
        torch.testing.assert_close(plan.sum(1), torch.full((5,), 1 / 5, dtype=torch.float64))
        primal = (plan * cost).sum() + epsilon * (plan * (plan * 40).log()).sum()
        torch.testing.assert_close(f.mean() + g.mean(), primal)


def test_the_tolerance_is_kept(cost: Tensor) -> None:
    for tolerance in (1e-1, 1e-4, 1e-8):
        f, g = potentials(cost, 0.05, tolerance, 2000)
        plan = ((f[:, None] + g - cost) / 0.05).exp() / 40
        assert (plan.sum(1) - 1 / 5).abs().sum() <= tolerance


def test_a_set_with_itself_has_one_potential(rng: torch.Generator) -> None:
    x = torch.randn(9, 3, generator=rng, dtype=torch.float64)
    cost = torch.cdist(x, x).square()
    p = self_potential(cost, 2.0, 1e-12, 1000)
    f, g = potentials(cost, 2.0, 1e-12, 1000)
    torch.testing.assert_close(2 * p.mean(), f.mean() + g.mean())
    plan = ((p[:, None] + p - cost) / 2.0).exp() / 81
    torch.testing.assert_close(plan.sum(1), torch.full((9,), 1 / 9, dtype=torch.float64))


def test_images_may_be_forbidden_to_stay(rng: torch.Generator) -> None:
    x = torch.randn(9, 3, generator=rng, dtype=torch.float64)
    cost = torch.cdist(x, x).square().fill_diagonal_(torch.inf)
    p = self_potential(cost, 0.3, 1e-12, 1000)
    plan = ((p[:, None] + p - cost) / 0.3).exp() / 72
    assert (plan.diagonal() == 0).all()
    torch.testing.assert_close(plan.sum(1), torch.full((9,), 1 / 9, dtype=torch.float64))


def test_a_small_regularisation_converges_too(rng: torch.Generator) -> None:
    """A fiftieth of the mean cost: plain updates, or undamped ones, take many thousand."""
    x = torch.randn(40, 4, generator=rng, dtype=torch.float64)
    cost = torch.cdist(x, x).square()
    epsilon = 0.02 * cost.mean().item()
    p = self_potential(cost.fill_diagonal_(torch.inf), epsilon, 1e-6, 1000)
    plan = ((p[:, None] + p - cost) / epsilon).exp() / (40 * 39)
    assert (plan.sum(1) - 1 / 40).abs().sum() < 1e-5


def test_no_convergence_is_an_error(cost: Tensor) -> None:
    square = cost[:, :5] @ cost[:, :5].T
    for function, matrix in [(potentials, cost), (self_potential, square)]:
        with pytest.raises(ResultError, match="after 3 iterations.*raise regularisation"):
            function(matrix, 0.01, 1e-9, 3)
