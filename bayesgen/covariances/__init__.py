r"""What a generator leaves out of images: covariances of x - G(z), and how to learn them.

Single images deviate by :math:`x - G(z) = s u` with :math:`u \sim N(0, C)`. `residual_covariance`
finds C, and the law of s, from images that the generator has not been trained on:

================ ======================================== ======================================
kind             C                                        for
================ ======================================== ======================================
``"isotropic"``  `Isotropic`: white noise                 comparison
``"diagonal"``   `Diagonal`: independent pixels           comparison
``"dense"``      `Dense`                                  up to 4096 pixels
``"low_rank"``   `LowRank`: some modes and a diagonal     images of any size
``"stationary"`` `Stationary`: the same everywhere        any size, and few images to learn from
``"structured"`` `Structured`: from the generator         generators that do, for each z
================ ======================================== ======================================

Give it to `bayesgen.regularisers.soft_range`.
"""

from __future__ import annotations

from bayesgen.covariances.residuals import Structured, residual_covariance
from bayesgen.covariances.storage import load_covariance, names, save_covariance
from bayesgen.distributions.covariance import Covariance, Diagonal, Isotropic
from bayesgen.distributions.dense_covariance import Dense, LowRank
from bayesgen.distributions.stationary import Stationary

__all__ = [
    "Covariance",
    "Isotropic",
    "Diagonal",
    "Dense",
    "LowRank",
    "Stationary",
    "Structured",
    "residual_covariance",
    "save_covariance",
    "load_covariance",
    "names",
]
