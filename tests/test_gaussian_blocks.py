"""Gaussian blocks: what is found, what is refused and why, and that the algebra is the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import bayesgen.coloured_sites
import bayesgen.gaussian_blocks
from bayesgen.distributions import GaussianNoise, StructuredNormal
from bayesgen.gaussian_blocks import GaussianBlock, GaussianBlocks, find_gaussian_blocks
from bayesgen.log_density import LogDensity
from bayesgen.traces import normalised_residuals

pytestmark = pytest.mark.usefixtures("recorded_at_once")

float64 = torch.float64
Model = Callable[[Tensor], None]


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


A, Y = random(4, 6), random(4, seed=1)


def found(model: Model, y: Tensor = Y, **options: Any) -> GaussianBlocks:
    # Not recorded: everything here is evaluated a few times only.
    return find_gaussian_blocks(LogDensity(model, y, compile=False, **options))


def latent(y: Tensor, name: str = "z", num: int = 2) -> Tensor:
    z: Tensor = pyro.sample(name, dist.Normal(y.new_zeros(num), 1.0).to_event(1))
    return z


def deviation(y: Tensor, prior: Any = dist.Normal) -> Tensor:
    u: Tensor = pyro.sample("u", prior(y.new_full((6,), 0.3), 0.5).to_event(1))
    return u


def observe(y: Tensor, x: Tensor, sigma: Any = 0.2) -> None:
    pyro.sample("y", dist.Normal(A.to(y) @ x, sigma).to_event(1), obs=y)


def plain(y: Tensor) -> None:
    z = latent(y)
    observe(y, z.square().sum() + deviation(y))


def laplace(y: Tensor) -> None:
    z = latent(y)
    observe(y, z.square().sum() + deviation(y, dist.Laplace))


def hierarchical(y: Tensor) -> None:
    """The scales of deviation and noise are latent; u depends on another site of its block."""
    s, sigma = (pyro.sample(n, dist.LogNormal(y.new_zeros(()), 0.3)) for n in ("s", "sigma"))
    shift = pyro.sample("shift", dist.Laplace(y.new_zeros(6), s).to_event(1))
    with poutine.scale(scale=2.0):
        u = pyro.sample("u", dist.Normal(shift, 0.5 * s).to_event(1))
    observe(y, u, sigma)


def correlated(y: Tensor) -> None:
    """Priors of all kinds, scaled, and correlated noise."""
    factor = torch.linalg.cholesky(torch.eye(6).to(y) + 0.5)
    z = latent(y)
    with poutine.scale(scale=0.7):
        u = pyro.sample("u", dist.MultivariateNormal(y.new_ones(6), scale_tril=factor))
        w = pyro.sample("w", dist.Laplace(y.new_ones(6), 0.4).to_event(1))
    off = 0.3 * z.tanh().sum() * y.new_ones(4, 2, 3)
    s = pyro.sample("s", StructuredNormal(y.new_ones(2, 3), z[0], off)).flatten()
    noise = torch.linalg.cholesky(torch.eye(4).to(y) + 0.1)
    with poutine.scale(scale=1.5):
        law = GaussianNoise(A.to(y) @ (u + w + s) * z.exp().sum(), cholesky=noise)
        pyro.sample("y", law, obs=y)


def test_what_is_gaussian_given_the_rest_is_found() -> None:
    for model in (plain, laplace):
        blocks = found(model)
        assert list(blocks) == ["u"]
        assert blocks.refused == {"z": "the residuals of ['y'] are not affine in it"}
        assert blocks.rest.tolist() == [0, 1]
        assert blocks["u"].coordinates.tolist() == [2, 3, 4, 5, 6, 7]
        assert blocks["u"].rows == ("y",)
        assert bool(blocks["u"].mixed.all()) == (model is laplace)


def test_sites_that_are_gaussian_together_share_a_block() -> None:
    def linear(y: Tensor) -> None:
        z = latent(y)
        observe(y, z.sum() + deviation(y, dist.Laplace))

    blocks = found(linear)
    assert blocks["z"] is blocks["u"] and len(blocks.groups) == 1 and len(blocks.rest) == 0
    assert blocks["z"].mixed.tolist() == [False] * 2 + [True] * 6
    assert list(found(hierarchical)["u"].sites) == ["shift", "u"]
    assert set(found(correlated)["s"].sites) == {"u", "w", "s"}


def test_sites_that_are_gaussian_in_turn_are_apart() -> None:
    def bilinear(y: Tensor) -> None:
        h, x = latent(y, "h", 6), latent(y, "x", 6)
        observe(y, h * x)

    blocks = found(bilinear)
    assert blocks["h"].sites == ("h",) and blocks["x"].sites == ("x",)
    assert not blocks["h"].is_constant


def by_heavy_tails(y: Tensor) -> None:
    u = deviation(y)
    pyro.sample("y", dist.StudentT(3.0, A @ u, 0.2).to_event(1), obs=y)


def by_noise_that_depends_on_it(y: Tensor) -> None:
    u = deviation(y)
    observe(y, 0 * u, u.exp().mean())


def by_a_likelihood_that_is_flat_in_places(y: Tensor) -> None:
    observe(y, deviation(y).clamp(min=-3.0))


def by_a_factor(y: Tensor) -> None:
    u = deviation(y)
    pyro.factor("penalty", -u.square().sum())
    observe(y, u)


def by_its_prior(y: Tensor) -> None:
    observe(y, pyro.sample("u", dist.Gamma(2 * torch.ones_like(A[0]), 1.0).to_event(1)))


def by_a_mask(y: Tensor) -> None:
    with poutine.mask(mask=torch.arange(6) < 3):
        u = pyro.sample("u", dist.Normal(torch.zeros_like(A[0]), 1.0))
    observe(y, u)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (by_heavy_tails, "'y' depends on it and is StudentT, not normal"),
        (by_noise_that_depends_on_it, "the residuals of ['y'] are not affine in it"),
        (by_a_likelihood_that_is_flat_in_places, "the residuals of ['y'] are not affine in it"),
        (by_a_factor, "'penalty' depends on it and is Unit, not normal"),
        (by_its_prior, "its prior, Gamma, is neither normal nor Laplace"),
        (by_a_mask, "its prior is masked"),
    ],
)
def test_other_sites_are_refused_with_a_reason(model: Model, reason: str) -> None:
    blocks = found(model)
    assert not blocks and blocks.refused == {"u": reason}


def test_scales_that_depend_on_a_site_are_refused() -> None:
    def model(y: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros_like(y[0]), 1.0))
        s = pyro.sample("s", dist.Normal(torch.zeros_like(y), u.exp()).to_event(1))
        pyro.sample("y", dist.Normal(s, 1.0).to_event(1), obs=y)

    blocks = found(model)
    # Whitened, s does not enter: what u changes is its scale.
    assert list(blocks) == ["s"] and "u" in blocks.refused


@pytest.mark.parametrize("model", [plain, laplace, hierarchical, correlated])
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_the_algebra_is_that_of_the_density(model: Model, dtype: torch.dtype) -> None:
    """log p(w, u) = g(w) - |r0 + B c|^2 / 2 + log p(c) + constant(w), with all its parts."""
    block = found(model, Y.to(dtype))["u"]
    density, rng = block.log_density, torch.Generator().manual_seed(3)
    v = density.prior_draws(1, rng).expand(5, -1)
    c = torch.randn(5, len(block.coordinates), generator=rng, dtype=dtype)
    tolerance = {"rtol": 1e-4, "atol": 2e-2} if dtype == torch.float32 else {}
    points = block.colour(v, c)
    torch.testing.assert_close(block.whiten(points), c, **tolerance)
    r = block.residual(v, torch.zeros_like(c)) + block.forward(v, c)
    torch.testing.assert_close(block.residual(v, c), r, **tolerance)
    prior = torch.where(block.mixed, c.abs(), 0.5 * c.square()).sum(-1)
    left = density.log_prob(points) + 0.5 * r.square().sum(-1) + prior
    torch.testing.assert_close(left, left[:1].expand(5), **tolerance)
    value, _ = block.value_and_grad(v, c)
    left = value + 0.5 * r.square().sum(-1)
    torch.testing.assert_close(left, left[:1].expand(5), **tolerance)
    y = torch.randn(r.shape, generator=rng, dtype=dtype)
    there, back = (block.forward(v, c) * y).sum(-1), (block.adjoint(v, y) * c).sum(-1)
    torch.testing.assert_close(there, back, **tolerance)


@pytest.mark.parametrize("model", [plain, hierarchical])
def test_the_gradient_at_fixed_standardised_coordinates(model: Model) -> None:
    block = found(model)["u"]
    rng = torch.Generator().manual_seed(3)
    v = block.log_density.prior_draws(3, rng)
    c, direction = random(3, len(block.coordinates)), random(*v.shape, seed=4)
    ahead, behind = (block.value_and_grad(v + h * direction, c)[0] for h in (1e-5, -1e-5))
    _, gradient = block.value_and_grad(v, c)
    torch.testing.assert_close(
        (gradient * direction).sum(-1), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6
    )
    assert not bool(gradient[:, block.coordinates].any())


def test_a_constant_map_is_known_as_a_matrix() -> None:
    matrix = found(plain)["u"].matrix
    assert matrix is not None
    torch.testing.assert_close(matrix, -A * 0.5 / 0.2)
    for model in (hierarchical, correlated):
        block = found(model)["u"]
        assert not block.is_constant and block.matrix is None
    with mock.patch.object(bayesgen.gaussian_blocks, "_MOST_ENTRIES", 23):
        block = found(plain)["u"]
        assert block.is_constant and block.matrix is None


@pytest.mark.parametrize("num_rows", [4, 9])
def test_problems_of_a_batch_have_their_own_matrix(num_rows: int) -> None:
    def model(y: Tensor, matrix: Tensor) -> None:
        z, u = latent(y), deviation(y)
        pyro.sample("y", dist.Normal(matrix @ u + z.square().sum(), 0.2).to_event(1), obs=y)

    y, matrices = random(3, num_rows), random(3, num_rows, 6, seed=2)
    density = LogDensity(model, y, matrices, batched=True, compile=False)
    block = find_gaussian_blocks(density)["u"]
    torch.testing.assert_close(block.matrix, -2.5 * matrices)
    v, c = density.prior_draws(2, torch.Generator()), random(3, 2, 6)
    torch.testing.assert_close(block.forward(v, c), -2.5 * c @ matrices.mT)


def test_recorded_evaluations_are_the_same() -> None:
    block, v, c = found(hierarchical)["u"], random(3, 14), random(3, 12, seed=5)
    recorded = find_gaussian_blocks(LogDensity(hierarchical, Y))["u"]
    for name in ("colour", "forward", "residual"):
        expected = getattr(block, name)(v, c)
        torch.testing.assert_close(getattr(recorded, name)(v, c), expected)


def test_wrong_algebra_is_rejected() -> None:
    """Mutants: residuals of a wrong scale, priors standardised wrongly, a wrong derivative."""

    def wrong_scale(trace: poutine.Trace) -> Tensor | None:
        r = normalised_residuals(trace)
        return None if r is None else 1.1 * r

    def wrong_adjoint(block: GaussianBlock, v: Tensor, y: Tensor) -> Tensor:
        return 1.1 * right(block, v, y)

    def wrong_colour(node: dict[str, Any], c: Tensor) -> Tensor:
        value: Tensor = 1.1 * node["fn"].base_dist.scale * c + 0.3
        return value

    right = GaussianBlock.adjoint
    assert list(found(plain)) == ["u"]
    for where, name, wrong, reason in (
        (bayesgen.gaussian_blocks, "normalised_residuals", wrong_scale, "scales of ['y'] depend"),
        (GaussianBlock, "adjoint", wrong_adjoint, "do not agree"),
        (bayesgen.coloured_sites, "_colour", wrong_colour, "not inverse"),
    ):
        with mock.patch.object(where, name, wrong):
            blocks = found(plain)
            assert not blocks and reason in blocks.refused["u"]
