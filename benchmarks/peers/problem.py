"""The posterior that all samplers are given, and what each of them returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import bayesgen as bg
from bayesgen.log_density import LogDensity

SIGMA, ROWS, DIGIT = 0.1, 150, 3


@dataclass(frozen=True)
class Outcome:
    """What a sampler took, and what it gave.

    Attributes
    ----------
    draws
        ``(chains, draws, n)``.
    compiling, warmup, sampling
        Wall seconds of each phase.
    warmup_gradients, gradients
        Gradients of the log density that were asked for in warm-up and in sampling, each of one
        point.
    busy
        Processor seconds by wall seconds, over all phases.
    """

    draws: np.ndarray
    compiling: float
    warmup: float
    sampling: float
    warmup_gradients: int
    gradients: int
    busy: float


class Clock:
    """Wall seconds between laps, and how busy the processor was since the start."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.processor = time.process_time()

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self.last = self.last, time.perf_counter()
        return self.last - last

    @property
    def busy(self) -> float:
        """Processor seconds by wall seconds."""
        return (time.process_time() - self.processor) / (time.perf_counter() - self.start)


class Problem:
    """Compressed sensing of a digit with a decoder as prior.

    Attributes
    ----------
    G, A
        Generator and operator.
    y
        Data.
    layers
        The decoder from ``(*batch, 16)`` to ``(*batch, 784)``: plain layers without checks.
    matrix
        The operator as a matrix ``(150, 784)``.
    """

    def __init__(self) -> None:
        self.G = bg.models.load("mnist-vae")
        self.A = bg.operators.GaussianMatrix((28, 28), rows=ROWS, seed=0).normalised()
        self.layers: nn.Sequential = self.G.decoder.requires_grad_(False)
        pixels = torch.eye(28 * 28).reshape(-1, 28, 28)
        self.matrix = self.A(pixels).T.contiguous()
        clean = self.A(bg.datasets.mnist_samples().images[DIGIT])
        self.y = clean + SIGMA * torch.randn(ROWS, generator=torch.Generator().manual_seed(0))

    def model(self, y: Tensor) -> None:
        """As a user of bayesgen writes it."""
        z = pyro.sample("z", self.G.prior())
        pyro.sample("y", dist.Normal(self.A(self.G(z)), SIGMA).to_event(1), obs=y)

    def plain_model(self, y: Tensor) -> None:
        """The same without the checks of generators and operators, which Pyro would run each time.

        A vector of latent coordinates at a time, as Pyro's samplers evaluate it.
        """
        prior = dist.Normal(torch.zeros(self.num_dims), 1.0)
        z = pyro.sample("z", prior.to_event(1))
        pyro.sample("y", dist.Normal(self.layers(z) @ self.matrix.T, SIGMA).to_event(1), obs=y)

    @property
    def num_dims(self) -> int:
        """Latent coordinates."""
        return self.G.latent_dim

    @cached_property
    def optimum(self) -> Tensor:
        """The mode: prior draws, of which none but a few climb to it, would time luck."""
        found = bg.infer(self.model, self.y, method="map", chains=32, progress=False)
        return found.mode("z")

    def starts(self, chains: int) -> Tensor:
        """Points about the mode, ``(chains, n)``, half a posterior standard deviation from it."""
        rng = torch.Generator().manual_seed(1)
        return self.optimum + 0.1 * torch.randn(chains, self.num_dims, generator=rng)

    def points(self, num: int = 100) -> Tensor:
        """Random points, from close to the mode to draws from the prior, ``(num, n)``."""
        rng = torch.Generator().manual_seed(2)
        noise = torch.randn(num, self.num_dims, generator=rng)
        weight = torch.linspace(0.0, 1.0, num)[:, None]
        return (1 - weight) * (self.optimum + 0.2 * noise) + weight * noise

    @cached_property
    def exact(self) -> tuple[Tensor, Tensor]:
        """Terms of the log density, and its gradient, at `points` in double precision."""
        layers = bg.models.load("mnist-vae").decoder.double()
        z = self.points().double().requires_grad_()
        residual = self.y.double() - layers(z) @ self.matrix.double().T
        laws = (z, 1.0), (residual, SIGMA)
        terms = torch.cat([dist.Normal(0.0 * v, scale).log_prob(v) for v, scale in laws], -1)
        (gradient,) = torch.autograd.grad(terms.sum(), z)
        return terms.detach(), gradient

    def errors(self, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Largest errors of values and gradients at `points`.

        Relative to the sum of magnitudes of a value's terms, and to the length of a gradient.
        """
        value, gradient = (part.double() for part in evaluate(self.points()))
        terms, exact = self.exact
        of_value = (value - terms.sum(-1)).abs() / terms.abs().sum(-1)
        of_gradient = (gradient - exact).norm(dim=-1) / exact.norm(dim=-1)
        return float(of_value.max()), float(of_gradient.max())

    def density_errors(self) -> dict[str, tuple[float, float]]:
        """`errors` of both forms of the model through our log density."""
        models = {"bayesgen": self.model, "Pyro": self.plain_model}
        return {
            name: self.errors(LogDensity(model, self.y).value_and_grad)
            for name, model in models.items()
        }
