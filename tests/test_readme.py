"""Every ``python`` block of the README and of the documentation runs as it is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bayesgen as bg

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Blocks of one page share a namespace, as they do for a reader who types them in. Empty lines
# before each block make line numbers in a traceback those of the page.
RUNNER = """
import json, sys
path, blocks = json.load(sys.stdin)
namespace = {"__name__": "__main__"}
for line, source in blocks:
    exec(compile("\\n" * line + source, path, "exec"), namespace)
"""


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line before which each ``python`` block starts, counted from zero, and its source."""
    pattern = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(1)), m[1]) for m in pattern.finditer(text)]


def run_page(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page in order, in an empty folder and without a display."""
    blocks = python_blocks(path.read_text(encoding="utf-8"))
    package = Path(bg.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([str(path), blocks]),
        cwd=folder,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [page for page in PAGES if python_blocks(page.read_text(encoding="utf-8"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_page_runs(path: Path, tmp_path: Path) -> None:
    result = run_page(path, tmp_path)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_compiles(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = python_blocks(text)
    assert len(blocks) == len(re.findall(r"^\s*```\s*py", text, flags=re.MULTILINE)), (
        f"{path.name}: a Python block is indented, unclosed or not marked exactly ```python"
    )
    for line, source in blocks:
        compile("\n" * line + source, str(path), "exec")


def test_blocks_share_names_and_failures_carry_the_line_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\na = 1\n```\ntext\n```python\nassert a == 2\n```\n")
    result = run_page(page, tmp_path)
    assert result.returncode != 0
    assert f'{page}", line 8' in result.stderr
    page.write_text(page.read_text().replace("== 2", "== 1"))
    assert run_page(page, tmp_path).returncode == 0


def test_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = set(re.findall(r"^\s*make ([a-z-]+)", readme, flags=re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    assert {"demo", "test"} <= commands
    assert commands <= targets
