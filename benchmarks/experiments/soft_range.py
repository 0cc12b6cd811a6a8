"""Posteriors of Bora et al.'s compressed sensing: how good their means are, and how honest.

    python benchmarks/papers.py soft-range --mnist FOLDER

Entries of A are N(0, 1), noise has deviation 0.1, the first 300 test images; arms for comparison
that sample take the first hundred. The deviation's covariance is that of the residuals of test
images 1000 to 4999, on which nothing was trained. Coverage is the share of images within the
credible ball around the posterior mean, and the share of pixels within their central intervals,
also for images drawn from the model itself: the control.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from experiments.common import (
    GROUP,
    Problem,
    by_total_variation,
    in_groups,
    linear_estimate,
    psnr,
    simulate,
)

ROWS = (25, 50, 100, 200, 400)
TARGETS = {25: 18.4, 50: 20.6, 100: 23.0, 200: 26.2, 400: 33.9}
LEVELS = (0.5, 0.9, 0.99)
NAME = "mnist-vae"

Figures = dict[str, Any]


def run(options: argparse.Namespace) -> None:
    """Every number of measurements, every arm."""
    test, train = (bg.datasets.mnist(options.mnist, split) for split in ("test", "train"))
    G = bg.models.load(NAME)
    covariances = {
        kind: bg.covariances.residual_covariance(G, test[1000:], kind=kind)
        for kind in ("dense", "isotropic")
    }
    truth = test[: options.images or 300]
    results = {}
    for rows in ROWS:
        A = bg.operators.GaussianMatrix((28, 28), rows=rows, seed=0)
        # Entries N(0, 1), as in Bora et al.
        A = rows**0.5 * A
        given = simulate(A, 0.1, truth, seed=rows)
        for name, arm in arms(G, covariances, train).items():
            if options.only and name not in options.only:
                continue
            clock = time.perf_counter()
            found = arm(given)
            count = len(found["of_images"])
            found["seconds_per_image"] = (time.perf_counter() - clock) / count
            results[f"{rows}, {name}"] = found
            print(rows, name, {k: v for k, v in found.items() if k != "of_images"}, flush=True)
        if not options.only or "control" in options.only:
            count = max(1, len(truth) // 3)
            results[f"{rows}, control"] = control(G, covariances["dense"], A, count)
            print(rows, "control", results[f"{rows}, control"], flush=True)
        tell(results)


def arms(
    G: Any, covariances: dict[str, Any], train: Tensor
) -> dict[str, Callable[[Problem], Figures]]:
    """Estimators by name."""
    R = bg.regularisers
    return {
        "hard range": lambda p: sampled(R.hard(G, p.A, p.sigma), G, third(p)),
        "soft range, isotropic": lambda p: sampled(
            R.soft_range(G, p.A, p.sigma, covariance=covariances["isotropic"]), G, third(p)
        ),
        "soft range, residual covariance": lambda p: sampled(
            R.soft_range(G, p.A, p.sigma, covariance=covariances["dense"]), G, p
        ),
        "LMMSE, PCA covariance": lambda p: pointwise(
            in_groups(linear_estimate(train[:20000]), p, 1.0).clamp(0, 1), p
        ),
        "total variation": lambda p: pointwise(by_total_variation_tuned(p), p),
    }


def third(given: Problem) -> Problem:
    """The first third of the images."""
    return given[slice(0, max(1, len(given.truth) // 3))]


def by_total_variation_tuned(given: Problem) -> Tensor:
    """With the weight that is best for the first images, which favours it."""
    some = given[slice(0, 20)]
    weights = (0.3, 1.0, 3.0, 10.0, 30.0)
    best = max(weights, key=lambda w: psnr(by_total_variation(some, w), some.truth).mean().item())
    return in_groups(by_total_variation, given, best)


def pointwise(found: Tensor, given: Problem) -> Figures:
    """Figures of an estimate without uncertainty."""
    values = psnr(found, given.truth)
    return {"psnr": values.mean().item(), "of_images": [round(v, 2) for v in values.tolist()]}


def sampled(model: Any, G: Any, given: Problem) -> Figures:
    """Figures of a posterior, a group of images at a time."""
    groups = [given[slice(i, i + GROUP)] for i in range(0, len(given.truth), GROUP)]
    parts = [judged(posterior_of(model, G, group), group.truth) for group in groups]
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return {
        "psnr": joined["psnr"].mean().item(),
        "standard_error": (joined["psnr"].std() / len(joined["psnr"]) ** 0.5).item(),
        "pixels_90": joined["pixels"].mean().item(),
        **{f"ball_{level:g}": joined[f"ball_{level:g}"].double().mean().item() for level in LEVELS},
        "rhat_median": joined["rhat"].median().item(),
        "rhat_above_1.1": (joined["rhat"] > 1.1).double().mean().item(),
        "of_images": [round(v, 2) for v in joined["psnr"].tolist()],
    }


def posterior_of(model: Any, G: Any, given: Problem) -> bg.Posterior:
    """Four chains an image, from the encoding of a linear estimate and draws around it."""
    start = bg.starts.encoder_start(G, given.A, given.y, given.sigma, chains=4)
    return bg.infer(
        model,
        given.y,
        method=bg.inference.HMC(trajectory=1.0, max_steps=8),
        chains=4,
        warmup=150,
        draws=150,
        start=start,
        batched=True,
        progress=False,
    )


def judged(posterior: bg.Posterior, truth: Tensor) -> dict[str, Tensor]:
    """Error of the mean, and whether balls and intervals hold the truth, for each image."""
    x = posterior.draws("x").flatten(1, 2).flatten(2)
    flat, mean = truth.flatten(1), x.mean(1)
    radii = (x - mean[:, None]).norm(dim=-1)
    error = (flat - mean).norm(dim=-1)
    low, high = torch.quantile(x, torch.tensor([0.05, 0.95]), dim=1)
    balls = {f"ball_{level:g}": error <= torch.quantile(radii, level, dim=1) for level in LEVELS}
    return {
        "psnr": psnr(mean.reshape(truth.shape), truth),
        "pixels": ((flat >= low) & (flat <= high)).double().mean(1),
        "rhat": rhat_of(posterior.log_prob),
        **balls,
    }


def rhat_of(values: Tensor) -> Tensor:
    """Split R-hat of a scalar, ``(problems, chains, draws)``."""
    half = values.shape[-1] // 2
    parts = torch.cat([values[..., :half], values[..., half : 2 * half]], 1).double()
    within, between = parts.var(-1).mean(-1), parts.mean(-1).var(-1)
    return ((within * (half - 1) / half + between) / within).sqrt()


def control(G: Any, covariance: Any, A: Any, count: int) -> Figures:
    """The same with images that the model itself draws: what is left is the sampler's."""
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(count, G.latent_dim, generator=rng)
    noise = torch.randn(count, *covariance.noise_shape, generator=rng)
    mean, deviation = covariance.log_scale
    s = (mean + deviation * torch.randn(count, 1, 1, generator=rng)).exp()
    with torch.no_grad():
        truth = G(z) + s * covariance.factor(noise)
    given = simulate(A, 0.1, truth, seed=2)
    return sampled(bg.regularisers.soft_range(G, A, 0.1, covariance=covariance), G, given)


