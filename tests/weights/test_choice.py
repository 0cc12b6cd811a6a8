"""What every way of choosing refuses, and the picture of a choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import Matrix
from bayesgen.weights import Choice, gsure, l_curve, morozov, sure, validation

GRID = [0.1, 0.5, 1.0, 5.0, 10.0]


def _paired(estimate: Any) -> Callable[[Tensor, float], Any]:
    return lambda y, w: (estimate(y, w), 1.0)


# By data, or by validation images that are made of them; each with a grid.
CHOOSERS: dict[str, Callable[..., Choice]] = {
    "morozov": lambda e, A, y, s, grid: morozov(e, A, y, s),
    "l_curve": lambda e, A, y, s, grid: l_curve(_paired(e) if callable(e) else e, A, y, grid),
    "sure": sure,
    "gsure": gsure,
    "validation": lambda e, A, y, s, grid: validation(e, A, A.adjoint(y)[None], s, grid),
}


@pytest.fixture(params=CHOOSERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_grids_that_are_refused(name: str, A: Matrix, y: Tensor, ridge: Any) -> None:
    if name == "morozov":
        pytest.skip("has no grid")
    choose = CHOOSERS[name]
    at_least = "at least 5" if name == "l_curve" else "at least one"
    for empty in ([], torch.zeros(0), ()):
        with pytest.raises(OptionError, match=f"weights: got 0 numbers; expected {at_least}"):
            choose(ridge, A, y, 0.5, empty)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(OptionError, match=r"weights\[1\]: expected a positive number, got"):
            choose(ridge, A, y, 0.5, [1.0, bad, 2.0, 3.0, 4.0])
    with pytest.raises(OptionError, match="increasing numbers, none twice; got 0.5 after 1.0"):
        choose(ridge, A, y, 0.5, [0.1, 1.0, 0.5, 2.0, 3.0])
    with pytest.raises(OptionError, match="increasing numbers, none twice; got 1.0 after 1.0"):
        choose(ridge, A, y, 0.5, [0.1, 1.0, 1.0, 2.0, 3.0])
    for wrong in (["a"] * 5, [True] * 5, None, torch.ones(5, dtype=torch.complex64)):
        with pytest.raises(DtypeError, match="weights: expected a list of real numbers, got"):
            choose(ridge, A, y, 0.5, wrong)
    for wrong in (1.0, [GRID]):
        with pytest.raises(ShapeError, match="weights: expected a list of numbers, got shape"):
            choose(ridge, A, y, 0.5, wrong)


def test_noise_levels_that_are_refused(name: str, A: Matrix, y: Tensor, ridge: Any) -> None:
    if name == "l_curve":
        pytest.skip("has no noise level")
    for sigma in (0.0, -0.1, math.nan, None):
        with pytest.raises(OptionError, match="sigma: expected a positive number, got"):
            CHOOSERS[name](ridge, A, y, sigma, GRID)


def test_data_that_are_refused(name: str, A: Matrix, y: Tensor, ridge: Any) -> None:
    choose = CHOOSERS[name]
    if name != "validation":
        with pytest.raises(ShapeError, match="y: expected one data set, of shape"):
            choose(ridge, A, y[None], 0.5, GRID)
        with pytest.raises(ShapeError, match="y must have shape"):
            choose(ridge, A, y[0], 0.5, GRID)
        with pytest.raises(DtypeError, match="y is torch.float32, the operator torch.float64"):
            choose(ridge, A, y.float(), 0.5, GRID)
        with pytest.raises(DtypeError, match="real and imaginary part as two channels"):
            choose(ridge, A, y + 0j, 0.5, GRID)
        with pytest.raises(DtypeError, match="A: expected an Operator, got Tensor"):
            choose(ridge, A.matrix, y, 0.5, GRID)
    with pytest.raises(DataError, match="(y|images): an entry is NaN or infinite"):
        choose(ridge, A, y * math.nan, 0.5, GRID)
    with pytest.raises(DtypeError, match="estimate: expected a function of data and weight, got N"):
        choose(None, A, y, 0.5, GRID)


def test_images_that_are_refused(name: str, A: Matrix, y: Tensor, ridge: Any) -> None:
    """The weight at which it happened is named: the last of the grid, or an end of `between`."""
    last = 1e4 if name == "morozov" else 10.0
    wrong: dict[type[Exception], tuple[Callable[[Tensor], Any], str]] = {
        ShapeError: (lambda x: x.T, r"an image of shape \(5, 2\); expected \(2, 5\)"),
        DataError: (lambda x: x / 0.0, "an image with NaN or infinite entries"),
        DtypeError: (lambda x: x.float(), "torch.float32 on cpu; expected torch.float64 on cpu"),
        TypeError: (lambda x: x.tolist(), "list; expected a torch tensor"),
    }
    for error, (change, message) in wrong.items():

        def estimate(y: Tensor, weight: float, change: Any = change) -> Any:
            x = ridge(y, weight)
            return change(x) if weight > 0.999 * last else x

        with pytest.raises(error, match=f"estimate: at weight {last:g} it returned {message}"):
            CHOOSERS[name](estimate, A, y, 0.5, GRID)


def test_gradients_do_not_come_along(A: Matrix, y: Tensor, ridge: Any) -> None:
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    found = morozov(lambda y, w: factor * ridge(y, w), A, y.requires_grad_(), 0.5)
    assert not found.image.requires_grad


class TestPlot:
    @pytest.fixture(autouse=True)
    def no_windows(self) -> Any:
        matplotlib.use("Agg")
        yield
        plt.close("all")

    def test_the_level_and_the_choice_are_marked(self, A: Matrix, y: Tensor, ridge: Any) -> None:
        found = morozov(ridge, A, y, 0.5)
        (ax,) = found.plot().axes
        curve, level, choice = ax.lines
        assert np.array_equal(curve.get_xdata(), found.weights.numpy())
        assert np.array_equal(curve.get_ydata(), found.values.numpy())
        assert set(level.get_ydata()) == {found.level}
        assert set(choice.get_xdata()) == {found.weight}
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("weight", "misfit |A x - y|^2")
        assert len(ax.get_legend().get_texts()) == 2

    def test_criteria_without_a_level_or_a_sign(self) -> None:
        values = torch.tensor([math.nan, -1.0, 2.0, math.nan])
        tried = torch.tensor([1.0, 2.0, 3.0, 4.0])
        found = Choice(weight=3.0, image=None, weights=tried, values=values, criterion="c")
        figure = found.plot()
        (ax,) = figure.axes
        assert len(ax.lines) == 2
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
        figure.canvas.draw()
