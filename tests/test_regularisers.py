"""The papers' regularisers as models: their densities by hand, their optima in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.inference import MAP
from bayesgen.models import VAE, LinearGenerator, StructuredVAE

pytestmark = pytest.mark.usefixtures("recorded_at_once")

R = bg.regularisers
float64 = torch.float64
ZERO = torch.zeros((), dtype=float64)
SIGMA, SCALE, WEIGHT = 0.2, 0.3, 1.7


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=float64)


@pytest.fixture
def A() -> bg.operators.Matrix:
    return bg.operators.Matrix(random(7, 20, seed=1), domain_shape=(4, 5))


@pytest.fixture
def G() -> VAE:
    return VAE((4, 5), 2, width=6).double().eval().requires_grad_(False)


@pytest.fixture
def linear() -> LinearGenerator:
    """Its range has two dimensions, and a mean that is not zero."""
    weight, mean = random(4, 5, 2, seed=2), random(4, 5, seed=3)
    return LinearGenerator.from_tensors(weight, mean, noise_level=0.1)


def log_likelihood(A: bg.operators.Matrix, x: Tensor, y: Tensor) -> Tensor:
    return dist.Normal(A(x), SIGMA).log_prob(y).sum(-1)


def minus_tv(u: Tensor) -> Tensor:
    down, right = torch.zeros_like(u), torch.zeros_like(u)
    down[..., :-1, :], right[..., :-1] = u.diff(dim=-2), u.diff(dim=-1)
    return -(down.square() + right.square()).sqrt().sum((-2, -1)) / SCALE


DEVIATIONS: dict[str, tuple[Callable[..., Any], Callable[[Tensor], Tensor]]] = {
    "relaxed": (
        lambda *a, **k: R.relaxed(*a, SCALE, integrated=False, **k),
        lambda u: dist.Normal(ZERO, SCALE).log_prob(u).sum((-2, -1)),
    ),
    "sparse": (
        lambda *a, **k: R.sparse(*a, SCALE, **k),
        lambda u: dist.Laplace(ZERO, SCALE).log_prob(u).sum((-2, -1)),
    ),
    "sparse_tv": (lambda *a, **k: R.sparse_tv(*a, SCALE, **k), minus_tv),
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_deviations_by_hand(name: str, G: VAE, A: bg.operators.Matrix) -> None:
    make, log_prior = DEVIATIONS[name]
    y, z, u = random(7), random(5, 2), random(5, 4, 5)
    density = bg.LogDensity(make(G, A, SIGMA, latent_weight=WEIGHT), y)
    found = density.log_prob(density.unconstrain({"z": z, "u": u}))
    prior = WEIGHT * dist.Normal(ZERO, 1.0).log_prob(z).sum(-1)
    expected = prior + log_prior(u) + log_likelihood(A, G(z) + u, y)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (set(density.proximal) == {"u"}) is (name != "relaxed")


def test_the_range_by_hand(G: VAE, A: bg.operators.Matrix) -> None:
    y, z = random(7), random(5, 2)
    density = bg.LogDensity(R.hard(G, A, SIGMA, latent_weight=WEIGHT), y)
    prior = WEIGHT * dist.Normal(ZERO, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(density.log_prob(z), prior + log_likelihood(A, G(z), y))
    assert density.least_squares is not None


@pytest.mark.parametrize("logdet_weight", [0.5, 1.0])
def test_structured_deviations_by_hand(logdet_weight: float, A: bg.operators.Matrix) -> None:
    G = StructuredVAE((4, 5), 2, radius=1, width=6, channels=2).double().eval()
    with torch.no_grad():
        for parameter in G.covariance_decoder.parameters():
            parameter.normal_(std=0.5, generator=seeded(4))
    G.requires_grad_(False)
    y, z, u = random(7), random(5, 2), random(5, 4, 5)
    model = R.structured(G, A, SIGMA, latent_weight=WEIGHT, logdet_weight=logdet_weight)
    density = bg.LogDensity(model, y)
    law = G.residual_prior(z)
    log_det = -2 * law.log_diagonal.sum((-2, -1))
    quadratic = law.whiten(u).square().sum((-2, -1))
    prior = WEIGHT * dist.Normal(ZERO, 1.0).log_prob(z).sum(-1)
    deviation = -0.5 * quadratic - logdet_weight * log_det - 10 * math.log(2 * math.pi)
    expected = prior + deviation + log_likelihood(A, G(z) + u, y)
    found = density.log_prob(density.unconstrain({"z": z, "u": u}))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_what_is_integrated_out_changes_no_optimum(
    linear: LinearGenerator, A: bg.operators.Matrix
) -> None:
    """Both forms against the normal equations of z and u."""
    y = random(7)
    W, mean = linear.weight.reshape(20, 2), linear.mean.flatten()
    columns = A(torch.eye(20, dtype=float64).reshape(20, 4, 5)).T
    joint = torch.cat([columns @ W, columns], 1)
    penalty = torch.cat([torch.full((2,), WEIGHT), torch.full((20,), 1 / SCALE**2)]).double()
    normal = joint.T @ joint / SIGMA**2 + torch.diag(penalty)
    solution = torch.linalg.solve(normal, joint.T @ (y - columns @ mean) / SIGMA**2)
    exact = (mean + W @ solution[:2] + solution[2:]).reshape(4, 5)
    method = MAP(tolerance=1e-10)
    for integrated in (True, False):
        model = R.relaxed(linear, A, SIGMA, SCALE, latent_weight=WEIGHT, integrated=integrated)
        found = bg.infer(model, y, method=method, chains=2, progress=False)
        torch.testing.assert_close(found.mode("x"), exact, rtol=0, atol=1e-8)
        torch.testing.assert_close(found.mode("z"), solution[:2], rtol=0, atol=1e-8)
    # Another scale has another optimum.
    model = R.relaxed(linear, A, SIGMA, 2 * SCALE, latent_weight=WEIGHT)
    found = bg.infer(model, y, method=method, chains=2, progress=False)
    assert (found.mode("x") - exact).abs().max() > 0.01


def test_integrated_densities_are_marginal(linear: LinearGenerator, A: Any) -> None:
    y, z = random(7), random(5, 2)
    density = bg.LogDensity(R.relaxed(linear, A, SIGMA, SCALE), y)
    columns = A(torch.eye(20, dtype=float64).reshape(20, 4, 5)).T
    covariance = SIGMA**2 * torch.eye(7, dtype=float64) + SCALE**2 * columns @ columns.T
    law = torch.distributions.MultivariateNormal(A(linear(z)), covariance)
    expected = law.log_prob(y) + dist.Normal(ZERO, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(density.log_prob(z), expected, rtol=1e-10, atol=1e-10)


def test_baselines_without_a_generator() -> None:
    A = bg.operators.GaussianMatrix((6, 6), rows=20, seed=0)
    x = torch.zeros(6, 6)
    x[2:5, 1:4] = 1.0
    y = A(x) + 0.1 * torch.randn(20, generator=seeded())
    ridge = bg.infer(R.tikhonov(A, SIGMA, SCALE), y, method="map", progress=False)
    expected = bg.reconstruction.tikhonov(A, y, SIGMA**2 / SCALE**2)
    torch.testing.assert_close(ridge.mode("x"), expected, rtol=0, atol=1e-3)
    flat = bg.infer(R.total_variation(A, SIGMA, SCALE), y, method="map", progress=False)
    expected = bg.reconstruction.total_variation(
        A, y, 2 * SIGMA**2 / SCALE, tolerance=1e-6, max_steps=50_000
    )
    torch.testing.assert_close(flat.mode("x"), expected, rtol=0, atol=5e-3)
    assert (ridge.mode("x") - flat.mode("x")).abs().max() > 0.05


def test_data_of_any_shape_are_integrated(G: VAE) -> None:
    G, A = G.float(), bg.operators.Blur((4, 5), torch.ones(3, 3) / 9)
    y = A(G(torch.ones(2)))
    found = bg.infer(R.relaxed(G, A, SIGMA, SCALE), y, method="map", progress=False)
    assert found.mode("x").shape == (4, 5)


def test_what_is_refused(G: VAE, A: bg.operators.Matrix) -> None:
    for make in (R.hard, lambda *a, **k: R.sparse(*a, 1.0, **k), R.structured):
        with pytest.raises(OptionError, match="sigma: got 0.0; expected a positive finite number"):
            make(G, A, 0.0)
        with pytest.raises(OptionError, match="latent_weight: got -1.0"):
            make(G, A, 0.1, latent_weight=-1.0)
    for make in (R.relaxed, R.sparse, R.sparse_tv):
        with pytest.raises(OptionError, match="scale: got 0.0"):
            make(G, A, 0.1, 0.0)
    for plain in (R.tikhonov, R.total_variation):
        with pytest.raises(OptionError, match="scale: got -1.0"):
            plain(A, 0.1, -1.0)
        with pytest.raises(OptionError, match="sigma: got 0.0"):
            plain(A, 0.0, 1.0)
    with pytest.raises(DtypeError, match="G: expected a generator whose residuals have a law giv"):
        R.structured(LinearGenerator((4, 5), 2), A, 0.1)
    with pytest.raises(OptionError, match="A: images of 4900 and data of 4900 numbers are too l"):
        large = LinearGenerator.from_tensors(random(70, 70, 1), random(70, 70), noise_level=0.1)
        R.relaxed(large, bg.operators.Identity((70, 70)), "estimate", 1.0)
    nonlinear = bg.operators.Nonlinear(torch.sin, (4, 5), (4, 5))
    with pytest.raises(OptionError, match="A: is not linear.*integrated=False"):
        R.relaxed(G, nonlinear, 0.1, 1.0)


def test_noise_levels_are_estimated(linear: LinearGenerator, A: Any) -> None:
    y = random(*A.range_shape, seed=5)
    settings = {"method": MAP(tolerance=1e-7), "chains": 4, "progress": False}
    found = bg.infer(R.hard(linear, A, "estimate"), y, **settings)  # type: ignore[arg-type]
    residual = A(found.mode("x")) - y
    level = residual.square().mean().sqrt()
    torch.testing.assert_close(found.mode("sigma"), level)
    # With a prior of one's own the derivative of the log density is zero instead.
    prior = dist.LogNormal(torch.tensor(-2.0, dtype=float64), 0.3)
    found = bg.infer(R.hard(linear, A, prior), y, **settings)  # type: ignore[arg-type]
    sigma = found.mode("sigma").requires_grad_()
    x = found.mode("x")
    total = dist.Normal(A(x), sigma).log_prob(y).sum() + prior.log_prob(sigma)
    assert torch.autograd.grad(total, sigma)[0].abs() < 1e-4
    assert (sigma - level).abs() > 0.01


def test_scales_are_estimated_where_that_has_an_answer(linear: LinearGenerator, A: Any) -> None:
    y = A(random(4, 5, seed=6)) + SIGMA * random(*A.range_shape, seed=5)
    found = bg.infer(
        R.relaxed(linear, A, SIGMA, "estimate"),
        y,
        method=MAP(tolerance=1e-7),
        chains=4,
        progress=False,
    )
    best, scale = float(found.log_prob.max()), float(found.mode("scale"))
    for factor in (0.9, 1.1):
        fixed = R.relaxed(linear, A, SIGMA, factor * scale)
        other = bg.infer(fixed, y, method=MAP(tolerance=1e-7), chains=4, progress=False)
        assert float(other.log_prob.max()) < best
    with pytest.raises(OptionError, match="scale: with u as a site the density has no maximum"):
        R.relaxed(linear, A, SIGMA, "estimate", integrated=False)
    with pytest.raises(OptionError, match="sigma: got 'guess'; expected a number or 'estimate'"):
        R.hard(linear, A, "guess")


def test_penalties_and_latent_priors_enter_the_density(G: VAE, A: Any) -> None:
    def own(G: Any) -> Tensor:
        import pyro

        z: Tensor = pyro.sample("z", dist.Normal(torch.ones(2, dtype=float64), 2.0).to_event(1))
        return z

    def penalty(z: Tensor, x: Tensor) -> Tensor:
        return 3.0 * x.square().sum() + z.sum()

    z, y = random(2, seed=7), random(*A.range_shape, seed=5)
    model = R.hard(G, A, SIGMA, latent_prior=own, penalties=[penalty], latent_weight=WEIGHT)
    expected = (
        log_likelihood(A, G(z), y)
        + WEIGHT * dist.Normal(torch.ones(2, dtype=float64), 2.0).log_prob(z).sum()
        - penalty(z, G(z))
    )
    torch.testing.assert_close(bg.LogDensity(model, y).log_prob(z), expected)
    assert (expected - bg.LogDensity(R.hard(G, A, SIGMA), y).log_prob(z)).abs() > 0.1


def test_flows_are_invertible(G: VAE, A: Any) -> None:
    with pytest.raises(DtypeError, match="G: expected an invertible generator, got VAE"):
        R.flow(G, A, SIGMA)
    flow = bg.models.RealNVP((20,)).double().eval().requires_grad_(False)
    A = bg.operators.Matrix(A.matrix, domain_shape=(20,))
    z, y = random(20, seed=7), random(*A.range_shape, seed=5)
    expected = log_likelihood(A, flow(z), y) + WEIGHT * flow.prior().log_prob(z)
    model = R.flow(flow, A, SIGMA, latent_weight=WEIGHT)
    torch.testing.assert_close(bg.LogDensity(model, y).log_prob(z), expected)


def test_what_does_not_fit_together_is_refused_at_once(G: VAE, A: Any) -> None:
    small = bg.operators.Identity((2, 2))
    for make in (R.hard, lambda *a, **k: R.sparse(*a, SCALE, **k), R.structured):
        with pytest.raises(DtypeError, match="G: expected a Generator, got object"):
            make(object(), A, SIGMA)
        with pytest.raises(DtypeError, match="A: expected an Operator, got Tensor"):
            make(G, torch.zeros(7, 20), SIGMA)
        with pytest.raises(ShapeError, match=r"A: takes images \(2, 2\), but the generator's have"):
            make(G, small, SIGMA)
    with pytest.raises(DtypeError, match="latent_prior: got 'sphere'; expected a function"):
        R.hard(G, A, SIGMA, latent_prior="sphere")  # type: ignore[arg-type]
    for penalties in (abs, [3]):
        with pytest.raises(DtypeError, match="penalties: got .*; expected a list of functions"):
            R.hard(G, A, SIGMA, penalties=penalties)  # type: ignore[arg-type]
    image = R.hard(G, A, SIGMA, penalties=[lambda z, x: x])
    with pytest.raises(ShapeError, match=r"penalties\[0\]: returned shape \(4, 5\); expected one"):
        bg.LogDensity(image, random(*A.range_shape))
    with pytest.raises(DtypeError, match="A: expected an Operator, got NoneType"):
        R.tikhonov(None, SIGMA, SCALE)  # type: ignore[arg-type]
    for make in (lambda s: R.sparse(G, A, s, SCALE), lambda s: R.sparse_tv(G, A, s, SCALE)):
        with pytest.raises(OptionError, match="sigma: with u as a site the density has no maximum"):
            make("estimate")


@pytest.mark.parametrize("make", [R.tikhonov, R.total_variation])
def test_baselines_follow_the_data_s_precision(make: Any, A: Any) -> None:
    y = random(*A.range_shape)
    method = MAP(tolerance=1e-6)
    found = bg.infer(make(A, SIGMA, SCALE), y, method=method, chains=2, progress=False)
    assert found.mode("x").dtype is float64
    if make is R.tikhonov:
        exact = bg.reconstruction.tikhonov(A, y, SIGMA**2 / SCALE**2)
        torch.testing.assert_close(found.mode("x"), exact, rtol=0, atol=1e-6)


def test_images_that_are_means_say_so(linear: LinearGenerator, A: Any) -> None:
    """And draws of the image, which `relaxed` makes, do not."""
    y = random(*A.range_shape)
    spectrum = bg.distributions.DataSpectrum(A, y)

    def means(y: Tensor) -> None:
        z = pyro.sample("z", linear.prior())
        law = bg.distributions.IntegratedDeviation(linear(z), spectrum, SIGMA, SCALE)
        pyro.sample("y", law, obs=y)
        pyro.deterministic("x", linear(z) + law.deviation(y))

    options: dict[str, Any] = {"draws": 40, "warmup": 40, "progress": False}
    told = "a deviation was integrated out"
    assert told in str(bg.infer(means, y, **options).summary())
    point = bg.infer(means, y, method="map", progress=False)
    assert told not in str(point.summary())
    drawn = R.relaxed(linear, A, SIGMA, SCALE)
    assert told not in str(bg.infer(drawn, y, **options).summary())


def test_starts_of_z_alone_will_do(linear: LinearGenerator, A: Any) -> None:
    y, start = random(*A.range_shape), {"z": torch.zeros(2, dtype=float64)}
    model = R.sparse(linear, A, SIGMA, SCALE)
    found = bg.infer(model, y, method=MAP(max_iterations=1), start=start, chains=3, progress=False)
    u = found.draws("u")
    assert not torch.equal(u[0], u[1])  # from draws of the prior


def test_large_deviations_are_integrated_by_iteration() -> None:
    G = LinearGenerator.from_tensors(random(65, 65, 2), random(65, 65, seed=3), noise_level=0.1)
    A = bg.operators.Blur((65, 65), bg.operators.gaussian_kernel(5, 1.0)).double()
    y = A(random(65, 65, seed=4)) + SIGMA * random(65, 65, seed=5)
    start = {"z": torch.zeros(2, dtype=float64)}
    found = [
        bg.infer(model, y, method=MAP(tolerance=1e-6), chains=1, start=start, progress=False)
        for model in (
            R.relaxed(G, A, SIGMA, SCALE),
            R.relaxed(G, A, SIGMA, SCALE, integrated=False),
        )
    ]
    torch.testing.assert_close(found[0].mode("z"), found[1].mode("z"), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0].mode("x"), found[1].mode("x"), rtol=0, atol=1e-5)
    assert int(found[0].stats["n_steps"]) < int(found[1].stats["n_steps"])
