from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import ModelError
from bayesgen.models import VAE, Generator
from bayesgen.models.evaluation import jacobian as module
from bayesgen.models.evaluation.jacobian import directional_derivatives, jacobian


def test_columns_are_those_of_reverse_mode(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    G = VAE((4, 5), latent_dim=3, width=8, channels=2).double()
    z = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    expected = torch.stack([torch.func.jacrev(G)(point).flatten(0, 1) for point in z]).detach()
    found = jacobian(G, z)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad and all(p.grad is None for p in G.parameters())
    # One direction at a time, as when memory is short.
    monkeypatch.setattr(module, "CHUNK", 1)
    torch.testing.assert_close(jacobian(G, z), expected)
    directions = torch.randn(2, 3, generator=rng, dtype=torch.float64)
    along = directional_derivatives(G, z, directions)
    torch.testing.assert_close(along, torch.einsum("npd,kd->knp", expected, directions))


def test_no_latent_vectors() -> None:
    assert jacobian(VAE((4, 5), latent_dim=3, width=8, channels=2), torch.zeros(0, 3)).shape == (
        0,
        20,
        3,
    )


def test_a_missing_derivative_is_named() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0]

    class Opaque(Generator):
        def decode(self, z: Tensor) -> Tensor:
            return Once.apply(z)

    with pytest.raises(ModelError, match="Opaque: could not be differentiated in forward mode"):
        jacobian(Opaque((2,), 2), torch.zeros(1, 2))
