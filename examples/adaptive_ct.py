"""At which angle to measure next: tomography that chooses its angles, beside equispaced ones.

A stack of layers is measured one angle at a time, by noisy line integrals. Nobody knows which way
the layers lie; rays along them tell most. After each angle the posterior draws disagree on what the
others would show, and the next is the one whose data would tell most of the image. Equispaced
angles are the comparison, with the same image, noise, model and sampler. ``--object shapes`` has no
direction of its own: a disc and a rectangle, for which equispaced angles are hard to beat. Writes
``adaptive_ct.png`` and ``adaptive_ct.gif``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.design.plot import animate_loop
from bayesgen.plot import plot_image


class Object(NamedTuple):
    """What is looked at: images as a Pyro model, a true one, the noise, its brightest value."""

    image: Callable[[], Tensor]
    truth: Tensor
    sigma: float
    brightest: float


def layers(number: int) -> Object:
    """A laminate of unknown direction: the layers' brightnesses, linear in between, in a disc."""
    side, count = 32, 16
    grid = (torch.arange(side) - (side - 1) / 2) * (2 / side)
    y, x = torch.meshgrid(grid, grid, indexing="ij")

    def image() -> Tensor:
        direction = pyro.sample("direction", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        brightness = pyro.sample("layers", dist.Normal(torch.zeros(count), 1.5).to_event(1))
        across = (direction[0] * y + direction[1] * x) / direction.norm()
        place = ((across + 1.0) * ((count - 1) / 2)).flatten()
        below = place.detach().floor().clamp(0, count - 2)
        lower, upper = (brightness.sigmoid().gather(-1, (below + i).long()) for i in (0, 1))
        stack = (lower + (place - below) * (upper - lower)).unflatten(-1, (side, side))
        return pyro.deterministic("x", stack * (x.square() + y.square() <= 0.9))

    with torch.random.fork_rng():
        torch.manual_seed(number)
        return Object(image, image(), 0.4, 1.0)


def shapes(number: int) -> Object:
    """A disc and a rectangle, and a generator that knows such images."""
    G = bg.models.load("shapes-vae-10")

    def image() -> Tensor:
        return pyro.deterministic("x", G(pyro.sample("z", G.prior())))

    return Object(image, bg.datasets.shapes(number + 1, seed=1)[number], 1.0, 0.5)


OBJECTS = {"layers": layers, "shapes": shapes}


def psnr(estimate: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for the brightest intensity of the truth."""
    return float(10 * torch.log10(truth.max() ** 2 / (estimate - truth).square().mean()))


def report(loops: dict[str, bg.design.Loop], truth: Tensor) -> None:
    """A table of the rounds, and how many angles one way of choosing saves."""
    quality = {name: [psnr(r.mean, truth) for r in loops[name].records] for name in loops}
    print("angles" + "".join(f" | {name:>10}: PSNR  uncertainty  error" for name in loops))
    for number, records in enumerate(zip(*(loop.records for loop in loops.values()), strict=True)):
        cells = [
            f" | {psnr(r.mean, truth):13.2f} dB {r.uncertainty:11.4f} "
            f"{float((r.mean - truth).square().mean().sqrt()):7.4f}"
            for r in records
        ]
        print(f"{number + 1:6d}" + "".join(cells))
    (adaptive, equispaced), total = quality.values(), len(quality["adaptive"])
    enough = [k for k, value in enumerate(adaptive, start=1) if value >= equispaced[-1]]
    if enough:
        print(f"Adaptive angles reach the PSNR of {total} equispaced ones after {enough[0]}.")
    else:
        print(f"Adaptive angles do not reach the PSNR of {total} equispaced ones.")
    print("One image and one noise decide little: try --image and --seed.")


def picture(loops: dict[str, bg.design.Loop], shown: Object, path: Path) -> None:
    """Estimates, errors by number of angles, and the angles themselves."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
    truth, limits = shown.truth, (0.0, shown.brightest)
    plot_image(truth, ax=axes[0, 0], title="truth", limits=limits)
    for ax, (name, loop) in zip(axes[0, 1:], loops.items(), strict=True):
        mean = loop.records[-1].mean
        title = f"{name}, {len(loop.measured)} angles: {psnr(mean, truth):.1f} dB"
        plot_image(mean, ax=ax, title=title, limits=limits)
    titles = ("PSNR of the posterior mean, dB", "uncertainty", "angle in degrees")
    for ax, title in zip(axes[1], titles, strict=True):
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("angles measured", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for (name, loop), style in zip(loops.items(), ("o-", "s--"), strict=True):
        rounds = range(1, len(loop.records) + 1)
        degrees = 180 / loop.pool.num_candidates
        axes[1, 0].plot(rounds, [psnr(r.mean, truth) for r in loop.records], style, label=name)
        axes[1, 1].plot(rounds, [r.uncertainty for r in loop.records], style, label=name)
        axes[1, 2].plot(rounds, [degrees * i for i in loop.measured], style[0], label=name)
    axes[1, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure with both, report, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--object", choices=list(OBJECTS), default="layers", help="what is seen")
    parser.add_argument("--image", type=int, default=0, help="which of such images")
    parser.add_argument("--rounds", type=int, default=8, help="angles to measure")
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and sampler")
    parser.add_argument("--quick", action="store_true", help="two rough rounds, to try it out")
    options = parser.parse_args()
    rounds, particles = (2, 16) if options.quick else (options.rounds, 48)

    shown = OBJECTS[options.object](options.image)
    truth, sigma = shown.truth, shown.sigma
    pool = bg.design.Pool(bg.operators.Radon(tuple(truth.shape), angles=36))
    measure = bg.design.simulate(pool, truth, noise=sigma, seed=options.seed)

    def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
        pyro.sample("y", dist.Normal(A(shown.image()), sigma).to_event(2), obs=y)

    loops = {}
    for name, acquisition in {
        "adaptive": bg.design.InformationGain(),
        "equispaced": bg.design.Equispaced(total=rounds),
    }.items():
        loops[name] = bg.design.acquire(
            model,
            pool,
            measure,
            acquisition=acquisition,
            budget=rounds,
            noise=sigma,
            method=bg.inference.SMC(particles=particles),
            chains=2,
            draws=particles,
            seed=options.seed,
        )
        for record in loops[name]:
            print(f"{name}, {record}", flush=True)
    report(loops, truth)

    options.out.mkdir(parents=True, exist_ok=True)
    picture(loops, shown, options.out / "adaptive_ct.png")
    animate_loop(loops["adaptive"], options.out / "adaptive_ct.gif", truth=truth, fps=2)
    print(f"Pictures: {options.out / 'adaptive_ct.png'}, {options.out / 'adaptive_ct.gif'}")


if __name__ == "__main__":
    main()
