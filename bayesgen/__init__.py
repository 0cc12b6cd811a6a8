"""Bayesian inversion with learned generative priors.

Write the inverse problem as a Pyro model, call `infer`, get draws, uncertainty maps and a verdict.
"""

from __future__ import annotations

from bayesgen import (
    covariances,
    datasets,
    design,
    distributions,
    importance,
    inference,
    latent_priors,
    models,
    operators,
    penalties,
    reconstruction,
    regularisers,
    starts,
    weights,
)
from bayesgen._version import __version__
from bayesgen.infer import infer
from bayesgen.log_density import LogDensity
from bayesgen.posterior import Posterior

__all__ = [
    "LogDensity",
    "Posterior",
    "__version__",
    "covariances",
    "datasets",
    "design",
    "distributions",
    "importance",
    "infer",
    "inference",
    "latent_priors",
    "models",
    "operators",
    "penalties",
    "reconstruction",
    "regularisers",
    "starts",
    "weights",
]
