from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models import VAE, Generator, Glow
from bayesgen.models.evaluation import (
    access,
    nearest_latent,
    psnr,
    reconstruction,
    reconstruction_errors,
)
from bayesgen.models.evaluation.reconstruction import STEPS

WIDTH = 2.0


class Linear(Generator):
    """``G(z) = 0.1 B z`` with orthonormal ``B`` and the prior N(0, 4 I); no encoder."""

    def __init__(self) -> None:
        super().__init__((2, 3), 2)
        basis = torch.tensor([[1.0, 1, 1, 1, 0, 0], [1, -1, 1, -1, 0, 0]], dtype=torch.float64) / 2
        self.register_buffer("basis", basis)

    def decode(self, z: Tensor) -> Tensor:
        return (0.1 * z @ self.basis).unflatten(-1, (2, 3))

    def prior(self) -> dist.TorchDistribution:
        zero = torch.zeros(2, dtype=self.basis.dtype)
        return dist.Normal(zero, WIDTH).to_event(1)


class Encoded(Linear):
    """With an encoder that is wrong by one in each coordinate."""

    def encode(self, x: Tensor) -> Tensor:
        return 10 * x.flatten(-2) @ self.basis.T + 1


class Wave(Generator):
    """One latent number, images with many local minima of the distance."""

    def decode(self, z: Tensor) -> Tensor:
        return torch.cat([torch.cos(4 * z), torch.sin(4 * z), 0.3 * z], -1)


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return 0.2 * torch.randn(40, 2, 3, generator=rng, dtype=torch.float64)


def projection(images: Tensor) -> Tensor:
    return 10 * images.flatten(1) @ Linear().basis.T


@pytest.mark.parametrize("solver", [None, *STEPS])
@pytest.mark.parametrize("generator", [Linear(), Encoded()])
def test_the_nearest_latent_vector_is_the_projection(
    generator: Generator, solver: str | None, images: Tensor
) -> None:
    found = nearest_latent(generator, images, solver=solver)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.z, projection(images), rtol=0, atol=5e-3)
    torch.testing.assert_close(found.images, generator(found.z))
    residual = (found.images - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.residual, residual)
    assert bool((found.iterations > 0).all()) and found.iterations.shape == (40,)


