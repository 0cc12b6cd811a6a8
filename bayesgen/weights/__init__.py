r"""Regularisation weights chosen from the data, whatever the regulariser.

================= ============================= =================================================
function          needs                         chooses the weight
================= ============================= =================================================
`morozov`         y, sigma                      whose image fits the data as well as the truth does
`l_curve`         y                             at the corner of misfit against penalty
`sure`            y, sigma                      of least estimated error of the noise-free data
`gsure`           y, sigma, linear A            of least estimated error of what A sees of the image
`validation`      sigma, images like the one    of least error over those images, data simulated
                  sought
================= ============================= =================================================

Each takes an *estimator*, a function ``(y, weight) -> image``: a MAP estimate, a posterior mean, or
a reconstruction without a generator. The weight may be a penalty's or a prior's scale.
`empirical_bayes` instead takes a Pyro model with any number of such parameters as arguments, and
the values under which the data are most probable.
"""

from __future__ import annotations

from bayesgen.weights.choice import Choice
from bayesgen.weights.curve import l_curve
from bayesgen.weights.discrepancy import morozov
from bayesgen.weights.marginal import EmpiricalBayes, empirical_bayes
from bayesgen.weights.risk import gsure, sure
from bayesgen.weights.validation import validation

__all__ = [
    "Choice",
    "EmpiricalBayes",
    "empirical_bayes",
    "gsure",
    "l_curve",
    "morozov",
    "sure",
    "validation",
]
