"""The checks pass for generators that keep their promises and fail for each kind of mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bayesgen.models
from bayesgen.models import VAE, Generator, check_generator, load

GENERATORS: dict[type[Generator], Callable[[], Generator]] = {
    VAE: lambda: VAE((2, 8, 12), latent_dim=3, width=16, channels=4),
}


class Honest(Generator):
    def __init__(self) -> None:
        super().__init__((3, 2), 4)
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6))

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.weight).sigmoid().unflatten(-1, (3, 2))

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(-2) @ self.weight.T


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


class WrongPrior(Honest):
    def prior(self) -> torch.distributions.Distribution:  # type: ignore[override]
        import pyro.distributions as dist

        weight = torch.zeros(5, dtype=self.weight.dtype)
        return dist.Normal(weight, 1.0).to_event(1)


@pytest.mark.parametrize("kind", GENERATORS)
def test_our_generators_pass(kind: type[Generator]) -> None:
    report = check_generator(GENERATORS[kind]())
    assert report.passed, str(report)


def test_every_generator_is_listed() -> None:
    public = (getattr(bayesgen.models, name) for name in bayesgen.models.__all__)
    classes = {c for c in public if isinstance(c, type) and issubclass(c, Generator)}
    assert classes == {Generator, *GENERATORS}


def test_shipped_generators_pass() -> None:
    report = check_generator(load("mnist-vae"))
    assert report.passed, str(report)


def test_honest_generator_passes_and_is_left_alone() -> None:
    generator = Honest()
    report = check_generator(generator)
    assert report.passed, str(report)
    assert generator.weight.requires_grad and generator.weight.dtype == torch.float32
    assert str(report).count("ok") == len(report.checks) == 12


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
