"""Deconvolution of single digits, as in Duff, Campbell and Ehrhardt: every weight, every start.

Weights stand beside ``|A x - y|^2``, as in the paper. The latent prior of relaxed and sparse counts
as it is, where the paper tunes its share: their one weight is that of the deviation.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.plot import ERROR, MAGNITUDE, plot_image
from experiments.common import Problem, psnr, simulate

R = bg.regularisers
FIGURES = RESULTS / "papers"
# Test images as published: a 1, and two digits that are harder.
IMAGES = (2, 128, 533)
GENERATORS = {"mnist-vae-8": "#0072B2", "mnist-ae-8": "#009E73", "mnist-wgan-8": "#D55E00"}
STARTS = 10
# At the tuned weight, so that the best of ten has a spread that can be measured.
MORE_STARTS = 30
BEST_OF = (1, 3, 10)
# Objectives of one optimum differ by at most this, in nats; its points are as near by default.
SAME_BASIN = 0.1
METHOD = bg.inference.MAP(max_iterations=1000)


class Found(NamedTuple):
    """Of every start: images and G(z) ``(problems, starts, *shape)``, the next without shape.

    Of every problem: the number of optima that its starts end in.
    """

    images: Tensor
    means: Tensor
    log_prob: Tensor
    converged: Tensor
    optima: list[int]

    def best(self) -> Tensor:
        """Which start has the best objective; one that broke down has none."""
        return self.log_prob.nan_to_num(-torch.inf).argmax(1)


class Arm(NamedTuple):
    """A method ``(y, weights, starts)`` for many problems, and the weights of its sweep."""

    solve: Callable[[Tensor, Tensor, int], Found]
    weights: Tensor


Results = dict[str, dict[str, Any]]


def run(options: argparse.Namespace) -> None:
    """Run everything; with ``only``, the methods of these names, and write no report."""
    chosen = list(IMAGES[: options.images])
    truth = bg.datasets.mnist(options.mnist, "test")[chosen]
    kernel = bg.operators.gaussian_kernel(5, std=1.0)
    A = bg.operators.Blur((28, 28), kernel, boundary="zero").normalised()
    for sigma in options.sigma or (0.1,):
        given = simulate(A, sigma, truth, seed=2)
        results: Results = {}
        shown: dict[str, Found] = {}
        for name, arm in arms(given).items():
            if not options.only or name in options.only:
                results[name], shown[name] = measure(name, arm, given)
                print(f"{name}: {results[name]['psnr']} dB, misfit {results[name]['misfit']}")
        if not options.only:
            report(sigma, chosen, given, results, shown)


# ---------------------------------------------------------------------------------- methods


def arms(given: Problem) -> dict[str, Arm]:
    """Every method, over four decades of its weight in which the misfit crosses the noise."""
    spectrum = bg.distributions.DataSpectrum(given.A, torch.zeros(()))
    models = {
        "hard": (partial(hard, given), -4.0),
        "relaxed": (partial(relaxed, given, spectrum), -2.0),
        "sparse": (partial(sparse, given), -2.0),
    }
    found = {
        f"{kind}, {name}": Arm(by_model(bg.models.load(name), model), nine(first))
        for kind, (model, first) in models.items()
        for name in GENERATORS
    }
    found["Tikhonov"] = Arm(classical(given, bg.reconstruction.tikhonov), nine(-3.0))
    found["total variation"] = Arm(classical(given, bg.reconstruction.total_variation), nine(-2.0))
    return found


def nine(first: float) -> Tensor:
    """Weights from 10^first, two to a decade."""
    return torch.logspace(first, first + 4, 9)


def hard(given: Problem, G: bg.models.Generator, y: Tensor, weight: Tensor) -> None:
    """``|A G(z) - y|^2 + weight |z|^2``."""
    R.hard(G, given.A, given.sigma, latent_weight=weight / given.sigma**2)(y)


def sparse(given: Problem, G: bg.models.Generator, y: Tensor, weight: Tensor) -> None:
    """``|A (G(z) + u) - y|^2 + weight |u|_1 + sigma^2 |z|^2``."""
    R.sparse(G, given.A, given.sigma, 2 * given.sigma**2 / weight)(y)


def relaxed(
    given: Problem,
    spectrum: bg.distributions.DataSpectrum,
    G: bg.models.Generator,
    y: Tensor,
    weight: Tensor,
) -> None:
    """``|A (G(z) + u) - y|^2 + weight |u|^2 + sigma^2 |z|^2``.

    It is `bayesgen.regularisers.relaxed`, whose scale may not be data, with the operator decomposed
    once.
    """
    mean = G(pyro.sample("z", G.prior()))
    law = bg.distributions.IntegratedDeviation(
        mean, spectrum, given.sigma, given.sigma / weight.sqrt()
    )
    pyro.deterministic("x", mean + law.deviation(pyro.sample("y", law, obs=y)))


def by_model(G: bg.models.Generator, model: Callable[..., None]) -> Callable[..., Found]:
    """MAP from draws of the prior, all starts of all problems in one batch."""

    def solve(y: Tensor, weights: Tensor, starts: int) -> Found:
        posterior = bg.infer(
            partial(model, G),
            y,
            weights,
            method=METHOD,
            chains=starts,
            batched=True,
            progress=False,
        )
        x, z = (posterior.draws(site)[:, :, 0] for site in ("x", "z"))
        with torch.no_grad():
            means = G(z)
        converged = posterior.stats["converged"].reshape(x.shape[:2])
        basins: Any = posterior.basins(tolerance=SAME_BASIN)
        optima = [len(found) for found in basins]
        return Found(x, means, posterior.log_prob[..., 0], converged, optima)

    return solve


def classical(given: Problem, method: Callable[..., Tensor]) -> Callable[..., Found]:
    """Methods whose optimum does not depend on the start; their one start is zero."""

    def solve(y: Tensor, weights: Tensor, starts: int) -> Found:
        x = method(given.A, y, weights)[:, None]
        none = x.new_zeros(x.shape[:2])
        return Found(x, torch.zeros_like(x), none, none == 0, [1] * len(x))

    return solve


# ----------------------------------------------------------------------------- measurements


def measure(name: str, arm: Arm, given: Problem) -> tuple[dict[str, Any], Found]:
    """The sweep, the starts at the best weight of all images together, and Morozov's weights."""
    clock = time.perf_counter()
    images, weights = len(given.y), arm.weights
    found = arm.solve(given.y.repeat(len(weights), 1, 1), weights.repeat_interleave(images), STARTS)
    seconds = time.perf_counter() - clock
    truth = given.truth.repeat(len(weights), 1, 1)
    shape = (len(weights), images, -1)
    misfits = misfit(given, found, given.y.repeat(len(weights), 1, 1)).reshape(shape)
    errors = psnr_of(found, truth).reshape(shape)
    best = found.best().reshape(*shape[:2], 1)
    tuned = int(errors.gather(2, best)[..., 0].mean(1).argmax())
    at_best = arm.solve(given.y, weights[tuned].expand(images), MORE_STARTS)
    chosen, values = at_best.best()[:, None], psnr_of(at_best, given.truth)
    return {
        "weights": weights.tolist(),
        "sweep_misfit": misfits.tolist(),
        "sweep_psnr": errors.tolist(),
        "sweep_best": best[..., 0].tolist(),
        "sweep_converged": found.converged.float().mean().item(),
        "sweep_seconds": seconds,
        "weight": weights[tuned].item(),
        "at_edge": tuned in (0, len(weights) - 1),
        "psnr": rounded(values.gather(1, chosen)[:, 0]),
        "misfit": rounded(misfit(given, at_best, given.y).gather(1, chosen)[:, 0]),
        "psnr_of_starts": [rounded(row) for row in values],
        "objective_of_starts": [rounded(-row) for row in at_best.log_prob],
        "converged": at_best.converged.float().mean().item(),
        "basins": at_best.optima,
        "spread_best_of": {
            str(k): [spread(k, *row) for row in zip(values, at_best.log_prob, strict=True)]
            for k in BEST_OF
        },
        "morozov": [morozov(arm, given, i) for i in range(images)],
    }, at_best


