"""A log density in units of its prior: what methods see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from bayesgen.errors import ModelError
from bayesgen.types import Density, Split

# Of inexact proximal steps, relative to the length of the last.
_ERROR = 0.03


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
        self.log_density = log_density
        self.num_dims = log_density.num_dims
        self.scale: Tensor | float = getattr(log_density, "scale", 1.0)
        self.count = 0

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Log density and its gradient, in these units; other options are the log density's."""
        self.count += 1
        units = self.units(v)
        found = self.log_density.value_and_grad(v * units, jacobian=jacobian, **options)
        return found[0], found[1] * units

    def units(self, v: Tensor) -> Tensor | float:
        """The scale, shaped to multiply points ``(*problems, *batch, n)``."""
        if not isinstance(self.scale, Tensor) or self.scale.ndim == 1:
            return self.scale
        between = (1,) * (v.ndim - 2)
        return self.scale.reshape(len(self.scale), *between, self.scale.shape[-1])

    # ------------------------------------------------------------------ prior and likelihood

    def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
        """Log prior and log likelihood with their gradients, in these units."""
        self.count += 1
        options = {"where": where} if self.takes_where else {}
        units = self.units(v)
        found: Split = self._tempered("split")(v * units, **options)
        return found._replace(
            prior_gradient=found.prior_gradient * units,
            likelihood_gradient=found.likelihood_gradient * units,
        )

    def prior_draws(self, num: int, rng: torch.Generator) -> Tensor:
        """Draws from the prior, ``(*problems, num, n)``, in these units."""
        draws: Tensor = self._tempered("prior_draws")(num, rng)
        return draws / self.units(draws)

    def _tempered(self, name: str) -> Any:
        if not hasattr(self.log_density, name):
            raise ModelError(
                f"log density: {type(self.log_density).__name__} has no {name}(), which tempering "
                "from prior to posterior needs; give it one (see bayesgen.types.SplitDensity), or "
                "use a method that does not temper, such as 'hmc'"
            )
        return getattr(self.log_density, name)

    @property
    def normal_prior(self) -> tuple[Tensor, Tensor]:
        """Mean and precision of coordinates whose prior is normal, in these units.

        They broadcast against points. Other coordinates have mean and precision 0.
        """
        known = getattr(self.log_density, "normal_prior", None)
        if known is None:
            zero = torch.zeros(self.num_dims)
            return zero, zero
        mean, precision = known
        return mean / self.scale, precision * torch.as_tensor(self.scale).square()

    # ------------------------------------------------------------------ structure

    @property
    def takes_where(self) -> bool:
        """Whether it can leave out rows that nobody asks for."""
        return hasattr(self.log_density, "evaluate")

    @property
    def blocks(self) -> dict[str, slice]:
        """Coordinates of each latent site."""
        sites = getattr(self.log_density, "sites", None)
        if sites is None:
            return {"v": slice(None)}
        return {name: slice(site.start, site.stop) for name, site in sites.latent.items()}

    @property
    def is_least_squares(self) -> bool:
        """Whether `linearise` is there."""
        return getattr(self.log_density, "least_squares", None) is not None

    def linearise(self, v: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Minus the log density, its gradient and Gauss-Newton matrix, in these units."""
        self.count += 1
        least_squares: Any = self.log_density.least_squares  # type: ignore[attr-defined]
        units = self.units(v)
        value, gradient, matrix = least_squares.linearise(v * units, where)
        if isinstance(units, Tensor):
            matrix = matrix * units.unsqueeze(-1) * units.unsqueeze(-2)
        return value, gradient * units, matrix

    @property
    def proximal(self) -> Mapping[str, Any]:
        """Proximal maps of the sites that have one."""
        return getattr(self.log_density, "proximal", {})

    def penalty(self, v: Tensor) -> Tensor:
        """Minus the log density of the priors with a proximal map, ``(*batch,)``."""
        sites: Any = self.log_density.sites if self.proximal else None  # type: ignore[attr-defined]
        total = v.new_zeros(v.shape[:-1])
        for name in self.proximal:
            site = sites.latent[name]
            log_prob = site.prior.log_prob(site.take(v * self.units(v)))
            # Plates leave their axes, which all count.
            total = total - log_prob.reshape(*total.shape, -1).sum(-1)
        return total

    def proximal_step(
        self,
        v: Tensor,
        steps: Mapping[str, Tensor],
        memory: Mapping[str, Any],
        where: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Apply the proximal maps of some sites, each with its own step ``(*batch,)``.

        ``memory`` is what the last call returned beside the points, or empty. With ``where``,
        ``(*batch,)``, other rows stay as they are. ``moved`` is how points last moved: errors that
        are small beside it do no harm.
        """
        v, memory = v.clone(), dict(memory)
        units = torch.as_tensor(self.units(v), dtype=v.dtype, device=v.device)
        scales = units.expand(v.shape)
        for name, step in steps.items():
            site: Any = self.log_density.sites.latent[name]  # type: ignore[attr-defined]
            block = slice(site.start, site.stop)
            # What the map keeps for the next time begins with all rows.
            rows: Any = ... if where is None or name not in memory else where
            scale = scales[..., block][rows]
            value = (v[..., block][rows] * scale).reshape(scale.shape[:-1] + site.shape)
            # |w - w0|^2 / t is |v - v0|^2 / (s^2 t).
            lengths = (step[rows][..., None] * scale.square()).reshape(value.shape)
            kept = tree_map_only(Tensor, lambda part: part[rows], memory.get(name))  # noqa: B023
            accuracy = None
            if moved is not None:
                distance = (moved[..., block][rows] * scale).square().sum(-1)
                accuracy = _ERROR**2 * 0.5 * distance
            value, new = self.proximal[name](value, lengths, kept, accuracy)
            memory[name] = new if rows is ... else _put(memory[name], rows, new)
            flat = value.reshape(scale.shape) / scale
            v[..., block] = flat if rows is ... else v[..., block].index_put((rows,), flat)
        return v, memory


def _put(old: Any, rows: Tensor, new: Any) -> Any:
    """``old`` with ``new`` in some rows of its tensors."""

    def put(old: Any, new: Any) -> Any:
        return old.index_put((rows,), new) if isinstance(old, Tensor) else new

    return tree_map(put, old, new)
