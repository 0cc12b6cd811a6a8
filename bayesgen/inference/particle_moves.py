"""How a population of particles moves: kernels that leave its tempered law invariant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.hmc import HMCState, _like, count_steps, hamiltonian_step
from bayesgen.inference.tempering import Tempered, after_move
from bayesgen.types import Split

# Degrees of freedom of the law that gradient-free proposals keep; tails heavier than the
# posterior's keep the ratio of the two bounded.
_FREEDOM = 5
# Longest trajectory in standard deviations: half of it to all of it, a normal law forgets where it
# began.
_LONGEST = 0.75 * math.pi

Move = Callable[[Tempered, HMCState, Split, torch.Generator, int], tuple[HMCState, Split, Tensor]]


class Kernel(NamedTuple):
    """One way to move.

    Attributes
    ----------
    move
        From the tempered law, particles ``(*populations, N, n)``, their prior and likelihood, a
        generator and a number of evaluations to the new particles, their prior and likelihood,
        and the mean acceptance ``(*populations,)``.
    target
        Mean acceptance that its step is best tuned to.
    largest
        Its largest step.
    """

    move: Move
    target: float
    largest: float


def hamiltonian(
    tempered: Tempered, particles: HMCState, split: Split, rng: torch.Generator, leapfrog: int
) -> tuple[HMCState, Split, Tensor]:
    """One trajectory; its random length keeps oscillations from coming back to where they began."""
    most = count_steps(particles, _LONGEST, leapfrog)
    fraction = 0.5 + 0.5 * float(torch.rand((), generator=rng, device=rng.device))
    count = (fraction * most).ceil().long()
    new, info = hamiltonian_step(tempered, particles, rng, count)
    split = after_move(particles.position, new.position, split, tempered.last)
    return new, split, info.acceptance_rate.mean(-1)


def crank_nicolson(
    tempered: Tempered, particles: HMCState, split: Split, rng: torch.Generator, proposals: int
) -> tuple[HMCState, Split, Tensor]:
    """Gradient-free proposals, reversible for a Student law with the particles' moments.

    With its scale drawn given the particle, the Student law is normal, and the proposal is that
    of Crank and Nicolson for this normal law. Each half of the particles takes its law from the
    other half: a law that a particle had helped to fit would hold it back.

    References
    ----------
    Grumitt, Karamanis and Seljak (2024), *Sequential Kalman tuning of the t-preconditioned
    Crank-Nicolson algorithm*.
    """
    size, n = particles.step_size, particles.position.shape[-1]
    laws = [_normal_law(half, particles.inverse_mass) for half in _halves(particles.position)][::-1]
    total = torch.zeros_like(size[..., 0, 0])
    for _ in range(proposals):
        parts = zip(_halves(particles.position), laws, strict=True)
        whitened = torch.cat([_whitened(half, *law) for half, law in parts], -2)
        distance = whitened.square().sum(-1, keepdim=True)
        squares = _normal((*distance.shape[:-1], n + _FREEDOM), whitened, rng).square()
        scale = ((_FREEDOM + distance) / squares.sum(-1, keepdim=True)).sqrt()
        noise = scale * _normal(whitened.shape, whitened, rng)
        proposal = (1.0 - size.square()).clamp(min=0.0).sqrt() * whitened + size * noise
        parts = zip(_halves(proposal), laws, strict=True)
        position = torch.cat([mean + half @ factor.mT for half, (mean, factor) in parts], -2)
        log_prob, gradient = tempered.value_and_grad(position)
        change = log_prob - particles.log_prob
        change = change + _student(distance, n) - _student(proposal.square().sum(-1, True), n)
        change = torch.where(torch.isfinite(change), change, -math.inf)
        accepted = _like(torch.rand, change, rng).log() < change
        total = total + change.clamp(max=0.0).exp().mean(-1) / proposals
        moved = accepted[..., None]
        new = particles._replace(
            position=torch.where(moved, position, particles.position),
            log_prob=torch.where(accepted, log_prob, particles.log_prob),
            gradient=torch.where(moved, gradient, particles.gradient),
        )
        split = after_move(particles.position, new.position, split, tempered.last)
        particles = new
    return particles, split, total


def _halves(values: Tensor) -> tuple[Tensor, ...]:
    return values.tensor_split(2, dim=-2)


def _normal_law(position: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of particles and triangular factor of their covariance."""
    num, n = position.shape[-2:]
    mean = position.mean(-2, keepdim=True)
    centred = position - mean
    # Fewer particles than coordinates alone would give no invertible matrix.
    own = torch.diag_embed(variance[..., 0, :])
    return mean, torch.linalg.cholesky((centred.mT @ centred + n * own) / (num + n))


def _whitened(position: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, (position - mean).mT, upper=False).mT


def _student(distance: Tensor, n: int) -> Tensor:
    """Log density of the Student law but for a constant, from squared distances ``(..., 1)``."""
    return -0.5 * (_FREEDOM + n) * (distance[..., 0] / _FREEDOM).log1p()


def _normal(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    return _like(torch.randn, like.new_empty(shape), rng)


KERNELS = {
    "hmc": Kernel(hamiltonian, 0.7, math.inf),
    "pcn": Kernel(crank_nicolson, 0.25, 1.0),
}
