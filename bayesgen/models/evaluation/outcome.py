"""What an evaluation found: a table, a verdict, numbers, and files that hold them."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from bayesgen.models.base import Generator
from bayesgen.models.evaluation.reconstruction import ReconstructionErrors
from bayesgen.models.evaluation.samples import Estimate
from bayesgen.models.evaluation.verdict import Verdict

# Of what is printed, and of its columns, which are two apart.
_WIDTH = 100
_ROW, _JUDGEMENT = (36, 33, 27), (10, 38, 34, 12)


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes
    ----------
    criterion
        Which question it answers: ``"range"``, ``"samples"``, ``"smooth"``, ``"latent law"``,
        ``"far away"``.
    name
        What was measured.
    value
        In words, with its uncertainty where there is one.
    wanted
        What good looks like.
    """

    criterion: str
    name: str
    value: str
    wanted: str


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; printing it gives a table and a verdict.

    Attributes
    ----------
    rows
        The table.
    measures
        All numbers, by part, as JSON can hold them, and the verdict.
    generator
        The generator that was evaluated.
    images
        The images it was evaluated on.
    reconstruction
        Reconstructions of the first of them, and their errors.
    verdict
        Whether what was found is good.
    """

    rows: tuple[Row, ...]
    measures: dict[str, Any]
    generator: Generator
    images: Tensor
    reconstruction: ReconstructionErrors
    verdict: Verdict

    def __str__(self) -> str:
        lines = list(_wrapped(("measure", "value", "good is"), _ROW))
        for criterion, rows in groupby(self._sorted(), key=lambda row: row.criterion):
            lines.append(criterion)
            for row in rows:
                lines += _wrapped((f"  {row.name}", row.value, row.wanted), _ROW)
        lines += ["", *_wrapped(("", "found", "good is", "verdict"), _JUDGEMENT)]
        for each in self.verdict.criteria:
            cells = (each.criterion, each.found, each.wanted, each.status)
            lines += _wrapped(cells, _JUDGEMENT)
        lines += textwrap.wrap(f"overall: {self.verdict.overall}", _WIDTH)
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return the table and the verdict in Markdown."""
        rows = [(row.criterion, row.name, row.value, row.wanted) for row in self._sorted()]
        judgements = [
            (each.criterion, each.found, each.wanted, each.status) for each in self.verdict.criteria
        ]
        table = _markdown(("", "measure", "value", "good is"), rows)
        verdict = _markdown(("", "found", "good is", "verdict"), judgements)
        return f"{table}\n\n{verdict}\n\nOverall: {self.verdict.overall}."

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``evaluation.json``, ``evaluation.md`` and pictures into a folder.

        Returns
        -------
        list
            The files written.
        """
        from bayesgen.models.evaluation.pictures import save_pictures

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table, numbers = folder / "evaluation.md", folder / "evaluation.json"
        table.write_text(self.markdown() + "\n")
        numbers.write_text(json.dumps(self.measures, indent=2, sort_keys=True) + "\n")
        return [table, numbers, *save_pictures(self, folder)]

    def _sorted(self) -> list[Row]:
        """Rows of one criterion together, in the order in which criteria were first looked at."""
        order = list(dict.fromkeys(row.criterion for row in self.rows))
        return sorted(self.rows, key=lambda row: order.index(row.criterion))


def _wrapped(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Lines of one row of a table whose cells are broken where they are too wide."""
    parts = [
        textwrap.wrap(cell, width, subsequent_indent="  ")
        for cell, width in zip(cells, widths, strict=True)
    ]
    for line in zip_longest(*parts, fillvalue=""):
        padded = [part.ljust(width) for part, width in zip(line, widths, strict=True)]
        yield "  ".join(padded).rstrip()


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # A bar, as in |x|, would begin another cell.
    body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(value: Any) -> Any:
    """Replace results by what JSON can hold; infinities become words."""
    if isinstance(value, Estimate):
        return {"value": plain(value.value), "standard_error": plain(value.standard_error)}
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
