from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bayesgen
from bayesgen.cli import main, train
from bayesgen.errors import DataError


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"bayesgen {bayesgen.__version__}\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "train a generator on images" in text and "evaluate" in text


@pytest.mark.parametrize("words", [[], ["learn"], ["train"], ["train", "vae", "--nonsense"]])
def test_words_that_are_not_understood(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.startswith("usage: bayesgen")


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        raise error

    return run


WORDS = ["train", "vae", "--data", "shapes", "--out", "never-written", "--limit", "1"]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DataError("images: two\nlines"), 1, "bayesgen: images: two lines\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "bayesgen: [Errno 13] Permission denie"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["ours", "system", "Ctrl-C"],
)
def test_errors_are_one_line_and_a_status(
    error: BaseException,
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "_run", raising(error))
    assert main(WORDS) == status
    message = capsys.readouterr().err
    assert message.startswith(text) and message.count("\n") == 1


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(WORDS)


def test_the_command_is_remembered_without_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(train, "_run", lambda options: seen.append(options.command) or 0)
    assert main([*WORDS, "--resume"]) == 0
    main(["train", "vae", "--data", "my images", "--out", "x"])
    assert seen == [
        "bayesgen train vae --data shapes --out never-written --limit 1",
        "bayesgen train vae --data 'my images' --out x",
    ]


def test_the_words_of_the_process_are_read(tmp_path: Path) -> None:
    code = "import sys; from bayesgen.cli import main; sys.exit(main())"
    found = subprocess.run(
        [sys.executable, "-c", code, "train", "vae", "--data", "nowhere", "--out", "x"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(bayesgen.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    assert found.stderr.startswith("bayesgen: nowhere: no such file") and not found.stdout
    assert list(tmp_path.iterdir()) == []
