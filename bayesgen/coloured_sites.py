"""Values of normal and Laplace sites in standardised coordinates, and back.

In them a prior is N(0, I), or the product of Laplace distributions of scale 1, whatever it depends
on: they are what a non-centred model would sample.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from bayesgen.traces import base_law, normalised_residuals


class Coloured(Messenger):
    """Takes the values that some sites are given for standardised ones."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self._names = names

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if message["name"] in self._names:
            message["value"] = _colour(message, message["value"])


def _colour(node: dict[str, Any], c: Tensor) -> Tensor:
    """The value of a site with standardised value ``c``; inverse of `whiten`."""
    fn, scale = base_law(node["fn"]), node["scale"]
    if isinstance(fn, torch.distributions.Laplace):
        return fn.loc + fn.scale * c / scale
    c = c / scale**0.5
    if isinstance(fn, torch.distributions.Normal):
        return fn.loc + fn.scale * c
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return fn.loc + (fn.scale_tril @ c.unsqueeze(-1)).squeeze(-1)
    coloured: Tensor = fn.colour(c)
    return coloured


def whiten(trace: poutine.Trace, name: str) -> Tensor:
    """Standardised value of a site."""
    node: dict[str, Any] = dict(trace.nodes[name])
    fn = base_law(node["fn"])
    if isinstance(fn, torch.distributions.Laplace):
        c: Tensor = (node["value"] - fn.loc) / fn.scale * node["scale"]
        return c.flatten()
    r = normalised_residuals(only(trace, (name,)))
    assert r is not None
    return r


def is_laplace(fn: Any) -> bool:
    """Whether a law is that of independent Laplace variables."""
    return isinstance(base_law(fn), torch.distributions.Laplace)


def is_normal(fn: Any) -> bool:
    """Whether a law is normal, and can be standardised."""
    fn = base_law(fn)
    known = torch.distributions.Normal | torch.distributions.MultivariateNormal
    return isinstance(fn, known) or (hasattr(fn, "whiten") and hasattr(fn, "colour"))


def kind_of(node: dict[str, Any]) -> str:
    """Name of a site's law."""
    return type(base_law(node["fn"])).__name__


def only(trace: poutine.Trace, names: tuple[str, ...]) -> poutine.Trace:
    """``trace`` with some of its sites."""
    part = poutine.Trace()
    for name in names:
        part.add_node(name, **trace.nodes[name])
    return part
