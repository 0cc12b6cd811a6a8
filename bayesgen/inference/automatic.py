"""Which method suits a model: by its size, its kinks, its Gaussian parts and its priors."""

from __future__ import annotations

from collections.abc import Iterable

from bayesgen.inference.base import Method
from bayesgen.inference.gibbs import Gibbs, blocks_of
from bayesgen.inference.hmc import HMC
from bayesgen.inference.nuts import NUTS
from bayesgen.inference.pcn import PCN
from bayesgen.inference.proximal_langevin import PMALA
from bayesgen.inference.skrock import SKROCK
from bayesgen.inference.smc import SMC
from bayesgen.log_density import LogDensity

# Unknowns up to which some hundred particles cover the prior, as measured on latent spaces.
_TEMPERED = 64
# Unknowns up to which the step of a proximal Metropolis proposal stays long enough.
_METROPOLIS = 256
# Share of the unknowns from which on normal priors, or Gaussian sites, decide.
_MOST = 0.5


def choose_method(log_density: LogDensity, *, temper: bool = True) -> tuple[Method, str]:
    """The method that suits a model, with its default settings, and why.

    - A likelihood without a gradient: `SMC` or `PCN`, by walks that need none.
    - All sites Gaussian given the data, most of many unknowns Gaussian given the others, or a
      Laplace prior whose site enters linearly: `Gibbs`, which draws those exactly.
    - Other priors with kinks: `PMALA` up to 256 unknowns; beyond, `SKROCK`, which is biased.
    - Up to 64 unknowns with proper priors: `SMC`, which finds several modes.
    - Else `HMC` with the prior integrated exactly if most of the priors are normal, or `NUTS`.

    Parameters
    ----------
    log_density
        The conditioned model.
    temper
        Whether methods that begin at draws from the prior, and take no warm-up, may be chosen.

    Returns
    -------
    method, reason
        The reason is one sentence that names the sites and their sizes.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    ...     pyro.sample("y", dist.Normal(z.tanh(), 0.1).to_event(1), obs=y)
    >>> method, reason = choose_method(LogDensity(model, torch.zeros(8)))
    >>> method.name, reason
    ('smc', 'z (8 unknowns) has a smooth density and a proper prior, and is small enough to temper \
from the prior, which finds several modes')
    """
    return (
        _without_gradient(log_density, temper)
        or _gaussian(log_density)
        or _with_kinks(log_density)
        or _smooth(log_density, temper)
    )


def _without_gradient(log_density: LogDensity, temper: bool) -> tuple[Method, str] | None:
    flat = log_density.sites_without_gradient
    if not flat:
        return None
    why = f"the likelihood has no gradient with respect to {_named(log_density, flat)}"
    if temper and not log_density.improper_priors and log_density.vectorised:
        return SMC(kernel="pcn"), f"{why}, and particles can walk without one"
    return PCN(), f"{why}, and the chain walks without one"


def _gaussian(log_density: LogDensity) -> tuple[Method, str] | None:
    blocks, kinks = blocks_of(log_density), set(log_density.proximal)
    named = _named(log_density, blocks)
    if not blocks or not kinks <= set(blocks):
        return None
    rest = _named(log_density, blocks.refused)
    others = f", and {rest} {_verb(blocks.refused, 'follows', 'follow')} by HMC" if rest else ""
    if kinks:
        return Gibbs(), (
            f"the Laplace prior of {_named(log_density, kinks)} is a mixture of normal ones, so "
            f"that {named} can be drawn exactly{others}"
        )
    if not rest:
        return Gibbs(), f"the posterior of {named} is Gaussian and can be drawn from exactly"
    inside = log_density.num_dims - len(blocks.rest)
    if log_density.num_dims > _TEMPERED and inside >= _MOST * log_density.num_dims:
        verb = _verb(blocks, "is", "are")
        return Gibbs(), f"{named} {verb} Gaussian given the rest and drawn exactly{others}"
    return None


def _with_kinks(log_density: LogDensity) -> tuple[Method, str] | None:
    kinks = log_density.proximal
    if not kinks:
        return None
    why = (
        f"the {_verb(kinks, 'prior', 'priors')} of {_named(log_density, kinks)} "
        f"{_verb(kinks, 'has', 'have')} kinks, which only proximal steps respect"
    )
    if log_density.num_dims <= _METROPOLIS:
        return PMALA(), f"{why}, and the model is small enough to correct them by a Metropolis test"
    return SKROCK(), (
        f"{why}, and with {log_density.num_dims} unknowns a Metropolis test would make them short: "
        "draws are slightly biased"
    )


def _smooth(log_density: LogDensity, temper: bool) -> tuple[Method, str]:
    sites = log_density.sites.latent
    named = _named(log_density, sites)
    improper = log_density.improper_priors
    if temper and log_density.num_dims <= _TEMPERED and not improper and log_density.vectorised:
        return SMC(), (
            f"{named} {_verb(sites, 'has', 'have')} a smooth density and "
            f"{_verb(sites, 'a proper prior', 'proper priors')}, and "
            f"{_verb(sites, 'is', 'are')} small enough to temper from the prior, which finds "
            "several modes"
        )
    if improper:
        against = f"the {_verb(improper, 'prior', 'priors')} of {_named(log_density, improper)} "
        against += f"{_verb(improper, 'is', 'are')} improper, so that nothing can be tempered from"
    elif not temper:
        against = "chains were asked for, by a start, a warm-up or thinning"
    elif not log_density.vectorised:
        against = "the model runs in a loop, too slowly for the particles of tempering"
    else:
        against = f"{log_density.num_dims} unknowns are too many to temper from the prior"
    normal = int((log_density.normal_prior[1] > 0).sum())
    if normal >= _MOST * log_density.num_dims > _MOST * _TEMPERED:
        return HMC(splitting="prior"), (
            f"{named} {_verb(sites, 'has', 'have')} a smooth density, {against}, and {normal} "
            "unknowns have normal priors, which the integrator solves exactly"
        )
    return NUTS(), (
        f"{named} {_verb(sites, 'has', 'have')} a smooth density, {against}, and trajectories "
        "find their own length"
    )


def _named(log_density: LogDensity, names: Iterable[str]) -> str:
    """Sites in the order of the model, with their sizes."""
    chosen = set(names)
    parts = []
    for site in log_density.sites.latent.values():
        size = site.stop - site.start
        if site.name in chosen:
            parts.append(f"{site.name} ({size} unknown{'s' if size > 1 else ''})")
    return ", ".join([*parts[:-2], " and ".join(parts[-2:])])


def _verb(sites: Iterable[str], one: str, several: str) -> str:
    return one if len(list(sites)) == 1 else several
