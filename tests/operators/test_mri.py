"""Simulated scans against fastMRI's rules and the formula of the field of a wire."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.errors import DtypeError, OptionError
from bayesgen.operators import birdcage_sensitivities, cartesian_mask


def test_random_masks_follow_the_rule_of_fastmri() -> None:
    """Mean number of lines over 400 masks, 40 at fourfold acceleration; five standard errors."""
    width, lines = 160, []
    for seed in range(400):
        mask = cartesian_mask(width, seed=seed)
        assert mask.shape == (160,)
        # 13 lines about the frequency zero at index 80.
        assert mask[74:87].all()
        lines.append(int(mask.sum()))
    chance = (40 - 13) / (160 - 13)
    error = math.sqrt(147 * chance * (1 - chance) / 400)
    assert abs(np.mean(lines) - 40) < 5 * error
    # Had the centre not been counted, as many would be drawn again.
    assert abs(13 + 147 / 4 - 40) > 5 * error
    outside = torch.stack([cartesian_mask(width, seed=seed) for seed in range(400)])
    frequency = outside.double().mean(0)[[0, 73, 87, 159]]
    assert (frequency - chance).abs().max() < 5 * math.sqrt(chance * (1 - chance) / 400)


@pytest.mark.parametrize("acceleration", [2, 4, 6.5])
@pytest.mark.parametrize("width", [96, 101, 320])
def test_equispaced_masks_follow_the_rule_of_fastmri(width: int, acceleration: float) -> None:
    low = round(0.08 * width)
    pad = (width - low + 1) // 2
    spacing = acceleration * (low - width) / (low * acceleration - width)
    expected = []
    for offset in range(round(spacing)):
        mask = np.zeros(width, dtype=bool)
        mask[np.around(np.arange(offset, width - 1, spacing)).astype(int)] = True
        mask[pad : pad + low] = True
        expected.append(mask)
    found = [
        cartesian_mask(width, acceleration=acceleration, seed=seed, equispaced=True).numpy()
        for seed in range(40)
    ]
    # fastMRI leaves out a line that falls exactly on the last one.
    matches = [[np.array_equal(m[:-1], e[:-1]) for e in expected] for m in found]
    assert np.any(matches, axis=1).all()
    assert np.any(matches, axis=0).sum() > 1
    assert abs(np.mean(found) * width - width / acceleration) < 1.5


def test_masks_are_reproducible_and_reach_their_limits() -> None:
    for equispaced in (False, True):
        make = [cartesian_mask(64, seed=seed, equispaced=equispaced) for seed in (3, 3, 4)]
        assert torch.equal(make[0], make[1])
        assert not torch.equal(make[0], make[2])
        assert cartesian_mask(9, acceleration=1, equispaced=equispaced).all()
        assert cartesian_mask(9, acceleration=1, centre_fraction=1, equispaced=equispaced).all()
        centre = cartesian_mask(8, acceleration=2, centre_fraction=0.5, equispaced=equispaced)
        assert centre.tolist() == [False, False, True, True, True, True, False, False]


@pytest.mark.parametrize("shape", [(6, 5), (4, 9)])
def test_birdcage_agrees_with_the_formula_in_polar_form(shape: tuple[int, int]) -> None:
    maps = birdcage_sensitivities(5, shape, radius=1.7, dtype=torch.complex128).numpy()
    rows, columns = np.indices(shape)
    reference = []
    for angle in 2 * np.pi * np.arange(5) / 5:
        x = (columns + 0.5) / (shape[1] / 2) - 1 - 1.7 * np.cos(angle)
        y = (rows + 0.5) / (shape[0] / 2) - 1 - 1.7 * np.sin(angle)
        phase = np.arctan2(x, -y) - angle - np.pi / 2
        reference.append(np.exp(1j * phase) / np.hypot(x, y))
    reference /= np.sqrt(np.sum(np.abs(reference) ** 2, axis=0))
    np.testing.assert_allclose(maps, reference, atol=1e-12)


def test_birdcage() -> None:
    maps = birdcage_sensitivities(4, (6, 6), dtype=torch.complex128)
    assert maps.shape == (4, 6, 6)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(6, 6, dtype=torch.float64))
    # Strongest next to its coil: the right, the bottom, the left, the top.
    middle = maps.abs().mean(1), maps.abs().mean(2)
    assert [int(m.argmax()) for m in (middle[0][0], middle[0][2])] == [5, 0]
    assert [int(m.argmax()) for m in (middle[1][1], middle[1][3])] == [5, 0]
    # Turning the square by a quarter turn takes each coil to the next, but for the phase.
    torch.testing.assert_close(maps[0].rot90(-1).abs(), maps[1].abs())
    # In the middle the coils agree in size and phase.
    centre = birdcage_sensitivities(8, (5, 5), dtype=torch.complex128)[:, 2, 2]
    torch.testing.assert_close(centre, torch.full_like(centre, -(8**-0.5)))
    assert birdcage_sensitivities(2, (3, 4)).dtype == torch.complex64


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cartesian_mask(0), OptionError, "width: expected a positive integer, got 0"),
        (lambda: cartesian_mask(9, acceleration=0.5), OptionError, "at least 1, got 0.5"),
        (lambda: cartesian_mask(9, acceleration=math.nan), OptionError, "at least 1, got nan"),
        (lambda: cartesian_mask(9, centre_fraction=8), OptionError, "expected 0 to 1, got 8"),
        (
            lambda: cartesian_mask(100, acceleration=20),
            OptionError,
            "the 8 lines of the centre are more than the 5 that acceleration=20 leaves of 100",
        ),
        (lambda: birdcage_sensitivities(0, (4, 4)), OptionError, "coils: expected a positive"),
        (lambda: birdcage_sensitivities(2, (4,)), OptionError, r"image_shape: expected \(y, x\)"),
        (lambda: birdcage_sensitivities(2, (4, 4), radius=1.2), OptionError, "got 1.2"),
        (
            lambda: birdcage_sensitivities(2, (4, 4), dtype=torch.float32),
            DtypeError,
            "expected a complex one, got torch.float32",
        ),
    ],
)
def test_bad_simulations(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