def tell(results: dict[str, Figures]) -> None:
    """Write the table."""
    header = ["m, method", "images", "PSNR", "target", "90 % of pixels"]
    header += [f"ball {level:.0%}" for level in LEVELS] + ["R-hat > 1.1", "s an image"]
    rows = []
    for name, found in results.items():
        count = int(name.split(",")[0])
        error = f" ± {found['standard_error']:.2f}" if "standard_error" in found else ""
        sampled_ = "pixels_90" in found
        soft = name.endswith("residual covariance")
        rows.append(
            [
                name,
                len(found["of_images"]),
                f"{found['psnr']:.2f}{error}",
                f"{TARGETS[count]}" if soft else "",
                f"{found['pixels_90']:.1%}" if sampled_ else "",
                *(f"{found[f'ball_{level:g}']:.0%}" if sampled_ else "" for level in LEVELS),
                f"{found['rhat_above_1.1']:.0%}" if sampled_ else "",
                f"{found.get('seconds_per_image', 0):.2f}",
            ]
        )
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    title = "Posteriors of compressed sensing, soft range against hard range"
    write("soft_range", title, text + "\n\n" + table(header, rows), {"results": results})
    draw(results)


def draw(results: dict[str, Figures]) -> None:
    """Error of the means, and coverage, against the number of measurements."""
    names = list(dict.fromkeys(key.split(", ", 1)[1] for key in results))
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    quality, ball, pixels = figure.subplots(1, 3)
    for number, name in enumerate(names):
        found = {m: results[f"{m}, {name}"] for m in ROWS if f"{m}, {name}" in results}
        style: dict[str, Any] = {"marker": ".", "color": f"C{number}", "label": name}
        if name == "control":
            style |= {"ls": ":", "color": "k"}
        else:
            quality.plot(list(found), [f["psnr"] for f in found.values()], **style)
        if all("ball_0.9" in f for f in found.values()):
            ball.plot(list(found), [f["ball_0.9"] for f in found.values()], **style)
            pixels.plot(list(found), [f["pixels_90"] for f in found.values()], **style)
    quality.set(title="mean of the draws, or estimate", ylabel="PSNR in dB")
    ball.set(title="images within the 90 % ball", ylim=(0, 1))
    pixels.set(title="pixels within the 90 % interval", ylim=(0, 1))
    for ax in (ball, pixels):
        ax.axhline(0.9, color="0.6", lw=0.8)
    for ax in (quality, ball, pixels):
        ax.set(xlabel="measurements", xscale="log", xticks=list(ROWS), xticklabels=list(ROWS))
        ax.minorticks_off()
    quality.legend(fontsize=7)
    ball.legend(fontsize=7)
    figure.savefig(RESULTS / "papers" / "soft_range.png", dpi=120)
