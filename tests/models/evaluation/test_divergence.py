from __future__ import annotations

import math
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, MissingPackageError, OptionError, ResultError, ShapeError
from bayesgen.models.evaluation import divergence, samples
from bayesgen.models.evaluation.divergence import (
    earth_movers_distance,
    energy_distance,
    sinkhorn_divergence,
)

pytest.importorskip("ot")

Distance = Callable[[Tensor, Tensor], float]
DISTANCES: list[Distance] = [earth_movers_distance, energy_distance, sinkhorn_divergence]


def _published(x: Tensor, y: Tensor, **options: Any) -> float:
    return sinkhorn_divergence(x, y, self_pairs=True, **options)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_transport_in_one_dimension_is_by_sorting(rng: torch.Generator) -> None:
    x, y = normal(rng, 60, 1), normal(rng, 60, 1) * 2 + 1
    expected = (x.sort(0).values - y.sort(0).values).square().mean().item()
    assert earth_movers_distance(x, y) == pytest.approx(expected)


def test_transport_of_unequal_numbers_splits_weights(rng: torch.Generator) -> None:
    """Two images against three: as if each came three times and twice."""
    x, y = normal(rng, 2, 1), normal(rng, 3, 1)
    many = x.repeat_interleave(3, 0), y.repeat_interleave(2, 0)
    expected = (many[0].sort(0).values - many[1].sort(0).values).square().mean().item()
    assert earth_movers_distance(x, y) == pytest.approx(expected)


def test_transport_of_images_is_the_best_assignment(rng: torch.Generator) -> None:
    from scipy.optimize import linear_sum_assignment

    x, y = normal(rng, 40, 3, 4), normal(rng, 40, 3, 4)
    cost = (x[:, None] - y).square().sum((-2, -1)).numpy()
    expected = cost[linear_sum_assignment(cost)].mean()
    assert earth_movers_distance(x, y) == pytest.approx(expected)


def test_a_translation_costs_the_square_of_its_length(rng: torch.Generator) -> None:
    x = normal(rng, 30, 2, 5)
    shift = normal(rng, 2, 5)
    expected = pytest.approx(shift.square().sum().item())
    assert earth_movers_distance(x, x + shift) == expected
    for r in (0.1, 1.0):
        found = sinkhorn_divergence(x, x + shift, regularisation=r, self_pairs=True)
        assert found == expected


def test_transport_may_be_normalised(rng: torch.Generator) -> None:
    x, y, z = normal(rng, 5, 4), normal(rng, 6, 4), normal(rng, 7, 4)
    found = earth_movers_distance(x, y, normalised_by=z)
    expected = earth_movers_distance(x, y) / z.square().sum(1).mean().item()
    assert found == pytest.approx(expected)
    with pytest.raises(DataError, match="normalised_by: all images are zero"):
        earth_movers_distance(x, y, normalised_by=0 * z)
    with pytest.raises(ShapeError, match="normalised_by: has images of shape"):
        earth_movers_distance(x, y, normalised_by=z[:, :3])


def test_energy_distance_by_definition(rng: torch.Generator) -> None:
    x, y = normal(rng, 7, 2, 3), normal(rng, 5, 2, 3) + 1
    a, b = x.flatten(1), y.flatten(1)
    off = [torch.cdist(c, c).sum() / (len(c) * (len(c) - 1)) for c in (a, b)]
    expected = (2 * torch.cdist(a, b).mean() - off[0] - off[1]).item()
    assert energy_distance(x, y) == pytest.approx(expected)


