"""Covariances against dense matrices, and what is learned from residuals of known laws."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen import covariances
from bayesgen.covariances import (
    Covariance,
    Dense,
    Diagonal,
    Isotropic,
    LowRank,
    Stationary,
    Structured,
    load_covariance,
    residual_covariance,
    save_covariance,
)
from bayesgen.distributions.integrated import Deviation
from bayesgen.distributions.stationary import mean_autocovariance
from bayesgen.errors import DataError, DtypeError, FileFormatError, OptionError, ShapeError
from bayesgen.models import Generator, LinearGenerator, StructuredVAE
from bayesgen.operators import check_operator

float64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=float64)


def spectrum_of(*grid: int) -> Tensor:
    """An autocovariance on a grid: that of some noise."""
    power = random(*grid, seed=5).square() + 0.1
    return torch.fft.irfft2(torch.fft.rfft2(torch.fft.ifft2(power).real).real, s=grid[-2:])


SQUARE = random(12, 20, seed=1)
MATRIX = SQUARE.T @ SQUARE / 12 + 0.1 * torch.eye(20, dtype=float64)
KINDS: dict[str, Callable[[], Covariance]] = {
    "isotropic": lambda: Isotropic((4, 5), torch.tensor(0.7, dtype=float64)),
    "diagonal": lambda: Diagonal(random(4, 5).square()),
    "dense": lambda: Dense(MATRIX, (4, 5)),
    "singular": lambda: Dense(SQUARE.T @ SQUARE, (4, 5)),
    "low rank": lambda: LowRank(random(3, 4, 5), random(4, 5, seed=2).square()),
    "low rank, singular": lambda: LowRank(random(3, 4, 5), random(4, 5, seed=2).clamp(min=0.0)),
    "wrapping": lambda: Stationary(spectrum_of(4, 5), (4, 5)),
    "stationary": lambda: Stationary(spectrum_of(8, 9), (4, 5)),
    "channels": lambda: Stationary(spectrum_of(2, 6, 5), (2, 3, 3)),
}


def matrix_of(C: Covariance) -> Tensor:
    n = math.prod(C.image_shape)
    return C(torch.eye(n, dtype=float64).reshape(n, *C.image_shape)).reshape(n, n)


def test_every_class_is_tried() -> None:
    exported = {getattr(covariances, name) for name in covariances.__all__}
    kinds = {item for item in exported if inspect.isclass(item)} - {Covariance, Structured}
    assert {type(make()) for make in KINDS.values()} == kinds


@pytest.mark.parametrize("name", KINDS)
def test_products_factors_and_densities_belong_together(name: str) -> None:
    C = KINDS[name]()
    check_operator(C)
    matrix, n = matrix_of(C), math.prod(C.image_shape)
    torch.testing.assert_close(matrix.diagonal().reshape(C.image_shape), C.variance)
    k = C.noise_shape.numel()
    root = C.factor(torch.eye(k, dtype=float64).reshape(k, *C.noise_shape)).reshape(k, n)
    torch.testing.assert_close(root.T @ root, matrix)
    norm = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert abs(C.norm() - norm) < 1e-6 * norm
    u = random(3, 2, *C.image_shape, seed=7)
    if not C.has_density:
        assert name in ("singular", "low rank, singular", "stationary", "channels")
        for density in (C.log_prob, C.whiten):
            with pytest.raises(NotImplementedError, match="singular, or its determinant not known"):
                density(u)
        return
    noise = random(3, 2, *C.noise_shape, seed=8)
    torch.testing.assert_close(C.whiten(C.factor(noise)), noise)
    torch.testing.assert_close(C.factor(C.whiten(u)), u)
    law = Deviation(C)
    torch.testing.assert_close(law.colour(law.whiten(u)), u)
    exact = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=float64), matrix)
    torch.testing.assert_close(C.log_prob(u), exact.log_prob(u.flatten(2)), rtol=1e-10, atol=1e-10)
    assert C.log_prob(u[:0]).shape == (0, 2)


@pytest.mark.parametrize("name", KINDS)
def test_batches_maps_and_precisions(name: str) -> None:
    C = KINDS[name]()
    u, noise = random(3, *C.image_shape), random(3, *C.noise_shape)
    functions = [(C, u, C.image_shape), (C.factor, noise, C.image_shape)]
    if C.has_density:
        functions.append((C.whiten, u, tuple(C.noise_shape)))
    for function, values, shape in functions:
        whole = function(values)
        torch.testing.assert_close(torch.func.vmap(function)(values), whole)
        torch.testing.assert_close(torch.stack([function(row) for row in values]), whole)
        assert function(values[:0]).shape == (0, *shape)
    single = KINDS[name]().float()
    assert single(u.float()).dtype is torch.float32
    torch.testing.assert_close(single(u.float()).double(), C(u), rtol=1e-4, atol=1e-4)
    with pytest.raises(DtypeError):
        single(u)
    with pytest.raises(ShapeError):
        C.factor(noise[..., 1:])


@pytest.mark.parametrize("name", KINDS)
def test_they_are_kept_on_disk(name: str, tmp_path: Path) -> None:
    C = KINDS[name]()
    C.log_scale = (-0.1, 0.4)
    save_covariance(C, tmp_path / "C.safetensors")
    same = load_covariance(tmp_path / "C.safetensors")
    assert type(same) is type(C) and same.log_scale == C.log_scale
    torch.testing.assert_close(matrix_of(same), matrix_of(C), rtol=0, atol=0)
    (tmp_path / "bad").write_bytes(b"none")
    with pytest.raises(FileFormatError):
        load_covariance(tmp_path / "bad")


def test_stationary_covariances_depend_on_the_distance_only() -> None:
    for grid, wraps in (((4, 5), True), ((8, 9), False)):
        values = spectrum_of(*grid)
        C = Stationary(values, (4, 5))
        assert C.wraps is wraps
        matrix = matrix_of(C).reshape(4, 5, 4, 5)
        for i in range(4):
            for j in range(5):
                for k in range(4):
                    for m in range(5):
                        expected = values[(i - k) % grid[0], (j - m) % grid[1]]
                        torch.testing.assert_close(matrix[i, j, k, m], expected)


def test_autocovariances_are_sums_over_pairs() -> None:
    images = random(6, 3, 4)
    found = mean_autocovariance(images, wrap=False)
    pairs = images[:, :-1, :-2] * images[:, 1:, 2:]
    torch.testing.assert_close(found[1, 2], pairs.sum((1, 2)).mean() / 12)
    assert found[3].abs().max() < 1e-12  # no pair is so far apart
    wrapped = mean_autocovariance(images, wrap=True)
    pairs = images * images.roll((-1, -2), (1, 2))
    torch.testing.assert_close(wrapped[1, 2], pairs.mean())


def test_draws_of_the_prior_have_the_covariance() -> None:
    law = Deviation(KINDS["low rank"]())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.sample((40_000,)).flatten(1)
    exact = matrix_of(law.covariance)
    variances = exact.diagonal()[:, None] * exact.diagonal() + exact.square()
    z = (draws.T @ draws / len(draws) - exact) / (variances / len(draws)).sqrt()
    assert z.abs().max() < 6.2  # of 210: false alarms below 1e-6
    assert law.expand(torch.Size([3])).log_prob(random(4, 5)).shape == (3,)
    assert torch.equal(law.stddev, law.covariance.variance.sqrt())


# ---------------------------------------------------------------------- learned ones


class Blind(Generator):
    """Whose range is one image, so that residuals are the images themselves."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__((4, 5), 1)
        self.register_buffer("zero", torch.zeros((), dtype=float64))
        self.offset = offset

    def decode(self, z: Tensor) -> Tensor:
        image = torch.zeros(20, dtype=z.dtype).scatter(0, torch.tensor([0]), 1.0).reshape(4, 5)
        return z[..., None] * image

    def encode(self, x: Tensor) -> Tensor:
        return x[..., :1, 0] + self.offset


