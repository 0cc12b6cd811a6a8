"""The report holds every measure, for every kind of generator, and its files can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayesgen.datasets import shapes
from bayesgen.errors import DataError, OptionError, ShapeError
from bayesgen.models import AE, GAN, VAE, WGAN, Glow, LinearGenerator, StructuredVAE, Trainable
from bayesgen.models.evaluation import evaluate
from bayesgen.models.evaluation.report import as_bytes

KINDS = {
    "ae": lambda: AE((8, 8), 3, width=16, channels=4),
    "vae": lambda: VAE((8, 8), 3, width=16, channels=4),
    "gan": lambda: GAN((8, 8), 3, width=16, channels=4),
    "wgan": lambda: WGAN((8, 8), 3, width=16, channels=4),
    "glow": lambda: Glow((8, 8), levels=1, steps=1, width=4),
    "structured": lambda: StructuredVAE((8, 8), 3, width=16, channels=4, radius=1),
    "diagonal": lambda: StructuredVAE((8, 8), 3, width=16, channels=4, covariance="diagonal"),
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return shapes(160, seed=0)[:, ::7, ::7].clone()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gets_a_report(kind: str, images: Tensor, tmp_path: Path) -> None:
    generator = KINDS[kind]()
    if isinstance(generator, Trainable):
        generator.prepare(images)
    generator = generator.eval().requires_grad_(False)
    labels = torch.arange(160) % 2
    said: list[str] = []
    found = evaluate(
        generator, images, samples=60, reference=(images, labels), progress=said.append
    )
    questions = {row.criterion for row in found.rows}
    assert questions == {"range", "samples", "smooth", "latent law", "far away"}
    assert all(row.wanted and row.value and "nan" not in row.value for row in found.rows)
    assert len(said) == 5
    assert {each.criterion for each in found.verdict.criteria} == questions
    written = found.save(tmp_path / "report")
    names = {path.name for path in written}
    expected = {"samples.png", "reconstructions.png", "interpolation.png", "latent.png", "far.png"}
    assert expected | {"evaluation.md", "evaluation.json"} <= names
    assert ("covariance.png" in names) == isinstance(generator, StructuredVAE)
    assert all(path.stat().st_size > 0 for path in written)
    # Infinities, as of exact reconstructions and missing labels, are no JSON.
    assert json.dumps(found.measures, allow_nan=False)
    numbers = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert numbers == found.measures
    residual = found.reconstruction.nearest.images - images
    assert numbers["reconstruction"]["residual"] == pytest.approx(
        residual.square().mean().sqrt().item(), rel=1e-4, abs=1e-6
    )
    assert any("drawn residuals" in row.name for row in found.rows) == (
        isinstance(generator, StructuredVAE)
    )
    likelihood = {"glow", "vae", "structured", "diagonal"}
    assert ("likelihood" in numbers) == (kind in likelihood)


def test_a_perfect_generator_is_told_from_a_poor_one() -> None:
    """Images drawn from the generator itself, against those of one without contrast."""
    rng = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(8, 8, 3, generator=rng)
    good = LinearGenerator.from_tensors(weight, torch.full((8, 8), 0.5), 0.01)
    poor = LinearGenerator.from_tensors(0.5 * weight, torch.full((8, 8), 0.5), 0.01)
    images = good(torch.randn(1200, 3, generator=rng)).clamp(0, 1)
    reports = {
        name: evaluate(g, images).measures for name, g in {"good": good, "poor": poor}.items()
    }
    accuracy = {name: r["two_sample_test"]["accuracy"] for name, r in reports.items()}
    assert accuracy["good"] < 0.6 < 0.65 < accuracy["poor"]
    energy = {
        name: r["divergences"]["distances"]["energy"]["excess"]["value"]
        for name, r in reports.items()
    }
    assert abs(energy["good"]) < 0.2 * energy["poor"]
    effect = {name: r["latent"]["effect"] for name, r in reports.items()}
    assert effect["good"] < 0.02 < effect["poor"]
    status = {
        name: {each["criterion"]: each["status"] for each in r["verdict"]["criteria"]}
        for name, r in reports.items()
    }
    assert status["good"]["latent law"] == status["good"]["samples"] == "good"
    assert status["poor"]["latent law"] == "poor" and status["poor"]["samples"] == "fair"
    assert reports["good"]["latent"]["std"] == pytest.approx(1, abs=0.1)
    assert reports["poor"]["latent"]["std"] == pytest.approx(2, abs=0.2)


def test_same_seed_same_report(images: Tensor) -> None:
    generator = VAE((8, 8), 3, width=16, channels=4).eval().requires_grad_(False)
    one, same = (evaluate(generator, images, samples=60, seed=3).measures for _ in range(2))
    assert one == same


def test_bytes_are_those_of_stored_images() -> None:
    x = torch.tensor([[-0.1, 0.0, 0.5, 0.7001, 1.2]])
    assert torch.equal(as_bytes(x), torch.tensor([[0, 0, 128, 179, 255]]) / 255)


def test_bad_input_is_refused_at_the_door(images: Tensor) -> None:
    generator = VAE((8, 8), 3, width=16, channels=4)
    with pytest.raises(ShapeError, match="at least 40"):
        evaluate(generator, images[:39])
    with pytest.raises(ShapeError, match="images"):
        evaluate(generator, images[:, :7])
    with pytest.raises(DataError, match="NaN"):
        evaluate(generator, images * float("nan"))
    with pytest.raises(DataError, match="images: all are black"):
        evaluate(generator, torch.zeros_like(images))
    with pytest.raises(OptionError, match="samples"):
        evaluate(generator, images, samples=0)
