from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bayesgen._version
from bayesgen.cli import main
from bayesgen.datasets import write_idx
from bayesgen.models import load


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = torch.Generator().manual_seed(0)
    write_idx(tmp_path / "images.gz", torch.randint(256, (1100, 8, 8), generator=rng))
    return tmp_path / "images.gz"


def arguments(data: Path, *more: str) -> list[str]:
    words = f"train vae --data {data} --out {data.parent}/out.safetensors --latent 2 --width 8"
    return [*words.split(), "--channels=2", "--epochs=2", "--batch-size=50", "--quiet", *more]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"bayesgen {bayesgen._version.__version__}\n"


def test_train(data: Path) -> None:
    assert main(arguments(data, "--seed", "3")) == 0
    out = data.parent / "out.safetensors"
    generator = load(out)
    assert generator.image_shape == (8, 8) and generator.latent_dim == 2
    assert "--seed 3" in generator.card["command"] and generator.card["images"] == 1100
    assert set(data.parent.iterdir()) == {data, out}


def test_a_folder_with_test_images_is_evaluated_and_the_card_completed(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    for prefix, number in (("train", 1100), ("t10k", 30)):
        images = torch.randint(256, (number, 8, 8), generator=rng)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", images)
    (tmp_path / "card.json").write_text('{"licence": "none"}')
    assert (
        main(arguments(tmp_path / "mnist", f"--data={tmp_path}", f"--card={tmp_path}/card.json"))
        == 0
    )
    card = load(tmp_path / "out.safetensors").card
    assert card["licence"] == "none"
    assert card["evaluation"]["on"] == "first 30 test images"
    assert card["evaluation"]["reconstruction_psnr"] >= card["evaluation"]["encoder_psnr"]


def test_a_damaged_card_is_noticed_before_training(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = data.parent / "card.json"
    for text in ("{", "[]"):
        card.write_text(text)
        assert main(arguments(data, f"--card={card}")) == 1
        assert str(card) in capsys.readouterr().err
    assert set(data.parent.iterdir()) == {data, card}


def test_interrupted_training_resumes(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bayesgen.models import training

    assert main(arguments(data)) == 0
    out = data.parent / "out.safetensors"
    whole = load(out)
    out.unlink()
    validate, calls = training._validate, iter(range(3))

    def interrupt_in_the_second_epoch(*args: object) -> dict[str, float]:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return validate(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_validate", interrupt_in_the_second_epoch)
    assert main(arguments(data)) == 130
    assert "continue with --resume" in capsys.readouterr().err
    assert not out.exists()
    assert main(arguments(data)) == 1
    assert "holds an unfinished training; resume it" in capsys.readouterr().err
    assert main(arguments(data, "--resume")) == 0
    resumed = load(out)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--latent", "0"], "latent_dim: expected 1 to 64"),
        (["--latent", "65"], "latent_dim: expected 1 to 64"),
        (["--epochs", "0"], "epochs: expected at least 1"),
        (["--noise-level", "-1"], "noise_level: expected a positive number"),
        (["--resume"], "no checkpoint at"),
        (["--out", "/"], "--out: expected a file to write, but / is a folder"),
        (["--data", "/nowhere"], "expected a folder with the MNIST files"),
    ],
)
def test_mistakes_are_explained_in_one_line(
    data: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("bayesgen: ") and message in error and error.count("\n") == 1
    assert list(data.parent.iterdir()) == [data]


def test_unknown_words_are_refused(data: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments(data, "--latents", "3", "--nonsense"))
    with pytest.raises(SystemExit, match="2"):
        main([])
