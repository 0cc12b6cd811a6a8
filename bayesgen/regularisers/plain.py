"""Regularisers without a generator, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen.distributions import GaussianNoise
from bayesgen.distributions.total_variation import TotalVariation
from bayesgen.operators import Operator
from bayesgen.regularisers.pieces import (
    Level,
    Model,
    check_level,
    check_operator_type,
    check_weight,
    level_of,
)
from bayesgen.types import check_positive


def tikhonov(A: Operator, sigma: Level, scale: float | Tensor) -> Model:
    """No generator: independent normal pixels, for comparison.

    Parameters
    ----------
    A, sigma
        As for `hard`.
    scale
        s, in intensities.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma or the scale is not a positive number.

    Examples
    --------
    >>> import torch, bayesgen as bg
    >>> model = tikhonov(bg.operators.Identity((2, 2)), sigma=1.0, scale=1.0)
    >>> bg.infer(model, torch.ones(2, 2), method="map", progress=False).mode("x")
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    check_weight("scale", scale)
    return _plain(A, sigma, lambda like: dist.Normal(like, scale).expand(A.domain_shape).to_event())


def total_variation(A: Operator, sigma: Level, scale: float) -> Model:
    """No generator: an image with few edges, for comparison.

    Parameters
    ----------
    A, sigma
        As for `hard`.
    scale
        s of `bayesgen.distributions.total_variation.TotalVariation`, in intensities.

    Returns
    -------
    callable
        ``model(y=None)`` with sites ``x`` and ``y``.

    Raises
    ------
    OptionError
        If sigma or the scale is not a positive number.

    See Also
    --------
    bayesgen.reconstruction.total_variation : the same optimum by a solver for nothing else.

    Examples
    --------
    >>> import torch, bayesgen as bg
    >>> model = total_variation(bg.operators.Identity((1, 2)), sigma=1.0, scale=1.0)
    >>> bg.infer(model, torch.tensor([[0.0, 4.0]]), method="map", progress=False).mode("x")
    tensor([[1., 3.]])
    """
    check_positive("scale", scale)
    return _plain(A, sigma, lambda like: TotalVariation(A.domain_shape, scale, dtype=like.dtype))


def _plain(A: Operator, sigma: Level, prior: Callable[[Tensor], Any]) -> Model:
    check_level("sigma", sigma)
    check_operator_type(A)

    def model(y: Tensor | None = None) -> None:
        x = pyro.sample("x", prior(torch.zeros(()) if y is None else y.new_zeros(())))
        pyro.sample("y", GaussianNoise(A(x), level_of("sigma", sigma, x)), obs=y)

    return model
