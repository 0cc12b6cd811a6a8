"""Solvers of problems with kinks: published rules by hand, and the conditions of optimality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import infer
from bayesgen.errors import ModelError
from bayesgen.inference import MAP, Run, run_optimiser
from bayesgen.inference.solvers import Objective
from bayesgen.inference.solvers.palm import PALM
from bayesgen.inference.standardised import Standardised
from bayesgen.log_density import LogDensity

float64 = torch.float64
Model = Callable[[Tensor], None]


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


def with_condition(rows: int, cols: int, condition: float) -> Tensor:
    left, _, right = torch.linalg.svd(random(rows, cols), full_matrices=False)
    values = torch.logspace(0, -1, len(right), base=condition, dtype=float64)
    return left * values @ right


TRUTH = torch.zeros(16, dtype=float64)
TRUTH[[1, 5, 9]] = torch.tensor([8.0, -6.0, 5.0], dtype=float64)
EASY = with_condition(12, 16, 3.0)
HARD = with_condition(16, 16, 30.0)
WIDTHS = torch.linspace(0.5, 1.5, 16, dtype=float64)
GENERATOR = random(10, 3, seed=3)
SPIKES = (GENERATOR @ torch.ones(3, dtype=float64)).tanh()
SPIKES[2] += 0.7


def lasso(matrix: Tensor, noise: float, y: Tensor) -> None:
    u = pyro.sample("u", dist.Laplace(torch.zeros(16).to(y), WIDTHS.to(y)).to_event(1))
    pyro.sample("y", dist.Normal(matrix.to(y) @ u, noise).to_event(1), obs=y)


def data_of(matrix: Tensor, noise: float) -> Tensor:
    return matrix @ TRUTH + noise * random(len(matrix), seed=4)


def deviations(y: Tensor) -> None:
    """A generator's range, and sparse deviations from it."""
    z = pyro.sample("z", dist.Normal(torch.zeros(3).to(y), 1.0).to_event(1))
    u = pyro.sample("u", dist.Laplace(torch.zeros(10).to(y), 0.1).to_event(1))
    x = (GENERATOR.to(y) @ z).tanh() + u
    pyro.sample("y", dist.Normal(x, 0.05).to_event(1), obs=y)


def smooth(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3).to(y), 1.0).to_event(1))
    u = pyro.sample("u", dist.Normal(torch.zeros(10).to(y), 0.1).to_event(1))
    x = (GENERATOR.to(y) @ z).tanh() + u
    pyro.sample("y", dist.Normal(x, 0.05).to_event(1), obs=y)


def solve(
    model: Model, y: Tensor, solver: str, num: int = 3, **settings: Any
) -> tuple[LogDensity, Run]:
    log_density, rng = LogDensity(model, y), torch.Generator().manual_seed(0)
    start = log_density.prior_draws(num, rng)
    method = MAP(solver=solver, **{"max_iterations": 20_000, **settings})
    return log_density, run_optimiser(method, log_density, start, rng)


def violation(log_density: LogDensity, v: Tensor, widths: Tensor) -> float:
    """Of: zero is in gradient + sign(u) / b for every u, in the gradient for all else."""
    gradient = -log_density.value_and_grad(v, smooth=True)[1]
    site = log_density.sites.latent["u"]
    g, u = gradient[..., site.start : site.stop], v[..., site.start : site.stop]
    where_zero = (g.abs() - 1 / widths).clamp(min=0)
    of_u = torch.where(u == 0, where_zero, (g + u.sign() / widths).abs())
    return float(torch.cat([gradient[..., : site.start].abs(), of_u], -1).max())


class ByHand:
    """f = 1.5 x^2 + 1.5 (u - 2)^2 and g = |u|; remembers where f was asked for."""

    blocks: Mapping[str, slice] = {"x": slice(0, 1), "u": slice(1, 2)}
    proximal: Mapping[str, Any] = {"u": None}

    def __init__(self) -> None:
        self.tried: list[tuple[float, ...]] = []

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool, smooth: bool = False
    ) -> tuple[Tensor, Tensor]:
        assert smooth
        self.tried.append(tuple(round(float(x), 10) for x in v[0]))
        difference = v - torch.tensor([0.0, 2.0], dtype=float64)
        return -1.5 * difference.square().sum(-1), -3 * difference

    def penalty(self, v: Tensor) -> Tensor:
        return v[..., 1].abs()

    def proximal_step(
        self, v: Tensor, steps: Mapping[str, Tensor], memory: Mapping[str, Any], moved: None
    ) -> tuple[Tensor, dict[str, Any]]:
        u = v[..., 1:]
        u = u.sign() * (u.abs() - steps["u"][..., None]).clamp(min=0)
        return torch.cat([v[..., :1], u], -1), {}


