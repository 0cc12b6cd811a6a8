"""Morozov's weight: the root by another solver, its level, and what happens without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import OptionError, ResultError
from bayesgen.operators import Fourier, Matrix, cartesian_mask
from bayesgen.weights import morozov

SIGMA = 0.5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def root(A: Matrix, y: Tensor, level: float) -> float:
    """Weight at which the ridge's misfit is the level, from the singular values."""
    U, s, _ = np.linalg.svd(A.matrix.numpy(), full_matrices=False)
    data = y.flatten().numpy()
    seen = U.T @ data
    rest = data @ data - seen @ seen

    def excess(log_weight: float) -> float:
        weight = np.exp(log_weight)
        return float(((weight / (s**2 + weight) * seen) ** 2).sum() + rest - level)

    return float(np.exp(brentq(excess, -12, 12, xtol=1e-14)))


@pytest.mark.parametrize("tau", [1.0, 1.05, 1.5])
def test_the_root_by_another_solver(A: Matrix, y: Tensor, ridge: Any, tau: float) -> None:
    found = morozov(ridge, A, y, SIGMA, tau=tau, tolerance=1e-10)
    level = tau**2 * 15 * SIGMA**2
    assert found.level == pytest.approx(level, rel=1e-12)
    assert found.weight == pytest.approx(root(A, y, level), rel=1e-6)
    assert torch.equal(found.image, ridge(y, found.weight))
    # What the check would say of a level without tau's square, or of a norm that is not squared.
    assert tau == 1 or found.weight != pytest.approx(root(A, y, level / tau), rel=1e-2)
    assert (A(found.image) - y).norm() != pytest.approx(level, rel=1e-2)


def test_a_misfit_that_falls_with_the_weight(A: Matrix, y: Tensor, ridge: Any) -> None:
    """A prior's scale s is a penalty's weight 1 / s^2."""
    scale = morozov(lambda y, s: ridge(y, s**-2), A, y, SIGMA, tolerance=1e-10, between=(0.01, 100))
    assert scale.weight**-2 == pytest.approx(root(A, y, 15 * SIGMA**2), rel=1e-6)


def test_a_handful_of_estimates_is_enough(A: Matrix, y: Tensor, ridge: Any) -> None:
    for tau in (1.0, 1.2, 2.0, 4.0):
        found = morozov(ridge, A, y, SIGMA, tau=tau)
        assert len(found.weights) == len(found.values) <= 12
        assert (found.weights.diff() > 0).all()
        at_choice = found.values[found.weights == found.weight]
        assert float(at_choice) == pytest.approx(found.level, rel=0.01)


def test_both_parts_of_complex_data_count() -> None:
    F = Fourier((8, 8), cartesian_mask(8, acceleration=2, seed=0)).to(torch.float64)
    noise = SIGMA * random(4000, *F.range_shape)
    y = F(random(8, 8, seed=1)) + noise[0]
    found = morozov(lambda y, w: bg.reconstruction.tikhonov(F, y, w), F, y, SIGMA)
    squares = noise.square().flatten(1).sum(1)
    z = (squares.mean() - found.level) / (squares.std() / 4000**0.5)
    assert abs(float(z)) < 5
    # One number for each pair would be far off.
    assert abs(squares.mean() - found.level / 2) / (squares.std() / 4000**0.5) > 50


def test_single_precision_and_total_variation() -> None:
    A = bg.operators.Identity((6, 6))
    x = torch.zeros(6, 6)
    x[2:5, 1:4] = 1.0
    y = x + 0.1 * random(6, 6).float()
    found = morozov(
        lambda y, w: bg.reconstruction.total_variation(A, y, w), A, y, 0.1, between=(1e-3, 10)
    )
    assert found.image.dtype == torch.float32
    assert float((found.image - y).square().sum()) == pytest.approx(0.36, rel=0.011)


def test_an_end_may_meet_the_level(A: Matrix, y: Tensor, ridge: Any) -> None:
    exact = root(A, y, 15 * SIGMA**2)
    found = morozov(ridge, A, y, SIGMA, between=(exact, 10 * exact))
    assert found.weight == pytest.approx(exact, rel=1e-12)
    assert len(found.weights) == 2


