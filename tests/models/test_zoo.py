from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import bayesgen.models
from bayesgen.datasets import mnist_samples
from bayesgen.errors import OptionError
from bayesgen.models import VAE, load, names, save_generator


def test_shipped_generator_reconstructs_unseen_digits() -> None:
    generator, (images, _) = load("mnist-vae"), mnist_samples()
    mse = (generator(generator.encode(images)) - images).square().mean((1, 2))
    assert (-10 * mse.log10()).mean() > 21


def test_shipped_generator_has_a_card() -> None:
    card = load("mnist-vae").card
    assert {"command", "data", "evaluation", "licence", "losses", "training_seconds"} <= card.keys()


def test_prior_agrees_with_encoded_digits() -> None:
    generator, (images, _) = load("mnist-vae"), mnist_samples()
    # The squared length of a standard normal vector, averaged over 20, has standard deviation 1.3.
    squares = generator.encode(images).square().sum(1).mean()
    assert 10 < squares < 25


def test_shipped_file_is_small() -> None:
    folder = Path(bayesgen.models.__file__).parent / "weights"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6


def test_load_takes_a_path(tmp_path: Path) -> None:
    model = VAE((8, 8), 2, width=8, channels=2)
    save_generator(model, tmp_path / "mine")
    assert torch.equal(load(tmp_path / "mine")(torch.zeros(2)), model(torch.zeros(2)))


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
