"""The shipped generators: the recipes they were trained by, and what they are worth.

    python benchmarks/zoo.py train NAME ... --mnist FOLDER --out WEIGHTS
    python benchmarks/zoo.py evaluate NAME ... --mnist FOLDER

The first trains generators by the commands below, minutes to a quarter of an hour each on one CPU
core, and writes them to a folder. The second evaluates shipped generators on images they were not
trained on: tables and numbers go to benchmarks/results/zoo, pictures to out/zoo/NAME, the main
figures to the model cards and to the comparison, benchmarks/results/zoo.md, with pictures in
docs/images.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen import cli
from bayesgen.models import StructuredVAE
from bayesgen.models.evaluation import Evaluation, evaluate, interpolation, nearest_latent
from bayesgen.models.evaluation.access import decode, prior_draws
from bayesgen.models.files import save_generator
from bayesgen.models.plot import plot_covariance, plot_images

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WEIGHTS = Path(bg.models.__file__).parent / "weights"

_SMALL = "--layout convolution --width 160 --blocks 2"
# What `bayesgen train` is told, beside --half --card --out.
RECIPES = {
    "mnist-ae-8": f"ae --data mnist --latent 8 {_SMALL} --channels 16 --epochs 16",
    "mnist-gan-16": f"gan --data mnist --latent 16 {_SMALL} --channels 16 --epochs 12",
    "mnist-glow": "glow --data mnist --epochs 10",
    "mnist-structured-vae": f"structured-vae --data mnist --latent 16 {_SMALL} --channels 16 "
    "--noise-level 0.08 --epochs 40 --patience 4",
    "mnist-vae": "vae --data mnist --latent 16",
    "mnist-vae-8": f"vae --data mnist --latent 8 {_SMALL} --channels 16 --noise-level 0.12 "
    "--epochs 20",
    "mnist-vae-32": f"vae --data mnist --latent 32 {_SMALL} --channels 16 --noise-level 0.06 "
    "--epochs 24",
    "mnist-wgan-8": f"wgan --data mnist --latent 8 {_SMALL} --channels 16 --epochs 24",
    "multi-gradient-gan": f"gan --data multi-gradient:mnist --latent 20 {_SMALL} --channels 16 "
    "--epochs 30 --learning-rate 1e-3",
    "multi-gradient-vae": f"vae --data multi-gradient:mnist --latent 20 {_SMALL} --channels 16 "
    "--noise-level 0.04 --epochs 16",
    "shapes-ae-10": f"ae --data shapes --latent 10 {_SMALL} --channels 8 --epochs 16",
    "shapes-structured-vae": f"structured-vae --data shapes --latent 10 {_SMALL} --channels 8 "
    "--noise-level 0.03 --noise-floor 0.003 --epochs 24 --patience 4",
    "shapes-vae-10": f"vae --data shapes --latent 10 {_SMALL} --channels 8 --noise-level 0.03 "
    "--epochs 20",
    "shapes-wgan-10": f"wgan --data shapes --latent 10 {_SMALL} --channels 8 --epochs 40 "
    "--learning-rate 6e-4",
}

_MNIST = {
    "data": "MNIST handwritten digits, training set (LeCun, Cortes, Burges), 28 x 28, in [0, 1]",
    "licence": "Apache-2.0; the training data is distributed under CC BY-SA 3.0",
}
_GRADIENTS = {
    "data": "MNIST digits of half brightness on a ramp in one of four directions, 32 x 32 "
    "(bayesgen.datasets.multi_gradient_mnist), from the training set",
    "licence": _MNIST["licence"],
}
_SHAPES = {
    "data": "60,000 simulated images of a disc and a rectangle, 56 x 56 (bayesgen.datasets.shapes, "
    "seed 0)",
    "licence": "Apache-2.0",
}


def source(name: str) -> dict[str, str]:
    """Data and licence, for the model card."""
    kind = name.split("-")[0]
    return {"mnist": _MNIST, "multi": _GRADIENTS, "shapes": _SHAPES}[kind]


def train(name: str, mnist: Path, out: Path) -> None:
    """Train one generator by its recipe."""
    out.mkdir(parents=True, exist_ok=True)
    # Recipes say "mnist" for the folder with the data, so that cards name no place of ours. It is a
    # word by itself or what follows a colon, not part of another word such as a layout's name.
    words = [re.sub("(?<![^:])mnist$", lambda _: str(mnist), w) for w in RECIPES[name].split()]
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / "card.json"
        card.write_text(json.dumps(source(name)))
        weights = out / f"{name}.safetensors"
        status = cli.main(["train", *words, "--half", "--card", str(card), "--out", str(weights)])
    if status:
        raise SystemExit(status)
    generator = bg.models.load(weights)
    card_now = generator.card | {"command": f"bayesgen train {RECIPES[name]} --half"}
    save_generator(generator, weights, card=card_now, half=True)


def test_images(name: str, mnist: Path) -> Tensor:
    """Images like those that the generator was trained on."""
    if name.startswith("shapes"):
        return bg.datasets.shapes(5000, seed=1)
    digits = bg.datasets.mnist(mnist, "test")
    if name.startswith("multi"):
        return bg.datasets.multi_gradient_mnist(digits, seed=1)
    return digits


def assess(name: str, mnist: Path) -> Evaluation:
    """Evaluate one shipped generator, write the report, and put the main figures on its card."""
    generator = bg.models.load(name)
    reference = None
    if name.startswith("mnist"):
        labelled = bg.datasets.mnist(mnist, "train")[:10_000]
        reference = labelled, bg.datasets.mnist_labels(mnist, "train")[:10_000]
    found = evaluate(generator, test_images(name, mnist), reference=reference)
    found.save(Path("out") / "zoo" / name)
    folder = RESULTS / "zoo"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(f"# {name}\n\n{found.markdown()}\n")
    numbers = json.dumps(found.measures, indent=1, sort_keys=True)
    (folder / f"{name}.json").write_text(numbers + "\n")
    card = generator.card | {"evaluation": summary(found)}
    save_generator(generator, WEIGHTS / f"{name}.safetensors", card=card, half=True)
    return found


def summary(found: Evaluation) -> dict[str, Any]:
    """The figures that go on a card and into the comparison."""
    measures = found.measures
    reconstruction = measures["reconstruction"]
    figures = {
        "reconstruction_psnr": reconstruction["nearest"]["psnr"]["mean"],
        "reconstruction_nrmse": reconstruction["nearest"]["nrmse"]["mean"],
        "earth_movers": measures["divergences"]["earth_movers_normalised"]["generated"],
        "earth_movers_real": measures["divergences"]["earth_movers_normalised"]["floor"],
        "energy_excess": measures["divergences"]["distances"]["energy"]["excess"]["value"],
        "sinkhorn_excess": measures["divergences"]["distances"]["sinkhorn"]["excess"]["value"],
        "precision": measures["coverage"]["generated"]["precision"]["value"],
        "recall": measures["coverage"]["generated"]["recall"]["value"],
        "classifier_accuracy": measures["two_sample_test"]["accuracy"],
        "latent_effect": measures["latent"]["effect"],
        "largest_singular_value": measures["smoothness"]["largest"]["median"],
    }
    if "labels" in measures:
        figures["label_factor"] = measures["labels"]["factor"]
    figures |= {
        name: value
        for name, value in measures.get("likelihood", {}).items()
        if isinstance(value, float)
    }
    rounded: dict[str, Any] = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    return rounded | {"images": "test images, none trained on"}


def compare(names: Sequence[str]) -> None:
    """Write the comparison of all generators that have been evaluated."""
    columns = {
        "reconstruction_psnr": "PSNR, dB",
        "reconstruction_nrmse": "NRMSE",
        "earth_movers": "EMD",
        "earth_movers_real": "EMD real",
        "energy_excess": "energy",
        "sinkhorn_excess": "Sinkhorn",
        "precision": "precision",
        "recall": "recall",
        "classifier_accuracy": "classifier",
        "latent_effect": "latent",
        "largest_singular_value": "Lipschitz",
        "label_factor": "labels",
    }
    rows, entries = [], {}
    for name in names:
        generator = bg.models.load(name)
        figures = generator.card.get("evaluation", {})
        size = (WEIGHTS / f"{name}.safetensors").stat().st_size / 2**20
        seconds = generator.card["training_seconds"]
        entries[name] = figures | {"size_mib": round(size, 2), "training_seconds": seconds}
        values = [figures.get(column, "") for column in columns]
        rows.append([name, generator.latent_dim, f"{size:.2f}", seconds["cpu"], *values])
    header = ["generator", "latent", "MiB", "CPU s", *columns.values()]
    write("zoo", "The shipped generators", _LEGEND + table(header, rows), {"generators": entries})


def pictures(names: Sequence[str], mnist: Path) -> None:
    """Draw samples, reconstructions and interpolations of every generator, and covariances."""
    rows: dict[str, list[tuple[str, Tensor]]] = {"samples": [], "nearest": [], "between": []}
    for name in names:
        generator, images = bg.models.load(name), test_images(name, mnist)
        rows["samples"].append((name, decode(generator, prior_draws(generator, 20, seed=0))))
        nearest = nearest_latent(generator, images[:10]).images
        pairs = torch.stack([images[:10], nearest], 1).flatten(0, 1)
        rows["nearest"].append((f"{name}: image and nearest", pairs))
        grid = interpolation(generator, images[:3])
        path = torch.cat([grid[:, 0].flip(0), grid[0]])
        rows["between"].append((f"{name}: from one image by a second to a third", path))
    for kind, shown in rows.items():
        figure = Figure(figsize=(14, 0.9 * len(shown)), layout="constrained")
        for ax, (title, images) in zip(figure.subplots(len(shown), 1), shown, strict=True):
            plot_images(images, columns=20, ax=ax)
            ax.set_title(title, fontsize=9, loc="left")
        figure.savefig(IMAGES / f"zoo_{kind}.png", dpi=80)
    covariances([name for name in names if "structured" in name], mnist)


def covariances(names: Sequence[str], mnist: Path) -> None:
    """Draw correlations of residuals around pixels, and residuals from the law beside real ones."""
    figure: Any = Figure(figsize=(14, 5 * len(names)), layout="constrained")
    for panel, name in zip(np.atleast_1d(figure.subfigures(len(names), 1)), names, strict=True):
        generator = cast(StructuredVAE, bg.models.load(name))
        images = test_images(name, mnist)[:4]
        z = generator.encode(images)
        law = generator.conditional(z)
        rng = torch.Generator().manual_seed(0)
        drawn = law.colour(torch.randn(images.shape, generator=rng))
        size = generator.image_shape[0]
        axes = panel.subplots(2, 4)
        for i in range(4):
            triple = torch.stack([images[i], law.mean[i], drawn[i]])
            title = "image, mean, a draw" if i else f"{name}: image, mean, a draw"
            plot_images(triple, columns=3, ax=axes[0, i], title=title)
            # Where this residual is largest, away from the edge.
            inner = (images[i] - law.mean[i]).abs()[4 : size - 4, 4 : size - 4]
            row, column = divmod(int(inner.argmax()), size - 8)
            plot_covariance(generator, z[i], (row + 4, column + 4), ax=axes[1, i])
    figure.savefig(IMAGES / "structured_covariance.png", dpi=80)


_LEGEND = """Measured by `python benchmarks/zoo.py evaluate` on images that were not trained on.
PSNR and NRMSE: of 500 images and the nearest in the generator's range. EMD: earth mover's distance
of 2000 samples from 2000 images over the mean of |x|^2, beside that of other images ("real"): below
it means blur. Energy, Sinkhorn: debiased divergences less those of other images; smaller is better.
Precision and recall: share of samples among images, and of images among samples. Classifier: how
often one tells samples from images; 0.5 is best. Latent: energy distance of encodings from the
prior, 0 to 1. Lipschitz: median largest singular value of the Jacobian. Labels: largest factor
between frequencies of digits among samples and in the data. CPU s: of training, beside other jobs.

On digits, by the earth mover's distance, the VAE of eight dimensions is nearer than the autoencoder
and the Wasserstein GAN; by the debiased transport it is level with the latter; by the energy
distance the GANs, whose samples are sharp, are nearer. On shapes the VAE is nearest by both
debiased divergences; by the plain distance the one with correlated residuals and the autoencoder
are. At full temperature the small flow leaves [0, 1] far behind for about one draw in a hundred.

"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("action", choices=["train", "evaluate", "compare"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default, all")
    parser.add_argument("--mnist", type=Path, default=Path("mnist"), help="folder with MNIST")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for trained weights")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - RECIPES.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(RECIPES)}")
    for name in options.names or RECIPES:
        if options.action == "train":
            train(name, options.mnist, options.out)
        elif options.action == "evaluate":
            print(f"{name}\n{assess(name, options.mnist)}\n", flush=True)
    if options.action != "train":
        shipped = [name for name in RECIPES if name in bg.models.names()]
        compare(shipped)
        pictures(shipped, options.mnist)


if __name__ == "__main__":
    main()
