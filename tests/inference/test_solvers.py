"""Minimisers: optimality, independence of rows, and the published backtracking rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayesgen.inference import MAP, run_optimiser
from bayesgen.inference.checks import GaussianTarget
from bayesgen.inference.solvers import SOLVERS
from bayesgen.inference.solvers.smooth import GradientDescent

# Those that need no more than values and gradients.
GENERAL = [solver for solver in SOLVERS if solver != "levenberg-marquardt"]
TARGET = GaussianTarget.with_condition(6, 50.0)


class Banana:
    """Minus the Rosenbrock function; its maximum, zero, is at (1, 1)."""

    num_dims = 2

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        x, y = v[..., 0], v[..., 1]
        value = -((1 - x) ** 2) - 10 * (y - x**2) ** 2
        gradient = torch.stack([2 * (1 - x) + 40 * x * (y - x**2), -20 * (y - x**2)], dim=-1)
        return value, gradient


def starts(num: int, dims: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num, dims, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("solver", GENERAL)
def test_quadratic_to_its_maximum(solver: str, rng: torch.Generator) -> None:
    method = MAP(solver=solver, max_iterations=5000, tolerance=1e-6)
    run = run_optimiser(method, TARGET, starts(7, 6), rng)
    error = (run.position[:, 0] - TARGET.mean).norm(dim=-1).max()
    assert bool(run.stats["converged"].all())
    assert float(run.stats["gradient_norm"].max()) <= 1e-5
    assert error < 1e-3  # |error| <= |gradient| / smallest curvature, 1/50


@pytest.mark.parametrize("solver", ["lbfgs", "panoc", "gradient-descent", "alternating", "palm"])
def test_banana_to_gradient_tolerance(solver: str, rng: torch.Generator) -> None:
    method = MAP(solver=solver, max_iterations=50_000, tolerance=1e-8)
    run = run_optimiser(method, Banana(), starts(5, 2), rng)
    torch.testing.assert_close(run.position[:, 0], torch.ones(5, 2).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", GENERAL)
def test_rows_do_not_depend_on_each_other(solver: str, rng: torch.Generator) -> None:
    method = MAP(solver=solver, max_iterations=30)
    together = run_optimiser(method, Banana(), starts(6, 2), rng)
    for i in range(6):
        alone = run_optimiser(method, Banana(), starts(6, 2)[i : i + 1], rng)
        torch.testing.assert_close(alone.position[0], together.position[i])
        assert int(alone.stats["n_steps"]) == int(together.stats["n_steps"][i])


@pytest.mark.parametrize("solver", GENERAL)
def test_the_density_never_falls(solver: str, rng: torch.Generator) -> None:
    values = [Banana().value_and_grad(starts(4, 2))[0]]
    method = MAP(solver=solver, max_iterations=50)
    run_optimiser(
        method, Banana(), starts(4, 2), rng, monitor=lambda s: values.append(s.state.log_prob)
    )
    path = torch.stack(values)
    assert bool((path.diff(dim=0) >= -1e-13).all())


def test_backtracking_is_as_published(rng: torch.Generator) -> None:
    """Duff et al., Algorithm 1: L starts at 1; halved after success, times ten after failure."""
    point = torch.tensor([[2.0]], dtype=torch.float64)
    curvature, tried = 3.0, []

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        tried.append(float(x))
        return 0.5 * curvature * x[..., 0] ** 2, curvature * x

    class Quadratic:
        num_dims = 1

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            value, gradient = objective(v)
            return -value, -gradient

    run = run_optimiser(MAP(solver="gradient-descent", max_iterations=2), Quadratic(), point, rng)
    # f(x) = 1.5 x^2 from 2. L = 1: 2 - 6 = -4, refused; L = 10: 2 - 0.6 = 1.4, accepted.
    # Next L = 5: 1.4 - 4.2 / 5 = 0.56, accepted.
    assert tried == pytest.approx([2.0, -4.0, 1.4, 0.56])
    assert float(run.position) == pytest.approx(0.56)
    assert (GradientDescent.shrink, GradientDescent.grow) == (0.5, 10.0)


def test_restarts_at_the_optimum_stop_at_once(rng: torch.Generator) -> None:
    run = run_optimiser(MAP(), TARGET, TARGET.mean.expand(3, -1), rng)
    assert run.stats["n_steps"].tolist() == [[0]] * 3 and run.num_evaluations <= 2


@pytest.mark.parametrize("solver", GENERAL)
def test_infinite_values_on_the_way_are_stepped_back_from(
    solver: str, rng: torch.Generator
) -> None:
    class Logarithm:
        """log v - v on v > 0, NaN elsewhere; its maximum is at 1."""

        num_dims = 1

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            return v[..., 0].log() - v[..., 0], 1 / v - 1

    start = torch.tensor([[0.05], [4.0]], dtype=torch.float64)
    method = MAP(solver=solver, max_iterations=2000, tolerance=1e-6, learning_rate=0.01)
    run = run_optimiser(method, Logarithm(), start, rng)
    torch.testing.assert_close(run.position[:, 0], torch.ones(2, 1).double(), rtol=0, atol=1e-3)
