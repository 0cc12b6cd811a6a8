from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.datasets import ellipses
from bayesgen.errors import DtypeError, OptionError

# The function hides the module of the same name.
module = importlib.import_module("bayesgen.datasets.ellipses")

# Beyond it a normal variable is once in 500 million, the false-alarm rate of each test below.
Z = 6.0


def _uniform(num: int, seed: int = 0) -> Tensor:
    (rows,) = module.uniform_rows(num, 421, seed=seed, block=num)
    return rows[1]


def _sum_of_ellipses(parameters: Tensor, size: int) -> Tensor:
    """One image, from the definition: every pixel against every ellipse, ``(6, ellipse)``."""
    image = torch.zeros(size, size, dtype=torch.float64)
    line = torch.linspace(-1, 1, size, dtype=torch.float64) if size > 1 else torch.zeros(1)
    for value, a, b, x, y, angle in parameters.T.tolist():
        dx, dy = line[None, :] - x, line[:, None] - y
        along = math.cos(angle) * dx + math.sin(angle) * dy
        across = -math.sin(angle) * dx + math.cos(angle) * dy
        if not math.isnan(value):
            image += value * ((along / a) ** 2 + (across / b) ** 2 <= 1).double()
    return image


def _one(*parameters: float, size: int) -> tuple[Tensor, Tensor]:
    total, covered = module._rasterised(
        torch.tensor(parameters, dtype=torch.float64)[:, None, None], size
    )
    return total[0], covered[0]


@pytest.mark.parametrize("size", [1, 2, 3, 32, 57])
def test_rasterised_by_the_definition(size: int) -> None:
    parameters = module._parameters(_uniform(12))
    total, covered = module._rasterised(parameters, size)
    for i in range(12):
        expected = _sum_of_ellipses(parameters[:, i], size)
        assert (total[i] - expected).abs().max() < 1e-12
        assert torch.equal(covered[i], expected != 0)


def test_an_ellipse_has_its_axes_place_and_tilt() -> None:
    total, covered = _one(0.7, 0.6, 0.2, 0.1, -0.2, math.pi / 6, size=801)
    assert torch.allclose(total, 0.7 * covered.double())
    ys, xs = (covered.nonzero().double() / 400 - 1).unbind(1)
    assert float(covered.sum()) / 400**2 == pytest.approx(math.pi * 0.6 * 0.2, rel=1e-3)
    assert float(xs.mean()) == pytest.approx(0.1, abs=1e-3)
    assert float(ys.mean()) == pytest.approx(-0.2, abs=1e-3)
    moments = torch.cov(torch.stack([xs, ys])) * 4
    axis = torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)], dtype=torch.float64)
    other = torch.tensor([-axis[1], axis[0]], dtype=torch.float64)
    expected = 0.36 * torch.outer(axis, axis) + 0.04 * torch.outer(other, other)
    assert torch.allclose(moments, expected, atol=2e-3)


def test_ellipses_outside_and_between_pixels_leave_no_trace() -> None:
    for a, x in [(1e-9, 0.01), (0.1, 1.2), (0.0, 0.5)]:
        total, covered = _one(1.0, a, a, x, 0.0, 1.0, size=32)
        assert not covered.any() and (total == 0).all()
    total, covered = _one(1.0, 9.0, 9.0, 0.3, 0.0, 1.0, size=32)
    assert covered.all() and (total == 1).all()


def test_phantoms_do_not_depend_on_the_size() -> None:
    parameters = module._parameters(_uniform(5))
    fine, coarse = (module._rasterised(parameters, size)[0] for size in (129, 65))
    assert torch.allclose(fine[:, ::2, ::2], coarse, atol=1e-12)


def _z(values: Tensor, mean: float, variance: float) -> float:
    return float((values.mean() - mean) / (variance / values.numel()) ** 0.5)


