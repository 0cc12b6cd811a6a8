"""Tomography at many noise levels, as in Duff, Campbell and Ehrhardt; shapes stand in for knees.

The parameter of every method is chosen for each image on its own, by the truth, as published: what
a method could reach, not what it does reach. Of several starts from draws of the prior the one with
the best objective counts, whatever its error.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.distributions.deviation import MOST_NUMBERS
from experiments.common import (
    Estimator,
    Problem,
    by_tikhonov,
    by_total_variation,
    in_groups,
    psnr,
    simulate,
)

R = bg.regularisers
FIGURES = RESULTS / "papers"
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.4)
IMAGES = 10
# Starts as in the published figures.
STARTS = 4
METHOD = bg.inference.MAP()
# A curve that rises by less, in dB, from one noise level to the next lower one is flat.
FLAT = 0.5
STYLES = {
    "hard": ("#0072B2", "o-"),
    "relaxed": ("#009E73", "s-"),
    "Tikhonov": ("#CC79A7", "v--"),
    "total variation": ("#000000", "^--"),
}


class Setting(NamedTuple):
    """What the sweep is about."""

    name: str
    A: Any
    G: bg.models.Generator
    images: Tensor


class Arm(NamedTuple):
    """A method, and the grid of its parameter."""

    estimate: Estimator
    grid: Sequence[float]


# By noise level and method.
Results = dict[float, dict[str, dict[str, Any]]]


def run(options: argparse.Namespace) -> None:
    """Run everything; with ``only``, the methods of these names, and write no report."""
    setting = choose(options)
    methods = {
        name: arm for name, arm in arms(setting).items() if not options.only or name in options.only
    }
    results: Results = {}
    for sigma in sorted(options.sigma or SIGMAS):
        given = simulate(setting.A, sigma, setting.images, seed=2)
        results[sigma] = {}
        for name, arm in methods.items():
            found = results[sigma][name] = by_oracle(arm, given)
            print(
                f"sigma {sigma}, {name}: {found['psnr']:.2f} ± {found['error']:.2f} dB", flush=True
            )
    if not options.only:
        report(setting, results, range_limit(setting))


def choose(options: argparse.Namespace) -> Setting:
    """Shapes, or the published knees for whoever has the data and a generator of them."""
    count = options.images or IMAGES
    folder = getattr(options, "fastmri", None)
    if folder is None:
        G = bg.models.load("shapes-vae-10")
        images = bg.datasets.shapes(200, seed=12345)[100 : 100 + count]
        name = "shapes"
    else:
        G = bg.models.load(options.generator)
        images = bg.datasets.fastmri_images(folder, size=G.image_shape[-1])[:count]
        name = "knees"
    shape = tuple(images.shape[1:])
    return Setting(name, bg.operators.Radon(shape).normalised(), G, images)


# ---------------------------------------------------------------------------------- methods


def arms(setting: Setting) -> dict[str, Arm]:
    """Every method; weights of penalties are over the variance of the noise."""
    return {
        "hard": Arm(by_map(hard(setting)), (0.1, 0.3, 1.0, 3.0)),
        "relaxed": Arm(by_map(relaxed(setting)), (0.006, 0.02, 0.06)),
        "Tikhonov": Arm(by_tikhonov, (2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)),
        "total variation": Arm(by_total_variation, (3.0, 10.0, 30.0, 100.0)),
    }


def by_map(model: Callable[[Tensor, Tensor, Tensor], None]) -> Estimator:
    """MAP of a model of data, noise level and parameter."""

    def estimate(given: Problem, parameter: float) -> Tensor:
        levels = (torch.full((len(given.y),), value) for value in (given.sigma, parameter))
        posterior = bg.infer(
            model, given.y, *levels, method=METHOD, chains=STARTS, batched=True, progress=False
        )
        return posterior.mode("x")

    return estimate


def hard(setting: Setting) -> Callable[[Tensor, Tensor, Tensor], None]:
    """x = G(z); the parameter is the weight of the latent prior."""

    def model(y: Tensor, sigma: Tensor, weight: Tensor) -> None:
        R.hard(setting.G, setting.A, sigma, latent_weight=weight)(y)

    return model


def relaxed(setting: Setting) -> Callable[[Tensor, Tensor, Tensor], None]:
    """x = G(z) + u, u white; the parameter is its scale.

    Integrated out, as in `bayesgen.regularisers.relaxed`, by one decomposition for all noise levels
    and scales; a site of the model where the operator is too large for that.
    """
    G, A = setting.G, setting.A
    if min(math.prod(A.domain_shape), math.prod(A.range_shape)) > MOST_NUMBERS:
        return lambda y, sigma, scale: R.relaxed(G, A, sigma, scale, integrated=False)(y)
    spectrum = bg.distributions.DataSpectrum(A, setting.images.new_zeros(()))

    def model(y: Tensor, sigma: Tensor, scale: Tensor) -> None:
        mean = G(pyro.sample("z", G.prior()))
        law = bg.distributions.IntegratedDeviation(mean, spectrum, sigma, scale)
        pyro.deterministic("x", mean + law.deviation(pyro.sample("y", law, obs=y)))

    return model


def by_oracle(arm: Arm, given: Problem) -> dict[str, Any]:
    """PSNR with the best parameter for each image."""
    clock = time.perf_counter()
    found = [psnr(in_groups(arm.estimate, given, value), given.truth) for value in arm.grid]
    seconds = time.perf_counter() - clock
    values, chosen = torch.stack(found).max(0)
    count = len(values)
    return {
        "psnr": values.mean().item(),
        "error": (values.std(correction=min(1, count - 1)) / count**0.5).item(),
        "psnr_of_images": [round(value, 3) for value in values.tolist()],
        "parameters": [arm.grid[i] for i in chosen.tolist()],
        "at_edge": sum(i in (0, len(arm.grid) - 1) for i in chosen.tolist()),
        "seconds": seconds,
    }


def range_limit(setting: Setting) -> float:
    """PSNR of the images in the generator's range that are nearest to the truth."""
    seen = setting._replace(A=bg.operators.Identity(setting.A.domain_shape))
    # A noise level so low that the latent prior hardly counts.
    given = Problem(seen.A, 0.01, seen.images, seen.images)
    return psnr(in_groups(by_map(hard(seen)), given, 1.0), seen.images).mean().item()


