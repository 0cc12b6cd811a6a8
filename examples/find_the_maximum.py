"""Where is the brightest pixel? Looking at few pixels, one after the other, to find out.

Half-bright digits lie over a ramp that rises in one of four directions, so that the brightest pixel
depends on both. After each pixel, posterior draws of a generator of such images say which pixel may
be the brightest: Thompson sampling looks where one draw is brightest, the upper confidence bound
(UCB) where mean and uncertainty together are highest. What counts is the regret, by how much the
brightest pixel is brighter than the brightest one looked at; pixels at random are the comparison.
Writes ``find_the_maximum.png`` and ``find_the_maximum.gif``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.design.plot import animate_loop
from bayesgen.plot import plot_image

NOISE = 0.02
# Of the model: the noise, and what the generator cannot draw.
SIGMA = 0.1
ACQUISITIONS: dict[str, bg.design.Acquisition] = {
    "Thompson": bg.design.Thompson(),
    "UCB": bg.design.UCB(kappa=2.0),
}


def regret(truth: Tensor, measured: list[int]) -> Tensor:
    """Brightest pixel of all less the brightest one looked at so far, ``(len(measured),)``."""
    return truth.max() - truth.flatten()[measured].cummax(0).values


def random_regret(truth: Tensor, rounds: int, seed: int) -> Tensor:
    """Mean regret of pixels in a thousand random orders, ``(rounds,)``: it needs no model."""
    rng = torch.Generator().manual_seed(seed)
    orders = torch.rand(1000, truth.numel(), generator=rng).argsort(1)[:, :rounds]
    return torch.stack([regret(truth, order.tolist()) for order in orders]).mean(0)


def picture(
    loops: dict[str, bg.design.Loop], truth: Tensor, regrets: dict[str, Tensor], path: Path
) -> None:
    """Where the first image was looked at, and mean regrets."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.3), layout="constrained")
    row, column = divmod(int(truth.argmax()), truth.shape[1])
    for ax, (name, loop) in zip(axes, loops.items(), strict=False):
        plot_image(
            truth, ax=ax, limits=(0.0, 1.0), title=f"{name}: pixels in order", colorbar=False
        )
        pixels = torch.tensor(loop.measured)
        seen = ax.scatter(
            pixels % 32, pixels // 32, s=16, c=range(1, len(pixels) + 1), cmap="viridis"
        )
        bar = figure.colorbar(
            seen, ax=ax, ticks=MaxNLocator(integer=True), fraction=0.046, pad=0.02
        )
        bar.ax.tick_params(labelsize=7)
        ax.plot(column, row, "o", color="C1", markersize=11, markerfacecolor="none")
    for (name, values), style in zip(regrets.items(), ("o-", "s-", "k:"), strict=True):
        axes[2].plot(range(1, len(values) + 1), values, style, markersize=3, label=name)
    axes[2].set_title("regret", fontsize=9)
    axes[2].set_xlabel("pixels looked at", fontsize=8)
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].set_ylim(bottom=0.0)
    axes[2].tick_params(labelsize=8)
    axes[2].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Look, report, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--images", type=int, default=2, help="how many of the 20 shipped digits")
    parser.add_argument("--rounds", type=int, default=12, help="pixels to look at")
    parser.add_argument("--seed", type=int, default=0, help="seed of ramps, noise and sampler")
    parser.add_argument("--quick", action="store_true", help="two rough rounds, to try it out")
    options = parser.parse_args()
    rounds, particles = (2, 16) if options.quick else (options.rounds, 32)

    G = bg.models.load("multi-gradient-vae")
    digits = bg.datasets.mnist_samples().images
    images = bg.datasets.multi_gradient_mnist(digits, seed=options.seed)
    images = images[: 1 if options.quick else options.images]
    pool = bg.design.Pool.pixels(G.image_shape)

    def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
        z = pyro.sample("z", G.prior())
        x = pyro.deterministic("x", G(z))
        pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(1), obs=y)

    def search(truth: Tensor, acquisition: bg.design.Acquisition) -> bg.design.Loop:
        loop = bg.design.acquire(
            model,
            pool,
            bg.design.simulate(pool, truth, noise=NOISE, seed=options.seed),
            acquisition=acquisition,
            budget=rounds,
            noise=SIGMA,
            method=bg.inference.SMC(particles=particles, max_moves=3),
            draws=particles,
            seed=options.seed,
        )
        list(loop)
        return loop

    runs = []
    for number, truth in enumerate(images):
        runs.append({name: search(truth, how) for name, how in ACQUISITIONS.items()})
        last = {name: float(regret(truth, loop.measured)[-1]) for name, loop in runs[-1].items()}
        print(f"image {number}: " + ", ".join(f"{name} {v:.3f}" for name, v in last.items()))
    regrets = {
        name: torch.stack(
            [regret(x, run[name].measured) for x, run in zip(images, runs, strict=True)]
        ).mean(0)
        for name in ACQUISITIONS
    }
    regrets["random"] = torch.stack([random_regret(x, rounds, options.seed) for x in images]).mean(
        0
    )

    print(f"Mean regret over {len(images)} images of {images[0].numel()} pixels")
    print("pixels" + "".join(f"{name:>11}" for name in regrets))
    for t in sorted({0, *range(1, rounds, 2), rounds - 1}):
        print(f"{t + 1:6d}" + "".join(f"{float(values[t]):11.3f}" for values in regrets.values()))

    options.out.mkdir(parents=True, exist_ok=True)
    picture(runs[0], images[0], regrets, options.out / "find_the_maximum.png")
    animate_loop(runs[0]["Thompson"], options.out / "find_the_maximum.gif", truth=images[0], fps=3)
    print(
        f"Pictures: {options.out / 'find_the_maximum.png'}, {options.out / 'find_the_maximum.gif'}"
    )


if __name__ == "__main__":
    main()
