"""What a loop has done so far, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesgen.design.base import Choice
from bayesgen.errors import FileFormatError
from bayesgen.log_density import LogDensity
from bayesgen.models.files import read_tensors, write_tensors
from bayesgen.posterior import Posterior

if TYPE_CHECKING:
    from bayesgen.design.loop import Loop

_KIND = "acquisition loop"
_NUMBERS = ("spent", "uncertainty", "seconds_choosing", "seconds_updating")
_TENSORS = ("scores", "mean", "std")


@dataclass(frozen=True, eq=False)
class Record:
    """One round of a loop.

    Attributes
    ----------
    round
        Its number, from 0.
    chosen
        Candidates measured, in order.
    scores
        Scores of all candidates before the first of them was chosen, ``(n,)``; NaN for those that
        were not available.
    spent
        What has been spent, this round included.
    uncertainty
        Root of the mean posterior variance of the image.
    mean, std
        Posterior mean and standard deviation of the image.
    seconds_choosing, seconds_updating
        Time that the choice and the new posterior took.
    """

    round: int
    chosen: tuple[int, ...]
    scores: Tensor
    spent: float
    uncertainty: float
    mean: Tensor
    std: Tensor
    seconds_choosing: float
    seconds_updating: float

    def __str__(self) -> str:
        chosen = ", ".join(map(str, self.chosen[:8])) + (", ..." if len(self.chosen) > 8 else "")
        seconds = self.seconds_choosing + self.seconds_updating
        return (
            f"round {self.round}: measured {chosen}; {self.spent:g} spent; uncertainty "
            f"{self.uncertainty:.4g} ({seconds:.1f} s)"
        )


def write_loop(loop: Loop, path: Path) -> None:
    """Write what a loop has measured, its records and its posterior draws."""
    tensors: dict[str, Tensor] = {}
    if loop.values is not None:
        tensors = {"measured": torch.tensor(loop.measured), "values": loop.values}
    for name in _TENSORS:
        if loop.records:
            tensors[f"record/{name}"] = torch.stack([getattr(r, name) for r in loop.records])
    tensors["pool"] = _fingerprint(loop)
    header: dict[str, Any] = {
        "kind": _KIND,
        **_identity(loop),
        "behind": loop._behind,
        "records": [
            {"chosen": list(r.chosen), **{name: getattr(r, name) for name in _NUMBERS}}
            for r in loop.records
        ],
    }
    if loop._pending is not None:
        header["pending"] = loop._pending.indices
        tensors["pending"] = loop._pending.scores
    if loop.records and loop._posterior is not None:
        posterior = loop._posterior
        header["attributes"] = posterior.attributes
        tensors["log_prob"] = posterior.log_prob
        for name in posterior.latent_sites:
            tensors[f"latent/{name}"] = posterior.draws(name)
        for name, value in posterior.stats.items():
            tensors[f"stats/{name}"] = value
    write_tensors(path, tensors, header)


def read_loop(loop: Loop, path: Path) -> None:
    """Take a loop to where it was when it was written.

    Raises
    ------
    FileFormatError
        If the file is damaged, or of a loop with another pool, seed, site or model.
    """
    tensors, header = read_tensors(path, _KIND)
    found = {name: header.get(name) for name in _identity(loop)}
    if found != _identity(loop):
        raise FileFormatError(f"{path}: of a loop with {found}; expected {_identity(loop)}")
    pool = _fingerprint(loop)
    # Not to the last digit: it may have been written on another machine.
    if not torch.allclose(tensors["pool"].to(pool), pool, rtol=1e-3, atol=1e-3):
        raise FileFormatError(f"{path}: of a loop with another pool of {len(pool)} candidates")
    if "pending" in header:
        loop._pending = Choice([int(i) for i in header["pending"]], tensors["pending"])
    if "values" not in tensors:
        return
    loop.measured = [int(i) for i in tensors["measured"]]
    loop.values, loop._behind = tensors["values"].to(loop._example), bool(header["behind"])
    images = zip(*(tensors.get(f"record/{name}", ()) for name in _TENSORS), strict=True)
    for number, (fields, (scores, mean, std)) in enumerate(
        zip(header["records"], images, strict=True)
    ):
        numbers = {name: float(fields[name]) for name in _NUMBERS}
        chosen = tuple(int(i) for i in fields["chosen"])
        loop.records.append(
            Record(round=number, chosen=chosen, scores=scores, mean=mean, std=std, **numbers)
        )
    if loop.records:
        loop._posterior = _posterior(loop, path, tensors, header["attributes"])


def _posterior(
    loop: Loop, path: Path, tensors: dict[str, Tensor], attributes: dict[str, Any]
) -> Posterior:
    """Of the data of all records; data that came later may wait for theirs."""
    count = sum(len(record.chosen) for record in loop.records)
    measured, values = loop.measured[:count], loop.values
    assert values is not None
    operator, y = loop.pool.at(measured), loop.pool.arrange(values[:count], measured)
    log_density = LogDensity(loop.model, operator, y)
    latents = _of(tensors, "latent/")
    origin = log_density.constrain(y.new_zeros(1, 1, log_density.num_dims))
    for name in {**latents, **origin}:
        shapes = [tuple(s[name].shape[2:]) if name in s else None for s in (latents, origin)]
        if shapes[0] != shapes[1]:
            raise FileFormatError(
                f"{path}: of a loop whose model has {name!r} of shape {shapes[0]}; this one's has "
                f"{shapes[1]}"
            )
    stats = _of(tensors, "stats/")
    return Posterior(latents, tensors["log_prob"], stats, attributes, log_density)


def _identity(loop: Loop) -> dict[str, Any]:
    """What two loops have in common if one can go on where the other stopped."""
    pool = loop.pool
    return {
        "candidates": pool.num_candidates,
        "numbers": pool.num_numbers,
        "seed": loop.seed,
        "site": loop.site,
        "chains": loop._chains,
    }


def _fingerprint(loop: Loop) -> Tensor:
    """Data of a random image, and costs, of each candidate: ``(n, 2)``."""
    pool = loop.pool
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(pool.operator.domain_shape, generator=rng).to(loop._example)
    with torch.no_grad():
        data = pool.data(image).sum(-1)
    return torch.stack([data, pool.costs_from(0).to(data)], -1).cpu()


def _of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
