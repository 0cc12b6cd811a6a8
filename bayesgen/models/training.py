"""Train a generator: deterministic for a seed, resumable to the bit, safe to interrupt.

The loop knows nothing about the model but its ``loss``. Its whole state (weights, their moving
average, Adam's moments, random generator, step, history) is written to a checkpoint before the
first and after every epoch. An interrupted run resumes from the last epoch and arrives at the
same weights as one that was never interrupted.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, ModelError, OptionError, ShapeError
from bayesgen.models.files import build, fill, read_tensors, write_tensors
from bayesgen.models.vae import VAE

Losses = dict[str, float]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Parameters
    ----------
    epochs
        Passes over the training images.
    batch_size
        Images in one step.
    learning_rate
        Adam's step size at its peak. It rises linearly over the first twentieth of the steps and
        then falls to zero along a cosine.
    average
        Decay per step of the moving average of the weights, which is what training returns.
    validation
        Number of images, drawn at random, on which the loss is reported after every epoch and
        which are not trained on.
    seed
        Seed of validation split, order of images and random latent vectors.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 3e-3
    average: float = 0.999
    validation: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validation"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise OptionError(
                f"learning_rate: expected a positive number, got {self.learning_rate}"
            )
        if not 0 <= self.average < 1:
            raise OptionError(f"average: expected a number in [0, 1), got {self.average}")


@dataclass
class _State:
    """All that changes during training."""

    model: VAE
    average: VAE
    optimiser: torch.optim.Adam
    rng: torch.Generator
    step: int = 0
    history: list[Losses] = field(default_factory=list)


def train(
    model: VAE,
    images: Tensor,
    settings: TrainingSettings | None = None,
    *,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callback: Callable[[int, Losses], None] | None = None,
) -> tuple[VAE, list[Losses]]:
    """Train a model on images and return the moving average of its weights.

    The command line then calls `VAE.standardise`, so that the prior fits as well as it can.

    Parameters
    ----------
    model
        The model with its initial weights; it is left as it is.
    images
        ``(N, *image_shape)``, intensities in [0, 1].
    settings
        How to train; the default is `TrainingSettings()`.
    checkpoint
        File for the state of the training. It must not exist unless ``resume`` is set, and is
        left for the caller to delete.
    resume
        Continue from ``checkpoint`` instead of starting anew.
    progress
        Show a progress bar.
    callback
        Called after every step with its number and losses.

    Returns
    -------
    model
        The trained model, in evaluation mode and with frozen weights.
    history
        For each epoch the mean losses, and those on the validation images as ``"validation_*"``.

    Raises
    ------
    ModelError
        If the loss becomes infinite or NaN. The checkpoint still holds the last good state.
    """
    settings = settings or TrainingSettings()
    check_images(images, model.image_shape)
    if len(images) <= settings.validation:
        raise OptionError(
            f"validation: holds out {settings.validation} images, but there are {len(images)}"
        )
    path = Path(checkpoint) if checkpoint is not None else None
    state = _start(model, settings)
    # Drawn afresh on resumption too: it must come from the same point of the random sequence.
    order = torch.randperm(len(images), generator=state.rng)
    held_out, kept = images[order[: settings.validation]], images[order[settings.validation :]]
    identity = {"settings": asdict(settings), "images": _fingerprint(images)}
    if resume:
        if path is None:
            raise OptionError("resume: give the checkpoint to resume from")
        _restore(state, path, identity)
    elif path is not None:
        if path.exists():
            raise OptionError(
                f"checkpoint: {path} holds an unfinished training; resume it or delete the file"
            )
        _checkpoint(state, path, identity)

    steps_per_epoch = math.ceil(len(kept) / settings.batch_size)
    with _progress_bar(settings.epochs * steps_per_epoch, state.step, progress) as bar:
        for _ in range(len(state.history), settings.epochs):
            losses = _epoch(state, kept, settings, bar, callback)
            validation = _validate(state.average, held_out, settings)
            state.history.append(losses | {f"validation_{k}": v for k, v in validation.items()})
            if progress:
                bar.write(_describe(state.history, settings.epochs))
            if path is not None:
                _checkpoint(state, path, identity)
    state.average.fit_residual(held_out)
    return state.average, state.history


def check_images(images: Tensor, image_shape: tuple[int, ...]) -> None:
    """Refuse images that cannot be trained on, and say what to do about it."""
    if not isinstance(images, Tensor):
        raise DtypeError(
            f"images: expected one tensor, got {type(images).__name__}; resize images of unequal "
            "size and join them with torch.stack"
        )
    if not images.is_floating_point():
        raise DtypeError(f"images: expected floating point in [0, 1], got {images.dtype}")
    if tuple(images.shape[1:]) != image_shape or len(images) == 0:
        wanted = ", ".join(["N", *map(str, image_shape)])
        raise ShapeError(f"images: expected shape ({wanted}), got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise DataError("images: hold NaN or infinity")
    low, high = images.min().item(), images.max().item()
    if low < 0 or high > 1:
        raise DataError(
            f"images: expected intensities in [0, 1], found {low:g} to {high:g}; scale them, for "
            "example images / 255 for 8-bit data or (images - low) / (high - low)"
        )


def _start(model: VAE, settings: TrainingSettings) -> _State:
    model = copy.deepcopy(model).train().requires_grad_(True)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    return _State(model, average, optimiser, torch.Generator().manual_seed(settings.seed))


def _epoch(
    state: _State,
    images: Tensor,
    settings: TrainingSettings,
    bar: Any,
    callback: Callable[[int, Losses], None] | None,
) -> Losses:
    """Train on every image once; return the mean losses."""
    total: Losses = {}
    order = torch.randperm(len(images), generator=state.rng)
    batches = torch.split(order, settings.batch_size)
    steps = settings.epochs * len(batches)
    for batch in batches:
        for group in state.optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(state.step / steps)
        losses = state.model.loss(images[batch], state.rng)
        values = {name: loss.item() for name, loss in losses.items()}
        if not math.isfinite(values["loss"]):
            raise ModelError(
                f"training diverged at step {state.step}: the loss is {values['loss']}; "
                f"try a learning rate below {settings.learning_rate:g}"
            )
        state.optimiser.zero_grad()
        torch.autograd.backward(losses["loss"])
        state.optimiser.step()
        state.step += 1
        _follow(state.average, state.model, min(settings.average, state.step / (state.step + 10)))
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + value / len(batches)
        bar.update()
        if state.step % 20 == 0:
            bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        if callback is not None:
            callback(state.step, values)
    return total


def _schedule(fraction: float, warm_up: float = 0.05) -> float:
    """Learning rate, relative to its peak, after a fraction of the steps."""
    if fraction < warm_up:
        return fraction / warm_up
    return 0.5 * (1 + math.cos(math.pi * (fraction - warm_up) / (1 - warm_up)))


@torch.no_grad()
def _follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move an average towards the model's weights; early on it must forget faster."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def _validate(model: VAE, images: Tensor, settings: TrainingSettings) -> Losses:
    """Mean losses under the same random numbers every time."""
    rng = torch.Generator().manual_seed(settings.seed)
    return {name: loss.item() for name, loss in model.loss(images, rng).items()}


def _progress_bar(total: int, initial: int, show: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, disable=not show, unit="step", smoothing=0.05)


def _describe(history: list[Losses], epochs: int) -> str:
    losses = "  ".join(f"{name} {value:.5g}" for name, value in history[-1].items())
    return f"epoch {len(history)}/{epochs}  {losses}"


def _fingerprint(images: Tensor) -> dict[str, Any]:
    return {"shape": list(images.shape), "crc32": zlib.crc32(images.contiguous().numpy().data)}


def _checkpoint(state: _State, path: Path, identity: dict[str, Any]) -> None:
    tensors = {"rng": state.rng.get_state()}
    tensors |= {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": tensor for name, tensor in moments.items()}
    header = {
        "kind": "checkpoint",
        "architecture": type(state.model).__name__,
        "config": asdict(state.model.config),
        "step": state.step,
        "history": state.history,
        **identity,
    }
    write_tensors(path, tensors, header)


def _restore(state: _State, path: Path, identity: dict[str, Any]) -> None:
    """Load a checkpoint into a state, if it belongs to the same training."""
    if not path.exists():
        raise FileNotFoundError(f"resume: no checkpoint at {path}")
    tensors, header = read_tensors(path, "checkpoint")
    wanted = identity | {"config": asdict(state.model.config)}
    found = {"settings": header["settings"], "images": header["images"]}
    found["config"] = asdict(build(header, path).config)
    for part, value in wanted.items():
        for name, expected in value.items():
            if found[part].get(name) != expected:
                raise OptionError(
                    f"resume: {path} was started with {part} {name}={found[part].get(name)}, "
                    f"now it is {expected}; resume with the same, or start anew"
                )

    def under(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    fill(state.model, under("model."), path)
    fill(state.average, under("average."), path)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in under("adam.").items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = tensor
    groups = state.optimiser.state_dict()["param_groups"]
    state.optimiser.load_state_dict({"state": moments, "param_groups": groups})
    state.rng.set_state(tensors["rng"])
    state.step, state.history = header["step"], header["history"]
