"""Sites on which nothing depends: left out of the density, drawn exactly afterwards."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import ModelError


class Drawable(dist.Normal):
    """A normal law that says how noise makes its values."""

    @property
    def noise_shape(self) -> torch.Size:
        return self.batch_shape

    def from_noise(self, noise: Tensor) -> Tensor:
        return self.loc + self.scale * noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> Drawable:
        return Drawable(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


def model(y: Tensor) -> None:
    """z given y is N(y / 2, 1 / 2), and x given both is N(z + y, 1 / 4)."""
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)
    pyro.sample("x", Drawable(z + y, torch.full_like(y, 0.5)), infer={"generated": True})


def infer(y: Tensor, **options: Any) -> bg.Posterior:
    return bg.infer(model, y, progress=False, **options)


def test_it_is_no_coordinate_and_does_not_change_the_density() -> None:
    def without(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y, v = torch.tensor(1.0), torch.linspace(-2.0, 2.0, 5)[:, None]
    density, plain = bg.LogDensity(model, y), bg.LogDensity(without, y)
    assert density.num_dims == 1 and list(density.sites.latent) == ["z"]
    assert density.least_squares is not None
    for ours, expected in zip(density.value_and_grad(v), plain.value_and_grad(v), strict=True):
        torch.testing.assert_close(ours, expected)


def test_its_draws_are_those_of_the_joint_posterior() -> None:
    posterior = infer(torch.tensor(1.0), chains=8, draws=4000)
    x, z = posterior.draws("x").flatten(), posterior.draws("z").flatten()
    # HMC's draws of z are close to independent; 5 standard errors of 32,000.
    assert abs(float(x.mean()) - 1.5) < 5 * 0.75**0.5 / 160
    assert abs(float(x.var()) - 0.75) < 5 * 0.75 * (2 / 25600) ** 0.5
    rest = x - z - 1.0
    assert abs(float(rest.var()) - 0.25) < 5 * 0.25 * (2 / 32000) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([rest, z]))[0, 1])) < 5 / 32000**0.5


def test_a_draw_is_the_same_whenever_and_however_it_is_asked_for() -> None:
    posterior = infer(torch.tensor([1.0, 2.0, 4.0]), draws=20, batched=True)
    draws = posterior.draws("x")
    assert draws.shape == (3, 4, 20)
    torch.testing.assert_close(posterior.draws("x"), draws, rtol=0, atol=0)
    torch.testing.assert_close(posterior.draw("x", 25), draws[:, 1, 5], rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(list(posterior.chunks("x"))).T, draws.flatten(1))
    for problem in (0, 2, -1):
        torch.testing.assert_close(posterior[problem].draws("x"), draws[problem])
    torch.testing.assert_close(posterior.mean("x"), draws.mean((1, 2)))


def test_noise_differs_between_draws_problems_and_seeds() -> None:
    y = torch.ones(2)
    first, second = (infer(y, draws=30, batched=True, seed=seed) for seed in (0, 1))
    noises = [p.draws("x") - p.draws("z") - 1.0 for p in (first, second)]
    assert len(torch.cat([noise.flatten() for noise in noises]).unique()) == 2 * 2 * 4 * 30


def test_optima_have_the_mean() -> None:
    posterior = infer(torch.tensor(1.0), method="map")
    torch.testing.assert_close(posterior.mode("x"), torch.tensor(1.5))


def test_results_keep_it(tmp_path: Any) -> None:
    posterior = infer(torch.tensor(1.0), draws=20)
    posterior.save(tmp_path / "result.nc")
    alone = bg.Posterior.load(tmp_path / "result.nc")
    torch.testing.assert_close(alone.mean("x"), posterior.mean("x"))
    again = bg.Posterior.load(tmp_path / "result.nc", model, torch.tensor(1.0))
    torch.testing.assert_close(again.draws("x"), posterior.draws("x"))
    assert "x" in posterior.to_arviz().posterior


def test_a_site_on_which_another_depends_is_refused() -> None:
    def wrong(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", Drawable(z, torch.tensor(0.5)), infer={"generated": True})
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"sites \['y'\]: depend on \['x'\]"):
        bg.LogDensity(wrong, torch.tensor(1.0))


def test_a_law_that_cannot_be_drawn_from_noise_is_refused() -> None:
    def wrong(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        pyro.sample("x", dist.Normal(z, 1.0), infer={"generated": True})

    with pytest.raises(ModelError, match="'x': is marked as generated, but Normal"):
        bg.LogDensity(wrong, torch.tensor(1.0))
