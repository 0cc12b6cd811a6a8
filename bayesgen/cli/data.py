"""Where the command line gets its images from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor

from bayesgen.errors import OptionError

_SIMULATED = ("shapes", "ellipses")
_GRADIENTS = "multi-gradient:"
# Seeds of simulated images to train on and to test on.
_SEEDS = {"train": 0, "test": 1}
_COUNTS = {"train": 60_000, "test": 10_000}

DATA_HELP = (
    "folder with the MNIST files; IDX, NPY or HDF5 file; folder of image files; 'shapes' or "
    "'ellipses' for simulated images; 'multi-gradient:FOLDER' for MNIST digits on a ramp"
)


def add_data(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the words that say which images."""
    add = parser.add_argument
    add("--data", required=True, metavar="WHERE", help=DATA_HELP)
    add("--key", metavar="NAME", help="name of the images in an HDF5 file")
    add(
        "--limit",
        type=int,
        metavar="N",
        help="use the first so many images only; of simulated ones, simulate as many",
    )


def read_data(options: argparse.Namespace, split: str) -> Tensor:
    """Read the training or the test images that the words name.

    Data that are not divided serve as either, with a word of warning for tests.

    Raises
    ------
    OptionError
        If ``--limit`` is not positive, or ``--key`` is given for what has no names.
    FileNotFoundError, BayesgenError
        If there are no such images, or they cannot be used; see `bayesgen.datasets.read_images`.
    """
    from bayesgen import datasets
    from bayesgen.datasets.images import is_divided

    name, limit = options.data, options.limit
    if limit is not None and limit < 1:
        raise OptionError(f"--limit: expected at least 1, got {limit}")
    if options.key is not None and (name in _SIMULATED or name.startswith(_GRADIENTS)):
        raise OptionError(f"--key: {name} has no named images; it is for HDF5 files")
    if name in _SIMULATED:
        simulate = getattr(datasets, name)
        images: Tensor = simulate(limit or _COUNTS[split], seed=_SEEDS[split])
        return images
    if name.startswith(_GRADIENTS):
        digits = datasets.mnist(Path(name.removeprefix(_GRADIENTS)), split)[:limit]
        return datasets.multi_gradient_mnist(digits, seed=_SEEDS[split])
    if split == "test" and Path(name).exists() and not is_divided(name):
        print(f"{name}: not divided; none of it may have been trained on", file=sys.stderr)
        split = "train"
    return datasets.read_images(Path(name), split=split, limit=limit, key=options.key)
