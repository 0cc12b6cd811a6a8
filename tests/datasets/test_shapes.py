from __future__ import annotations

import importlib
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.datasets import shapes, shapes_plus
from bayesgen.errors import DtypeError, OptionError

# The function hides the module of the same name.
module = importlib.import_module("bayesgen.datasets.shapes")

CENTRES, RADII = range(28, 42), range(6, 14)
CORNERS, EXTENTS = range(14), range(6, 14)
PIXELS_OF_DISCS = {6: 113, 7: 149, 8: 197, 9: 253, 10: 317, 11: 377, 12: 441, 13: 529}
# A normal variable is beyond it once in 500 million; with the 3136 pixels of an image, and their
# not quite normal frequencies, a right implementation fails less than once in 100,000 seeds.
Z = 6.0


def _columns(first: int, last: int, wanted: int) -> float:
    """The uniform number that is mapped to ``wanted``."""
    return (wanted - first + 0.5) / (last - first + 1)


def _painted(
    centre: tuple[int, int],
    radius: int,
    corner: tuple[int, int],
    extent: tuple[int, int],
    place: tuple[float, float] | None = None,
) -> Tensor:
    uniform = [
        *[_columns(28, 41, c) for c in centre],
        _columns(6, 13, radius),
        *[_columns(0, 13, c) for c in corner],
        *[_columns(6, 13, e) for e in extent],
        *(place or (0.5, 0.5)),
    ]
    image = torch.empty(1, 56, 56)
    module._paint(image, torch.tensor([uniform], dtype=torch.float64), spot=place is not None)
    return image[0]


def _chances() -> Tensor:
    """Probability of each pixel to be lit, exactly: the disc and the rectangle are independent."""
    grid = torch.arange(56, dtype=torch.float64)
    disc = torch.zeros(56, 56, dtype=torch.float64)
    for radius in RADII:
        for cy in CENTRES:
            for cx in CENTRES:
                disc += (grid[:, None] - cy) ** 2 + (grid - cx) ** 2 <= radius**2
    disc /= len(RADII) * len(CENTRES) ** 2
    line = torch.zeros(56, dtype=torch.float64)
    for corner in CORNERS:
        for extent in EXTENTS:
            line[corner : corner + extent + 1] += 1 / (len(CORNERS) * len(EXTENTS))
    rectangle = torch.outer(line, line)
    return 1 - (1 - disc) * (1 - rectangle)


CHANCES = _chances()


def _z(values: Tensor, mean: float) -> float:
    values = values.double()
    return float((values.mean() - mean) / (values.std() / len(values) ** 0.5))


def _largest_z(images: Tensor) -> float:
    """Largest deviation of a pixel's frequency or of the lit area, in standard errors."""
    assert ((images > 0).sum(0)[CHANCES == 0] == 0).all(), "a pixel is lit that cannot be"
    common = CHANCES * len(images) > 40
    error = (CHANCES * (1 - CHANCES) / len(images)).sqrt()
    z = ((images > 0).double().mean(0) - CHANCES) / error
    area = _z((images > 0).sum((1, 2)), float(CHANCES.sum()))
    return max(float(z[common].abs().max()), abs(area))


@pytest.mark.parametrize(("radius", "count"), PIXELS_OF_DISCS.items())
def test_discs_have_the_published_pixels(radius: int, count: int) -> None:
    image = _painted((34, 30), radius, (0, 0), (6, 6))
    disc = image.clone()
    disc[:7, :7] = 0
    assert int((disc > 0).sum()) == count
    ys, xs = disc.nonzero().unbind(1)
    assert ((xs - 34) ** 2 + (ys - 30) ** 2 <= radius**2).all()
    assert disc[30, 34 + radius] == disc[30 - radius, 34] == 0.5
    assert disc[30, 35 + radius] == disc[29 - radius, 34] == 0


@pytest.mark.parametrize(
    ("corner", "extent"), [((0, 0), (6, 13)), ((13, 4), (13, 6)), ((2, 9), (7, 8))]
)
def test_rectangles_include_both_corners(corner: tuple[int, int], extent: tuple[int, int]) -> None:
    image = _painted((41, 41), 6, corner, extent)
    expected = torch.zeros(56, 56)
    expected[corner[1] : corner[1] + extent[1] + 1, corner[0] : corner[0] + extent[0] + 1] = 0.5
    image[35:48, 35:48] = 0
    assert torch.equal(image, expected)


