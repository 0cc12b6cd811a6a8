"""The checks pass for generators that keep their promises and fail for each kind of mistake."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

import bayesgen.models
from bayesgen.models import (
    AE,
    GAN,
    VAE,
    WGAN,
    Flow,
    Generator,
    Glow,
    LinearGenerator,
    RealNVP,
    StructuredVAE,
    Trainable,
    check_generator,
    load,
)

GENERATORS: dict[type[Generator], Callable[[], Generator]] = {
    AE: lambda: AE((2, 8, 12), latent_dim=3, width=16, channels=4),
    GAN: lambda: GAN((2, 8, 12), latent_dim=3, width=16, channels=4),
    Glow: lambda: Glow((2, 4, 8), steps=2, width=8),
    LinearGenerator: lambda: LinearGenerator((2, 3), latent_dim=6, noise_level=0.0),
    RealNVP: lambda: RealNVP(5, layers=3, width=8),
    StructuredVAE: lambda: StructuredVAE((8, 12), latent_dim=3, width=16, channels=4),
    VAE: lambda: VAE((2, 8, 12), latent_dim=3, width=16, channels=4),
    WGAN: lambda: WGAN((2, 8, 12), latent_dim=3, width=16, channels=4),
}
ABSTRACT = {Generator, Trainable, Flow}


class Honest(Generator):
    def __init__(self) -> None:
        super().__init__((3, 2), 4)
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6))

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.weight).sigmoid().unflatten(-1, (3, 2))

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(-2) @ self.weight.T


class Complete(Honest):
    """With every ability that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 6
        self.weight = torch.nn.Parameter(torch.eye(6) + torch.linspace(-0.3, 0.3, 36).view(6, 6))

    def decode(self, z: Tensor) -> Tensor:
        # The derivative of a sinh is 1 / sqrt(1 + a^2).
        return (z @ self.weight).asinh().unflatten(-1, (3, 2))

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(-2).sinh() @ self.weight.inverse()

    def log_abs_det(self, z: Tensor) -> Tensor:
        outer = -0.5 * (z @ self.weight).square().log1p().sum(-1)
        return outer + torch.linalg.slogdet(self.weight)[1]

    def discriminate(self, x: Tensor) -> Tensor:
        return x.flatten(-2).square().sum(-1)

    def residual_prior(self, z: Tensor | None = None) -> TorchDistribution:
        assert z is not None
        zero = torch.zeros(*z.shape[:-1], 3, 2, dtype=z.dtype)
        return dist.Normal(zero, z.square().sum(-1)[..., None, None] + 1).to_event(2)


class WrongShape(Honest):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z).flatten(-2)


class MixesBatch(Honest):
    def decode(self, z: Tensor) -> Tensor:
        x = super().decode(z)
        return x - 0.1 * x.mean(tuple(range(z.ndim - 1)), keepdim=True)


class OneBatchDimension(Honest):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z.reshape(-1, 4))


class Random(Honest):
    def decode(self, z: Tensor) -> Tensor:
        rng = torch.Generator()
        rng.seed()
        return super().decode(z) + 0.01 * torch.randn((), generator=rng, dtype=z.dtype)


class WrongGradient(Honest):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z) + z.detach().square().sum(-1)[..., None, None]


class SinglePrecision(Honest):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z).float()


class HiddenSinglePrecision(Honest):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z).float().to(z.dtype) if z.ndim > 1 else super().decode(z)


class NotFinite(Honest):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z).log() / 0


class WrongEncoder(Honest):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x - x.mean())


class EncodesAnotherPoint(Complete):
    def encode(self, x: Tensor) -> Tensor:
        return 1.001 * super().encode(x)


class ForgetsTheMatrix(Complete):
    def log_abs_det(self, z: Tensor) -> Tensor:
        return super().log_abs_det(z) - torch.linalg.slogdet(self.weight)[1]


class WrongSignOfDeterminant(Complete):
    def log_abs_det(self, z: Tensor) -> Tensor:
        return -super().log_abs_det(z)


class OneDeterminantForAll(Complete):
    def log_abs_det(self, z: Tensor) -> Tensor:
        return super().log_abs_det(z).sum()


