"""Discriminator-weighted sampling against plain sampling, as in Ang (2021), on the same images.

    python benchmarks/papers.py weighting --mnist FOLDER

The first 100 test images (or --images), noise 0.1, posterior means by HMC with the same budget in
both arms. The discriminator is the GAN's own for mnist-gan-16; for mnist-vae the GAN's as it is,
the GAN's after fine-tuning on the VAE's samples, and a density ratio that was trained for it, both
with 10,000 training images. Differences are of mean squared errors, weighted less plain, paired by
image, with 95 % intervals. The last rows add a final denoising step to Langevin draws.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from report import table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.inference import DWLS, HMC, ULA
from experiments.common import GROUP, Problem, simulate
from experiments.starts import problems

SIGMA = 0.1


def run(options: argparse.Namespace) -> None:
    """Every problem, every generator, every discriminator."""
    test, train = (bg.datasets.mnist(options.mnist, split) for split in ("test", "train"))
    truth = test[: options.images or 100]
    gan, vae = (bg.models.load(name) for name in ("mnist-gan-16", "mnist-vae"))
    images = train[:10000]
    ratio = bg.models.train_density_ratio(vae, images, seed=0)
    tuned = bg.models.fine_tune(gan, vae, images, seed=0)
    # Each generator with its discriminators.
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "mnist-gan-16": (gan, {"its own": gan}),
        "mnist-vae": (
            vae,
            {"the GAN's": gan, "the GAN's, fine-tuned": tuned, "density ratio": ratio},
        ),
    }
    rows = []
    for problem, A in problems().items():
        given = simulate(A, SIGMA, truth, seed=0)
        for name, (G, discriminators) in cases.items():
            rows += compared(problem, name, G, discriminators, given)
    tell(rows, {"density ratio": ratio.card, "fine-tuned": tuned.card})


def compared(
    problem: str, name: str, G: Any, discriminators: dict[str, Any], given: Problem
) -> list[dict[str, Any]]:
    """One row for each arm."""
    model = bg.regularisers.hard(G, given.A, given.sigma)
    sampler = HMC(max_steps=12)
    plain = errors(model, sampler, given)
    rows = [row(problem, name, "plain", plain, plain)]
    for label, D in discriminators.items():
        weighted = errors(model, DWLS(discriminator=D, sampler=sampler), given)
        rows.append(row(problem, name, label, weighted, plain))
    langevin = errors(model, ULA(), given)
    rows.append(row(problem, name, "Langevin", langevin, plain))
    denoised = errors(model, ULA(denoise=0.1), given)
    rows.append(row(problem, name, "Langevin, denoised", denoised, langevin))
    for found in rows[-len(discriminators) - 3 :]:
        print({k: v for k, v in found.items() if k != "of_images"}, flush=True)
    return rows


def errors(model: Any, method: Any, given: Problem) -> Tensor:
    """Mean squared error of the posterior mean of each image."""
    found = []
    for first in range(0, len(given.truth), GROUP):
        part = given[slice(first, first + GROUP)]
        posterior = bg.infer(
            model,
            part.y,
            method=method,
            chains=4,
            warmup=200,
            draws=200,
            start="map",
            seed=first,
            batched=True,
            progress=False,
        )
        found.append((posterior.mean("x") - part.truth).square().flatten(1).mean(1))
    return torch.cat(found)


def row(problem: str, G: str, arm: str, found: Tensor, plain: Tensor) -> dict[str, Any]:
    """The paired difference and its interval."""
    difference = (found - plain).double()
    half = 1.96 * float(difference.std()) / len(difference) ** 0.5
    return {
        "problem": problem,
        "generator": G,
        "arm": arm,
        "error": found.mean().item(),
        "difference": difference.mean().item(),
        "half_width": half,
        "of_images": [round(v, 6) for v in found.tolist()],
    }


def tell(rows: list[dict[str, Any]], cards: dict[str, Any]) -> None:
    """Write the table."""
    header = ["problem", "generator", "arm", "mean squared error", "difference (95 %)"]
    cells = [
        [
            found["problem"],
            found["generator"],
            found["arm"],
            f"{found['error']:.5f}",
            f"{found['difference']:+.5f} ± {found['half_width']:.5f}"
            if found["half_width"]
            else "",
        ]
        for found in rows
    ]
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    text += f" Here {len(rows[0]['of_images'])} images."
    title = "Discriminator-weighted sampling"
    write("weighting", title, text + "\n\n" + table(header, cells), {"rows": rows, "cards": cards})
