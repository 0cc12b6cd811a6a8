from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayesgen.models import Generator
from bayesgen.models.evaluation import evaluate, nearest_latent, psnr


class Linear(Generator):
    """``G(z) = 0.1 B z`` with orthonormal ``B``, and an encoder with a deliberate error."""

    def __init__(self, error: float) -> None:
        super().__init__((2, 3), 2)
        basis = torch.tensor([[1.0, 1, 1, 1, 0, 0], [1, -1, 1, -1, 0, 0]], dtype=torch.float64) / 2
        self.register_buffer("basis", basis)
        self.error = error

    def decode(self, z: Tensor) -> Tensor:
        return (0.1 * z @ self.basis).reshape(*z.shape[:-1], 2, 3)

    def encode(self, x: Tensor) -> Tensor:
        return 10 * x.flatten(-2) @ self.basis.T + self.error


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return 0.1 * torch.randn(200, 2, 3, generator=rng, dtype=torch.float64)


def test_nearest_latent_is_the_projection(images: Tensor) -> None:
    exact = Linear(0.0)
    found = nearest_latent(exact, images, torch.zeros(200, 2, dtype=torch.float64), steps=1000)
    torch.testing.assert_close(found, exact.encode(images), rtol=0, atol=1e-3)


def test_evaluate_by_closed_form(images: Tensor) -> None:
    exact, off = Linear(0.0), Linear(0.3)
    residual = images - exact(exact.encode(images))
    floor = -10 * residual.square().mean((1, 2)).log10()
    worse = -10 * (residual.square().sum((1, 2)) + 2 * 0.03**2).div(6).log10()
    report = evaluate(off, images)
    assert report["encoder_psnr"] == pytest.approx(worse.mean().item(), rel=1e-6)
    assert report["reconstruction_psnr"] == pytest.approx(floor.mean().item(), rel=1e-4)
    # 200 standard normal encodings, shifted: five standard errors.
    assert abs(report["latent_mean"] - 0.3) < 0.35
    assert abs(report["latent_std"] - 1) < 0.25
    assert report["latent_correlation"] < 0.35
    assert evaluate(Linear(3.0), images)["latent_mean"] > 2.5


def test_correlated_encodings_are_seen(images: Tensor) -> None:
    class Correlated(Linear):
        def encode(self, x: Tensor) -> Tensor:
            z = super().encode(x)
            return torch.stack([z[..., 0], z[..., 0] + 0.1 * z[..., 1]], -1)

    assert evaluate(Correlated(0.0), images)["latent_correlation"] > 0.9


def test_psnr_has_range_one() -> None:
    truth = torch.zeros(3, 4, 5)
    assert psnr(truth + 1, truth).tolist() == [0, 0, 0]
    torch.testing.assert_close(psnr(truth + 0.01, truth), torch.full((3,), 40.0))
