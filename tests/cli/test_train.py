from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bayesgen.models
from bayesgen.cli import main
from bayesgen.cli.train import _KINDS, _kept_epoch
from bayesgen.datasets import write_idx
from bayesgen.models import Flow, RealNVP, Trainable, TrainingSettings, load
from bayesgen.models.training import _Run

# Words that make each kind of generator small.
NETWORKS = ["--latent=2", "--width=8", "--channels=2"]
SMALL = {
    "ae": [*NETWORKS, "--components=2"],
    "vae": [*NETWORKS, "--learn-noise"],
    "wgan": [*NETWORKS, "--critic-steps=2"],
    "gan": [*NETWORKS, "--penalty=0.5"],
    "glow": ["--levels=1", "--steps=1", "--width=4"],
    "structured-vae": [*NETWORKS, "--radius=1", "--joint"],
}
# Vectors come from other generators, not from image files.
NOT_HERE = {Trainable, Flow, RealNVP}


@pytest.fixture
def data(tmp_path: Path, rng: torch.Generator) -> Path:
    """Sixty images, ten of which are held out."""
    path = tmp_path / "images.gz"
    write_idx(path, torch.randint(256, (60, 8, 8), generator=rng))
    return path


def arguments(data: object, out: Path, *more: str, kind: str = "vae") -> list[str]:
    common = ["--epochs=2", "--batch-size=25", "--validation=10", "--quiet"]
    return ["train", kind, f"--data={data}", f"--out={out}", *SMALL[kind], *common, *more]


def test_no_kind_is_missing() -> None:
    public = {getattr(bayesgen.models, name) for name in bayesgen.models.__all__}
    kinds = {k for k in public if isinstance(k, type) and issubclass(k, Trainable)}
    assert kinds - NOT_HERE == {kind for kind, _ in _KINDS.values()}
    assert _KINDS.keys() == SMALL.keys()


