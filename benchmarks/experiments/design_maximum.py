"""The brightest pixel, as in Ang (2021): generators against random images and Gaussian processes.

    python benchmarks/papers.py design-maximum --mnist FOLDER

The first 100 test digits (or --images) at half brightness over a ramp in one of four directions, 32
x 32; nothing is known at first, and each of 20 rounds looks at 10 pixels, without noise. The regret
is the brightest pixel less the brightest one seen; once it is zero the run ends. UCB (kappa 2) and
Thompson sampling go by 64 draws given the shipped generator, whose error counts as noise of
deviation 0.1. Random images are the published baseline: each round a training image at random,
whose 10 brightest positions are looked at, seen before or not; as for random pixels, regrets are
means over 100 runs. The Gaussian process is BoTorch's on the grid of pixels, Matern 1/2, fitted
anew each round; 10 random pixels come first, then batches by UCB. The learnt Gaussian is a process
too, with mean and covariance of the training images in place of a kernel. Settings of all arms were
chosen on test digits 1000 to 1019. Figures are means over images ± standard errors, differences
those by image.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import MissingPackageError

ROUNDS, BATCH, SIDE = 20, 10, 32
SHOWN = (1, 5, 10, 20)
SIGMA, KAPPA = 0.1, 2.0
METHOD = bg.inference.SMC(particles=64, alpha=0.5, moves=1, max_moves=1, leapfrog=4)
# Noise of the processes: some for images that no Gaussian draws, next to none for a fitted kernel.
LEARNT_SIGMA, FITTED_SIGMA = 0.02, 0.001
IMAGES, PIXELS = "random images", "random pixels"
PROCESS, LEARNT = "Gaussian process", "learnt Gaussian"
# Runs of an image, of arms that take no notice of what they see.
REPEATS = {IMAGES: 100, PIXELS: 100}
# Ang's rounds of `SHOWN`, with the VAE; "Thompson" there is the posterior mean.
PUBLISHED = {
    "UCB": (0.287, 0.079, 0.047, 0.024),
    "Thompson": (0.300, 0.138, 0.079, 0.043),
    IMAGES: (0.297, 0.107, 0.046, 0.016),
}
COLOURS = {
    "UCB, VAE": "tab:blue",
    "Thompson, VAE": "tab:cyan",
    "UCB, GAN": "tab:purple",
    "Thompson, GAN": "tab:pink",
    IMAGES: "k",
    PIXELS: "0.6",
    PROCESS: "tab:red",
    LEARNT: "tab:green",
}

# From an image and a seed to the pixels of one round after the other.
Arm = Callable[[Tensor, int], Iterator[list[int]]]


def run(options: argparse.Namespace) -> None:
    """Every image, every arm."""
    digits = bg.datasets.mnist(options.mnist, "test")[: options.images or 100]
    truth = bg.datasets.multi_gradient_mnist(digits, size=SIDE, seed=0)
    train = bg.datasets.mnist(options.mnist, "train")
    chosen = arms(bg.datasets.multi_gradient_mnist(train, size=SIDE, seed=1), options.only)
    results: dict[str, Any] = {
        name: {"regrets": [], "rounds": [], "seconds": []} for name in chosen
    }
    for number, image in enumerate(truth):
        for name, arm in chosen.items():
            seeds = [number + 1000 * repeat for repeat in range(REPEATS.get(name, 1))]
            clock = time.process_time()
            curves = torch.stack([regrets(image, arm(image, seed)) for seed in seeds])
            found = results[name]
            found["seconds"].append((time.process_time() - clock) / len(seeds))
            found["rounds"].append((1.0 + (curves > 0).sum(1)).clamp(max=ROUNDS).mean().item())
            found["regrets"].append(curves.mean(0).tolist())
        print(number, {name: found["rounds"][-1] for name, found in results.items()}, flush=True)
        # All of them take long; what is there should not be lost. One image has no standard error.
        if number > 0:
            tell(results)
            draw(results)


def regrets(image: Tensor, rounds: Iterator[list[int]]) -> Tensor:
    """Brightest pixel less the brightest one seen, after each round."""
    below = image.max() - image.flatten()
    curve, least = torch.zeros(ROUNDS), below.max()
    for number, pixels in enumerate(islice(rounds, ROUNDS)):
        least = torch.minimum(least, below[pixels].min())
        curve[number] = least
        if least == 0:
            break
    return curve


# ---------------------------------------------------------------------------- ways to choose


def arms(training: Tensor, only: Sequence[str]) -> dict[str, Arm]:
    """Those of ``--only``, or all."""
    found: dict[str, Arm] = {}
    for name in ("VAE", "GAN"):
        G = bg.models.load(f"multi-gradient-{name.lower()}")
        found[f"UCB, {name}"] = partial(by_generator, G, bg.design.UCB(kappa=KAPPA))
        found[f"Thompson, {name}"] = partial(by_generator, G, bg.design.Thompson())
    brightest = training.flatten(1).topk(BATCH).indices
    found |= {IMAGES: partial(by_images, brightest), PIXELS: by_pixels}
    wanted = [name for name in COLOURS if not only or name in only]
    if PROCESS in wanted:
        found[PROCESS] = partial(by_process, botorch())
    if LEARNT in wanted:
        flat = training.flatten(1).double()
        found[LEARNT] = partial(by_learnt_gaussian, flat.mean(0), torch.cov(flat.T))
    return {name: found[name] for name in wanted}


def by_generator(
    G: Any, acquisition: bg.design.Acquisition, image: Tensor, seed: int
) -> Iterator[list[int]]:
    """A loop with posterior draws of the generator."""

    def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
        bg.regularisers.hard(G, A, SIGMA)(y)

    loop = bg.design.Loop(
        model,
        bg.design.Pool.pixels(image.shape),
        acquisition=acquisition,
        budget=ROUNDS * BATCH,
        batch=BATCH,
        noise=SIGMA,
        method=METHOD,
        chains=1,
        draws=METHOD.particles,
        seed=seed,
    )
    while not loop.finished:
        pixels = loop.ask()
        yield pixels
        loop.tell(image.flatten()[pixels])


def by_images(brightest: Tensor, image: Tensor, seed: int) -> Iterator[list[int]]:
    """Where training images are brightest, ``(N, BATCH)``."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield brightest[int(torch.randint(len(brightest), (1,), generator=rng))].tolist()


