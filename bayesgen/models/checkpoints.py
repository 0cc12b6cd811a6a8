"""The state of a training, and its file: all that is needed to go on as if nothing had happened."""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import FileFormatError, OptionError
from bayesgen.models.files import check_weights, fill, read_tensors, write_tensors
from bayesgen.models.settings import stream_seed
from bayesgen.models.trainable import Trainable

Losses = dict[str, float]


@dataclass
class State:
    """All that changes during training.

    Parameters
    ----------
    model
        The weights that learn.
    average
        Their moving average.
    order
        Source of the order of the images, on the CPU.
    noise
        Source of all other random numbers, on the device of the model.
    optimisers
        One for each player of the stage.
    best
        The averaged weights with the lowest loss on the held-out images, where that counts.
    best_loss, waited
        That loss, and the epochs since.
    stage, epoch
        Stages finished, and epochs finished in the present one.
    stage_step, step
        Steps made in the present stage, and in all.
    history
        Losses of every epoch.
    """

    model: Trainable
    average: Trainable
    order: torch.Generator
    noise: torch.Generator
    optimisers: list[torch.optim.Optimizer] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = float("inf")
    waited: int = 0
    stage: int = 0
    epoch: int = 0
    stage_step: int = 0
    step: int = 0
    history: list[Losses] = field(default_factory=list)


_COUNTERS = ("best_loss", "waited", "stage", "epoch", "stage_step", "step", "history")


def start(model: Trainable, seed: int) -> State:
    """Return the state before the first step, with copies of the model."""
    model = copy.deepcopy(model).train().requires_grad_(True)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    order = torch.Generator().manual_seed(stream_seed(seed, "order"))
    noise = torch.Generator(device).manual_seed(stream_seed(seed, "noise"))
    return State(model, average, order, noise)


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the average towards the model's weights; buffers are taken as they are."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def identify(model: Trainable, images: Tensor, settings: Any) -> dict[str, Any]:
    """Return what a checkpoint must agree with to be resumed, as JSON gives it back."""
    weight = next(model.parameters())
    weights = 0
    for tensor in model.state_dict().values():
        weights = _checksum(tensor, weights)
    found = {
        "model": {
            "architecture": type(model).__name__,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
        },
        "config": asdict(model.config),
        "settings": asdict(settings),
        "images": {"shape": images.shape, "checksum": _checksum(images)},
        "initial weights": {"checksum": weights},
    }
    normal: dict[str, Any] = json.loads(json.dumps(found))
    return normal


