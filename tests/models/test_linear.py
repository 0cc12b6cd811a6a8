"""Every closed form against dense algebra, and the fit against what maximises the likelihood.

False-alarm rate of every statistical check: 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models import check_generator, load, save_generator
from bayesgen.models.linear import LinearConfig, LinearGenerator
from bayesgen.operators import Fourier, GaussianMatrix, Identity, PhaseRetrieval

float64 = torch.float64


def make(
    rng: torch.Generator, shape: tuple[int, ...] = (3, 4), dim: int = 5, noise: float = 0.3
) -> LinearGenerator:
    weight = torch.randn(*shape, dim, generator=rng, dtype=float64)
    mean = torch.randn(shape, generator=rng, dtype=float64)
    return LinearGenerator.from_tensors(weight, mean, noise)


def dense(G: LinearGenerator) -> tuple[Tensor, Tensor]:
    """The weight as a matrix, and the covariance of images."""
    W = G.weight.flatten(0, -2)
    return W, W @ W.T + G.config.noise_level**2 * torch.eye(len(W), dtype=W.dtype)


def draw(G: LinearGenerator, num: int, rng: torch.Generator) -> Tensor:
    z = torch.randn(num, G.latent_dim, generator=rng, dtype=G.mean.dtype)
    noise = torch.randn(num, *G.image_shape, generator=rng, dtype=G.mean.dtype)
    return G(z) + G.config.noise_level * noise


def likelihood_gradient(G: LinearGenerator, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the mean log likelihood, by autograd through the dense covariance."""
    W = G.weight.flatten(0, -2).clone().requires_grad_()
    mean = G.mean.flatten().clone().requires_grad_()
    noise = torch.tensor(G.config.noise_level, dtype=W.dtype, requires_grad=True)
    covariance = W @ W.T + noise**2 * torch.eye(len(W), dtype=W.dtype)
    value = MultivariateNormal(mean, covariance).log_prob(x.flatten(1)).mean()
    parts: tuple[Tensor, Tensor, Tensor] = torch.autograd.grad(value, (W, mean, noise))
    return parts


# ---------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("dim", "noise"), [(1, 0.3), (5, 1e-3), (12, 0.3), (12, 0.0)])
def test_log_prob_is_that_of_the_dense_covariance(
    dim: int, noise: float, rng: torch.Generator
) -> None:
    G = make(rng, dim=dim, noise=noise)
    _, covariance = dense(G)
    x = draw(G, 6, rng).reshape(2, 3, 3, 4).requires_grad_()
    expected = MultivariateNormal(G.mean.flatten(), covariance).log_prob(x.flatten(2))
    # With noise 1e-3 the dense covariance has a condition number of 1e7.
    torch.testing.assert_close(G.log_prob(x), expected, rtol=1e-10, atol=1e-10 / max(noise, 0.1))
    (found,) = torch.autograd.grad(G.log_prob(x).sum(), x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-8 / max(noise, 1e-3))


def test_log_prob_where_woodbury_would_cancel(rng: torch.Generator) -> None:
    """Single precision, residuals a thousand times smaller than images."""
    G = make(rng, noise=1e-3)
    x = draw(G, 1000, rng)
    single = LinearGenerator.from_tensors(G.weight.float(), G.mean.float(), 1e-3)
    error = (single.log_prob(x.float()).double() - G.log_prob(x)).abs()
    assert error.max() < 0.1  # of residuals rounded to 1e-4 of their size

    def woodbury(x: Tensor) -> Tensor:
        W, _ = dense(single)
        offset = (x - single.mean).flatten(1)
        inner = W.T @ W + 1e-6 * torch.eye(5)
        along = offset @ W
        squares = (along @ torch.linalg.inv(inner) * along).sum(-1)
        return -0.5 * (offset.square().sum(-1) - squares) / 1e-6

    mutant = woodbury(x.float()).double() - woodbury(x.float()).double().mean()
    assert (mutant - (G.log_prob(x) - G.log_prob(x).mean())).abs().max() > 0.5