def by_pixels(image: Tensor, seed: int) -> Iterator[list[int]]:
    """At random, none twice."""
    rng = torch.Generator().manual_seed(seed)
    for pixels in torch.randperm(image.numel(), generator=rng).split(BATCH):
        yield pixels.tolist()


def by_process(tools: Any, image: Tensor, seed: int) -> Iterator[list[int]]:
    """Bayesian optimisation as usual: a kernel whose scales follow from what was seen."""
    side = torch.linspace(0, 1, SIDE, dtype=torch.float64)
    grid, values = torch.cartesian_prod(side, side), image.flatten().double()
    seen = next(by_pixels(image, seed))
    yield seen
    while True:
        kernel = tools.kernels.ScaleKernel(tools.kernels.MaternKernel(nu=0.5))
        process = tools.models.SingleTaskGP(
            grid[seen],
            values[seen, None],
            covar_module=kernel,
            outcome_transform=tools.transforms.Standardize(m=1),
        )
        likelihood = tools.mlls.ExactMarginalLogLikelihood(process.likelihood, process)
        tools.fit.fit_gpytorch_mll(likelihood)
        with torch.no_grad():
            law = process.posterior(grid).distribution
            pixels, _ = by_bound(law.mean, law.covariance_matrix, seen, FITTED_SIGMA)
        yield pixels
        seen = seen + pixels


def by_learnt_gaussian(
    mean: Tensor, covariance: Tensor, image: Tensor, seed: int
) -> Iterator[list[int]]:
    """A process that knows the first two moments of the images."""
    values, seen = image.flatten().double(), list[int]()
    while True:
        pixels, left = by_bound(mean, covariance, seen, LEARNT_SIGMA)
        yield pixels
        seen = seen + pixels
        noisy = covariance[pixels][:, pixels] + LEARNT_SIGMA**2 * torch.eye(BATCH).double()
        mean = mean + covariance[:, pixels] @ torch.linalg.solve(
            noisy, values[pixels] - mean[pixels]
        )
        covariance = left


def by_bound(
    mean: Tensor, covariance: Tensor, seen: Sequence[int], sigma: float
) -> tuple[list[int], Tensor]:
    """A batch by UCB, deviations being those given the choices so far, and what they leave."""
    pixels: list[int] = []
    while len(pixels) < BATCH:
        bound = mean + KAPPA * covariance.diagonal().clamp(min=0).sqrt()
        bound[[*seen, *pixels]] = -torch.inf
        pixels.append(int(bound.argmax()))
        column = covariance[pixels[-1]]
        covariance = covariance - torch.outer(column, column) / (column[pixels[-1]] + sigma**2)
    return pixels, covariance