@pytest.mark.parametrize("kind", SMALL)
def test_every_kind_trains_and_loads(
    kind: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main(arguments(data, out, "--seed=3", kind=kind)) == 0
    generator = load(out)
    assert type(generator) is _KINDS[kind][0] and generator.image_shape == (8, 8)
    for word in SMALL[kind]:
        name, _, value = word.removeprefix("--").replace("-", "_").partition("=")
        found = getattr(generator.config, "latent_dim" if name == "latent" else name)
        assert found == ((1,) if name == "steps" else float(value or 1))
    card = generator.card
    assert card["images"] == 60 and card["epochs"] >= 2
    assert f"train {kind}" in card["command"] and "--seed=3" in card["command"]
    assert set(card["training_seconds"]) == {"wall", "cpu"}
    assert set(tmp_path.iterdir()) == {data, out}, "something was left behind"
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"wrote {out} (" in printed.out
    assert f"load it with  bayesgen.models.load('{out}')" in printed.out
    assert len(card["losses"]) >= 2 and any("validation" in name for name in card["losses"])
    for name, value in card["losses"].items():
        assert f"{name.removeprefix('validation_')} {value:.5g}" in printed.out


@pytest.mark.parametrize("kind", SMALL)
def test_help_explains_every_word_and_shows_its_default(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        main(["train", kind, "--help"])
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  --")}
    assert "None" not in text and "False" not in text
    cls = _KINDS[kind][0]
    parameters = inspect.signature(cls).parameters.values()
    expected: dict[str, Any] = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    expected |= vars(cls.default_settings) | {"device": "cpu"}
    expected.pop("fixed_mean", None)
    for name, default in expected.items():
        line = lines["--" + name.replace("_", "-")]
        assert len(line.split()) > 3, f"no word on {line}"
        if default is not None and default is not False:
            assert line.endswith(f"(default: {default})")


def test_learning_is_reproducible_and_follows_the_seed(data: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two", "other")]
    weights = []
    for file, seed in zip(files, (0, 0, 1), strict=True):
        assert main(arguments(data, file, f"--seed={seed}")) == 0
        weights.append(load(file).state_dict())
    one, same, other = weights
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["decoder.0.weight"], other["decoder.0.weight"])


def test_half_precision(data: Path, tmp_path: Path) -> None:
    sizes = []
    for more in ([], ["--half"]):
        assert main(arguments(data, tmp_path / "out", "--width=64", *more)) == 0
        sizes.append((tmp_path / "out").stat().st_size)
    assert sizes[1] < 0.7 * sizes[0]


def test_an_interrupted_training_resumes(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, checkpoint = tmp_path / "out", tmp_path / "out.checkpoint"
    assert main(arguments(data, out)) == 0
    whole, card = load(out).state_dict(), load(out).card
    out.unlink()
    validate = _Run._validate

    def interrupt_in_the_second_epoch(run: _Run, model: Trainable) -> dict[str, float]:
        if run.state.history:
            raise KeyboardInterrupt
        return validate(run, model)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_validate", interrupt_in_the_second_epoch)
        capsys.readouterr()
        assert main(arguments(data, out)) == 130
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert f"{checkpoint} holds all whole epochs" in printed.err and "--resume" in printed.err
    assert not out.exists() and checkpoint.exists()
    assert main(arguments(data, out)) == 1
    assert "holds an unfinished training; resume it" in capsys.readouterr().err
    assert main(arguments(data, out, "--resume", "--epochs=3")) == 1
    assert "was started with settings epochs=2, now it is 3" in capsys.readouterr().err
    assert main(arguments(data, out, "--resume", kind="ae")) == 1
    assert "architecture=VAE, now it is AE" in capsys.readouterr().err
    assert main(arguments(data, out, "--resume")) == 0
    resumed = load(out)
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.state_dict().items())
    assert resumed.card["command"] == card["command"]
    assert resumed.card["training_seconds"]["of"] == "the resumed part"
    assert set(tmp_path.iterdir()) == {data, out}


def test_a_finished_training_that_was_not_saved_is_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bayesgen.cli import train

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(train, "save_generator", interrupt)
        assert main(arguments(data, out)) == 130
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "epoch", interrupt)
        assert main(arguments(data, out, "--resume")) == 0
    assert load(out).card["epochs"] == 2


def test_the_test_images_are_never_touched(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(256, (60, 8, 8), generator=rng)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    (tmp_path / "t10k-images-idx3-ubyte").write_text("not for training")
    assert main(arguments(tmp_path, tmp_path / "out")) == 0
    assert load(tmp_path / "out").card["images"] == 60


def test_limit_and_simulated_images(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(arguments("shapes", out, "--limit=40")) == 0
    assert load(out).card["images"] == 40 and load(out).image_shape == (56, 56)


def test_digits_on_a_ramp(tmp_path: Path, rng: torch.Generator) -> None:
    images = torch.randint(256, (30, 28, 28), generator=rng)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    assert main(arguments(f"multi-gradient:{tmp_path}", tmp_path / "out")) == 0
    assert load(tmp_path / "out").image_shape == (32, 32)


def test_a_folder_of_pictures_in_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 10, 3), dtype="uint8")
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    assert main(arguments(tmp_path / "pictures", tmp_path / "out")) == 0
    assert load(tmp_path / "out").image_shape == (3, 8, 10)


@pytest.mark.parametrize("kind", ["vae", "wgan"])
def test_a_picture_on_request(kind: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.v1.safetensors"
    assert main(arguments(data, out, "--picture", kind=kind)) == 0
    assert set(tmp_path.iterdir()) == {data, out, tmp_path / "out.v1.png"}
    with Image.open(tmp_path / "out.v1.png") as picture:
        assert picture.size[0] > 800


def test_the_picture_shows_the_generator_that_was_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bayesgen.models import plot

    shown: list[tuple[int, torch.Tensor]] = []

    def note(path: Path, model: Any, history: list[Any], images: torch.Tensor) -> None:
        shown.append((len(history), model(torch.ones(2))))

    monkeypatch.setattr(plot, "save_training_picture", note)
    assert main(arguments(data, tmp_path / "out", "--picture")) == 0
    assert [epochs for epochs, _ in shown] == [1, 2, 2]
    assert torch.equal(shown[-1][1], load(tmp_path / "out")(torch.ones(2)))


def test_the_card_is_completed(data: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"licence": "none", "images": "mine"}))
    assert main(arguments(data, tmp_path / "out", f"--card={card}")) == 0
    found = load(tmp_path / "out").card
    assert found["licence"] == "none" and found["images"] == 60


def test_the_losses_are_those_of_the_epoch_that_was_kept() -> None:
    mean = [{"validation_loss": loss, "validation_kl": 1.0} for loss in (5.0, 1.0, 2.0)]
    covariance = [{"validation_loss": loss} for loss in (4.0, 2.0, 3.0)]
    early, late = TrainingSettings(patience=1), TrainingSettings()
    assert _kept_epoch(mean, early) == 1 and _kept_epoch(mean, late) == 2
    assert _kept_epoch(mean + covariance, early) == 4
    assert _kept_epoch([{"validation_generator": 1.0}] * 3, late) == 2


