"""The L-curve: curvatures of known curves, a standard ill-posed problem, and no corner."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ResultError
from bayesgen.operators import Matrix
from bayesgen.weights import l_curve
from bayesgen.weights.curve import _curvatures


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaw(num: int) -> tuple[Matrix, Tensor]:
    """Shaw's image restoration, by the midpoint rule: light through a slit, and its source."""
    angle = (torch.arange(num, dtype=torch.float64) + 0.5) * math.pi / num - math.pi / 2
    u = math.pi * (angle.sin()[:, None] + angle.sin())
    kernel = (angle.cos()[:, None] + angle.cos()).square() * torch.sinc(u / math.pi).square()
    source = 2 * (-6 * (angle - 0.8).square()).exp() + (-2 * (angle + 0.5).square()).exp()
    return Matrix(kernel * math.pi / num), source


def ridge(A: Matrix) -> Any:
    n = A.matrix.shape[1]

    def estimate(y: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        normal = A.matrix.T @ A.matrix + weight * torch.eye(n, dtype=torch.float64)
        x = torch.linalg.solve(normal, A.matrix.T @ y)
        return x, x.square().sum()

    return estimate


def test_curvatures_by_hand() -> None:
    """A circle of radius 3, walked to the left and to the right; a line; points that coincide."""
    angles = torch.linspace(math.pi, 1.5 * math.pi, 7).tolist()
    circle = [(3 * math.cos(t), 3 * math.sin(t)) for t in angles]
    assert _curvatures(circle)[1:-1] == pytest.approx([1 / 3] * 5, rel=1e-5)
    assert _curvatures(circle[::-1])[1:-1] == pytest.approx([1 / 3] * 5, rel=1e-5)
    assert math.isnan(_curvatures(circle)[0]) and math.isnan(_curvatures(circle)[-1])
    arch = [(x, -y) for x, y in circle]
    assert _curvatures(arch)[1:-1] == pytest.approx([-1 / 3] * 5, rel=1e-5)
    assert _curvatures([(float(k), 2.0 * k) for k in range(5)])[1:-1] == [0.0] * 3
    assert _curvatures([(0.0, 1.0), (1e-9, 1e-9), (0.0, 0.0), (1e-9, 0.0)])[1:-1] == [0.0] * 2


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 1e-1])
def test_a_standard_problem(noise: float) -> None:
    """Within a factor of ten of the best weight, in the median: the best varies with the noise."""
    A, source = shaw(32)
    weights = torch.logspace(-10, 2, 25, dtype=torch.float64)
    estimate = ridge(A)
    ratios, mutants = [], []
    for seed in range(9):
        y = A(source) + noise * random(32, seed=seed)
        errors = torch.stack([(estimate(y, float(w))[0] - source).norm() for w in weights])
        best = float(weights[errors.argmin()])
        found = l_curve(estimate, A, y, weights)
        assert torch.equal(found.image, estimate(y, found.weight)[0])
        ratios.append(abs(math.log10(found.weight / best)))
        # A mutant that takes the curve to bend the other way.
        mutant = float(weights[found.values.nan_to_num(math.inf).argmin()])
        mutants.append(abs(math.log10(mutant / best)))
    assert sorted(ratios)[4] <= 1.01
    assert sorted(mutants)[4] > 1.01


def test_along_a_scale_the_corner_is_the_same() -> None:
    A, source = shaw(32)
    y, estimate = A(source) + 0.01 * random(32), ridge(A)
    weights = torch.logspace(-10, 2, 25, dtype=torch.float64)
    found = l_curve(estimate, A, y, weights)
    scale = l_curve(lambda y, s: estimate(y, s**-2), A, y, weights.flip(0) ** -0.5)
    assert scale.weight**-2 == pytest.approx(found.weight, rel=1e-9)
    torch.testing.assert_close(
        scale.values.flip(0), found.values, rtol=1e-3, atol=1e-3, equal_nan=True
    )


def test_corners_at_an_end_are_reported() -> None:
    A, source = shaw(32)
    y = A(source) + 0.01 * random(32)
    with pytest.warns(RuntimeWarning, match="l_curve: the corner is at weight .* an end of weigh"):
        l_curve(ridge(A), A, y, [1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0])


def test_a_curve_without_a_corner() -> None:
    """Weights far from it; and a problem so well-conditioned that there is none."""
    A, source = shaw(32)
    y = A(source) + 0.01 * random(32)
    with pytest.raises(ResultError, match="l_curve: the curve has no corner between weights 100 a"):
        l_curve(ridge(A), A, y, [1e2, 1e3, 1e4, 1e5, 1e6])
    orthogonal = Matrix(torch.linalg.qr(random(32, 10))[0].T)
    with pytest.raises(ResultError, match="no corner"):
        l_curve(ridge(orthogonal), orthogonal, random(10), torch.logspace(-6, 4, 21))


def test_what_is_refused() -> None:
    A, source = shaw(32)
    estimate, grid = ridge(A), [1.0, 2.0, 3.0, 4.0, 5.0]
    with pytest.raises(OptionError, match="weights: got 4 numbers; expected at least 5"):
        l_curve(estimate, A, source, grid[:4])
    with pytest.raises(DtypeError, match=r"at weight 1 it returned Tensor; expected \(image, pen"):
        l_curve(lambda y, w: estimate(y, w)[0], A, source, grid)
    with pytest.raises(DtypeError, match="at weight 1 the penalty is Tensor; expected a number"):
        l_curve(lambda y, w: (source, source), A, source, grid)
    with pytest.raises(DataError, match="at weight 1 the penalty is 0.0; its logarithm"):
        l_curve(lambda y, w: (source, 0.0), A, source, grid)
    with pytest.raises(DataError, match="at weight 1 the misfit is 0.0"):
        l_curve(lambda y, w: (source, 1.0), A, A(source), grid)
