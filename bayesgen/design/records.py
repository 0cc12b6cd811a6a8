"""What a loop has done so far, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    header: dict[str, Any] = {
        "kind": _KIND,
        **_identity(loop),
        "spent": loop.spent,
        "behind": loop._behind,
        "records": [
            {"chosen": list(r.chosen), **{name: getattr(r, name) for name in _NUMBERS}}
            for r in loop.records
        ],
    }
    if loop._behind and loop._pending is not None:
        header["pending"] = loop._pending.indices
        tensors["pending"] = loop._pending.scores
    elif loop.records:
        posterior = loop.posterior
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
        If the file is damaged, or of a loop with another pool or seed.
    """
    tensors, header = read_tensors(path, _KIND)
    found = {name: header.get(name) for name in _identity(loop)}
    if found != _identity(loop):
        raise FileFormatError(f"{path}: of a loop with {found}; expected {_identity(loop)}")
    if "values" not in tensors:
        return
    loop.measured = [int(i) for i in tensors["measured"]]
    loop.values, loop.spent = tensors["values"], float(header["spent"])
    images = zip(*(tensors.get(f"record/{name}", ()) for name in _TENSORS), strict=True)
    for number, (fields, (scores, mean, std)) in enumerate(
        zip(header["records"], images, strict=True)
    ):
        numbers = {name: float(fields[name]) for name in _NUMBERS}
        chosen = tuple(int(i) for i in fields["chosen"])
        loop.records.append(
            Record(round=number, chosen=chosen, scores=scores, mean=mean, std=std, **numbers)
        )
    if header["behind"]:
        from bayesgen.design.base import Choice

        loop._behind = True
        loop._pending = Choice([int(i) for i in header["pending"]], tensors["pending"])
        return
    loop._posterior = Posterior(
        _of(tensors, "latent/"),
        tensors["log_prob"],
        _of(tensors, "stats/"),
        header["attributes"],
        LogDensity(loop.model, *loop.data),
    )


def _identity(loop: Loop) -> dict[str, Any]:
    """What two loops have in common if one can go on where the other stopped."""
    pool = loop.pool
    return {"candidates": pool.num_candidates, "numbers": pool.num_numbers, "seed": loop.seed}


def _of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
