"""The examples run as they are and draw what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_operators_gallery(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "operators_gallery.py"), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    *reports, last = run.stdout.splitlines()
    assert len(reports) == 15
    assert all(line.endswith("  ok") for line in reports)
    assert last.startswith("Picture: ")
    assert (tmp_path / "operators_gallery.png").stat().st_size > 50_000
