"""Moreau-Yosida envelopes against their definition; curvature against eigenvalues."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.distributions import TotalVariation
from bayesgen.inference.checks import GaussianTarget
from bayesgen.inference.smoothed import Curvature, Smoothed, SmoothedState, smoothing_of
from bayesgen.inference.standardised import Standardised
from bayesgen.log_density import LogDensity

float64 = torch.float64
Y = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=float64)


def sparse(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2).to(y), 1.0).to_event(1))
    scales = torch.tensor([0.5, 2.0]).to(y)
    u = pyro.sample("u", dist.Laplace(torch.zeros(2).to(y), scales).to_event(1))
    pyro.sample("y", dist.Normal(torch.cat([z, u + z]), 0.5).to_event(1), obs=y)


def edges(y: Tensor) -> None:
    u = pyro.sample("u", TotalVariation((2, 2), 0.7, dtype=y.dtype))
    pyro.sample("y", dist.Normal(u.flatten(), 0.5).to_event(1), obs=y)


def points(num: int, density: Standardised) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(num, density.num_dims, generator=rng, dtype=float64)


@pytest.mark.parametrize("model", [sparse, edges])
def test_slopes_are_those_of_the_envelope(model: Callable[[Tensor], None]) -> None:
    """By differences of min_u g(u) + |u - v|^2 / 2 lambda, the minimum at v - lambda slope."""
    density = Standardised(LogDensity(model, Y))
    v, smoothing = points(3, density), torch.full((1, 1), 0.05, dtype=float64)
    smoothed = Smoothed(density, smoothing)

    def envelope(v: Tensor) -> Tensor:
        near = v - smoothing * smoothed.slope(v)
        return density.penalty(near) + 0.5 * (near - v).square().sum(-1) / smoothing[0, 0]

    small = 1e-2
    slope = smoothed.slope(v)
    for k in range(density.num_dims):
        step = torch.zeros_like(v)
        step[:, k] = small
        difference = (envelope(v + step) - envelope(v - step)) / (2 * small)
        torch.testing.assert_close(slope[:, k], difference, rtol=0.02, atol=0.02)
    assert float(slope.abs().max()) > 0.5


@pytest.mark.parametrize("model", [sparse, edges])
def test_values_are_the_densitys_and_gradients_add_up(model: Callable[[Tensor], None]) -> None:
    density = Standardised(LogDensity(model, Y))
    v, smoothing = points(5, density), torch.full((1, 1), 0.05, dtype=float64)
    smoothed = Smoothed(density, smoothing)
    value, gradient = smoothed.value_and_grad(v)
    torch.testing.assert_close(value, density.value_and_grad(v)[0])
    rest = density.value_and_grad(v, smooth=True)[1]
    torch.testing.assert_close(gradient, rest - smoothed.slope(v))
    # The same points give the same gradients, whatever came before and whatever is beside them.
    again = torch.cat([smoothed.value_and_grad(v[[i]])[1] for i in (4, 3, 2, 1, 0)]).flip(0)
    torch.testing.assert_close(gradient, again, rtol=1e-9, atol=1e-9)


def test_other_sites_and_densities_stay_as_they_are(rng: torch.Generator) -> None:
    density = Standardised(LogDensity(sparse, Y))
    smoothing = torch.full((1, 1), 0.05, dtype=float64)
    slope = Smoothed(density, smoothing).slope(points(3, density))
    assert bool((slope[:, :2] == 0).all()) and bool((slope[:, 2:] != 0).all())
    target = GaussianTarget.with_condition(3, 10.0)
    v = target.starts(2, rng)
    value, gradient = Smoothed(target, smoothing).value_and_grad(v)
    assert torch.equal(gradient, target.value_and_grad(v)[1])
    assert torch.equal(value, target.value_and_grad(v)[0])
    assert bool((Smoothed(target, smoothing).slope(v) == 0).all())


def test_variances_are_even_within_sites_that_need_it() -> None:
    density = Standardised(LogDensity(sparse, Y))
    variances = torch.tensor([[1.0, 2.0, 4.0, 16.0]], dtype=float64)
    even = Smoothed(density, torch.ones(1, 1, dtype=float64)).evenly(variances)
    torch.testing.assert_close(even, torch.tensor([[1.0, 2.0, 8.0, 8.0]], dtype=float64))


class Quadratics:
    """Two problems: largest curvatures 400 and 9; flatter elsewhere."""

    num_dims = 3
    curvatures = torch.tensor([[400.0, 3.0, 1.0], [2.0, 9.0, 1.0]], dtype=float64)

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        curvatures = self.curvatures.to(v)[:, None]
        return -0.5 * (curvatures * v.square()).sum(-1), -curvatures * v


@pytest.mark.parametrize(("dtype", "error"), [(float64, 1e-6), (torch.float32, 1e-2)])
def test_curvature_is_the_largest_eigenvalue_of_each_problem(
    dtype: torch.dtype, error: float
) -> None:
    found = Curvature.at(Quadratics(), torch.ones(2, 4, 3, dtype=dtype))
    assert found.largest.shape == (2, 1, 1) and found.largest.dtype == dtype
    assert found.largest.flatten().tolist() == pytest.approx([400.0, 9.0], rel=error)
    assert torch.equal(smoothing_of(found, None), 1.0 / found.largest)
    assert smoothing_of(found, 0.3).flatten().tolist() == pytest.approx([0.3, 0.3])


class Flattening:
    """Curvature 1 + 99 exp(-v^2), large in the middle only; not a number beyond 10."""

    num_dims = 1

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        slope = -v - 99.0 * 0.5 * torch.pi**0.5 * torch.erf(v)
        slope = torch.where(v.abs() < 10.0, slope, torch.nan)
        return torch.zeros_like(v[..., 0]), slope


def test_curvature_is_that_of_the_sharpest_chain_and_forgets() -> None:
    density = Flattening()
    wide = torch.tensor([[0.0], [3.0]], dtype=float64)
    found = Curvature.at(density, wide)
    assert float(found.largest) == pytest.approx(100.0, rel=1e-3)
    later = found.again(density, wide + 4.0)
    assert float(later.largest) == pytest.approx(95.0, rel=1e-3)
    for _ in range(200):
        later = later.again(density, wide + 4.0)
    assert float(later.largest) == pytest.approx(1.0, rel=1e-3)
    # Chains at which there is no curvature do not count.
    assert float(Curvature.at(density, wide + 8.0).largest) == pytest.approx(1.0, rel=1e-3)


def test_curvature_is_measured_now_and_then_in_warm_up() -> None:
    density, position = Quadratics(), torch.ones(2, 4, 3, dtype=float64)
    state = SmoothedState.start(density, position, None)
    assert not state.measure and state.measured(density) is state
    schedule = [state.adapted(i, 31).measure for i in range(31)]
    assert [i for i, measure in enumerate(schedule) if measure] == [0, 10, 20]
    again = state.adapted(0, 31).measured(density)
    torch.testing.assert_close(again.curvature.largest, state.curvature.largest)
