"""The unadjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import (
    DIVERGENCE,
    HMCState,
    check_target,
    hamiltonian_adapt,
    hamiltonian_init,
    hamiltonian_step,
)
from bayesgen.types import Density, check_positive


class Point(NamedTuple):
    """Where chains are: points ``(*problems, chains, n)``, their log density and its gradient."""

    position: Tensor
    log_prob: Tensor
    gradient: Tensor


class LangevinInfo(NamedTuple):
    """What is stored with every draw; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    acceptance_rate
        Probability with which a Metropolis test would have accepted the step. None is made; what
        is missing from 1 shows how strong the bias is.
    diverging
        Whether the step was so wrong that it was not taken: its log density was not finite, or
        the logarithm of that probability below -1000 - n.
    log_prob
        Log density of the draw.
    step_size
        Standard deviation of the noise, in units of the learnt scales.
    """

    acceptance_rate: Tensor
    diverging: Tensor
    log_prob: Tensor
    step_size: Tensor


class LangevinState(NamedTuple):
    """Where the chains are, and what has been learnt of the target.

    Attributes
    ----------
    position, log_prob
        What is recorded: points ``(*problems, chains, n)`` and their log densities.
    chain
        The chains, at the temperature, with their step size and scales.
    adjusted
        Whether steps are put to the Metropolis test, as in warm-up.
    """

    position: Tensor
    log_prob: Tensor
    chain: HMCState
    adjusted: bool


@dataclass(frozen=True)
class ULA(Sampler):
    r"""Langevin steps without a Metropolis test, preconditioned by the posterior variances.

    With :math:`h = e^2` and :math:`P` the diagonal of the posterior variances that warm-up learns,

    .. math:: v' = v + \tfrac{h}{2} P\, \nabla \log p(v)^{1/T} + \sqrt{h}\, P^{1/2} \xi .

    Every step moves, so no chain gets stuck, but the draws follow another law: on a Gaussian of
    precision :math:`\Lambda` (and T = 1) one with the right mean and the covariance
    :math:`(\Lambda - \tfrac{h}{4} \Lambda P \Lambda)^{-1}`. Warm-up steps are those of
    `bayesgen.inference.MALA`, so that the step size can be tuned to the test's acceptance; what
    follows drops the test. A step that the test would accept with a probability below
    :math:`e^{-1000 - n}` is not taken and marked as diverging, which keeps chains finite whose
    step is too large for them.

    Parameters
    ----------
    target_acceptance
        Mean acceptance of the test in warm-up. With the default 0.98 variances of a Gaussian end
        at most about 12 % too large; those of n independent ones 12, 6 and 4 % for n = 1, 5 and
        20. With 0.95 these are 22, 11 and 6 %, with 0.999 they are 1.5, 0.8 and 0.4 %.
    step_size
        First value of e, or the fixed one if there is no warm-up; found automatically by default.
    temperature
        T: draws follow :math:`p^{1/T}`, up to the bias. The iteration :math:`z - \eta \nabla U +
        \sqrt{2 c \eta}\, \xi` with a "noise factor" c is temperature c for :math:`p = e^{-U}`,
        ``step_size`` :math:`\sqrt{2 c \eta}` and P = 1: less noise than c = 1 is not a better
        sampler of the same posterior but samples a sharper one.
    denoise
        :math:`\delta^2`: record :math:`v + \delta^2 P \nabla \log p(v)^{1/T}`, one step without
        noise, in place of v; the chain goes on from v. Were p the density of a clean point plus
        Gaussian noise of variance :math:`\delta^2 P`, this would be the clean point's expectation
        (Tweedie's formula). It moves draws uphill, which often suits the eye; but their spread is
        no longer the posterior's. Costs a second evaluation. Off by default.
    adapt_mass
        Whether warm-up estimates the posterior variances, pooled over chains; else P = 1.

    References
    ----------
    Roberts and Tweedie (1996), Exponential convergence of Langevin distributions and their
    discrete approximations; Efron (2011), Tweedie's formula and selection bias.

    Examples
    --------
    >>> ULA(target_acceptance=0.99)
    ULA(target_acceptance=0.99, step_size=None, temperature=1.0, denoise=None, adapt_mass=True)
    """

    name = "ula"
    reference = "Roberts and Tweedie (1996), Exponential convergence of Langevin distributions"
    exact: ClassVar[bool] = False

    target_acceptance: float = 0.98
    step_size: float | None = None
    temperature: float = 1.0
    denoise: float | None = None
    adapt_mass: bool = True

    def __post_init__(self) -> None:
        check_target(self.target_acceptance)
        check_positive("step_size", self.step_size, allow_none=True)
        check_positive("temperature", self.temperature)
        check_positive("denoise", self.denoise, allow_none=True)

    def init(self, log_density: Density, position: Tensor) -> LangevinState:
        """First state; evaluates the density and, unless it is given, finds a step size."""
        density = _AtTemperature(log_density, self.temperature)
        chain = hamiltonian_init(density, position, self.step_size, self.target_acceptance)
        return LangevinState(position, chain.log_prob * self.temperature, chain, adjusted=False)

    def step(
        self, log_density: Density, state: LangevinState, rng: torch.Generator
    ) -> tuple[LangevinState, Any]:
        """One Langevin step; in warm-up with its Metropolis test."""
        density = _AtTemperature(log_density, self.temperature)
        if state.adjusted:
            chain, tested = hamiltonian_step(density, state.chain, rng, 1)
            log_prob = chain.log_prob * self.temperature
            return LangevinState(chain.position, log_prob, chain, adjusted=True), tested
        old = state.chain
        at = Point(old.position, old.log_prob, old.gradient)
        at, acceptance, diverging = unadjusted_step(
            density, at, old.step_size, old.inverse_mass, rng
        )
        chain = old._replace(**at._asdict())
        position, log_prob = at.position, at.log_prob * self.temperature
        if self.denoise is not None:
            position = position + self.denoise * chain.inverse_mass * at.gradient
            log_prob, _ = log_density.value_and_grad(position)
        step_size = chain.step_size[..., 0].expand_as(log_prob)
        info = LangevinInfo(acceptance, diverging, log_prob, step_size)
        return LangevinState(position, log_prob, chain, adjusted=False), info

    def combine(self, earlier: Any, later: Any) -> Any:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: LangevinState, info: Any, iteration: int, warmup: int) -> LangevinState:
        """Tune the step size and, at the ends of windows, the scales."""
        chain = hamiltonian_adapt(
            state.chain, info, iteration, warmup, self.target_acceptance, self.adapt_mass
        )
        return state._replace(chain=chain, adjusted=iteration < warmup - 1)


def unadjusted_step(
    log_density: Density, at: Point, step: Tensor, variances: Tensor, rng: torch.Generator
) -> tuple[Point, Tensor, Tensor]:
    """A Langevin step of every chain that it does not throw away.

    Parameters
    ----------
    log_density
        Its gradient is the drift; with that of a density near by, as proximal methods have, the
        ratio is still that of a right test.
    at
        Where the chains are.
    step, variances
        e and the diagonal of P; broadcast against positions.
    rng
        Of the noise.

    Returns
    -------
    at, acceptance_rate, diverging
        Where the chains are now, with which probability a Metropolis test would have accepted,
        and which did not move.
    """
    drawn = torch.randn(at.position.shape, generator=rng, dtype=step.dtype, device=rng.device)
    noise, spread = drawn.to(at.position.device), step * variances.sqrt()
    drift = 0.5 * step.square() * variances
    position = at.position + drift * at.gradient + spread * noise
    new = Point(position, *log_density.value_and_grad(position))
    # The noise that would lead back.
    back = (at.position - new.position - drift * new.gradient) / spread
    change = new.log_prob - at.log_prob + 0.5 * (noise.square() - back.square()).sum(-1)
    change = torch.where(torch.isfinite(change), change, -torch.inf)
    # What a stable step loses grows with the dimension, to at most a fraction of it.
    diverging = change < -DIVERGENCE - position.shape[-1]
    kept = Point(
        torch.where(diverging[..., None], at.position, new.position),
        torch.where(diverging, at.log_prob, new.log_prob),
        torch.where(diverging[..., None], at.gradient, new.gradient),
    )
    return kept, change.clamp(max=0.0).exp(), diverging


class _AtTemperature:
    """A log density divided by a temperature."""

    def __init__(self, log_density: Density, temperature: float) -> None:
        self.num_dims = log_density.num_dims
        self._log_density, self._temperature = log_density, temperature

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        value, gradient = self._log_density.value_and_grad(v, jacobian=jacobian)
        return value / self._temperature, gradient / self._temperature
