from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models.evaluation import samples
from bayesgen.models.evaluation.samples import (
    Estimate,
    blocks,
    centred,
    check_equal_numbers,
    check_level,
    image_rows,
    mean_estimate,
    nearest_squares,
    squared_distances,
)


def test_rows_are_flat_and_in_double_precision() -> None:
    x, y = image_rows(x=torch.ones(3, 2, 4), y=torch.zeros(5, 2, 4, dtype=torch.float64))
    assert x.shape == (3, 8) and y.shape == (5, 8)
    assert x.dtype == y.dtype == torch.float64


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[1.0]], DtypeError, "y: expected a floating-point tensor, got list"),
        (torch.ones(3, 4, dtype=torch.int64), DtypeError, "y: .*got torch.int64"),
        (torch.ones(3), ShapeError, r"y: expected shape \(N, \*image_shape\)"),
        (torch.ones(0, 4), ShapeError, r"y: .*at least 2 images, got \(0, 4\)"),
        (torch.ones(1, 4), ShapeError, "y: .*at least 2 images"),
        (torch.ones(3, 0), ShapeError, "y: expected shape"),
        (torch.ones(3, 5), ShapeError, r"y: has images of shape \(5,\), but x of \(4,\)"),
        (torch.ones(3, 2, 2), ShapeError, r"y: has images of shape \(2, 2\)"),
        (torch.ones(3, 4, device="meta"), DtypeError, "y: is on meta, but x on cpu"),
        (torch.full((3, 4), math.nan), DataError, "y: holds NaN"),
        (torch.full((3, 4), math.inf), DataError, "y: holds NaN or infinity"),
    ],
)
def test_unusable_sets_are_refused(bad: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        image_rows(2, x=torch.ones(3, 4), y=bad)


def test_numbers_and_levels_are_checked() -> None:
    with pytest.raises(ShapeError, match="b: has 3 images, but a has 2; expected equal"):
        check_equal_numbers(a=torch.ones(2, 1), b=torch.ones(3, 1))
    for level in (0, 1, -0.5, math.nan, "0.5"):
        with pytest.raises(OptionError, match="confidence: got .*between 0 and 1"):
            check_level("confidence", level)  # type: ignore[arg-type]


def test_distances_by_definition(rng: torch.Generator) -> None:
    x, y = (torch.randn(n, 6, generator=rng, dtype=torch.float64) for n in (5, 7))
    expected = (x[:, None] - y).square().sum(-1)
    torch.testing.assert_close(squared_distances(x, y), expected)


def test_copies_are_at_distance_zero_and_others_are_not(rng: torch.Generator) -> None:
    x = torch.rand(50, 784, generator=rng, dtype=torch.float64)
    assert (squared_distances(x, x.clone()).diagonal() == 0).all()
    near = x.clone()
    near[:, 3] += 1 / 255  # one grey level in one pixel
    found = squared_distances(x, near).diagonal()
    torch.testing.assert_close(found, torch.full_like(found, 255.0**-2), rtol=1e-6, atol=0)


def test_nearest_neighbours_do_not_depend_on_blocks(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(40, 3, generator=rng, dtype=torch.float64)
    x[7] = x[8]
    expected = torch.cdist(x, x).square().fill_diagonal_(torch.inf).sort().values[:, :4]
    torch.testing.assert_close(nearest_squares(x, 4), expected)
    assert nearest_squares(x, 1)[7] == 0
    monkeypatch.setattr(samples, "_BLOCK", 120)  # three rows at a time
    assert [rows.stop - rows.start for rows in blocks(40, 40)] == [3] * 13 + [1]
    torch.testing.assert_close(nearest_squares(x, 4), expected)


def test_centring_keeps_differences() -> None:
    x, y = centred(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]]))
    assert torch.equal(x, torch.tensor([[-1.0], [1.0]]))
    assert torch.equal(y, torch.tensor([[3.0]]))


def test_mean_with_its_error() -> None:
    found = mean_estimate(torch.tensor([True, True, True, False]))
    assert found == Estimate(0.75, math.sqrt(0.75 * 0.25 / 4))
    assert str(found) == "0.75 ± 0.22"
