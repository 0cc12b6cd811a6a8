"""A handwritten digit from 150 noisy random projections, and how far to trust each pixel.

The image has 784 pixels; a generator with 16 latent variables, trained on other digits, makes the
problem solvable. No generator draws every digit exactly, so the model adds a deviation ``u``, as
wide in every pixel as held-out digits differ from their encoding decoded. Writes
``compressed_sensing.png`` and a text verdict.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import bayesgen as bg

SIGMA = 0.1


def measure(A: bg.operators.Operator, truth: Tensor, seed: int) -> Tensor:
    """Simulated measurements: the projections of ``truth`` with Gaussian noise."""
    rng = torch.Generator().manual_seed(seed)
    return A(truth) + SIGMA * torch.randn(A.range_shape, generator=rng)


def psnr(estimate: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for intensities in [0, 1]."""
    return float(-10 * torch.log10((estimate - truth).square().mean()))


def main() -> None:
    """Simulate, infer, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--image", type=int, default=3, help="which shipped digit, 0 to 19")
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and sampler")
    options = parser.parse_args()

    G = bg.models.load("mnist-vae")
    A = bg.operators.GaussianMatrix((28, 28), rows=150, seed=0).normalised()
    images, labels = bg.datasets.mnist_samples()
    truth = images[options.image]
    y = measure(A, truth, options.seed)

    def model(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        u = pyro.sample("u", G.residual_prior())
        x = pyro.deterministic("x", G(z) + u)
        pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(1), obs=y)

    posterior = bg.infer(model, y, method="hmc", chains=8, draws=1000, seed=options.seed)

    low, high = posterior.interval("x", 0.9)
    inside = ((low <= truth) & (truth <= high)).float().mean()
    seconds = posterior.attributes["seconds"]
    print(f"A handwritten {int(labels[options.image])} from {len(y)} measurements of 784 pixels")
    print(f"PSNR of the posterior mean: {psnr(posterior.mean('x'), truth):.2f} dB")
    print(f"Pixels whose true value lies in their 90 % credible interval: {inside:.0%}")
    print(f"{posterior.num_chains * posterior.num_draws} draws in {seconds:.1f} s")
    print(posterior.summary())

    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "compressed_sensing.png"
    posterior.plot(truth=truth).savefig(picture, dpi=120)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
