"""Total variation against loops over pixels, another solver, and conditions of optimality."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import infer
from bayesgen.distributions import TotalVariation
from bayesgen.errors import OptionError, ShapeError
from bayesgen.inference import MAP
from bayesgen.operators import Blur, Identity, Operator, gaussian_kernel
from bayesgen.proximal import proximal_map
from bayesgen.reconstruction import total_variation

float64 = torch.float64
SHAPES = [(1, 6), (4, 5), (2, 3, 4)]


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


def prior(shape: tuple[int, ...], scale: float = 0.8, **options: Any) -> TotalVariation:
    return TotalVariation(shape, scale, **{"dtype": float64, **options})


def by_pixels(u: Tensor, boundary: str) -> float:
    """Of images ``(channel, y, x)``."""
    channels, height, width = u.shape
    total = 0.0

    def at(c: int, i: int, j: int) -> float:
        if boundary == "reflect":
            i, j = min(i, height - 1), min(j, width - 1)
        if boundary == "periodic":
            i, j = i % height, j % width
        return float(u[c, i, j]) if i < height and j < width else 0.0

    for c in range(channels):
        for i in range(height):
            for j in range(width):
                down = at(c, i + 1, j) - at(c, i, j)
                total += math.hypot(down, at(c, i, j + 1) - at(c, i, j))
    return total


def objective(law: TotalVariation, u: Tensor, v: Tensor, step: float) -> Tensor:
    dims = len(law.event_shape)
    return 0.5 * (u - v).square().flatten(-dims).sum(-1) - step * law.log_prob(u)


@pytest.mark.parametrize("boundary", ["reflect", "zero", "periodic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_density(shape: tuple[int, ...], boundary: Any) -> None:
    law = prior(shape, 0.5, boundary=boundary)
    images = random(2, *shape)
    found = law.log_prob(images)
    for image, value in zip(images, found, strict=True):
        channels = image if len(shape) == 3 else image[None]
        assert float(value) == pytest.approx(-by_pixels(channels, boundary) / 0.5, rel=1e-12)
        # Every channel's gradient has a length of its own.
        if len(shape) == 3:
            joint = law.difference(image).square().sum((0, 1)).sqrt().sum() / 0.5
            assert abs(float(value + joint)) > 1e-3


def test_gradient() -> None:
    law = prior((3, 4))
    assert torch.autograd.gradcheck(law.log_prob, random(2, 3, 4).requires_grad_())
    flat = torch.full((3, 4), 2.0, dtype=float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.log_prob(flat), flat)
    assert torch.equal(slope, torch.zeros(3, 4, dtype=float64))


@pytest.mark.parametrize("boundary", ["reflect", "zero", "periodic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_proximal_map_is_denoising(shape: tuple[int, ...], boundary: Any) -> None:
    """Half a squared distance plus t TV / b: the weight of the baseline is 2 t / b."""
    law, v = prior(shape, boundary=boundary), random(*shape)
    found, dual = law.proximal_map(v, torch.tensor(0.3, dtype=float64))

    def baseline(weight: float) -> Tensor:
        A = Identity(shape)
        return total_variation(A, v, weight, boundary=boundary, tolerance=1e-9, max_steps=100_000)

    assert torch.allclose(found, baseline(2 * 0.3 / 0.8), atol=1e-6)
    assert not torch.allclose(found, baseline(0.3 / 0.8), atol=1e-2)
    # The dual variable is feasible and its value bounds the minimum from below.
    lengths = dual.norm(dim=-len(shape) - 1)
    assert float(lengths.max()) <= 0.3 / 0.8 * (1 + 1e-12)
    bound = 0.5 * (v.square().sum() - (v - law.difference.adjoint(dual)).square().sum())
    least = objective(law, found, v, 0.3)
    assert abs(float(least - bound)) < 1e-10
    for size in (1e-1, 1e-2, 1e-3):
        moved = found + size * random(100, *shape, seed=1)
        assert bool((objective(law, moved, v, 0.3) >= least - 1e-10).all())


def test_exact_proximal_maps() -> None:
    law, step = prior((3, 4)), torch.tensor(0.5, dtype=float64)
    constant = torch.full((3, 4), 1.7, dtype=float64)
    assert torch.allclose(law.proximal_map(constant, step)[0], constant, rtol=0, atol=1e-14)
    v = random(2, 3, 4)
    flat = law.proximal_map(v, torch.full((2,), 1e6, dtype=float64))[0]
    mean = v.mean((-2, -1), keepdim=True).expand_as(v)
    assert torch.allclose(flat, mean, rtol=0, atol=1e-7)
    # Two pixels move towards each other by t / b.
    pair = torch.tensor([[0.0, 3.0]], dtype=float64)
    expected = torch.tensor([[0.625, 2.375]], dtype=float64)
    assert torch.allclose(prior((1, 2)).proximal_map(pair, step)[0], expected, atol=1e-8)
    one = torch.ones(1, 1, dtype=float64)
    assert torch.equal(prior((1, 1)).proximal_map(one, step)[0], one)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
def test_batches_steps_and_warm_starts(shape: tuple[int, ...]) -> None:
    law, v = prior(shape), random(2, 3, *shape)
    steps = torch.tensor([[0.1, 0.3, 1.0], [0.2, 2.0, 0.05]], dtype=float64)
    together, dual = law.proximal_map(v, steps)
    assert dual.shape == (2, 3, 2, *shape)
    for i in range(2):
        for j in range(3):
            alone = law.proximal_map(v[i, j], steps[i, j])[0]
            assert torch.allclose(alone, together[i, j], atol=1e-6)
    per_pixel = steps.reshape(2, 3, *(1 for _ in shape)).expand_as(v)
    assert torch.equal(law.proximal_map(v, per_pixel)[0], together)
    # From the answer, from that of another problem, and from what is not even feasible.
    for start in (dual, dual.flip(0), 10 * random(*dual.shape, seed=2)):
        assert torch.allclose(law.proximal_map(v, steps, start)[0], together, atol=1e-6)
    empty, _ = law.proximal_map(v[:0], steps[:0])
    assert empty.shape == (0, 3, *shape)


def test_channels_do_not_share_edges() -> None:
    law, v = prior((2, 3, 4)), random(2, 3, 4)
    step = torch.tensor(0.4, dtype=float64)
    found = law.proximal_map(v, step)[0]
    for c in range(2):
        alone = prior((3, 4)).proximal_map(v[c], step)[0]
        assert torch.allclose(found[c], alone, atol=1e-6)


def test_single_precision() -> None:
    law, v = TotalVariation((4, 5), 0.8), random(4, 5)
    assert law.log_prob(v.float()).dtype == torch.float32
    found = law.proximal_map(v.float(), torch.tensor(0.3))[0]
    exact = prior((4, 5)).proximal_map(v, torch.tensor(0.3, dtype=float64))[0]
    assert found.dtype == torch.float32
    # The gap stops at 1e-6 |v|^2, which bounds half the squared distance.
    assert float((found - exact).norm()) < math.sqrt(2 * 1.2e-6) * float(v.norm())


def test_as_a_distribution() -> None:
    law = prior((3, 4))
    assert law.event_shape == (3, 4) and law.batch_shape == () and not law.has_rsample
    wide = law.expand((5, 2))
    assert wide.batch_shape == (5, 2) and wide.event_shape == (3, 4)
    v = random(5, 2, 3, 4)
    assert torch.equal(wide.log_prob(v), law.log_prob(v))
    assert bool(law.support.check(v).all())
    with pytest.raises(NotImplementedError, match="improper and has no draws"):
        law.sample()
    with pytest.raises(NotImplementedError, match="improper and has no draws"):
        law((2,))
    with pytest.raises(ShapeError, match=r"value: has shape \(4, 3\); expected images \(3, 4\)"):
        law.log_prob(v[0, 0].T)


@pytest.mark.parametrize(
    ("shape", "scale", "options", "message"),
    [
        ((3,), 1.0, {}, r"shape: expected \(y, x\) or \(channel, y, x\), got \(3,\)"),
        ((1, 2, 3, 4), 1.0, {}, r"shape: expected \(y, x\) or \(channel, y, x\), got"),
        ((0, 3), 1.0, {}, r"shape: expected a tuple of positive integers, got \(0, 3\)"),
        ((2.5, 3), 1.0, {}, "shape: expected a tuple of positive integers"),
        (7, 1.0, {}, "shape: expected a tuple of positive integers, got 7"),
        ((2, 2), 0.0, {}, "scale: got 0.0; expected a positive"),
        ((2, 2), math.nan, {}, "scale: got nan"),
        ((2, 2), torch.ones(2), {}, "scale: got"),
        ((2, 2), 1.0, {"boundary": "wrap"}, "boundary: unknown value 'wrap'"),
    ],
)
def test_refused_settings(shape: Any, scale: Any, options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TotalVariation(shape, scale, **options)


@pytest.mark.parametrize("solver", ["auto", "palm"])
@pytest.mark.parametrize(
    "A",
    [Identity((4, 5)), Blur((4, 5), gaussian_kernel(3, 0.7, dtype=float64))],
    ids=lambda A: type(A).__name__,
)
def test_posterior_mode_is_the_reconstruction(A: Operator, solver: str) -> None:
    """-log p = |A u - y|^2 / (2 sigma^2) + TV(u) / b: times 2 sigma^2, a weight 2 sigma^2 / b."""
    sigma, b = 0.3, 0.5
    y = A(random(4, 5)) + 0.1 * random(4, 5, seed=1)

    def model(y: Tensor) -> None:
        u = pyro.sample("u", prior((4, 5), b))
        pyro.sample("y", dist.Normal(A(u), sigma).to_event(2), obs=y)

    method = MAP(solver=solver, tolerance=1e-4, max_iterations=2000)
    found = infer(model, y, method=method, chains=1, progress=False)
    exact = total_variation(A, y, 2 * sigma**2 / b, tolerance=1e-9, max_steps=100_000)
    assert bool(found.stats["converged"].all())
    assert torch.allclose(found.mode("u"), exact, atol=1e-3)
    wrong = total_variation(A, y, sigma**2 / b, tolerance=1e-9, max_steps=100_000)
    assert not torch.allclose(found.mode("u"), wrong, atol=1e-2)


def test_smoothed_lengths_have_no_kinks() -> None:
    u = random(4, 5, seed=11)
    exact, smooth = prior((4, 5)), prior((4, 5), smoothing=0.1)
    lengths = -exact.scale * exact.log_prob(u)
    down, right = torch.zeros_like(u), torch.zeros_like(u)
    down[:-1], right[:, :-1] = u.diff(dim=0), u.diff(dim=1)
    squares = down.square() + right.square()
    expected = ((squares + 0.01).sqrt() - 0.1).sum()
    assert torch.allclose(-smooth.scale * smooth.log_prob(u), expected, rtol=1e-12)
    assert lengths - 20 * 0.1 < expected < lengths
    assert float(smooth.log_prob(torch.ones_like(u))) == 0.0
    assert proximal_map(smooth) is None and proximal_map(exact) is not None
    with pytest.raises(OptionError, match="smoothing"):
        prior((4, 5), smoothing=-0.1)
