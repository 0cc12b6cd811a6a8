"""Angles of tomography where direction matters: laminates, whose layers have one orientation each.

    python benchmarks/papers.py design-laminates

After the protocol of the linearised deep image prior (Barbano et al. 2022): a pool of 180 angles, 5
of them first, then one at a time, 5 % noise; here 32 x 32 pixels. A laminate is a stack of layers
inside a disc: 16 random intensities, linear in between, along a direction that is uniform and
unknown. The generator says just that, and truths are drawn from it. All arms have the same images,
noise, first angles, model and sampler: one population of 64 particles, led from round to round.
Equispaced angles come five at a time in the order of binary fractions, until 40 are exactly
equispaced; the fixed order is the best for 2000 other laminates. The measure is how many angles an
arm needs for the mean PSNR of 40 equispaced ones.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen import design

IMAGES, SIDE, LAYERS, ANGLES = 20, 32, 16, 180
FIRST, MOST, ADAPTIVE_MOST = 5, 40, 16
PARTICLES = 64


def laminate(direction: Tensor, intensities: Tensor) -> Tensor:
    """Images ``(*batch, side, side)`` of layers across directions ``(*batch, 2)`` of any length."""
    centre = (torch.arange(SIDE) - (SIDE - 1) / 2) * (2 / SIDE)
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    unit = direction / direction.norm(dim=-1, keepdim=True)
    along = unit[..., 0, None, None] * x + unit[..., 1, None, None] * y
    position = ((along + 1.0) * ((LAYERS - 1) / 2)).flatten(-2)
    below = position.detach().floor().clamp(0, LAYERS - 2)
    lower, upper = (intensities.gather(-1, (below + i).long()) for i in (0, 1))
    layers = lower + (position - below) * (upper - lower)
    return layers.unflatten(-1, (SIDE, SIDE)) * (x.square() + y.square() <= 0.95**2)


def image() -> Tensor:
    """A laminate: normal variables whose direction is uniform, and intensities between 0 and 1."""
    direction = pyro.sample("direction", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    layers = pyro.sample("layers", dist.Normal(torch.zeros(LAYERS), 1.5).to_event(1))
    x: Tensor = pyro.deterministic("x", laminate(direction, layers.sigmoid()))
    return x


def draws(count: int, seed: int) -> Tensor:
    """Laminates."""
    rng = torch.Generator().manual_seed(seed)
    direction = torch.randn(count, 2, generator=rng)
    layers = 1.5 * torch.randn(count, LAYERS, generator=rng)
    return laminate(direction, layers.sigmoid())


def run(options: argparse.Namespace) -> None:
    """Every image, every arm."""
    pool = design.Pool(bg.operators.Radon((SIDE, SIDE), angles=ANGLES))
    training, truths = draws(2000, seed=1), draws(options.images or IMAGES, seed=2)
    data = pool.data(training)
    sigma = 0.05 * float(data.abs().mean())

    def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
        pyro.sample("y", dist.Normal(A(image()), sigma).to_event(2), obs=y)

    arms: dict[str, design.Acquisition] = {
        "equispaced": design.Equispaced(total=MOST),
        "random": design.RandomChoice(),
        "fixed, PCA": design.pca_order(data, ADAPTIVE_MOST + FIRST, noise=sigma),
        "variance": design.Variance(),
        "information gain": design.InformationGain(),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for number, truth in enumerate(truths):
        measure = design.simulate(pool, truth, noise=sigma, seed=number)
        for name, acquisition in arms.items():
            found[name].append(one_run(model, pool, measure, truth, sigma, acquisition, number))
        print(number, {a: f"{f[-1]['psnr'][-1]:.2f}" for a, f in found.items()}, flush=True)
        if number >= 1:
            tell(found, sigma)
            draw(found, truths)


def one_run(
    model: Any,
    pool: design.Pool,
    measure: Any,
    truth: Tensor,
    sigma: float,
    acquisition: design.Acquisition,
    seed: int,
) -> dict[str, Any]:
    """PSNR by number of angles."""
    clock = time.process_time()
    many = isinstance(acquisition, design.Equispaced)
    loop = design.acquire(
        model,
        pool,
        measure,
        acquisition=acquisition,
        initial=design.Equispaced(total=MOST).sequence(ANGLES)[:FIRST],
        budget=MOST if many else ADAPTIVE_MOST,
        batch=5 if many else 1,
        noise=sigma,
        method=bg.inference.SMC(PARTICLES, max_moves=8, leapfrog=6),
        chains=1,
        draws=PARTICLES,
        seed=seed,
    )
    counts, values = [], []
    for record in loop:
        counts.append(len(loop.measured))
        values.append(float(-10 * (record.mean - truth).square().mean().log10()))
    seconds = (time.process_time() - clock) / len(values)
    return {"counts": counts, "psnr": values, "measured": loop.measured, "seconds": seconds}


# ---------------------------------------------------------------------------- results


def mean_curve(runs: list[dict[str, Any]]) -> Tensor:
    """PSNR by number of angles, of the mean squared error's images one by one."""
    return torch.tensor([run["psnr"] for run in runs]).mean(0)


