"""Cost of a value and gradient through `LogDensity`, over the same computation written by hand.

python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from report import interleaved, table, write
from torch import Tensor, nn

import bayesgen as bg

LATENT, ROWS, SIGMA = 16, 150, 0.1


class MatrixDecoder(nn.Module):
    """Two matrices: 16 -> 256 -> 784."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, 256), nn.ReLU(), nn.Linear(256, 784), nn.Sigmoid()
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).unflatten(-1, (28, 28))


class ConvolutionalDecoder(nn.Module):
    """Transposed convolutions: 7 x 7 x 32 -> 14 x 14 x 16 -> 28 x 28."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENT, 32 * 49)
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        batch = z.shape[:-1]
        image = self.layers(self.dense(z).reshape(-1, 32, 7, 7))
        return image.reshape(*batch, 28, 28)


class Decoder(bg.models.Generator):
    """A network as a generator."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__((28, 28), LATENT)
        self.network = network.requires_grad_(False)

    def decode(self, z: Tensor) -> Tensor:
        return self.network(z)


def by_hand(network: nn.Module, matrix: Tensor, y: Tensor) -> Callable[[Tensor], object]:
    """The same log density and gradient in plain torch, batched."""

    def value_and_grad(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        residual = (network(z).flatten(-2) @ matrix.T - y) / SIGMA
        value = -0.5 * (residual.square().sum(-1) + z.square().sum(-1))
        (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    return value_and_grad


def main() -> None:
    """Measure both decoders at several numbers of chains, one thread and two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    A = bg.operators.GaussianMatrix((28, 28), rows=ROWS, seed=0)
    y = torch.randn(ROWS)
    rows, results = [], {}
    for name, network in {"matrix": MatrixDecoder(), "convolution": ConvolutionalDecoder()}.items():
        G = Decoder(network)

        def model(y: Tensor, G: Decoder = G) -> None:
            z = pyro.sample("z", G.prior())
            x = pyro.deterministic("x", G(z))
            pyro.sample("y", dist.Normal(A(x), SIGMA).to_event(1), obs=y)

        log_density = bg.LogDensity(model, y)
        hand = by_hand(network, A.matrix, y)
        for chains in options.chains:
            z = torch.randn(chains, LATENT)
            seconds = interleaved(
                {
                    "ours": partial(log_density.value_and_grad, z),
                    "hand": partial(hand, z),
                }
            )
            ratio = seconds["ours"] / seconds["hand"]
            times = [f"{1e3 * seconds[key]:.3f}" for key in ("ours", "hand")]
            rows.append([name, chains, *times, f"{ratio:.2f}"])
            results[f"{name}, {chains} chains"] = {**seconds, "ratio": ratio}
    header = ["decoder", "chains", "LogDensity (ms)", "by hand (ms)", "ratio"]
    write("overhead", "Cost over hand-written torch", table(header, rows), results)


if __name__ == "__main__":
    main()