def test_default_solver(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def solver_of(generator: Generator) -> str:
        z = nearest_latent(generator, images).z
        others = {
            solver: nearest_latent(generator, images, solver=solver).z
            for solver in ("levenberg-marquardt", "adam")
        }
        (same,) = [solver for solver, other in others.items() if torch.equal(z, other)]
        return same

    assert solver_of(Encoded()) == "adam"
    assert solver_of(Linear()) == "levenberg-marquardt"
    monkeypatch.setattr(reconstruction, "MAX_COLUMNS", 1)
    assert solver_of(Linear()) == "adam"


def test_what_was_generated_is_found_again(rng: torch.Generator) -> None:
    G = VAE((6, 6), latent_dim=3, width=16, channels=2, seed=3).double()
    z = torch.randn(20, 3, generator=rng, dtype=torch.float64)
    images = G(z).detach()
    before = {name: value.clone() for name, value in G.state_dict().items()}
    with torch.no_grad():
        found = nearest_latent(G, images, solver="levenberg-marquardt", tolerance=1e-9, steps=200)
    assert found.residual.max() < 1e-6 and bool(found.converged.all())
    torch.testing.assert_close(found.z, z, rtol=0, atol=1e-3)
    assert not found.z.requires_grad and not found.images.requires_grad
    # Parameters that want gradients neither get them nor change.
    assert all(p.requires_grad and p.grad is None for p in G.parameters())
    assert all(torch.equal(before[name], value) for name, value in G.state_dict().items())


def test_the_best_of_many_starts_is_kept(rng: torch.Generator) -> None:
    G = Wave((3,), 1)
    truth = torch.linspace(-2, 2, 30)[:, None]
    images = G(truth)
    one = nearest_latent(G, images, start=torch.zeros(30, 1))
    assert one.residual.max() > 0.1
    # From draws of the prior near the image, none of them ends in another minimum.
    assert nearest_latent(G, images).residual.max() < 1e-3
    given = torch.stack([torch.zeros(30, 1), truth + 0.01, truth + 1.0])
    several = nearest_latent(G, images, start=given)
    torch.testing.assert_close(several.z, truth, rtol=0, atol=1e-3)
    worst = nearest_latent(G, images, start=given.flip(0))
    torch.testing.assert_close(worst.z, several.z)


def test_draws_of_the_prior_serve_as_starts_with_its_own_width(images: Tensor) -> None:
    class Recorded(Linear):
        def decode(self, z: Tensor) -> Tensor:
            seen.append(z)
            return super().decode(z)

    seen: list[Tensor] = []
    nearest_latent(Recorded(), images)
    draws = max(seen, key=len)
    # Standard error of the standard deviation of 2000 numbers: 1.6 %; five of them.
    assert len(draws) == 1000 and abs(draws.std() / WIDTH - 1) < 0.08
    other = nearest_latent(Linear(), images, seed=1).iterations
    assert torch.equal(nearest_latent(Linear(), images, seed=1).iterations, other)


def test_chunks_change_nothing(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for solver in STEPS:
        whole = nearest_latent(Linear(), images[:7], solver=solver, steps=5)
        with monkeypatch.context() as patch:
            patch.setattr(access, "CHUNK", 30)
            parts = nearest_latent(Linear(), images[:7], solver=solver, steps=5)
        torch.testing.assert_close(parts.z, whole.z)
        assert torch.equal(parts.iterations, whole.iterations)


def test_black_images_of_a_generator_that_is_black_at_the_mean() -> None:
    for solver in STEPS:
        found = nearest_latent(Linear(), torch.zeros(2, 2, 3).double(), solver=solver)
        assert bool(found.converged.all()) and found.z.abs().max() < 0.02, solver


def test_images_far_outside_the_range_stay_finite() -> None:
    class Sigmoid(Generator):
        def decode(self, z: Tensor) -> Tensor:
            return (z @ torch.ones(2, 4)).sigmoid()

    images = torch.tensor([[1e4] * 4, [-1e4] * 4, [0.0] * 4])
    for solver in STEPS:
        found = nearest_latent(Sigmoid((4,), 2), images, solver=solver)
        assert bool(found.z.isfinite().all() and found.images.isfinite().all()), solver
        assert found.images[0].min() > 0.9 and found.images[1:].max() < 0.1


def test_a_start_with_nan_images_is_never_the_best() -> None:
    class Rooted(Generator):
        def decode(self, z: Tensor) -> Tensor:
            return z.sqrt()

    images = torch.full((3, 1), 2.0)
    start = torch.stack([torch.full((3, 1), -1.0), torch.full((3, 1), 1.0)])
    for solver in STEPS:
        found = nearest_latent(Rooted((1,), 1), images, start=start, solver=solver, steps=400)
        torch.testing.assert_close(found.z, torch.full((3, 1), 4.0), rtol=0, atol=0.05)


def test_no_images(images: Tensor) -> None:
    for solver in STEPS:
        found = nearest_latent(Linear(), images[:0], solver=solver)
        assert found.z.shape == (0, 2) and found.images.shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"images": torch.zeros(2, 3).double()},
            ShapeError,
            r"images: expected shape \(N, 2, 3\), got",
        ),
        ({"images": torch.zeros(4, 3, 2)}, ShapeError, "images: expected shape"),
        ({"images": torch.zeros(4, 2, 3)}, DtypeError, "images: is torch.float32"),
        ({"images": torch.full((1, 2, 3), math.nan).double()}, DataError, "images: hold NaN"),
        ({"start": torch.zeros(3, 2).double()}, ShapeError, r"start: expected shape \(4, 2\) or"),
        ({"start": torch.zeros(4, 3).double()}, ShapeError, "start"),
        ({"solver": "adma"}, OptionError, r"solver: unknown value 'adma'.*did you mean 'adam'"),
        ({"restarts": 0}, OptionError, "restarts: got 0"),
        ({"steps": 0}, OptionError, "steps: got 0"),
        ({"tolerance": 0.0}, OptionError, "tolerance: got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    images = arguments.pop("images", torch.zeros(4, 2, 3, dtype=torch.float64))
    with pytest.raises(error, match=message):
        nearest_latent(Linear(), images, **arguments)


def test_no_generator() -> None:
    with pytest.raises(DtypeError, match="generator: expected a Generator, got function"):
        nearest_latent(psnr, torch.zeros(1, 2))  # type: ignore[arg-type]


def test_errors_by_closed_form(images: Tensor) -> None:
    errors = reconstruction_errors(Encoded(), images)
    assert set(errors.values) == {"encoder", "nearest"}
    rest = (images - Linear()(projection(images))).flatten(1).square().sum(1)
    size = images.flatten(1).square().sum(1)
    nearest, encoder = errors.values["nearest"], errors.values["encoder"]
    torch.testing.assert_close(nearest["nrmse"], (rest / size).sqrt(), rtol=1e-4, atol=0)
    # The encoder's error of one in each of two coordinates adds 0.1**2 twice.
    torch.testing.assert_close(encoder["psnr"], -10 * ((rest + 0.02) / 6).log10())
    difference = (images - Linear()(projection(images) + 1)).abs().flatten(1).mean(1)
    torch.testing.assert_close(encoder["l1"], difference)
    assert "ssim" not in nearest  # six pixels are fewer than the window has
    summary = errors.summary()["nearest"]["nrmse"]
    assert summary["mean"] == pytest.approx(nearest["nrmse"].mean().item())
    assert summary["std"] == pytest.approx(nearest["nrmse"].std().item())
    deciles = summary["deciles"]
    assert isinstance(deciles, list) and len(deciles) == 11 and deciles == sorted(deciles)
    assert deciles[5] == pytest.approx(nearest["nrmse"].quantile(0.5).item())
    lines = str(errors).splitlines()
    assert len(lines) == 7 and f"{summary['mean']:.3f}" in lines[4]


def test_errors_without_encoder_and_for_one_image(rng: torch.Generator) -> None:
    assert set(reconstruction_errors(Linear(), torch.zeros(1, 2, 3).double()).values) == {"nearest"}
    G = VAE((12, 12), latent_dim=2, width=8, channels=2)
    one = reconstruction_errors(G, torch.rand(1, 12, 12, generator=rng))
    assert set(one.values["encoder"]) == {"nrmse", "psnr", "ssim", "l1"}
    assert one.summary()["nearest"]["ssim"]["std"] == 0
    with pytest.raises(ShapeError, match="N at least 1"):
        reconstruction_errors(G, torch.zeros(0, 12, 12))


def test_an_invertible_generator_is_inverted_not_searched() -> None:
    G = Glow((4, 4), levels=1, steps=1, width=4).double()
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(6, 4, 4, generator=rng, dtype=torch.float64)
    G.prepare(images)
    found = nearest_latent(G, images)
    assert found.converged.all() and not found.iterations.any()
    assert found.residual.max() < 1e-10
    assert torch.equal(found.z, G.encode(images))
