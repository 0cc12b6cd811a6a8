"""The shipped generators: the recipes they were trained by, and what they are worth.

    python benchmarks/zoo.py train NAME ... --mnist FOLDER --out WEIGHTS
    python benchmarks/zoo.py evaluate NAME ... --mnist FOLDER

The first trains generators by the commands below, minutes to a quarter of an hour each on one CPU
core, and writes them to a folder. The second evaluates shipped generators on images they were not
trained on: tables and numbers go to benchmarks/results/zoo, pictures to out/zoo/NAME, the main
figures to the model cards and to the comparison, benchmarks/results/zoo.md, with a picture,
docs/images/zoo.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import RESULTS, table, write

import bayesgen as bg
from bayesgen import cli
from bayesgen.models.evaluation import Evaluation, evaluate
from bayesgen.models.evaluation.access import decode, prior_draws
from bayesgen.models.files import save_generator
from bayesgen.models.plot import plot_images

WEIGHTS = Path(bg.models.__file__).parent / "weights"

_SMALL = "--layout convolution --width 160 --blocks 2"
# What `bayesgen train` is told, beside --half --card --out.
RECIPES = {
    "mnist-ae-8": f"ae --data mnist --latent 8 {_SMALL} --channels 16 --epochs 16",
    "mnist-gan-16": f"gan --data mnist --latent 16 {_SMALL} --channels 16 --epochs 12",
    "mnist-glow": "glow --data mnist --epochs 5",
    "mnist-structured-vae": f"structured-vae --data mnist --latent 16 {_SMALL} --channels 16 "
    "--noise-level 0.08 --epochs 40",
    "mnist-vae": "vae --data mnist --latent 16",
    "mnist-vae-8": f"vae --data mnist --latent 8 {_SMALL} --channels 16 --noise-level 0.12 "
    "--epochs 20",
    "mnist-vae-32": f"vae --data mnist --latent 32 {_SMALL} --channels 16 --noise-level 0.06 "
    "--epochs 24",
    "mnist-wgan-8": f"wgan --data mnist --latent 8 {_SMALL} --channels 16 --epochs 24",
    "multi-gradient-vae": f"vae --data multi-gradient:mnist --latent 20 {_SMALL} --channels 16 "
    "--noise-level 0.04 --epochs 16",
    "shapes-ae-10": f"ae --data shapes --latent 10 {_SMALL} --channels 8 --epochs 16",
    "shapes-vae-10": f"vae --data shapes --latent 10 {_SMALL} --channels 8 --noise-level 0.03 "
    "--epochs 20",
    "shapes-wgan-10": f"wgan --data shapes --latent 10 {_SMALL} --channels 8 --epochs 14",
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
    # Recipes say "mnist" for the folder with the data, so that cards name no place of ours.
    words = [word.replace("mnist", str(mnist)) for word in RECIPES[name].split()]
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


def assess(name: str, mnist: Path) -> Evaluation:
    """Evaluate one shipped generator, write the report, and put the main figures on its card."""
    generator = bg.models.load(name)
    digits = bg.datasets.mnist(mnist, "test")
    reference = None
    if name.startswith("shapes"):
        images = bg.datasets.shapes(5000, seed=1)
    elif name.startswith("multi"):
        images = bg.datasets.multi_gradient_mnist(digits, seed=1)
    else:
        images = digits
        labelled = bg.datasets.mnist(mnist, "train")[:10_000]
        reference = labelled, bg.datasets.mnist_labels(mnist, "train")[:10_000]
    found = evaluate(generator, images, reference=reference)
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
    picture(names)
    write("zoo", "The shipped generators", _LEGEND + table(header, rows), {"generators": entries})


def picture(names: Sequence[str]) -> None:
    """Draw samples of every generator."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 0.9 * len(names)), layout="constrained")
    for ax, name in zip(figure.subplots(len(names), 1), names, strict=True):
        generator = bg.models.load(name)
        samples = decode(generator, prior_draws(generator, 20, seed=0))
        plot_images(samples, columns=20, ax=ax)
        ax.set_title(f"{name}: samples", fontsize=9, loc="left")
    figure.savefig(Path(__file__).parents[1] / "docs" / "images" / "zoo.png", dpi=90)


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
debiased divergences, the autoencoder by the plain distance. At full temperature the small flow
leaves [0, 1] far behind for one or two draws in a hundred.

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
        compare([name for name in RECIPES if name in bg.models.names()])


if __name__ == "__main__":
    main()
