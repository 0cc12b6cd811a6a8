"""Which digit is it? A band of an image leaves several answers, and a sampler has to find them.

    python benchmarks/papers.py multimodal --mnist FOLDER

Of each of 40 test digits only the eight middle rows are seen (noise 0.05, mnist-vae). The digit is
taken whose two best optima of different classes, of 24 restarts, are closest in log density: number
31, a straight stroke, which may as well be a curled one, of class 3, 5 or 8. That rule knows
nothing of samplers, but band and noise were chosen for what samplers do: with three rows HMC passes
between the answers of those digits that were tried, and at noise 0.03 populations of 128 particles
disagree. Each method samples by eight chains or populations, which start at the prior, or, for the
single-start arm, all at the best optimum. Classes are those of the nearest training images. How
much the eight histograms differ is the error of their weights.
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

CANDIDATES, RESTARTS, SEEDS = 40, 24, 8
SIGMA, ROWS = 0.05, slice(10, 18)
# Particles of each of the reference's four populations.
POPULATION = 1024


def run(options: argparse.Namespace) -> None:
    """Choose the image, sample, classify, tell."""
    G = bg.models.load("mnist-vae")
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[ROWS] = True
    A = bg.operators.Mask(mask)
    test = bg.datasets.mnist(options.mnist, "test")[: options.images or CANDIDATES]
    rng = torch.Generator().manual_seed(0)
    y = A(test) + SIGMA * torch.randn(len(test), int(mask.sum()), generator=rng)
    classify = Classes(options)
    model = bg.regularisers.hard(G, A, SIGMA)
    optima = infer(model, y, method="map", chains=RESTARTS, batched=True)
    chosen = most_doubtful(optima, classify)
    results: dict[str, Any] = {}
    images = {}
    for name, settings in arms(model, y[chosen]).items():
        clock = time.process_time()
        found = infer(model, y[chosen], chains=SEEDS, draws=500, **settings)
        seconds = time.process_time() - clock
        x = found.draws("x")
        weights = torch.stack([classify.shares(chain) for chain in x])
        results[name] = {
            "mean": weights.mean(0).tolist(),
            "std": weights.std(0).tolist(),
            "chains": weights.tolist(),
            "rhat": float(found.summary().numbers.get("rhat_max", float("nan"))),
            "seconds": seconds,
        }
        images[name] = x[0, ::20]
        print(name, [round(w, 3) for w in results[name]["mean"]], f"{seconds:.0f} s", flush=True)
    gold = infer(
        model, y[chosen], chains=4, draws=POPULATION, method=bg.inference.SMC(POPULATION, alpha=0.9)
    )
    reference = torch.stack([classify.shares(chain) for chain in gold.draws("x")])
    tell(results, reference, gold.log_evidence, chosen)
    draw(results, reference.mean(0), images, A.adjoint(y[chosen]), test[chosen])


def most_doubtful(optima: bg.Posterior, classify: Classes) -> int:
    """The image with the smallest gap between the best optimum and the best of another class."""
    levels = optima.log_prob[..., 0]
    labels = torch.stack([classify(x) for x in optima.draws("x")[:, :, 0]])
    best, at = levels.max(-1)
    other = labels != labels.gather(-1, at[:, None])
    rest = torch.where(other, levels, -torch.inf).amax(-1)
    return int((best - rest).argmin())


def arms(model: Any, y: Tensor) -> dict[str, dict[str, Any]]:
    """Settings by name."""
    best = infer(model, y, method="map", chains=32)
    start = {"z": best.mode("z")}
    return {
        "SMC": {"method": bg.inference.SMC(512, alpha=0.8)},
        "parallel tempering": {"method": bg.inference.ParallelTempering(replicas=20)},
        "HMC from the prior": {"method": "hmc"},
        "HMC from one optimum": {"method": "hmc", "start": start},
    }


def infer(model: Any, y: Tensor, **settings: Any) -> bg.Posterior:
    """`bayesgen.infer` without its progress bar."""
    return bg.infer(model, y, progress=False, **settings)


class Classes:
    """Classes of images: the most frequent among the five nearest of 10,000 training images."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.images = bg.datasets.mnist(options.mnist, "train")[:10000].flatten(1)
        self.labels = bg.datasets.mnist_labels(options.mnist, "train")[:10000]

    def __call__(self, images: Tensor) -> Tensor:
        nearest = torch.cdist(images.flatten(1), self.images).topk(5, largest=False).indices
        return self.labels[nearest].mode(1).values

    def shares(self, images: Tensor) -> Tensor:
        """Of the ten classes among the images."""
        return torch.bincount(self(images), minlength=10).double() / len(images)


def tell(results: dict[str, Any], populations: Tensor, evidence: Tensor, chosen: int) -> None:
    """Write the table."""
    reference, error = populations.mean(0), populations.std(0)
    shown = (reference > 0.02).nonzero().flatten().tolist()
    header = [
        "method",
        *(f"class {c}" for c in shown),
        "distance to reference",
        "R-hat",
        "CPU seconds",
    ]
    rows = [["reference", *(f"{reference[c]:.3f} ± {error[c]:.3f}" for c in shown), "", "", ""]]
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
        f"(SMC, four populations of {POPULATION} particles, whose log evidences have the standard "
        f"deviation {evidence.std():.2f})."
    )
    write(
        "multimodal",
        "Several answers, and who finds them",
        text + "\n\n" + table(header, rows),
        {"results": results, "reference": populations.tolist(), "image": chosen},
    )


def draw(
    results: dict[str, Any], reference: Tensor, images: dict[str, Tensor], y: Tensor, truth: Tensor
) -> None:
    """Draws of one chain of each method, and the shares of classes that each chain found."""
    figure = Figure(figsize=(2.6 * (len(images) + 1), 5.2), layout="constrained")
    axes = figure.subplots(2, len(images) + 1)
    plot_images(torch.stack([truth, y]), columns=1, ax=axes[0, 0], title="truth, and what is seen")
    classes = torch.arange(10)
    axes[1, 0].bar(classes, reference, color="0.5")
    axes[1, 0].set_title("reference", fontsize=9)
    for column, (name, x) in enumerate(images.items(), start=1):
        plot_images(x, ax=axes[0, column], title=f"{name},\none chain")
        chains = torch.tensor(results[name]["chains"])
        for number, shares in enumerate(chains):
            offset = (number - 3.5) / 10
            axes[1, column].bar(classes + offset, shares, width=0.1, color="tab:blue")
        axes[1, column].plot(classes, reference, "_", color="k", ms=9, label="reference")
        axes[1, column].set_title("each of eight chains", fontsize=9)
    axes[1, -1].legend(fontsize=8)
    for ax in axes[1]:
        ax.set(xlabel="class", ylim=(0, 1.02), xticks=list(range(10)))
    axes[1, 0].set_ylabel("posterior probability")
    figure.savefig(RESULTS / "papers" / "multimodal.png", dpi=120)