# --------------------------------------------------------------------------- tables, figures


def report(setting: Setting, results: Results, limit: float) -> None:
    """Table, claims and figure."""
    name = "noise_sweep" if setting.name == "shapes" else f"noise_sweep_{setting.name}"
    crossings, claims = cross(results, "hard", "total variation"), check(results)
    FIGURES.mkdir(parents=True, exist_ok=True)
    draw(setting, results, limit).savefig(FIGURES / f"{name}.png", dpi=80)
    text = f"""
Tomography of {len(setting.images)} {setting.name}, {" x ".join(map(str, setting.A.domain_shape))}
pixels, by {" x ".join(map(str, setting.A.range_shape))} data, the operator divided by its norm;
noise of sigma, the same for all methods. PSNR in dB for a range of 1, mean and standard error. The
parameter is chosen for each image by the truth; in brackets the range of what was chosen: hard, the
weight of the latent prior; relaxed, the scale of the deviation; Tikhonov and total variation, the
weight over sigma^2. Hard and relaxed: the best objective of {STARTS} starts. The images in the
generator's range that are nearest to the truth have {limit:.2f} dB.
"""
    methods = list(next(iter(results.values())))
    rows = [[sigma, *(cell(found[m]) for m in methods)] for sigma, found in results.items()]
    seconds = ["s an image", *(f"{cost(results, m, len(setting.images)):.1f}" for m in methods)]
    verdicts = [[claim, "true" if true else "**false**"] for claim, true in claims.items()]
    where = ", ".join(f"sigma = {sigma:.3g}" for sigma in crossings) or "nowhere"
    parts = [
        " ".join(text.split()),
        table(["sigma", *methods], [*rows, seconds]),
        table(["claim", ""], [*verdicts, ["hard and total variation cross at", where]]),
        f"![PSNR against sigma](papers/{name}.png)",
    ]
    content = {"results": results, "claims": claims, "crossings": crossings, "range_limit": limit}
    title = f"Tomography of {setting.name} at many noise levels"
    write(f"papers_{name}", title, "\n\n".join(parts), content)


def check(results: Results) -> dict[str, bool]:
    """What the paper concludes, and whether it is so here."""
    found = list(results.values())
    claims = {
        "relaxed at or above Tikhonov at every sigma": all(
            of["relaxed"]["psnr"] >= of["Tikhonov"]["psnr"] for of in found
        ),
    }
    if len(found) > 1:
        rise = found[0]["hard"]["psnr"] - found[1]["hard"]["psnr"]
        claims[f"hard flat (within {FLAT} dB) between the two least sigmas"] = abs(rise) < FLAT
    return claims


def cross(results: Results, one: str, other: str) -> list[float]:
    """Noise levels at which two curves cross, straight between points over log sigma."""
    points = [
        (math.log(sigma), found[one]["psnr"] - found[other]["psnr"])
        for sigma, found in results.items()
    ]
    return [
        math.exp(a + (b - a) * at_a / (at_a - at_b))
        for (a, at_a), (b, at_b) in pairwise(points)
        if at_a * at_b < 0
    ]


def cell(found: dict[str, Any]) -> str:
    """One entry of the table."""
    low, high = min(found["parameters"]), max(found["parameters"])
    chosen = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    edge = f", {found['at_edge']} at an edge" if found["at_edge"] else ""
    return f"{found['psnr']:.2f} ± {found['error']:.2f} ({chosen}{edge})"


def cost(results: Results, method: str, images: int) -> float:
    """Seconds an image and noise level, all parameters together."""
    return sum(found[method]["seconds"] for found in results.values()) / (len(results) * images)


def draw(setting: Setting, results: Results, limit: float) -> Figure:
    """PSNR against the noise level, with standard errors."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    ax = figure.subplots()
    for method, (colour, style) in STYLES.items():
        values, errors = (
            [found[method][key] for found in results.values()] for key in ("psnr", "error")
        )
        ax.errorbar(list(results), values, errors, fmt=style, color=colour, capsize=3, label=method)
    ax.axhline(limit, color=STYLES["hard"][0], ls=":", label="nearest in the generator's range")
    ax.set(xscale="log", xlabel="sigma", ylabel="PSNR, dB", title=f"tomography of {setting.name}")
    ax.set_xticks(list(results), [f"{sigma:g}" for sigma in results])
    ax.minorticks_off()
    ax.legend(fontsize=8)
    return figure
