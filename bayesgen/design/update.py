"""How the posterior follows the data: led on from the last one, or begun at the prior again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from bayesgen.errors import ModelError, OptionError, ResultError
from bayesgen.inference import SMC, Method, Population
from bayesgen.posterior import Posterior

# Standard deviations of the weights' logarithm between two posteriors, summed along the way, beyond
# which the new one may be where hardly a particle of the old one is, or comes to be.
_FAR = 6.0
# How much larger the logarithm of the evidence must be for particles that came so far to be
# preferred. Unbiased as both estimates are, a population that misses a mode mostly shows it.
_MARGIN = 3.0


def updated(run: Callable[[Any], Posterior], known: Posterior | None, method: Method) -> Posterior:
    """The posterior given further data.

    Parameters
    ----------
    run
        Makes it, given where to start: ``"prior"`` or a posterior.
    known
        The last posterior, if it may be started at.
    method
        Sampler.
    """
    # Approximations are fitted anew each time; there is nothing to carry on.
    if known is None or (isinstance(method, Population) and not method.starts_at_prior):
        return run("prior")
    try:
        carried = run(known)
    except (OptionError, ModelError) as error:
        # Of other sites, or of particles all of which the new data rule out.
        warnings.warn(
            f"the last posterior cannot be carried on, and this one begins at the prior: {error}",
            RuntimeWarning,
            stacklevel=6,
        )
        return run("prior")
    if not isinstance(method, SMC) or _distance(carried, method) < _FAR:
        return carried
    try:
        fresh = run("prior")
    except ModelError:
        # No draw of the prior explains the data at all.
        return carried
    return carried if _evidence(carried) > _evidence(fresh) + _MARGIN else fresh


def _distance(carried: Posterior, method: SMC) -> float:
    """How far particles have come: weights of a temperature keep the fraction exp(-distance^2)."""
    return float(carried.stats["temperatures"].double().mean()) * (-math.log(method.alpha)) ** 0.5


def _evidence(posterior: Posterior) -> float:
    """Logarithm of the mean evidence over populations; NaN if it is not known."""
    try:
        found = posterior.log_evidence
    except ResultError:
        return math.nan
    return float(found.logsumexp(-1).mean()) - math.log(found.shape[-1])
