"""Choosing pixels, lines of k-space and rows to estimate an image, as in Ang (2021) and beyond.

    python benchmarks/papers.py design-images --mnist FOLDER --only "inpainting, VAE"

MNIST test images, every arm with the same images, noise, model (the soft range) and sampler: one
population of 64 particles, led from each posterior to the next. Inpainting is of 32 x 32 pixels, 20
rounds of 10, none seen beforehand; k-space is measured by lines, one a round, and compressed
sensing by the lowest 256 discrete cosines, four a round. The error is that of the posterior mean;
coverage is the share of all pixels inside the interval between the third smallest and third largest
of 64 draws. Fixed orders are learned from 2000 training images. Intervals are of 95 %, over images,
of differences by image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen import design

IMAGES, PARTICLES, OUTSIDE = 50, 64, 3
# Rounds 1, 5, 10, 20 of Ang's tables; VAE and GAN.
PUBLISHED = {
    "inpainting, VAE": {
        "random": (0.089, 0.070, 0.0496, 0.0252),
        "epsilon-greedy": (0.0902, 0.0686, 0.0445, 0.0211),
        "variance": (0.090, 0.069, 0.042, 0.018),
    },
    "inpainting, GAN": {
        "random": (0.0773, 0.0661, 0.0585, 0.0467),
        "epsilon-greedy": (0.0812, None, None, 0.0407),
        "variance": (0.081, 0.060, 0.0485, 0.0376),
    },
}


@dataclass(frozen=True)
class Study:
    """What can be measured, the noise, how much of it a round and in all, and the ways to choose.

    ``seen`` maps images of the model to those that errors are of.
    """

    model: Callable[..., None]
    pool: design.Pool
    noise: float
    budget: int
    batch: int
    arms: dict[str, design.Acquisition]
    seen: Callable[[Tensor], Tensor] = field(default=lambda x: x)


def run(options: argparse.Namespace) -> None:
    """Every study, or those of ``--only``."""
    test, train = (bg.datasets.mnist(options.mnist, split) for split in ("test", "train"))
    truths = test[: options.images or IMAGES]
    for name, make in STUDIES.items():
        if options.only and name not in options.only:
            continue
        study = make(train[:2000])
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in study.arms}
        for number, truth in enumerate(truths):
            for arm, acquisition in study.arms.items():
                found[arm].append(one_run(study, acquisition, truth, seed=number))
            print(name, number, {a: f"{f[-1]['errors'][-1]:.5f}" for a, f in found.items()})
            if number >= 2:
                # A study takes long; what is there should not be lost.
                tell(name, study, found)


def one_run(
    study: Study, acquisition: design.Acquisition, truth: Tensor, seed: int
) -> dict[str, Any]:
    """Errors, coverage and seconds of each round."""
    clock = time.process_time()
    loop = design.acquire(
        study.model,
        study.pool,
        design.simulate(study.pool, truth, noise=study.noise, seed=seed),
        acquisition=acquisition,
        budget=study.budget,
        batch=study.batch,
        noise=study.noise,
        method=bg.inference.SMC(PARTICLES, alpha=0.4, max_moves=2, leapfrog=4),
        chains=1,
        draws=PARTICLES,
        seed=seed,
    )
    image = study.seen(truth)
    errors, covered, seconds = [], [], []
    for record in loop:
        errors.append(float((study.seen(record.mean) - image).square().mean()))
        draws = study.seen(loop.posterior.draws("x")[0]).sort(0).values
        inside = (draws[OUTSIDE - 1] <= image) & (image <= draws[-OUTSIDE])
        covered.append(float(inside.double().mean()))
        seconds.append(time.process_time() - clock)
        clock = time.process_time()
    return {"errors": errors, "covered": covered, "seconds": seconds, "measured": loop.measured}


# ---------------------------------------------------------------------------- what is measured


def inpainting(name: str, training: Tensor) -> Study:
    """Pixels of images enlarged to 32 x 32, as Ang's are."""
    seen = enlargement(32)
    pool = design.Pool(seen)
    arms: dict[str, design.Acquisition] = {
        "random": design.RandomChoice(),
        "epsilon-greedy": design.EpsilonGreedy(base=design.Variance(), epsilon=0.5),
        "variance": design.Variance(),
        "information gain": design.InformationGain(),
    }
    return Study(soft_range(name, training, 0.03), pool, 0.03, 200, 10, arms, seen)


