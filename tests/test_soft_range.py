"""Soft-range models: both forms against each other, closed forms and quadrature; calibration."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor
from torch.distributions import MultivariateNormal

import bayesgen as bg
from bayesgen.covariances import Covariance, Dense, Diagonal, Stationary, Structured
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.inference.checks import MethodReport, moment_report
from bayesgen.model_sites import isolated
from bayesgen.models import LinearGenerator, StructuredVAE
from bayesgen.operators import Matrix
from bayesgen.regularisers import pieces
from bayesgen.regularisers.soft_range import data_law, soft_range

float64 = torch.float64
SIGMA, SHAPE = 0.5, (2, 3)
LOG_SCALE = (-0.2, 0.5)


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


ROOT = random(6, 6, seed=1)
MATRIX = 0.1 * ROOT.T @ ROOT + 0.05 * torch.eye(6, dtype=float64)
A = SENSING = Matrix(random(4, 6, seed=2), domain_shape=SHAPE)
G = LinearGenerator.from_tensors(random(*SHAPE, 2, seed=3), random(*SHAPE, seed=4), 0.1)


def dense(log_scale: tuple[float, float] | None = None) -> Dense:
    return Dense(MATRIX, SHAPE, log_scale=log_scale)


def structured_vae() -> StructuredVAE:
    G = StructuredVAE((4, 4), 2, radius=1, width=6, channels=2).double().eval()
    with torch.no_grad():
        for parameter in G.covariance_decoder.parameters():
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(4))
    return G.requires_grad_(False)


# ---------------------------------------------------------------------- the two forms


@pytest.mark.parametrize("kind", ["dense", "diagonal", "structured"])
def test_the_collapsed_density_is_the_plain_one_integrated(kind: str) -> None:
    """The plain density is normal in u: its integral follows from two derivatives."""
    generator: Any = structured_vae() if kind == "structured" else G
    A = Matrix(random(4, 16, seed=2), domain_shape=(4, 4)) if kind == "structured" else SENSING
    shape, n = A.domain_shape, math.prod(A.domain_shape)
    covariance: Any = {
        "dense": dense(),
        "diagonal": Diagonal(MATRIX.diagonal().reshape(SHAPE)),
        "structured": Structured(),
    }[kind]
    y = random(4, seed=5)
    options: dict[str, Any] = {"covariance": covariance, "scale": dist.LogNormal(random(), 0.5)}
    plain = bg.LogDensity(soft_range(generator, A, SIGMA, integrated=False, **options), y)
    collapsed = bg.LogDensity(soft_range(generator, A, SIGMA, **options), y)
    assert list(collapsed.sites.latent) == ["z", "scale"]
    assert list(plain.sites.latent) == ["z", "scale", "u"]
    for seed in range(3):
        v = random(3, seed=20 + seed)

        def of_u(u: Tensor, v: Tensor = v) -> Tensor:
            return plain.log_prob(torch.cat([v, u]))

        zero = torch.zeros(n, dtype=float64)
        gradient = torch.autograd.functional.jacobian(of_u, zero)
        hessian = -torch.autograd.functional.hessian(of_u, zero)
        best = torch.linalg.solve(hessian, gradient)
        integral = of_u(best) + 0.5 * n * math.log(2 * math.pi) - 0.5 * torch.logdet(hessian)
        torch.testing.assert_close(collapsed.log_prob(v), integral, rtol=1e-9, atol=1e-9)
        assert (of_u(best) - integral).abs() > 0.1  # the mutant: profiled, not integrated
        # What is put back has the mean and the covariance of u.
        z, s = v[:2], collapsed.constrain(v)["scale"]
        law = data_law(generator, A, SIGMA, s, covariance)(z, generator(z), SIGMA, s)
        image = law.image_given(y)
        torch.testing.assert_close(image.mean, generator(z) + s * best.reshape(shape))
        x = generator(z) + s * random(*shape, seed=6)
        u = ((x - generator(z)) / s).flatten()
        expected = MultivariateNormal(best, precision_matrix=hessian).log_prob(u) - n * s.log()
        torch.testing.assert_close(image.log_prob(x), expected, rtol=1e-9, atol=1e-9)


def gaussian_posterior(y: Tensor, s: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of the image, and the log evidence, of a linear generator."""
    W = G.weight.reshape(6, 2)
    prior, rows = W @ W.T + s**2 * MATRIX, A.matrix
    data = rows @ prior @ rows.T + SIGMA**2 * torch.eye(4, dtype=float64)
    gain = prior @ rows.T @ torch.linalg.inv(data)
    mean = G.mean.flatten() + gain @ (y - rows @ G.mean.flatten())
    evidence = MultivariateNormal(rows @ G.mean.flatten(), data).log_prob(y)
    return mean, prior - gain @ rows @ prior, evidence


