"""Everything found is printed, within the width of a terminal, and can be read as JSON."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
import torch

from bayesgen.models import VAE
from bayesgen.models.evaluation import NearestLatent, ReconstructionErrors
from bayesgen.models.evaluation.outcome import Evaluation, Row, plain
from bayesgen.models.evaluation.samples import Estimate
from bayesgen.models.evaluation.verdict import Judgement, Verdict

ROWS = (
    Row("range", "error", "1.0 ± 0.5", "small"),
    Row(
        "samples",
        "size of |x|^2 " + "over and over " * 5,
        "1e-179, " * 9 + "end",
        "many words " * 6,
    ),
    Row("range", "unbroken", "v" * 80, "w" * 80),
    Row("samples", "last", "0", "1"),
)
VERDICT = Verdict(
    (
        Judgement("range", "0.06 a pixel", "small beside |x|", "no threshold"),
        Judgement("samples", "classifier 80.0% right", "50%", "fair"),
    ),
    "fit with care, " * 12 + "as it is",
)


@pytest.fixture
def outcome() -> Evaluation:
    empty = torch.zeros(0)
    errors = ReconstructionErrors({}, NearestLatent(empty, empty, empty, empty, empty))
    return Evaluation(ROWS, {}, VAE((8, 8), 2, width=8, channels=2), empty, errors, VERDICT)


def test_a_terminal_is_wide_enough(outcome: Evaluation) -> None:
    lines = str(outcome).splitlines()
    assert max(map(len, lines)) <= 100
    # Without the columns, everything is there, numbers unbroken, and criteria in one piece each.
    assert sum(line.count("1e-179,") for line in lines) == 9
    assert sum(line.count("v") for line in lines if "vvv" in line) == 80
    headings = [line for line in lines if line in ("range", "samples")]
    assert headings == ["range", "samples"]
    names = [line.split()[0] for line in lines if re.match(r"  \w", line)]
    assert names.index("error") < names.index("unbroken") < names.index("size")


def test_each_judgement_is_one_line_after_the_table_and_the_sentence_is_last(
    outcome: Evaluation,
) -> None:
    table, verdict = str(outcome).split("\n\n")
    header, *lines = verdict.splitlines()
    assert header.split() == ["found", "good", "is", "verdict"] and "error" in table
    for judgement, line in zip(VERDICT.criteria, lines, strict=False):
        cells = (judgement.criterion, judgement.found, judgement.wanted, judgement.status)
        assert re.split("  +", line) == list(cells)
    assert " ".join(lines[2:]) == f"overall: {VERDICT.overall}"


def test_markdown_has_four_cells_a_row_and_the_verdict(outcome: Evaluation) -> None:
    text = outcome.markdown()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(ROWS) + 2 + len(VERDICT.criteria)
    # An unescaped bar begins a cell.
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in rows)
    assert r"size of \|x\|^2" in text and r"small beside \|x\|" in text
    assert text.endswith(f"Overall: {VERDICT.overall}.")


def test_plain_values() -> None:
    @dataclass(frozen=True)
    class Found:
        estimate: Estimate
        ends: tuple[float, float]
        name: str

    found = plain({1: Found(Estimate(1.0, math.nan), (0.5, math.inf), "n"), "none": None})
    estimate = {"value": 1.0, "standard_error": "nan"}
    assert found == {
        "1": {"estimate": estimate, "ends": [0.5, "inf"], "name": "n"},
        "none": None,
    }
