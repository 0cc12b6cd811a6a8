"""At which angle to measure next: tomography that chooses its angles, beside equispaced ones.

A disc and a rectangle are measured one angle at a time, by noisy line integrals. After each, the
posterior draws of a generator of such images disagree on what the other angles would show; the next
angle is the one whose data would tell most of the image. Equispaced angles are the comparison, with
the same image, noise, model and sampler. They are a strong one: an even number of them holds both
directions of the rectangle's sides. Writes ``adaptive_ct.png`` and ``adaptive_ct.gif``.
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

# Of line integrals that are 5 where a ray crosses ten bright pixels.
SIGMA = 1.0


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


def picture(loops: dict[str, bg.design.Loop], truth: Tensor, path: Path) -> None:
    """Estimates, errors by number of angles, and the angles themselves."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
    plot_image(truth, ax=axes[0, 0], title="truth", limits=(0.0, 0.5))
    for ax, (name, loop) in zip(axes[0, 1:], loops.items(), strict=True):
        mean = loop.records[-1].mean
        title = f"{name}, {len(loop.measured)} angles: {psnr(mean, truth):.1f} dB"
        plot_image(mean, ax=ax, title=title, limits=(0.0, 0.5))
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
    parser.add_argument("--image", type=int, default=0, help="which test image")
    parser.add_argument("--rounds", type=int, default=6, help="angles to measure")
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and sampler")
    parser.add_argument("--quick", action="store_true", help="two rough rounds, to try it out")
    options = parser.parse_args()
    rounds, particles = (2, 16) if options.quick else (options.rounds, 48)

    G = bg.models.load("shapes-vae-10")
    truth = bg.datasets.shapes(options.image + 1, seed=1)[options.image]
    pool = bg.design.Pool(bg.operators.Radon((56, 56), angles=36))
    measure = bg.design.simulate(pool, truth, noise=SIGMA, seed=options.seed)

    def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
        z = pyro.sample("z", G.prior())
        x = pyro.deterministic("x", G(z))
        pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(2), obs=y)

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
            noise=SIGMA,
            method=bg.inference.SMC(particles=particles, max_moves=3),
            chains=2,
            draws=particles,
            seed=options.seed,
        )
        for record in loops[name]:
            print(f"{name}, {record}", flush=True)
    report(loops, truth)

    options.out.mkdir(parents=True, exist_ok=True)
    picture(loops, truth, options.out / "adaptive_ct.png")
    animate_loop(loops["adaptive"], options.out / "adaptive_ct.gif", truth=truth, fps=2)
    print(f"Pictures: {options.out / 'adaptive_ct.png'}, {options.out / 'adaptive_ct.gif'}")


if __name__ == "__main__":
    main()