def test_integers_are_uniform_on_the_published_ranges() -> None:
    """A chi-square statistic of the order of its degrees of freedom; see `Z`."""
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for first, last in [(28, 41), (6, 13), (0, 13)]:
        drawn = module._integers(uniform, first, last)
        counts = torch.bincount(drawn)[first:]
        assert len(counts) == last - first + 1 and (drawn >= first).all()
        expected = len(uniform) / len(counts)
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        freedom = len(counts) - 1
        assert abs(chi_square - freedom) < Z * (2 * freedom) ** 0.5
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert module._integers(edges, 28, 41).tolist() == [28, 41]


def test_frequency_of_every_pixel() -> None:
    images = shapes(20_000, seed=1)
    assert images.shape == (20_000, 56, 56) and images.dtype == torch.float32
    assert set(images.unique().tolist()) == {0.0, 0.5}
    assert _largest_z(images) < Z


def _too_short(uniform: Tensor, first: int, last: int) -> Tensor:
    return (first + (last - first) * uniform).int()


def _too_long(uniform: Tensor, first: int, last: int) -> Tensor:
    return (first + (last - first + 2) * uniform).int()


def _without_last_corner(corner: Tensor, extent: Tensor) -> Tensor:
    steps = torch.arange(56) - corner[..., None]
    inside = (steps >= 0) & (steps < extent[..., None])
    return inside[:, 1, :, None] & inside[:, 0, None, :]


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("_integers", _too_short),
        ("_integers", _too_long),
        ("_rectangle", _without_last_corner),
    ],
)
def test_the_frequencies_tell_a_wrong_rule(
    monkeypatch: pytest.MonkeyPatch, name: str, mutant: Any
) -> None:
    monkeypatch.setattr(module, name, mutant)
    images = shapes(20_000, seed=1)
    assert (images[:, CHANCES == 0] > 0).any() or _largest_z(images) > Z


def test_published_statistics() -> None:
    images = shapes(20_000, seed=2)
    energy = (images**2).sum((1, 2))
    exact = float(CHANCES.sum()) / 4
    assert exact == pytest.approx(101.8, abs=0.05)
    assert exact / 3136 * 4 == pytest.approx(0.130, abs=0.0005)
    assert abs(_z(energy, exact)) < Z
    assert abs(_z(energy, 1.03 * exact)) > Z  # so that the line above can fail


def test_overlaps_are_rare() -> None:
    overlaps, num = 0, 40_000
    for _, uniform in module.uniform_rows(num, 9, seed=3, block=1000):
        centre, radius = module._integers(uniform[:, :2], 28, 41), uniform[:, 2:3]
        discs = module._disc(centre, module._integers(radius, 6, 13))
        corner, extent = uniform[:, 3:5], uniform[:, 5:7]
        rectangles = module._rectangle(
            module._integers(corner, 0, 13), module._integers(extent, 6, 13)
        )
        overlaps += int((discs & rectangles).flatten(1).any(1).sum())
    # A rectangle ends before the centre of the disc, so they meet if its last corner is inside.
    gaps = torch.zeros(42, dtype=torch.float64)
    for centre_x in CENTRES:
        for corner_x in CORNERS:
            for extent_x in EXTENTS:
                gaps[centre_x - corner_x - extent_x] += 1 / (14 * 14 * 8)
    squares = torch.arange(42) ** 2
    near = torch.stack([squares[:, None] + squares <= r**2 for r in RADII]).double().mean(0)
    exact = float(gaps @ near @ gaps)
    assert exact == pytest.approx(0.0032, abs=0.00001)
    assert abs(overlaps - num * exact) < Z * (num * exact) ** 0.5