def test_backtracking_is_as_published() -> None:
    """Duff et al., Algorithm 3: sites in turn; L of each halved after success, else times ten."""
    density, settings = ByHand(), MAP(solver="palm")
    state = PALM.start(Objective(density), torch.tensor([[2.0, 0.0]], dtype=float64), settings)
    for _ in range(2):
        state = PALM.step(Objective(density), state, settings)
    assert density.tried == [
        (2.0, 0.0),
        (-4.0, 0.0),  # L = 1: 2 - 6; f = 24 > 6 - 36 + 18, refused
        (1.4, 0.0),  # L = 10: 2 - 0.6; f = 2.94 <= 6 - 3.6 + 1.8, accepted
        (1.4, 5.0),  # L = 1: 6 shrunk by 1; f = 13.5 > 6 - 30 + 12.5, refused
        (1.4, 0.5),  # L = 10: 0.6 shrunk by 0.1; f = 3.375 <= 6 - 3 + 1.25, accepted
        (0.56, 0.5),  # L = 5: 1.4 - 0.84
        (0.56, 1.2),  # L = 5: 0.5 + 0.9 shrunk by 0.2
    ]
    assert state.position.tolist() == [pytest.approx([0.56, 1.2])]
    assert float(state.log_prob) == pytest.approx(-1.5 * (0.56**2 + 0.8**2) - 1.2)
    assert [float(L) for L in state.memory.lipschitz.values()] == [2.5, 2.5]
    # Of x the gradient; of u, 5 times the way to 1.2 + 0.48 shrunk by 0.2.
    assert state.gradient.tolist() == [pytest.approx([1.68, -1.4])]


def test_alternating_is_palm_without_kinks() -> None:
    runs = [
        solve(smooth, SPIKES, solver, max_iterations=40)[1] for solver in ("palm", "alternating")
    ]
    assert torch.equal(runs[0].position, runs[1].position)
    assert bool((runs[0].stats["n_steps"] > 5).all())


def test_alternating_refuses_kinks() -> None:
    message = r"'alternating' needs smooth priors, but those of \['u'\] have kinks.*'palm'"
    with pytest.raises(ModelError, match=message):
        solve(deviations, SPIKES, "alternating")


@pytest.mark.parametrize(("solver", "exactness"), [("panoc", 1e-8), ("palm", 1e-6)])
def test_lasso(solver: str, exactness: float) -> None:
    """PALM compares values, so that its gradients are exact to the root of their rounding."""
    y = data_of(EASY, 1.0)
    log_density, run = solve(partial(lasso, EASY, 1.0), y, solver, tolerance=exactness / 10)
    u = run.position[:, 0]
    assert bool(run.stats["converged"].all())
    assert violation(log_density, u, WIDTHS) < exactness
    zero = u[0] == 0
    assert 3 < int(zero.sum()) < 16 and torch.equal(u == 0, zero.expand(3, 16))
    # With its signs known the optimum solves a linear system.
    A, sign = EASY[:, ~zero], u[0, ~zero].sign()
    exact = torch.linalg.solve(A.T @ A, A.T @ y - sign / WIDTHS[~zero])
    assert torch.allclose(u[:, ~zero], exact.expand(3, -1), rtol=0, atol=100 * exactness)
    assert torch.allclose(run.log_prob[:, 0], log_density.log_prob(u), rtol=1e-12)


def without_prox(
    self: Standardised, v: Tensor, steps: Any, memory: Any, **options: Any
) -> tuple[Tensor, Any]:
    return v, memory


def half_a_step(
    self: Standardised, v: Tensor, steps: Any, memory: Any, **options: Any
) -> tuple[Tensor, Any]:
    steps = {name: 0.5 * step for name, step in steps.items()}
    return RIGHT(self, v, steps, memory, **options)


RIGHT = Standardised.proximal_step


@pytest.mark.parametrize("solver", ["panoc", "palm"])
@pytest.mark.parametrize("wrong", [without_prox, half_a_step])
def test_wrong_proximal_steps_are_rejected(solver: str, wrong: Any) -> None:
    with mock.patch.object(Standardised, "proximal_step", wrong):
        model = partial(lasso, EASY, 1.0)
        log_density, run = solve(model, data_of(EASY, 1.0), solver, max_iterations=300)
    assert violation(log_density, run.position[:, 0], WIDTHS) > 0.1


