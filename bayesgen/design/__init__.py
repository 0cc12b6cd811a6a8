"""Which measurement to take next: pools, acquisition functions and the loop."""

from __future__ import annotations

from bayesgen.design.acquisitions import ACQUISITIONS, Acquisition, Choice, as_acquisition
from bayesgen.design.belief import Belief
from bayesgen.design.botorch_adapter import BoTorch
from bayesgen.design.chance import EpsilonGreedy, RandomChoice
from bayesgen.design.estimation import (
    GoalVariance,
    InformationGain,
    PrincipalDirections,
    Variance,
)
from bayesgen.design.fixed import Equispaced, FixedOrder, LowFrequency, VariableDensity
from bayesgen.design.gaussian_maximum import UCB, MaxValueEntropy
from bayesgen.design.learned_orders import lbcs_order, pca_order
from bayesgen.design.loop import Loop, acquire
from bayesgen.design.maximum import ExpectedImprovement, QuantileUCB, Thompson
from bayesgen.design.mixture import NestedMonteCarlo, PairwiseEntropy
from bayesgen.design.pool import Pool
from bayesgen.design.records import Record
from bayesgen.design.simulate import simulate

__all__ = [
    "ACQUISITIONS",
    "UCB",
    "Acquisition",
    "Belief",
    "BoTorch",
    "Choice",
    "EpsilonGreedy",
    "Equispaced",
    "ExpectedImprovement",
    "FixedOrder",
    "GoalVariance",
    "InformationGain",
    "Loop",
    "LowFrequency",
    "MaxValueEntropy",
    "NestedMonteCarlo",
    "PairwiseEntropy",
    "Pool",
    "PrincipalDirections",
    "QuantileUCB",
    "RandomChoice",
    "Record",
    "Thompson",
    "Variance",
    "VariableDensity",
    "acquire",
    "as_acquisition",
    "lbcs_order",
    "pca_order",
    "simulate",
]