def test_levels_out_of_reach(A: Matrix, y: Tensor, ridge: Any) -> None:
    floor = float((A(ridge(y, 1e-4)) - y).square().sum())
    with pytest.raises(ResultError, match="no weight between 0.0001 and 1e.04 fits") as caught:
        morozov(ridge, A, y, 1e-3)
    for part in (f"least misfit is {floor:.4g}, at weight 0.0001", "relaxed", "sigma = 0.001 is"):
        assert part in str(caught.value)
    ceiling = float((A(ridge(y, 1e4)) - y).square().sum())
    with pytest.raises(ResultError, match="fit the data more closely") as caught:
        morozov(ridge, A, y, 100.0)
    for part in (f"largest misfit is {ceiling:.4g}, at weight 1e+04", "sigma = 100 is too large"):
        assert part in str(caught.value)


def test_a_misfit_that_jumps_is_reported(A: Matrix, y: Tensor, ridge: Any) -> None:
    """Two optima: the data fitted too well, or not enough."""
    used = []

    def jumping(y: Tensor, weight: float) -> Tensor:
        used.append(weight)
        return ridge(y, 1e-6 if weight < 1.0 else 100.0)

    with pytest.warns(RuntimeWarning, match="did not meet the level.*other optima"):
        found = morozov(jumping, A, y, SIGMA)
    assert found.weight == pytest.approx(1.0, rel=1e-2)
    assert len(used) < 20
    nearest = (found.values - found.level).abs().min()
    assert abs(float((A(found.image) - y).square().sum()) - found.level) == pytest.approx(nearest)


def test_evaluations_that_run_out_are_reported(A: Matrix, y: Tensor, ridge: Any) -> None:
    with pytest.warns(RuntimeWarning, match="4 estimates did not meet the level"):
        found = morozov(ridge, A, y, SIGMA, tolerance=1e-12, max_evaluations=4)
    assert len(found.weights) == 4


def test_options_that_are_refused(A: Matrix, y: Tensor, ridge: Any) -> None:
    for between in ((1.0, 1.0), (2.0, 1.0), 3.0, (1.0,), None):
        with pytest.raises(OptionError, match="between: expected"):
            morozov(ridge, A, y, SIGMA, between=between)
    with pytest.raises(OptionError, match=r"between\[0\]: expected a positive number, got 0.0"):
        morozov(ridge, A, y, SIGMA, between=(0.0, 1.0))
    for name in ("tau", "tolerance"):
        with pytest.raises(OptionError, match=f"{name}: expected a positive number, got -1.0"):
            morozov(ridge, A, y, SIGMA, **{name: -1.0})
    with pytest.raises(OptionError, match="max_evaluations: got 2; expected an integer"):
        morozov(ridge, A, y, SIGMA, max_evaluations=2)


@pytest.fixture(scope="module")
def generator() -> bg.models.Generator:
    return bg.models.load("mnist-vae-8")


@pytest.fixture(scope="module")
def few() -> bg.operators.GaussianMatrix:
    return bg.operators.GaussianMatrix((28, 28), rows=30, seed=0)


def hard(G: Any, A: Any) -> Any:
    def estimate(y: Tensor, weight: float) -> Tensor:
        model = bg.regularisers.hard(G, A, 0.1, latent_weight=weight)
        return bg.infer(model, y, method="map", chains=16, progress=False).mode("x")

    return estimate


def test_an_image_in_the_range_of_a_generator(generator: Any, few: Any) -> None:
    rng = torch.Generator().manual_seed(2)
    y = few(generator(torch.randn(8, generator=rng))) + 0.1 * torch.randn(30, generator=rng)
    found = morozov(hard(generator, few), few, y, 0.1, between=(10.0, 100.0), tolerance=0.1)
    assert 10.0 < found.weight < 100.0
    assert float((few(found.image) - y).square().sum()) == pytest.approx(0.3, rel=0.1)


def test_an_image_outside_the_range_of_a_generator(generator: Any, few: Any) -> None:
    y = few(bg.datasets.mnist_samples().images[0]) + 1e-4 * random(30).float()
    with pytest.raises(ResultError, match="the generator's range is too small for this image"):
        morozov(hard(generator, few), few, y, 1e-4, between=(1e-2, 1.0))
