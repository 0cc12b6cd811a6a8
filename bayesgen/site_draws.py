"""Draws of a model's sites: the latent ones stored, all others computed in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from bayesgen.errors import ResultError
from bayesgen.log_density import LogDensity

# What all numbers that a model computes for one chunk of draws may occupy.
CHUNK_BYTES = 16 * 2**20

Extract = Callable[[poutine.Trace], dict[str, Tensor]]


class SiteDraws:
    """Draws of the sites of a model, numbered chain after chain.

    Parameters
    ----------
    latent
        Draws by latent site, ``(*problems, chains, draws, *site_shape)``.
    lead
        The leading axes ``(*problems, chains, draws)``.
    log_density
        The conditioned model, or None: then only latent sites can be asked for.
    seed
        Of the noise of generated sites, which is the same whenever a draw is asked for. None for
        optima: generated sites then take their means.
    problem
        Number of the problem in the batch that it comes from.

    Attributes
    ----------
    num_problems : int or None
        Number of problems of a batched run, else None.
    count : int
        Number of draws of all chains together.
    axis : int
        The axis of draws once chains and draws are one: 1 if there are problems, else 0.

    Examples
    --------
    >>> import torch
    >>> draws = SiteDraws({"z": torch.arange(6).reshape(2, 3)}, torch.Size([2, 3]), None)
    >>> draws.at("z", torch.tensor([0, 4]))
    tensor([0, 4])
    """

    def __init__(
        self,
        latent: Mapping[str, Tensor],
        lead: torch.Size,
        log_density: LogDensity | None,
        *,
        seed: int | None = None,
        problem: int = 0,
    ) -> None:
        self.latent = dict(latent)
        self.log_density = log_density
        self.num_problems = lead[0] if len(lead) == 3 else None
        self.count = lead[-2] * lead[-1]
        self.axis = len(lead) - 2
        self._lead = lead
        self._seed = seed
        self._problem = problem

    @property
    def model(self) -> LogDensity:
        """The conditioned model, or an error that says how to get it."""
        if self.log_density is None:
            raise ResultError(
                "posterior: was loaded without its model, which is needed here. Load it with "
                "Posterior.load(path, model, *args), passing the model and its arguments."
            )
        return self.log_density

    def all(self, site: str) -> Tensor:
        """All draws of a site, ``(*problems, chains, draws, *site_shape)``."""
        if site in self.latent:
            return self.latent[site]
        drawn = self.evaluate(values_of([site]))[site]
        return drawn.reshape(self._lead + drawn.shape[self.axis + 1 :])

    def at(self, site: str, index: Tensor) -> Tensor:
        """Some draws of a site, ``(*problems, k, *site_shape)``; see `evaluate`."""
        if site in self.latent:
            return self._latent_at(index)[site]
        return self.evaluate(values_of([site]), index)[site]

    def chunks(self, site: str) -> Iterator[Tensor]:
        """Draws of a site, in order, in chunks ``(k, *problems, *site_shape)``."""
        if site in self.latent:
            parts = (latent[site] for latent in self._latent_chunks())
        else:
            parts = (values[site] for values in self._evaluated(values_of([site])))
        for part in parts:
            yield part.movedim(self.axis, 0)

    def evaluate(self, extract: Extract, index: Tensor | None = None) -> dict[str, Tensor]:
        """Run the model on draws, in chunks, and collect what ``extract`` returns.

        Parameters
        ----------
        extract
            Function of one conditioned trace that returns a dictionary of tensors.
        index
            Numbers of draws: ``(k,)``, or ``(num_problems, k)`` for different draws of each
            problem. All by default.

        Returns
        -------
        dict
            The tensors of ``extract`` with leading axes ``(*problems, k)``.
        """
        parts = list(self._evaluated(extract, index))
        return {name: torch.cat([part[name] for part in parts], self.axis) for name in parts[0]}

    def _evaluated(
        self, extract: Extract, index: Tensor | None = None
    ) -> Iterator[dict[str, Tensor]]:
        # Whatever is asked for, the model computes all of its sites.
        sites = self.model.sites
        shapes = [*sites.deterministic.values(), *(y.shape for y in sites.observed.values())]
        shapes += sites.generated.values()
        for part in self._parts(index, sum(shape.numel() for shape in shapes)):
            yield self.model.map_draws(extract, self._latent_at(part), self._noise_at(part))

    def _latent_chunks(self) -> Iterator[dict[str, Tensor]]:
        for part in self._parts():
            yield self._latent_at(part)

    def _parts(self, index: Tensor | None = None, num_computed: int = 0) -> Iterator[Tensor]:
        """Numbers of draws in chunks that leave room for ``num_computed`` more numbers a draw."""
        index = torch.arange(self.count) if index is None else index
        stored = sum(value.numel() for value in self.latent.values()) // self.count
        numbers = max(1, stored + num_computed * (self.num_problems or 1))
        element = max(value.element_size() for value in self.latent.values())
        yield from torch.split(index, max(1, CHUNK_BYTES // (element * numbers)), dim=-1)

    def _latent_at(self, index: Tensor) -> dict[str, Tensor]:
        chosen = {}
        for name, value in self.latent.items():
            flat = value.flatten(self.axis, self.axis + 1)
            where = index.to(flat.device)
            if self.num_problems is None:
                chosen[name] = flat[where]
            else:
                problem = torch.arange(self.num_problems, device=flat.device)[:, None]
                chosen[name] = flat[problem, where]
        return chosen

    def _noise_at(self, index: Tensor) -> dict[str, Tensor] | None:
        """Noise of the generated sites of some draws: a stream of its own for every draw."""
        generated, model = self.model.sites.generated, self.model
        if self._seed is None or not generated:
            return None
        problems = [self._problem] if self.num_problems is None else range(self.num_problems)
        numbers = index.expand(len(problems), -1).tolist()
        sizes = [shape.numel() for shape in generated.values()]
        rows = [
            torch.from_numpy(_stream(self._seed, problem, draw).standard_normal(sum(sizes)))
            for problem, row in zip(problems, numbers, strict=True)
            for draw in row
        ]
        lead = index.shape[-1:] if self.num_problems is None else (len(problems), len(numbers[0]))
        flat = torch.stack(rows).to(model.device, model.dtype).reshape(*lead, sum(sizes))
        blocks = flat.split(sizes, dim=-1)
        return {
            name: block.reshape(*lead, *shape)
            for (name, shape), block in zip(generated.items(), blocks, strict=True)
        }


def _stream(seed: int, problem: int, draw: int) -> np.random.Generator:
    """Random numbers of one draw of one problem, which overlap with no other's."""
    return np.random.Generator(np.random.Philox(key=[seed, problem], counter=[0, 0, draw, 0]))


def values_of(sites: Sequence[str]) -> Extract:
    """The extraction that takes the values of some sites."""

    def extract(trace: poutine.Trace) -> dict[str, Tensor]:
        nodes: Mapping[str, Any] = trace.nodes
        return {name: nodes[name]["value"] for name in sites}

    return extract
