from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bayesgen.cli.data import add_data, read_data
from bayesgen.datasets import ellipses, multi_gradient_mnist, shapes, write_idx
from bayesgen.errors import FileFormatError, OptionError


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_data(parser)
    return parser.parse_args(list(words))


@pytest.fixture
def digits(tmp_path: Path, rng: torch.Generator) -> Path:
    """A folder with files like those of MNIST: seven training and five test images."""
    for prefix, number in (("train", 7), ("t10k", 5)):
        images = torch.randint(256, (number, 28, 28), generator=rng)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", images)
    return tmp_path


def test_simulated_images() -> None:
    assert torch.equal(read_data(options("--data", "shapes", "--limit", "3"), "train"), shapes(3))
    assert torch.equal(
        read_data(options("--data", "ellipses", "--limit", "2"), "test"), ellipses(2, seed=1)
    )


def test_training_and_test_images_are_others() -> None:
    words = options("--data", "shapes", "--limit", "20")
    train, test = (read_data(words, split).flatten(1) for split in ("train", "test"))
    assert not (train[:, None] == test).all(-1).any()


def test_so_many_are_simulated_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from bayesgen import datasets

    monkeypatch.setattr(datasets, "shapes", lambda num, seed: (num, seed))
    assert read_data(options("--data", "shapes"), "train") == (60_000, 0)
    assert read_data(options("--data", "shapes"), "test") == (10_000, 1)


def test_files_of_mnist(digits: Path) -> None:
    words = options("--data", str(digits))
    train, test = (read_data(words, split) for split in ("train", "test"))
    assert train.shape == (7, 28, 28) and test.shape == (5, 28, 28)
    limited = options("--data", str(digits), "--limit", "3")
    assert torch.equal(read_data(limited, "train"), train[:3])


def test_digits_on_a_ramp(digits: Path) -> None:
    plain = read_data(options("--data", str(digits)), "test")
    found = read_data(options("--data", f"multi-gradient:{digits}", "--limit", "2"), "test")
    assert torch.equal(found, multi_gradient_mnist(plain[:2], seed=1))


def test_arrays_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.full((4, 8, 9), 51, "uint8")
    np.save(tmp_path / "images.npy", pixels)
    words = options("--data", str(tmp_path / "images.npy"), "--limit", "2")
    expected = torch.full((2, 8, 9), 0.2)
    torch.testing.assert_close(read_data(words, "train"), expected)
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(pixels[:2]):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    words = options("--data", str(tmp_path / "pictures"))
    torch.testing.assert_close(read_data(words, "train"), expected)
    # Undivided data serve as test images too, with a warning.
    torch.testing.assert_close(read_data(words, "test"), expected)
    assert "none of it may have been trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["shapes", "--limit", "0"], OptionError, "--limit: expected at least 1, got 0"),
        (["shapes", "--key", "x"], OptionError, "--key: shapes has no named images"),
        (["multi-gradient:/x", "--key", "x"], OptionError, "--key: multi-gradient:/x has no"),
        (["multi-gradient:/nowhere"], FileNotFoundError, "/nowhere is not a folder"),
        (["/nowhere"], FileNotFoundError, "/nowhere: no such file or folder"),
        ([__file__], FileFormatError, "files .py are not understood"),
    ],
)
def test_mistakes(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_data(options("--data", *words), "train")


def test_the_data_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options()
    assert "--data" in capsys.readouterr().err