def scaled_images(num: int, log_scale: tuple[float, float]) -> Tensor:
    """Residuals s u with u of the low-rank covariance; the first pixel is in the range of G."""
    C = KINDS["low rank"]()
    s = (log_scale[0] + log_scale[1] * random(num, seed=11)).exp()
    return s[:, None, None] * C.factor(random(num, *C.noise_shape, seed=12))


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "dense", "low_rank", "stationary"])
def test_covariance_and_scale_are_found(kind: str) -> None:
    images = scaled_images(20_000, (-0.08, 0.4))
    C: Any = residual_covariance(Blind(), images, kind=kind, rank=20, floor=1e-3)
    mean_square = math.exp(2 * -0.08 + 2 * 0.4**2)
    truth = mean_square * matrix_of(KINDS["low rank"]())
    truth[0], truth[:, 0] = 0.0, 0.0  # nothing is left of the first pixel
    found = matrix_of(C)
    if kind in ("dense", "low_rank"):
        assert (found - truth).abs().max() < 0.1 * truth.abs().max()
    assert abs(float(found.trace() / truth.trace()) - 1) < 0.03
    # The energy of s u is split into that of s and of u only if C is right about the latter.
    if kind in ("dense", "low_rank"):
        mean, spread = C.log_scale
        assert abs(spread - 0.4) < 0.02
        # About the root of the mean square, which is in C.
        assert abs(mean - (-(0.4**2))) < 0.02


