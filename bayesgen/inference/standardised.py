"""A log density in units of its prior: what methods see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from bayesgen.types import Density


class Standardised:
    r"""A log density of :math:`w = v / s`, s its ``scale``, that counts its evaluations.

    Priors of very different widths then need no different treatment: step sizes, tolerances and
    first mass matrices are in prior standard deviations.

    Parameters
    ----------
    log_density
        The log density. It may have the structure that `bayesgen.LogDensity` has; without, it is
        smooth and of one block.
    """

    def __init__(self, log_density: Density) -> None:
        self._log_density = log_density
        self.num_dims = log_density.num_dims
        self.scale: Tensor | float = getattr(log_density, "scale", 1.0)
        self.count = 0

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Log density and its gradient, in these units; other options are the log density's."""
        self.count += 1
        found = self._log_density.value_and_grad(v * self.scale, jacobian=jacobian, **options)
        return found[0], found[1] * self.scale

    # ------------------------------------------------------------------ structure

    @property
    def takes_where(self) -> bool:
        """Whether it can leave out rows that nobody asks for."""
        return hasattr(self._log_density, "evaluate")

    @property
    def blocks(self) -> dict[str, slice]:
        """Coordinates of each latent site."""
        sites = getattr(self._log_density, "sites", None)
        if sites is None:
            return {"v": slice(None)}
        return {name: slice(site.start, site.stop) for name, site in sites.latent.items()}

    @property
    def is_least_squares(self) -> bool:
        """Whether `linearise` is there."""
        return getattr(self._log_density, "least_squares", None) is not None

    def linearise(self, v: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Minus the log density, its gradient and Gauss-Newton matrix, in these units."""
        self.count += 1
        least_squares: Any = self._log_density.least_squares  # type: ignore[attr-defined]
        value, gradient, matrix = least_squares.linearise(v * self.scale, where)
        if isinstance(self.scale, Tensor):
            matrix = matrix * self.scale.unsqueeze(-1) * self.scale.unsqueeze(-2)
        return value, gradient * self.scale, matrix

    @property
    def proximal(self) -> Mapping[str, Any]:
        """Proximal maps of the sites that have one."""
        return getattr(self._log_density, "proximal", {})

    def penalty(self, v: Tensor) -> Tensor:
        """Minus the log density of the priors with a proximal map, ``(*batch,)``."""
        sites: Any = self._log_density.sites if self.proximal else None  # type: ignore[attr-defined]
        total = v.new_zeros(v.shape[:-1])
        for name in self.proximal:
            site = sites.latent[name]
            # Solvers try points that overflow, and step back from them.
            with pyro.validation_enabled(False):
                log_prob = site.prior.log_prob(site.take(v * self.scale))
            # Plates leave their axes, which all count.
            total = total - log_prob.reshape(*total.shape, -1).sum(-1)
        return total

    def proximal_step(
        self, v: Tensor, steps: Mapping[str, Tensor], memory: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Apply the proximal maps of some sites, each with its own step ``(*batch,)``.

        ``memory`` is what the last call returned beside the points, or empty.
        """
        v, memory = v.clone(), dict(memory)
        for name, step in steps.items():
            site: Any = self._log_density.sites.latent[name]  # type: ignore[attr-defined]
            scale = torch.as_tensor(self.scale, dtype=v.dtype, device=v.device)
            scale = scale.expand_as(v)[..., site.start : site.stop]
            value = (v[..., site.start : site.stop] * scale).reshape(*v.shape[:-1], *site.shape)
            # |w - w0|^2 / t is |v - v0|^2 / (s^2 t).
            lengths = (step[..., None] * scale.square()).reshape(value.shape)
            value, memory[name] = self.proximal[name](value, lengths, memory.get(name))
            v[..., site.start : site.stop] = value.flatten(v.ndim - 1) / scale
        return v, memory