def test_parameters_have_the_published_distribution() -> None:
    parameters = module._parameters(_uniform(4000))
    present = ~parameters[0].isnan()
    counts = present.sum(1).double()
    assert abs(_z(counts, 40, 40)) < Z
    assert abs(_z((counts - 40) ** 2, 40, 40 + 2 * 40**2)) < Z
    value, a, b, x, y, angle = parameters[:, present]
    for values, low, high in [(value, -0.4, 1), (x, -0.9, 0.9), (y, -0.9, 0.9)]:
        middle, variance = (low + high) / 2, (high - low) ** 2 / 12
        assert low <= values.min() < low + 1e-3 and high - 1e-3 < values.max() < high
        assert abs(_z(values, middle, variance)) < Z
        assert abs(_z((values - middle) ** 2, variance, 0.8 * variance**2)) < Z
    for values in (a, b):
        assert values.min() >= 0
        assert abs(_z(values, 0.2, 0.04)) < Z
        assert abs(_z(values**2, 0.08, 20 * 0.2**4)) < Z
        assert abs(_z(values, 0.205, 0.04)) > Z  # so that the lines above can fail
    assert abs(_z(angle, math.pi, math.pi**2 / 3)) < Z
    assert angle.min() >= 0 and 6.28 < angle.max() < 2 * math.pi
    correlations = torch.corrcoef(torch.stack([value, a, b, x, y, angle])) - torch.eye(6)
    assert correlations.abs().max() < Z / len(value) ** 0.5


def test_counts_are_cut_at_the_maximum() -> None:
    edges = torch.tensor([0.0, math.exp(-40) * 1.01, 1 - 2**-53], dtype=torch.float64)
    assert module._counts(edges).tolist() == [0, 1, 70]


def test_only_the_foreground_is_shifted() -> None:
    """Stretching the whole range, as an early version did, would make the ground 0.25."""
    total = torch.tensor([[[0.0, -0.2], [0.0, 0.6]]])
    covered = torch.tensor([[[False, True], [False, True]]])
    assert torch.equal(module._normalised(total, covered), torch.tensor([[[0.0, 0], [0, 1]]]))
    total = torch.tensor([[[0.0, 0.2], [0.1, 0.5]]])
    covered = torch.tensor([[[False, True], [True, True]]])
    expected = torch.tensor([[[0.0, 0.4], [0.2, 1.0]]])
    assert torch.allclose(module._normalised(total, covered), expected)
    everywhere = torch.ones(1, 2, 2, dtype=torch.bool)
    expected = torch.tensor([[[0.0, 0.4], [0.2, 1.0]]])
    assert torch.allclose(module._normalised(0.3 + 0.5 * expected, everywhere), expected)


def test_images_without_contrast_are_zero() -> None:
    for covered in (True, False):
        image = module._normalised(torch.full((2, 3, 3), -0.3), torch.full((2, 3, 3), covered))
        assert (image == 0).all()
    assert torch.equal(ellipses(4, size=1), torch.zeros(4, 1, 1))


def test_images_are_normalised() -> None:
    images = ellipses(50, size=64, seed=1)
    assert images.shape == (50, 64, 64) and images.dtype == torch.float32
    assert (images.amin((1, 2)) == 0).all() and (images.amax((1, 2)) == 1).all()
    assert len(images.unique(dim=0)) == 50
    total, covered = module._rasterised(module._parameters(_uniform(50, seed=1)), 64)
    assert torch.equal(images, module._normalised(total, covered).float())
    assert (images[~covered] == 0).all() and (~covered).any()


def test_the_first_images_depend_neither_on_the_number_nor_on_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = ellipses(150, size=32, seed=2)
    for num in (0, 1, 149):
        assert torch.equal(ellipses(num, size=32, seed=2), images[:num])
    monkeypatch.setattr(module, "_BLOCK_SIZE", 1)
    assert torch.equal(ellipses(5, size=32, seed=2), images[:5])


def test_seeds_and_dtypes() -> None:
    assert torch.equal(ellipses(2, size=16), ellipses(2, size=16, seed=0))
    assert not torch.equal(ellipses(2, size=16), ellipses(2, size=16, seed=1))
    double = ellipses(2, size=16, dtype=torch.float64)
    assert double.dtype == torch.float64 and torch.equal(double.float(), ellipses(2, size=16))


def test_none() -> None:
    assert ellipses(0).shape == (0, 128, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": -1}, "num: got -1; expected an integer of at least 0"),
        ({"num": 1.5}, "num: got 1.5"),
        ({"size": 0}, "size: got 0; expected an integer of at least 1"),
        ({"size": (32, 32)}, "size: got"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ellipses(**{"num": 1, **options})


def test_wrong_dtypes_are_refused() -> None:
    with pytest.raises(DtypeError, match="dtype: expected a real floating-point dtype"):
        ellipses(1, dtype=torch.int64)