def test_energy_distance_of_normal_laws(rng: torch.Generator) -> None:
    """In one dimension E|N(m, s^2)| is known; z-score below 5, false alarm 6e-7."""
    shift, found = 0.7, []
    for _ in range(400):
        found.append(energy_distance(normal(rng, 20, 1), normal(rng, 30, 1) + shift))
    folded = math.sqrt(4 / math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    expected = 2 * folded - 2 * math.sqrt(4 / math.pi)
    values = torch.tensor(found, dtype=torch.float64)
    error = (values.std() / math.sqrt(400)).item()
    assert abs(values.mean() - expected) < 5 * error
    # Counting the pairs of an image with itself would raise the mean by far more than that.
    assert (1 / 20 + 1 / 30) * math.sqrt(4 / math.pi) > 7 * error


def test_energy_distance_between_equal_laws_is_zero_on_average(rng: torch.Generator) -> None:
    """Even for five images; z-score below 5, false alarm 6e-7."""
    values = torch.tensor([energy_distance(*normal(rng, 2, 5, 10)) for _ in range(300)])
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(300)


def test_sinkhorn_tends_to_the_exact_cost(rng: torch.Generator) -> None:
    x, y = normal(rng, 6, 2), normal(rng, 6, 2) + 1
    exact = earth_movers_distance(x, y)
    errors = [abs(_published(x, y, regularisation=r) - exact) / exact for r in (1.0, 0.1, 0.01)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 1e-3


def test_sinkhorn_tends_to_the_distance_of_the_means(rng: torch.Generator) -> None:
    x, y = normal(rng, 6, 2), 3 * normal(rng, 8, 2) + 1
    expected = (x.mean(0) - y.mean(0)).square().sum().item()
    assert _published(x, y, regularisation=1e4) == pytest.approx(expected, rel=1e-3)


def test_sinkhorn_without_self_pairs_has_unbiased_limit(rng: torch.Generator) -> None:
    """The squared distance of the means, estimated without the pairs of an image with itself."""
    x, y = normal(rng, 6, 2), 3 * normal(rng, 8, 2) + 1
    expected = (x.mean(0) - y.mean(0)).square().sum() - x.var(0).sum() / 6 - y.var(0).sum() / 8
    found = sinkhorn_divergence(x, y, regularisation=1e5)
    assert found == pytest.approx(expected.item(), rel=1e-3)


def test_sinkhorn_between_equal_laws_is_near_zero_on_average(rng: torch.Generator) -> None:
    """While the published divergence is not, the less so the smaller the regularisation."""
    for r in (0.2, 1.0):
        pairs = [normal(rng, 2, 40, 4) for _ in range(40)]
        found = torch.tensor([sinkhorn_divergence(*pair, regularisation=r) for pair in pairs])
        published = torch.tensor([_published(*pair, regularisation=r) for pair in pairs])
        # Five standard errors (false alarm 6e-7) and a little that remains.
        assert abs(found.mean()) < 0.05 * published.mean() + 5 * found.std() / math.sqrt(40)
        assert published.mean() > 8 * published.std() / math.sqrt(40)


def test_sinkhorn_regularisation_is_relative(rng: torch.Generator) -> None:
    x, y = normal(rng, 10, 3), 2 * normal(rng, 10, 3)
    found = sinkhorn_divergence(10 * x, 10 * y)
    assert found == pytest.approx(100 * sinkhorn_divergence(x, y), rel=1e-5)
    mean_cost = torch.cdist(x, y).square().mean().item()
    assert divergence.mean_cost(x, y) == pytest.approx(mean_cost)


def test_equal_sets_are_at_distance_zero(rng: torch.Generator) -> None:
    x = normal(rng, 20, 3, 3)
    assert earth_movers_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert _published(x, x) == pytest.approx(0, abs=1e-6)
    assert _published(x, x.flip(0)) == pytest.approx(0, abs=1e-6)
    same = torch.ones(4, 3)
    assert [distance(same, same) for distance in DISTANCES] == [0, 0, 0]


@pytest.mark.parametrize("distance", DISTANCES)
def test_what_all_distances_have_in_common(
    distance: Distance, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = normal(rng, 24, 2, 3).float(), (normal(rng, 31, 2, 3) + 0.5).float()
    value = distance(x, y)
    assert isinstance(value, float) and value > 0
    order = torch.randperm(31, generator=rng)
    assert distance(x.flip(0), y[order]) == pytest.approx(value, rel=1e-5)
    assert distance(y, x) == pytest.approx(value, rel=1e-5)
    assert distance(x.double(), y.double()) == pytest.approx(value, rel=1e-12)
    assert distance(x + 100, y + 100) == pytest.approx(value, rel=1e-3)
    assert distance(x.requires_grad_(), y) == value
    monkeypatch.setattr(samples, "_BLOCK", 100)
    assert distance(x, y) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_bad_images_are_named(distance: Distance) -> None:
    good = torch.zeros(3, 2, 2)
    with pytest.raises(ShapeError, match=r"y: has images of shape \(4,\)"):
        distance(good, torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="x: expected shape"):
        distance(good[:0], good)
    with pytest.raises(DataError, match="y: holds NaN"):
        distance(good, good * math.nan)


def test_bad_options() -> None:
    x = torch.zeros(3, 2)
    for distance in (energy_distance, sinkhorn_divergence):
        with pytest.raises(ShapeError, match="x: .*at least 2 images"):
            distance(x[:1], x)
    for option, bad in [("regularisation", 0), ("tolerance", -1.0), ("max_iterations", 0)]:
        with pytest.raises(OptionError, match=option):
            sinkhorn_divergence(x, x, **{option: bad})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="max_iterations"):
        earth_movers_distance(x, x, max_iterations=0)


def test_a_solver_stopped_early_is_an_error(rng: torch.Generator) -> None:
    """By the real solver, which answers this with a value too large and a warning."""
    x, y = normal(rng, 200, 5), normal(rng, 200, 5)
    with pytest.raises(ResultError, match=r"did not reach the optimum.*max_iterations, now 10"):
        earth_movers_distance(x, y, max_iterations=10)


def test_any_warning_of_the_solver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import ot

    passed: dict[str, Any] = {}

    def emd2(a: object, b: object, cost: object, **options: Any) -> tuple[float, dict[str, Any]]:
        passed.update(options)
        return 1.0, {"warning": "Problem infeasible.", "u": [0.0], "v": [0.0]}

    monkeypatch.setattr(ot, "emd2", emd2)
    with pytest.raises(ResultError, match="Problem infeasible"):
        earth_movers_distance(torch.zeros(1, 1), torch.zeros(1, 1))
    assert passed == {"numItermax": 10**9, "log": True}


def test_without_pot_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    before = dict(os.environ)
    with pytest.raises(MissingPackageError, match=r"needs POT.*pip install 'bayesgen\[pot\]'"):
        earth_movers_distance(torch.zeros(1, 1), torch.zeros(1, 1))
    assert dict(os.environ) == before


def test_other_array_libraries_are_kept_out_and_the_environment_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POT_BACKEND_DISABLE_CUPY", "")
    monkeypatch.delenv("POT_BACKEND_DISABLE_JAX", raising=False)
    before, seen = dict(os.environ), {}

    def importer(name: str) -> types.ModuleType:
        seen.update({key: value for key, value in os.environ.items() if "POT_BACKEND" in key})
        return types.ModuleType(name)

    monkeypatch.setattr(divergence.importlib, "import_module", importer)
    assert divergence.import_pot().__name__ == "ot"
    for library in ("JAX", "TENSORFLOW", "CUPY"):
        assert seen[f"POT_BACKEND_DISABLE_{library}"] == "1"
    assert dict(os.environ) == before
