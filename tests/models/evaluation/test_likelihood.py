"""Densities against a linear model whose likelihood is known, whitening against its own draws.

False-alarm rate of every statistical check: 1e-6.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.model_sites import isolated
from bayesgen.models import AE, VAE, StructuredVAE
from bayesgen.models.evaluation import likelihood
from bayesgen.models.evaluation.likelihood import (
    importance_weighted_bound,
    negative_log_density,
    whitened_residuals,
)

float64 = torch.float64
NOISE, NUM = 0.3, 1500


@pytest.fixture
def linear() -> VAE:
    """x = W z + b + noise, W with orthogonal columns, so that the exact posterior is diagonal."""
    G = VAE((4, 5), 2, width=4, channels=2, noise_level=NOISE)
    rng = torch.Generator().manual_seed(0)
    W = torch.linalg.qr(torch.randn(20, 2, generator=rng, dtype=float64))[0]
    W = W * torch.tensor([1.5, 0.4], dtype=float64)
    b = torch.rand(20, generator=rng, dtype=float64)
    variance = 1 / (1 + W.square().sum(0) / NOISE**2)
    with isolated(0), torch.no_grad():
        decoder, encoder = nn.Linear(2, 20).double(), nn.Linear(20, 4).double()
        decoder.weight.copy_(W)
        decoder.bias.copy_(b)
        gain = variance.unsqueeze(1) * W.T / NOISE**2
        encoder.weight.zero_()
        encoder.weight[:2] = gain
        encoder.bias[:2] = -gain @ b
        encoder.bias[2:] = 0.5 * variance.log()
    G.decoder, G.encoder = nn.Sequential(decoder), nn.Sequential(nn.Flatten(), encoder)
    return G.double().requires_grad_(False)


@pytest.fixture
def images(linear: VAE) -> Tensor:
    # Not the seed of the samples, which would then be the latent vectors of these images.
    rng = torch.Generator().manual_seed(12345)
    z = torch.randn(NUM, 2, generator=rng, dtype=float64)
    return linear(z) + NOISE * torch.randn(NUM, 4, 5, generator=rng, dtype=float64)


def log_density(G: VAE, x: Tensor) -> Tensor:
    layer: Any = G.decoder[0]
    covariance = layer.weight @ layer.weight.T + NOISE**2 * torch.eye(20, dtype=float64)
    return MultivariateNormal(layer.bias, covariance).log_prob(x.flatten(1))


def spoil(G: VAE) -> VAE:
    """An encoder that is shifted and too wide."""
    with torch.no_grad():
        last: Any = G.encoder[-1]
        last.bias += torch.tensor([0.2, -0.3, 0.4, 0.2], dtype=float64)
    return G


# ---------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("samples", [1, 2, 50])
def test_with_the_exact_posterior_the_bound_is_the_density(
    samples: int, linear: VAE, images: Tensor
) -> None:
    """Whatever the samples: all weights are equal."""
    exact = log_density(linear, images)
    for seed in (0, 1):
        found = importance_weighted_bound(linear, images, samples=samples, seed=seed)
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    assert found.shape == (NUM,)


def test_the_bound_rises_towards_the_density(linear: VAE, images: Tensor) -> None:
    G, exact = spoil(linear), log_density(linear, images)
    gaps = [
        exact - importance_weighted_bound(G, images, samples=samples, seed=3)
        for samples in (1, 4, 400)
    ]
    for wide, narrow in pairwise(gaps):
        fall = wide - narrow
        assert fall.mean() / (fall.std() / NUM**0.5) > norm.isf(1e-6)
    # One sample: on average the divergence of the encoder from the posterior.
    error = gaps[0].std() / NUM**0.5
    divergence = _divergence(G, images)
    assert abs(gaps[0].mean() - divergence) < norm.isf(0.5e-6) * error
    assert divergence > 0.3
    # Many: the variance of the weights over twice their number, and its chance error.
    assert abs(gaps[2].mean()) < 0.02


def _divergence(G: VAE, x: Tensor) -> float:
    """Of the spoilt encoder from the posterior, whose mean and variance were shifted and scaled."""
    shift = torch.tensor([0.2, -0.3], dtype=float64)
    log_scale = torch.tensor([0.4, 0.2], dtype=float64)
    std = G.encoding(x[0]).stddev / log_scale.exp()
    terms = 0.5 * ((2 * log_scale).exp() + (shift / std).square() - 1) - log_scale
    return terms.sum().item()


def test_a_bound_by_hand(linear: VAE, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    G, x = spoil(linear), images[:3]
    noise = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(9), dtype=float64)
    expected = []
    for i in range(3):
        law, weights = G.encoding(x[i]), []
        for k in range(4):
            z = law.mean + law.stddev * noise[k, i]
            fit = torch.distributions.Normal(G(z), NOISE).log_prob(x[i]).sum()
            prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
            proposal = torch.distributions.Normal(law.mean, law.stddev).log_prob(z).sum()
            weights.append(math.exp(fit + prior - proposal))
        expected.append(math.log(sum(weights) / 4))
    found = importance_weighted_bound(G, x, samples=4, seed=9)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=float64), rtol=1e-10, atol=0)
    # In as many parts as need be, one image at least.
    monkeypatch.setattr(likelihood, "_CHUNK", 1)
    assert importance_weighted_bound(G, images[:7], samples=4).shape == (7,)


@pytest.mark.parametrize("channels", [(), (2,)])
def test_images_are_taken_in_parts_that_fit_into_memory(
    channels: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    G = StructuredVAE((*channels, 4, 5), 2, radius=1, width=4, channels=2)
    x = torch.rand(10, *channels, 4, 5, generator=torch.Generator().manual_seed(0))
    # Three images of twenty pixels, five maps and two samples at a time, where there is a channel.
    monkeypatch.setattr(likelihood, "_CHUNK", 3 * 2 * 5 * 20 * math.prod(channels))
    sizes = [len(part) for part in likelihood._parts(G, x, 2)]
    assert sizes == [3, 3, 3, 1]
    assert importance_weighted_bound(G, x, samples=2).shape == (10,)
    assert negative_log_density(G, x, samples=2).shape == (10,)


# ---------------------------------------------------------------------------- residuals' density


def test_negative_log_density_by_hand(linear: VAE, images: Tensor) -> None:
    """Over the latent vectors of the encoder, whose mean square is known for a linear decoder."""
    law = linear.encoding(images)
    layer: Any = linear.decoder[0]
    spread = law.stddev.square() @ layer.weight.square().sum(0)
    square = (images - linear(law.mean)).square().sum((1, 2)) + spread
    exact = (0.5 * square / NOISE**2 + 20 * math.log(NOISE * math.sqrt(2 * math.pi))) / 20
    one = negative_log_density(linear, images, samples=1)
    eight = negative_log_density(linear, images, samples=8)
    for found in (one, eight):
        score = (found - exact).mean() / ((found - exact).std() / NUM**0.5)
        assert abs(score) < norm.isf(0.5e-6)
    # Averaged over samples: the spread falls with their square root.
    ratio = (one - exact).std() / (eight - exact).std()
    assert 2.4 < ratio < 3.3
    with torch.no_grad():
        last: Any = linear.encoder[-1]
        last.bias[2:] = -30.0
    sharp = -linear.conditional(law.mean).log_prob(images) / 20
    torch.testing.assert_close(negative_log_density(linear, images), sharp)


def test_densities_follow_the_seed(linear: VAE, images: Tensor) -> None:
    G = spoil(linear)
    for measure in (importance_weighted_bound, negative_log_density):
        one, same, other = (measure(G, images[:5], samples=3, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)


# ---------------------------------------------------------------------------- whitening


def structured(**options: Any) -> StructuredVAE:
    """Every image has the same latent vector; residuals are strongly correlated."""
    G = StructuredVAE((6, 7), 2, width=6, channels=2, radius=1, **options).double()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        last: Any = G.encoder[-1]
        last.weight.zero_()
        last.bias[2:] = -40.0  # every image has the latent vector zero
        for parameter in G.covariance_decoder.parameters():
            parameter.normal_(std=0.5, generator=rng)
    return G.requires_grad_(False)


def draws(G: StructuredVAE, num: int) -> Tensor:
    with isolated(0):
        return G.conditional(torch.zeros(2, dtype=float64)).sample((num,))


def scores(G: StructuredVAE, x: Tensor) -> dict[str, float]:
    """How many standard errors each statistic is from that of independent normal pixels."""
    found = whitened_residuals(G, x)
    num = x.numel()
    beyond = 2 * norm.sf(2)
    result = {
        "mean": found.mean * num**0.5,
        "std": (found.std - 1) * (2 * num) ** 0.5,
        "beyond": (found.beyond_two - beyond) / (beyond * (1 - beyond) / num) ** 0.5,
    }
    for name, size, lags in (
        ("row", 7, found.row_correlation),
        ("column", 6, found.column_correlation),
    ):
        for lag, value in lags.items():
            result[f"{name} {lag}"] = value * (num * (size - lag) / size) ** 0.5
    return result


def test_whitened_images_of_the_model_are_noise() -> None:
    G = structured()
    x = draws(G, 2000)
    found = scores(G, x)
    assert set(found) == {
        *("mean", "std", "beyond"),
        *(f"{axis} {lag}" for axis in ("row", "column") for lag in (1, 2, 3)),
    }
    bound = norm.isf(0.5e-6 / len(found))
    assert max(map(abs, found.values())) < bound, found
    # Before that they were not.
    raw = whitened_residuals(G, x)
    # Residuals drawn are as wide as those of images of the model: 84,000 pixels, correlated.
    assert abs(raw.drawn_width - 1) < 0.05
    mean = G(torch.zeros(2, dtype=float64))
    wider = whitened_residuals(G, mean + 2 * (x - mean))
    assert abs(wider.drawn_width - 0.5) < 0.025
    assert abs(raw.raw_row_correlation[1]) > 0.1 or abs(raw.raw_column_correlation[1]) > 0.1


def test_a_wrong_covariance_is_seen() -> None:
    G, other = structured(), structured()
    x = draws(G, 2000)
    with torch.no_grad():
        for parameter in other.covariance_decoder.parameters():
            parameter.mul_(0.5)
    wrong = scores(other, x)
    assert abs(wrong["std"]) > 20 and abs(wrong["row 1"]) + abs(wrong["column 1"]) > 20
    independent = structured(covariance="diagonal")
    assert max(map(abs, scores(independent, x).values())) > 20
    # Means that are wrong, too.
    assert abs(scores(G, x + 0.1)["mean"]) > 20


def test_the_statistics_by_hand() -> None:
    G = structured(covariance="identity")
    with torch.no_grad():  # means of every brightness
        for parameter in G.decoder.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(4))
    x = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(2), dtype=float64)
    raw = x - G(torch.zeros(2, dtype=float64))
    white = raw / G.conditional(torch.zeros(2, dtype=float64)).stddev
    found = whitened_residuals(G, x)
    assert math.isclose(found.mean, white.mean().item(), rel_tol=1e-10)
    spread = (white - white.mean()).square().mean().sqrt().item()
    assert math.isclose(found.std, spread, rel_tol=1e-10)
    assert math.isclose(found.beyond_two, (white.abs() > 2).sum().item() / 126, rel_tol=1e-10)
    mean = G(torch.zeros(2, dtype=float64))
    share = (mean - mean.min()) / (mean.max() - mean.min())
    thirds = (share < 1 / 3, (share >= 1 / 3) & (share < 2 / 3), share >= 2 / 3)
    for width, pixels in zip(found.std_by_brightness, thirds, strict=True):
        assert math.isclose(width, white[:, pixels].std(correction=0).item(), rel_tol=1e-10)
    for lag in (1, 2, 3):
        pairs = {
            "row": (raw[:, :, lag:], raw[:, :, :-lag]),
            "column": (raw[:, lag:, :], raw[:, :-lag, :]),
        }
        for name, (a, b) in pairs.items():
            expected = (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()
            for prefix in ("", "raw_"):  # one variance: whitening does not change correlations
                value = getattr(found, f"{prefix}{name}_correlation")[lag]
                assert math.isclose(value, expected.item(), rel_tol=1e-10)


def test_lags_beyond_a_small_image_are_not_known() -> None:
    G = StructuredVAE((4, 4), 2, width=4, channels=2, radius=1)
    found = whitened_residuals(G, torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert all(math.isfinite(value) for value in found.row_correlation.values())
    assert math.isnan(likelihood._autocorrelation(torch.ones(2, 3, 3), 3, -1))


# ---------------------------------------------------------------------------- the door


def test_what_is_refused(linear: VAE, images: Tensor) -> None:
    for measure in (importance_weighted_bound, negative_log_density):
        with pytest.raises(DtypeError, match="generator: expected a VAE or a StructuredVAE, got A"):
            measure(AE((4, 5), 2), images)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="samples: got 0; expected an integer of at least 1"):
            measure(linear, images, samples=0)
        with pytest.raises(ShapeError, match=r"images: expected shape \(N, 4, 5\).*got \(4, 5\)"):
            measure(linear, images[0])
        with pytest.raises(ShapeError, match=r"N at least 1, got \(0, 4, 5\)"):
            measure(linear, images[:0])
        with pytest.raises(DtypeError, match="images: is torch.float32"):
            measure(linear, images.float())
        with pytest.raises(DataError, match="images: hold NaN or infinity"):
            measure(linear, images / 0)
    with pytest.raises(DtypeError, match="generator: expected a StructuredVAE, got VAE"):
        whitened_residuals(linear, images)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"images: expected shape \(N, 6, 7\) with N at least 1"):
        whitened_residuals(structured(), torch.zeros(0, 6, 7, dtype=float64))
