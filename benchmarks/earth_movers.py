"""Exact earth mover's distances of ten thousand samples, the published number, from real images.

    python benchmarks/earth_movers.py --mnist FOLDER

For the shipped generators that the papers compare. Shapes are compared with images not trained
on; digits, of which the published test set has no more than ten thousand, with training images.
The distance of two disjoint sets of real images is the floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from report import table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.models.evaluation import earth_movers_distance
from bayesgen.models.evaluation.access import decode, prior_draws

GENERATORS = {
    "MNIST": ("mnist-vae-8", "mnist-ae-8", "mnist-wgan-8"),
    "shapes": ("shapes-vae-10", "shapes-ae-10", "shapes-wgan-10"),
}


def real_images(data: str, mnist: Path, size: int) -> tuple[Tensor, Tensor]:
    """Two disjoint sets."""
    if data == "MNIST":
        digits = bg.datasets.mnist(mnist, "train")
        return digits[:size], digits[-size:]
    return bg.datasets.shapes(size, seed=1), bg.datasets.shapes(size, seed=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mnist", type=Path, default=Path("mnist"), help="folder with MNIST")
    parser.add_argument("--size", type=int, default=10_000, help="of each set of images")
    options = parser.parse_args(arguments)
    rows, results = [], {}
    for data, names in GENERATORS.items():
        real, other = real_images(data, options.mnist, options.size)
        sets = {"real images": other}
        for name in names:
            generator = bg.models.load(name)
            sets[name] = decode(generator, prior_draws(generator, options.size, seed=0))
        for name, images in sets.items():
            distance = earth_movers_distance(images, real, normalised_by=real)
            results[f"{data}, {name}"] = distance
            rows.append([data, name, f"{distance:.4f}"])
            print(rows[-1], flush=True)
    title = f"Earth mover's distances of {options.size} images"
    text = "Squared distance over the mean of |x|^2; exact. Below the floor means blur."
    header = ["data", "samples", "distance"]
    write("earth_movers", title, text + "\n\n" + table(header, rows), {"distances": results})


if __name__ == "__main__":
    main()
