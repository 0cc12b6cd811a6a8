"""Density ratios: learned ones against those in closed form, and bounds that hold.

Networks are trained on fixed seeds; their tolerances are stated where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import DataError, DtypeError, ModelError, OptionError, ShapeError
from bayesgen.inference.dwls import DWLS
from bayesgen.models import GAN, WGAN, LinearGenerator, TrainingSettings
from bayesgen.models.base import Generator
from bayesgen.models.density_ratio import (
    DensityRatio,
    DensityRatioConfig,
    bounded,
    cross_entropies,
    fine_tune,
    judge,
    train_density_ratio,
)

float64 = torch.float64
SHIFT = torch.tensor([1.0, -0.5])
QUICK = TrainingSettings(epochs=8, learning_rate=2e-3, patience=3)


def plane(shift: Tensor | float = 0.0) -> LinearGenerator:
    """G(z) ~ N(shift, I) in the plane."""
    return LinearGenerator.from_tensors(torch.eye(2), torch.zeros(2) + shift, noise_level=0.0)


def shifted(num: int, seed: int = 5) -> Tensor:
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(seed)) + SHIFT


def exact(x: Tensor) -> Tensor:
    """log N(x; s, I) / N(x; 0, I)."""
    return x @ SHIFT.to(x) - 0.5 * float(SHIFT.square().sum())


@pytest.fixture(scope="module")
def ratio() -> DensityRatio:
    return train_density_ratio(plane(), shifted(6000), QUICK, width=32)


def error(estimate: Callable[[Tensor], Tensor]) -> float:
    """Root mean square over images and samples alike; the exact one varies by 1.3."""
    x = torch.cat([shifted(2000, seed=6), shifted(2000, seed=7) - SHIFT])
    return float((estimate(x) - exact(x)).square().mean().sqrt())


def test_the_ratio_of_two_gaussians(ratio: DensityRatio) -> None:
    assert error(ratio) < 0.15


@pytest.mark.parametrize("mutant", ["opposite", "probability", "half", "other samples"])
def test_wrong_ratios_are_rejected(mutant: str, ratio: DensityRatio) -> None:
    if mutant == "other samples":
        wrong: Callable[[Tensor], Tensor] = train_density_ratio(
            plane(0.5), shifted(3000), QUICK, width=32
        )
    else:
        functions = {
            "opposite": lambda d: -d,
            "probability": torch.sigmoid,
            "half": lambda d: d / 2,
        }
        wrong = lambda x: functions[mutant](ratio(x))  # noqa: E731
    assert error(wrong) > 0.3


def test_the_card_says_how_good_it_is(ratio: DensityRatio) -> None:
    found = ratio.card["held_out"]
    x = shifted(200_000, seed=8)
    # What the best classifier of all attains; four standard errors.
    best = float(cross_entropies(exact(x), exact(x - SHIFT)).mean())
    assert abs(found["cross_entropy"] - best) < 4 * found["standard_error"] < 0.1
    assert found["cross_entropy"] < ratio.card["before"]["cross_entropy"] < math.log(2) + 0.1
    # Accuracy and slope have standard errors of some 0.02 and 0.08.
    accuracy = float(torch.special.ndtr(SHIFT.norm() / 2))
    assert abs(found["accuracy"] - accuracy) < 0.08
    assert abs(found["slope"] - 1) < 0.3 and abs(found["offset"]) < 0.3
    # E exp(2 d) = exp(|s|^2) for samples of the generator.
    assert abs(found["effective_share"] - math.exp(-float(SHIFT.square().sum()))) < 0.15
    assert found["images"] == 600 and ratio.card["generator"] == "LinearGenerator"
    assert len(ratio.card["history"]) <= 8 and ratio.card["settings"]["epochs"] == 8


def test_it_corrects_the_prior_of_its_generator(ratio: DensityRatio) -> None:
    """With data that hardly tell, the weighted posterior is the law of the images."""
    G = plane()

    def model(y: Tensor) -> None:
        x = pyro.deterministic("x", G(pyro.sample("z", G.prior())))
        pyro.sample("y", dist.Normal(x, 50.0).to_event(1), obs=y)

    method = DWLS(discriminator=ratio)
    posterior = bg.infer(
        model, torch.zeros(2), method=method, chains=8, draws=100, warmup=100, progress=False
    )
    # The chains' error is about 0.05, the network's 0.1; N(0, I) is ten times as far.
    assert float((posterior.mean("x") - SHIFT).norm()) < 0.3
    assert float((posterior.std("x") - 1.0).abs().max()) < 0.25


def test_the_seed_decides_all() -> None:
    settings = TrainingSettings(epochs=3, learning_rate=1e-2)
    first, again, other = (
        train_density_ratio(plane(), shifted(1000), settings, width=8, seed=seed)
        for seed in (1, 1, 2)
    )
    x = shifted(10)
    assert torch.equal(first(x), again(x)) and first.card == again.card
    assert not torch.equal(first(x), other(x))


def test_log_odds_are_bounded_everywhere(ratio: DensityRatio) -> None:
    far = 1e6 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    assert float(ratio(far).abs().max()) <= ratio.bound * (1 + 1e-6)
    scale, offset = ratio.calibration.tolist()
    assert ratio.bound == abs(scale) * 10.0 + abs(offset) == ratio.card["bound"]
    scores = torch.tensor([-1e30, 0.0, 1e30])
    torch.testing.assert_close(bounded(scores, 3.0), torch.tensor([-3.0, 0.0, 3.0]))


def test_batches_types_and_what_does_not_fit(ratio: DensityRatio) -> None:
    x = shifted(12)
    torch.testing.assert_close(ratio(x.reshape(3, 4, 2)), ratio(x).reshape(3, 4))
    assert ratio(x[0]).shape == () and ratio(x[:0]).shape == (0,)
    assert not ratio.training and not any(p.requires_grad for p in ratio.parameters())
    with pytest.raises(ShapeError, match=r"expected images \(\*batch, 2\), got \(12, 3\)"):
        ratio(torch.zeros(12, 3))
    with pytest.raises(DtypeError, match=r"is torch.float64 on cpu.*weights are torch.float32"):
        ratio(x.double())
    with pytest.raises(ShapeError, match="got list"):
        ratio([1.0, 2.0])


def test_weights_can_be_stored_and_loaded(ratio: DensityRatio) -> None:
    other = DensityRatio(ratio.config, seed=1)
    x = shifted(10)
    assert not torch.equal(other(x), ratio(x))
    other.load_state_dict(ratio.state_dict())
    assert torch.equal(other(x), ratio(x))


@pytest.mark.parametrize("shape", [(8, 8), (2, 5, 9), (3, 3), (2, 2, 2, 2)])
def test_any_shape_of_image(shape: tuple[int, ...]) -> None:
    ratio = DensityRatio(DensityRatioConfig(shape, width=4, channels=2)).double()
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=float64)
    x.requires_grad_()
    found = ratio(x)
    assert found.shape == (2, 3)
    # Images of a batch do not see each other, and each has a gradient.
    torch.testing.assert_close(ratio(x[1, 2]), found[1, 2])
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert bool((gradient.flatten(2).norm(dim=-1) > 0).all())


# ---------------------------------------------------------------------------- images, fine-tuning


class Spots(Generator):
    """A bright pixel on a dark ground, at a place that the latent vector chooses."""

    def __init__(self, level: float) -> None:
        super().__init__((8, 8), 2)
        self.level = level

    def decode(self, z: Tensor) -> Tensor:
        axis = torch.arange(8, dtype=z.dtype) - 3.5
        rows, columns = (torch.exp(-0.5 * (axis - z[..., i, None]).square()) for i in range(2))
        return self.level * rows[..., :, None] * columns[..., None, :]


def spots(num: int, level: float = 0.6, seed: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(num, 2, generator=rng)
    noise = 0.05 * torch.randn(num, 8, 8, generator=rng)
    return (Spots(level)(z) + noise).clamp(0, 1)


@pytest.fixture(scope="module")
def D() -> GAN:
    """A discriminator that knows spots from something else."""
    G = GAN((8, 8), 2, width=16, channels=4)
    return bg.models.train(G, spots(1000), TrainingSettings(epochs=2), progress=False)[0]


def test_a_discriminator_learns_another_generators_samples(D: GAN) -> None:
    before = {name: tensor.clone() for name, tensor in D.state_dict().items()}
    images = spots(2000)
    with pytest.warns(RuntimeWarning, match="tells real from generated images almost without"):
        tuned = fine_tune(D, Spots(0.9), images, TrainingSettings(epochs=20, learning_rate=1e-2))
    was, found = tuned.card["before"], tuned.card["held_out"]
    assert found["cross_entropy"] < 0.05 < was["cross_entropy"]
    # However far it is trained, and wherever it is asked.
    assert float(tuned(images).abs().max()) <= tuned.bound
    assert float(tuned(1e4 * images).abs().max()) <= tuned.bound * (1 + 1e-6)
    assert float(tuned.network(1e4 * images[:, None]).abs().max()) > 100 * tuned.bound
    assert all(torch.equal(before[name], tensor) for name, tensor in D.state_dict().items())


def test_fine_tuning_starts_from_the_log_odds_it_is_given(D: GAN) -> None:
    settings = TrainingSettings(epochs=1, learning_rate=1e-12)
    with pytest.warns(RuntimeWarning, match="almost without error"):
        tuned = fine_tune(D, D, spots(1000), settings, bound=1e3)
    x = spots(50, seed=4)
    scale, offset = tuned.calibration
    torch.testing.assert_close(tuned(x), scale * D.discriminate(x) + offset, rtol=1e-3, atol=1e-3)
    assert judge(D.discriminate, x, x)["cross_entropy"] >= math.log(2) - 1e-6


def test_a_density_ratio_can_be_fine_tuned(ratio: DensityRatio) -> None:
    """To N(1/2, I): the right answer for another generator, and not for its own."""
    weights = {name: tensor.clone() for name, tensor in ratio.state_dict().items()}
    tuned = fine_tune(ratio, plane(0.5), shifted(4000), QUICK)
    x = shifted(2000, seed=6)
    right = exact(x) - (0.5 * x.sum(-1) - 0.25)
    assert float((tuned(x) - right).square().mean().sqrt()) < 0.2
    assert error(tuned) > 0.3
    assert all(torch.equal(weights[name], tensor) for name, tensor in ratio.state_dict().items())


def test_double_precision_follows_the_generator() -> None:
    settings = TrainingSettings(epochs=1)
    found = train_density_ratio(plane().double(), shifted(1000), settings, width=8)
    assert found(shifted(3).double()).dtype == float64


# ---------------------------------------------------------------------------- what is refused


class Broken(Generator):
    def decode(self, z: Tensor) -> Tensor:
        return z / 0.0


@pytest.mark.parametrize(
    ("G", "images", "options", "kind", "message"),
    [
        (None, shifted(1000), {}, DtypeError, "G: expected a Generator, got NoneType"),
        (plane(), torch.zeros(1000, 3), {}, ShapeError, "images: expected shape"),
        (plane(), shifted(1000) * math.nan, {}, DataError, "NaN or infinity"),
        (Spots(0.5), spots(1000) + 1, {}, DataError, r"intensities in \[0, 1\]"),
        (plane(), shifted(990), {}, OptionError, "images: got 990; expected at least 1000"),
        (plane(), shifted(1000), {"bound": 0.0}, OptionError, "bound: got 0.0"),
        (plane(), shifted(1000), {"width": 1}, OptionError, "width: got 1"),
        (plane(), shifted(1000), {"seed": -1}, OptionError, "seed: got -1"),
        (plane(), shifted(1000), {"wide": 9}, TypeError, "unknown option 'wide'.*'width'"),
        (Broken((2,), 2), shifted(1000), {}, ModelError, "samples are not finite"),
    ],
)
def test_what_cannot_be_trained(
    G: Any, images: Tensor, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        train_density_ratio(G, images, QUICK, **options)


def test_what_cannot_be_fine_tuned(D: GAN) -> None:
    with pytest.raises(DtypeError, match="D: expected a GAN or a DensityRatio.*got WGAN"):
        fine_tune(WGAN((8, 8), 2), Spots(0.5), spots(1000))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"D: is for images of shape \(8, 8\), but those of G"):
        fine_tune(D, plane(), shifted(1000))


def test_images_like_the_samples_teach_nothing() -> None:
    with pytest.warns(RuntimeWarning, match="has learned nothing that holds for other images"):
        train_density_ratio(
            plane(SHIFT), shifted(1000), TrainingSettings(epochs=5, learning_rate=1e-2)
        )
