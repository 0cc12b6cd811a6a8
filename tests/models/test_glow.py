from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.models.glow import Glow, GlowConfig
from bayesgen.models.trainable import Trainable


def orthogonal(quantisation: int = 2) -> Glow:
    """With its first weights a rotation, so that pixels are independent standard normals."""
    return Glow((4, 4), steps=1, width=4, quantisation=quantisation).double().requires_grad_(False)


def test_images_near_the_mean_come_from_latents_near_zero() -> None:
    """Half of the latent variables leave after the first level, fine ones last."""
    flow = orthogonal()
    z = torch.eye(16, dtype=torch.float64)
    x = flow(z).flatten(1)
    torch.testing.assert_close(x @ x.T, z)
    # A fine latent variable reaches one block of 2 x 2 pixels, a coarse one all of them.
    assert ((x[8:].abs() > 1e-12).sum(1) <= 4).all()
    assert ((x[:8].abs() > 1e-12).sum(1) > 4).all()


def test_noise_fills_the_interval_that_a_pixel_was_rounded_to(rng: torch.Generator) -> None:
    flow = orthogonal(quantisation=5)
    assert flow.cell == 0.25
    x = torch.randint(5, (2000, 4, 4), generator=rng).double() / 4
    noise = flow.dequantise(x, rng) - x
    assert -0.125 <= noise.min() < -0.1249 and 0.1249 < noise.max() < 0.125
    # Uniform: mean and variance within five standard errors, false alarms below one in a million.
    count = noise.numel()
    assert abs(noise.mean()) < 5 * 0.25 / math.sqrt(12 * count)
    assert abs(noise.var() - 0.25**2 / 12) < 5 * 0.25**2 * math.sqrt(1 / 180 / count)
    first, second = (flow.dequantise(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_bits_per_dimension_bound_the_exact_code_length() -> None:
    """For independent standard normal pixels both are known in closed form.

    The mean bits of a pixel of value k, in cells of width w, are those of the mean of
    (k + u)^2 / 2, which is k^2 / 2 + w^2 / 24, and the exact probability is a difference of
    normal distribution functions.
    """
    w, draws = 0.5, 4000
    flow = orthogonal(quantisation=3)
    x = (torch.arange(32).reshape(2, 4, 4) % 3).double() / 2
    bits = flow.bits_per_dimension(x.expand(draws // 2, 2, 4, 4), draws=2).mean(0)
    nats = (x**2 + w**2 / 12) / 2 + 0.5 * math.log(2 * math.pi) - math.log(w)
    # Deviation of (k + u)^2 / 2 over one draw, at most sqrt(w^2 / 12 + w^4 / 720).
    error = math.sqrt((w**2 / 12 + w**4 / 720) / draws / 16)
    deviation = (bits * math.log(2) - nats.mean((1, 2))) / error
    # Two images, a false alarm in a million.
    assert deviation.abs().max() < 5.1
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = -(normal.cdf(x + w / 2) - normal.cdf(x - w / 2)).log2().mean((1, 2))
    assert (bits > exact).all() and (bits < exact + 0.05).all()


def test_bits_per_dimension_of_any_batch() -> None:
    flow = Glow((4, 4), steps=1, width=4)
    images = torch.arange(6 * 16).reshape(2, 3, 4, 4) / 255
    bits = flow.bits_per_dimension(images, seed=4, draws=2)
    assert bits.shape == (2, 3) and not bits.requires_grad
    assert torch.equal(bits, flow.bits_per_dimension(images, seed=4, draws=2))
    assert not torch.equal(bits, flow.bits_per_dimension(images, seed=5, draws=2))
    assert flow.bits_per_dimension(images[0, 0]).shape == ()
    assert flow.bits_per_dimension(images[:0]).shape == (0, 3)
    with pytest.raises(OptionError, match="draws: got 0"):
        flow.bits_per_dimension(images, draws=0)
    with pytest.raises(ShapeError, match="images: expected"):
        flow.bits_per_dimension(images[..., :3])


def test_many_images_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Glow((2, 2), levels=1, steps=1, width=2)
    sizes: list[int] = []
    plain = flow._bits

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return plain(x)

    monkeypatch.setattr(flow, "_bits", counting)
    assert flow.bits_per_dimension(torch.zeros(1200, 2, 2)).shape == (1200,)
    assert sizes == [500, 500, 200]


def test_a_few_seconds_teach_discs(rng: torch.Generator) -> None:
    centre = 2 + 4 * torch.rand(600, 2, 1, 1, generator=rng)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
    images = ((grid - centre).square().sum(1) < 6).float()
    flow = Glow((8, 8), steps=2, width=16)
    flow.prepare(images[:500])
    before = flow.bits_per_dimension(images[500:]).mean()
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        chosen = torch.randint(500, (50,), generator=rng)
        flow.loss(images[chosen], rng)["loss"].backward()
        optimiser.step()
    after = flow.bits_per_dimension(images[500:]).mean()
    assert after < before - 1
    rounded = {name: tensor.half() for name, tensor in flow.state_dict().items()}
    flow.load_state_dict(rounded)
    with torch.no_grad():
        assert (flow(flow.encode(images)) - images).abs().max() < 1e-5
        z = torch.randn(100, 64, generator=rng)
        # Where all images agree but for the noise, rounding a pixel near one, by up to 6e-8, is
        # magnified 255 sqrt(12) times; a few layers add to it.
        error = (flow.encode(flow(z)) - z).abs()
        assert error.max() < 1e-3 and error.square().mean().sqrt() < 1e-5


def test_the_default_is_small() -> None:
    flow = Glow((28, 28))
    values = sum(tensor.numel() for tensor in flow.state_dict().values())
    assert flow.latent_dim == 784 and values < 300_000


def test_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hundred million weights are not drawn here."""
    configs: list[GlowConfig] = []

    def keep(self: Trainable, config: GlowConfig, seed: int) -> None:
        configs.append(config)

    monkeypatch.setattr(Trainable, "__init__", keep)
    Glow.published()
    (config,) = configs
    assert config.image_shape == (3, 64, 64) and config.latent_dim == 12_288
    assert config.steps == (48, 48, 48, 1) and config.levels == 4
    assert config.width == 512 and config.quantisation == 2**5 and config.per_channel


def test_steps_of_each_level_can_differ() -> None:
    assert Glow((8, 8), steps=3, width=4).config.steps == (3, 3)
    flow = Glow((8, 8), steps=[1, 3], width=4)
    assert flow.config == GlowConfig((8, 8), steps=(1, 3), width=4)
    z = torch.zeros(64)
    assert flow(z).shape == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (64,)}, r"image_shape: expected \(y, x\) or \(channel, y, x\)"),
        ({"image_shape": (9, 8)}, r"levels: .* 2 need sides divisible by 2.*2, .*\(9, 8\)"),
        ({"image_shape": (28, 28), "levels": 3}, "3 need sides divisible by 2.*3, .*fewer levels"),
        ({"levels": 10**8}, "fewer levels"),
        ({"levels": 0}, "levels: got 0"),
        ({"steps": (1, 2, 3)}, r"steps: expected one number, or one for each of 2 levels"),
        ({"steps": 0}, "steps: got 0"),
        ({"width": 0}, "width: got 0"),
        ({"quantisation": 1}, "quantisation: got 1"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Glow(**{"image_shape": (8, 8), **arguments})
