"""Conditioning in the space of draws against dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesgen.design import draw_space
from bayesgen.design.draw_space import DrawSpace, best_shrinkage, compressed
from bayesgen.errors import OptionError

float64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def covariances(blocks: Tensor, goal: Tensor, chosen: list[int], noise: float) -> Tensor:
    """Dense covariance of all data and the goal, given the data of some blocks."""
    _, _, q = blocks.shape
    joint = torch.cat([blocks.flatten(1), goal], 1)
    C = joint.T @ joint
    for index in chosen:
        at = slice(index * q, (index + 1) * q)
        inner = C[at, at] + noise * torch.eye(q, dtype=float64)
        C = C - C[:, at] @ torch.linalg.pinv(inner, rtol=1e-10, hermitian=True) @ C[at]
    return C


SIZES = [(30, 6, 1), (30, 6, 4), (5, 6, 9)]  # the last: more numbers than draws
CHOSEN = [2, 5, 0]


def worst_error(space_class: type[DrawSpace], size: tuple[int, int, int]) -> float:
    """Largest deviation from dense linear algebra of all that a space tells."""
    S, n, q = size
    blocks, goal = random(S, n, q, seed=1), random(S, 7, seed=2)
    errors = []
    for step in range(len(CHOSEN) + 1):
        space = space_class(blocks, goal)
        for index in CHOSEN[:step]:
            space.condition(index)
        C = covariances(blocks, goal, CHOSEN[:step], 1.0)
        for a in range(n):
            at = slice(a * q, (a + 1) * q)
            inner = C[at, at] + torch.eye(q, dtype=float64)
            cross = C[n * q :, at]
            reduction = torch.linalg.solve(inner, cross.T) @ cross
            errors += [
                space.variances()[a] - C[at, at].trace(),
                space.log_determinants()[a] - 0.5 * torch.logdet(inner),
                space.goal_reductions()[a] - reduction.trace(),
            ]
    return float(torch.stack(errors).abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [2**24, 1])
def test_as_dense(size: tuple[int, int, int], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_space, "_MOST", most)  # all at once, or one candidate at a time
    assert worst_error(DrawSpace, size) < 1e-10


class Unconditioned(DrawSpace):
    def condition(self, index: int, *, exact: bool = False) -> None: ...


class GoalForgotten(DrawSpace):
    def condition(self, index: int, *, exact: bool = False) -> None:
        goal, self.goal = self.goal, None
        super().condition(index, exact=exact)
        self.goal = goal


class Projected(DrawSpace):
    """Forgets the noise."""

    def condition(self, index: int, *, exact: bool = False) -> None:
        super().condition(index, exact=True)


@pytest.mark.parametrize("mutant", [Unconditioned, GoalForgotten, Projected])
@pytest.mark.parametrize("size", SIZES)
def test_mutants_are_rejected(mutant: type[DrawSpace], size: tuple[int, int, int]) -> None:
    assert worst_error(mutant, size) > 1e-3


@pytest.mark.parametrize("size", [(30, 6, 1), (30, 6, 4)])
def test_without_noise(size: tuple[int, int, int]) -> None:
    blocks, goal = random(*size, seed=1), random(size[0], 7, seed=2)
    space = DrawSpace(blocks, goal)
    for step, index in enumerate(CHOSEN):
        space.condition(index, exact=True)
        C = covariances(blocks, goal, CHOSEN[: step + 1], 0.0).diagonal()[: size[1] * size[2]]
        torch.testing.assert_close(space.variances(), C.reshape(size[1:]).sum(-1))
    torch.testing.assert_close(space.variances()[CHOSEN], torch.zeros(3, dtype=float64))


def left_after_five(dtype: torch.dtype) -> Tensor:
    """Variances of which measurements leave one part in a thousand million."""
    blocks = random(50, 40, 1, seed=3)
    blocks = 3e4 * (blocks[:, :1] + 3e-5 * blocks)
    space = DrawSpace(blocks.to(dtype))
    for index in range(5):
        space.condition(index)
    left = space.variances().double()
    assert float(left.max() / blocks.square().sum(0).max()) < 1e-8
    return left


def test_single_precision_keeps_small_variances() -> None:
    left, truth = left_after_five(torch.float32), left_after_five(float64)
    torch.testing.assert_close(left, truth, rtol=0.1, atol=0.0)


def of_low_rank(noise: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factor and goal, with blocks of five numbers that depend on two only."""
    blocks = random(40, 6, 2, seed=4) @ random(2, 5, seed=6) / noise
    return blocks.to(dtype), random(40, 3, seed=5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-4, 1e-5, 1e-7])
