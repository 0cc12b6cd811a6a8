"""What every method returns: draws, image statistics, and whether to trust them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesgen import streaming
from bayesgen.errors import OptionError, ResultError, unknown_option
from bayesgen.log_density import LogDensity
from bayesgen.site_draws import Extract, SiteDraws, values_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayesgen.basins import Basin
    from bayesgen.diagnostics import Summary

# Draws of one site that fit into this are sorted for exact quantiles.
EXACT_QUANTILE_BYTES = 256 * 2**20


class Posterior:
    """Draws from a posterior (or the optima of an optimiser) and what can be asked of them.

    Only latent draws are stored. Deterministic sites, such as the image, are computed from them
    when needed, in chunks, and their statistics are kept: memory does not grow with image size
    times draws. So are generated sites, with noise that is the same whenever a draw is asked for.

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
        Statistics of deterministic sites that can be answered without the model:
        ``statistics[site]["mean"]``, ``["std"]``, or ``["mode"]`` for a point estimate.

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
        statistics: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.log_prob = log_prob
        self.stats = dict(stats)
        self.attributes = dict(attributes)
        self._draws = SiteDraws(
            latent,
            log_prob.shape,
            log_density,
            seed=None if self.is_point_estimate else int(self.attributes.get("seed", 0)),
            problem=int(self.attributes.get("problem", 0)),
        )
        self._stored = dict(statistics or {})
        self._moments: dict[str, streaming.Moments] = {}

    # ------------------------------------------------------------------ what it holds

    @property
    def latent_sites(self) -> list[str]:
        """Names of the latent sites."""
        return list(self._draws.latent)

    @property
    def deterministic_sites(self) -> list[str]:
        """Names of the ``pyro.deterministic`` sites, and of those marked as generated."""
        return list(self.model.sites.deterministic if self.has_model else self._stored)

    @property
    def num_problems(self) -> int | None:
        """Number of problems of a batched run, else None."""
        return self._draws.num_problems

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
    def log_evidence(self) -> Tensor:
        """Logarithm of the probability density of the data, ``(*problems, chains)``.

        One estimate a chain: their spread says how good they are. Factors count as likelihood,
        and so does what a weight adds to a prior: they are not normalised.

        Raises
        ------
        ResultError
            If the method does not estimate it, or the density of the data is known up to a
            constant only.
        """
        if "log_evidence" not in self.stats:
            raise ResultError(
                f"log_evidence: {self.attributes.get('method')} does not estimate it; infer with a "
                "method that tempers, such as method='smc'"
            )
        from bayesgen.diagnostics import likelihoods

        laws = [law for law, _ in likelihoods(self)] if self.has_model else []
        if not all(getattr(law, "is_normalised", True) for law in laws):
            raise ResultError(
                "log_evidence: the density of the data is known up to a constant only, which "
                "depends on the operator, sigma and the scale; integrate the deviation out by its "
                "spectrum (smaller images or data), or compare models by validation"
            )
        return self.stats["log_evidence"][..., -1]

    @property
    def has_model(self) -> bool:
        """Whether the conditioned model is at hand; not if loaded from a file without it."""
        return self._draws.log_density is not None

    @property
    def model(self) -> LogDensity:
        """The conditioned model.

        Raises
        ------
        ResultError
            If the result was loaded from a file without its model.
        """
        return self._draws.model

    @property
    def observed(self) -> dict[str, Tensor]:
        """Values of the observed sites, ``(*problems, *site_shape)``; empty without the model."""
        if not self.has_model or not self.model.sites.observed:
            return {}
        first = torch.zeros(1, dtype=torch.int64)
        found = self.evaluate(values_of(list(self.model.sites.observed)), first)
        return {name: value.select(self._draws.axis, 0) for name, value in found.items()}

    def __repr__(self) -> str:
        problems = f"{self.num_problems} problems, " if self.num_problems is not None else ""
        run = (
            f"optima of {self.num_chains} restarts"
            if self.is_point_estimate
            else f"{self.num_chains} chains x {self.num_draws} draws"
        )
        interrupted = ", interrupted" if self.interrupted else ""
        return (
            f"Posterior({problems}{run} by {self.attributes.get('method')}{interrupted}; sites "
            f"{', '.join(self.latent_sites + self.deterministic_sites)})"
        )

    def __getitem__(self, problem: int) -> Posterior:
        """The posterior of one problem of a batched run."""
        if self.num_problems is None:
            raise ResultError("posterior: holds a single problem; there is nothing to index")
        if not -self.num_problems <= problem < self.num_problems:
            raise IndexError(f"problem {problem} of {self.num_problems}")
        return Posterior(
            {name: draws[problem] for name, draws in self._draws.latent.items()},
            self.log_prob[problem],
            {name: value[problem] for name, value in self.stats.items()},
            {**self.attributes, "problem": problem % self.num_problems},
            self.model.problem(problem) if self.has_model else None,
            {
                site: {name: value[problem] for name, value in known.items()}
                for site, known in self._stored.items()
            },
        )

    def site_shape(self, site: str) -> torch.Size:
        """Shape of one value of a site."""
        self._check_site(site)
        if site in self._draws.latent:
            return self._draws.latent[site].shape[self.log_prob.ndim :]
        if self.has_model:
            return self.model.sites.deterministic[site]
        return next(iter(self._stored[site].values())).shape[self.log_prob.ndim - 2 :]

    def num_bytes(self, site: str) -> int:
        """Bytes that all draws of a site take."""
        element = self.log_prob.element_size()
        return element * self.log_prob.numel() * self.site_shape(site).numel()

    # ------------------------------------------------------------------ draws

    def draws(self, site: str) -> Tensor:
        """All draws of a site, ``(*problems, chains, draws, *site_shape)``.

        For a deterministic site this computes and returns every draw; `mean`, `std`,
        `quantile`, `exceedance` and `chunks` do not need that much memory.
        """
        self._check_site(site)
        return self._draws.all(site)

    def chunks(self, site: str) -> Iterator[Tensor]:
        """Draws of a site, chain after chain, in chunks ``(k, *problems, *site_shape)``."""
        self._check_site(site)
        return self._draws.chunks(site)

    def mode(self, site: str) -> Tensor:
        """Value of a site at the draw (or restart) of highest density, ``(*problems, *shape)``.

        For `bayesgen.inference.MAP` this is the MAP estimate.
        """
        self._check_site(site)
        if not self.has_model and "mode" in self._stored.get(site, {}):
            return self._stored[site]["mode"]
        # A restart that broke down has no density; it is not the best one.
        best = self.log_prob.nan_to_num(-torch.inf).flatten(-2).argmax(-1, keepdim=True)
        return self._draws.at(site, best).squeeze(self._draws.axis)

    def draw(self, site: str, index: int) -> Tensor:
        """One draw of a site, counted chain after chain, ``(*problems, *site_shape)``."""
        self._check_site(site)
        total = self.num_chains * self.num_draws
        if not -total <= index < total:
            raise IndexError(f"draw {index} of {total}")
        return self._draws.at(site, torch.tensor([index % total])).squeeze(self._draws.axis)

    def last_draws(self) -> dict[str, Tensor]:
        """Last draw of every chain: a start for `infer` that continues this run."""
        axis = self.log_prob.ndim - 1
        return {name: value.select(axis, -1) for name, value in self._draws.latent.items()}

    def basins(
        self, *, tolerance: float = 0.1, distance: float = 0.1
    ) -> list[Basin] | list[list[Basin]]:
        """Which restarts of an optimiser ended at the same optimum.

        Parameters
        ----------
        tolerance
            Log densities in one basin differ by at most this, in nats.
        distance
            Points in one basin differ by at most this, root mean square, in prior standard
            deviations.

        Returns
        -------
        list
            Basins, the best first; of a batched run, a list of them for every problem.

        Examples
        --------
        >>> import pyro, torch, bayesgen as bg
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z**2, 0.1), obs=y)
        >>> found = bg.infer(model, torch.tensor(1.0), method="map", chains=8, progress=False)
        >>> len(found.basins())  # near 1 and near -1
        2
        """
        from bayesgen.basins import find_basins

        return find_basins(self, tolerance=tolerance, distance=distance)

    def laplace(self, *, draws: int = 500, seed: int = 0) -> Posterior:
        """Draws from the Laplace approximation: the normal law with the curvature at the optimum.

        A quick look at the uncertainty around the best restart. It knows of no other mode and of no
        skewness, and its summary says so; sample where it matters.

        Parameters
        ----------
        draws
            From each of four independent sets, which stand for chains.
        seed
            Of the draws.

        Returns
        -------
        Posterior
            By Gauss-Newton where all sites are normal, else by the full Hessian, in unconstrained
            coordinates.

        Raises
        ------
        ResultError
            If this result does not hold optima, or the optimum is not a strict maximum.
        OptionError
            If there are more than 1000 unknowns.

        Examples
        --------
        >>> import pyro, torch, bayesgen as bg
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 0.5), obs=y)
        >>> point = bg.infer(model, torch.tensor(1.0), method="map", progress=False)
        >>> abs(float(point.laplace().std("z")) - 0.2**0.5) < 0.05
        True
        """
        from bayesgen.laplace import laplace

        return laplace(self, draws=draws, seed=seed)

    def evaluate(self, extract: Extract, index: Tensor | None = None) -> dict[str, Tensor]:
        """What the conditioned model computes at draws, such as predictions or log likelihoods.

        Parameters
        ----------
        extract
            Function of one conditioned trace that returns a dictionary of tensors.
        index
            Numbers of draws, counted chain after chain: ``(k,)``, or ``(num_problems, k)`` for
            different draws of each problem. All by default.

        Returns
        -------
        dict
            The tensors of ``extract`` with leading axes ``(*problems, k)``.

        Examples
        --------
        >>> import pyro, torch, bayesgen as bg
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 0.5), obs=y)
        >>> posterior = bg.infer(model, torch.tensor(1.0), progress=False)
        >>> found = posterior.evaluate(lambda trace: {"predicted": trace.nodes["y"]["fn"].mean})
        >>> found["predicted"].shape
        torch.Size([2000])
        """
        return self._draws.evaluate(extract, index)

    # ------------------------------------------------------------------ statistics

    def mean(self, site: str) -> Tensor:
        """Posterior mean of a site, ``(*problems, *site_shape)``."""
        return self._statistic("mean", site)

    def std(self, site: str) -> Tensor:
        """Posterior standard deviation of a site, element by element."""
        return self._statistic("std", site)

    def quantile(self, site: str, level: float | Sequence[float]) -> Tensor:
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
            element's range, in memory that does not grow with the number of draws.
        """
        self._check_draws("quantile", site)
        levels = [level] if isinstance(level, int | float) else list(level)
        if not levels or not all(0.0 <= q <= 1.0 for q in levels):
            raise OptionError(f"level: got {level!r}; expected probabilities between 0 and 1")
        if self.num_bytes(site) <= EXACT_QUANTILE_BYTES:
            result = streaming.exact_quantiles(lambda: self.chunks(site), levels)
        else:
            moments = self._moments_of(site)
            result = streaming.histogram_quantiles(lambda: self.chunks(site), levels, moments)
        return result[0] if isinstance(level, int | float) else result

    def interval(self, site: str, mass: float = 0.9) -> tuple[Tensor, Tensor]:
        """Ends of the central credible interval that holds ``mass`` of each element."""
        if not 0.0 < mass < 1.0:
            raise OptionError(f"mass: got {mass!r}; expected a probability between 0 and 1")
        low, high = self.quantile(site, [0.5 * (1.0 - mass), 0.5 * (1.0 + mass)])
        return low, high

    def exceedance(self, site: str, threshold: float | Tensor) -> Tensor:
        """Posterior probability that each element of a site exceeds ``threshold``.

        A tensor of thresholds must broadcast to ``(*problems, *site_shape)``.
        """
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
            sites. Means and standard deviations (the mode of a point estimate) are in the file.
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

    def _statistic(self, name: str, site: str) -> Tensor:
        self._check_draws(name, site)
        if site in self._stored and not self.has_model:
            return self._stored[site][name]
        moments = self._moments_of(site)
        return moments.mean if name == "mean" else moments.variance.sqrt()

    def _moments_of(self, site: str) -> streaming.Moments:
        if site not in self._moments:
            self._moments[site] = streaming.moments(lambda: self.chunks(site))
        return self._moments[site]
