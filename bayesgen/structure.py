"""Structure of a log density that some methods need: found in the model, then verified."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.model_sites import isolated
from bayesgen.proximal import ProximalMap, proximal_map
from bayesgen.traces import base_law, log_prob_of_sites, normalised_residuals

if TYPE_CHECKING:
    from bayesgen.log_density import LogDensity
    from bayesgen.model_sites import Site


@dataclass(frozen=True)
class LeastSquares:
    r"""A log density :math:`-\tfrac12 |r(v)|^2 - c`: all of the model's sites are normal.

    Attributes
    ----------
    log_density
        The log density.
    constant
        :math:`c` of each problem.
    """

    log_density: LogDensity
    constant: Tensor

    def linearise(self, v: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Minus the log density, its gradient, and the Gauss-Newton matrix.

        Parameters
        ----------
        v
            Points ``(*batch, n)``, after an axis of problems if there are several.
        where
            See `bayesgen.LogDensity.evaluate`.

        Returns
        -------
        value, gradient, matrix
            Of shapes ``(*batch,)``, ``(*batch, n)`` and ``(*batch, n, n)``.
        """
        half, gradient, matrix = self.log_density.evaluate("linearise", self._linearise, v, where)
        lead = self.constant.shape
        constant = self.constant.reshape(lead + (1,) * (half.ndim - len(lead)))
        return half + constant, gradient, matrix

    def _linearise(self, rows: Tensor, *data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = rows.shape[-1]
        # One row for each column of the Jacobian: forward mode then sees one plain batch.
        repeated = rows.repeat_interleave(n, dim=-2)
        directions = torch.eye(n, dtype=rows.dtype, device=rows.device)
        directions = directions.repeat(rows.shape[-2], 1).expand_as(repeated)

        def residual(rows: Tensor) -> Tensor:
            stacked: Tensor = self.log_density.map_traces(normalised_residuals, rows, data)
            return stacked

        with warnings.catch_warnings():
            # Torch's own, when it first loads its forward derivatives.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            found: Any = torch.func.jvp(residual, (repeated,), (directions.contiguous(),))
        r, columns = found
        r = r.unflatten(-2, (-1, n))[..., 0, :]
        columns = columns.unflatten(-2, (-1, n))
        gradient = (columns @ r.unsqueeze(-1)).squeeze(-1)
        return 0.5 * r.square().sum(-1), gradient, columns @ columns.mT


class ProximalMaps(dict[str, ProximalMap]):
    """Proximal maps by site; asked for one that is not there, it says which sites have one."""

    def __missing__(self, site: str) -> ProximalMap:
        known = f"those of {sorted(self)} have" if self else "no prior of this model has"
        raise OptionError(
            f"site {site!r}: its prior has no proximal map; {known} one. Laplace and "
            "TotalVariation priors that depend on no other site do, and distributions with a "
            "method proximal_map"
        )


def find_least_squares(log_density: LogDensity) -> LeastSquares | None:
    """Look for normal sites, and check that nothing but their residuals changes the density."""
    v = log_density.prior_draws(3, torch.Generator().manual_seed(0))
    with isolated(0), torch.no_grad():
        value, _ = log_density.value_and_grad(v, jacobian=False)
        found = LeastSquares(log_density, value.new_zeros(value.shape[:-1]))
        trace = log_density.trace(
            log_density.constrain(v.flatten(0, -2)[0]), log_density.data_of_one()
        )
        try:
            if normalised_residuals(trace) is None:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                constants = -value - found.linearise(v)[0]
        except (RuntimeError, TypeError, AssertionError):
            # What torch raises for operations without a forward derivative.
            return None
    spread = constants.amax(-1) - constants.amin(-1)
    rounding = 1e3 * torch.finfo(v.dtype).eps * (1 + value.abs().amax(-1))
    if not bool((spread <= rounding).all()):
        return None
    return LeastSquares(log_density, constants.mean(-1))


def find_normal_priors(log_density: LogDensity) -> tuple[Tensor, Tensor]:
    """Mean and precision ``(n,)`` of coordinates whose prior is normal and counts once, else 0."""
    like = log_density
    mean, precision = torch.zeros(2, like.num_dims, dtype=like.dtype, device=like.device)
    for site, _ in _priors_of_their_own(log_density):
        law = base_law(site.prior)
        if isinstance(law, torch.distributions.Normal):
            block = slice(site.start, site.stop)
            mean[block] = law.loc.expand(site.shape).reshape(-1)
            precision[block] = law.scale.expand(site.shape).reshape(-1) ** -2
    return mean, precision


def find_proximal_maps(log_density: LogDensity) -> dict[str, ProximalMap]:
    """Priors with a proximal map that depend on nothing else and count once."""
    found = {}
    for site, v in _priors_of_their_own(log_density):
        map_ = proximal_map(site.prior)
        if map_ is not None and torch.equal(site.take(v), log_density.constrain(v)[site.name]):
            found[site.name] = map_
    return ProximalMaps(found)


def _priors_of_their_own(log_density: LogDensity) -> list[tuple[Site, Tensor]]:
    """Sites whose prior depends on nothing else and counts once, and a point ``(n,)``."""
    rng = torch.Generator().manual_seed(0)
    v = log_density.prior_draws(2, rng).flatten(0, -2)
    # Where an improper prior starts it may be flat, and its scale unseen.
    v = v + torch.randn(v.shape, generator=rng).to(v)
    sites = log_density.sites
    with isolated(0), torch.no_grad():
        values = log_density.constrain(v[1])
        counted = dict(log_prob_of_sites(log_density.trace(values, log_density.data_of_one())))
        # A plate, a mask or a scale may change what the prior counts.
        return [
            (site, v[1])
            for name, site in sites.latent.items()
            if name in sites.static_priors
            and torch.allclose(site.prior.log_prob(values[name]).sum(), counted[name])
        ]
