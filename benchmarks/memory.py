"""Peak memory of image statistics as the number of draws grows.

python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import pyro
import pyro.distributions as dist
import torch
from report import table, write
from torch import Tensor

import bayesgen as bg

SIZE, LATENT, CHAINS = 128, 8, 64


class Linear(bg.models.Generator):
    """A linear generator of 128 x 128 images."""

    def __init__(self) -> None:
        super().__init__((SIZE, SIZE), LATENT)
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("basis", torch.randn(LATENT, SIZE * SIZE, generator=rng))

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.basis).unflatten(-1, (SIZE, SIZE))


def run(draws: int) -> None:
    """Sample, ask for mean, spread and interval, and print the peak resident memory in MiB."""
    torch.set_num_threads(1)
    G = Linear()
    A = bg.operators.Mask(torch.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 997 == 0)
    y = torch.zeros(A.range_shape)

    def model(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        x = pyro.deterministic("x", G(z))
        pyro.sample("y", dist.Normal(A(x), 1.0).to_event(1), obs=y)

    posterior = bg.infer(model, y, chains=CHAINS, draws=draws, warmup=50, progress=False)
    posterior.mean("x"), posterior.std("x"), posterior.interval("x")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure in a fresh process for each number of draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run)
        return
    rows, results = [], {}
    for draws in options.draws:
        command = [sys.executable, __file__, "--run", str(draws)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak = float(output.strip().splitlines()[-1])
        latents = 4 * CHAINS * draws * LATENT / 2**20
        images = 4 * CHAINS * draws * SIZE**2 / 2**20
        rows.append([draws, f"{peak:.0f}", f"{latents:.1f}", f"{images:.0f}"])
        results[str(draws)] = {"peak_mib": peak, "latents_mib": latents, "images_mib": images}
    header = ["draws a chain", "peak (MiB)", "latents (MiB)", "all images would be (MiB)"]
    text = table(header, rows) + f"\n\n{CHAINS} chains, {SIZE} x {SIZE} pixels, one process each."
    write("memory", "Peak memory of image statistics", text, results)


if __name__ == "__main__":
    main()
