"""`bayesgen evaluate` on every kind of data that `bayesgen train` takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bayesgen.cli import main
from bayesgen.datasets import shapes
from bayesgen.models import VAE, save_generator


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    path = tmp_path / "generator.safetensors"
    save_generator(VAE((8, 8), 2, width=8, channels=2), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Undivided images."""
    path = tmp_path / "images.npy"
    np.save(path, shapes(120, seed=0)[:, ::7, ::7].numpy())
    return path


def test_undivided_data_are_evaluated_with_a_warning(
    generator: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.parent / "report"
    assert main(["evaluate", str(generator), "--data", str(data), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "none of it may have been trained on" in said.err
    assert "measuring: reconstruction" in said.err
    assert "nearest image in the range" in said.out and "wrote 7 files" in said.out
    assert "overall: " in said.out
    assert max(map(len, said.out.replace(str(out), "").splitlines())) <= 100
    numbers = json.loads((out / "evaluation.json").read_text())
    assert numbers["reconstruction"]["images"] == 120


def test_quiet_and_samples(generator: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(generator), "--data", str(data), "--quiet", "--samples", "30"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "measuring" not in said.err and "30 images" in said.out


def test_the_test_part_of_divided_data_is_used(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    images = (255 * shapes(60, seed=1)[:, ::7, ::7]).byte().numpy()
    for part, count in (("train", 2), ("test", 50)):
        (tmp_path / "faces" / part).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(images[number]).save(tmp_path / "faces" / part / f"{number}.png")
    assert main(["evaluate", str(generator), "--data", str(tmp_path / "faces")]) == 0
    said = capsys.readouterr()
    assert "trained on" not in said.err and "25 images" in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--data", "DATA"], "name_or_path: unknown value 'nowhere'"),
        (["GENERATOR", "--data", "/nowhere"], "no such file or folder"),
        (["GENERATOR", "--data", "DATA", "--out", "DATA"], "--out: expected a folder to write to"),
        (["GENERATOR", "--data", "DATA", "--samples", "0"], "samples: got 0"),
        (["GENERATOR", "--data", "DATA", "--limit", "30"], "expected at least 40"),
        (["mnist-vae", "--data", "DATA"], "images: expected shape"),
    ],
)
def test_mistakes_are_explained_in_one_line(
    generator: Path,
    data: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"GENERATOR": str(generator), "DATA": str(data)}
    assert main(["evaluate", *(places.get(word, word) for word in words), "--quiet"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("bayesgen: ") and message in error[-1]
    assert sorted(data.parent.iterdir()) == sorted([generator, data])


def test_a_report_leaves_the_generator_alone(generator: Path, data: Path) -> None:
    before = generator.read_bytes()
    state = torch.random.get_rng_state()
    assert main(["evaluate", str(generator), "--data", str(data), "--quiet"]) == 0
    assert generator.read_bytes() == before
    assert torch.equal(torch.random.get_rng_state(), state)
