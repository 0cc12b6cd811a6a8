"""Pyro's guides as functions of their parameters, one for every chain of every problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineAutoregressive, ComposeTransformModule
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormalizingFlow,
)
from pyro.nn import AutoRegressiveNN
from torch import Tensor
from torch.nn import Tanh

from bayesgen.errors import OptionError, unknown_option
from bayesgen.model_sites import isolated

Guide = str | Callable[..., AutoContinuous]
Parameters = dict[str, Tensor]


def autoregressive_flow(model: Callable[..., Any]) -> AutoNormalizingFlow:
    """Pyro's `AutoIAFNormal` with two transforms, in different orders, of smooth networks.

    Its own networks are piecewise linear, which samplers in the flow's coordinates would feel.
    """

    def transform(num_dims: int) -> ComposeTransformModule:
        width = max(32, 2 * num_dims)
        networks = [AutoRegressiveNN(num_dims, [width], nonlinearity=Tanh()) for _ in range(2)]
        return ComposeTransformModule([AffineAutoregressive(network) for network in networks])

    return AutoNormalizingFlow(model, transform)


GUIDES: dict[str, Callable[..., AutoContinuous]] = {
    "normal": AutoDiagonalNormal,
    "multivariate": AutoMultivariateNormal,
    "low-rank": AutoLowRankMultivariateNormal,
    "iaf": autoregressive_flow,
}


class Guides:
    """An autoguide of R^n as a function of its parameters, so that one call serves many of them.

    Parameters
    ----------
    module
        The guide; only its structure is used, its own parameters never change.
    """

    def __init__(self, module: AutoContinuous) -> None:
        self.module = module
        self.has_transform = type(module).get_transform is not AutoContinuous.get_transform

    def draw(self, parameters: Parameters, num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws ``(num, rows, n)`` and their log densities."""
        like = next(iter(parameters.values()))
        if not self.has_transform:
            # Parameters with an axis of rows make a batch of posteriors.
            law: Any = _call(self.module, "posterior", parameters)
            devices = [like.device] if like.is_cuda else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(int(torch.randint(2**62, (), generator=rng, device=rng.device)))
                v = law.rsample((num,))
            return v, law.log_prob(v)
        shape = (len(like), num, self.module.latent_dim)
        noise = torch.randn(shape, generator=rng, dtype=like.dtype, device=rng.device)
        noise = noise.to(like.device)
        v, log_det = torch.vmap(self.transport)(parameters, noise)
        log_q = -0.5 * (noise.square() + math.log(2.0 * math.pi)).sum(-1) - log_det
        return v.transpose(0, 1), log_q.transpose(0, 1)

    def transport(self, parameters: Parameters, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(num, n)`` of points of the base space, and the map's log determinants."""
        v, log_det = _call(self.module, "transport", parameters, noise)
        return v, log_det


class _Calls(torch.nn.Module):
    """Methods of a guide as one `forward`, which is what can be given other parameters."""

    def __init__(self, guide: AutoContinuous) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, what: str, *args: Tensor) -> Any:
        if what == "posterior":
            return self.guide.get_posterior()
        (noise,) = args
        transform = self.guide.get_transform()
        v = transform(noise)
        log_det = transform.log_abs_det_jacobian(noise, v)
        return v, log_det.reshape(*noise.shape[:-1], -1).sum(-1)


def _call(guide: AutoContinuous, what: str, parameters: Parameters, *args: Tensor) -> Any:
    renamed = {f"guide.{name}": value for name, value in parameters.items()}
    return torch.func.functional_call(_Calls(guide), renamed, (what, *args))


def make_guides(guide: Guide, position: Tensor, seed: int) -> tuple[Guides, Parameters]:
    """A guide for every row of ``position (rows, n)``, and where their parameters begin.

    Guides with a location begin there; others begin as Pyro makes them, all rows alike.

    Raises
    ------
    OptionError
        If what was given makes no guide of continuous sites.
    """
    if isinstance(guide, str):
        guide = GUIDES[guide]

    def shape_of_the_model() -> None:
        pyro.sample("v", dist.Normal(torch.zeros_like(position[0]), 1.0).to_event(1))

    with isolated(seed), pyro.validation_enabled(False):
        module = guide(shape_of_the_model)
        if not isinstance(module, AutoContinuous):
            raise OptionError(
                f"guide: made a {type(module).__name__}; expected a pyro.infer.autoguide."
                "AutoContinuous, as AutoMultivariateNormal and AutoNormalizingFlow are"
            )
        # Some make their parameters when they are first called.
        module()
        module.to(position.device, position.dtype)
    _check_base(module)
    parameters = {
        name: value.detach().expand(len(position), *value.shape).clone()
        for name, value in module.named_parameters()
    }
    if "loc" in parameters and parameters["loc"].shape == position.shape:
        parameters["loc"] = position.clone()
    return Guides(module), parameters


def _check_base(module: AutoContinuous) -> None:
    """Guides that map noise to draws are taken to map standard normal noise."""
    if type(module).get_base_dist is AutoContinuous.get_base_dist:
        return
    base: Any = module.get_base_dist()
    like = next(module.parameters())
    at = torch.linspace(0.0, 2.0, module.latent_dim, dtype=like.dtype, device=like.device)
    normal = -0.5 * (at.square() + math.log(2.0 * math.pi)).sum()
    if not torch.allclose(base.log_prob(at), normal):
        raise OptionError(
            f"guide: the base distribution of {type(module).__name__} is {base}; expected a "
            "standard normal one"
        )


def check_guide(guide: Any, allowed: tuple[str, ...]) -> None:
    """Refuse what is neither the name of a guide nor makes one."""
    if isinstance(guide, str) and guide not in allowed:
        raise OptionError(unknown_option("guide", guide, allowed))
    if not isinstance(guide, str) and not callable(guide):
        raise OptionError(
            f"guide: got {guide!r}; expected one of {', '.join(map(repr, allowed))}, or a class of "
            "pyro.infer.autoguide"
        )
