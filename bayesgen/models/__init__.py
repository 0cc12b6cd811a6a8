"""Generators: learned maps from latent vectors to images, their training and storage."""

from __future__ import annotations

if __name__ != "bayesgen.models":
    raise ImportError("import bayesgen.models; the top-level link 'models' is for browsing only")

from bayesgen.models.base import Generator
from bayesgen.models.checks import GeneratorReport, check_generator
from bayesgen.models.files import save_generator
from bayesgen.models.training import TrainingSettings, train
from bayesgen.models.vae import VAE, VAEConfig
from bayesgen.models.zoo import load, names

__all__ = [
    "VAE",
    "Generator",
    "GeneratorReport",
    "TrainingSettings",
    "VAEConfig",
    "check_generator",
    "load",
    "names",
    "save_generator",
    "train",
]
