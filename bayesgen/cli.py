"""The command line: ``bayesgen train vae ...``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesgen._version import __version__
from bayesgen.errors import BayesgenError, FileFormatError, OptionError

if TYPE_CHECKING:
    from torch import Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments
        The words after ``bayesgen``; by default those the process was started with.

    Returns
    -------
    int
        0 for success, 1 for bad data or files, 130 if interrupted. Words that cannot be
        understood leave with status 2, as is customary.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    options.command = shlex.join(["bayesgen", *words])
    try:
        status: int = options.run(options)
        return status
    except (BayesgenError, OSError) as error:
        print(f"bayesgen: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "bayesgen", description="Bayesian inversion with learned generative priors."
    )
    parser.add_argument("--version", action="version", version=f"bayesgen {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    train = commands.add_parser("train", help="train a generator on images")
    kinds = train.add_subparsers(metavar="KIND", required=True)
    _add_train_vae(
        kinds.add_parser(
            "vae",
            help="variational autoencoder",
            description="Train a variational autoencoder; load the result with "
            "bayesgen.models.load(FILE).",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    return parser


def _add_train_vae(parser: argparse.ArgumentParser) -> None:
    from bayesgen.models.training import TrainingSettings
    from bayesgen.models.vae import VAEConfig

    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        help="folder with the MNIST files, or one IDX file of images",
    )
    add("--out", type=Path, required=True, help="file to write, *.safetensors")
    add("--latent", type=int, default=16, help="length of a latent vector")
    add("--width", type=int, default=VAEConfig.width, help="hidden units of the decoder")
    add("--blocks", type=int, default=VAEConfig.blocks, help="residual blocks of the decoder")
    add("--channels", type=int, default=VAEConfig.channels, help="channels of the encoder")
    add("--noise-level", type=float, default=VAEConfig.noise_level, help="pixel noise, rho")
    add("--epochs", type=int, default=TrainingSettings.epochs, help="passes over the images")
    add("--batch-size", type=int, default=TrainingSettings.batch_size, help="images in a step")
    add(
        "--learning-rate",
        type=float,
        default=TrainingSettings.learning_rate,
        help="Adam's step size at its peak",
    )
    add("--card", type=Path, help="JSON file with more entries for the model card")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--half", action="store_true", help="store weights in half precision")
    add("--resume", action="store_true", help="continue an interrupted training")
    add("--quiet", action="store_true", help="show no progress bar")
    parser.set_defaults(run=_train_vae)


def _train_vae(options: argparse.Namespace) -> int:
    from bayesgen.datasets import read_images
    from bayesgen.models.evaluation import evaluate
    from bayesgen.models.files import save_generator
    from bayesgen.models.training import TrainingSettings, check_images, train
    from bayesgen.models.vae import VAE

    if options.out.is_dir():
        raise OptionError(f"--out: expected a file to write, but {options.out} is a folder")
    settings = TrainingSettings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    images = read_images(options.data)
    model = VAE(
        tuple(images.shape[1:]),
        options.latent,
        width=options.width,
        blocks=options.blocks,
        channels=options.channels,
        noise_level=options.noise_level,
        seed=options.seed,
    )
    check_images(images, model.image_shape)
    test = _test_images(options.data)
    entries = _read_card(options.card)
    checkpoint = options.out.with_name(options.out.name + ".checkpoint")
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        model, history = train(
            model,
            images,
            settings,
            checkpoint=checkpoint,
            resume=options.resume,
            progress=not options.quiet,
        )
    except KeyboardInterrupt:
        print(
            f"interrupted; {checkpoint} holds the last epoch, continue with --resume",
            file=sys.stderr,
        )
        return 130
    model.standardise(images)
    card = {
        **entries,
        "command": options.command,
        "images": len(images),
        "losses": history[-1],
        "training_seconds": {
            "wall": round(time.perf_counter() - wall),
            "cpu": round(time.process_time() - cpu),
        },
    }
    if test is not None:
        card["evaluation"] = evaluate(model, test) | {"on": f"first {len(test)} test images"}
    save_generator(model, options.out, card=card, half=options.half)
    checkpoint.unlink()
    print(f"wrote {options.out}: {card.get('evaluation', card['losses'])}")
    return 0


def _test_images(data: Path) -> Tensor | None:
    """Images not trained on, if the data has any."""
    from bayesgen.datasets import mnist

    try:
        return mnist(data, "test")[:500]
    except FileNotFoundError:
        return None


def _read_card(path: Path | None) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text()) if path else {}
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise FileFormatError(f"{path}: expected a JSON object, got {type(entries).__name__}")
    return entries
