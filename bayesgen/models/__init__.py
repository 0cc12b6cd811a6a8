"""Generators: learned maps from latent vectors to images, their training and storage."""

from __future__ import annotations

if __name__ != "bayesgen.models":
    raise ImportError("import bayesgen.models; the top-level link 'models' is for browsing only")

from bayesgen.models import evaluation
from bayesgen.models.autoencoder import AE, AEConfig
from bayesgen.models.base import Generator
from bayesgen.models.checks import GeneratorReport, check_generator
from bayesgen.models.density_ratio import (
    DensityRatio,
    DensityRatioConfig,
    fine_tune,
    train_density_ratio,
)
from bayesgen.models.files import save_generator
from bayesgen.models.flow import Flow
from bayesgen.models.gan import GAN, WGAN, GANConfig, WGANConfig
from bayesgen.models.glow import Glow, GlowConfig
from bayesgen.models.linear import LinearConfig, LinearGenerator
from bayesgen.models.mixture import choose_components, fit_mixture
from bayesgen.models.networks import NetworkConfig
from bayesgen.models.real_nvp import RealNVP, RealNVPConfig
from bayesgen.models.settings import TrainingSettings
from bayesgen.models.structured_vae import StructuredVAE, StructuredVAEConfig
from bayesgen.models.trainable import Player, Stage, Trainable
from bayesgen.models.training import train
from bayesgen.models.vae import VAE, VAEConfig
from bayesgen.models.zoo import load, names

__all__ = [
    "AE",
    "GAN",
    "VAE",
    "WGAN",
    "AEConfig",
    "DensityRatio",
    "DensityRatioConfig",
    "Flow",
    "GANConfig",
    "Generator",
    "GeneratorReport",
    "Glow",
    "GlowConfig",
    "LinearConfig",
    "LinearGenerator",
    "NetworkConfig",
    "Player",
    "RealNVP",
    "RealNVPConfig",
    "Stage",
    "StructuredVAE",
    "StructuredVAEConfig",
    "Trainable",
    "TrainingSettings",
    "VAEConfig",
    "WGANConfig",
    "check_generator",
    "choose_components",
    "evaluation",
    "fine_tune",
    "fit_mixture",
    "load",
    "names",
    "save_generator",
    "train",
    "train_density_ratio",
]
