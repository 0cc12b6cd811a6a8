"""Correlated residuals against dense algebra, and what training makes of them.

False-alarm rate of every statistical check: 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from torch.distributions import MultivariateNormal

import bayesgen as bg
from bayesgen._batching import native_batching
from bayesgen.distributions import StructuredNormal
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.model_sites import isolated
from bayesgen.models import (
    AE,
    VAE,
    StructuredVAE,
    StructuredVAEConfig,
    TrainingSettings,
    check_generator,
    load,
    save_generator,
    train,
)

float64 = torch.float64
SHAPES = [(4, 5), (2, 4, 5)]


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(
    shape: tuple[int, ...] = (4, 5), covariance: str = "structured", **options: Any
) -> StructuredVAE:
    """With laws far from those of a new generator, in double precision."""
    G = StructuredVAE(shape, 3, covariance=covariance, width=8, channels=2, **options).double()
    rng = seeded()
    with torch.no_grad():
        for parameter in G.covariance_decoder.parameters():
            parameter.normal_(std=0.5, generator=rng)
        last: Any = G.encoder[-1]
        last.bias.normal_(std=0.5, generator=rng)
    return G


def latent(*batch: int) -> Tensor:
    return torch.randn(*batch, 3, generator=seeded(3), dtype=float64)


def dense_factor(log_diagonal: Tensor, weights: Tensor, radius: int) -> Tensor:
    """L of one image, from its definition, one pixel and one neighbour at a time."""
    height, width = log_diagonal.shape
    L = torch.zeros(height * width, height * width, dtype=log_diagonal.dtype)
    neighbours = [(0, dx) for dx in range(1, radius + 1)]
    neighbours += [(dy, dx) for dy in range(1, radius + 1) for dx in range(-radius, radius + 1)]
    for y in range(height):
        for x in range(width):
            p, inverse_std = y * width + x, log_diagonal[y, x].exp()
            L[p, p] = inverse_std
            for k, (dy, dx) in enumerate(neighbours):
                if y + dy < height and 0 <= x + dx < width:
                    L[(y + dy) * width + x + dx, p] = inverse_std * weights[k, y, x]
    return L


def dense_precision(G: StructuredVAE, z: Tensor) -> Tensor:
    """Of the flattened image; channels are independent."""
    with torch.no_grad():
        log_diagonal, weights = G._maps(z)
    assert weights is not None
    height, width = G.image_shape[-2:]
    pairs = zip(
        log_diagonal.reshape(-1, height, width),
        weights.reshape(-1, G.config.num_neighbours, height, width),
        strict=True,
    )
    factors = [dense_factor(*pair, G.config.radius) for pair in pairs]
    return torch.block_diag(*[L @ L.T for L in factors])


# ---------------------------------------------------------------------------- the law


@pytest.mark.parametrize("layout", ["perceptron", "convolution"])
@pytest.mark.parametrize("covariance", ["structured", "diagonal", "identity"])
def test_it_keeps_the_promises_of_a_generator(layout: str, covariance: str) -> None:
    G = StructuredVAE((9, 7), 3, layout=layout, covariance=covariance, width=8, channels=2)
    report = check_generator(G)
    assert report.passed, report


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_the_density_is_that_of_a_dense_gaussian(shape: tuple[int, ...], radius: int) -> None:
    G, z = make(shape, radius=radius), latent()
    precision = dense_precision(G, z)
    exact = MultivariateNormal(G(z).flatten(), precision_matrix=precision)
    law = G.conditional(z)
    x = torch.rand(5, *shape, generator=seeded(), dtype=float64)
    found, expected = law.log_prob(x), exact.log_prob(x.flatten(1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(law.mean, G(z))
    torch.testing.assert_close(law.variance.flatten(), exact.variance, rtol=1e-10, atol=0)
    # Neighbours count, the factor is no symmetric matrix, channels are not those of another one.
    scale = precision.diagonal().sqrt()
    partial = precision / torch.outer(scale, scale) - torch.eye(len(scale), dtype=float64)
    assert partial.abs().max() > 0.1
    reversed_ = MultivariateNormal(G(z).flatten(), precision_matrix=precision.flip(0, 1))
    assert (reversed_.log_prob(x.flatten(1)) - expected).abs().min() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("covariance", ["structured", "diagonal", "identity"])
def test_residuals_are_images_less_their_mean(shape: tuple[int, ...], covariance: str) -> None:
    G, z = make(shape, covariance), latent(2, 3)
    x = torch.rand(2, 3, *shape, generator=seeded(), dtype=float64)
    law, residuals = G.conditional(z), G.residual_prior(z)
    for one in (law, residuals):
        assert isinstance(one, StructuredNormal)
        assert (one.batch_shape, one.event_shape) == ((2, 3), shape)
    assert not residuals.mean.any()
    assert torch.equal(law.mean, G(z))
    torch.testing.assert_close(law.log_prob(x), residuals.log_prob(x - G(z)), rtol=1e-12, atol=0)
    torch.testing.assert_close(law.variance, residuals.variance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("covariance", ["structured", "diagonal", "identity"])
def test_batches_are_laws_one_by_one(shape: tuple[int, ...], covariance: str) -> None:
    G, z = make(shape, covariance), latent(2, 3)
    x = torch.rand(*shape, generator=seeded(), dtype=float64)
    together = G.conditional(z).log_prob(x)
    for i in range(2):
        for j in range(3):
            alone = G.conditional(z[i, j])
            assert alone.batch_shape == ()
            torch.testing.assert_close(alone.log_prob(x), together[i, j])
    assert len(together.unique()) == 6
    empty = G.conditional(z[:0])
    assert empty.batch_shape == (0, 3) and empty.log_prob(x).shape == (0, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_independent_pixels_are_torchs(shape: tuple[int, ...]) -> None:
    for covariance in ("diagonal", "identity"):
        G, z = make(shape, covariance), latent(4)
        law = G.conditional(z)
        std = (-G._maps(z)[0]).exp()
        same = torch.distributions.Independent(torch.distributions.Normal(G(z), std), len(shape))
        x = torch.rand(4, *shape, generator=seeded(), dtype=float64)
        torch.testing.assert_close(law.log_prob(x), same.log_prob(x), rtol=1e-12, atol=0)
        torch.testing.assert_close(law.variance, same.variance, rtol=1e-12, atol=0)
        torch.testing.assert_close(law.entropy(), same.entropy(), rtol=1e-12, atol=0)
        # One variance for all pixels and latent vectors, or one for each.
        num = 1 if covariance == "identity" else 4 * std[0].numel()
        assert len(std.unique()) == num and G.config.num_neighbours == 0


def test_draws_have_the_covariance() -> None:
    G, z = make(radius=1), latent()
    covariance = torch.linalg.inv(dense_precision(G, z))
    num = 20_000
    with isolated(0):
        x = (G.conditional(z).sample((num,)) - G(z)).flatten(1).detach()
    found = x.T @ x / num
    variance = covariance.diagonal()

    def score(covariance: Tensor) -> float:
        spread = (variance * variance.unsqueeze(1) + covariance.square()) / num
        return float(((found - covariance) / spread.sqrt()).abs().max())

    assert score(covariance) < norm.isf(0.5e-6 / 210)
    assert score(torch.diag(variance)) > 20


def test_gradients_with_respect_to_latent_vectors() -> None:
    G = make(radius=1).requires_grad_(False)
    x = torch.rand(4, 5, generator=seeded(), dtype=float64)
    z = latent(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: G.conditional(z).log_prob(x), (z,))
    assert torch.autograd.gradcheck(lambda z: G.residual_prior(z).log_prob(x), (z,))
    # Both the mean and the covariance depend on z.
    (both,) = torch.autograd.grad(G.conditional(z).log_prob(x).sum(), z)
    law = G.conditional(z.detach())
    fixed = StructuredNormal(G(z), law.log_diagonal, law.off_diagonal).log_prob(x)
    (of_mean,) = torch.autograd.grad(fixed.sum(), z)
    assert (both - of_mean).abs().min() > 1e-3


def test_under_vmap_laws_stay_the_same() -> None:
    G = make().requires_grad_(False)
    x = torch.rand(4, 5, generator=seeded(), dtype=float64)
    z = latent(6)
    for law in (G.conditional, G.residual_prior):

        def density(z: Tensor, law: Any = law) -> Tensor:
            return law(z).log_prob(x)

        with native_batching(1):
            found = torch.func.vmap(density)(z)
        torch.testing.assert_close(found, density(z))


# ---------------------------------------------------------------------------- the start


@pytest.mark.parametrize("shape", [(8, 8), (2, 9, 7)])
@pytest.mark.parametrize("covariance", ["structured", "diagonal", "identity"])
def test_residuals_start_independent_with_the_noise_level(
    shape: tuple[int, ...], covariance: str
) -> None:
    G = StructuredVAE(shape, 3, covariance=covariance, noise_level=0.07).double()
    law = G.conditional(latent(20))
    exact = 1e-6 if covariance == "identity" else 0.1
    assert ((law.stddev / 0.07) - 1).abs().max() < exact
    assert law.off_diagonal.abs().max() < 0.2 / 0.07 if covariance == "structured" else True


@pytest.mark.parametrize("covariance", ["structured", "diagonal", "identity"])
def test_conditional_deviations_have_bounds(covariance: str) -> None:
    """Whatever the network says: between a hundredth of the range and all of it."""
    for noise_level, expected in ((1e-7, 0.01**0.98), (50.0, 0.01**0.02)):
        G = StructuredVAE((4, 5), 3, covariance=covariance, noise_level=noise_level).double()
        std = (-G._maps(latent(9))[0]).exp()
        torch.testing.assert_close(std.mean().item(), expected, rtol=0.02, atol=0)
    G = make(covariance=covariance)
    for sign, bound in ((1, 0.01), (-1, 1.0)):
        with torch.no_grad():
            *_, last = G.covariance_decoder.parameters()
            last.fill_(sign * 1e4)
        std = (-G._maps(latent(9))[0]).exp()
        torch.testing.assert_close(std, torch.full_like(std, bound))
        assert G.conditional(latent(9)).log_prob(torch.zeros(4, 5).double()).isfinite().all()


@pytest.mark.parametrize(("radius", "neighbours"), [(1, 4), (2, 12), (3, 24)])
@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours(radius: int, neighbours: int, shape: tuple[int, ...]) -> None:
    G = make(shape, radius=radius)
    log_diagonal, weights = G._maps(latent(2))
    assert G.config.num_neighbours == neighbours and weights is not None
    assert log_diagonal.shape == (2, *shape)
    assert weights.shape == (2, *shape[:-2], neighbours, 4, 5)
    assert G.conditional(latent(2)).off_diagonal.shape == weights.shape


def test_the_settings_make_the_same_generator() -> None:
    config = make(radius=1, noise_floor=0.05, joint=True, noise_level=0.2).config
    sizes = ((4, 5), 3, "perceptron", 8, 1, 2)
    assert config == StructuredVAEConfig(*sizes, 0.2, "structured", 1, 0.05, False, True)
    assert StructuredVAE(**asdict(config)).config == config


# ---------------------------------------------------------------------------- losses


def images_of(shape: tuple[int, ...], num: int = 6) -> Tensor:
    return torch.rand(num, *shape, generator=seeded(1), dtype=float64)


def drawn(G: StructuredVAE, x: Tensor) -> Tensor:
    """The latent vectors that a loss with the random numbers of `seeded` uses."""
    law = G.encoding(x)
    return law.mean + law.stddev * torch.randn(law.mean.shape, generator=seeded(), dtype=x.dtype)


def noise_after(z: Tensor, x: Tensor) -> Tensor:
    """The standard noise that such a loss draws next."""
    rng = seeded()
    torch.randn(z.shape, generator=rng, dtype=x.dtype)
    return torch.randn(x.shape, generator=rng, dtype=x.dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_by_hand(shape: tuple[int, ...]) -> None:
    G, x = make(shape, noise_floor=0.2), images_of(shape)
    num, z = x[0].numel(), drawn(G, x)
    noisy = x + 0.2 * noise_after(z, x)
    log_prob = G.conditional(z).log_prob(noisy).mean() / num
    standard = torch.distributions.Normal(torch.zeros(3, dtype=float64), 1.0)
    law = torch.distributions.Normal(G.encoding(x).mean, G.encoding(x).stddev)
    kl = torch.distributions.kl_divergence(law, standard).sum(-1).mean()
    covariance, joint = G.covariance_loss(x, seeded()), G.joint_loss(x, seeded())
    torch.testing.assert_close(covariance["loss"], -log_prob)
    torch.testing.assert_close(joint["nll"], -log_prob)
    torch.testing.assert_close(joint["loss"], -log_prob + kl / num)
    torch.testing.assert_close(joint["kl"], kl / num)
    clean = G.conditional(z).log_prob(x).mean() / num
    assert (clean - log_prob).abs() > 1e-3 and kl / num > 1e-3
    # The means learn as those of a VAE.
    vae = VAE(shape, 3, width=8, channels=2).double()
    vae.encoder, vae.decoder = G.encoder, G.decoder
    found, expected = G.mean_loss(x, seeded()), vae.loss(x, seeded())
    assert set(found) == set(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_the_covariance_learns_from_fixed_means() -> None:
    G, x = make(), images_of((4, 5))
    means = [*G.encoder.parameters(), *G.decoder.parameters()]
    loss = G.covariance_loss(x, seeded())["loss"]
    found = torch.autograd.grad(loss, list(G.encoder.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in found)
    loss = G.joint_loss(x, seeded())["loss"]
    found = torch.autograd.grad(loss, means)
    assert all(gradient.abs().max() > 0 for gradient in found)


def test_the_best_single_variance_is_the_mean_square_of_residuals() -> None:
    G, x = make(covariance="identity", radius=1), images_of((4, 5), 50)
    value = next(G.covariance_decoder.parameters())
    z = drawn(G, x)
    square = (x + 0.01 * noise_after(z, x) - G(z)).square().mean().item()

    def slope(variance: float) -> float:
        fraction = math.log(100 * math.sqrt(variance)) / math.log(100)  # 1 at one, 0 at 0.01
        with torch.no_grad():
            value.fill_(-math.log(fraction / (1 - fraction)))
        torch.testing.assert_close(
            G.conditional(latent()).variance, torch.full((4, 5), variance, dtype=float64)
        )
        return torch.autograd.grad(G.covariance_loss(x, seeded())["loss"], value)[0].item()

    assert abs(slope(square)) < 1e-12
    # The value rises as the variance falls: from either side the loss leads to the optimum.
    assert slope(0.5 * square) > 0.01 and slope(2 * square) < -0.01


# ---------------------------------------------------------------------------- stages


def test_stages() -> None:
    def summary(G: StructuredVAE) -> list[tuple[str, str]]:
        return [(stage.name, stage.images) for stage in G.stages()]

    first, second, third = (
        ("mean", "training"),
        ("covariance", "reserved"),
        ("joint", "training"),
    )
    assert summary(make()) == [first, second]
    assert summary(make(joint=True)) == [first, second, third]
    assert summary(make(fixed_mean=True)) == [second]
    G = make(joint=True)
    mean, covariance, joint = (stage.players[0] for stage in G.stages())
    assert all(len(stage.players) == 1 and stage.monitored for stage in G.stages())
    names = {id(p): name for name, p in G.named_parameters()}
    learn = [
        {names[id(p)].split(".")[0] for p in player.parameters}
        for player in (mean, covariance, joint)
    ]
    assert learn[:2] == [{"encoder", "decoder"}, {"covariance_decoder"}]
    assert learn[2] == {"encoder", "decoder", "covariance_decoder"}
    assert joint.learning_rate == 0.1 and mean.learning_rate == 1.0


class Watched(StructuredVAE):
    """Remembers the images that it learned from, by their first pixel."""

    seen: ClassVar[dict[str, set[float]]] = {}

    def _watch(self, name: str, x: Tensor) -> None:
        if self.training:
            self.seen.setdefault(name, set()).update(x[:, 0, 0].tolist())

    def mean_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        self._watch("mean", x)
        return super().mean_loss(x, rng)

    def covariance_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        self._watch("covariance", x)
        return super().covariance_loss(x, rng)

    def joint_loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        self._watch("joint", x)
        return super().joint_loss(x, rng)


SETTINGS = TrainingSettings(epochs=3, batch_size=10, validation=10, reserved=0.25, average=0.9)


def test_the_covariance_sees_images_that_the_means_have_not_seen() -> None:
    Watched.seen.clear()
    x = images_of((4, 5), 50).float()
    G = Watched((4, 5), 3, width=8, channels=2, joint=True)
    trained, history = train(G, x, SETTINGS, progress=False)
    seen = Watched.seen
    assert len(seen["mean"]) == 30 and len(seen["covariance"]) == 10
    assert not seen["mean"] & seen["covariance"] and seen["joint"] == seen["mean"]
    assert len(history) == 3 and not trained.training
    assert {"mse", "kl"} <= set(history[0]) and "kl" not in history[1] and "nll" in history[2]


@pytest.mark.parametrize("kind", ["vae", "learned noise", "structured"])
def test_a_trained_generator_keeps_its_means_to_the_bit(kind: str) -> None:
    size: dict[str, Any] = {"width": 8, "channels": 2, "noise_level": 0.2}
    base = (
        StructuredVAE((4, 5), 3, **size)
        if kind == "structured"
        else VAE((4, 5), 3, learn_noise=kind == "learned noise", **size)
    )
    x = images_of((4, 5), 50).float()
    base, _ = train(base, x, SETTINGS, progress=False)
    G = StructuredVAE.from_vae(base, radius=1, noise_floor=0.02, seed=4)
    # The covariance starts from the noise level that was learned, where one was.
    level = base.noise_level if isinstance(base, VAE) else 0.2
    assert (level == 0.2) == (kind != "learned noise")
    assert G.config == StructuredVAEConfig(
        (4, 5), 3, "perceptron", 8, 1, 2, level, "structured", 1, 0.02, True
    )
    trained, history = train(G, x, SETTINGS, progress=False)
    assert "kl" not in history[0] and len(history) == 3
    z = latent(6).float()
    assert torch.equal(trained(z), base(z))
    assert torch.equal(trained.encoding(x).mean, base.encoding(x).mean)
    assert torch.equal(trained.encoding(x).stddev, base.encoding(x).stddev)
    before = [*G.covariance_decoder.parameters()]
    after = [*trained.covariance_decoder.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # What is not given is as it was.
    if kind == "structured":
        again = StructuredVAE.from_vae(G).config
        assert (again.radius, again.noise_floor) == (1, 0.02)
    # Other seeds begin with other covariances, and the same means.
    other = StructuredVAE.from_vae(base, radius=1, seed=5)
    assert torch.equal(other(z), base(z))
    assert not torch.equal(other._maps(z)[0], G._maps(z)[0])


def test_a_generator_keeps_its_precision() -> None:
    vae = VAE((4, 5), 3, width=8, channels=2).double()
    with torch.no_grad():
        first: Any = vae.decoder[0]
        first.weight.mul_(1 + 1e-12)
    G = StructuredVAE.from_vae(vae)
    assert G.residual_prior(latent()).mean.dtype == float64
    assert torch.equal(G(latent()), vae(latent()))


@pytest.mark.parametrize("wrong", [AE((4, 5), 3), None, "mnist-vae"])
def test_only_variational_autoencoders_get_a_covariance(wrong: Any) -> None:
    name = type(wrong).__name__
    with pytest.raises(DtypeError, match=f"vae: expected a VAE or a StructuredVAE, got {name}"):
        StructuredVAE.from_vae(wrong)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("covariance", ["structured", "diagonal", "identity"])
def test_finishing_changes_coordinates_only(shape: tuple[int, ...], covariance: str) -> None:
    G, x = make(shape, covariance), images_of(shape, 400)
    before = G.conditional(G.encode(x))
    density, variance = before.log_prob(x), before.variance
    old = G.encode(x)
    G.finish(x, x[:9])
    law = G.conditional(G.encode(x))
    torch.testing.assert_close(law.mean, before.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(law.log_prob(x), density, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(law.variance, variance, rtol=1e-9, atol=0)
    mean = G.encode(x).mean(0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-10)
    assert (G.encode(x) - old).abs().max() > 0.1
    # The encoder's own spread makes up the rest of unit variance.
    assert G.encode(x).var(0).max() < 0.9
    # Fixed means stay what they are.
    fixed = make(shape, covariance, fixed_mean=True)
    z = fixed.encode(x)
    fixed.finish(x, x[:9])
    assert torch.equal(fixed.encode(x), z)


# ---------------------------------------------------------------------------- what is learned

MEAN = torch.full((8, 8), 0.5)


@lru_cache
def truth() -> StructuredNormal:
    """Residuals like those of an autoregression, wider in some rows than in others."""
    std = 0.03 * torch.linspace(1.0, 5.0, 8).unsqueeze(1).expand(8, 8)
    weights = torch.tensor([-0.5, 0.2, -0.5, 0.0]).reshape(4, 1, 1).expand(4, 8, 8)
    return StructuredNormal(MEAN, -std.log(), weights / std)


@lru_cache
def learned(covariance: str) -> tuple[StructuredVAE, Tensor]:
    """After a few seconds with images whose mean is known; and other images."""
    with isolated(0):
        x = truth().sample((4000,))
    G = StructuredVAE(
        (8, 8), 2, covariance=covariance, radius=1, noise_floor=1e-3, width=8, channels=4,
        fixed_mean=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in (*G.decoder.parameters(), *G.encoder.parameters()):
            parameter.zero_()
    return fit(G, x[:2000]), x[2000:]


def fit(G: StructuredVAE, x: Tensor) -> StructuredVAE:
    """Learn the covariance in a few seconds."""
    optimiser = torch.optim.Adam(G.covariance_decoder.parameters(), lr=0.03)
    rng = seeded()
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / 300)
        batch = x[torch.randint(len(x), (100,), generator=rng)]
        optimiser.zero_grad()
        G.covariance_loss(batch, rng)["loss"].backward()
        optimiser.step()
    return G.requires_grad_(False)


def cross_entropy(covariance: str) -> tuple[float, float]:
    """Nats a pixel that the learned law needs for other images, and its standard error."""
    G, x = learned(covariance)
    z = torch.randn(len(x), 2, generator=seeded())
    values = -G.conditional(z).log_prob(x) / 64
    return values.mean().item(), values.std().item() / len(x) ** 0.5


def test_a_covariance_is_learned_almost_to_the_entropy() -> None:
    """Each family comes close to the least cross entropy that it can have.

    The fitted numbers, 5 * 64 at most, cost 320 / (2 * 2000 * 64) = 0.001 nats a pixel, and what
    Adam leaves about as much: 0.005 is allowed. The families are 0.1 apart.
    """
    assert torch.equal(learned("structured")[0](torch.zeros(2)), MEAN)
    variance = truth().variance
    half_log = 0.5 * math.log(2 * math.pi * math.e)
    best = {
        "structured": truth().entropy().item() / 64,
        "diagonal": half_log + 0.5 * variance.log().mean().item(),
        "identity": half_log + 0.5 * variance.mean().log().item(),
    }
    assert best["structured"] + 0.1 < best["diagonal"] < best["identity"] - 0.1
    for covariance, least in best.items():
        found, error = cross_entropy(covariance)
        # A law cannot beat the truth; five standard errors are 3e-7.
        assert least - 5 * error < found < least + 0.005 + 5 * error, (covariance, found, least)


def test_the_learned_law_has_the_correlations() -> None:
    G, _ = learned("structured")
    unit = torch.zeros(8, 8)
    unit[4, 4] = 1.0

    def correlation(law: StructuredNormal) -> Tensor:
        column = law.covariance_matmul(unit)
        return column / (law.stddev * law.stddev[4, 4])

    found, exact = correlation(G.residual_prior(torch.zeros(2))), correlation(truth())
    assert exact.flatten().sort().values[-5] > 0.3
    assert (found - exact).abs().max() < 0.06
    deviation = G.residual_prior(torch.zeros(2)).stddev / truth().stddev
    assert (deviation - 1).abs().max() < 0.1


@lru_cache
def half_flat(noise_floor: float) -> tuple[Tensor, float]:
    """Learned from images whose left half never varies: weights there, width of drawn residuals.

    The width is relative to that of the actual ones.
    """
    with isolated(0):
        x = truth().sample((2000,))
    x[..., :4] = 0.5
    G = make((8, 8), radius=1, noise_floor=noise_floor, fixed_mean=True).float()
    with torch.no_grad():
        for parameter in (*G.decoder.parameters(), *G.encoder.parameters()):
            parameter.zero_()
    z = torch.randn(500, 3, generator=seeded())
    _, weights = fit(G, x)._maps(z)
    assert weights is not None
    with isolated(1):
        drawn = G.residual_prior(z).sample()
    width = drawn.square().mean() / (x - 0.5).square().mean()
    # All their neighbours are flat, and inside the image.
    return weights[..., :-1, 1:3], width.sqrt().item()


def test_where_the_data_does_not_speak_the_noise_floor_decides() -> None:
    weights, width = half_flat(0.01)
    assert weights.abs().mean() < 0.08
    assert 0.8 < width < 1.5
    # Without noise to speak of, weights stay as they happened to be, and draws explode.
    undetermined, width = half_flat(1e-6)
    assert undetermined.abs().mean() > 2 * weights.abs().mean()
    assert width > 1000


def test_the_learned_single_variance_is_the_mean_square() -> None:
    G, x = learned("identity")
    square = (x - MEAN).square().mean().item()
    variance = G.conditional(torch.zeros(2)).variance[0, 0].item()
    # Two halves of the same images: 64 * 2000 pixels each, correlated; and Adam's last steps.
    assert math.isclose(variance, square, rel_tol=0.05)


def test_half_precision_hardly_changes_the_law(tmp_path: Path) -> None:
    G, x = learned("structured")
    path = tmp_path / "G.safetensors"
    save_generator(G, path)
    loaded = load(path)
    z = torch.randn(len(x), 2, generator=seeded())
    exact = G.conditional(z).log_prob(x)
    assert isinstance(loaded, StructuredVAE) and loaded.config == G.config
    assert torch.equal(loaded.conditional(z).log_prob(x), exact)
    save_generator(G, path, half=True)
    half = load(path)
    assert isinstance(half, StructuredVAE)
    change = (half.conditional(z).log_prob(x) - exact) / 64
    # A thousandth of a nat a pixel, where the families are a tenth apart.
    assert 0 < change.abs().max() < 0.001 and change.mean().abs() < 1e-4


# ---------------------------------------------------------------------------- in models


@pytest.mark.parametrize("method", ["map", "hmc"])
@pytest.mark.parametrize("covariance", ["structured", "identity"])
def test_images_off_the_range_are_inferred(method: str, covariance: str) -> None:
    G = StructuredVAE((8, 8), 2, covariance=covariance, radius=1, width=8, channels=2)
    G = G.eval().requires_grad_(False)
    A = bg.operators.GaussianMatrix((8, 8), rows=10, seed=0)
    y = A(torch.rand(8, 8, generator=seeded()))

    def model(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        u = pyro.sample("u", G.residual_prior(z))
        x = pyro.deterministic("x", G(z) + u)
        pyro.sample("y", dist.Normal(A(x), 0.1).to_event(1), obs=y)

    budget = {"draws": 10, "warmup": 10} if method == "hmc" else {}
    posterior = bg.infer(model, y, method=method, chains=2, progress=False, **budget)  # type: ignore[arg-type]
    z, u = posterior.draws("z"), posterior.draws("u")
    assert u.shape[-2:] == (8, 8) and u.isfinite().all()
    torch.testing.assert_close(posterior.draws("x"), G(z) + u)
    expected = (
        G.prior().log_prob(z)
        + G.residual_prior(z).log_prob(u)
        + dist.Normal(A(G(z) + u), 0.1).log_prob(y).sum(-1)
    )
    torch.testing.assert_close(posterior.log_prob, expected, rtol=1e-4, atol=1e-2)


# ---------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "dense"}, "covariance: unknown value 'dense'; expected one of 'struc"),
        ({"covariance": "diagnal"}, "did you mean 'diagonal'"),
        ({"radius": 0}, "radius: got 0; expected an integer of at least 1"),
        ({"radius": 1.5}, "radius: got 1.5"),
        ({"noise_level": 0.0}, "noise_level: got 0.0; expected a positive finite number"),
        ({"noise_floor": 0.0}, "noise_floor: got 0.0; expected a positive finite number"),
        ({"noise_floor": 1.0}, "noise_floor: got 1.0; expected less than 1, all of the range"),
        ({"noise_floor": math.nan}, "noise_floor: got nan"),
        ({"noise_floor": "0"}, "noise_floor: got '0'"),
        ({"joint": True, "fixed_mean": True}, "joint: the means cannot be fine-tuned where fixed"),
        ({"latent_dim": 21}, "latent_dim: expected 1 to 20"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        StructuredVAE(**{"image_shape": (4, 5), "latent_dim": 3, **options})


def test_residuals_need_the_latent_vector() -> None:
    with pytest.raises(OptionError, match=r"z: the residuals of this generator depend on z"):
        make().residual_prior()


@pytest.mark.parametrize("method", ["conditional", "residual_prior"])
def test_latent_vectors_are_checked_at_the_door(method: str) -> None:
    law = getattr(make(), method)
    with pytest.raises(ShapeError, match=r"z: expected shape \(\*batch, 3\), got \(5, 2\)"):
        law(torch.zeros(5, 2, dtype=float64))
    with pytest.raises(DtypeError, match="z: is torch.float32"):
        law(torch.zeros(5, 3))


@pytest.mark.parametrize("method", ["encode", "encoding"])
def test_images_are_checked_at_the_door(method: str) -> None:
    with pytest.raises(ShapeError, match=r"x: expected shape \(\*batch, 4, 5\), got \(5, 4\)"):
        getattr(make(), method)(torch.zeros(5, 4, dtype=float64))