def lines(training: Tensor) -> Study:
    """Lines of k-space: low frequencies hold most of the energy of all images."""
    pool = design.Pool(bg.operators.Fourier((28, 28), torch.ones(28, dtype=torch.bool)))
    noise, budget = 0.05, 10
    arms: dict[str, design.Acquisition] = {
        "low-frequency": design.LowFrequency(),
        "variable-density": design.VariableDensity(),
    }
    return Study(
        soft_range("mnist-vae", training, noise),
        pool,
        noise,
        budget,
        1,
        arms | compared(pool, training, budget, noise),
    )


def cosines(training: Tensor) -> Study:
    """Products of the sixteen lowest discrete cosines along rows and columns."""
    t = (torch.arange(28) + 0.5) * torch.pi / 28
    waves = (torch.arange(16)[:, None] * t).cos()
    waves = waves / waves.norm(dim=1, keepdim=True)
    rows = torch.einsum("ai,bj->abij", waves, waves).reshape(256, 784)
    pool = design.Pool(bg.operators.Matrix(rows, (28, 28)))
    noise, budget = 0.05, 40
    frequencies = [(float(a), float(b)) for a in range(16) for b in range(16)]
    arms: dict[str, design.Acquisition] = {"low-frequency": design.LowFrequency(frequencies)}
    return Study(
        soft_range("mnist-vae", training, noise),
        pool,
        noise,
        budget,
        4,
        arms | compared(pool, training, budget, noise),
    )


def compared(
    pool: design.Pool, training: Tensor, budget: int, noise: float
) -> dict[str, design.Acquisition]:
    """Chance, the best fixed orders, and the adaptive ones."""
    data = pool.data(training)
    return {
        "random": design.RandomChoice(),
        "fixed, PCA": design.pca_order(data, budget, noise=noise),
        "fixed, LBCS": design.lbcs_order(data, training, budget, noise=noise),
        "variance": design.Variance(),
        "information gain": design.InformationGain(),
    }


def soft_range(name: str, training: Tensor, noise: float) -> Callable[..., None]:
    """The model, whose law is decomposed once for every operator."""
    G = bg.models.load(name)
    if name == "mnist-vae":
        covariance = bg.covariances.load_covariance(name)
    else:
        covariance = bg.covariances.residual_covariance(G, training)

    @lru_cache(maxsize=2)
    def given(A: bg.operators.Operator) -> Callable[..., None]:
        return bg.regularisers.soft_range(G, A, noise, covariance=covariance)

    def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
        given(A)(y)

    return model


def enlargement(size: int) -> bg.operators.Matrix:
    """Bilinear interpolation of 28 x 28 pixels."""
    units = torch.eye(784).reshape(784, 1, 28, 28)
    large = torch.nn.functional.interpolate(units, (size, size), mode="bilinear")
    return bg.operators.Matrix(large.reshape(784, -1).T.contiguous(), (28, 28))


STUDIES: dict[str, Callable[[Tensor], Study]] = {
    "inpainting, VAE": lambda training: inpainting("mnist-vae", training),
    "inpainting, GAN": lambda training: inpainting("mnist-gan-16", training),
    "k-space lines": lines,
    "cosine rows": cosines,
}


# ---------------------------------------------------------------------------- results