@pytest.mark.parametrize("noise", [0.3, 1e-6])
def test_encode_is_the_posterior_mean(noise: float, rng: torch.Generator) -> None:
    G = make(rng, noise=noise)
    x = draw(G, 6, rng).reshape(2, 3, 3, 4)
    W, _ = dense(G)
    inner = W.T @ W + noise**2 * torch.eye(5, dtype=float64)
    expected = torch.linalg.solve(inner, W.T @ (x - G.mean).flatten(2).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(G.encode(x), expected, rtol=1e-10, atol=1e-10)


def test_without_noise_encode_inverts_what_can_be_inverted(rng: torch.Generator) -> None:
    G = make(rng, noise=0.0)
    z = torch.randn(7, 5, generator=rng, dtype=float64)
    torch.testing.assert_close(G.encode(G(z)), z)
    twin = G.weight.clone()
    twin[..., 4] = twin[..., 0]
    H = LinearGenerator.from_tensors(twin, G.mean, 0.0)
    torch.testing.assert_close(H(H.encode(H(z))), H(z))
    torch.testing.assert_close(H.encode(H(z))[:, 4], (z[:, 0] + z[:, 4]) / 2)


def test_square_without_noise_it_is_invertible(rng: torch.Generator) -> None:
    G = make(rng, dim=12, noise=0.0)
    z = torch.randn(2, 3, 12, generator=rng, dtype=float64)
    torch.testing.assert_close(G.encode(G(z)), z)
    expected = torch.linalg.slogdet(G.weight.flatten(0, -2)).logabsdet
    torch.testing.assert_close(G.log_abs_det(z), expected.expand(2, 3))
    # Change of variables.
    torch.testing.assert_close(G.log_prob(G(z)), G.prior().log_prob(z) - G.log_abs_det(z))
    assert G.can("log_abs_det") and G.can("encode") and not G.can("residual_prior")
    with pytest.raises(NotImplementedError, match="noise_level=0"):
        G.residual_prior()


@pytest.mark.parametrize(("dim", "noise"), [(12, 0.1), (5, 0.0), (5, 0.1)])
def test_otherwise_it_is_not(dim: int, noise: float, rng: torch.Generator) -> None:
    G = make(rng, dim=dim, noise=noise)
    assert not G.can("log_abs_det")
    with pytest.raises(NotImplementedError, match="invertible only if"):
        G.log_abs_det(torch.zeros(dim, dtype=float64))


def test_a_singular_square_weight_is_not_invertible_and_has_no_density() -> None:
    ones = torch.ones(3, 3, dtype=float64)
    G = LinearGenerator.from_tensors(ones, ones[0], 0.0)
    assert not G.can("log_abs_det")
    with pytest.raises(OptionError, match="noise_level: is 0, .* no density"):
        G.log_prob(ones)


def test_the_residual_prior_is_the_noise(rng: torch.Generator) -> None:
    prior = make(rng).residual_prior(torch.zeros(5))
    assert prior.event_shape == (3, 4) and prior.mean.dtype == float64
    assert torch.equal(prior.stddev, torch.full((3, 4), 0.3, dtype=float64))


@pytest.mark.parametrize("rows", [3, 5, 20])
@pytest.mark.parametrize("noise", [0.2, 1e-4])
def test_posterior_is_that_of_dense_algebra(rows: int, noise: float, rng: torch.Generator) -> None:
    G = make(rng)
    A = GaussianMatrix((3, 4), rows, dtype=float64)
    y = torch.randn(2, 3, rows, generator=rng, dtype=float64)
    mean, covariance = G.posterior(A, y, noise)
    F = A.matrix @ G.weight.flatten(0, -2)
    expected = torch.linalg.inv(F.T @ F / noise**2 + torch.eye(5, dtype=float64))
    # The inverse loses digits to the condition number of the precision, up to 1e9.
    torch.testing.assert_close(covariance, expected, rtol=1e-6, atol=1e-7)
    rest = y - A(G.mean)
    torch.testing.assert_close(mean, rest @ F @ expected / noise**2, rtol=1e-5, atol=1e-6)


def test_posterior_at_a_low_noise_level_keeps_its_digits(rng: torch.Generator) -> None:
    """Relative accuracy where 1 - s^2 / (s^2 + noise^2) would leave none."""
    G = LinearGenerator((3,), 2).double()
    A = Identity((3,))
    _, covariance = G.posterior(A, torch.zeros(3, dtype=float64), 1e-9)
    expected = torch.full((2,), 1e-18, dtype=float64)
    torch.testing.assert_close(covariance.diagonal(), expected, rtol=1e-12, atol=0)


def test_posterior_without_noise_is_the_limit(rng: torch.Generator) -> None:
    G = make(rng)
    A = GaussianMatrix((3, 4), 3, dtype=float64)
    y = torch.randn(3, generator=rng, dtype=float64)
    limit, exact = G.posterior(A, y, 1e-8), G.posterior(A, y, 0.0)
    for one, other in zip(limit, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(A(G(exact[0])), y)
    assert round(float(exact[1].trace())) == 2  # coordinates less measurements


def test_posterior_is_calibrated(rng: torch.Generator) -> None:
    """Over draws of (z, y), Mahalanobis distances are chi-square: two-sided z-test."""
    G, A = make(rng), GaussianMatrix((3, 4), 4, dtype=float64)
    z = torch.randn(4000, 5, generator=rng, dtype=float64)
    y = A(G(z)) + 0.5 * torch.randn(4000, 4, generator=rng, dtype=float64)

    def score(noise: float) -> float:
        mean, covariance = G.posterior(A, y, noise)
        error = z - mean
        distance = (error @ torch.linalg.inv(covariance) * error).sum()
        return float((distance - 4000 * 5) / math.sqrt(2 * 4000 * 5))

    bound = norm.isf(0.5e-6)
    assert abs(score(0.5)) < bound
    assert abs(score(0.6)) > bound


def test_posterior_checks_its_arguments(rng: torch.Generator) -> None:
    G, y = make(rng), torch.zeros(12, dtype=float64)
    with pytest.raises(ShapeError, match=r"A: expected a linear operator on images of shape"):
        G.posterior(Identity((12,)), y, 0.1)
    with pytest.raises(ShapeError, match=r"A: expected a linear operator"):
        G.posterior(PhaseRetrieval(Fourier((3, 4))), y, 0.1)
    with pytest.raises(ShapeError, match=r"y must have shape \(\*batch, 3, 4\)"):
        G.posterior(Identity((3, 4)), y, 0.1)
    with pytest.raises(DtypeError, match="y is torch.float32"):
        G.posterior(Identity((3, 4)), y.reshape(3, 4).float(), 0.1)
    with pytest.raises(OptionError, match="noise_level: expected zero or a positive number"):
        G.posterior(Identity((3, 4)), y.reshape(3, 4), -0.1)


# ---------------------------------------------------------------------------- maximum likelihood


@pytest.mark.parametrize("num", [500, 9])
def test_the_fit_is_stationary(num: int, rng: torch.Generator) -> None:
    """The gradient of the likelihood vanishes, also with fewer images than pixels."""
    x = draw(make(rng), num, rng)
    G = LinearGenerator.fit(x, 5)
    for part in likelihood_gradient(G, x):
        torch.testing.assert_close(part, torch.zeros_like(part), rtol=0, atol=1e-9)
    # Where the noise is not that of the likelihood, the weight still is, for this noise.
    H = LinearGenerator.fit(x, 5, noise_level=0.9 * G.config.noise_level)
    weight, mean, noise = likelihood_gradient(H, x)
    torch.testing.assert_close(weight, torch.zeros_like(weight), rtol=0, atol=1e-9)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    assert noise > 1e-2


def test_no_other_generator_is_likelier(rng: torch.Generator) -> None:
    """Stationary points are many; ours is the highest of them, and of what lies around."""
    spread = torch.linspace(3, 1, 12, dtype=float64).reshape(3, 4)
    x = spread * torch.randn(200, 3, 4, generator=rng, dtype=float64)
    G = LinearGenerator.fit(x, 3)
    best = G.log_prob(x).mean()
    variances, vectors = torch.linalg.eigh(torch.cov(x.flatten(1).T, correction=0))
    for chosen in ([9, 10, 11], [8, 10, 11]):
        noise = variances.sum() - variances[chosen].sum()
        scales = (variances[chosen] - noise / 9).sqrt()
        weight = (vectors[:, chosen] * scales).reshape(3, 4, 3)
        H = LinearGenerator.from_tensors(weight, G.mean, float(noise / 9) ** 0.5)
        assert likelihood_gradient(H, x)[0].abs().max() < 1e-9
        height = H.log_prob(x).mean()
        assert torch.isclose(height, best) if 9 in chosen else height < best - 1e-3
    for scale in (0.95, 1.05):
        for mutant in (
            LinearGenerator.from_tensors(scale * G.weight, G.mean, G.config.noise_level),
            LinearGenerator.from_tensors(G.weight, G.mean, scale * G.config.noise_level),
        ):
            assert mutant.log_prob(x).mean() < best


def test_both_ways_of_fitting_agree(rng: torch.Generator) -> None:
    """One image more than pixels takes the covariance, one less the decomposition of the images."""
    x = draw(make(rng, dim=3), 11, rng)
    few = LinearGenerator.fit(x, 3)
    many = LinearGenerator.fit(x.repeat(2, 1, 1), 3)
    torch.testing.assert_close(few.weight, many.weight)
    assert math.isclose(few.config.noise_level, many.config.noise_level, rel_tol=1e-10)


def test_the_fit_does_not_depend_on_the_order_or_on_blocks(rng: torch.Generator) -> None:
    x = draw(make(rng, dim=3), 2500, rng)
    one, other = LinearGenerator.fit(x, 3), LinearGenerator.fit(x.flip(0), 3)
    torch.testing.assert_close(one.weight, other.weight)
    torch.testing.assert_close(one.mean, x.mean(0))
    columns = one.weight.flatten(0, -2)
    assert (columns.gather(0, columns.abs().argmax(0, keepdim=True)) > 0).all()
    assert (columns.norm(dim=0).diff() < 0).all()


def test_the_fit_recovers_a_known_model(rng: torch.Generator) -> None:
    """The likelihood-ratio statistic against the truth is chi-square (Wilks).

    Free parameters: the mean, the weight up to rotations of the latent vector, the noise.
    """
    truth = make(rng, dim=3)
    x = draw(truth, 20_000, rng)
    G = LinearGenerator.fit(x, 3)
    statistic = float(2 * (G.log_prob(x) - truth.log_prob(x)).sum())
    degrees = 12 + (12 * 3 - 3 * 2 // 2) + 1
    assert chi2.isf(1 - 0.5e-6, degrees) < statistic < chi2.isf(0.5e-6, degrees)
    shrunk = LinearGenerator.from_tensors(0.97 * G.weight, G.mean, G.config.noise_level)
    mutant = float(2 * (shrunk.log_prob(x) - truth.log_prob(x)).sum())
    assert mutant < chi2.isf(1 - 0.5e-6, degrees)


def test_as_many_coordinates_as_pixels_give_the_sample_covariance(rng: torch.Generator) -> None:
    x = draw(make(rng), 100, rng)
    G = LinearGenerator.fit(x, 12)
    assert G.config.noise_level == 0.0 and G.can("log_abs_det")
    _, covariance = dense(G)
    torch.testing.assert_close(covariance, torch.cov(x.flatten(1).T, correction=0))


@pytest.mark.parametrize(("num", "dim"), [(5, 4), (5, 12), (12, 12), (1, 1)])
def test_unbounded_likelihoods_are_refused(num: int, dim: int, rng: torch.Generator) -> None:
    x = torch.rand(num, 3, 4, generator=rng)
    with pytest.raises(DataError, match=f"images: {num} images with 12 pixels .* noise_level"):
        LinearGenerator.fit(x, dim)
    G = LinearGenerator.fit(x, dim, noise_level=0.1)
    assert G.weight.shape == (3, 4, dim) and G.log_prob(x).isfinite().all()
    assert G.encode(x).isfinite().all()


def test_constant_images() -> None:
    x = torch.full((20, 3, 4), 0.7)
    with pytest.raises(DataError, match="the most likely noise level is zero"):
        LinearGenerator.fit(x, 2)
    for noise in (0.1, 0.0):
        G = LinearGenerator.fit(x, 2, noise_level=noise)
        torch.testing.assert_close(G(torch.ones(2)), x[0])
        torch.testing.assert_close(G.encode(x), torch.zeros(20, 2))


def test_noise_above_all_variances_leaves_the_mean(rng: torch.Generator) -> None:
    x = torch.rand(50, 3, 4, generator=rng)
    G = LinearGenerator.fit(x, 2, noise_level=5.0)
    assert not G.weight.any()
    torch.testing.assert_close(G.mean, x.mean(0))


# ---------------------------------------------------------------------------- as a generator


@pytest.mark.parametrize(
    "build",
    [
        lambda rng: make(rng),
        lambda rng: make(rng, shape=(7,), dim=7, noise=0.0),
        lambda rng: make(rng, shape=(2, 3, 4), dim=1).float(),
        lambda rng: LinearGenerator((4, 5), 6),
        lambda rng: LinearGenerator.fit(torch.rand(30, 4, 5, generator=rng), 3),
    ],
)
def test_it_keeps_the_promises_of_a_generator(
    build: Callable[[torch.Generator], LinearGenerator], rng: torch.Generator
) -> None:
    report = check_generator(build(rng))
    assert report.passed, str(report)


def test_the_constructor_draws_the_first_pixels() -> None:
    G = LinearGenerator((2, 2), 3, noise_level=0.5)
    assert G.config == LinearConfig((2, 2), 3, 0.5)
    z = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(G(z), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    torch.testing.assert_close(G.encode(G(z)), z / 1.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_tensors_and_converts(dtype: torch.dtype, rng: torch.Generator) -> None:
    G = LinearGenerator.fit(torch.rand(30, 3, 4, generator=rng).to(dtype), 3)
    x = torch.rand(2, 3, 4, generator=rng).to(dtype)
    y = torch.zeros(2, 5, dtype=dtype)
    A = GaussianMatrix((3, 4), 5, dtype=dtype)
    found = (G(G.encode(x)), G.log_prob(x), G.residual_prior().mean, *G.posterior(A, y, 0.1))
    assert {value.dtype for value in found} == {dtype}
    # A converted generator is as exact as one made in that dtype.
    double = G.double()
    same = LinearGenerator.from_tensors(
        G.weight.double(), G.mean.double(), noise_level=G.config.noise_level
    )
    torch.testing.assert_close(
        double.log_prob(x.double()), same.log_prob(x.double()), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("half", [False, True])
def test_it_is_rebuilt_from_config_and_state(half: bool, rng: torch.Generator) -> None:
    """Also in half precision: the closed forms belong to the weight as rounded."""
    G = make(rng).float()
    state = {name: t.half() if half else t for name, t in G.state_dict().items()}
    assert set(state) == {"weight", "mean"}
    loaded = LinearGenerator(**asdict(G.config))
    loaded.load_state_dict(state)
    assert loaded.weight.dtype == torch.float32 and loaded.config == G.config
    same = LinearGenerator.from_tensors(
        state["weight"].float(), state["mean"].float(), noise_level=0.3
    )
    x = draw(G, 5, rng)
    assert torch.equal(loaded.log_prob(x), same.log_prob(x))
    assert torch.equal(loaded.encode(x), same.encode(x))
    torch.testing.assert_close(loaded.encode(x), G.encode(x), rtol=0, atol=1e-2 if half else 0)


@pytest.mark.parametrize("half", [False, True])
def test_it_is_saved_and_loaded(half: bool, rng: torch.Generator, tmp_path: Path) -> None:
    G = LinearGenerator.fit(torch.rand(30, 3, 4, generator=rng), 3)
    save_generator(G, tmp_path / "file", card={"data": "noise"}, half=half)
    loaded = load(tmp_path / "file")
    assert isinstance(loaded, LinearGenerator)
    assert loaded.config == G.config and loaded.card == {"data": "noise"}
    x = torch.rand(5, 3, 4, generator=rng)
    difference = (loaded.log_prob(x) - G.log_prob(x)).abs().max()
    assert difference < 0.1 if half else difference == 0


def test_tensors_are_copied(rng: torch.Generator) -> None:
    weight, mean = torch.rand(3, 2, generator=rng), torch.rand(3, generator=rng)
    G = LinearGenerator.from_tensors(weight, mean, 0.1)
    before = G(torch.ones(2))
    weight.zero_(), mean.zero_()
    assert torch.equal(G(torch.ones(2)), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": ()}, "image_shape: expected a tuple of positive integers"),
        ({"image_shape": (2, 0)}, "image_shape"),
        ({"latent_dim": 0}, "latent_dim: got 0; expected an integer of at least 1"),
        ({"latent_dim": 7}, r"latent_dim: expected 1 to 6 \(the pixels of one image\), got 7"),
        ({"noise_level": -0.1}, "noise_level: expected zero or a positive number, got -0.1"),
        ({"noise_level": math.nan}, "noise_level"),
        ({"noise_level": math.inf}, "noise_level"),
        ({"noise_level": None}, "noise_level"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LinearGenerator(**{"image_shape": (2, 3), "latent_dim": 2, **arguments})


@pytest.mark.parametrize(
    ("weight", "mean", "kind", "message"),
    [
        (torch.ones(3, 2), torch.ones(4), ShapeError, r"\(4, latent_dim\), got \(3, 2\)"),
        (torch.ones(2), torch.ones(()), ShapeError, "weight: expected the shape of the mean"),
        (torch.ones(3, 2).long(), torch.ones(3), DtypeError, "weight: .* got torch.int64"),
        (torch.ones(3, 2), torch.ones(3).double(), DtypeError, "weight: is torch.float32"),
        (torch.full((3, 2), math.nan), torch.ones(3), DataError, "weight: an entry is NaN"),
        (torch.ones(3, 2), torch.full((3,), math.inf), DataError, "mean: an entry is NaN"),
        (torch.ones(3, 4), torch.ones(3), OptionError, "latent_dim: expected 1 to 3"),
    ],
)
def test_bad_tensors(weight: Tensor, mean: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        LinearGenerator.from_tensors(weight, mean, 0.1)


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (torch.full((9, 2, 3), math.nan), DataError, "images: an entry is NaN or infinite"),
        (torch.ones(9, 2, 3).long(), DtypeError, "images: expected a floating-point tensor"),
        ([[1.0]], DtypeError, "images: .* got list"),
        (torch.ones(0, 2, 3), ShapeError, "images: .* at least one image"),
        (torch.ones(9), ShapeError, r"images: expected \(N, \*image_shape\)"),
        (torch.ones(9, 1), OptionError, "latent_dim: expected 1 to 1"),
    ],
)
def test_bad_images(images: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        LinearGenerator.fit(images, 2)


def test_images_and_latent_vectors_are_checked(rng: torch.Generator) -> None:
    G = make(rng)
    for function in (G.encode, G.log_prob):
        with pytest.raises(ShapeError, match=r"x: expected shape \(\*batch, 3, 4\)"):
            function(torch.zeros(4, 3, dtype=float64))
        with pytest.raises(DtypeError, match="x: is torch.float32"):
            function(torch.zeros(3, 4))
        assert function(torch.zeros(0, 2, 3, 4, dtype=float64)).shape[:2] == (0, 2)
    with pytest.raises(OptionError, match="no density"):
        make(rng, noise=0.0).log_prob(torch.zeros(3, 4, dtype=float64))
