"""Which digit is it? Half an image leaves two answers, and a sampler has to find both.

    python benchmarks/papers.py multimodal --mnist FOLDER

Of 40 test digits whose lower half is hidden (noise 0.1, mnist-vae), the one whose posterior leaves
the most doubt about its class is sampled by each method eight times, from seeds of its own; chains
are started at the prior, or, for the single-start arm, all at one optimum. Classes are those of the
nearest training images. How much the eight histograms differ is the error of their weights.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.models.plot import plot_images

CANDIDATES, SEEDS, SIGMA = 40, 8, 0.1


def run(options: argparse.Namespace) -> None:
    """Choose the image, sample, classify, tell."""
    G = bg.models.load("mnist-vae")
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[:13] = True
    A = bg.operators.Mask(mask)
    test = bg.datasets.mnist(options.mnist, "test")[: options.images or CANDIDATES]
    rng = torch.Generator().manual_seed(0)
    y = A(test) + SIGMA * torch.randn(len(test), 13 * 28, generator=rng)
    classify = Classes(options)
    model = bg.regularisers.hard(G, A, SIGMA)
    few = bg.inference.SMC(particles=128)
    quick = infer(model, y, method=few, chains=1, draws=128, batched=True)
    doubts = torch.stack([entropy(classify(x)) for x in quick.draws("x").flatten(1, 2)])
    chosen = int(doubts.argmax())
    results, images = {}, {}
    for name, settings in arms(model, y[chosen]).items():
        clock = time.perf_counter()
        found = infer(model, y[chosen], chains=SEEDS, draws=500, **settings)
        seconds = time.perf_counter() - clock
        x = found.draws("x")
        weights = torch.stack([classify(chain) for chain in x])
        results[name] = {
            "mean": weights.mean(0).tolist(),
            "std": weights.std(0).tolist(),
            "chains": weights.tolist(),
            "rhat": float(found.summary().numbers.get("rhat_max", float("nan"))),
            "seconds": seconds,
        }
        images[name] = x[0, ::20]
        print(name, [round(w, 3) for w in results[name]["mean"]], f"{seconds:.0f} s", flush=True)
    gold = infer(model, y[chosen], method=bg.inference.SMC(4096, alpha=0.9), chains=4, draws=4096)
    reference = classify(gold.draws("x").flatten(0, 1))
    tell(results, reference, chosen)
    draw(results, reference, images, A.adjoint(y[chosen]), test[chosen])


def arms(model: Any, y: Tensor) -> dict[str, dict[str, Any]]:
    """Settings by name."""
    best = infer(model, y, method="map", chains=32)
    start = {"z": best.mode("z")}
    return {
        "SMC": {"method": "smc"},
        "parallel tempering": {"method": bg.inference.ParallelTempering(), "warmup": 300},
        "HMC from the prior": {"method": "hmc"},
        "HMC from one optimum": {"method": "hmc", "start": start},
    }


def infer(model: Any, y: Tensor, **settings: Any) -> bg.Posterior:
    """`bayesgen.infer` without its progress bar."""
    return bg.infer(model, y, progress=False, **settings)


class Classes:
    """Shares of the ten classes among images, by the five nearest of 10,000 training images."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.images = bg.datasets.mnist(options.mnist, "train")[:10000].flatten(1)
        self.labels = bg.datasets.mnist_labels(options.mnist, "train")[:10000]

    def __call__(self, images: Tensor) -> Tensor:
        nearest = torch.cdist(images.flatten(1), self.images).topk(5, largest=False).indices
        votes = self.labels[nearest].mode(1).values
        return torch.bincount(votes, minlength=10).double() / len(images)


def entropy(shares: Tensor) -> Tensor:
    """Of shares, in nats."""
    return -torch.special.xlogy(shares, shares).sum()


def tell(results: dict[str, Any], reference: Tensor, chosen: int) -> None:
    """Write the table."""
    shown = (reference > 0.02).nonzero().flatten().tolist()
    header = ["method", *(f"class {c}" for c in shown), "distance to reference", "R-hat", "seconds"]
    rows = [["reference", *(f"{reference[c]:.3f}" for c in shown), "", "", ""]]
    for name, found in results.items():
        off = 0.5 * (torch.tensor(found["chains"]) - reference).abs().sum(-1)
        found["total_variation"] = off.mean().item()
        shares = [f"{found['mean'][c]:.3f} ± {found['std'][c]:.3f}" for c in shown]
        rows.append(
            [name, *shares, f"{off.mean():.3f}", f"{found['rhat']:.2f}", f"{found['seconds']:.0f}"]
        )
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    text += (
        f" The image is number {chosen}. ± is the standard deviation over the eight chains; the "
        "distance is the mean total variation between a chain's histogram and the reference's "
        "(SMC, four populations of 4096 particles)."
    )
    write(
        "multimodal",
        "Two answers, and who finds both",
        text + "\n\n" + table(header, rows),
        results,
    )


def draw(
    results: dict[str, Any], reference: Tensor, images: dict[str, Tensor], y: Tensor, truth: Tensor
) -> None:
    """Draws of one chain of each method, and the shares of classes that each chain found."""
    figure = Figure(figsize=(3.0 * (len(images) + 1), 5.6), layout="constrained")
    axes = figure.subplots(2, len(images) + 1)
    plot_images(torch.stack([truth, y]), ax=axes[0, 0], title="truth, and what was seen")
    classes = torch.arange(10)
    axes[1, 0].bar(classes, reference, color="0.5")
    axes[1, 0].set_title("reference")
    for column, (name, x) in enumerate(images.items(), start=1):
        plot_images(x, ax=axes[0, column], title=f"{name}: one chain")
        chains = torch.tensor(results[name]["chains"])
        for number, shares in enumerate(chains):
            offset = (number - 3.5) / 10
            axes[1, column].bar(classes + offset, shares, width=0.1, color="tab:blue")
        axes[1, column].set_title("shares of classes, eight chains")
    for ax in axes[1]:
        ax.set(xlabel="class", ylim=(0, 1), xticks=list(range(10)))
    axes[1, 0].set_ylabel("posterior probability")
    figure.savefig(RESULTS / "papers" / "multimodal.png", dpi=120)
