from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayesgen.errors import (
    DataError,
    DtypeError,
    FileFormatError,
    ModelError,
    OptionError,
    ShapeError,
)
from bayesgen.models import VAE, TrainingSettings, train

SETTINGS = TrainingSettings(
    epochs=4, batch_size=16, learning_rate=3e-3, validation=20, average=0.9, seed=3
)
STEPS_PER_EPOCH = 7


@pytest.fixture
def model() -> VAE:
    return VAE((8, 8), 2, width=16, channels=4, noise_level=0.1)


@pytest.fixture
def images() -> Tensor:
    """Discs at random places."""
    rng = torch.Generator().manual_seed(0)
    centre = 2 + 4 * torch.rand(120, 2, 1, 1, generator=rng)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
    return ((grid - centre).square().sum(1) < 6).float()


def identical(a: VAE, b: VAE) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, step: int, losses: dict[str, float]) -> None:
        if step == self.step:
            raise KeyboardInterrupt


def test_training_learns_and_leaves_its_arguments_alone(model: VAE, images: Tensor) -> None:
    before, pixels = VAE((8, 8), 2, width=16, channels=4, noise_level=0.1), images.clone()
    settings = dataclasses.replace(SETTINGS, epochs=20, learning_rate=0.03)
    trained, history = train(model, images, settings, progress=False)
    assert identical(model, before) and torch.equal(images, pixels)
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())
    assert len(history) == 20
    assert history[-1]["validation_loss"] < 0.3 * history[0]["validation_loss"]
    assert history[-1]["validation_mse"] < 0.5 * images.var(0).mean()
    parts = history[-1]["validation_mse"] * 64 / (2 * 0.1**2) + history[-1]["validation_kl"]
    assert math.isclose(history[-1]["validation_loss"], parts, rel_tol=1e-5)


def test_same_seed_same_weights(model: VAE, images: Tensor) -> None:
    one, same = (train(model, images, SETTINGS, progress=False)[0] for _ in range(2))
    other = train(model, images, dataclasses.replace(SETTINGS, seed=4), progress=False)[0]
    assert identical(one, same) and not identical(one, other)


@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 3])
def test_resuming_changes_no_bit(model: VAE, images: Tensor, tmp_path: Path, step: int) -> None:
    whole, history = train(model, images, SETTINGS, progress=False)
    checkpoint = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(
            model,
            images,
            SETTINGS,
            checkpoint=checkpoint,
            progress=False,
            callback=StopAt(step),
        )
    steps: list[int] = []
    resumed, resumed_history = train(
        model,
        images,
        SETTINGS,
        checkpoint=checkpoint,
        resume=True,
        progress=False,
        callback=lambda step, losses: steps.append(step),
    )
    assert identical(whole, resumed) and history == resumed_history
    # Only the interrupted epoch is repeated. A callback sees a step before its epoch is saved.
    assert steps[0] == 1 + (step - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    assert list(tmp_path.iterdir()) == [checkpoint], "temporary files were left"


def test_resuming_needs_every_part_of_the_state(
    model: VAE, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: Adam's moments are lost on the way; the check above must notice."""
    whole, _ = train(model, images, SETTINGS, progress=False)
    checkpoint = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(model, images, SETTINGS, checkpoint=checkpoint, progress=False, callback=StopAt(10))
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)
    resumed, _ = train(model, images, SETTINGS, checkpoint=checkpoint, resume=True, progress=False)
    assert not identical(whole, resumed)


def test_divergence_stops_and_keeps_the_last_good_state(
    model: VAE, images: Tensor, tmp_path: Path
) -> None:
    class Explodes(VAE):
        calls = 0

        def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
            losses = super().loss(x, rng)
            if self.training:
                self.calls += 1
            scale = math.inf if self.calls > 10 else 1.0
            return losses | {"loss": losses["loss"] * scale}

    model.__class__ = Explodes
    checkpoint = tmp_path / "state"
    with pytest.raises(ModelError, match=r"diverged at step 10: the loss is inf.*below 0.003"):
        train(model, images, SETTINGS, checkpoint=checkpoint, progress=False)
    model.__class__ = VAE
    contents = checkpoint.read_bytes()
    assert b'\\"step\\": 7' in contents or b'"step": 7' in contents
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_resuming_something_else_is_refused(model: VAE, images: Tensor, tmp_path: Path) -> None:
    checkpoint = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(model, images, SETTINGS, checkpoint=checkpoint, progress=False, callback=StopAt(1))

    def resume(model: VAE = model, images: Tensor = images, **changes: int) -> None:
        settings = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
        train(model, images, settings, checkpoint=checkpoint, resume=True, progress=False)

    with pytest.raises(OptionError, match=r"was started with settings epochs=4, now it is 5"):
        resume(epochs=5)
    with pytest.raises(OptionError, match="crc32"):
        resume(images=1 - images)
    with pytest.raises(OptionError, match=r"config width=16, now it is 8"):
        resume(model=VAE((8, 8), 2, width=8, channels=4, noise_level=0.1))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="truncated"):
        resume()
    checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        resume()
    with pytest.raises(OptionError, match="give the checkpoint"):
        train(model, images, SETTINGS, resume=True, progress=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: 255 * x, DataError, r"found 0 to 255; scale them, for example images / 255"),
        (lambda x: x - 0.5, DataError, r"found -0.5 to 0.5"),
        (lambda x: x / 0, DataError, "NaN or infinity"),
        (list, DtypeError, r"expected one tensor, got list; resize images of unequal size"),
        (lambda x: x.byte(), DtypeError, "got torch.uint8"),
        (lambda x: x[:, :-1], ShapeError, r"expected shape \(N, 8, 8\), got \(120, 7, 8\)"),
        (lambda x: x[:0], ShapeError, r"got \(0, 8, 8\)"),
        (lambda x: x[:20], OptionError, "holds out 20 images, but there are 20"),
    ],
)
def test_bad_images(
    model: VAE,
    images: Tensor,
    tmp_path: Path,
    change: object,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        train(model, change(images), SETTINGS, checkpoint=tmp_path / "state", progress=False)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("validation", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("average", 1.0),
    ],
)
def test_bad_settings(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"{name}: expected"):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]
