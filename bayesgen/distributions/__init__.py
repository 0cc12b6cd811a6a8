"""Noise models: how data scatters about what the forward operator predicts."""

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

__all__ = [
    "Noise",
    "GaussianNoise",
    "LaplaceNoise",
    "StudentTNoise",
    "PoissonNoise",
    "PoissonGaussianNoise",
    "RicianNoise",
]
