from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.models.evaluation import comparison
from bayesgen.models.evaluation.comparison import Divergences, compare
from bayesgen.models.evaluation.divergence import (
    earth_movers_distance,
    energy_distance,
    energy_influences,
    sinkhorn_divergence,
)

pytest.importorskip("ot")


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_the_numbers_are_those_of_the_distances(rng: torch.Generator) -> None:
    generated, real, other = normal(rng, 3, 30, 2, 4) + 2
    generated = generated + 0.5
    found = compare(generated, real, other)
    assert found.num_images == 30
    assert found.mean_square_norm == pytest.approx(real.square().sum((1, 2)).mean().item())
    for name, distance in [
        ("earth_movers", earth_movers_distance),
        ("energy", energy_distance),
        ("sinkhorn", sinkhorn_divergence),
    ]:
        result = found[name]
        assert result.floor.value == pytest.approx(distance(other, real))
        if name != "sinkhorn":  # whose regularisation is that between the real sets
            assert result.generated.value == pytest.approx(distance(generated, real))
        excess = result.generated.value - result.floor.value
        assert result.excess.value == pytest.approx(excess)
    cost = [torch.cdist(x.flatten(1), real.flatten(1)).square().mean() for x in (other, generated)]
    ratio = (cost[0] / cost[1]).item()
    expected = sinkhorn_divergence(generated, real, regularisation=0.2 * ratio)
    assert found["sinkhorn"].generated.value == pytest.approx(expected)


@pytest.fixture(scope="module")
def blurred() -> Divergences:
    """Images of fifty pixels of independent noise; the generated ones have 0.7 of the contrast."""
    rng = torch.Generator().manual_seed(0)
    generated, real, other = normal(rng, 3, 300, 5, 10)
    return compare(0.7 * generated, real, other)


def test_raw_transport_prefers_blur(blurred: Divergences) -> None:
    excess = blurred["earth_movers"].excess
    assert excess.value < -10 * excess.standard_error


@pytest.mark.parametrize("name", ["energy", "sinkhorn"])
def test_debiased_distances_do_not(name: str, blurred: Divergences) -> None:
    excess = blurred[name].excess
    assert excess.value > 5 * excess.standard_error


def test_the_published_sinkhorn_divergence_does(rng: torch.Generator) -> None:
    """The reason why self-pairs are left out."""
    generated, real, other = normal(rng, 3, 300, 5, 10)
    # Relative to the mean cost, so that both have the same regularisation.
    blurred = sinkhorn_divergence(
        0.7 * generated, real, regularisation=0.2 * 2 / (1 + 0.7**2), self_pairs=True
    )
    assert blurred < 0.8 * sinkhorn_divergence(other, real, self_pairs=True)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_standard_errors_are_those_of_repeated_draws(shift: float, rng: torch.Generator) -> None:
    """Right between different laws, up to sqrt(2) too large between equal ones.

    The standard deviation of 150 results is known to 6 %, which leaves five sigma on both sides
    (false alarm 6e-7 each).
    """
    results = []
    for _ in range(150):
        generated, real, other = normal(rng, 3, 40, 4)
        results.append(compare(generated + shift, real, other))
    for name in ("earth_movers", "energy", "sinkhorn"):
        for kind in ("generated", "floor", "excess"):
            found = [getattr(result[name], kind) for result in results]
            spread = torch.tensor([value for value, _ in found]).std()
            ratio = (torch.tensor([error for _, error in found]).mean() / spread).item()
            different = shift > 0 and kind != "floor"
            assert 0.7 < ratio < (1.35 if different else 2.0), (name, kind, ratio)


def test_the_excess_knows_that_both_are_distances_from_the_same_images(
    rng: torch.Generator,
) -> None:
    """For the generated images in place of the others, the real images have no influence left."""
    generated, real = normal(rng, 2, 30, 4)
    result = compare(generated + 1, real, generated + 1, measures=["energy"])["energy"]
    found = energy_influences(generated, real - 1)
    assert result.excess.value == pytest.approx(0, abs=1e-12)
    variance = 2 * found.x.var(correction=0).item() / 30
    assert result.excess.standard_error == pytest.approx(math.sqrt(variance))
    variance = (found.x.var(correction=0) + found.y.var(correction=0)).item() / 30
    assert result.floor.standard_error == pytest.approx(math.sqrt(variance))


def test_only_what_is_asked_for_is_computed(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(comparison, "transport_influences", forbidden)
    found = compare(*normal(rng, 3, 10, 4), measures=("energy",))
    assert list(found.distances) == ["energy"]
    with pytest.raises(OptionError, match="measure: unknown value 'sinkhorn'.*'energy'"):
        found["sinkhorn"]


def test_the_result_prints(rng: torch.Generator) -> None:
    lines = str(compare(*normal(rng, 3, 10, 4))).splitlines()
    assert lines[0] == "generated against real, 10 images each"
    assert [line.split(":")[0] for line in lines[1:]] == ["earth_movers", "energy", "sinkhorn"]
    assert all("real" in line and "excess" in line and "±" in line for line in lines[1:])


def test_equal_real_images_leave_a_scale() -> None:
    one = torch.ones(3, 2, 2)
    found = compare(torch.zeros(3, 2, 2), one, one, measures=["sinkhorn"])["sinkhorn"]
    assert found.generated.value == pytest.approx(4) and found.floor.value == 0
    found = compare(one, one, one)["earth_movers"]
    assert found.excess == (0, 0)


def test_bad_input_is_named() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ShapeError, match="real: has 3 images, but generated has 4"):
        compare(x, x[:3], x)
    with pytest.raises(ShapeError, match="other_real: has images of shape"):
        compare(x, x, x[:, :1])
    with pytest.raises(OptionError, match="measures: unknown value 'emd'"):
        compare(x, x, x, measures=["emd"])
    with pytest.raises(OptionError, match="regularisation"):
        compare(x, x, x, regularisation=math.inf)
