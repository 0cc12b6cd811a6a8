"""``bayesgen evaluate``: an honest report on a generator."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from bayesgen.cli.data import add_data, read_data
from bayesgen.errors import OptionError

# Labelled images that tell the kinds of generated ones; more would not change the counts.
_LABELLED = 10_000


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="measure whether a generator is fit to be a prior",
        description="Measure whether a generator is fit to be a prior for inverse problems, on "
        "images that it was not trained on: a table, a verdict, all numbers as JSON, and pictures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", help="a shipped generator, or a file written by bayesgen train")
    add_data(parser)
    add = parser.add_argument
    add("--out", type=Path, help="folder for evaluation.md, evaluation.json and pictures")
    add("--samples", type=int, default=2000, help="generated images to compare with real ones")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--quiet", action="store_true", help="do not say what is being measured")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from bayesgen.models import load
    from bayesgen.models.evaluation import evaluate
    from bayesgen.models.evaluation.divergence import import_pot

    # What takes minutes to find out otherwise.
    import_pot()
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise OptionError(f"--out: expected a folder to write to, but {options.out} is a file")
    generator = load(options.name)
    images = read_data(options, "test")

    def say(part: str) -> None:
        if not options.quiet:
            print(f"measuring: {part}", file=sys.stderr)

    found = evaluate(
        generator,
        images,
        samples=options.samples,
        reference=_labelled(options, generator.image_shape),
        seed=options.seed,
        progress=say,
    )
    print(found)
    if options.out is not None:
        written = found.save(options.out)
        print(f"\nwrote {len(written)} files to {options.out}")
    return 0


def _labelled(
    options: argparse.Namespace, image_shape: tuple[int, ...]
) -> tuple[Tensor, Tensor] | None:
    """Labelled training images, if the data comes with labels."""
    from bayesgen.datasets import mnist, mnist_labels

    try:
        labels = mnist_labels(options.data, "train")[:_LABELLED]
        images = mnist(options.data, "train")[:_LABELLED]
    except (OSError, ValueError):
        return None
    return (images, labels) if tuple(images.shape[1:]) == image_shape else None
