"""Starts: the linear estimate in closed form, and how much nearer they are than prior draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models import AE, GAN, VAE, LinearGenerator
from bayesgen.models.evaluation.access import prior_draws
from bayesgen.starts import (
    encoded_optimum,
    encoder_start,
    linear_estimate,
    nearest_draws,
)

float64 = torch.float64
SIGMA = 0.2


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=float64)


@pytest.fixture
def A() -> bg.operators.Matrix:
    return bg.operators.Matrix(random(7, 20, seed=1), domain_shape=(4, 5))


@pytest.fixture
def G() -> LinearGenerator:
    weight, mean = random(4, 5, 3, seed=2), random(4, 5, seed=3)
    return LinearGenerator.from_tensors(weight, mean, noise_level=1e-3)


def small(kind: Any) -> Any:
    return kind((4, 5), 3, width=6).double().eval().requires_grad_(False)


def dense(G: Any, A: Any, y: Tensor, seed: int = 0, sigma: float = SIGMA) -> Tensor:
    """The formula with the covariances of images and data themselves."""
    images = G(prior_draws(G, 1000, seed=seed)).flatten(1)
    columns = A(torch.eye(20, dtype=float64).reshape(20, 4, 5)).T
    C, mean = torch.cov(images.T), images.mean(0)
    covariance = columns @ C @ columns.T + sigma**2 * torch.eye(7, dtype=float64)
    gain = C @ columns.T @ torch.linalg.inv(covariance)
    return (mean + (y - columns @ mean) @ gain.T).reshape(*y.shape[:-1], 4, 5)


@pytest.mark.parametrize("kind", ["linear", "vae", "gan"])
def test_the_linear_estimate_by_hand(kind: str, G: LinearGenerator, A: Any) -> None:
    generator = {"linear": G, "vae": small(VAE), "gan": small(GAN)}[kind]
    y = random(6, 7)
    found = linear_estimate(generator, A, y, SIGMA, seed=5)
    exact = dense(generator, A, y, seed=5)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)
    # Other draws or another noise give another estimate.
    for other in (dense(generator, A, y, seed=6), dense(generator, A, y, seed=5, sigma=0.1)):
        assert (found - other).abs().max() > 1e-6


def test_linear_generators_start_at_their_posterior_mean(G: LinearGenerator, A: Any) -> None:
    """Up to the errors of means and variances of a thousand draws."""
    y = A(G(random(50, 3))) + SIGMA * random(50, 7, seed=4)
    mean, covariance = G.posterior(A, y, SIGMA)
    start = encoder_start(G, A, y, SIGMA, chains=4)["z"]
    widths = covariance.diagonal().sqrt()
    assert ((start[:, 0] - mean) / widths).abs().max() < 0.2
    # Half that noise is another posterior, and the rest of the chains are draws of the prior.
    other = encoder_start(G, A, y, 5 * SIGMA, chains=4)["z"]
    assert ((other[:, 0] - mean) / widths).abs().max() > 0.5
    rest = start[:, 1:].flatten(0, 1)
    assert rest.mean(0).abs().max() < 5 / 150**0.5
    assert (rest.std(0) - 1).abs().max() < 5 / 300**0.5


def test_hardly_any_noise(G: LinearGenerator, A: Any) -> None:
    """Three latents from seven data, exactly."""
    x = G(random(5, 3))
    found = linear_estimate(G, A, A(x), sigma=1e-12)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


def test_operators_that_are_not_linear(G: LinearGenerator) -> None:
    """The estimate is that for data less their mean, regressed on the draws."""
    A = bg.operators.Nonlinear(torch.sin, (4, 5), (4, 5))
    y = random(2, 4, 5)
    found = linear_estimate(G, A, y, SIGMA)
    images = G(prior_draws(G, 1000, seed=0))
    X, Y = images.flatten(1), A(images).flatten(1)
    both = torch.cov(torch.cat([X, Y], 1).T)
    gain = both[:20, 20:] @ torch.linalg.inv(
        both[20:, 20:] + SIGMA**2 * torch.eye(20, dtype=float64)
    )
    exact = X.mean(0) + (y.flatten(1) - Y.mean(0)) @ gain.T
    torch.testing.assert_close(found.flatten(1), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", [VAE, AE, GAN])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("chains", [1, 2, 5])
def test_shapes_and_batches(kind: Any, batch: tuple[int, ...], chains: int, A: Any) -> None:
    G, y = small(kind), random(*batch, 7)
    z = encoder_start(G, A, y, SIGMA, chains=chains)["z"]
    assert z.shape == (*batch, chains, 3)
    assert linear_estimate(G, A, y, SIGMA).shape == (*batch, 4, 5)
    assert z.dtype is float64
    if z.numel():
        # Without an encoder, different problems can have the same nearest draws.
        for starts in z.reshape(-1, chains, 3):
            assert len(starts.unique(dim=0)) == chains
        # The first start of a problem is its own, whatever its neighbours.
        alone = encoder_start(G, A, y.reshape(-1, 7)[-1], SIGMA, chains=chains)["z"]
        torch.testing.assert_close(z.reshape(-1, chains, 3)[-1, 0], alone[0])


def test_which_chains_start_where(A: Any) -> None:
    G, y = small(VAE), random(3, 7)
    z = encoder_start(G, A, y, SIGMA, chains=8, seed=2)["z"]
    law = G.encoding(linear_estimate(G, A, y, SIGMA, seed=2))
    torch.testing.assert_close(z[:, 0], law.mean)
    many = encoder_start(G, A, y, SIGMA, chains=2000)["z"]
    law = G.encoding(linear_estimate(G, A, y, SIGMA))
    standardised = (many[:, 1:1000] - law.mean[:, None]) / law.stddev[:, None]
    for draws in (standardised, many[:, 1000:]):
        assert draws.mean(1).abs().max() < 5 / 999**0.5
        assert (draws.std(1) - 1).abs().max() < 5 / 1998**0.5
    # Problems have draws of their own, and the chains are not those the estimate was made of.
    assert not torch.equal(many[0, 1000:], many[1, 1000:])
    assert not torch.equal(many[0, 1000:], prior_draws(G, 1000, seed=0))


def test_without_an_encoder_the_nearest_draws(A: Any) -> None:
    G, y = small(GAN), random(3, 7)
    z = encoder_start(G, A, y, SIGMA, chains=4, seed=3)["z"]
    draws = prior_draws(G, 1000, seed=3)
    misfit = (A(G(draws)) - y[:, None]).norm(dim=-1)
    torch.testing.assert_close(z, draws[misfit.argsort(dim=1)[:, :4]])
    assert not torch.equal(z, draws[misfit.argsort(dim=1, descending=True)[:, :4]])
    assert nearest_draws(G, A, y, count=1001).shape == (3, 1001, 3)


@pytest.mark.parametrize("name", ["mnist-vae-8", "mnist-ae-8", "mnist-gan-16"])
def test_starts_are_far_better_than_prior_draws(name: str) -> None:
    """Of held-out digits, by the objective of MAP, the best of eight each."""
    G = bg.models.load(name)
    A = bg.operators.GaussianMatrix((28, 28), 100, seed=0)
    truth = bg.datasets.mnist_samples().images
    rng = torch.Generator().manual_seed(0)
    y = A(truth) + 0.1 * torch.randn(len(truth), 100, generator=rng)

    def objective(z: Tensor) -> Tensor:
        misfit = (A(G(z)) - y[:, None]).square().sum(-1)
        return (misfit / 0.02 + 0.5 * z.square().sum(-1)).amin(1)

    starts = objective(encoder_start(G, A, y, 0.1)["z"])
    prior = objective(prior_draws(G, len(y) * 8, seed=7).reshape(len(y), 8, -1))
    assert starts.mean() < 0.6 * prior.mean()
    # Those of other images are no better than draws.
    wrong = objective(encoder_start(G, A, y.roll(1, 0), 0.1)["z"][:, :1])
    assert wrong.mean() > prior.mean()


def test_infer_takes_them() -> None:
    G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 100, seed=0)
    y = A(bg.datasets.mnist_samples().images[:3])
    model = bg.regularisers.hard(G, A, 0.1)
    for data, batched in ((y, True), (y[0], False)):
        start = encoder_start(G, A, data, 0.1, chains=3)
        found = bg.infer(
            model, data, batched=batched, method="map", chains=3, start=start, progress=False
        )
        assert found.mode("z").shape == (*data.shape[:-1], 8)


def test_seeds(A: Any) -> None:
    G, y = small(VAE), random(3, 7)
    one, same, other = (encoder_start(G, A, y, SIGMA, seed=seed)["z"] for seed in (4, 4, 5))
    assert torch.equal(one, same)
    assert not bool((one == other).any())


def test_what_is_refused(G: LinearGenerator, A: Any) -> None:
    y = random(7)
    for call in (encoder_start, linear_estimate):
        with pytest.raises(OptionError, match="sigma: got 0.0; expected a positive finite number"):
            call(G, A, y, 0.0)
        with pytest.raises(DtypeError, match="G: expected a Generator, got Matrix"):
            call(A, G, y, SIGMA)
        with pytest.raises(DtypeError, match="A: expected an Operator, got function"):
            call(G, lambda x: x, y, SIGMA)
        with pytest.raises(ShapeError, match=r"y must have shape \(\*batch, 7\), got \(3, 6\)"):
            call(G, A, random(3, 6), SIGMA)
        with pytest.raises(DtypeError, match="y is torch.float32, the operator torch.float64"):
            call(G, A, y.float(), SIGMA)
        with pytest.raises(DtypeError, match="y: is torch.float64.*weights are torch.float32"):
            call(small(VAE).float(), A, y, SIGMA)
        with pytest.raises(DataError, match="y: an entry is NaN or infinite"):
            call(G, A, y / 0, SIGMA)
        for seed in (-1, 0.5, True):
            with pytest.raises(OptionError, match="seed: got .*; expected an integer from 0"):
                call(G, A, y, SIGMA, seed=seed)
    with pytest.raises(ShapeError, match=r"A: takes images \(4, 5\), but the generator's have"):
        encoder_start(LinearGenerator((5, 4), 2), A, y, SIGMA)
    with pytest.raises(OptionError, match="chains: got 0; expected an integer of at least 1"):
        encoder_start(G, A, y, SIGMA, chains=0)
    with pytest.raises(OptionError, match="count: got 0"):
        nearest_draws(G, A, y, count=0)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (0,)])
@pytest.mark.parametrize("chains", [1, 4])
def test_an_optimum_is_decoded_and_encoded(batch: tuple[int, ...], chains: int) -> None:
    G = small(VAE)
    z = random(*batch, 3, seed=7)
    start = encoded_optimum(G, z, chains=chains, seed=1)["z"]
    assert start.shape == (*batch, chains, 3)
    torch.testing.assert_close(start[..., 0, :], G.encode(G(z)))
    # The others are draws of the encoder's law, no two alike.
    assert len(start.reshape(-1, 3).unique(dim=0)) == start[..., 0].numel()
    torch.testing.assert_close(encoded_optimum(G, z, chains=chains, seed=1)["z"], start)


def test_an_encoder_without_a_law_starts_all_chains_at_one_place() -> None:
    G = small(AE)
    start = encoded_optimum(G, random(2, 3), chains=3)["z"]
    torch.testing.assert_close(start, G.encode(G(random(2, 3))).unsqueeze(1).expand(2, 3, 3))


def test_what_an_encoded_optimum_refuses() -> None:
    with pytest.raises(DtypeError, match="GAN has no encoder"):
        encoded_optimum(small(GAN), random(3))
    with pytest.raises(ShapeError, match=r"z: has shape \(4,\); expected \(\*batch, 3\)"):
        encoded_optimum(small(VAE), random(4))
    with pytest.raises(OptionError, match="chains"):
        encoded_optimum(small(VAE), random(3), chains=0)
