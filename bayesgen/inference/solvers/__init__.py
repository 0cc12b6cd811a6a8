"""Minimisers of minus a log density, for batches of independent problems."""

from __future__ import annotations

from typing import Any

from bayesgen.inference.solvers.least_squares import LevenbergMarquardt
from bayesgen.inference.solvers.palm import PALM, Alternating
from bayesgen.inference.solvers.panoc import PANOC
from bayesgen.inference.solvers.problem import Objective, SolverSettings, SolverState
from bayesgen.inference.solvers.smooth import LBFGS, Adam, GradientDescent

SOLVERS: dict[str, Any] = {
    "levenberg-marquardt": LevenbergMarquardt,
    "lbfgs": LBFGS,
    "panoc": PANOC,
    "palm": PALM,
    "alternating": Alternating,
    "gradient-descent": GradientDescent,
    "adam": Adam,
}

__all__ = ["SOLVERS", "Objective", "SolverSettings", "SolverState"]