def botorch() -> argparse.Namespace:
    """What is used of BoTorch, which is imported for its arm only."""
    names = {
        "fit": "botorch.fit",
        "models": "botorch.models",
        "transforms": "botorch.models.transforms",
        "kernels": "gpytorch.kernels",
        "mlls": "gpytorch.mlls",
    }
    try:
        return argparse.Namespace(**{k: importlib.import_module(v) for k, v in names.items()})
    except ImportError as error:
        raise MissingPackageError(
            f"{PROCESS!r} needs BoTorch, which could not be imported ({error}): pip install "
            "'bayesgen[botorch]', or name the other arms with --only"
        ) from error


# ---------------------------------------------------------------------------- results


def tell(results: dict[str, Any]) -> None:
    """Write the tables of the images so far."""
    curves = {name: torch.tensor(found["regrets"]) for name, found in results.items()}
    count = len(next(iter(curves.values())))
    shown = [f"round {r}" for r in SHOWN]
    rows = []
    for name, curve in curves.items():
        found = results[name]
        per_image, rounds = sum(found["seconds"]) / count, sum(found["rounds"]) / count
        rows.append(
            [
                name,
                *at_rounds(curve),
                f"{(curve[:, -1] == 0).double().mean():.0%}" if name not in REPEATS else "",
                f"{rounds:.1f}",
                f"{per_image:.2f}",
                f"{per_image / rounds:.2f}",
            ]
        )
    for name, values in PUBLISHED.items():
        rows.append([f"published, {name}", *(f"{v:.3f}" for v in values), "", "", "", ""])
    header = ["arm", *shown, "found", "rounds until then", "CPU s an image", "a round"]
    text = " ".join((__doc__ or "").split("\n\n")[2].split()) + f" {count} images."
    parts = [text, table(header, rows), *compared(curves)]
    write("design_maximum", "Finding the brightest pixel", "\n\n".join(parts), {"results": results})


def compared(curves: dict[str, Tensor]) -> list[str]:
    """Differences of the generators' regrets from the others'."""
    ours = [name for name in curves if name.endswith(("VAE", "GAN"))]
    rows = []
    for name in ours:
        for other in (o for o in (IMAGES, PROCESS, LEARNT) if o in curves):
            less = curves[name].mean(0) < curves[other].mean(0)
            # Nothing is below a regret of zero.
            done = (curves[name].mean(0) == 0) & (curves[other].mean(0) == 0)
            rows.append(
                [
                    name,
                    other,
                    *at_rounds(curves[name] - curves[other], "+"),
                    f"{int(less.sum())} of {ROUNDS - int(done.sum())}",
                ]
            )
    header = ["arm", "less", *(f"round {r}" for r in SHOWN), "rounds below"]
    return [table(header, rows)] if rows else []


def at_rounds(values: Tensor, sign: str = "") -> list[str]:
    """Means over images and their standard errors at the rounds shown."""
    some = values[:, [r - 1 for r in SHOWN]]
    errors = some.std(0) / len(some) ** 0.5
    return [f"{m:{sign}.4f} ± {e:.4f}" for m, e in zip(some.mean(0), errors, strict=True)]


def draw(results: dict[str, Any]) -> None:
    """Mean regrets, and in how many images the brightest pixel was found."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    regret, share = figure.subplots(1, 2)
    rounds = torch.arange(1, ROUNDS + 1)
    for name, found in results.items():
        curve = torch.tensor(found["regrets"])
        mean, error = curve.mean(0), curve.std(0) / len(curve) ** 0.5
        style = {"color": COLOURS[name], "ls": "--" if name.startswith("Thompson") else "-"}
        regret.plot(rounds, mean, ".", **style, label=name)
        regret.fill_between(
            rounds, (mean - error).clamp(min=1e-5), mean + error, color=COLOURS[name], alpha=0.15
        )
        if name not in REPEATS:
            share.plot(rounds, (curve == 0).double().mean(0), **style)
    for name, values in PUBLISHED.items():
        colour = "k" if name == IMAGES else COLOURS[f"{name}, VAE"]
        regret.plot(SHOWN, values, "x", color=colour, ms=5)
    regret.set(title="regret (x: published, with a VAE)", yscale="log", ylim=(1e-4, 0.5))
    share.set(title="share of images whose brightest pixel was seen", ylim=(0, 1.02))
    for ax in (regret, share):
        ax.set(xlabel="rounds of 10 pixels", xticks=[1, 5, 10, 15, 20])
    regret.legend(fontsize=7, ncols=2)
    figure.savefig(RESULTS / "papers" / "design_maximum.png", dpi=120)