def report(model: Any, y: Tensor, mean: Tensor, covariance: Tensor) -> MethodReport:
    options: dict[str, Any] = {"chains": 32, "draws": 100, "warmup": 100, "progress": False}
    draws = bg.infer(model, y, **options).draws("x")
    return moment_report("x", draws.flatten(-2), mean, covariance)


def test_both_forms_have_the_exact_posterior() -> None:
    """Means and covariances of the image by z-scores, false alarm 1e-6 each."""
    y, s = random(4, seed=5), 0.8
    mean, covariance, _ = gaussian_posterior(y, s)
    for integrated in (True, False):
        model = soft_range(G, A, SIGMA, covariance=dense(), scale=s, integrated=integrated)
        report(model, y, mean, covariance).raise_if_failed()
    law_of = data_law(G, A, SIGMA, s, dense())

    def without_spread(y: Tensor) -> None:
        z, mean = pieces.latent_image(G, 1.0, None, ())
        law = law_of(z, mean, SIGMA, s)
        pyro.deterministic("x", law.image_given(pyro.sample("y", law, obs=y)).mean)

    assert not report(without_spread, y, mean, covariance).passed


def test_images_are_right_when_the_scale_is_sampled() -> None:
    """Against quadrature over s; the mutant fixes it at its median."""
    y = random(4, seed=5) + 1
    grid = torch.linspace(-3, 3, 400, dtype=float64)
    found = [gaussian_posterior(y, math.exp(LOG_SCALE[0] + LOG_SCALE[1] * float(t))) for t in grid]
    means, covariances = (torch.stack([part[i] for part in found]) for i in range(2))
    log_weights = torch.stack([part[2] for part in found]) - 0.5 * grid.square()
    weights = log_weights.softmax(0)
    mean = weights @ means
    spread = means - mean
    covariance = torch.einsum("t,tij->ij", weights, covariances)
    covariance = covariance + torch.einsum("t,ti,tj->ij", weights, spread, spread)
    model = soft_range(G, A, SIGMA, covariance=dense(LOG_SCALE))
    report(model, y, mean, covariance).raise_if_failed()
    fixed = soft_range(G, A, SIGMA, covariance=dense(LOG_SCALE), scale=0.4)
    assert not report(fixed, y, mean, covariance).passed


# ---------------------------------------------------------------------- draws of the model


def joint_draws(model: Any, count: int) -> dict[str, Tensor]:
    """Without data, by Pyro itself."""
    with isolated(0):
        drawn: dict[str, Tensor] = Predictive(model, num_samples=count)()
    return drawn


@pytest.mark.parametrize("integrated", [True, False])
def test_data_without_images_and_images_without_data(integrated: bool) -> None:
    """Both forms are the same joint law of z, s, x and y."""
    model = soft_range(G, A, SIGMA, covariance=dense(LOG_SCALE), integrated=integrated)
    drawn = joint_draws(model, 800)
    error = (drawn["y"] - A(drawn["x"])) / SIGMA
    u = (drawn["x"] - G(drawn["z"])).flatten(1) / drawn["scale"][:, None]
    # Noise, deviation and latent vector are independent, with the laws of the model.
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(MATRIX), u.T, upper=False).T
    log_s = (drawn["scale"].log() - LOG_SCALE[0]) / LOG_SCALE[1]
    together = torch.cat([error, white, drawn["z"], log_s[:, None]], 1)
    zero, one = torch.zeros(13, dtype=float64), torch.eye(13, dtype=float64)
    moment_report("joint", together.reshape(40, 20, 13), zero, one).raise_if_failed()
    off = torch.cat([1.5 * error, together[:, 4:]], 1)
    assert not moment_report("joint", off.reshape(40, 20, 13), zero, one).passed


