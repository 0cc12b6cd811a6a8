"""Cost of a draw of our Hamiltonian Monte Carlo by chains, latent dimension and image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from report import table
from torch import Tensor, nn

import bayesgen as bg
from bayesgen.inference import HMC, run_sampler
from peers.ours import Counted
from peers.problem import Clock

ROWS, SIGMA = 150, 0.1
# What is kept while something else grows; images have room for the largest latent dimension.
FIXED = {"chains": 64, "latent": 16, "size": 32}
GRID: dict[str, Sequence[int]] = {
    "chains": (1, 4, 16, 64, 256, 1024),
    "latent": (8, 16, 50, 100, 200, 400, 800),
    "size": (28, 56, 96, 128),
}
QUICK: dict[str, Sequence[int]] = {"chains": (1, 16), "latent": (8, 50), "size": (28, 56)}


def random_decoder(latent: int, size: int) -> bg.models.VAE:
    """A decoder with random weights, at least as wide as its input, and images of contrast."""
    G = bg.models.VAE((size, size), latent, width=max(512, latent), seed=0)
    rng = torch.Generator().manual_seed(0)
    for layer in G.decoder.modules():
        if isinstance(layer, nn.Linear):
            scale = 1.5 * layer.in_features**-0.5
            layer.weight.data = scale * torch.randn(layer.weight.shape, generator=rng)
            layer.bias.data.zero_()
    return G.eval().requires_grad_(False)


def measure(chains: int, latent: int, size: int, warmup: int, draws: int) -> dict[str, Any]:
    """Cost of sampling, after warm-up, from the posterior of a point in the range."""
    G = random_decoder(latent, size)
    A = bg.operators.GaussianMatrix((size, size), rows=ROWS, seed=0).normalised()
    rng = torch.Generator().manual_seed(1)
    truth = torch.randn(latent, generator=rng)
    y = A(G(truth)) + SIGMA * torch.randn(ROWS, generator=rng)

    def model(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        pyro.sample("y", dist.Normal(A(G(z)), SIGMA).to_event(1), obs=y)

    clock, density = Clock(), Counted(model, y)
    start = truth + 0.1 * torch.randn(chains, latent, generator=rng)
    found = run_sampler(HMC(), density, start, rng, draws=draws, warmup=warmup)
    seconds = (found.seconds - found.warmup_seconds) / draws
    steps = float(found.stats["n_steps"].double().mean())
    return {
        "chains": chains,
        "latent": latent,
        "size": size,
        "seconds_draw": seconds / chains,
        "steps": steps,
        "seconds_gradient": seconds / steps / chains,
        "acceptance": float(found.stats["acceptance_rate"].mean()),
        "processor": clock.busy,
    }


def study(*, quick: bool) -> tuple[str, list[dict[str, Any]]]:
    """Let one quantity grow at a time: tables and their content."""
    grid, (warmup, draws) = (QUICK, (60, 20)) if quick else (GRID, (100, 50))
    texts, entries = [], []
    for name, values in grid.items():
        cells: list[list[Any]] = []
        for value in values:
            found = measure(**{**FIXED, name: value}, warmup=warmup, draws=draws)
            figures = {
                "ms a draw": 1e3 * found["seconds_draw"],
                "µs a gradient": 1e6 * found["seconds_gradient"],
                "gradients a draw": found["steps"],
                "acceptance": found["acceptance"],
            }
            print(f"{name} {value}: {figures['ms a draw']:.3g} ms a draw", flush=True)
            cells.append([value, *(f"{figure:.3g}" for figure in figures.values())])
            entries.append({"varied": name, **found})
        fixed = ", ".join(f"{key} {kept}" for key, kept in FIXED.items() if key != name)
        texts.append(f"With {fixed}:\n\n" + table([name, *figures], cells))
    about = (
        "Time by the number of draws, or gradients, of all chains together. Perceptrons "
        "with random weights, 512 hidden units or as many as latent coordinates; images of "
        f"size x size pixels, {ROWS} measurements, noise {SIGMA}; started near the truth, after "
        f"{warmup} warm-up iterations, over {draws} draws a chain."
    )
    share = min(entry["processor"] for entry in entries)
    if share < 0.9:
        texts.append(f"The machine was not quiet: the processor's share fell to {share:.0%}.")
    return about + "\n\n" + "\n\n".join(texts), entries
