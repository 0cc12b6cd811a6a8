"""Validation: the best weight of a Gaussian prior, and the noise that data are simulated with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.operators import Matrix
from bayesgen.weights import validation


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("error", ["mse", "mae"])
@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_best_weight_is_known(A: Matrix, ridge: Any, tau: float, error: str) -> None:
    """For x ~ N(0, tau^2 I) the posterior mean has the weight sigma^2 / tau^2."""
    sigma, images = 2.0, tau * random(200, 2, 5)
    best = sigma**2 / tau**2
    weights = [best / 9, best / 3, best, 3 * best, 9 * best]
    found = validation(ridge, A, images, sigma, weights, error=error)
    assert found.weight == best
    assert found.image is None
    # A mutant with noise of another level has its least error elsewhere.
    with pytest.warns(RuntimeWarning, match="validation: the least value is at weight"):
        assert validation(ridge, A, images, 3 * sigma, weights, error=error).weight != best


def test_values_are_mean_errors(A: Matrix) -> None:
    images = random(3, 2, 5)
    constant = {1.0: 0.0, 2.0: 1.0, 3.0: -3.0}

    def estimate(y: Tensor, weight: float) -> Tensor:
        return torch.full((2, 5), constant[weight], dtype=torch.float64)

    with pytest.warns(RuntimeWarning, match="an end of weights"):
        found = validation(estimate, A, images, 1.0, list(constant))
    expected = [float((images - c).square().mean()) for c in constant.values()]
    assert found.values.tolist() == pytest.approx(expected)
    with pytest.warns(RuntimeWarning, match="an end of weights"):
        found = validation(estimate, A, images, 1.0, list(constant), error="mae")
    expected = [float((images - c).abs().mean()) for c in constant.values()]
    assert found.values.tolist() == pytest.approx(expected)


def test_noise_is_independent_and_the_same_for_all_weights(A: Matrix) -> None:
    seen: dict[float, list[Tensor]] = {1.0: [], 2.0: [], 3.0: []}

    def watched(y: Tensor, weight: float) -> Tensor:
        seen[weight].append(y)
        return torch.full((2, 5), weight - 2.0, dtype=torch.float64)

    validation(watched, A, torch.zeros(200, 2, 5, dtype=torch.float64), 0.3, list(seen), seed=4)
    noise = torch.stack(seen[1.0]).reshape(200, 15)
    for weight in (2.0, 3.0):
        assert torch.equal(torch.stack(seen[weight]).reshape(200, 15), noise)
    squares = (noise / 0.3).square()
    assert abs(float(squares.sum() - 3000)) / 6000**0.5 < 5
    # Products of the noise of neighbouring images have mean zero; with shared noise, one.
    products = (noise[1:] * noise[:-1]) / 0.09
    assert abs(float(products.mean())) * products.numel() ** 0.5 < 5
    other: list[Tensor] = []
    validation(
        lambda y, w: other.append(y) or torch.zeros(2, 5, dtype=torch.float64),
        A,
        torch.zeros(200, 2, 5, dtype=torch.float64),
        0.3,
        [1.0],
        seed=5,
    )
    assert not torch.equal(torch.stack(other).reshape(200, 15), noise)


def test_what_is_refused(A: Matrix, ridge: Any) -> None:
    images = random(3, 2, 5)
    with pytest.raises(OptionError, match="error: unknown value 'mes'.*did you mean 'mse'"):
        validation(ridge, A, images, 1.0, [1.0], error="mes")
    for wrong in (images[0], images[:0], images[None]):
        with pytest.raises(ShapeError, match=r"images: expected shape \(N, 2, 5\) with N at least"):
            validation(ridge, A, wrong, 1.0, [1.0])
    with pytest.raises(OptionError, match="seed: got 0.5"):
        validation(ridge, A, images, 1.0, [1.0], seed=0.5)
