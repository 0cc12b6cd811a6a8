from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bayesgen.models
from bayesgen.datasets import mnist_samples, multi_gradient_mnist, shapes
from bayesgen.errors import OptionError
from bayesgen.models import VAE, check_generator, load, names, save_generator
from bayesgen.models.evaluation import psnr
from bayesgen.models.evaluation.access import decode, prior_draws
from bayesgen.models.evaluation.latent import latent_vectors

# Decibels of images that were not trained on, from the encoder's latent vectors or, without an
# encoder, from the nearest ones: somewhat below what was measured when they were trained.
LEAST_PSNR = {
    "mnist-ae-8": 18.5,
    "mnist-gan-16": 17.0,
    "mnist-glow": 100.0,
    "mnist-structured-vae": 22.0,
    "mnist-vae": 21.0,
    "mnist-vae-32": 24.0,
    "mnist-vae-8": 18.5,
    "mnist-wgan-8": 14.0,
    "multi-gradient-gan": 18.0,
    "multi-gradient-vae": 24.0,
    "shapes-ae-10": 30.0,
    "shapes-structured-vae": 30.0,
    "shapes-vae-10": 32.0,
    "shapes-wgan-10": 20.0,
}


def unseen(name: str) -> Tensor:
    """Twenty images of the kind that a generator was trained on."""
    if name.startswith("shapes"):
        return shapes(20, seed=1)
    digits = mnist_samples().images
    return multi_gradient_mnist(digits, seed=1) if name.startswith("multi") else digits


def test_every_shipped_generator_is_tested() -> None:
    assert set(names()) == set(LEAST_PSNR)


@pytest.mark.parametrize("name", LEAST_PSNR)
def test_unseen_images_are_near_the_range(name: str) -> None:
    generator, images = load(name), unseen(name)
    found = generator(latent_vectors(generator, images))
    assert psnr(found, images).mean() > LEAST_PSNR[name]


@pytest.mark.parametrize("name", LEAST_PSNR)
def test_samples_are_like_images(name: str) -> None:
    """Mean and spread of the intensities of samples are those of images."""
    generator = load(name)
    # A flow, which maps onto the whole of R^n, may leave [0, 1] far behind for a few draws.
    samples = decode(generator, prior_draws(generator, 500, seed=0)).clamp(0, 1)
    images = unseen(name)
    assert abs(samples.mean() - images.mean()) < 0.05
    assert abs(samples.std() - images.std()) < 0.05
    # And they differ from each other as images do.
    assert samples.std(0).mean() > 0.6 * images.std(0).mean()


@pytest.mark.parametrize("name", LEAST_PSNR)
def test_every_shipped_generator_has_a_card(name: str) -> None:
    card = load(name).card
    wanted = {"command", "data", "evaluation", "images", "licence", "losses", "seed"}
    assert wanted | {"training_seconds"} <= card.keys()
    assert {"reconstruction_psnr", "energy_excess", "latent_effect"} <= card["evaluation"].keys()


def test_the_comparison_is_of_what_is_shipped() -> None:
    path = Path(bayesgen.__file__).parents[1] / "benchmarks" / "results" / "zoo.json"
    if not path.exists():
        pytest.skip("installed without the benchmarks")
    compared = json.loads(path.read_text())["generators"]
    assert set(compared) == set(names())
    for name, figures in compared.items():
        assert load(name).card["evaluation"].items() <= figures.items(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST_PSNR)
def test_shipped_generators_pass_the_checks(name: str) -> None:
    report = check_generator(load(name))
    assert report.passed, str(report)


def test_prior_agrees_with_encoded_digits() -> None:
    generator, (images, _) = load("mnist-vae"), mnist_samples()
    # The squared length of a standard normal vector, averaged over 20, has standard deviation 1.3.
    squares = generator.encode(images).square().sum(1).mean()
    assert 10 < squares < 25


def test_shipped_files_are_small() -> None:
    folder = Path(bayesgen.models.__file__).parent / "weights"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6


def test_load_takes_a_path(tmp_path: Path) -> None:
    model = VAE((8, 8), 2, width=8, channels=2)
    save_generator(model, tmp_path / "mine")
    assert torch.equal(load(tmp_path / "mine")(torch.zeros(2)), model(torch.zeros(2)))


def test_load_takes_classes_of_users(tmp_path: Path) -> None:
    class Mine(VAE):
        pass

    save_generator(Mine((8, 8), 2, width=8, channels=2), tmp_path / "mine")
    assert type(load(tmp_path / "mine", kinds=[Mine])) is Mine


def test_a_folder_is_no_generator(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no file of that name"):
        load(tmp_path)


def test_misspelt_name() -> None:
    with pytest.raises(OptionError, match=r"unknown value 'mnist-vea'.*did you mean 'mnist-vae'"):
        load("mnist-vea")
    assert "mnist-vae" in names()


def test_package_refuses_a_bare_name() -> None:
    """The link ``models`` at the top of the repository must not become a second package."""
    spec = importlib.util.spec_from_file_location("models", bayesgen.models.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=r"import bayesgen\.models"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert "models" not in sys.modules
