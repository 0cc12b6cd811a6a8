"""Noise models, and Gaussian laws of images whose precision has a sparse factor."""

from __future__ import annotations

from bayesgen.distributions.base import Noise
from bayesgen.distributions.gaussian import GaussianNoise
from bayesgen.distributions.noise import (
    LaplaceNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    RicianNoise,
    StudentTNoise,
)
from bayesgen.distributions.structured import StructuredNormal

__all__ = [
    "Noise",
    "GaussianNoise",
    "LaplaceNoise",
    "StudentTNoise",
    "PoissonNoise",
    "PoissonGaussianNoise",
    "RicianNoise",
    "StructuredNormal",
]
