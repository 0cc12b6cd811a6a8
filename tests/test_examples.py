"""The examples run as they are and draw what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed(name: str, folder: Path, *options: str) -> list[str]:
    """Lines that an example prints; its pictures are in the folder then."""
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--out", str(folder), *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    return run.stdout.splitlines()


@pytest.mark.slow
def test_operators_gallery(tmp_path: Path) -> None:
    *reports, last = printed("operators_gallery.py", tmp_path)
    assert len(reports) == 15
    assert all(line.endswith("  ok") for line in reports)
    assert last.startswith("Picture: ")
    assert (tmp_path / "operators_gallery.png").stat().st_size > 50_000


@pytest.mark.slow
def test_adaptive_ct(tmp_path: Path) -> None:
    lines = printed("adaptive_ct.py", tmp_path, "--quick")
    assert sum(" dB " in line for line in lines) == 2
    assert any(line.startswith("Adaptive angles") for line in lines)
    assert lines[-1].startswith("Pictures: ")
    assert (tmp_path / "adaptive_ct.png").stat().st_size > 20_000
    assert (tmp_path / "adaptive_ct.gif").read_bytes()[:3] == b"GIF"


@pytest.mark.slow
def test_find_the_maximum(tmp_path: Path) -> None:
    *_, names, first, second, last = printed("find_the_maximum.py", tmp_path, "--quick")
    assert names.split() == ["pixels", "Thompson", "UCB", "random"]
    regrets = [[float(value) for value in line.split()[1:]] for line in (first, second)]
    assert all(0 <= late <= early <= 1 for early, late in zip(*regrets, strict=True))
    assert last.startswith("Pictures: ")
    assert (tmp_path / "find_the_maximum.png").stat().st_size > 20_000
    assert (tmp_path / "find_the_maximum.gif").read_bytes()[:3] == b"GIF"