def test_numbers_that_depend_on_each_other(noise: float, dtype: torch.dtype) -> None:
    blocks, goal = of_low_rank(noise, dtype)
    space = DrawSpace(blocks, goal)
    found = torch.stack([space.log_determinants(), space.goal_reductions()])
    directions, values, _ = torch.linalg.svd(blocks.double().permute(1, 0, 2), full_matrices=False)
    shares = values.square() / (1.0 + values.square())
    reductions = (shares[:, :, None] * (directions.mT @ goal.double()).square()).sum((1, 2))
    truth = torch.stack([0.5 * values.square().log1p().sum(1), reductions])
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("noise", [1e-8, 1e-12, 1e-15, 1e-20])
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_tiny_noise_is_finite_or_refused(size: int, noise: float, dtype: torch.dtype) -> None:
    blocks, goal = of_low_rank(noise, dtype)
    if dtype == torch.float32 and noise < 1e-18:
        with pytest.raises(OptionError, match="noise: .*overflows torch.float32"):
            DrawSpace(blocks[..., :size], goal)
        return
    space = DrawSpace(blocks[..., :size], goal)
    for index in range(3):
        for scores in (space.log_determinants(), space.goal_reductions(), space.variances()):
            assert bool(torch.isfinite(scores).all())
        space.condition(index)


def test_compression_keeps_products() -> None:
    wide = random(5, 4, 20)
    small = compressed(wide)
    assert small.shape == (5, 4, 5)
    products = [torch.einsum("snq,tnq->nst", blocks, blocks) for blocks in (wide, small)]
    torch.testing.assert_close(*products)
    assert compressed(wide[..., :3]).shape == (5, 4, 3)


def by_loops(factor: Tensor, count: Callable[[int, int], bool] = lambda i, j: i != j) -> float:
    """Schäfer and Strimmer's formula, number by number."""
    S, p = factor.shape
    x = factor * (S - 1) ** 0.5
    variance, square = 0.0, 0.0
    for i in range(p):
        for j in range(p):
            if count(i, j):
                w = x[:, i] * x[:, j]
                variance += float(S / (S - 1) ** 3 * (w - w.mean()).square().sum())
                square += float((w.mean() * S / (S - 1)).square())
    return min(1.0, variance / square)


def test_shrinkage_is_the_published_formula() -> None:
    x = random(15, 6).cumsum(1)
    factor = (x - x.mean(0)) / 14**0.5
    assert best_shrinkage(factor) == pytest.approx(by_loops(factor), rel=1e-10)
    assert best_shrinkage(factor) != pytest.approx(by_loops(factor, lambda i, j: True), rel=1e-3)
    assert best_shrinkage(torch.zeros(4, 3)) == 1.0


def test_shrinkage_comes_nearer_to_the_truth() -> None:
    truth = torch.full((20, 20), 0.3, dtype=float64).fill_diagonal_(1.0)
    losses = torch.zeros(3, dtype=float64)
    for seed in range(20):
        x = random(15, 20, seed=seed) @ torch.linalg.cholesky(truth).T
        factor = (x - x.mean(0)) / 14**0.5
        C = factor.T @ factor
        for k, rho in enumerate((0.0, best_shrinkage(factor), 1.0)):
            losses[k] += (rho * torch.diag(C.diagonal()) + (1 - rho) * C - truth).square().sum()
    assert float(losses[1]) < 0.8 * float(losses[[0, 2]].min())