def test_intervals_cover_images_drawn_from_the_model() -> None:
    """Of 200 images 90 % are in their intervals, to within what chance does to one in a million."""
    from scipy.stats import binom

    count = 200
    model = soft_range(G, A, SIGMA, covariance=dense(LOG_SCALE))
    drawn = joint_draws(model, count)
    options: dict[str, Any] = {"draws": 60, "warmup": 60, "progress": False, "batched": True}
    options["method"] = bg.inference.HMC(max_steps=8)

    def covered(model: Any, count: int) -> int:
        low, high = bg.infer(model, drawn["y"][:count], **options).interval("x", 0.9)
        inside = (low <= drawn["x"][:count]) & (drawn["x"][:count] <= high)
        return int(inside[:, 1, 1].sum())

    low, high = binom.ppf([5e-7, 1 - 5e-7], count, 0.9)
    assert low <= covered(model, count) <= high
    assert covered(bg.regularisers.hard(G, A, SIGMA), 100) < binom.ppf(5e-7, 100, 0.9)


# ---------------------------------------------------------------------- options


def test_levels_are_known_estimated_or_sampled() -> None:
    y = random(4, seed=5)
    sites: dict[str, Callable[[], Any]] = {
        "z": lambda: soft_range(G, A, SIGMA, covariance=dense()),
        "z sigma": lambda: soft_range(G, A, dist.LogNormal(random(), 1.0), covariance=dense()),
        "z scale": lambda: soft_range(G, A, SIGMA, covariance=dense(LOG_SCALE)),
        "z sigma scale": lambda: soft_range(
            G, A, "estimate", covariance=dense(), scale=dist.HalfNormal(random().square())
        ),
    }
    for names, make in sites.items():
        assert list(bg.LogDensity(make(), y).sites.latent) == names.split()
    found = bg.infer(
        soft_range(G, A, SIGMA, covariance=dense(), scale="estimate"),
        y + 3,
        method=bg.inference.MAP(tolerance=1e-7),
        progress=False,
    )
    s = float(found.mode("scale"))
    fixed = [
        bg.infer(
            soft_range(G, A, SIGMA, covariance=dense(), scale=factor * s),
            y + 3,
            method=bg.inference.MAP(tolerance=1e-7),
            progress=False,
        )
        for factor in (0.9, 1.0, 1.1)
    ]
    best = [float(result.log_prob.max()) for result in fixed]
    assert best[1] > max(best[0], best[2])
    # Optimisers report the mean given z, s and the data.
    law = data_law(G, A, SIGMA, s, dense())(None, G(found.mode("z")), SIGMA, s)
    torch.testing.assert_close(found.mode("x"), law.image_given(y + 3).mean)


def test_single_precision_one_chain_and_several_problems() -> None:
    single = LinearGenerator.from_tensors(G.weight.float(), G.mean.float(), 0.1)
    rows = Matrix(A.matrix.float(), SHAPE)
    model = soft_range(single, rows, SIGMA, covariance=dense(LOG_SCALE).float())
    options: dict[str, Any] = {"draws": 10, "warmup": 10, "chains": 1, "progress": False}
    found = bg.infer(model, random(3, 4).float(), batched=True, **options)
    x = found.draws("x")
    assert x.shape == (3, 1, 10, *SHAPE) and x.dtype is torch.float32
    assert bool(torch.isfinite(x).all()) and torch.equal(x, found.draws("x"))