def test_scales_that_do_not_vary_are_found_not_to() -> None:
    u = KINDS["low rank"]().factor(random(5000, 4, 5, seed=3))
    C: Any = residual_covariance(Blind(), u, kind="dense")
    assert C.log_scale[1] < 0.12
    # A mutant that takes the spread of energies for that of s.
    energies = u.flatten(1)[:, 1:].norm(dim=1).log()
    assert energies.std() > 0.25


def test_few_images_shrink_to_their_variances() -> None:
    images = scaled_images(15, (0.0, 0.1))
    residuals = images.clone().flatten(1)
    residuals[:, 0] = 0.0
    products = residuals[:, :, None] * residuals[:, None]
    mean = products.mean(0)
    off = ~torch.eye(20, dtype=torch.bool)
    weight = (products.var(0) / 15)[off].sum() / mean[off].square().sum()
    C: Any = residual_covariance(Blind(), images, kind="dense", correction=1.0, floor=1e-9)
    expected = torch.where(off, (1 - weight) * mean, mean)
    torch.testing.assert_close(matrix_of(C), expected, rtol=1e-8, atol=1e-8)
    assert 0.05 < weight < 1
    low: Any = residual_covariance(Blind(), images, kind="low_rank", rank=3, shrinkage=0.5)
    torch.testing.assert_close(low.variance.flatten(), mean.diagonal() + 255.0**-2)


def test_shrinking_lowers_the_expected_error() -> None:
    truth = matrix_of(KINDS["low rank"]())
    truth[0], truth[:, 0] = 0.0, 0.0
    errors: dict[float | None, float] = {None: 0.0, 0.0: 0.0, 0.9: 0.0}
    for images in scaled_images(15 * 40, (0.0, 0.1)).split(15):
        for weight in errors:
            C: Any = residual_covariance(Blind(), images, shrinkage=weight, correction=1.0)
            errors[weight] += float((matrix_of(C) - truth).square().sum())
    assert errors[None] < 0.99 * errors[0.0]
    assert errors[None] < 0.9 * errors[0.9]


def test_the_gap_of_the_encoder_is_measured() -> None:
    images = scaled_images(200, (0.0, 0.1))
    right: Any = residual_covariance(Blind(), images, kind="isotropic", floor=1e-6)
    off: Any = residual_covariance(Blind(6.0), images, kind="isotropic", floor=1e-6)
    as_is: Any = residual_covariance(
        Blind(6.0), images, kind="isotropic", floor=1e-6, correction=1.0
    )
    assert abs(float(off.std / right.std) - 1) < 0.1
    assert float(as_is.std / right.std) > 1.15


def test_generators_without_encoder_are_searched() -> None:
    class NoEncoder(Blind):
        pass

    NoEncoder.encode = Generator.encode  # type: ignore[method-assign]
    images = scaled_images(30, (0.0, 0.1))
    assert not NoEncoder().can("encode")
    C: Any = residual_covariance(NoEncoder(), images, kind="diagonal")
    expected = residual_covariance(Blind(), images, kind="diagonal", correction=1.0)
    assert isinstance(expected, Diagonal)
    torch.testing.assert_close(C.variance, expected.variance, rtol=1e-4, atol=1e-4)


