from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, OptionError, ShapeError
from bayesgen.models.evaluation import samples
from bayesgen.models.evaluation.coverage import precision_recall


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def by_hand(generated: Tensor, real: Tensor, k: int, m: int) -> list[float]:
    """The definitions of the papers, with whole distance matrices."""
    cross = torch.cdist(generated, real)
    balls = {}
    for name, x in {"generated": generated, "real": real}.items():
        nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).sort().values
        balls[name] = nearest[:, k - 1], nearest[:, m - 1]
    inside = cross <= balls["real"][1]
    values = [
        (cross <= balls["real"][0]).any(1),
        (cross <= balls["generated"][0][:, None]).any(0),
        inside.sum(1) / m,
        inside.any(0),
    ]
    return [value.double().mean().item() for value in values]


@pytest.mark.parametrize(("k", "m"), [(3, 5), (4, 2)])
def test_by_definition(
    k: int, m: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated, real = normal(rng, 30, 2, 2) + 0.5, 1.2 * normal(rng, 41, 2, 2)
    monkeypatch.setattr(samples, "_BLOCK", 200)
    found = precision_recall(generated, real, neighbours=k, density_neighbours=m)
    values = [found.precision, found.recall, found.density, found.coverage]
    expected = by_hand(generated.flatten(1), real.flatten(1), k, m)
    assert [value for value, _ in values] == pytest.approx(expected)
    assert len(set(expected)) == 4  # none can be mistaken for another
    single = precision_recall(generated.float(), real.float(), neighbours=k, density_neighbours=m)
    assert str(single) == str(found)


def test_equal_laws_have_the_known_density_and_coverage(rng: torch.Generator) -> None:
    """Exact at any number of images and neighbours; z-scores below 5, false alarm 6e-7 each."""
    for num_generated, num_real, k in [(20, 30, 2), (40, 15, 5)]:
        density, coverage = [], []
        for _ in range(300):
            found = precision_recall(
                normal(rng, num_generated, 3), normal(rng, num_real, 3), density_neighbours=k
            )
            density.append(found.density.value)
            coverage.append(found.coverage.value)
        pool = range(num_real - 1, num_real - 1 - k, -1)
        missed = math.prod(n / (n + num_generated) for n in pool)
        assert found.expected_coverage == pytest.approx(1 - missed)
        for values, expected in [(density, 1.0), (coverage, 1 - missed)]:
            sample = torch.tensor(values, dtype=torch.float64)
            assert abs(sample.mean() - expected) < 5 * sample.std() / math.sqrt(300)


def test_many_equal_images_of_either_law() -> None:
    """For large and equal numbers the expected coverage is 1 - 2**-k."""
    x = torch.linspace(0, 1, 2000)[:, None]
    found = precision_recall(x, x + 1e-5)
    assert found.expected_coverage == pytest.approx(1 - 2.0**-5, abs=1e-3)
    assert found.precision.value == found.recall.value == found.coverage.value == 1


def test_disjoint_supports(rng: torch.Generator) -> None:
    found = precision_recall(normal(rng, 50, 4) + 100, normal(rng, 50, 4))
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == (0, 0)


def test_dropped_modes_lower_recall_and_coverage_only(rng: torch.Generator) -> None:
    modes = 20 * torch.eye(4, dtype=torch.float64)
    real = modes[torch.arange(400) % 4] + normal(rng, 400, 4)
    generated = modes[torch.arange(400) % 2] + normal(rng, 400, 4)
    found = precision_recall(generated, real)
    assert found.precision.value > 0.9 and found.density.value > 0.9
    assert found.recall.value < 0.55 and found.coverage.value < 0.55
    swapped = precision_recall(real, generated)
    assert swapped.precision == found.recall and swapped.recall == found.precision


def test_crowding_shows_in_density(rng: torch.Generator) -> None:
    found = precision_recall(0.5 * normal(rng, 400, 6), normal(rng, 400, 6))
    assert found.density.value > 1.3 and found.recall.value < found.precision.value


def test_ties_count_as_inside(rng: torch.Generator) -> None:
    """Laws on a few images: balls have radius zero and hold their copies."""
    images = torch.rand(5, 28, 28, generator=rng)
    generated, real = images[torch.arange(60) % 5], images[torch.arange(70) % 5]
    found = precision_recall(generated, real)
    assert found.precision.value == found.recall.value == found.coverage.value == 1
    fewer = precision_recall(generated[::5], real)
    assert fewer.precision.value == 1 and fewer.recall.value == 1 / 5


def test_rounding_does_not_decide_on_ties(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of the real images lie on the spheres that their nearest neighbours define."""
    real = torch.rand(60, 28, 28, generator=rng)
    monkeypatch.setattr(samples, "_BLOCK", 420)  # seven rows at a time
    for k in (1, 2, 3):
        found = precision_recall(real.flip(0), real, density_neighbours=k)
        # Each ball holds the copy of its centre and those of the k nearest.
        assert found.density.value == pytest.approx((k + 1) / k)


def test_standard_errors(rng: torch.Generator) -> None:
    found = precision_recall(normal(rng, 50, 2) + 1, normal(rng, 80, 2))
    for (value, error), num in [(found.precision, 50), (found.recall, 80), (found.coverage, 80)]:
        assert 0 < value < 1 and error == pytest.approx(math.sqrt(value * (1 - value) / num))
    assert 0 < found.density.standard_error < 0.5
    assert "equal laws: density 1, coverage 0.9" in str(found)


def test_bad_input_is_named() -> None:
    x = torch.zeros(6, 2, 2)
    with pytest.raises(ShapeError, match="real: has images of shape"):
        precision_recall(x, x[:, 0])
    with pytest.raises(DataError, match="generated: holds NaN"):
        precision_recall(x * math.nan, x)
    with pytest.raises(OptionError, match="neighbours.*fewer than the 5 real images"):
        precision_recall(x, x[:5])
    for name in ("neighbours", "density_neighbours"):
        with pytest.raises(OptionError, match=f"{name}: got 0"):
            precision_recall(x, x, **{name: 0})
