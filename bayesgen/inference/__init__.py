"""Inference methods: settings of algorithms from the literature, batched over chains."""

from __future__ import annotations

if __name__ != "bayesgen.inference":
    raise ImportError("import bayesgen.inference, not the top-level link to its folder")

from bayesgen.errors import OptionError, unknown_option
from bayesgen.inference.annealed_langevin import AnnealedLangevin
from bayesgen.inference.automatic import choose_method
from bayesgen.inference.base import Drawn, Method, Optimiser, Population, Sampler
from bayesgen.inference.chees import ChEES
from bayesgen.inference.dwls import DWLS, discriminator_weighted
from bayesgen.inference.gibbs import Gibbs
from bayesgen.inference.hmc import HMC
from bayesgen.inference.langevin import ULA
from bayesgen.inference.laplace_mixture import LaplaceMixture
from bayesgen.inference.mala import MALA
from bayesgen.inference.map import MAP
from bayesgen.inference.neutra import NeuTra
from bayesgen.inference.nuts import NUTS
from bayesgen.inference.parallel_tempering import ParallelTempering
from bayesgen.inference.pcn import PCN
from bayesgen.inference.proximal_langevin import MYULA, PMALA
from bayesgen.inference.runner import (
    Run,
    Step,
    run_optimiser,
    run_population,
    run_sampler,
)
from bayesgen.inference.skrock import SKROCK
from bayesgen.inference.smc import SMC
from bayesgen.inference.variational import Variational

_METHODS: tuple[type[Method], ...] = (
    MAP,
    HMC,
    NUTS,
    ChEES,
    MALA,
    PCN,
    PMALA,
    SMC,
    ParallelTempering,
    ULA,
    MYULA,
    SKROCK,
    AnnealedLangevin,
    Gibbs,
    DWLS,
    NeuTra,
    LaplaceMixture,
    Variational,
)
METHODS: dict[str, type[Method]] = {cls.name: cls for cls in _METHODS}


def as_method(method: str | Method, argument: str = "method") -> Method:
    """The method of that name with its default settings, or the method itself.

    Raises
    ------
    OptionError
        If the name is unknown; the message lists those that exist.

    Examples
    --------
    >>> as_method("mala")
    MALA(target_acceptance=0.574, step_size=None, adapt_mass=True)
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if not isinstance(method, str) or method not in METHODS:
        raise OptionError(unknown_option(argument, str(method), METHODS))
    return METHODS[method]()


__all__ = [
    "DWLS",
    "HMC",
    "MALA",
    "MAP",
    "METHODS",
    "MYULA",
    "NUTS",
    "PCN",
    "PMALA",
    "SKROCK",
    "SMC",
    "ULA",
    "AnnealedLangevin",
    "ChEES",
    "Drawn",
    "Gibbs",
    "LaplaceMixture",
    "Method",
    "NeuTra",
    "Optimiser",
    "ParallelTempering",
    "Population",
    "Run",
    "Sampler",
    "Step",
    "Variational",
    "as_method",
    "choose_method",
    "discriminator_weighted",
    "run_optimiser",
    "run_population",
    "run_sampler",
]