def psnr_of(found: Found, truth: Tensor) -> Tensor:
    """Of every start, ``(problems, starts)``."""
    starts = found.images.shape[1]
    return psnr(found.images.flatten(0, 1), truth.repeat_interleave(starts, 0)).reshape(-1, starts)


def misfit(given: Problem, found: Found, y: Tensor) -> Tensor:
    """Squared, of every start."""
    return (given.A(found.images) - y[:, None]).square().sum((-2, -1))


def spread(k: int, values: Tensor, log_prob: Tensor) -> float:
    """Standard deviation of the value of the best of k starts, over all choices of k of them."""
    count = len(values)
    if k > count:
        return 0.0
    order = log_prob.nan_to_num(-torch.inf).argsort(descending=True)
    # That the start of this rank is among the k, and none of a better rank is.
    chances = [math.comb(count - 1 - rank, k - 1) / math.comb(count, k) for rank in range(count)]
    chance, ordered = torch.tensor(chances).double(), values[order].double()
    mean = (chance * ordered).sum()
    return float((chance * (ordered - mean).square()).sum().sqrt())


def morozov(arm: Arm, given: Problem, image: int) -> dict[str, Any]:
    """The weight that the discrepancy principle picks for one image, or why it picks none."""

    def estimate(y: Tensor, weight: float) -> Tensor:
        found = arm.solve(y[None], torch.tensor([weight]), STARTS)
        return found.images[0, int(found.best())]

    ends = (arm.weights[0].item(), arm.weights[-1].item())
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        try:
            choice = bg.weights.morozov(
                estimate, given.A, given.y[image], given.sigma, between=ends
            )
        except bg.errors.ResultError as error:
            return {"error": str(error)}
    assert choice.image is not None
    value = psnr(choice.image[None], given.truth[image][None]).item()
    return {
        "weight": choice.weight,
        "misfit": (given.A(choice.image) - given.y[image]).square().sum().item(),
        "psnr": value,
        "warnings": [str(warning.message) for warning in raised],
    }