def tell(name: str, study: Study, found: dict[str, list[dict[str, Any]]]) -> None:
    """Table, figure and numbers of the images so far."""
    errors = {a: torch.tensor([f["errors"] for f in runs]) for a, runs in found.items()}
    covered = {a: torch.tensor([f["covered"] for f in runs]) for a, runs in found.items()}
    rounds = errors["random"].shape[1]
    shown = sorted({r for r in (1, 2, 5, 10, 20) if r <= rounds} | {rounds})
    header = ["arm"] + [f"after {r * study.batch}" for r in shown]
    header += ["less random (95 %)", "over random", "covered, first to last", "CPU s a round"]
    rows = [
        row(arm, errors, covered[arm], shown, seconds(found[arm])) for arm in errors
    ] + published(name, shown, rounds)
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    nominal = 1 - 2 * OUTSIDE / (PARTICLES + 1)
    text += (
        f" {len(errors['random'])} images, noise {study.noise:g}. Mean squared error after numbers "
        f"of measurements, ± standard error; coverage should be {nominal:.1%}."
    )
    file = "design_" + name.replace(", ", "_").replace(" ", "_").replace("-", "_").lower()
    write(file, f"Adaptive {name}", text + "\n\n" + table(header, rows), {"runs": found})
    draw(name, file, study, errors, covered)


def row(
    arm: str,
    errors: dict[str, Tensor],
    covered: Tensor,
    shown: list[int],
    cost: float,
) -> list[str]:
    """Of one arm."""
    found = errors[arm]
    cells = [f"{found[:, r - 1].mean():.5f} ± {standard_error(found[:, r - 1]):.5f}" for r in shown]
    last, chance = found[:, -1], errors["random"][:, -1]
    difference = last - chance
    cells += [
        f"{difference.mean():+.5f} ± {1.96 * standard_error(difference):.5f}",
        f"{last.mean() / chance.mean():.2f}",
        f"{covered[:, 0].mean():.1%} to {covered[:, -1].mean():.1%}",
        f"{cost:.2f}",
    ]
    return [arm, *cells]


def published(name: str, shown: list[int], rounds: int) -> list[list[str]]:
    """Ang's numbers."""
    rows = []
    for arm, values in PUBLISHED.get(name, {}).items():
        told = dict(zip((1, 5, 10, 20), values, strict=True))
        cells = ["" if told.get(r) is None else f"{told[r]:.4f}" for r in shown]
        last = told[rounds] or 0.0
        over = last / (PUBLISHED[name]["random"][-1] or 1.0)
        rows.append([f"published, {arm}", *cells, "", f"{over:.2f}", "", ""])
    return rows


def standard_error(values: Tensor) -> float:
    """Of a mean."""
    return float(values.double().std() / len(values) ** 0.5)


def seconds(runs: list[dict[str, Any]]) -> float:
    """Of a round, posterior and choice."""
    return float(torch.tensor([f["seconds"] for f in runs]).mean())


def draw(
    name: str, file: str, study: Study, errors: dict[str, Tensor], covered: dict[str, Tensor]
) -> None:
    """Errors and coverage by number of measurements."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    count = len(errors["random"])
    measured = study.batch * torch.arange(1, errors["random"].shape[1] + 1)
    colours = {}
    for arm, found in errors.items():
        mean, spread = found.mean(0), found.std(0) / count**0.5
        (line,) = left.plot(measured, mean, label=arm)
        left.fill_between(measured, mean - spread, mean + spread, alpha=0.2, color=line.get_color())
        right.plot(measured, covered[arm].mean(0), color=line.get_color())
        colours[arm] = line.get_color()
    for arm, values in PUBLISHED.get(name, {}).items():
        told = [(10 * r, v) for r, v in zip((1, 5, 10, 20), values, strict=True) if v is not None]
        left.plot(*zip(*told, strict=True), ":", color=colours[arm], marker=".", markersize=4)
    right.axhline(1 - 2 * OUTSIDE / (PARTICLES + 1), color="0.6", linestyle=":")
    left.set_yscale("log")
    dotted = "; dotted: published" if name in PUBLISHED else ""
    left.set_title(f"{name}: mean squared error, {count} images{dotted}", fontsize=9)
    right.set_title("share of pixels inside their interval (nominal: dotted)", fontsize=9)
    right.set_ylim(0.5, 1.0)
    for ax in (left, right):
        ax.set_xlabel("measurements", fontsize=8)
        ax.tick_params(labelsize=8)
    left.legend(fontsize=7)
    figure.savefig(RESULTS / "papers" / f"{file}.png", dpi=120)
