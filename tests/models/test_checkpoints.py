from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bayesgen.errors import FileFormatError, OptionError
from bayesgen.models import AE, GAN, VAE, WGAN, Trainable, TrainingSettings, save_generator, train
from bayesgen.models.checkpoints import follow, identify, start, store
from bayesgen.models.files import read_tensors, write_tensors

SMALL: dict[str, Any] = {"width": 8, "channels": 2}
SETTINGS = TrainingSettings(epochs=2, batch_size=20, validation=5, seed=3)


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.rand(25, 8, 8, generator=rng)


def interrupted(path: Path, images: Tensor, model: Trainable, **changes: Any) -> Path:
    """A checkpoint after the first epoch."""

    def interrupt(step: int, losses: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settings = dataclasses.replace(SETTINGS, **changes)
        train(model, images, settings, checkpoint=path, progress=False, each_step=interrupt)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, images: Tensor) -> Path:
    return interrupted(tmp_path / "state", images, VAE((8, 8), 2, **SMALL))


def resume(
    checkpoint: Path, images: Tensor, model: Trainable | None = None, **changes: Any
) -> Trainable:
    model = VAE((8, 8), 2, **SMALL) if model is None else model
    settings = dataclasses.replace(SETTINGS, **changes)
    return train(model, images, settings, checkpoint=checkpoint, resume=True, progress=False)[0]


def test_the_file_holds_the_state_of_the_last_epoch(checkpoint: Path) -> None:
    tensors, header = read_tensors(checkpoint, "checkpoint")
    counters = header["counters"]
    assert (counters["step"], counters["stage_step"], counters["epoch"]) == (1, 1, 1)
    assert len(counters["history"]) == 1
    parts = {name.split(".")[0] for name in tensors}
    assert parts == {"model", "average", "adam", "order", "noise"}
    assert "safetensors" not in checkpoint.name and load_file(checkpoint).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 5}, "settings epochs=2, now it is 5"),
        ({"seed": 4}, "settings seed=3, now it is 4"),
        ({"patience": 2}, "settings patience=None, now it is 2"),
        ({"model": VAE((8, 8), 3, **SMALL)}, "config latent_dim=2, now it is 3"),
        ({"model": VAE((8, 8), 2, **SMALL, noise_level=0.2)}, "config noise_level=0.1, now it is"),
        ({"model": AE((8, 8), 2, **SMALL)}, "model architecture=VAE, now it is AE"),
        ({"model": VAE((8, 8), 2, **SMALL).double()}, "model dtype=float32, now it is float64"),
        ({"model": VAE((8, 8), 2, **SMALL, seed=1)}, "initial weights checksum="),
    ],
    ids=["epochs", "seed", "patience", "latent_dim", "noise_level", "kind", "dtype", "weights"],
)
def test_another_training_is_refused_by_what_differs(
    checkpoint: Path, images: Tensor, changes: dict[str, Any], message: str
) -> None:
    contents = checkpoint.read_bytes()
    with pytest.raises(OptionError, match=rf"resume: \S+ was started with .*{message}") as caught:
        resume(checkpoint, images, **changes)
    assert "resume with the same, or start anew" in str(caught.value)
    assert checkpoint.read_bytes() == contents
    resume(checkpoint, images)


def test_other_images_are_refused(checkpoint: Path, images: Tensor) -> None:
    with pytest.raises(OptionError, match=r"images shape=\[25, 8, 8\], now it is \[24, 8, 8\]"):
        resume(checkpoint, images[1:])
    changed = images.clone()
    changed[7, 3, 2] += 1e-6
    with pytest.raises(OptionError, match="images checksum="):
        resume(checkpoint, changed)


def test_another_device_is_refused(checkpoint: Path, images: Tensor) -> None:
    """Its random numbers are others."""
    tensors, header = read_tensors(checkpoint, "checkpoint")
    header["identity"]["model"]["device"] = "cuda"
    write_tensors(checkpoint, tensors, header)
    with pytest.raises(OptionError, match="model device=cuda, now it is cpu"):
        resume(checkpoint, images)


def test_architectures_of_one_configuration_are_told_apart(tmp_path: Path, images: Tensor) -> None:
    """A WGAN's settings include all that a GAN has."""
    path = interrupted(tmp_path / "state", images, WGAN((8, 8), 2, **SMALL, penalty=1.0))
    with pytest.raises(OptionError, match="architecture=WGAN, now it is GAN"):
        resume(path, images, GAN((8, 8), 2, **SMALL, penalty=1.0))


