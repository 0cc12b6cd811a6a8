"""``bayesgen train``: from images to a generator in a file."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesgen.cli.data import add_data, read_data
from bayesgen.errors import FileFormatError, OptionError
from bayesgen.models import (
    AE,
    GAN,
    VAE,
    WGAN,
    Glow,
    StructuredVAE,
    Trainable,
    TrainingSettings,
    save_generator,
    train,
)
from bayesgen.models.checkpoints import Losses

_KINDS: dict[str, tuple[type[Trainable], str]] = {
    "ae": (AE, "autoencoder with a latent prior fitted afterwards"),
    "vae": (VAE, "variational autoencoder"),
    "wgan": (WGAN, "Wasserstein generative adversarial network with gradient penalty"),
    "gan": (GAN, "generative adversarial network with a discriminator"),
    "glow": (Glow, "invertible generator"),
    "structured-vae": (StructuredVAE, "variational autoencoder with correlated residuals"),
}

# Also a word of the settings; only for generators that were trained before.
_NOT_WORDS = {"seed", "fixed_mean"}
_HELP = {
    "layout": "networks: perceptron, convolution, or a paper's",
    "width": "hidden units",
    "blocks": "residual blocks of the decoder",
    "channels": "channels of the convolutions",
    "noise_level": "pixel noise, rho",
    "learn_noise": "learn rho as well",
    "components": "components of the latent prior",
    "penalty": "weight of the gradient penalty",
    "critic_steps": "steps of the critic for each of the generator",
    "covariance": "of the residuals: structured, diagonal or identity",
    "radius": "rows and columns between pixels that are tied",
    "noise_floor": "least standard deviation of a pixel given its neighbours",
    "joint": "fine-tune means and covariance together",
    "levels": "resolutions",
    "steps": "steps of flow at each resolution",
    "quantisation": "grey levels of the images",
    "per_channel": "normalise channel by channel, not pixel by pixel",
    "epochs": "passes over the images, in all stages",
    "batch_size": "images in a step",
    "learning_rate": "Adam's step size at its peak",
    "schedule": "of the step size: cosine or constant",
    "weight_decay": "decoupled decay of the weights",
    "gradient_clip": "largest norm of a gradient",
    "average": "decay of the moving average of the weights, which is what is kept",
    "validation": "images held out to see how training does",
    "reserved": "part of the images that only the covariance learns from, where there is one",
    "patience": "epochs without a lower held-out loss after which to stop",
    "mixed_precision": "compute in bfloat16, on a GPU",
    "seed": "seed of everything random",
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def add_to(commands: Any) -> None:
    """Add the command with one sub-command for each kind of generator."""
    parser = commands.add_parser("train", help="train a generator on images")
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for name, (kind, description) in _KINDS.items():
        words = kinds.add_parser(
            name,
            help=description,
            description=f"Train: {description}. Load the result with bayesgen.models.load(FILE).",
            formatter_class=_Help,
        )
        _add_words(words, kind)
        words.set_defaults(run=_run, kind=kind)


def _add_words(parser: argparse.ArgumentParser, kind: type[Trainable]) -> None:
    add_data(parser.add_argument_group("images"))
    architecture = parser.add_argument_group("generator")
    if _has_latent(kind):
        architecture.add_argument(
            "--latent", type=int, default=16, metavar="N", help="length of a latent vector"
        )
    for name, default in _architecture(kind).items():
        _add_field(architecture, name, default)
    training = parser.add_argument_group("training")
    for field in dataclasses.fields(TrainingSettings):
        _add_field(training, field.name, getattr(kind.default_settings, field.name))
    training.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, ...")
    training.add_argument("--resume", action="store_true", help="continue an interrupted training")
    training.add_argument("--quiet", action="store_true", help="show no progress")
    add = parser.add_argument_group("result").add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="file to write, *.safetensors")
    add("--half", action="store_true", help="store weights in half precision")
    add("--card", type=Path, metavar="FILE", help="JSON file with more entries for the model card")
    add("--picture", action="store_true", help="keep a picture of losses and samples beside it")


# Words without a default to take the type from.
_OPTIONAL = {"patience": int, "gradient_clip": float, "validation": int}


def _add_field(group: Any, name: str, default: Any) -> None:
    word, text = "--" + name.replace("_", "-"), _HELP.get(name)
    if isinstance(default, bool):
        group.add_argument(word, action="store_true", default=default, help=text)
        return
    convert = _OPTIONAL[name] if default is None else type(default)
    metavar = {int: "N", float: "X"}.get(convert, "NAME")
    group.add_argument(word, type=convert, default=default, metavar=metavar, help=text)


def _architecture(kind: type[Trainable]) -> dict[str, Any]:
    """Keywords of a kind of generator that are words here, with their defaults."""
    parameters = inspect.signature(kind).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in _NOT_WORDS
    }


def _has_latent(kind: type[Trainable]) -> bool:
    return "latent_dim" in inspect.signature(kind).parameters


def _run(options: argparse.Namespace) -> int:
    checkpoint = _check_out(options.out)
    names = [field.name for field in dataclasses.fields(TrainingSettings)]
    settings = TrainingSettings(**{name: getattr(options, name) for name in names})
    entries = _read_card(options.card)
    images = read_data(options, "train")
    model = _build(options, tuple(images.shape[1:]))
    picture = _picture(options, images)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        trained, history = train(
            model,
            images,
            settings,
            checkpoint=checkpoint,
            resume=options.resume,
            progress=not options.quiet,
            each_epoch=picture,
        )
    except KeyboardInterrupt:
        if checkpoint.exists():
            print(
                f"interrupted; {checkpoint} holds all whole epochs, continue with the same words "
                "and --resume",
                file=sys.stderr,
            )
            return 130
        raise
    seconds = {
        "wall": round(time.perf_counter() - wall),
        "cpu": round(time.process_time() - cpu),
    }
    kept = _kept_epoch(history, settings)
    card = {
        **entries,
        "command": options.command,
        "images": len(images),
        "epochs": len(history),
        "seed": settings.seed,
        "losses": history[kept],
        # A resumed training took longer.
        "training_seconds": seconds | ({"of": "the resumed part"} if options.resume else {}),
    }
    save_generator(trained, options.out, card=card, half=options.half)
    checkpoint.unlink()
    if picture is not None:
        picture(trained, history)
    _print_summary(options.out, history, kept, seconds["wall"])
    return 0


def _check_out(out: Path) -> Path:
    """Refuse what cannot be written to, before anything else is done; name the checkpoint."""
    if out.is_dir():
        raise OptionError(f"--out: expected a file to write, but {out} is a folder")
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not there.is_dir():
        raise OptionError(f"--out: cannot write {out}, for {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"--out: cannot write {out}, for the folder {there} is read-only")
    return out.with_name(out.name + ".checkpoint")


def _build(options: argparse.Namespace, image_shape: tuple[int, ...]) -> Trainable:
    kind: type[Trainable] = options.kind
    words = {name: getattr(options, name) for name in _architecture(kind)}
    words["seed"] = options.seed
    if _has_latent(kind):
        words["latent_dim"] = options.latent
    # Every class has arguments of its own.
    make: Callable[..., Trainable] = kind
    model = make(image_shape, **words)
    try:
        model = model.to(torch.device(options.device))
        # Not every device that holds tensors draws random numbers.
        torch.Generator(next(model.parameters()).device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"--device: cannot use {options.device!r} ({reason})") from error
    return model


def _picture(
    options: argparse.Namespace, images: Tensor
) -> Callable[[Trainable, list[Losses]], None] | None:
    """Return what draws the picture, if there is to be one."""
    if not options.picture:
        return None
    from bayesgen.models.plot import save_training_picture

    path = options.out.with_name(options.out.stem + ".png")
    if path == options.out:
        raise OptionError(f"--out: {path} is where --picture writes to; name it *.safetensors")

    def draw(model: Trainable, history: list[Losses]) -> None:
        save_training_picture(path, model, history, images[:8])

    return draw


def _kept_epoch(history: list[Losses], settings: TrainingSettings) -> int:
    """Index of the epoch whose weights were kept: the last one, or the best of its stage."""
    last = len(history) - 1
    if settings.patience is None or "validation_loss" not in history[last]:
        return last
    # Stages differ in what they report.
    stage = [epoch for epoch in range(last + 1) if history[epoch].keys() == history[last].keys()]
    return min(stage, key=lambda epoch: history[epoch]["validation_loss"])


def _print_summary(out: Path, history: list[Losses], kept: int, seconds: int) -> None:
    minutes, rest = divmod(seconds, 60)
    size = out.stat().st_size / 1e6
    print(f"wrote {out} ({size:.2g} MB) after {len(history)} epochs, {minutes} min {rest} s")
    prefix = "validation_"
    losses = {name: value for name, value in history[kept].items() if not name.startswith(prefix)}
    held_out = {
        name.removeprefix(prefix): value
        for name, value in history[kept].items()
        if name.startswith(prefix)
    }
    for title, values in (("training images", losses), ("held-out images", held_out)):
        found = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        print(f"epoch {kept + 1}, {title}:  {found}")
    print(f"load it with  bayesgen.models.load({str(out)!r})")


def _read_card(path: Path | None) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text()) if path else {}
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise FileFormatError(f"{path}: expected a JSON object, got {type(entries).__name__}")
    return entries