def test_progress_goes_to_the_screen(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in arguments(data, tmp_path / "out") if word != "--quiet"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "evidence bound 1/2  loss " in printed.out and "evidence bound 2/2" in printed.out
    assert "4/4" in printed.err


MISTAKES: dict[str, tuple[list[str], str]] = {
    "latent": (["--latent=0"], "latent_dim: expected 1 to 64"),
    "latent larger than data": (["--latent=65"], "latent_dim: expected 1 to 64 (the pixels of one"),
    "epochs": (["--epochs=0"], "epochs: got 0; expected an integer of at least 1"),
    "noise": (["--noise-level=-1"], "noise_level: got -1.0; expected a positive"),
    "seed": (["--seed=-1"], "seed: got -1; expected an integer of at least 0"),
    "large seed": (["--seed=99999999999999999999"], "seed: got 99999999999999999999; expected"),
    "layout": (["--layout=convolutions"], "layout: unknown value 'convolutions'"),
    "schedule": (["--schedule=linear"], "schedule: unknown value 'linear'"),
    "nothing to resume": (["--resume"], "resume: no checkpoint at"),
    "too few images": (["--limit=10"], "validation: holds out 10 images, but there are 10"),
    "a folder": (["--out=/"], "--out: expected a file to write, but / is a folder"),
    "a picture": (["--out=x.png", "--picture"], "--out: x.png is where --picture writes to"),
    "no folder": ([f"--out={__file__}/x/out"], "--out: cannot write "),
    "no data": (["--data=/nowhere"], "/nowhere: no such file or folder"),
    "key": (["--key=x"], "only the data sets of HDF5 files have a name"),
    "device": (["--device=nonsense"], "--device: cannot use 'nonsense' (Expected one of cpu, cuda"),
    "device without memory": (["--device=meta"], "--device: cannot use 'meta'"),
    "empty device": (["--device="], "--device: cannot use ''"),
    "no card": (["--card=/nowhere.json"], "/nowhere.json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, message = MISTAKES[name]
    assert main(arguments(data, tmp_path / "out", *more)) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("bayesgen: ") and message in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(data, tmp_path / "out", "--device=cuda")) == 1
    assert capsys.readouterr().err.startswith("bayesgen: --device: cannot use 'cuda' (")
    assert list(tmp_path.iterdir()) == [data]


def test_patience_needs_a_loss_that_tells(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, tmp_path / "out", "--patience=2", kind="gan")) == 1
    assert "patience: the losses of a GAN do not tell" in capsys.readouterr().err


def test_folders_that_cannot_be_written(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found before the images are read; the owner of the process may be allowed everything."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert main(arguments("/nowhere", tmp_path / "new" / "out")) == 1
    error = capsys.readouterr().err
    assert f"--out: cannot write {tmp_path}/new/out, for the folder {tmp_path} is read-on" in error
    assert list(tmp_path.iterdir()) == [data]


def test_new_folders_are_made(data: Path, tmp_path: Path) -> None:
    assert main(arguments(data, tmp_path / "new" / "folder" / "out")) == 0
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["out"]


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_damaged_card_is_noticed_before_training(
    text: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.json"
    card.write_text(text)
    assert main(arguments("/nowhere", tmp_path / "out", f"--card={card}")) == 1
    assert f"{card}: " in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == {data, card}


def pictures(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.new("L", size).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("what", ["unequal", "empty", "outside", "nan", "shape", "integers"])
def test_images_that_cannot_be_used(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "images.npy"
    values = np.full((60, 8, 8), 0.5, "float32")
    if what == "unequal":
        path, message = pictures(tmp_path / "p", (8, 8), (8, 9)), "8"
    elif what == "empty":
        path, message = pictures(tmp_path / "p"), "holds no images"
    elif what == "outside":
        np.save(path, 3 * values)
        message = "[0, 1]"
    elif what == "nan":
        values[7] = np.nan
        np.save(path, values)
        message = "NaN"
    elif what == "shape":
        np.save(path, values.reshape(-1))
        message = "expected (N, y, x)"
    else:
        np.save(path, values.astype("int64"))
        message = "int64"
    before = set(tmp_path.iterdir())
    assert main(arguments(path, tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.startswith("bayesgen: ") and error.count("\n") == 1
    assert message in error and path.name in error
    assert set(tmp_path.iterdir()) == before
