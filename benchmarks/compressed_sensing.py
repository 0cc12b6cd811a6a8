"""Compressed sensing of real digits: PSNR and time of MAP and of the posterior mean.

Protocol of Duff, Campbell and Ehrhardt: MNIST test images 100 to 199, 150 Gaussian measurements,
the matrix divided by its norm, noise 0.1, here independent for every image. Their best figure is
16.31 dB (hard constraint, VAE with 8 latents; printed as 22.33 with a data range of 2).

    python benchmarks/compressed_sensing.py --data FOLDER_WITH_MNIST
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from report import table, write
from torch import Tensor

import bayesgen as bg


def psnr(estimate: Tensor, truth: Tensor) -> Tensor:
    """PSNR of each image in dB, for intensities in [0, 1]."""
    return -10 * torch.log10((estimate - truth).square().flatten(1).mean(1))


def coverage(posterior: bg.Posterior, truth: Tensor) -> str:
    """Share of the pixels in doubt (standard deviation above 0.02) inside their 90 % interval."""
    if posterior.is_point_estimate:
        return "-"
    low, high = posterior.interval("x", 0.9)
    in_doubt = posterior.std("x") > 0.02
    return f"{((low <= truth) & (truth <= high))[in_doubt].float().mean():.0%}"


def main() -> None:
    """Run all images as one batch: MAP, and posterior means with and without a deviation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with the MNIST files")
    parser.add_argument("--model", default="mnist-vae", help="generator: a name or a file")
    parser.add_argument("--images", default="100:200", help="range of test images")
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--no-write", action="store_true", help="print, but keep no results")
    options = parser.parse_args()

    first, last = map(int, options.images.split(":"))
    truth = bg.datasets.mnist(options.data, "test")[first:last]
    G = bg.models.load(options.model)
    A = bg.operators.GaussianMatrix((28, 28), rows=options.rows, seed=0).normalised()
    rng = torch.Generator().manual_seed(1)
    y = A(truth) + options.sigma * torch.randn(len(truth), options.rows, generator=rng)

    def hard(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        x = pyro.deterministic("x", G(z))
        pyro.sample("y", dist.Normal(A(x), options.sigma).to_event(1), obs=y)

    def soft(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        u = pyro.sample("u", G.residual_prior())
        x = pyro.deterministic("x", G(z) + u)
        pyro.sample("y", dist.Normal(A(x), options.sigma).to_event(1), obs=y)

    def run(model: Any, estimate: str, **settings: Any) -> tuple[Tensor, float, bg.Posterior]:
        clock = time.perf_counter()
        posterior = bg.infer(model, y, batched=True, progress=False, **settings)
        image = posterior.mode("x") if estimate == "mode" else posterior.mean("x")
        seconds = time.perf_counter() - clock
        print(f"{model.__name__} {settings}: {seconds:.0f} s", flush=True)
        return psnr(image, truth), seconds, posterior

    sampler = {"chains": options.chains, "warmup": options.warmup, "draws": options.draws}
    arms = {
        "hard, MAP": run(hard, "mode", method="map", chains=options.chains),
        "hard, posterior mean from prior": run(hard, "mean", **sampler),
        "hard, posterior mean from MAP": run(hard, "mean", start="map", **sampler),
        "soft, posterior mean from prior": run(soft, "mean", **sampler),
    }
    count = len(truth)
    covered = {name: coverage(posterior, truth) for name, (_, _, posterior) in arms.items()}
    rows = [
        [name, f"{p.mean():.2f} ± {p.std():.2f}", f"{s / count:.2f}", covered[name]]
        for name, (p, s, _) in arms.items()
    ]
    header = ["estimate", "PSNR (dB, range 1)", "seconds an image", "90 % intervals cover"]
    text = table(header, rows)
    text += f"\n\n{count} images, m = {options.rows}, sigma = {options.sigma}; {sampler}.\n"
    for name, (_, _, posterior) in arms.items():
        text += f"\n{name}:\n\n```\n{posterior.summary()}\n```\n"
    results = {
        name: {
            "psnr": [round(float(v), 3) for v in p],
            "mean": float(p.mean()),
            "std": float(p.std()),
            "seconds": s,
            "coverage": covered[name],
            "evaluations": posterior.attributes["num_evaluations"],
        }
        for name, (p, s, posterior) in arms.items()
    }
    if options.no_write:
        print(text)
    else:
        title = "Compressed sensing of real digits"
        write(
            "compressed_sensing", title, text, {"options": vars(options) | {"data": ""}, **results}
        )


if __name__ == "__main__":
    main()
