"""Stein's estimates: exact divergences, no bias over the noise, and what makes one biased."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import OptionError
from bayesgen.operators import Identity, Matrix, Nonlinear
from bayesgen.weights import gsure, sure

SIGMA = 0.5
DAMPING = 1e-4
eye = torch.eye(10, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def z_score(differences: Tensor) -> float:
    return float(differences.mean() / (differences.std() / len(differences) ** 0.5))


def spread(matrix: Tensor, probes: int) -> float:
    """Standard deviation of Hutchinson's estimate of a trace."""
    off = 0.5 * (matrix + matrix.T)
    off = off - off.diagonal().diag()
    return float((2 * off.square().sum() / probes) ** 0.5)


@pytest.fixture
def wide() -> Matrix:
    """More pixels than data, and singular values that fall to a thousandth."""
    U, _, V = torch.linalg.svd(random(6, 10, seed=4), full_matrices=False)
    return Matrix(U @ torch.logspace(0, -3, 6, dtype=torch.float64).diag() @ V)


def leaving(A: Matrix) -> Callable[[float], Tensor]:
    """Matrix of a linear estimator whose images leave the row space."""
    L = random(10, 10, seed=5)
    return lambda w: torch.linalg.solve(A.matrix.T @ A.matrix + w * L.T @ L, A.matrix.T)


def damped(A: Matrix) -> tuple[Tensor, Tensor]:
    """The pseudo-inverse and the projection, damped."""
    M = A.matrix
    norm = torch.linalg.matrix_norm(M, ord=2)
    B = torch.linalg.solve(M.T @ M + DAMPING * norm**2 * eye, M.T)
    return B, B @ M


@pytest.mark.parametrize("weight", [0.1, 10.0])
def test_sure_against_the_trace(A: Matrix, y: Tensor, ridge: Any, weight: float) -> None:
    M = A.matrix
    influence = M @ torch.linalg.solve(M.T @ M + weight * eye, M.T)
    exact = (A(ridge(y, weight)) - y).square().sum() - 15 * SIGMA**2
    exact += 2 * SIGMA**2 * influence.trace()
    probes = 50
    found = sure(ridge, A, y, SIGMA, [weight], probes=probes)
    bound = 5 * 2 * SIGMA**2 * spread(influence, probes)
    assert abs(float(found.values[0] - exact)) < bound
    # With the divergence once instead of twice it would not pass.
    assert abs(float(found.values[0] - exact) - SIGMA**2 * float(influence.trace())) > bound


@pytest.mark.parametrize("weight", [0.1, 10.0])
def test_gsure_against_the_trace(wide: Matrix, weight: float) -> None:
    matrix = leaving(wide)(weight)
    B, P = damped(wide)
    y = random(6)
    image = matrix @ y
    jacobian = (P @ B).T @ matrix
    exact = (P @ image).square().sum() - 2 * image @ P @ B @ y + 2 * SIGMA**2 * jacobian.trace()
    probes = 200
    found = gsure(
        lambda y, w: leaving(wide)(w) @ y, wide, y, SIGMA, [weight], probes=probes, damping=DAMPING
    )
    bound = 5 * 2 * SIGMA**2 * spread(jacobian, probes)
    assert abs(float(found.values[0] - exact)) < bound


def test_without_damping_it_is_the_projection() -> None:
    A = Matrix(random(6, 10, seed=4))
    matrix, y = leaving(A)(1.0), random(6)
    inverse = torch.linalg.pinv(A.matrix)
    image = matrix @ y
    jacobian = inverse.T @ matrix
    exact = (inverse @ A.matrix @ image).square().sum() - 2 * image @ inverse @ y
    exact += 2 * SIGMA**2 * jacobian.trace()
    found = gsure(lambda y, _: matrix @ y, A, y, SIGMA, [1.0], probes=200, damping=1e-9)
    assert abs(float(found.values[0] - exact)) < 10 * SIGMA**2 * spread(jacobian, 200)
    # The norm of an image that leaves the row space is not that of its projection.
    assert abs(float(found.values[0] - exact - image.square().sum())) > 0.5


def test_sure_has_no_bias(A: Matrix, truth: Tensor, ridge: Any) -> None:
    """False alarms: one in a million. The mutant with half the divergence is found out."""
    weight, clean = 2.0, A(truth)
    differences = []
    for seed in range(500):
        y = clean + SIGMA * random(3, 5, seed=seed)
        found = sure(ridge, A, y, SIGMA, [weight], seed=seed)
        differences.append(float(found.values[0] - (A(found.image) - clean).square().sum()))
    M = A.matrix
    divergence = (M @ torch.linalg.solve(M.T @ M + weight * eye, M.T)).trace()
    assert abs(z_score(torch.tensor(differences))) < 5
    assert abs(z_score(torch.tensor(differences) - SIGMA**2 * divergence)) > 5


