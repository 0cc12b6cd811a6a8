from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bayesgen.models import Generator
from bayesgen.models.evaluation.jacobian import jacobian
from bayesgen.models.evaluation.least_squares import (
    LatentProblem,
    Solution,
    descend,
    levenberg_marquardt,
)


class Curved(Generator):
    """``G(z) = tanh(W z)``, smooth and one to one; the last coordinate can be made idle."""

    def __init__(self, idle: bool = False) -> None:
        super().__init__((3, 4), 3)
        rng = torch.Generator().manual_seed(1)
        weight = 0.5 * torch.randn(12, 3, generator=rng, dtype=torch.float64)
        weight[:, 2] *= 0 if idle else 1
        self.register_buffer("weight", weight)

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T).tanh().unflatten(-1, (3, 4))


def problem_of(generator: Generator, truth: Tensor, scale: float = 1.0) -> LatentProblem:
    scales = torch.full((generator.latent_dim,), scale, dtype=truth.dtype)
    images = generator(truth)
    return LatentProblem(generator, images, scales, images.flatten(1).square().sum(1))


def solve(problem: LatentProblem, start: Tensor, solver: str, **options: float) -> Solution:
    if solver == "levenberg-marquardt":
        return levenberg_marquardt(problem, start, **options)  # type: ignore[arg-type]
    return descend(problem, start, solver=solver, **options)  # type: ignore[arg-type]


@pytest.fixture
def truth(rng: torch.Generator) -> Tensor:
    return torch.randn(5, 3, generator=rng, dtype=torch.float64)


def test_normal_equations_and_gradient(truth: Tensor) -> None:
    problem = problem_of(Curved(), truth, scale=2.0)
    v, rows = truth / 3, torch.arange(5)
    A, b, value = problem.linearised(v, rows)
    direct, gradient = problem.value_and_grad(v)
    torch.testing.assert_close(value, direct)
    torch.testing.assert_close(2 * b, gradient)
    J = 2 * jacobian(problem.generator, 2 * v) / problem.unit.sqrt()[:, None, None]
    torch.testing.assert_close(A, J.mT @ J)
    torch.testing.assert_close(problem.value(v[[3, 1]], rows[[3, 1]]), value[[3, 1]])


@pytest.mark.parametrize(
    ("solver", "steps"),
    [("levenberg-marquardt", 40), ("adam", 1000), ("gradient-descent", 800), ("lbfgs", 80)],
)
def test_the_minimum_is_found(solver: str, steps: int, truth: Tensor) -> None:
    for scale in (1.0, 3.0):
        problem = problem_of(Curved(), truth, scale)
        found = solve(problem, torch.zeros_like(truth), solver, steps=steps, tolerance=1e-6)
        assert bool(found.converged.all()), solver
        torch.testing.assert_close(scale * found.position, truth, rtol=0, atol=1e-4)
        assert bool((found.iterations > 0).all() and (found.iterations <= steps).all())


def test_newton_steps_are_few(truth: Tensor) -> None:
    """Near-quadratic convergence; a wrong Jacobian would only crawl."""
    found = levenberg_marquardt(
        problem_of(Curved(), truth), torch.zeros_like(truth), steps=20, tolerance=1e-12
    )
    assert bool(found.converged.all())
    torch.testing.assert_close(found.position, truth, rtol=0, atol=1e-9)


def test_rows_do_not_depend_on_each_other(truth: Tensor) -> None:
    problem = problem_of(Curved(), truth)
    start = torch.zeros_like(truth)
    together = levenberg_marquardt(problem, start, steps=6, tolerance=1e-5)
    alone = problem_of(Curved(), truth[2:3])
    single = levenberg_marquardt(alone, start[2:3], steps=6, tolerance=1e-5)
    torch.testing.assert_close(together.position[2:3], single.position)
    assert together.iterations[2] == single.iterations[0]


def test_a_direction_without_effect_is_left_alone(truth: Tensor) -> None:
    problem = problem_of(Curved(idle=True), truth)
    start = torch.full_like(truth, 0.3)
    found = levenberg_marquardt(problem, start, steps=40, tolerance=1e-9)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.position[:, 2], start[:, 2])
    torch.testing.assert_close(found.position[:, :2], truth[:, :2], rtol=0, atol=1e-6)


def test_a_step_into_overflow_is_refused() -> None:
    class Steep(Generator):
        """Flat at the start, so that the first step is far too long, and NaN beyond 3."""

        def decode(self, z: Tensor) -> Tensor:
            return torch.where(z < 3, z**3, torch.nan)

    generator = Steep((1,), 1)
    truth = torch.tensor([[2.0]], dtype=torch.float64)
    problem = LatentProblem(generator, generator(truth), torch.ones(1).double(), truth[:, 0])
    start = torch.tensor([[0.3]], dtype=torch.float64)
    found = levenberg_marquardt(problem, start, steps=60, tolerance=1e-9)
    assert bool(found.converged) and found.position.item() == pytest.approx(2, abs=1e-6)


def test_steps_that_are_too_long_are_taken_back() -> None:
    class Cube(Generator):
        def decode(self, z: Tensor) -> Tensor:
            return z**3

    truth = torch.tensor([[2.0]], dtype=torch.float64)
    problem = problem_of(Cube((1,), 1), truth)
    value, _ = problem.value_and_grad(truth * 0.15)
    for steps in range(1, 20):
        # The first undamped step would go to thirty.
        found = levenberg_marquardt(problem, truth * 0.15, steps=steps, tolerance=1e-9)
        assert found.value <= value and found.position <= 4
        value = found.value


def test_values_never_rise_and_few_steps_are_not_called_converged(truth: Tensor) -> None:
    problem = problem_of(Curved(), truth)
    values = []
    for steps in range(1, 5):
        found = levenberg_marquardt(problem, truth * 0, steps=steps, tolerance=1e-12)
        values.append(found.value)
        torch.testing.assert_close(problem.value(found.position, torch.arange(5)), found.value)
        assert not bool(found.converged.any()) or steps > 2
    assert all(bool((b <= a).all()) for a, b in itertools.pairwise(values))
