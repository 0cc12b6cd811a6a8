from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.models import AE, VAE, Generator
from bayesgen.models.evaluation import access
from bayesgen.models.evaluation.access import (
    decode,
    encode,
    encoder_draws,
    prior_draws,
    prior_moments,
    rows_at_once,
)


class Other(Generator):
    """A generator with the prior that it is given."""

    def __init__(self, prior: dist.TorchDistribution) -> None:
        super().__init__((2,), 2)
        self.given = prior

    def decode(self, z: Tensor) -> Tensor:
        return z

    def prior(self) -> dist.TorchDistribution:
        return self.given


def test_draws_follow_the_prior_and_the_seed() -> None:
    G = Other(dist.Normal(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])).to_event(1))
    z = prior_draws(G, 4000, seed=3)
    assert torch.equal(z, prior_draws(G, 4000, seed=3))
    assert not torch.equal(z, prior_draws(G, 4000, seed=4))
    # Nor are they what anyone else draws with that seed.
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(3))
    assert abs(torch.corrcoef(torch.stack([noise[:, 0], z[:, 0]]))[0, 1]) < 5 / 4000**0.5
    # Five standard errors of the mean.
    assert bool(((z.mean(0) - torch.tensor([1.0, -1.0])).abs() < torch.tensor([0.16, 0.04])).all())


def test_moments_in_closed_form_where_there_are_any() -> None:
    mean, std = prior_moments(
        Other(dist.Normal(torch.ones(2), torch.tensor([2.0, 3.0])).to_event(1))
    )
    assert mean.tolist() == [1, 1] and std.tolist() == [2, 3]
    # Nothing to divide by: no spread, or no finite one.
    assert prior_moments(Other(dist.Delta(torch.ones(2)).to_event(1)))[1].tolist() == [1, 1]
    mean, std = prior_moments(Other(dist.Cauchy(torch.zeros(2), 1.0).to_event(1)))
    assert mean.tolist() == [0, 0] and std.tolist() == [1, 1]


def test_moments_are_estimated_otherwise() -> None:
    class Opaque(dist.Normal):
        @property
        def mean(self) -> Tensor:
            raise NotImplementedError

    mean, std = prior_moments(Other(Opaque(torch.ones(2), 2.0).to_event(1)))
    # Five standard errors from 10,000 draws.
    assert (mean - 1).abs().max() < 5 * 2 / 100 and (std - 2).abs().max() < 5 * 2 / math.sqrt(2e4)


def test_chunks_give_what_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    G = VAE((6, 6), latent_dim=2, width=8, channels=2)
    z = torch.linspace(-1, 1, 14).reshape(7, 2)
    whole = G(z).detach()
    monkeypatch.setattr(access, "CHUNK", 100)
    assert rows_at_once(G) == 2 and rows_at_once(G, tangents=2) == 1 == rows_at_once(G, tangents=9)
    torch.testing.assert_close(decode(G, z), whole)
    torch.testing.assert_close(encode(G, whole), G.encode(whole).detach())
    assert not decode(G, z).requires_grad and decode(G, z[:0]).shape == (0, 6, 6)


def test_draws_follow_the_encoder_s_law_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    G = VAE((6, 6), latent_dim=2, width=8, channels=2).requires_grad_(False)
    images = torch.rand(2000, 6, 6, generator=torch.Generator().manual_seed(0))
    law, z = G.encoding(images), encoder_draws(G, images, seed=3)
    noise = (z - law.mean) / law.stddev
    # Five standard errors of mean and standard deviation of 4000 numbers.
    assert abs(noise.mean()) < 5 / 4000**0.5 and abs(noise.std() - 1) < 5 / 8000**0.5
    assert not torch.equal(z, encoder_draws(G, images, seed=4))
    # Nor are they what the prior, or anyone else, draws with that seed.
    for others in (
        prior_draws(G, 2000, seed=3),
        torch.randn(2000, 2, generator=torch.Generator().manual_seed(3)),
    ):
        assert abs(torch.corrcoef(torch.stack([others[:, 0], noise[:, 0]]))[0, 1]) < 5 / 2000**0.5
    monkeypatch.setattr(access, "CHUNK", 36 * 700)
    torch.testing.assert_close(encoder_draws(G, images, seed=3), z)


def test_an_encoder_without_a_law_gives_its_guesses() -> None:
    G = AE((6, 6), latent_dim=2, width=8, channels=2)
    images = torch.rand(5, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder_draws(G, images, seed=0), encode(G, images))
