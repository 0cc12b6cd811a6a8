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


def check_model(
    model: Callable[..., Any],
    pool: Pool,
    operator: Operator | None = None,
    y: Tensor | None = None,
) -> None:
    """Refuse a model whose likelihood does not follow the operator.

    Raises
    ------
    ModelError
        If it does not take two arguments, fails for the operator, or expects other data than the
        operator gives.
    """
    try:
        inspect.signature(model).bind(pool.operator, None)
    except TypeError as error:
        raise ModelError(f"model: expected a function of A and y ({error}). {_ADVICE}") from None
    if operator is None or y is None:
        return
    try:
        with isolated(0):
            trace = poutine.trace(model).get_trace(operator, y)
    except Exception as error:
        raise ModelError(
            f"model: failed for an operator of data {operator.range_shape}, {blame(model, error)}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. {_ADVICE}"
        ) from error
    for name, site in trace.nodes.items():
        value = site.get("value")
        if not (site["type"] == "sample" and site["is_observed"] and isinstance(value, Tensor)):
            continue
        law: Any = site["fn"]
        if value.data_ptr() == y.data_ptr() and tuple(law.shape()) != tuple(y.shape):
            raise ModelError(
                f"model: site {name!r} expects data of shape {tuple(law.shape())}, but the "
                f"operator measures {tuple(y.shape)}. {_ADVICE}"
            )


def prior_posterior(
    model: Callable[..., Any], pool: Pool, shape: tuple[int, int], seed: int
) -> Posterior:
    """What is believed before anything was measured: a posterior of so many chains and draws."""

    def without_data(y: None) -> None:
        # The law of the image does not depend on what would be measured: the least will do.
        model(pool.at([0]), y)
        pyro.factor("no data", torch.zeros(()))

    try:
        log_density = LogDensity(without_data, None)
        rng = torch.Generator().manual_seed(seed)
        v = log_density.prior_draws(shape[0] * shape[1], rng).unflatten(0, shape)
    except Exception as error:
        raise ModelError(
            f"model: no data can be drawn from it before the first measurement ({error}). Let "
            "y=None draw them, or say by initial= what to measure first"
        ) from error
    attributes = {"method": "prior", "kind": "draws", "seed": seed % 2**62}
    return Posterior(log_density.constrain(v), v.new_zeros(shape), {}, attributes, log_density)