def rounded(values: Tensor) -> list[float]:
    """Numbers for people."""
    return [round(value, 3) for value in values.tolist()]


# -------------------------------------------------------------------------- tables, figures


def report(
    sigma: float, chosen: list[int], given: Problem, results: Results, shown: dict[str, Found]
) -> None:
    """Tables and figures of one noise level."""
    level = given.y[0].numel() * sigma**2
    pictures = [f"deconvolution_{sigma}_image_{index}.png" for index in chosen]
    for i, picture in enumerate(pictures):
        draw_sweep(i, level, results).savefig(FIGURES / picture, dpi=70)
    images = f"deconvolution_{sigma}_reconstructions.png"
    draw_images(given, results, shown).savefig(FIGURES / images, dpi=80)
    claims = check(level, results)
    text = f"""
A 5 x 5 Gaussian blur of standard deviation 1 with a zero boundary, divided by its norm; noise of
{sigma}, the same for all methods; test images {", ".join(map(str, chosen))}. PSNR in dB for a range
of 1. The weight is the best of nine for the images together, by the truth. At this weight there
are {MORE_STARTS} starts from draws of the prior: least, median and greatest PSNR over them, and
how many optima they end in (one if objectives are within {SAME_BASIN} nats and points near, as
`Posterior.basins` tells them apart). The spread is the
standard deviation of the PSNR of the best, by its objective, of k starts, mean over images.
Morozov's level is m sigma^2 = {level:.2f}; in brackets the PSNR at the weight that meets it.
"""
    parts = [
        " ".join(text.split()),
        starts_table(chosen, results),
        "## Morozov's weights",
        morozov_table(chosen, results),
        table(["claim", ""], [[name, "true" if c else "**false**"] for name, c in claims.items()]),
        "## Misfit and PSNR against the weight\n\nDots are starts, lines the best objective, the "
        "dashed line Morozov's level, triangles the weight that meets it.",
        *(f"![test image {i}](papers/{p})" for i, p in zip(chosen, pictures, strict=True)),
        "## Reconstructions\n\nOf the starts at the tuned weight the one with the worst, the "
        "median and the best objective; then the deviation u in colour over G(z).",
        f"![Reconstructions](papers/{images})",
    ]
    title = f"Deconvolution of digits, sigma = {sigma}"
    content = {"images": chosen, "level": level, "results": results, "claims": claims}
    write(f"papers_deconvolution_{sigma}", title, "\n\n".join(parts), content)


def check(level: float, results: Results) -> dict[str, bool]:
    """What the paper concludes, and whether it is so here."""
    mean = {name: sum(found["psnr"]) / len(found["psnr"]) for name, found in results.items()}
    wide = {name: sum(found["spread_best_of"]["1"]) for name, found in results.items()}
    auto = [mean["hard, mnist-vae-8"], mean["hard, mnist-ae-8"]]
    spreads = [[sum(f["spread_best_of"][str(k)]) for k in BEST_OF] for f in results.values()]
    return {
        "hard stays above Morozov's level (VAE)": min(results["hard, mnist-vae-8"]["misfit"])
        > level,
        "hard with VAE and AE above Tikhonov and total variation": min(auto)
        > max(mean["Tikhonov"], mean["total variation"]),
        "VAE and AE above WGAN (hard)": min(auto) > mean["hard, mnist-wgan-8"],
        "WGAN depends on the start more than the VAE (hard)": wide["hard, mnist-wgan-8"]
        > wide["hard, mnist-vae-8"],
        "the spread shrinks with k for every method": all(s == sorted(s)[::-1] for s in spreads),
    }


def starts_table(chosen: list[int], results: Results) -> str:
    """Starts at the tuned weight."""
    rows = []
    for name, found in results.items():
        row = [name, f"{found['weight']:.2g}" + (" (edge)" if found["at_edge"] else "")]
        for best, starts in zip(found["psnr"], found["psnr_of_starts"], strict=True):
            ordered = sorted(starts)
            low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
            row.append(f"{best:.2f} ({low:.2f} / {middle:.2f} / {high:.2f})")
        spreads = [sum(s) / len(s) for s in found["spread_best_of"].values()]
        row += [", ".join(map(str, found["basins"])), " / ".join(f"{s:.2f}" for s in spreads)]
        rows.append([*row, f"{100 * found['converged']:.0f} %", f"{found['sweep_seconds']:.0f}"])
    header = ["method", "weight", *(f"image {i}: best (min / median / max)" for i in chosen)]
    header += ["optima", f"spread, k = {' / '.join(map(str, BEST_OF))}", "converged", "s a sweep"]
    return table(header, rows)