def test_predicted_covariances_get_their_scale() -> None:
    G = StructuredVAE((4, 5), 2, radius=1, width=6, channels=2).double().eval()
    G.requires_grad_(False)
    s = (-0.5 + 0.3 * random(4000, seed=4)).exp()
    z = random(4000, 2, seed=6)
    images = G(z) + s[:, None, None] * G.residual_prior(z).colour(random(4000, 4, 5, seed=5))
    G.encode = lambda x: z  # type: ignore[method-assign]
    found: Any = residual_covariance(G, images, kind="structured")
    assert isinstance(found, Structured) and found.log_scale is not None
    assert abs(found.log_scale[0] + 0.5) < 0.03 and abs(found.log_scale[1] - 0.3) < 0.03
    with pytest.raises(OptionError, match="kind: Blind does not predict a covariance"):
        residual_covariance(Blind(), random(3, 4, 5), kind="structured")


def test_what_is_refused() -> None:
    images = random(3, 4, 5)
    with pytest.raises(OptionError, match="kind: unknown value 'dens'.*did you mean 'dense'"):
        residual_covariance(Blind(), images, kind="dens")
    with pytest.raises(ShapeError, match="images: expected shape"):
        residual_covariance(Blind(), images[:1])
    with pytest.raises(OptionError, match="shrinkage: got 2; expected a number from 0 to 1"):
        residual_covariance(Blind(), images, shrinkage=2)
    with pytest.raises(DataError, match="leave no residual"):
        residual_covariance(Blind(), torch.zeros(3, 4, 5, dtype=float64))
    large = LinearGenerator.from_tensors(random(65, 65, 1), random(65, 65), noise_level=0.1)
    with pytest.raises(OptionError, match="kind: a dense covariance of 4225 pixels is too large"):
        residual_covariance(large, random(2, 65, 65))
    with pytest.raises(DataError, match="matrix: has eigenvalues from -1"):
        Dense(-torch.eye(2), (1, 2))
    with pytest.raises(DataError, match="matrix: is not symmetric"):
        Dense(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), (1, 2))
    with pytest.raises(ShapeError, match=r"matrix: has shape \(2, 2\); expected \(3, 3\)"):
        Dense(torch.eye(2), (1, 3))
    with pytest.raises(DataError, match="variances: the least is -1; expected 0"):
        Diagonal(torch.tensor([-1.0]))
    with pytest.raises(ShapeError, match="modes: have shape"):
        LowRank(torch.ones(1, 3), torch.ones(2))
    with pytest.raises(ShapeError, match=r"autocovariance: is on a grid of \(5, 5\) for images"):
        Stationary(torch.ones(5, 5), (4, 5))
    with pytest.raises(DataError, match="autocovariance: has powers from"):
        Stationary(torch.tensor([[1.0, 2.0, 2.0]]), (1, 3))
    with pytest.raises(OptionError, match="log_scale: got 3; expected mean and standard deviation"):
        Structured(3)  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="C: expected one of Isotropic"):
        save_covariance(object(), "nowhere")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 16), (5, 7), (6, 5)])
def test_log_determinant_of_a_stationary_covariance(
    dtype: torch.dtype, shape: tuple[int, int], rng: torch.Generator
) -> None:
    noise = torch.randn(shape, generator=rng, dtype=torch.float64)
    power = torch.fft.fft2(noise).abs().square() + 0.5
    C = Stationary(torch.fft.ifft2(power).real.to(dtype), shape)
    assert C.has_density
    torch.testing.assert_close(C._log_det().double(), power.log().sum(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fields_too_smooth_for_their_precision_have_no_density(dtype: torch.dtype) -> None:
    """Powers that rounding makes of zeros are none."""
    line = torch.minimum(torch.arange(16), 16 - torch.arange(16)).double().square()
    kernel = torch.exp(-0.5 * (line[:, None] + line) / 1.5**2)
    C = Stationary(kernel.to(dtype), (16, 16))
    assert not C.has_density or bool(torch.isfinite(C._log_det()))
    assert dtype == torch.float64 or not C.has_density