def test_classes_of_users_can_be_resumed(tmp_path: Path, images: Tensor) -> None:
    class Mine(VAE):
        pass

    path = interrupted(tmp_path / "state", images, Mine((8, 8), 2, **SMALL))
    assert isinstance(resume(path, images, Mine((8, 8), 2, **SMALL)), Mine)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_checkpoints_are_refused(checkpoint: Path, images: Tensor, kept: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match="not a safetensors file, or truncated"):
        resume(checkpoint, images)


def test_other_files_are_refused(checkpoint: Path, images: Tensor, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save(Evil(), checkpoint)
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        resume(checkpoint, images)
    assert not (tmp_path / "executed").exists()
    save_generator(VAE((8, 8), 2, **SMALL), checkpoint)
    with pytest.raises(FileFormatError, match="expected a checkpoint, found a generator"):
        resume(checkpoint, images)
    with pytest.raises(FileFormatError, match="expected a file, but this is a folder"):
        resume(tmp_path, images)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        resume(tmp_path / "none", images)
    with pytest.raises(OptionError, match="give the checkpoint to resume from"):
        train(VAE((8, 8), 2, **SMALL), images, SETTINGS, resume=True, progress=False)


@pytest.mark.parametrize("missing", ["identity", "counters", "order", "noise"])
def test_checkpoints_of_other_versions_are_refused(
    checkpoint: Path, images: Tensor, missing: str
) -> None:
    tensors, header = read_tensors(checkpoint, "checkpoint")
    tensors.pop(missing, None)
    header.pop(missing, None)
    write_tensors(checkpoint, tensors, header)
    with pytest.raises(FileFormatError, match="a checkpoint of another version of bayesgen"):
        resume(checkpoint, images)


Damage = Callable[[dict[str, Tensor], dict[str, Any]], object]


def counter(name: str, value: Any, **more: Any) -> Damage:
    return lambda tensors, header: header["counters"].update({name: value, **more})


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Damage:
    return lambda tensors, header: tensors.update({name: change(tensors[name])})


def lost(name: str) -> Damage:
    return lambda tensors, header: [tensors.pop(key) for key in list(tensors) if name in key]


DAMAGES: dict[str, tuple[Damage, str]] = {
    "shape of best": (
        tensor("best.decoder.0.weight", lambda t: t[:3]),
        r"best.decoder.0.weight should be \(8, 2\), found \(3, 2\)",
    ),
    "a best weight": (lost("best.decoder.0.weight"), "best.decoder.0.weight should be .* nothing"),
    "all of best": (lost("best."), "best.* should be .*, found nothing"),
    "value of best": (
        tensor("best.decoder.0.bias", lambda t: t / 0),
        "best.decoder.0.bias holds NaN",
    ),
    "size of order": (tensor("order", lambda t: t[:-1]), "order should be the state .* 5056 bytes"),
    "type of noise": (tensor("noise", Tensor.float), "noise should be the state .* torch.float32"),
    "values of noise": (tensor("noise", lambda t: 255 + 0 * t), "noise should be the state"),
    "shape of a moment": (
        tensor("adam.0.0.exp_avg", lambda t: t[:1]),
        r"adam.0.0.exp_avg should be .*, found \(1, ",
    ),
    "a moment": (lost("adam.0.1.exp_avg_sq"), "adam.0.1.exp_avg_sq should be .*, found nothing"),
    "steps": (lost("adam.0.1.step"), r"adam.0.1.step should be \(\), found nothing"),
    "value of a moment": (
        tensor("adam.0.0.exp_avg_sq", lambda t: t * torch.nan),
        "adam.0.0.exp_avg_sq holds NaN",
    ),
    "all moments": (lost("adam."), "adam.0 is missing"),
    "an unknown weight's moment": (
        lambda tensors, header: tensors.update({"adam.0.99.exp_avg": torch.zeros(1)}),
        r"adam.0.99.exp_avg should be nothing, found \(1,\)",
    ),
    "an unknown player's moment": (
        lambda tensors, header: tensors.update({"adam.x": torch.zeros(1)}),
        "adam.x should be nothing",
    ),
    "a counter": (lambda tensors, header: header["counters"].pop("epoch"), "'epoch' is missing"),
    "counters": (lambda tensors, header: header.update(counters=[1]), "its header is no object"),
    "identity": (lambda tensors, header: header.update(identity=3), "its header is no object"),
    "part of identity": (
        lambda tensors, header: header["identity"].pop("config"),
        "'config' is missing",
    ),
    "type of a counter": (counter("epoch", "1"), "epoch cannot be '1'"),
    "sign of a counter": (counter("stage", -1), "stage cannot be -1"),
    "best loss": (counter("best_loss", None), "best_loss cannot be None"),
    "type of history": (counter("history", {"loss": 1}), "history cannot be"),
    "history": (counter("history", [[1]]), r"history cannot be \[\[1\]\]"),
    "losses": (counter("history", [{"loss": "a"}]), "history cannot be"),
    "length of history": (counter("history", []), "losses of 0 epochs"),
    "too many stages": (counter("stage", 2), "no training ever has these counters: stage=2"),
    "a stage": (counter("stage", 1), "no training ever has these counters: stage=1, epoch=1"),
    "too many epochs": (
        counter("epoch", 2, stage_step=2, step=2, history=[{}, {}]),
        "these counters: stage=0, epoch=2",
    ),
    "steps of the stage": (counter("stage_step", 7, step=7), "epoch=1, stage_step=7"),
    "steps in all": (counter("step", 0), "stage_step=1, step=0"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damages_are_named(what: str, tmp_path: Path, images: Tensor) -> None:
    path = interrupted(tmp_path / "state", images, VAE((8, 8), 2, **SMALL), patience=1)
    tensors, header = read_tensors(path, "checkpoint")
    damage, message = DAMAGES[what]
    damage(tensors, header)
    write_tensors(path, tensors, header)
    with pytest.raises(FileFormatError, match=message) as caught:
        resume(path, images, patience=1)
    assert str(path) in str(caught.value)


def test_weights_that_do_not_fit_are_refused(checkpoint: Path, images: Tensor) -> None:
    tensors, header = read_tensors(checkpoint, "checkpoint")
    name = "average.decoder.0.weight"
    write_tensors(checkpoint, tensors | {name: torch.zeros(3, 3)}, header)
    with pytest.raises(FileFormatError, match=rf"{name} should be \(8, 2\), found \(3, 3"):
        resume(checkpoint, images)


def test_an_unfinished_training_is_not_overwritten(checkpoint: Path, images: Tensor) -> None:
    contents = checkpoint.read_bytes()
    with pytest.raises(OptionError, match=r"holds an unfinished training; resume it or delete"):
        train(VAE((8, 8), 2, **SMALL), images, SETTINGS, checkpoint=checkpoint, progress=False)
    assert checkpoint.read_bytes() == contents


def test_an_interruption_while_writing_leaves_the_state_before(
    checkpoint: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = checkpoint.read_bytes()
    expected = train(VAE((8, 8), 2, **SMALL), images, SETTINGS, progress=False)[0]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            resume(checkpoint, images)
    assert checkpoint.read_bytes() == contents
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    resumed = resume(checkpoint, images)
    for a, b in zip(expected.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_files_of_the_same_state_are_the_same(tmp_path: Path, images: Tensor) -> None:
    model = VAE((8, 8), 2, **SMALL)
    for name in ("one", "two"):
        identity = identify(model, images, SETTINGS)
        store(start(model, 0), tmp_path / name, identity)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_state_starts_with_copies(images: Tensor) -> None:
    model = VAE((8, 8), 2, **SMALL).eval().requires_grad_(False)
    state = start(model, 0)
    assert state.model.training and all(p.requires_grad for p in state.model.parameters())
    assert not state.average.training
    assert not any(p.requires_grad for p in state.average.parameters())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    pointers = [{p.data_ptr() for p in m.parameters()} for m in (model, state.model, state.average)]
    assert not pointers[0] & pointers[1] and not pointers[1] & pointers[2]
    assert not torch.equal(state.order.get_state(), state.noise.get_state())


def test_following_averages_parameters_and_copies_buffers() -> None:
    average, model = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        average.weight.fill_(1.0)
        model.weight.fill_(5.0)
        model.running_mean.fill_(7.0)  # type: ignore[union-attr]
    follow(average, model, 0.75)
    assert average.weight.tolist() == [2.0, 2.0]
    assert average.running_mean.tolist() == [7.0, 7.0]  # type: ignore[union-attr]
    assert average.weight.requires_grad and average.weight.grad is None