def test_the_bright_disc_lies_over_the_disc_and_under_the_rectangle() -> None:
    image = _painted((34, 36), 10, (0, 0), (6, 6), place=(0.5, 0.5))
    assert image.unique().tolist() == [0.0, 0.5, 1.0]
    bright = (image == 1).nonzero()
    assert len(bright) == 13
    assert ((bright - torch.tensor([36, 34])) ** 2).sum(1).max() == 4
    # At (21, 21), where the rectangle, from (13, 13) to (26, 26), hides all of it.
    hidden = _painted((28, 28), 13, (13, 13), (13, 13), place=(0.0, 0.0))
    assert torch.equal(hidden, _painted((28, 28), 13, (13, 13), (13, 13)))
    partly = _painted((28, 28), 13, (13, 13), (12, 7), place=(0.0, 0.0))
    assert sorted({int(y) for y, _ in (partly == 1).nonzero()}) == [21, 22, 23]


@pytest.mark.parametrize(
    ("place", "expected"),
    [((0.5 + 2.9 / 13, 0.5 - 0.1 / 13), (36, 35)), ((0.0, 1 - 1e-12), (27, 42))],
)
def test_the_bright_disc_is_truncated_to_pixels(
    place: tuple[float, float], expected: tuple[int, int]
) -> None:
    """Rounding would move 36.9 to 37 and 35.9 to 36."""
    image = _painted((34, 36), 13, (0, 0), (6, 6), place=place)
    ys, xs = (image == 1).nonzero().double().unbind(1)
    assert (xs.mean(), ys.mean()) == expected


def test_shapes_plus_adds_bright_discs_to_shapes() -> None:
    plain, plus = shapes(3000, seed=4), shapes_plus(3000, seed=4)
    assert set(plus.unique().tolist()) == {0.0, 0.5, 1.0}
    changed = plain != plus
    assert torch.equal(changed, plus == 1)
    counts = changed.sum((1, 2))
    assert counts.max() == 13 and (counts == 13).float().mean() > 0.99
    # Truncation moves the bright disc by half a pixel against the disc, 34.5 in the mean.
    ys, xs = changed.nonzero()[:, 1:].double().unbind(1)
    for positions in (ys, xs):
        z = (positions.mean() - 34) / (positions.std() / len(plus) ** 0.5)
        assert abs(z) < Z
        assert abs(positions.std() - (14**2 / 12 + 94.25 / 12 + 1) ** 0.5) < 0.2


@pytest.mark.parametrize("draw", [shapes, shapes_plus])
class TestBoth:
    def test_the_first_images_do_not_depend_on_the_number(self, draw: Any) -> None:
        images = draw(300, seed=5)
        for num in (0, 1, 2, 255, 256, 257):
            assert torch.equal(draw(num, seed=5), images[:num])

    def test_the_images_do_not_depend_on_the_blocks(
        self, draw: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = draw(20, seed=5)
        monkeypatch.setattr(module, "_BLOCK", 7)
        assert torch.equal(draw(20, seed=5), images)

    def test_seeds(self, draw: Any) -> None:
        assert torch.equal(draw(4), draw(4, seed=0))
        assert not torch.equal(draw(4, seed=1), draw(4, seed=0))
        assert len(draw(50).unique(dim=0)) == 50

    def test_dtypes_hold_the_same_images(self, draw: Any) -> None:
        for dtype in (torch.float16, torch.float64):
            images = draw(5, dtype=dtype)
            assert images.dtype == dtype and torch.equal(images.float(), draw(5))

    def test_none(self, draw: Any) -> None:
        assert draw(0).shape == (0, 56, 56)

    @pytest.mark.parametrize("num", [-1, 2.0, True, "3", None])
    def test_wrong_numbers_are_refused(self, draw: Any, num: Any) -> None:
        with pytest.raises(OptionError, match="num: got .*; expected an integer of at least 0"):
            draw(num)

    @pytest.mark.parametrize("seed", [-1, 0.5, True, 2**63, None])
    def test_wrong_seeds_are_refused(self, draw: Any, seed: Any) -> None:
        with pytest.raises(OptionError, match=r"seed: got .*; expected an integer from 0"):
            draw(1, seed=seed)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, "float32"])
    def test_wrong_dtypes_are_refused(self, draw: Any, dtype: Any) -> None:
        with pytest.raises(DtypeError, match="dtype: expected a real floating-point dtype"):
            draw(1, dtype=dtype)


@pytest.mark.slow
def test_the_training_set_takes_seconds() -> None:
    start = time.perf_counter()
    assert len(shapes(60_000)) == 60_000
    assert time.perf_counter() - start < 20
