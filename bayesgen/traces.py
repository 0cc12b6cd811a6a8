"""What one run of a Pyro model says of its sites: their laws, and what each adds to the density."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor


def sample_nodes(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and node of every sample statement."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
            yield name, dict(site)


def is_generated(site: Mapping[str, Any]) -> bool:
    """Whether a site is to be drawn once the others are known."""
    infer = site["infer"] or {}
    return bool(infer.get("generated")) and not site["is_observed"]


def base_law(law: Any) -> Any:
    """A distribution without what makes events of it."""
    while isinstance(law, torch.distributions.Independent):
        law = law.base_dist
    return law


def log_prob_of_sites(trace: poutine.Trace) -> Iterator[tuple[str, Tensor]]:
    """Name and summed log density of every site of ``trace`` that has one."""
    for name, site in _with_density(trace):
        log_prob = site["fn"].log_prob(site["value"])
        yield name, _scaled(log_prob, site).sum()


def log_prob_of_trace(trace: poutine.Trace, without: Container[str] = ()) -> Tensor:
    """Log density of all sites together, but for those left out."""
    terms = [term for name, term in log_prob_of_sites(trace) if name not in without]
    return functools.reduce(torch.add, terms)


def prior_and_likelihood(trace: poutine.Trace, latent: Container[str]) -> tuple[Tensor, Tensor]:
    """Log prior of the ``latent`` sites, each counted once, and everything else of ``trace``.

    A prior that a scale or a mask counts differently is not what draws from it follow: the
    difference is part of the likelihood.
    """
    prior, rest = [], []
    for name, site in _with_density(trace):
        log_prob = site["fn"].log_prob(site["value"])
        weighted = _scaled(log_prob, site)
        if name in latent:
            prior.append(log_prob.sum())
            if weighted is not log_prob:
                rest.append(weighted.sum() - log_prob.sum())
        else:
            rest.append(weighted.sum())
    return functools.reduce(torch.add, prior), functools.reduce(torch.add, rest)


def normalised_residuals(trace: poutine.Trace) -> Tensor | None:
    """Residuals r of all sites of ``trace`` in one row, if its log density is -|r|^2/2 + constant.

    None if some site is not normal. Whether scales depend on latent sites, so that the constant is
    none, is not seen here.
    """
    rows = []
    for _, site in _with_density(trace):
        residual = _whitened(site)
        if residual is None or residual.is_complex() or site["mask"] is not None:
            return None
        rows.append((residual * site["scale"] ** 0.5).flatten())
    return torch.cat(rows)


def chi_square(site: Mapping[str, Any]) -> Tensor | None:
    """Squared length of a site's whitened residual, if it is normal and none of it is masked.

    At the right values of all others it is a chi-square variable with as many degrees of freedom
    as the site has numbers.
    """
    fn = base_law(site["fn"])
    if site["mask"] is not None or site["value"].is_complex():
        return None
    if hasattr(fn, "chi_square"):
        squares: Tensor = fn.chi_square(site["value"])
        return squares.sum()
    residual = _whitened(site)
    return None if residual is None else residual.square().sum()


def _whitened(site: Mapping[str, Any]) -> Tensor | None:
    """Residual of a site in units of its deviations, along independent directions, if normal."""
    fn, value = base_law(site["fn"]), site["value"]
    if isinstance(fn, torch.distributions.Normal):
        return (value - fn.loc) / fn.scale
    if hasattr(fn, "whiten"):
        whitened: Tensor = fn.whiten(value)
        return whitened
    if isinstance(fn, torch.distributions.MultivariateNormal):
        difference = (value - fn.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(fn.scale_tril, difference, upper=False).squeeze(-1)
    return None


def elementwise_log_prob(site: dict[str, Any]) -> Tensor:
    """Log density of every single number observed at a site, where they are independent."""
    return _scaled(base_law(site["fn"]).log_prob(site["value"]), site)


def _with_density(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, site in sample_nodes(trace):
        if not site["infer"].get("_deterministic") and not is_generated(site):
            yield name, site


def _scaled(log_prob: Tensor, site: dict[str, Any]) -> Tensor:
    scale, mask = site["scale"], site["mask"]
    if mask is not None and mask is not True:
        log_prob = log_prob.masked_fill(~torch.as_tensor(mask, device=log_prob.device), 0.0)
    return log_prob if isinstance(scale, float) and scale == 1.0 else log_prob * scale
