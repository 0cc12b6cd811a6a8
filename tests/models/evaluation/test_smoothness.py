from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError
from bayesgen.models import VAE, Generator
from bayesgen.models.evaluation import smoothness


class Stretch(Generator):
    """``G(z) = Q diag(s) z`` with orthonormal columns ``Q``: its singular values are ``s``."""

    def __init__(self, values: list[float]) -> None:
        super().__init__((3, 4), len(values))
        rng = torch.Generator().manual_seed(1)
        random = torch.randn(12, len(values), generator=rng, dtype=torch.float64)
        basis = torch.linalg.qr(random).Q
        self.register_buffer("matrix", basis * torch.tensor(values, dtype=torch.float64))

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.T).unflatten(-1, (3, 4))


def test_linear_generator() -> None:
    found = smoothness(Stretch([3.0, 0.5, 1.0]), count=5)
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(found.largest, 3 * ones)
    torch.testing.assert_close(found.smallest, 0.5 * ones)
    torch.testing.assert_close(found.condition, 6 * ones)
    shares = torch.tensor([9, 0.25, 1]) / 10.25
    entropy = -(shares * shares.log()).sum()
    torch.testing.assert_close(found.effective_rank, entropy.exp().item() * ones, rtol=1e-6, atol=0)


def test_equal_singular_values_have_full_rank_and_a_dead_generator_none() -> None:
    full = smoothness(Stretch([2.0, 2.0, 2.0, 2.0]), count=2)
    torch.testing.assert_close(full.effective_rank, torch.full((2,), 4.0).double())
    half = smoothness(Stretch([2.0, 2.0, 0.0]), count=2)
    torch.testing.assert_close(half.effective_rank, torch.full((2,), 2.0).double())
    assert half.smallest.abs().max() < 1e-12 and half.condition.min() > 1e12
    dead = smoothness(Stretch([0.0, 0.0]), count=2)
    assert dead.effective_rank.tolist() == [0, 0] and dead.largest.tolist() == [0, 0]


def test_values_belong_to_the_draws() -> None:
    """``G(z) = z^3 / 3`` has the derivative ``z^2``; the median of z^2 is 0.455."""

    class Cubic(Generator):
        def decode(self, z: Tensor) -> Tensor:
            return z**3 / 3

    found = smoothness(Cubic((1,), 1), count=2000)
    torch.testing.assert_close(found.largest, found.smallest)
    # Five standard errors of the fraction below the median.
    assert abs((found.largest < 0.45494).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(2000)
    summary = found.summary()["largest"]
    assert list(summary) == ["smallest", "5 %", "median", "95 %", "largest"]
    assert summary["median"] == pytest.approx(found.largest.median().item(), rel=0.05)
    assert summary["smallest"] == found.largest.min() and summary["largest"] == found.largest.max()


def test_only_the_largest_value_for_many_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    G = VAE((6, 6), latent_dim=4, width=8, channels=2, seed=2).double()
    exact, found = smoothness(G, count=4), smoothness(G, count=4, exact=False)
    torch.testing.assert_close(found.largest, exact.largest, rtol=1e-5, atol=0)
    assert bool(found.smallest.isnan().all() and found.effective_rank.isnan().all())
    assert bool(exact.smallest.isfinite().all()) and not found.largest.requires_grad
    assert all(p.grad is None for p in G.parameters())
    # The package exports the function under the name of its module.
    module = importlib.import_module("bayesgen.models.evaluation.smoothness")
    monkeypatch.setattr(module, "MAX_COLUMNS", 3)
    torch.testing.assert_close(smoothness(G, count=4).largest, found.largest)


def test_wide_generators_and_printing() -> None:
    class Wide(Generator):
        def decode(self, z: Tensor) -> Tensor:
            return z.unflatten(-1, (3, 2)).sum(-1)

    found = smoothness(Wide((3,), 6), count=2)
    # Only as many singular values as pixels.
    torch.testing.assert_close(found.smallest, torch.full((2,), math.sqrt(2)))
    assert [line.split()[0] for line in str(found).splitlines()[1:]] == [
        "largest",
        "smallest",
        "condition",
        "effective_rank",
    ]


def test_seed_and_input() -> None:
    G = VAE((6, 6), latent_dim=2, width=8, channels=2)
    one, same, other = (smoothness(G, count=2, seed=seed).largest for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    with pytest.raises(OptionError, match="count: got 0"):
        smoothness(G, count=0)
    with pytest.raises(DtypeError, match="generator: expected a Generator"):
        smoothness(torch.nn.Identity())  # type: ignore[arg-type]
