"""Where Langevin chains begin, as in Ang (2021): how many gradients until the image is there.

    python benchmarks/papers.py starts --mnist FOLDER

The first 100 test images, mnist-vae, noise 0.1; four chains an image by MALA, which takes one
gradient a step. The estimate after k gradients is the mean image of the second half of the steps so
far, and the error its mean squared error; gradients of the optimiser and of finding a step size
count. The reference is the posterior mean by SMC, which begins at the prior and has converged.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.inference import MALA, Step
from bayesgen.inference.runner import run_sampler
from experiments.common import GROUP, Problem, simulate

SIGMA, CHAINS, STEPS = 0.1, 4, 3000
CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000)
STARTS = ("prior", "encoder", "map", "map, then encoder")
COLOURS = ("0.5", "tab:blue", "tab:orange", "tab:purple")


def run(options: argparse.Namespace) -> None:
    """Every problem, every start."""
    G = bg.models.load("mnist-vae")
    truth = bg.datasets.mnist(options.mnist, "test")[: options.images or 100]
    results: dict[str, Any] = {}
    for name, A in problems().items():
        given = simulate(A, SIGMA, truth, seed=0)
        model = bg.regularisers.hard(G, A, SIGMA)
        settled = torch.cat([settled_error(model, part) for part in groups(given)])
        results[name] = {"converged": settled.mean().item(), "errors": {}, "spent": {}}
        for start in STARTS:
            parts = [curve(model, G, part, start) for part in groups(given)]
            curves, spent = zip(*parts, strict=True)
            errors = torch.cat(curves)
            results[name]["errors"][start] = errors.mean(0).tolist()
            results[name]["spent"][start] = sum(spent) / len(spent)
            shown = [round(e, 4) for e in results[name]["errors"][start]]
            print(name, start, f"{settled.mean():.4f}", shown, flush=True)
    tell(results)
    draw(results)


def problems() -> dict[str, bg.operators.Operator]:
    """Ang's three."""
    rng = torch.Generator().manual_seed(0)
    mask = torch.zeros(784, dtype=torch.bool)
    mask[torch.randperm(784, generator=rng)[:100]] = True
    return {
        "inpainting, 100 pixels": bg.operators.Mask(mask.reshape(28, 28)),
        "compressed sensing, 100 rows": bg.operators.GaussianMatrix((28, 28), rows=100, seed=0),
        "denoising": bg.operators.Identity((28, 28)),
    }


def groups(given: Problem) -> list[Problem]:
    """A few images at a time."""
    return [given[slice(i, i + GROUP)] for i in range(0, len(given.truth), GROUP)]


def settled_error(model: Any, given: Problem) -> Tensor:
    """Squared error of the posterior mean of each image."""
    found = bg.infer(
        model, given.y, method="smc", chains=1, draws=512, batched=True, progress=False
    )
    return (found.mean("x") - given.truth).square().flatten(1).mean(1)


def curve(model: Any, G: Any, given: Problem, start: str) -> tuple[Tensor, float]:
    """Errors ``(images, checkpoints)``, and the gradients spent before the first step."""
    log_density = bg.LogDensity(model, given.y, batched=True)
    rng = torch.Generator().manual_seed(1)
    v, spent = starts(model, G, given, start, log_density, rng)
    history: list[Tensor] = []

    def keep(step: Step) -> None:
        history.append(step.state.position.clone())

    found = run_sampler(
        MALA(), log_density, v, rng, draws=STEPS // 2, warmup=STEPS // 2, monitor=keep
    )
    # What is not a step was spent on the first step size.
    spent += found.num_evaluations - STEPS
    z = torch.stack(history, 2) * log_density.scale.unsqueeze(-2)
    errors = []
    for count in CHECKPOINTS:
        half = z[:, :, count // 2 : count]
        some = half[:, :, :: max(1, half.shape[2] // 40)].flatten(1, 2)
        with torch.no_grad():
            mean = torch.stack([G(rows).mean(0) for rows in some])
        errors.append((mean - given.truth).square().flatten(1).mean(1))
    return torch.stack(errors, -1), spent


def starts(
    model: Any, G: Any, given: Problem, start: str, log_density: Any, rng: torch.Generator
) -> tuple[Tensor, float]:
    """Where the chains begin, and the gradients that it took."""
    if start == "prior":
        return log_density.prior_draws(CHAINS, rng), 0.0
    if start == "encoder":
        A, y = given.A, given.y
        return bg.starts.encoder_start(G, A, y, SIGMA, chains=CHAINS)["z"], 0.0
    found = bg.infer(model, given.y, method="map", chains=8, batched=True, progress=False)
    spent = float(found.attributes["num_evaluations"])
    if start == "map":
        return found.mode("z")[:, None].expand(-1, CHAINS, -1).contiguous(), spent
    return bg.starts.encoded_optimum(G, found.mode("z"), chains=CHAINS)["z"], spent


def reached(found: dict[str, Any], start: str, slack: float) -> float:
    """Gradients until the mean error stays within ``1 + slack`` of the converged one."""
    errors = torch.tensor(found["errors"][start])
    above = (errors > (1 + slack) * found["converged"]).nonzero().flatten()
    first = int(above[-1]) + 1 if len(above) else 0
    if first == len(CHECKPOINTS):
        return float("inf")
    return CHECKPOINTS[first] + found["spent"][start]


def tell(results: dict[str, Any]) -> None:
    """Write the table."""
    header = ["problem", "converged error", "start", "spent before", "gradients to 1.05 x"]
    header += ["error at the end"]
    rows = [
        [
            name,
            f"{found['converged']:.4f}",
            start,
            f"{found['spent'][start]:.0f}",
            f"{reached(found, start, 0.05):.0f}",
            f"{found['errors'][start][-1]:.4f}",
        ]
        for name, found in results.items()
        for start in STARTS
    ]
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    write("starts", "Starts of Langevin chains", text + "\n\n" + table(header, rows), results)


def draw(results: dict[str, Any]) -> None:
    """Error against gradients."""
    figure = Figure(figsize=(4.2 * len(results), 3.6), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for ax, (name, found) in zip(axes, results.items(), strict=True):
        for start, colour in zip(STARTS, COLOURS, strict=True):
            gradients = [k + found["spent"][start] for k in CHECKPOINTS]
            ax.loglog(gradients, found["errors"][start], ".-", color=colour, label=start)
        ax.axhline(found["converged"], color="k", lw=0.8, ls="--", label="converged")
        ax.set(title=name, xlabel="gradients")
    axes[0].set_ylabel("mean squared error")
    axes[0].legend(fontsize=8)
    figure.savefig(RESULTS / "papers" / "starts.png", dpi=120)