class TooFewLatents(Complete):
    """As many latent variables as pixels, or there is no determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 4

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(torch.cat([z, z[..., :2]], -1))

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x)[..., :4]

    def log_abs_det(self, z: Tensor) -> Tensor:
        return z.sum(-1)


class ComparesWithTheBatch(Complete):
    def discriminate(self, x: Tensor) -> Tensor:
        score = super().discriminate(x)
        return score - score.mean()


class OneScoreEach(Complete):
    def discriminate(self, x: Tensor) -> Tensor:
        return super().discriminate(x)[..., None]


class OneResidualForAll(Complete):
    def residual_prior(self, z: Tensor | None = None) -> TorchDistribution:
        assert z is not None
        scale = 1 + z.square().mean()
        return dist.Normal(torch.zeros(3, 2, dtype=z.dtype), scale).to_event(2)


class FlatResidual(Complete):
    def residual_prior(self, z: Tensor | None = None) -> TorchDistribution:
        assert z is not None
        return dist.Normal(torch.zeros(6, dtype=z.dtype), 1.0).to_event(1)


class WrongPrior(Honest):
    def prior(self) -> TorchDistribution:
        weight = torch.zeros(5, dtype=self.weight.dtype)
        return dist.Normal(weight, 1.0).to_event(1)


@pytest.mark.parametrize("kind", GENERATORS)
def test_our_generators_pass(kind: type[Generator]) -> None:
    report = check_generator(GENERATORS[kind]())
    assert report.passed, str(report)


def test_every_generator_is_listed() -> None:
    public = (getattr(bayesgen.models, name) for name in bayesgen.models.__all__)
    classes = {c for c in public if isinstance(c, type) and issubclass(c, Generator)}
    assert classes <= ABSTRACT | GENERATORS.keys()


def test_shipped_generators_pass() -> None:
    report = check_generator(load("mnist-vae"))
    assert report.passed, str(report)


def test_honest_generator_passes_and_is_left_alone() -> None:
    generator = Honest()
    report = check_generator(generator)
    assert report.passed, str(report)
    assert generator.weight.requires_grad and generator.weight.dtype == torch.float32
    assert str(report).count("ok") == len(report.checks) == 12


def test_every_ability_is_checked() -> None:
    report = check_generator(Complete())
    assert report.passed, str(report)
    assert str(report).count("ok") == len(report.checks) == 20


def test_large_jacobians_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesgen.models.checks._MOST_DIMENSIONS", 5)
    assert check_generator(ForgetsTheMatrix()).passed


@pytest.mark.parametrize(
    ("mutant", "finding"),
    [
        (WrongShape, "shapes"),
        (MixesBatch, "batches"),
        (OneBatchDimension, "batches"),
        (Random, "repetition"),
        (WrongGradient, "gradient"),
        (SinglePrecision, "shapes"),
        (HiddenSinglePrecision, "batches"),
        (NotFinite, "shapes"),
        (WrongEncoder, "encoder"),
        (WrongPrior, "shapes"),
        (EncodesAnotherPoint, "inverse"),
        (ForgetsTheMatrix, "log-determinant"),
        (WrongSignOfDeterminant, "log-determinant"),
        (OneDeterminantForAll, "log-determinant"),
        (TooFewLatents, "log-determinant"),
        (ComparesWithTheBatch, "discriminator"),
        (OneScoreEach, "discriminator"),
        (OneResidualForAll, "residual prior"),
        (FlatResidual, "residual prior"),
    ],
)
def test_mutants_fail(mutant: type[Honest], finding: str) -> None:
    report = check_generator(mutant())
    failed = [check.name for check in report.checks if not check.passed]
    assert any(finding in name for name in failed), str(report)


def test_native_batching_is_exercised() -> None:
    class FailsUnderVmap(Honest):
        def decode(self, z: Tensor) -> Tensor:
            assert not torch._C._functorch.is_batchedtensor(z)
            return super().decode(z)

    assert check_generator(FailsUnderVmap()).passed

    class BypassesNativeBatching(FailsUnderVmap):
        def forward(self, z: Tensor) -> Tensor:
            return self.decode(z)

    failed = [c.name for c in check_generator(BypassesNativeBatching()).checks if not c.passed]
    assert failed == ["vmap, torch.float32", "vmap, torch.float64"]
