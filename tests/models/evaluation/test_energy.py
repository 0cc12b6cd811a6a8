from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.models.evaluation.energy import energy_test


def test_distance_is_the_double_sum(rng: torch.Generator) -> None:
    first = torch.randn(6, 2, generator=rng, dtype=torch.float64)
    second = 2 + torch.randn(4, 2, generator=rng, dtype=torch.float64)

    def mean(a: Tensor, b: Tensor, pairs: int) -> float:
        return float(sum((p - q).norm() for p in a for q in b)) / pairs

    between = mean(first, second, 24)
    expected = 2 * between - mean(first, first, 30) - mean(second, second, 12)
    test = energy_test(first, second, permutations=9)
    assert test.distance == pytest.approx(expected)
    assert test.effect == pytest.approx(expected / (2 * between))


def test_distance_of_shifted_normals_by_closed_form(rng: torch.Generator) -> None:
    """``X - Y`` is normal with variance 2 and the mean of the shift; its mean size is known."""
    shift, n = 1.5, 1500
    x = torch.randn(n, 1, generator=rng, dtype=torch.float64)
    y = shift + torch.randn(n, 1, generator=rng, dtype=torch.float64)
    between = math.sqrt(4 / math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    exact = 2 * between - 2 * math.sqrt(4 / math.pi)
    # The standard error is below 2 * std / sqrt(n) for each sample: about 0.055. Five of them.
    assert abs(energy_test(x, y, permutations=1).distance - exact) < 0.28
    assert exact > 1


def test_p_values_are_uniform_for_equal_laws_and_small_otherwise(rng: torch.Generator) -> None:
    p_values, effects = [], []
    for _ in range(60):
        x, y = torch.randn(2, 40, 3, generator=rng)
        test = energy_test(x, y, permutations=99)
        p_values.append(test.p_value)
        effects.append(test.effect)
        assert energy_test(x, y + 2, permutations=99).p_value == 0.01
    # Mean and variance of 60 uniform numbers, five standard errors each: false alarm below 1e-6.
    p = torch.tensor(p_values)
    assert abs(p.mean() - 0.5) < 5 / math.sqrt(12 * 60)
    assert abs(p.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / 60)
    # Unbiased: negative values occur.
    assert min(effects) < 0 < max(effects)


def test_more_points_make_a_difference_significant_but_not_larger(rng: torch.Generator) -> None:
    few, many = (
        energy_test(
            torch.randn(n, 2, generator=rng),
            torch.randn(n, 2, generator=rng) + 0.5 / math.sqrt(2),
            permutations=199,
        )
        for n in (20, 800)
    )
    assert many.p_value == 1 / 200 <= few.p_value
    # The value that the documentation quotes for a shift by half a standard deviation.
    assert abs(many.effect - 0.03) < 0.02 and abs(few.effect - 0.03) < 0.25


def test_samples_of_one_point_value() -> None:
    same = energy_test(torch.ones(3, 2), torch.ones(5, 2), permutations=9)
    assert (same.distance, same.effect, same.p_value) == (0, 0, 1)
    apart = energy_test(torch.ones(30, 2), torch.zeros(30, 2), permutations=9)
    assert apart.effect == pytest.approx(1) and apart.p_value == 0.1


def test_bad_samples() -> None:
    good = torch.zeros(3, 2)
    for first, second in [(good, good[:1]), (good, torch.zeros(3, 1)), (good[0], good)]:
        with pytest.raises(ShapeError, match="expected at least two points"):
            energy_test(first, second)
    with pytest.raises(OptionError, match="permutations"):
        energy_test(good, good, permutations=0)