@pytest.mark.parametrize("solver", ["panoc", "palm"])
def test_a_forgotten_prior_is_rejected(solver: str) -> None:
    """A mode of the deviations alone is none of the model with a prior of z."""
    log_density, _ = solve(deviations, SPIKES, solver, max_iterations=1)
    right = log_density.value_and_grad

    def forgetful(v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        value, gradient = right(v, **options)
        back = torch.nn.functional.pad(v[..., :3], (0, 10))
        return value + 0.5 * v[..., :3].square().sum(-1), gradient + back

    rng = torch.Generator().manual_seed(0)
    start, method = log_density.prior_draws(2, rng), MAP(solver=solver, max_iterations=500)
    with mock.patch.object(log_density, "value_and_grad", forgetful):
        run = run_optimiser(method, log_density, start, rng)
    assert violation(log_density, run.position[:, 0], torch.tensor(0.1)) > 0.1


@pytest.mark.parametrize(("solver", "exactness"), [("panoc", 1e-4), ("palm", 1e-3)])
def test_generator_with_sparse_deviations(solver: str, exactness: float) -> None:
    log_density, run = solve(deviations, SPIKES, solver, 4, tolerance=exactness / 10)
    v = run.position[:, 0]
    assert bool(run.stats["converged"].all())
    # The prior's gradient has a size of 10, the data's of 20 for each 0.05.
    assert violation(log_density, v, torch.tensor(0.1)) < 10 * exactness
    u = v[:, 3:]
    assert bool((u[:, 2] > 0.5).all()) and bool(((u == 0).sum(-1) >= 7).all())


@pytest.mark.parametrize("solver", ["panoc", "palm"])
def test_rows_do_not_depend_on_each_other(solver: str) -> None:
    log_density, rng = LogDensity(deviations, SPIKES), torch.Generator().manual_seed(0)
    start, method = log_density.prior_draws(4, rng), MAP(solver=solver, max_iterations=30)
    together = run_optimiser(method, log_density, start, rng)
    for i in range(4):
        alone = run_optimiser(method, log_density, start[i : i + 1], rng)
        assert torch.allclose(alone.position[0], together.position[i], atol=1e-7)
        assert int(alone.stats["n_steps"]) == int(together.stats["n_steps"][i])


def test_panoc_needs_few_steps() -> None:
    y, steps, values = data_of(HARD, 0.1), {}, []
    for solver in ("panoc", "palm"):
        _, run = solve(partial(lasso, HARD, 0.1), y, solver, 8, tolerance=1e-3)
        assert bool(run.stats["converged"].all())
        steps[solver] = float(run.stats["n_steps"].double().mean())
        values.append(run.log_prob)
    assert torch.allclose(values[0], values[1], rtol=0, atol=1e-4)
    assert 5 * steps["panoc"] <= steps["palm"], steps


@pytest.mark.parametrize("solver", ["panoc", "palm"])
def test_batched_problems(solver: str) -> None:
    y = data_of(EASY, 1.0)
    data, model = torch.stack([y, 0.5 * y, -y]), partial(lasso, EASY, 1.0)
    method = MAP(solver=solver, tolerance=1e-6, max_iterations=5000)
    together = infer(model, data, method=method, chains=2, batched=True, progress=False)
    for i in range(3):
        alone = infer(model, data[i], method=method, chains=2, progress=False)
        assert torch.allclose(together.mode("u")[i], alone.mode("u"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["panoc", "palm"])
def test_single_precision(solver: str) -> None:
    """Ends by itself although rounding hides the tolerance."""
    y, model = data_of(EASY, 1.0), partial(lasso, EASY, 1.0)
    _, exact = solve(model, y, "panoc", tolerance=1e-6)
    for tolerance in (1e-3, 1e-7):
        _, run = solve(model, y.float(), solver, tolerance=tolerance)
        assert run.position.dtype == torch.float32
        assert int(run.stats["n_steps"].max()) < 2000
        assert torch.allclose(run.position.double(), exact.position, rtol=0, atol=1e-2)
        assert torch.equal(run.position[0] == 0, exact.position[0] == 0)
    assert bool(solve(model, y.float(), solver)[1].stats["converged"].all())
