"""Where chains begin, as in Ang (2021): how many gradients until the image is there.

    python benchmarks/papers.py starts --mnist FOLDER

The first 100 test images (or --images), mnist-vae, noise 0.1; four chains an image by HMC. The
estimate after k steps is the mean image of the second half of the steps so far, and the error its
mean squared error. Gradients are those of one chain: warm-up, and for each chain its share of the
optimiser's restarts, included. The converged random start is SMC, which begins at draws from the
prior and leaves none of them in a mode of little mass.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.inference import HMC, SMC, Step
from bayesgen.inference.runner import run_sampler
from experiments.common import GROUP, Problem, simulate

SIGMA, CHAINS, WARMUP, STEPS = 0.1, 4, 150, 600
CHECKPOINTS = (1, 2, 4, 7, 10, 15, 20, 30, 50, 80, 120, 200, 300, 400, 500, 600)
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
        results[name] = {"converged": settled.mean().item(), "errors": {}, "gradients": {}}
        for start in STARTS:
            parts = [curve(model, G, part, start) for part in groups(given)]
            errors, gradients = (torch.cat(part) for part in zip(*parts, strict=True))
            results[name]["errors"][start] = errors.mean(0).tolist()
            results[name]["gradients"][start] = gradients.mean(0).tolist()
            shown = [round(e, 4) for e in results[name]["errors"][start]]
            print(name, start, f"{settled.mean():.4f}", shown, flush=True)
        # A problem takes long; none should be lost to the next.
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
    method = SMC(particles=256, alpha=0.5)
    found = bg.infer(
        model, given.y, method=method, chains=1, draws=256, batched=True, progress=False
    )
    return (found.mean("x") - given.truth).square().flatten(1).mean(1)


def curve(model: Any, G: Any, given: Problem, start: str) -> tuple[Tensor, Tensor]:
    """Errors, and gradients spent until then, ``(images, checkpoints)``."""
    log_density = bg.LogDensity(model, given.y, batched=True)
    rng = torch.Generator().manual_seed(1)
    v, spent = starts(model, G, given, start, log_density, rng)
    positions: list[Tensor] = []
    steps: list[Tensor] = []

    def keep(step: Step) -> None:
        positions.append(step.state.position.clone())
        steps.append(step.info.n_steps.double().mean(-1))

    draws = STEPS - WARMUP
    run_sampler(HMC(max_steps=12), log_density, v, rng, draws=draws, warmup=WARMUP, monitor=keep)
    z = torch.stack(positions, 2) * log_density.scale.unsqueeze(-2)
    # The first step size takes about as many gradients as there are doublings.
    gradients = torch.stack(steps, -1).cumsum(-1) + spent
    errors = []
    for count in CHECKPOINTS:
        half = z[:, :, count // 2 : count]
        some = half[:, :, :: max(1, half.shape[2] // 40)].flatten(1, 2)
        with torch.no_grad():
            mean = torch.stack([G(rows).mean(0) for rows in some])
        errors.append((mean - given.truth).square().flatten(1).mean(1))
    return torch.stack(errors, -1), gradients[:, torch.tensor(CHECKPOINTS) - 1]


def starts(
    model: Any, G: Any, given: Problem, start: str, log_density: Any, rng: torch.Generator
) -> tuple[Tensor, float]:
    """Where the chains begin, and the gradients that each took."""
    if start == "prior":
        return log_density.prior_draws(CHAINS, rng), 0.0
    if start == "encoder":
        A, y = given.A, given.y
        return bg.starts.encoder_start(G, A, y, SIGMA, chains=CHAINS)["z"], 0.0
    found = bg.infer(model, given.y, method="map", chains=8, batched=True, progress=False)
    # Eight restarts for four chains.
    spent = 2.0 * float(found.attributes["num_evaluations"])
    if start == "map":
        return found.mode("z")[:, None].expand(-1, CHAINS, -1).contiguous(), spent
    return bg.starts.encoded_optimum(G, found.mode("z"), chains=CHAINS)["z"], spent


def reached(found: dict[str, Any], start: str, level: float) -> float:
    """Gradients until the mean error stays below ``level``."""
    errors = torch.tensor(found["errors"][start])
    above = (errors > level).nonzero().flatten()
    first = int(above[-1]) + 1 if len(above) else 0
    if first == len(CHECKPOINTS):
        return float("inf")
    return float(found["gradients"][start][first])


def tell(results: dict[str, Any]) -> None:
    """Write the table."""
    header = ["problem", "converged error", "start", "error at the end", "gradients"]
    header += ["until the random start's last error", "until 1.05 x converged"]
    rows = [
        [
            name,
            f"{found['converged']:.4f}",
            start,
            f"{found['errors'][start][-1]:.4f}",
            f"{found['gradients'][start][-1]:.0f}",
            f"{reached(found, start, found['errors']['prior'][-1]):.0f}",
            f"{reached(found, start, 1.05 * found['converged']):.0f}",
        ]
        for name, found in results.items()
        for start in STARTS
    ]
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    write("starts", "Starts of chains", text + "\n\n" + table(header, rows), results)


def draw(results: dict[str, Any]) -> None:
    """Error against gradients."""
    figure = Figure(figsize=(4.2 * len(results), 3.6), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for ax, (name, found) in zip(axes, results.items(), strict=True):
        for start, colour in zip(STARTS, COLOURS, strict=True):
            ax.loglog(
                found["gradients"][start], found["errors"][start], ".-", color=colour, label=start
            )
        ax.axhline(found["converged"], color="k", lw=0.8, ls="--", label="converged")
        ax.set(title=name, xlabel="gradients")
    axes[0].set_ylabel("mean squared error")
    axes[0].legend(fontsize=8)
    figure.savefig(RESULTS / "papers" / "starts.png", dpi=120)