def test_relaxed_is_the_soft_range_with_white_deviations() -> None:
    y = random(4, seed=5)
    white = Dense(torch.eye(6, dtype=float64), SHAPE)
    model = bg.regularisers.relaxed(G, A, SIGMA, 0.3)
    same = soft_range(G, A, SIGMA, covariance=white, scale=0.3)
    z = random(5, 2)
    torch.testing.assert_close(
        bg.LogDensity(model, y).log_prob(z), bg.LogDensity(same, y).log_prob(z)
    )
    assert bool((bg.infer(model, y, draws=20, warmup=20, progress=False).std("x") > 0.1).all())


def test_large_images_are_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be decomposed; here that is said of small ones."""
    values = torch.tensor([[0.6, 0.2, 0, 0, 0.2], [0.1, 0, 0, 0, 0], [0.1, 0, 0, 0, 0]])
    C: Covariance = Stationary(values.double(), SHAPE, log_scale=LOG_SCALE)
    y, options = random(4, seed=5), {"covariance": C, "scale": 0.3}
    exact = bg.LogDensity(soft_range(G, A, SIGMA, **options), y)  # type: ignore[arg-type]
    for where in ("regularisers.soft_range", "distributions.deviation"):
        monkeypatch.setattr(sys.modules[f"bayesgen.{where}"], "MOST_NUMBERS", 3)
    model = soft_range(G, A, SIGMA, **options)  # type: ignore[arg-type]
    density = bg.LogDensity(model, y, compile=False)  # recording takes its time
    z = random(4, 2)
    gap = density.value_and_grad(z)[0] - exact.value_and_grad(z)[0]
    torch.testing.assert_close(gap, gap[:1].expand(4))
    assert gap[0].abs() > 1e-3  # the constant
    torch.testing.assert_close(density.value_and_grad(z)[1], exact.value_and_grad(z)[1])
    with pytest.raises(
        OptionError, match="A: images of 6 and data of 4 numbers are too large .* g"
    ):
        soft_range(G, A, SIGMA, covariance=C)


def test_what_is_refused() -> None:
    with pytest.raises(DtypeError, match="covariance: got Tensor; expected one of bayesgen.covar"):
        soft_range(G, A, SIGMA, covariance=MATRIX)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"covariance: is of images \(6,\); A takes images \(2, 3"):
        soft_range(G, A, SIGMA, covariance=Dense(MATRIX, (6,)))
    with pytest.raises(DtypeError, match="covariance: is torch.float32 on cpu, but the generator"):
        soft_range(G, A, SIGMA, covariance=dense().float())
    with pytest.raises(DtypeError, match="G: LinearGenerator does not predict a covariance"):
        soft_range(G, A, SIGMA, covariance=Structured())
    for name in ("sigma", "scale"):
        levels: dict[str, Any] = {"sigma": SIGMA, "scale": 1.0} | {name: "estimate"}
        with pytest.raises(OptionError, match=f"{name}: with u as a site the density has no max"):
            soft_range(G, A, covariance=dense(), integrated=False, **levels)
    with pytest.raises(OptionError, match="scale: got -1.0"):
        soft_range(G, A, SIGMA, covariance=dense(), scale=-1.0)
    singular = Dense(torch.ones(6, 6, dtype=float64), SHAPE)
    soft_range(G, A, SIGMA, covariance=singular)
    with pytest.raises(OptionError, match="covariance: Dense has no density .* integrated=True"):
        soft_range(G, A, SIGMA, covariance=singular, integrated=False)
    bent = bg.operators.Nonlinear(torch.sin, SHAPE, SHAPE)
    with pytest.raises(OptionError, match="A: is not linear.*integrated=False"):
        soft_range(G, bent, SIGMA, covariance=dense())
    bent = bg.operators.Nonlinear(torch.sin, (4, 4), (4, 4))
    with pytest.raises(OptionError, match="A: is not linear.*integrated=False"):
        soft_range(structured_vae(), bent, SIGMA, covariance=Structured())
    bent, y = bg.operators.Nonlinear(torch.sin, SHAPE, SHAPE), torch.zeros(SHAPE, dtype=float64)
    plain = soft_range(G, bent, SIGMA, covariance=dense(), integrated=False)
    assert bg.LogDensity(plain, y).num_dims == 8
