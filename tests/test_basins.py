"""Restarts told apart by where they ended, and why they stopped."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import ModelError, OptionError, ResultError
from bayesgen.inference import MAP
from bayesgen.inference.map import OUTCOMES

float64 = torch.float64


def two_signs(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=float64), 1.0).to_event(1))
    # Preferring positive values a little.
    mean = z.square() + 0.02 * z
    pyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)


Y = torch.ones(2, dtype=float64)


def optima(y: Tensor, **options: object) -> bg.Posterior:
    options = {"chains": 40, "progress": False, "method": "map", **options}
    return bg.infer(two_signs, y, **options)  # type: ignore[arg-type]


def test_each_sign_pattern_is_a_basin() -> None:
    found = optima(Y)
    basins = found.basins()
    assert len(basins) == 4
    members = sorted(restart for basin in basins for restart in basin.restarts)
    assert members == list(range(40))
    for basin in basins:
        signs = found.draws("z")[list(basin.restarts), 0].sign()
        assert bool((signs == signs[0]).all())
        assert basin.log_prob == float(found.log_prob[basin.restarts[0], 0])
        assert basin.converged
    assert [b.log_prob for b in basins] == sorted((b.log_prob for b in basins), reverse=True)
    # Only what is near in both is one basin: densities of two of them are equal.
    assert abs(basins[1].log_prob - basins[2].log_prob) < 1e-6
    assert len(found.basins(distance=100.0, tolerance=100.0)) == 1


def test_of_every_problem() -> None:
    found = optima(torch.stack([Y, -5 * Y]), batched=True)
    several, one = found.basins()
    assert len(several) == 4 and len(one) == 1
    assert [b.restarts for b in found[0].basins()] == [b.restarts for b in several]


def test_the_summary_tells() -> None:
    text = str(optima(Y).summary())
    assert "40 restarts ended in 4 optima" in text
    text = str(optima(torch.stack([Y, Y]), batched=True).summary())
    assert "40 restarts ended in 4.0 optima on average" in text
    alone = optima(Y, chains=2, start={"z": torch.tensor([[1.0, 1.0], [-1.0, -1.0]])})
    assert "use more restarts" in str(alone.summary())


def test_why_restarts_stopped() -> None:
    found = optima(Y)
    assert set(found.stats["outcome"].unique().tolist()) <= {0, 1}
    short = optima(Y, method=MAP(max_iterations=1))
    assert OUTCOMES[int(short.stats["outcome"][0])] == "max_iterations was reached"
    assert "because max_iterations was reached" in str(short.summary())
    # Below what rounding allows.
    exact = bg.infer(
        lambda y: two_signs(y), Y, method=MAP(tolerance=1e-300), chains=4, progress=False
    )
    assert set(exact.stats["outcome"].unique().tolist()) <= {1, 2}


def unbounded(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("runaway", y * z.square().sum())


def test_densities_without_a_maximum_are_refused() -> None:
    for solver in ("lbfgs", "gradient-descent"):
        with pytest.raises(ModelError, match="model: its log density grows without bound"):
            bg.infer(
                unbounded, torch.tensor(1.0), method=MAP(solver=solver), chains=3, progress=False
            )
    # The same with a bounded weight is fine.
    bg.infer(unbounded, torch.tensor(0.1), method="map", chains=3, progress=False)
    both = torch.tensor([1.0, 0.1])
    with pytest.warns(RuntimeWarning, match="grew without bound from 3 of 6 starts"):
        found = bg.infer(unbounded, both, method="map", chains=3, batched=True, progress=False)
    assert found.stats["converged"].flatten(1).all(1).tolist() == [False, True]


def test_what_is_refused() -> None:
    draws = bg.infer(two_signs, Y, draws=5, warmup=5, progress=False)
    with pytest.raises(ResultError, match="basins: this result holds draws"):
        draws.basins()
    for bad in (0.0, -1.0):
        with pytest.raises(OptionError, match="tolerance"):
            optima(Y).basins(tolerance=bad)


def test_a_wall_is_one_place() -> None:
    def boxed(y: Tensor) -> None:
        z = pyro.sample("z", dist.Uniform(-torch.ones(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    found = bg.infer(boxed, 5 * torch.ones(2), method="map", chains=10, progress=False)
    assert len(found.basins()) == 1