def needed(counts: list[int], curve: Tensor, level: float) -> int | None:
    """Fewest angles from which on the curve stays at the level."""
    below = (curve < level).nonzero().flatten()
    first = int(below[-1]) + 1 if len(below) else 0
    return counts[first] if first < len(counts) else None


def tell(found: dict[str, list[dict[str, Any]]], sigma: float) -> None:
    """The table."""
    level = float(mean_curve(found["equispaced"])[-1])
    shown = (5, 6, 7, 8, 10, 15, 20, 30, 40)
    header = ["arm", *(f"{k} angles" for k in shown), "angles needed", "of 40", "images", "CPU s"]
    rows = []
    for name, runs in found.items():
        counts, values = runs[0]["counts"], torch.tensor([run["psnr"] for run in runs])
        cells = []
        for k in shown:
            at = values[:, counts.index(k)] if k in counts else None
            error = 0.0 if at is None else float(at.std()) / len(at) ** 0.5
            cells.append("" if at is None else f"{float(at.mean()):.2f} ± {error:.2f}")
        enough = needed(counts, values.mean(0), level)
        own = torch.tensor([run["psnr"][-1] for run in found["equispaced"]])
        wins = float((values[:, -1] >= own).double().mean())
        rows.append(
            [
                name,
                *cells,
                "not reached" if enough is None else enough,
                "" if enough is None else f"{enough / MOST:.0%}",
                f"{wins:.0%}",
                f"{sum(run['seconds'] for run in runs) / len(runs):.2f}",
            ]
        )
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    text += (
        f" {len(found['random'])} images, noise {sigma:.3g}. PSNR of the posterior mean in dB ± "
        "standard error; images: share in which an arm's last estimate is as good as that of 40 "
        "equispaced angles; CPU seconds of a round, choice and posterior."
    )
    title = "Angles for laminates"
    write("design_laminates", title, text + "\n\n" + table(header, rows), {"runs": found})


def draw(found: dict[str, list[dict[str, Any]]], truths: Tensor) -> None:
    """Curves, and what was chosen for the first image."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    curves, picture = figure.subplots(1, 2, width_ratios=(2, 1))
    for name, runs in found.items():
        values = torch.tensor([run["psnr"] for run in runs])
        mean, spread = values.mean(0), values.std(0) / len(values) ** 0.5
        (line,) = curves.plot(runs[0]["counts"], mean, label=name)
        curves.fill_between(
            runs[0]["counts"], mean - spread, mean + spread, alpha=0.2, color=line.get_color()
        )
    level = float(mean_curve(found["equispaced"])[-1])
    curves.axhline(level, color="0.6", linestyle=":")
    curves.set_title("PSNR of the posterior mean (dB); dotted: 40 equispaced angles", fontsize=9)
    curves.set_xlabel("angles", fontsize=8)
    curves.legend(fontsize=7)
    picture.imshow(truths[0], cmap="gray", vmin=0, vmax=1)
    middle, reach = (SIDE - 1) / 2, SIDE / 2
    # Rays of angle phi run along (-sin phi, cos phi).
    for number in found["information gain"][0]["measured"][FIRST:]:
        phi = math.pi * number / ANGLES
        dx, dy = -math.sin(phi) * reach, math.cos(phi) * reach
        picture.plot(
            [middle - dx, middle + dx], [middle - dy, middle + dy], color="tab:red", linewidth=0.6
        )
    picture.set_title("rays chosen by information gain, one image", fontsize=9)
    picture.set_axis_off()
    figure.savefig(RESULTS / "papers" / "design_laminates.png", dpi=120)
