"""Noise models, Gaussian laws with sparse precision factors, and total variation, for images."""

from __future__ import annotations

from bayesgen.distributions.base import Noise
from bayesgen.distributions.deviation import DataSpectrum, IntegratedDeviation
from bayesgen.distributions.gaussian import GaussianNoise
from bayesgen.distributions.integrated import Deviation, ImageGivenData
from bayesgen.distributions.iterated_deviation import IteratedDeviation
from bayesgen.distributions.noise import (
    LaplaceNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    RicianNoise,
    StudentTNoise,
)
from bayesgen.distributions.structured import StructuredNormal
from bayesgen.distributions.structured_deviation import StructuredDeviation
from bayesgen.distributions.total_variation import TotalVariation

__all__ = [
    "Noise",
    "GaussianNoise",
    "LaplaceNoise",
    "StudentTNoise",
    "PoissonNoise",
    "PoissonGaussianNoise",
    "RicianNoise",
    "DataSpectrum",
    "Deviation",
    "ImageGivenData",
    "IntegratedDeviation",
    "IteratedDeviation",
    "StructuredDeviation",
    "StructuredNormal",
    "TotalVariation",
]
