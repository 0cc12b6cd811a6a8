from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, OptionError, ShapeError
from bayesgen.models.evaluation.support import support_size


def drawn(num: int, support: int, rng: torch.Generator, noise: float = 0.0) -> Tensor:
    """Images drawn from a support of this size, and a little noise."""
    images = torch.rand(support, 6, 6, generator=rng)
    chosen = images[torch.randint(support, (num,), generator=rng)]
    return chosen + noise * torch.randn(chosen.shape, generator=rng)


@pytest.fixture
def real(rng: torch.Generator) -> Tensor:
    return torch.rand(500, 6, 6, generator=rng)


@pytest.mark.parametrize(("support", "noise"), [(50, 0.0), (1000, 0.01), (20000, 0.0)])
def test_a_known_support_is_found(
    support: int, noise: float, real: Tensor, rng: torch.Generator
) -> None:
    """Duplicates are pairwise independent, hence vary like a Poisson number: |z| < 5, 6e-7."""
    found = support_size(drawn(1000, support, rng, noise), real)
    expected = math.comb(1000, 2) / support
    assert abs(found.duplicates - expected) < 5 * math.sqrt(expected)
    assert found.size == math.comb(1000, 2) / found.duplicates
    assert found.interval[0] < found.size < found.interval[1]
    assert found.real_duplicates == 0


def test_intervals_hold_the_truth_as_often_as_they_say(rng: torch.Generator) -> None:
    """At least 80 % of 400; a smaller share by 5 sigma has probability 3e-7."""
    real, held = torch.rand(60, 6, 6, generator=rng), 0
    for _ in range(400):
        low, high = support_size(drawn(60, 300, rng), real, confidence=0.8).interval
        held += low <= 300 <= high
    assert held / 400 > 0.8 - 5 * math.sqrt(0.8 * 0.2 / 400)


def test_the_interval_is_that_of_a_poisson_number() -> None:
    """Ten counted: 4.795 to 18.39 in the tables (Garwood, 1936)."""
    images = torch.arange(100.0)[:, None] * torch.tensor([0.6, 0.8])
    found = support_size(torch.cat([images, images[:10]]), images)
    assert found.duplicates == 10
    assert 5995 / found.interval[1] == pytest.approx(4.795, abs=1e-3)
    assert 5995 / found.interval[0] == pytest.approx(18.39, abs=5e-3)


def test_no_duplicates_give_a_lower_bound(real: Tensor, rng: torch.Generator) -> None:
    found = support_size(torch.rand(500, 6, 6, generator=rng), real)
    assert found.duplicates == 0 and found.size == math.inf
    low, high = found.interval
    assert high == math.inf
    # The rule of three: less than three expected duplicates, or one would have been seen.
    assert low == pytest.approx(math.comb(500, 2) / -math.log(0.05))
    assert str(found).startswith("at least 4.16e+04 images (95% confidence): 0 near-duplicates")


def test_heavy_modes_count_by_their_weight(real: Tensor, rng: torch.Generator) -> None:
    """Half of the samples are one image: one over the sum of squares is 4, and 10 after noise."""
    generated = torch.rand(400, 6, 6, generator=rng)
    generated[:200] = generated[0]
    found = support_size(generated, real)
    assert found.duplicates == math.comb(200, 2)
    assert found.size == pytest.approx(4, rel=0.01)
    assert "about 4.01 images" in str(found)


def test_the_threshold_follows_the_real_images(rng: torch.Generator) -> None:
    """Half the first percentile of nearest distances, on a grid where all are known."""
    real = torch.arange(300.0)[:, None] * torch.tensor([0.6, 0.8])
    generated = torch.tensor([[0.0], [0.49], [100.0], [100.51]]) * torch.tensor([0.6, 0.8])
    found = support_size(generated, real)
    assert found.threshold == pytest.approx(0.5, rel=1e-4) and found.duplicates == 1
    scaled = support_size(10 * generated, 10 * real)
    assert scaled.threshold == pytest.approx(5, rel=1e-4) and scaled.duplicates == 1
    wide = support_size(generated, real, threshold=1.001)
    assert wide.duplicates == 2
    # 299 of the 44850 real pairs are as near, which among 6 pairs makes 0.04.
    assert wide.real_duplicates == pytest.approx(299 / 44850 * 6)


def test_real_duplicates_do_not_hide_the_threshold(real: Tensor, rng: torch.Generator) -> None:
    real[1] = real[0]
    found = support_size(drawn(500, 50, rng), real)
    assert found.threshold > 0 and found.real_duplicates == 1


def test_bad_input_is_named(real: Tensor) -> None:
    with pytest.raises(ShapeError, match="generated: .*at least 2 images"):
        support_size(real[:1], real)
    with pytest.raises(DataError, match="real: holds NaN"):
        support_size(real, real * math.nan)
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(OptionError, match="threshold"):
            support_size(real, real, threshold=bad)
    with pytest.raises(OptionError, match="confidence"):
        support_size(real, real, confidence=1.0)
