"""Proximal maps of priors against searches over grids."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.distributions import StructuredNormal, TotalVariation
from bayesgen.proximal import proximal_map

float64 = torch.float64
LOC = torch.tensor([0.0, -0.5, 1.0], dtype=float64)
SCALE = torch.tensor([0.5, 1.0, 2.0], dtype=float64)
VALUES = torch.tensor(
    [[-3.0, -0.6, 0.9], [0.2, 2.0, 1.1], [1.0, -0.5, -4.0], [0.0, 0.0, 0.0]], dtype=float64
)


def by_search(prior: dist.Distribution, value: Tensor, step: Tensor) -> Tensor:
    """Each number on its own, on a grid of spacing 1e-4."""
    grid = torch.arange(-50_000, 50_001, dtype=float64)[:, None, None] * 1e-4
    penalty = -step[:, None] * prior.base_dist.log_prob(grid)
    best = (0.5 * (grid - value).square() + penalty).argmin(0)
    return grid[:, 0, 0][best]


def test_soft_threshold_minimises() -> None:
    prior = dist.Laplace(LOC, SCALE).to_event(1)
    step = torch.tensor([0.3, 1.0, 0.05, 2.0], dtype=float64)
    found, _ = proximal_map(prior)(VALUES, step, None, None)
    best = by_search(prior, VALUES, step)
    assert torch.allclose(found, best, rtol=0, atol=1e-4)
    # As exact as the grid: at kinks the value is the location itself.
    assert torch.equal(found == LOC, (best - LOC).abs() < 1e-8) and bool((found == LOC).any())
    other, _ = proximal_map(dist.Laplace(LOC, 1 / SCALE).to_event(1))(VALUES, step, None, None)
    assert not torch.allclose(other, best, atol=1e-2)


def test_steps_of_each_value() -> None:
    soft_threshold = proximal_map(dist.Laplace(LOC, SCALE))
    step = torch.tensor([0.3, 1.0, 0.05, 2.0], dtype=float64)
    each, _ = soft_threshold(VALUES, step[:, None].expand_as(VALUES), None, None)
    assert torch.equal(each, soft_threshold(VALUES, step, None, None)[0])
    zero, _ = soft_threshold(VALUES, torch.zeros((), dtype=float64), None, None)
    assert torch.allclose(zero, VALUES, rtol=0, atol=1e-15)


def test_images_and_wrappers() -> None:
    prior = dist.Laplace(torch.zeros(2, 3), 0.5).to_event(1).to_event(1)
    found, _ = proximal_map(prior)(torch.full((4, 2, 3), 2.0), torch.ones(4), None, None)
    assert torch.equal(found, torch.zeros(4, 2, 3)) and found.dtype == torch.float32


def test_a_distribution_may_bring_its_own() -> None:
    prior = TotalVariation((2, 3), 1.0)
    assert proximal_map(prior) == prior.proximal_map


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(torch.zeros(3), 1.0).to_event(1),
        dist.StudentT(3.0, torch.zeros(3), 1.0),
        dist.LogNormal(torch.zeros(3), 1.0),
        dist.Exponential(torch.ones(3)),
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        StructuredNormal(torch.zeros(2, 3), 0.0),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_other_priors_have_none(prior: dist.Distribution) -> None:
    assert proximal_map(prior) is None
