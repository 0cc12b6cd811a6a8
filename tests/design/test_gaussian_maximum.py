"""Bounds and max-value entropy against closed forms and quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor

from bayesgen.design.belief import Belief
from bayesgen.design.gaussian_maximum import UCB, MaxValueEntropy
from bayesgen.errors import OptionError, ShapeError

float64 = torch.float64


def moments(linear: Any, chosen: list[int]) -> tuple[Tensor, Tensor]:
    """Mean, and standard deviation given the chosen ones, of every candidate."""
    rows = linear.matrix[:, 0]
    C = linear.posterior(chosen)
    return rows @ linear.images.mean(0), (rows @ C @ rows.T).diagonal().sqrt()


def test_the_schedule_is_the_theorem() -> None:
    """beta_t = 2 log(|D| t^2 pi^2 / (6 delta)), Srinivas et al. (2010), theorem 1."""
    for n, t, delta in ((10, 1, 0.1), (784, 7, 0.05), (3, 400, 0.9)):
        beta = 2 * math.log(n * t**2 * math.pi**2 / (6 * delta))
        assert UCB(delta=delta).multiple(n, t) == pytest.approx(math.sqrt(beta))
        assert UCB(kappa=2.5).multiple(n, t) == 2.5


@pytest.mark.parametrize("kappa", [None, 1.7])
def test_bounds_are_the_closed_form(problem: Any, kappa: float | None) -> None:
    linear = problem()
    acquisition = UCB(kappa=kappa)
    for t in (1, 4):
        belief = linear.but(measured=(0,) * (t - 1), values=torch.zeros(t - 1, 1))
        scorer = acquisition.begin(belief)
        chosen: list[int] = []
        for index in (3, 1, 5):
            mean, std = moments(linear, chosen)
            expected = mean + acquisition.multiple(7, t + len(chosen)) * std
            torch.testing.assert_close(scorer.scores(), expected)
            scorer.take(index)
            chosen.append(index)
        if kappa is None:
            assert float((scorer.scores() - mean - acquisition.multiple(7, t) * std).abs().max())


@pytest.mark.parametrize("noise", [None, 0.0])
def test_without_noise_what_is_chosen_counts_as_known(problem: Any, noise: float | None) -> None:
    linear = problem(d=6, draws=20)
    std = None if noise is None else torch.full((7, 1), noise, dtype=float64)
    scorer = UCB(kappa=2.0).begin(linear.but(noise=std))
    scorer.take(3)
    row, rows, C = linear.matrix[3, 0], linear.matrix[:, 0], linear.covariance
    C = C - torch.outer(C @ row, C @ row) / (row @ C @ row)
    variances = (rows @ C @ rows.T).diagonal().clamp(min=0.0)
    mean, _ = moments(linear, [])
    torch.testing.assert_close(scorer.scores(), mean + 2.0 * variances.sqrt(), atol=1e-6, rtol=0)


def entropy_lost(mean: float, std: float, largest: list[float]) -> float:
    """Entropy of a normal less the mean entropy of what is left of it below each largest value."""
    lost = []
    for top in largest:
        law = scipy.stats.norm(mean, std)
        mass, low = law.cdf(top), mean - 12 * std

        def integrand(f: float, law: Any = law, mass: float = mass) -> float:
            p = law.pdf(f) / mass
            return -p * math.log(p) if p > 0 else 0.0

        points = np.linspace(low, min(top, mean + 12 * std), 9)
        left = sum(scipy.integrate.quad(integrand, a, b)[0] for a, b in pairwise(points.tolist()))
        lost.append(0.5 * math.log(2 * math.pi * math.e * std**2) - left)
    return sum(lost) / len(lost)


def quadrature(belief: Belief) -> Tensor:
    data = belief.data[..., 0]
    largest = data.amax(1).tolist()
    mean, std = data.mean(0).tolist(), data.std(0).tolist()
    return torch.tensor(
        [entropy_lost(m, s, largest) for m, s in zip(mean, std, strict=True)], dtype=float64
    )


def test_entropy_is_that_of_quadrature(problem: Any) -> None:
    linear = problem(n=4)
    scores = MaxValueEntropy().scores(linear.belief)
    expected = quadrature(linear.belief)
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-8)
    halves = linear.but(data=linear.belief.data[::2], images=linear.images[::2])
    assert float((MaxValueEntropy().scores(halves) - expected).abs().max()) > 1e-3


def test_extremes_of_entropy_are_finite(problem: Any) -> None:
    """Known values, values far below the largest, and values far above their mean."""
    for dtype in (torch.float32, float64):
        sharp = 1e-18 * torch.arange(12, dtype=dtype)
        values = torch.stack(
            [torch.zeros(12, dtype=dtype), sharp, sharp * 1e-18 - 1e3, 1e-3 * sharp + 1e6], 1
        )
        values[3, 0] = 1e8
        belief = problem(n=4).but(data=values[:, :, None], images=values, noise=None)
        scores = MaxValueEntropy().scores(belief)
        assert bool(torch.isfinite(scores).all())
        assert scores.dtype == dtype and scores[2] == 0.0


def shares(linear: Any, chosen: list[int]) -> Tensor:
    """Half the logarithm of what is left of the variance of each measurement."""
    noise = linear.noise[:, 0].square()
    before, after = (moments(linear, c)[1].square() + noise for c in ([], chosen))
    return 0.5 * (after / before).log()


def test_batches_lose_what_they_have_in_common(problem: Any) -> None:
    linear = problem()
    scorer = MaxValueEntropy().begin(linear.belief)
    alone = scorer.scores()
    chosen: list[int] = []
    for index in (2, 6):
        scorer.take(index)
        chosen.append(index)
        torch.testing.assert_close(scorer.scores(), alone + shares(linear, chosen))
    assert float(shares(linear, [2, 6]).min()) < -0.1


def test_a_copy_of_what_was_chosen_comes_last(problem: Any) -> None:
    linear = problem(n=5)
    linear.matrix[1] = linear.matrix[0] = 3.0 * linear.matrix[0]
    for noise in (None, 0.01 * torch.ones(5, 1, dtype=float64)):
        for acquisition in (MaxValueEntropy(), UCB(kappa=50.0)):
            order = acquisition.choose(linear.but(noise=noise), 4).indices
            assert not {0, 1} <= set(order)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kappa": 0.0}, "kappa: got 0.0"),
        ({"kappa": "2"}, "kappa: got '2'"),
        ({"delta": 0.0}, "delta: got 0.0"),
        ({"delta": 1.0}, "delta: got 1.0"),
        ({"delta": None}, "delta: got None"),
    ],
)
def test_impossible_settings_are_refused(
    settings: dict[str, Any], message: str, problem: Any
) -> None:
    with pytest.raises(OptionError, match=message):
        UCB(**settings)


def test_one_number_a_candidate(problem: Any) -> None:
    makers: tuple[Callable[[], Any], ...] = (UCB, MaxValueEntropy)
    for make in makers:
        with pytest.raises(ShapeError, match="data: to find the maximum"):
            make().choose(problem(q=2).belief)