def _checksum(tensor: Tensor, start: int = 0) -> int:
    """Cyclic redundancy check of a tensor's bytes, also of types that NumPy lacks."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(plain.view(torch.uint8).numpy().data, start)


def store(state: State, path: Path, identity: Mapping[str, Any]) -> None:
    """Write a state; the file appears whole or not at all."""
    tensors = {"order": state.order.get_state(), "noise": state.noise.get_state()}
    for part in ("model", "average"):
        weights = getattr(state, part).state_dict()
        tensors |= {f"{part}.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for player, optimiser in enumerate(state.optimisers):
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{player}.{index}.{name}": value for name, value in moments.items()}
    header = {
        "kind": "checkpoint",
        "counters": {name: getattr(state, name) for name in _COUNTERS},
        "identity": identity,
    }
    write_tensors(path, tensors, header)


def restore(state: State, path: Path, identity: Mapping[str, Any]) -> dict[str, Tensor]:
    """Load a checkpoint into a state, if it belongs to the same training.

    Returns
    -------
    dict
        The moments of the optimisers, for `restore_optimisers` once these exist.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is damaged, of another kind or written by another version.
    OptionError
        If model, images or settings are not those that the training was started with.
    """
    if not path.exists():
        raise FileNotFoundError(f"resume: no checkpoint at {path}")
    tensors, header = read_tensors(path, "checkpoint")
    try:
        _compare(identity, header["identity"], path)
        counters = {name: header["counters"][name] for name in _COUNTERS}
        sources = {name: tensors[name] for name in ("order", "noise")}
    except (KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else "its header is no object"
        raise FileFormatError(
            f"{path}: a checkpoint of another version of bayesgen, or damaged: {what}"
        ) from error
    _check_counters(counters, path)
    for name, value in counters.items():
        setattr(state, name, value)
    fill(state.model, _under(tensors, "model."), path, "model.")
    fill(state.average, _under(tensors, "average."), path, "average.")
    state.best = _under(tensors, "best.")
    if state.best or state.best_loss < math.inf:
        check_weights(state.average.state_dict(), state.best, path, "best.")
    for name, source in sources.items():
        _set_source(getattr(state, name), source, path, name)
    return _under(tensors, "adam.")


def _check_counters(counters: Mapping[str, Any], path: Path) -> None:
    """Refuse counters that are not of their types."""
    for name, value in counters.items():
        if name == "history":
            fits = isinstance(value, list) and all(map(_are_losses, value))
        elif name == "best_loss":
            fits = isinstance(value, int | float)
        else:
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not fits:
            raise FileFormatError(f"{path}: damaged, for {name} cannot be {value!r}")


def _are_losses(losses: Any) -> bool:
    numbers = losses.values() if isinstance(losses, dict) else [None]
    return all(isinstance(number, int | float) for number in numbers)


def _set_source(source: torch.Generator, state: Tensor, path: Path, name: str) -> None:
    """Give a source of random numbers its state."""
    try:
        source.set_state(state)
    except (RuntimeError, TypeError) as error:
        wanted = source.get_state()
        raise FileFormatError(
            f"{path}: {name} should be the state of a source of random numbers, {len(wanted)} "
            f"bytes, found {tuple(state.shape)} of {state.dtype} that are none ({error})"
        ) from error


def check_progress(state: State, path: Path, epochs: Sequence[int], steps: Sequence[int]) -> None:
    """Refuse counters that no training has after an epoch; with some it would never end.

    Parameters
    ----------
    state
        What `restore` filled.
    path
        From where.
    epochs, steps
        How many each stage has, if it does not stop early.

    Raises
    ------
    FileFormatError
        If the counters contradict each other or the numbers of epochs and steps.
    """
    # After the last stage there is none that could have begun.
    stages = [(most, all_steps // most) for most, all_steps in zip(epochs, steps, strict=True)]
    most, each = (*stages, (1, 0))[state.stage] if state.stage <= len(stages) else (0, 0)
    if (
        state.epoch >= most
        or state.stage_step != state.epoch * each
        or state.step < state.stage_step
        or len(state.history) < state.stage + state.epoch
    ):
        raise FileFormatError(
            f"{path}: damaged, for no training ever has these counters: stage={state.stage}, "
            f"epoch={state.epoch}, stage_step={state.stage_step}, step={state.step}, losses of "
            f"{len(state.history)} epochs"
        )


def restore_optimisers(
    optimisers: Sequence[torch.optim.Optimizer],
    moments: Mapping[str, Tensor],
    path: Path,
    *,
    begun: bool,
) -> None:
    """Give optimisers the moments that `restore` returned.

    Parameters
    ----------
    optimisers
        One for each player of the stage.
    moments
        Those of all of them.
    path
        Where they are from.
    begun
        Whether steps of the stage were made, after which every optimiser has moments.

    Raises
    ------
    FileFormatError
        If moments are missing or do not fit the weights.
    """
    wanted: dict[str, Tensor] = {}
    places = {key.rpartition(".")[0] for key in moments}
    for player, optimiser in enumerate(optimisers):
        if begun and not _under(moments, f"{player}."):
            raise FileFormatError(f"{path}: damaged, for adam.{player} is missing")
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        for index, weight in enumerate(weights):
            # Weights that have never had a gradient have no moments.
            if f"{player}.{index}" in places:
                own = {"step": torch.zeros(()), "exp_avg": weight, "exp_avg_sq": weight}
                wanted |= {f"{player}.{index}.{name}": like for name, like in own.items()}
    check_weights(wanted, moments, path, "adam.")
    for player, optimiser in enumerate(optimisers):
        found: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _under(moments, f"{player}.").items():
            place, name = key.split(".")
            found.setdefault(int(place), {})[name] = tensor
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": found, "param_groups": groups})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


# What may be changed to get past the step at which a training diverged.
_FREE = {"learning_rate", "gradient_clip"}


def _compare(wanted: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    for part, values in wanted.items():
        for name, expected in values.items():
            if found[part][name] != expected and name not in _FREE:
                raise OptionError(
                    f"resume: {path} was started with {part} {name}={found[part][name]}, "
                    f"now it is {expected}; resume with the same, or start anew"
                )
