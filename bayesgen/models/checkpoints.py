"""The state of a training, and its file: all that is needed to go on as if nothing had happened."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import FileFormatError, OptionError
from bayesgen.models.files import fill, read_tensors, write_tensors
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
    noise = torch.Generator(device).manual_seed(seed + 1)
    return State(model, average, torch.Generator().manual_seed(seed), noise)


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
        fill(state.model, _under(tensors, "model."), path)
        fill(state.average, _under(tensors, "average."), path)
        state.best = _under(tensors, "best.")
        state.order.set_state(tensors["order"])
        state.noise.set_state(tensors["noise"])
        for name in _COUNTERS:
            setattr(state, name, header["counters"][name])
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: a checkpoint of another version of bayesgen") from error
    return _under(tensors, "adam.")


def restore_optimisers(
    optimisers: Sequence[torch.optim.Optimizer], moments: Mapping[str, Tensor]
) -> None:
    """Give optimisers the moments that `restore` returned."""
    for player, optimiser in enumerate(optimisers):
        found: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _under(moments, f"{player}.").items():
            index, name = key.split(".")
            found.setdefault(int(index), {})[name] = tensor
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
