"""What every method returns: draws, image statistics, and whether to trust them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesgen import streaming
from bayesgen.errors import OptionError, ResultError, unknown_option
from bayesgen.log_density import CHUNK_BYTES, LogDensity

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from bayesgen.diagnostics import Summary

# Draws of one site that fit into this are sorted for exact quantiles.
EXACT_QUANTILE_BYTES = 256 * 2**20


class Posterior:
    """Draws from a posterior (or the optima of an optimiser) and what can be asked of them.

    Only latent draws are stored. Deterministic sites, such as the image, are computed from them
    when needed, in chunks, and their statistics are kept: memory does not grow with image size
    times draws.

    Parameters
    ----------
    latent
        Draws of the latent sites, ``(*problems, chains, draws, *site_shape)``.
    log_prob
        Log density of each draw in the unconstrained space, ``(*problems, chains, draws)``.
    stats
        What the method recorded with each draw, same shape.
    attributes
        Provenance: plain strings, numbers and booleans.
    log_density
        The conditioned model; None for a result loaded without its model.
    statistics
        Known means and standard deviations of sites, by site.

    Notes
    -----
    Made by `bayesgen.infer`. Results of a batched run have a leading axis of problems
    everywhere; ``posterior[i]`` is the posterior of problem i alone.

    Examples
    --------
    >>> import pyro, torch, bayesgen as bg
    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...     x = pyro.deterministic("x", z.exp())
    ...     pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=y)
    >>> posterior = bg.infer(model, torch.ones(2), draws=200, progress=False)
    >>> posterior.std("x").shape, posterior.draws("x").shape
    (torch.Size([2]), torch.Size([4, 200, 2]))
    """

    def __init__(
        self,
        latent: Mapping[str, Tensor],
        log_prob: Tensor,
        stats: Mapping[str, Tensor],
        attributes: Mapping[str, Any],
        log_density: LogDensity | None = None,
        statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._latent = dict(latent)
        self.log_prob = log_prob
        self.stats = dict(stats)
        self.attributes = dict(attributes)
        self._log_density = log_density
        self._moments: dict[str, streaming.Moments] = {}
        self._stored = dict(statistics or {})

    # ------------------------------------------------------------------ what it holds

    @property
    def latent_sites(self) -> list[str]:
        """Names of the latent sites."""
        return list(self._latent)

    @property
    def deterministic_sites(self) -> list[str]:
        """Names of the ``pyro.deterministic`` sites."""
        if self._log_density is None:
            return [name for name in self._stored if name not in self._latent]
        return list(self._log_density.sites.deterministic)

    @property
    def num_problems(self) -> int | None:
        """Number of problems of a batched run, else None."""
        return self.log_prob.shape[0] if self.log_prob.ndim == 3 else None

    @property
    def num_chains(self) -> int:
        """Number of chains, or of restarts."""
        return self.log_prob.shape[-2]

    @property
    def num_draws(self) -> int:
        """Number of draws a chain."""
        return self.log_prob.shape[-1]

    @property
    def is_point_estimate(self) -> bool:
        """Whether this holds optima rather than draws from the posterior."""
        return self.attributes.get("kind") == "optima"

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before all draws were made."""
        return bool(self.attributes.get("interrupted", False))

    @property
    def observed(self) -> dict[str, Tensor]:
        """Values of the observed sites (of the first problem, if batched)."""
        return {} if self._log_density is None else dict(self._log_density.sites.observed)

    @cached_property
    def model(self) -> LogDensity:
        """The conditioned model.

        Raises
        ------
        ResultError
            If the result was loaded from a file without its model.
        """
        if self._log_density is None:
            raise ResultError(
                "posterior: was loaded without its model, which is needed here. Load it with "
                "Posterior.load(path, model, *args), passing the model and its arguments."
            )
        return self._log_density

    def __repr__(self) -> str:
        problems = f"{self.num_problems} problems, " if self.num_problems is not None else ""
        what = "optima of restarts" if self.is_point_estimate else "draws"
        interrupted = ", interrupted" if self.interrupted else ""
        return (
            f"Posterior({problems}{self.num_chains} chains x {self.num_draws} {what} by "
            f"{self.attributes.get('method')}{interrupted}; sites "
            f"{', '.join(self.latent_sites + self.deterministic_sites)})"
        )

    def __getitem__(self, problem: int) -> Posterior:
        """The posterior of one problem of a batched run."""
        if self.num_problems is None:
            raise ResultError("posterior: holds a single problem; there is nothing to index")
        if not -self.num_problems <= problem < self.num_problems:
            raise IndexError(f"problem {problem} of {self.num_problems}")
        return Posterior(
            {name: draws[problem] for name, draws in self._latent.items()},
            self.log_prob[problem],
            {name: value[problem] for name, value in self.stats.items()},
            self.attributes,
            None if self._log_density is None else self._log_density.problem(problem),
            {name: (mean[problem], std[problem]) for name, (mean, std) in self._stored.items()},
        )

    def site_shape(self, site: str) -> torch.Size:
        """Shape of one value of a site."""
        self._check_site(site)
        if site in self._latent:
            return self._latent[site].shape[self.log_prob.ndim :]
        if self._log_density is None:
            lead = 0 if self.num_problems is None else 1
            return self._stored[site][0].shape[lead:]
        return self.model.sites.deterministic[site]

    # ------------------------------------------------------------------ draws

    def draws(self, site: str) -> Tensor:
        """All draws of a site, ``(*problems, chains, draws, *site_shape)``.

        For a deterministic site this computes and returns every draw; `mean`, `std`,
        `quantile`, `exceedance` and `chunks` do not need that much memory.
        """
        self._check_site(site)
        if site in self._latent:
            return self._latent[site]
        drawn = torch.cat(list(self.chunks(site)))
        if self.num_problems is not None:
            drawn = drawn.movedim(0, 1)
        return drawn.reshape(*self.log_prob.shape, *self.site_shape(site))

    def chunks(self, site: str) -> Iterator[Tensor]:
        """Draws of a site, chain after chain, in chunks ``(k, *problems, *site_shape)``."""
        self._check_site(site)
        flat = {name: self._flat(value) for name, value in self._latent.items()}
        if site in flat:
            drawn = _draws_first(flat[site], self.num_problems)
            yield from drawn.split(max(1, CHUNK_BYTES * len(drawn) // (4 * drawn.numel())))
            return
        batch = self.num_problems or 1
        size = max(1, CHUNK_BYTES // (4 * batch * max(1, self.site_shape(site).numel())))
        axis = 0 if self.num_problems is None else 1
        for begin in range(0, self.num_chains * self.num_draws, size):
            length = min(size, self.num_chains * self.num_draws - begin)
            part = {name: value.narrow(axis, begin, length) for name, value in flat.items()}
            drawn = self.model.map_draws(lambda trace: {"_": trace.nodes[site]["value"]}, part)
            yield _draws_first(drawn["_"], self.num_problems)

    def mode(self, site: str) -> Tensor:
        """Value of a site at the draw (or restart) of highest density, ``(*problems, *shape)``.

        For `bayesgen.inference.MAP` this is the MAP estimate.
        """
        self._check_site(site)
        return self._pick(self.log_prob.flatten(-2).argmax(-1), site)

    def draw(self, site: str, index: int) -> Tensor:
        """One draw of a site, counted chain after chain, ``(*problems, *site_shape)``."""
        self._check_site(site)
        total = self.num_chains * self.num_draws
        if not -total <= index < total:
            raise IndexError(f"draw {index} of {total}")
        problems = self.log_prob.shape[:-2]
        return self._pick(torch.full(problems, index % total, dtype=torch.int64), site)

    def last_draws(self) -> dict[str, Tensor]:
        """Last draw of every chain: a start for `infer` that continues this run."""
        axis = self.log_prob.ndim - 1
        return {name: value.select(axis, -1) for name, value in self._latent.items()}

    # ------------------------------------------------------------------ statistics

    def mean(self, site: str) -> Tensor:
        """Posterior mean of a site, ``(*problems, *site_shape)``."""
        return self._mean_and_std("mean", site)[0]

    def std(self, site: str) -> Tensor:
        """Posterior standard deviation of a site, element by element."""
        return self._mean_and_std("std", site)[1]

    def quantile(self, site: str, level: float | list[float]) -> Tensor:
        """Posterior quantiles of a site, element by element.

        Parameters
        ----------
        site
            Name of a latent or deterministic site.
        level
            A probability in [0, 1], or a list of them, which adds a leading axis.

        Returns
        -------
        Tensor
            Exact if all draws of the site fit into 256 MiB; otherwise accurate to 1/1024 of each
            element's range, in constant memory.
        """
        self._check_draws("quantile", site)
        levels = [level] if isinstance(level, int | float) else list(level)
        if not levels or not all(0.0 <= q <= 1.0 for q in levels):
            raise OptionError(f"level: got {level!r}; expected probabilities between 0 and 1")
        result = streaming.quantiles(
            lambda: self.chunks(site),
            levels,
            lambda: self._moments_of(site),
            EXACT_QUANTILE_BYTES,
            self._num_bytes(site),
        )
        return result[0] if isinstance(level, int | float) else result

    def interval(self, site: str, mass: float = 0.9) -> tuple[Tensor, Tensor]:
        """Ends of the central credible interval that holds ``mass`` of each element."""
        if not 0.0 < mass < 1.0:
            raise OptionError(f"mass: got {mass!r}; expected a probability between 0 and 1")
        low, high = self.quantile(site, [0.5 * (1.0 - mass), 0.5 * (1.0 + mass)])
        return low, high

    def exceedance(self, site: str, threshold: float | Tensor) -> Tensor:
        """Posterior probability that each element of a site exceeds ``threshold``."""
        self._check_draws("exceedance", site)
        return streaming.exceedance(lambda: self.chunks(site), threshold)

    # ------------------------------------------------------------------ judging, showing, keeping

    def summary(self) -> Summary:
        """Whether to trust the result, why, and what to do if not, in words and numbers."""
        from bayesgen.diagnostics import summarise

        return summarise(self)

    def plot(self, site: str | None = None, *, truth: Tensor | None = None) -> Figure:
        """One figure: truth if known, data back-projected, mean, uncertainty, draws.

        See `bayesgen.plot.plot_posterior`.
        """
        from bayesgen.plot import plot_posterior

        return plot_posterior(self, site, truth=truth)

    def to_arviz(self, *, log_likelihood: bool = False) -> Any:
        """ArviZ data: ``InferenceData`` for ArviZ < 1, ``xarray.DataTree`` for ArviZ >= 1.

        See `bayesgen.storage.to_arviz`.
        """
        from bayesgen.storage import to_arviz

        return to_arviz(self, log_likelihood=log_likelihood)

    def to_datatree(self) -> xarray.DataTree:
        """The result as an xarray tree in the ArviZ schema."""
        from bayesgen.storage import to_datatree

        return to_datatree(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write latent draws, statistics of images, diagnostics and provenance to netCDF."""
        from bayesgen.storage import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any = None, *args: Any) -> Posterior:
        """Read a file written by `save`.

        Parameters
        ----------
        path
            The file.
        model, *args
            The model and its arguments, needed for draws, quantiles and plots of deterministic
            sites. Means and standard deviations are in the file.
        """
        from bayesgen.storage import load

        return load(path, model, *args)

    # ------------------------------------------------------------------ inside

    def _check_site(self, site: str) -> None:
        known = self.latent_sites + self.deterministic_sites
        if site not in known:
            raise OptionError(unknown_option("site", site, known))

    def _check_draws(self, question: str, site: str) -> None:
        self._check_site(site)
        if self.is_point_estimate:
            raise ResultError(
                f"{question}: this result holds the optima of {self.num_chains} restarts of "
                f"{self.attributes.get('method')}, which are not draws from the posterior. Use "
                f"mode({site!r}), or infer with a sampler such as method='hmc'."
            )

    def _mean_and_std(self, question: str, site: str) -> tuple[Tensor, Tensor]:
        self._check_draws(question, site)
        if site in self._stored and self._log_density is None:
            return self._stored[site]
        found = self._moments_of(site)
        return found.mean, found.variance.sqrt()

    def _moments_of(self, site: str) -> streaming.Moments:
        if site not in self._moments:
            self._moments[site] = streaming.moments(lambda: self.chunks(site))
        return self._moments[site]

    def _pick(self, index: Tensor, site: str) -> Tensor:
        latent = {}
        for name, value in self._latent.items():
            flat = self._flat(value)
            if self.num_problems is None:
                latent[name] = flat[index][None]
            else:
                latent[name] = flat[torch.arange(len(flat)), index][:, None]
        if site not in latent:
            latent = self.model.map_draws(lambda t: {site: t.nodes[site]["value"]}, latent)
        return latent[site].squeeze(0 if self.num_problems is None else 1)

    def _flat(self, value: Tensor) -> Tensor:
        """Chains and draws as one axis."""
        axis = self.log_prob.ndim - 2
        return value.flatten(axis, axis + 1)

    def _num_bytes(self, site: str) -> int:
        return 4 * self.log_prob.numel() * self.site_shape(site).numel()


def _draws_first(value: Tensor, num_problems: int | None) -> Tensor:
    return value if num_problems is None else value.movedim(1, 0)
