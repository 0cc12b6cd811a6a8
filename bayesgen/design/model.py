"""The user's model of an operator that changes from round to round."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from bayesgen.design.pool import Pool
from bayesgen.errors import ModelError
from bayesgen.log_density import LogDensity
from bayesgen.model_sites import blame, isolated
from bayesgen.operators import Operator
from bayesgen.posterior import Posterior

_ADVICE = (
    "Write the forward operator as an argument, and use it in the likelihood:\n"
    "    def model(A, y=None):\n"
    "        ...\n"
    '        pyro.sample("y", dist.Normal(A(x), sigma).to_event(1), obs=y)'
)


def check_model(model: Callable[..., Any], pool: Pool, site: str) -> Tensor:
    """Refuse a model that cannot follow the operators of a pool, before anything is measured.

    Returns
    -------
    Tensor
        Data of the pool's first candidate, as a random image of the model's would give.

    Raises
    ------
    ModelError
        If it does not take two arguments, fails for the operator, expects other data than the
        operator gives, or has no image of the operator's at the site.
    """
    try:
        inspect.signature(model).bind(pool.operator, None)
    except TypeError as error:
        raise ModelError(f"model: expected a function of A and y ({error}). {_ADVICE}") from None
    operator = pool.at([0])
    try:
        trace = _traced(model, operator, None)
    except ModelError:
        # It cannot draw data: that is needed only where nothing is measured first.
        trace = _traced(model, operator, torch.zeros(operator.range_shape))
    names = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    if site not in names:
        raise ModelError(f"site: got {site!r}, but the model's sites are {names}")
    image = trace.nodes[site]["value"]
    if tuple(image.shape) != pool.operator.domain_shape:
        raise ModelError(
            f"site: {site!r} has shape {tuple(image.shape)}, but the operator of the pool applies "
            f"to images of shape {pool.operator.domain_shape}"
        )
    with torch.no_grad():
        y: Tensor = operator(image)
    check_data(model, operator, y)
    return y


def check_data(model: Callable[..., Any], operator: Operator, y: Tensor) -> None:
    """Refuse a model whose likelihood expects other data than the operator gives.

    Raises
    ------
    ModelError
        If it does, or fails.
    """
    for name, node in _traced(model, operator, y).nodes.items():
        value = node.get("value")
        if not (node["type"] == "sample" and node["is_observed"] and isinstance(value, Tensor)):
            continue
        law: Any = node["fn"]
        shape = tuple(law.shape())
        if _is_part(value, y) and shape != tuple(value.shape):
            raise ModelError(
                f"model: site {name!r} expects data of shape {shape}, but those of the operator "
                f"have shape {tuple(value.shape)} there. {_ADVICE}"
            )


def prior_posterior(
    model: Callable[..., Any], pool: Pool, shape: tuple[int, int], seed: int
) -> Posterior:
    """What is believed before anything was measured: a posterior of so many chains and draws."""
    # The law of the image does not depend on what would be measured: the least will do.
    operator = pool.at([0])
    try:
        drawn = _traced(model, operator, None)
        told = _traced(model, operator, torch.zeros(operator.range_shape))
        # Data that are given anyhow are known, and no latent coordinates: some laws of data, such
        # as Poisson's, could not be.
        known = {
            name: node["value"]
            for name, node in drawn.nodes.items()
            if node["type"] == "sample"
            and not node["is_observed"]
            and name in told.nodes
            and told.nodes[name]["is_observed"]
        }

        def with_data(y: None) -> None:
            poutine.condition(model, data=known)(operator, y)
            pyro.factor("no data", torch.zeros(()))

        log_density = LogDensity(with_data, None)
        rng = torch.Generator().manual_seed(seed)
        v = log_density.prior_draws(shape[0] * shape[1], rng).unflatten(0, shape)
    except Exception as error:
        raise ModelError(
            f"model: no data can be drawn from it before the first measurement ({error}). Let "
            "y=None draw them, or say by initial= what to measure first"
        ) from error
    attributes = {"method": "prior", "kind": "draws", "seed": seed % 2**62}
    return Posterior(log_density.constrain(v), v.new_zeros(shape), {}, attributes, log_density)


def _traced(model: Callable[..., Any], operator: Operator, y: Tensor | None) -> Any:
    try:
        with isolated(0), torch.no_grad():
            return poutine.trace(model).get_trace(operator, y)
    except Exception as error:
        raise ModelError(
            f"model: failed for an operator of data {operator.range_shape}, {blame(model, error)}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. {_ADVICE}"
        ) from error


def _is_part(value: Tensor, y: Tensor) -> bool:
    """Whether these are the data themselves, whatever their shape."""
    return value.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