def morozov_table(chosen: list[int], results: Results) -> str:
    """Weights, or why there are none."""

    def cell(found: Mapping[str, Any]) -> str:
        if "error" in found:
            return str(found["error"]).split(". ")[0].removeprefix("morozov: ")
        return f"{found['weight']:.3g} ({found['psnr']:.2f})" + (
            " jump" if found["warnings"] else ""
        )

    rows = [[name, *map(cell, found["morozov"])] for name, found in results.items()]
    return table(["method", *(f"image {i}" for i in chosen)], rows)


def draw_sweep(image: int, level: float, results: Results) -> Figure:
    """Misfit and PSNR of one image against the weight, a column for each kind of method."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    kinds = ["hard", "relaxed", "sparse", "no generator"]
    colours = {**GENERATORS, "Tikhonov": "#CC79A7", "total variation": "#000000"}
    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(2, len(kinds), sharex="col", sharey="row")
    for name, found in results.items():
        kind, _, part = name.rpartition(", ")
        column = axes[:, kinds.index(kind or "no generator")]
        picked = found["morozov"][image]
        for ax, what in zip(column, ("misfit", "psnr"), strict=True):
            draw_curve(ax, found, f"sweep_{what}", image, colours[part], part)
            if "weight" in picked:
                ax.plot(picked["weight"], picked[what], "^", color=colours[part], ms=9, mec="k")
    for ax, kind in zip(axes[0], kinds, strict=True):
        ax.axhline(level, color="k", ls="--", lw=1, label="Morozov's level")
        ax.set(title=kind, yscale="log")
        ax.legend(fontsize=7)
    axes[0, 0].set_ylabel("misfit |A x - y|²")
    axes[1, 0].set_ylabel("PSNR, dB")
    for ax in axes[1]:
        ax.set_xlabel("weight")
    return figure


def draw_curve(
    ax: Axes, found: Mapping[str, Any], key: str, image: int, colour: str, name: str
) -> None:
    """Every start as a dot, and a line through those with the best objectives."""
    line = []
    for weight, rows, best in zip(found["weights"], found[key], found["sweep_best"], strict=True):
        ax.plot([weight] * len(rows[image]), rows[image], ".", color=colour, ms=4, alpha=0.4)
        line.append(rows[image][best[image]])
    ax.semilogx(found["weights"], line, color=colour, label=name)


def draw_images(given: Problem, results: Results, shown: dict[str, Found]) -> Figure:
    """A row for each method; of each image the worst, median and best start, and the deviation."""
    images = len(given.truth)
    figure = Figure(figsize=(1 + 3 * images, 0.5 + 0.85 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown) + 1, 4 * images, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    label(axes[0, 0], "image, data")
    for i in range(images):
        small(axes[0, 4 * i], given.truth[i], "")
        small(axes[0, 4 * i + 1], given.y[i], "")
    for row, (name, found) in zip(axes[1:], shown.items(), strict=True):
        label(row[0], name)
        chosen = torch.arange(images), found.best()
        # All of them may be zero.
        limit = max((found.images - found.means)[chosen].abs().max().item(), 1e-6)
        for i in range(images):
            order = found.log_prob[i].nan_to_num(-torch.inf).argsort()
            picked = order[[0, len(order) // 2, -1]] if len(order) > 1 else order
            for ax, start in zip(row[4 * i :], picked.tolist(), strict=False):
                small(
                    ax, found.images[i, start], f"{results[name]['psnr_of_starts'][i][start]:.1f}"
                )
            if name.startswith(("relaxed", "sparse")):
                start = int(order[-1])
                mean = found.means[i, start]
                deviation = found.images[i, start] - mean
                small(row[4 * i + 3], mean, f"|u| ≤ {deviation.abs().max():.1g}")
                row[4 * i + 3].imshow(
                    deviation,
                    cmap=ERROR,
                    vmin=-limit,
                    vmax=limit,
                    alpha=(deviation.abs() / limit).clamp(max=1).numpy(),
                )
    return figure


def small(ax: Axes, image: Tensor, title: str) -> None:
    """One of many images."""
    plot_image(image, ax=ax, limits=(0.0, 1.0), cmap=MAGNITUDE, colorbar=False)
    ax.set_title(title, fontsize=7, pad=2)


def label(ax: Axes, text: str) -> None:
    """Name of a row."""
    ax.text(-0.1, 0.5, text, transform=ax.transAxes, ha="right", va="center", fontsize=8)