def test_gsure_has_no_bias(wide: Matrix) -> None:
    """Also where A is ill-conditioned, for the damped error."""
    weight, truth = 0.1, random(10, seed=6)
    matrix = leaving(wide)(weight)
    B, P = damped(wide)
    differences = []
    for seed in range(150):
        y = wide(truth) + SIGMA * random(6, seed=seed)
        found = gsure(lambda y, _: matrix @ y, wide, y, SIGMA, [weight], seed=seed, damping=DAMPING)
        loss = (P @ (found.image - truth)).square().sum() - (P @ truth).square().sum()
        differences.append(float(found.values[0] - loss))
    divergence = ((P @ B).T @ matrix).trace()
    assert abs(z_score(torch.tensor(differences))) < 5
    assert abs(z_score(torch.tensor(differences) - 2 * SIGMA**2 * divergence)) > 5


def test_soft_thresholding_in_closed_form() -> None:
    """Kinks: Donoho and Johnstone's formula counts what is above the threshold."""
    A, y = Identity((400,)), 2 * random(400)
    weights = [0.01, 0.1, 1.0, 3.0]

    def soft(y: Tensor, weight: float) -> Tensor:
        return y.sign() * (y.abs() - weight).clamp(min=0.0)

    found = sure(soft, A, y, SIGMA, weights, seed=1)
    for weight, value in zip(weights, found.values, strict=True):
        above = y.abs() > weight
        exact = y.abs().clamp(max=weight).square().sum() - 400 * SIGMA**2
        exact += 2 * SIGMA**2 * above.sum()
        assert float(value) == pytest.approx(float(exact), abs=4 * SIGMA**2)
    assert found.weight == 0.1


def test_the_least_value_is_near_the_least_error(A: Matrix, truth: Tensor, ridge: Any) -> None:
    weights = torch.logspace(-3, 3, 13)
    y = A(truth) + 2.0 * random(3, 5, seed=3)
    for choose, seen in ((sure, A), (gsure, lambda x: x)):
        found = choose(ridge, A, y, 2.0, weights, probes=20)
        losses = [float((seen(ridge(y, float(w)) - truth)).square().sum()) for w in weights]
        assert float((seen(found.image - truth)).square().sum()) < 2 * min(losses)
        assert torch.equal(found.image, ridge(y, found.weight))


@pytest.mark.parametrize("choose", [sure, gsure])
@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_single_precision_and_units(A: Matrix, y: Tensor, choose: Any, unit: float) -> None:
    """Rounding is small against the spread of the noise's norm, a hundred times the noise."""
    single, y = Matrix(A.matrix.float(), (2, 5), (3, 5)), 100 * unit * y

    def estimate(y: Tensor, weight: float) -> Tensor:
        operator = single if y.dtype == torch.float32 else A
        return bg.reconstruction.tikhonov(operator, y, weight)

    sigma, options = SIGMA * unit, {"probes": 2, "seed": 3}
    if choose is gsure:
        options["damping"] = 2e-3
    double = choose(estimate, A, y, sigma, [1.0], **options)
    found = choose(estimate, single, y.float(), sigma, [1.0], **options)
    assert found.image.dtype == torch.float32
    spread = 30**0.5 * sigma**2
    scale = spread if choose is sure else float(double.values.abs())
    assert abs(float(found.values - double.values)) < (0.5 if choose is sure else 1e-3) * scale


def test_probes_and_seeds(A: Matrix, y: Tensor, ridge: Any) -> None:
    first, again, other = (sure(ridge, A, y, SIGMA, [1.0], seed=s).values for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    seen = []

    def watched(y: Tensor, weight: float) -> Tensor:
        seen.append((weight, y))
        return ridge(y, weight)

    with pytest.warns(RuntimeWarning, match="sure: the least value is at weight"):
        sure(watched, A, y, SIGMA, [1e3, 1e4], probes=2)
    assert [weight for weight, _ in seen] == [1e3] * 3 + [1e4] * 3
    for k in range(3):
        assert torch.equal(seen[k][1], seen[k + 3][1])
    steps = (seen[1][1] - y).abs()
    assert steps.max() - steps.min() < 1e-12
    assert not torch.equal(seen[1][1], seen[2][1])


def test_operators_that_are_not_linear(y: Tensor) -> None:
    bent = Nonlinear(lambda x: x + x**3, (3, 5), (3, 5))
    found = sure(lambda y, w: y / (1 + w), bent, y, SIGMA, [0.5, 1.0, 2.0, 1e3])
    assert found.values.isfinite().all()
    with pytest.raises(OptionError, match="gsure: the operator is not linear"):
        gsure(lambda y, w: y / (1 + w), bent, y, SIGMA, [1.0])


def test_options_that_are_refused(A: Matrix, y: Tensor, ridge: Any) -> None:
    for choose in (sure, gsure):
        with pytest.raises(OptionError, match="probes: got 0; expected an integer of at least 1"):
            choose(ridge, A, y, SIGMA, [1.0], probes=0)
        with pytest.raises(OptionError, match="seed: got -1"):
            choose(ridge, A, y, SIGMA, [1.0], seed=-1)
        with pytest.raises(OptionError, match="sigma: expected a positive number, got tensor"):
            choose(ridge, A, y, torch.full((3, 5), 0.1), [1.0])
    with pytest.raises(OptionError, match="damping: expected a positive number, got 0.0"):
        gsure(ridge, A, y, SIGMA, [1.0], damping=0.0)
