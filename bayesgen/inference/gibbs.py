"""Gibbs sampling with exact draws of Gaussian blocks."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import ModelError, OptionError
from bayesgen.gaussian_blocks import GaussianBlock, GaussianBlocks
from bayesgen.inference.base import Sampler
from bayesgen.inference.conditional import Given, Integrated, Rest
from bayesgen.inference.gaussian_draws import (
    BlockSystem,
    Solution,
    is_factorised,
    laplace_variances,
)
from bayesgen.inference.hmc import HMC
from bayesgen.inference.mala import MALA
from bayesgen.inference.nuts import NUTS
from bayesgen.inference.standardised import Standardised
from bayesgen.log_density import LogDensity
from bayesgen.types import Density, check_count


class GibbsState(NamedTuple):
    """Where the chains are.

    Attributes
    ----------
    position, log_prob
        Current points ``(*problems, chains, num_dims)`` and their log density.
    inner, told
        The inner sampler's state, whose positions are the coordinates that are in no block, and
        what its last step returned beside it; None if all coordinates are in blocks.
    """

    position: Tensor
    log_prob: Tensor
    inner: Any
    told: Any


class GibbsInfo(NamedTuple):
    """What is stored with every draw; all of shape ``(*problems, chains)``.

    Attributes
    ----------
    acceptance_rate, diverging, step_size, n_steps
        Of the inner sampler, see `bayesgen.inference.hmc.HMCInfo`; 1, false, NaN and 0 without.
    log_prob
        Log density after the step.
    solver_steps
        Conjugate-gradient steps that the draws of the blocks took; 0 where systems are factorised.
    solver_residual
        Largest relative residual that they left.
    """

    acceptance_rate: Tensor
    diverging: Tensor
    step_size: Tensor
    n_steps: Tensor
    log_prob: Tensor
    solver_steps: Tensor
    solver_residual: Tensor


@dataclass(frozen=True)
class Gibbs(Sampler):
    r"""Draws Gaussian sites exactly given the others, and moves the others by another sampler.

    A site u is drawn at once if its prior is normal and all that depends on it are residuals
    :math:`r = r_0 + B c` of normal sites, affine in its standardised coordinates c. Its law given
    the rest is that of the minimiser of a perturbed least-squares problem,

    .. math::
        \arg\min_c |c + \varepsilon_1|^2 + |B c + r_0 + \varepsilon_2|^2, \qquad
        \varepsilon_1, \varepsilon_2 \sim N(0, I) ,

    which takes a factorisation where B is constant and small, else conjugate gradients. Laplace
    priors count as normal ones of random variances :math:`\tau_i`, which are drawn first:
    :math:`1 / \tau_i \sim \mathrm{InverseGaussian}(1 / (b |u_i|), 1 / b^2)` for the scale b.
    Which sites qualify is found in the model and verified (`bayesgen.gaussian_blocks`); those that
    are Gaussian together are drawn together.

    Parameters
    ----------
    sampler
        Moves the other sites by one step: `bayesgen.inference.HMC` or another sampler whose state
        holds the gradient.
    collapsed
        Whether the other sites move with the block integrated out, given the :math:`\tau_i`, rather
        than with the block fixed, from which they can hardly part where it is pinned by the data.
        It takes one block with a B that does not depend on the other sites. The default is to do so
        where systems are factorised; elsewhere every gradient would take conjugate gradients.
    max_solver_steps
        Most conjugate-gradient steps of one solution. Their tolerance is 1e-5 in single and 1e-10
        in double precision, relative to the right-hand side.

    References
    ----------
    Papandreou and Yuille (2010), Gaussian sampling by local perturbations; Orieux, Feron and
    Giovannelli (2012), Sampling high-dimensional Gaussian distributions for general linear inverse
    problems; Park and Casella (2008), The Bayesian lasso; Bhattacharya, Chakraborty and Mallick
    (2016), Fast sampling with Gaussian scale mixture priors in high-dimensional regression.

    Examples
    --------
    >>> import pyro
    >>> import pyro.distributions as dist
    >>> import bayesgen as bg
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     u = pyro.sample("u", dist.Laplace(torch.zeros(2), 0.5).to_event(1))
    ...     pyro.sample("y", dist.Normal(z.tanh() + u, 0.2).to_event(1), obs=y)
    >>> y = torch.tensor([1.0, 3.0])
    >>> posterior = bg.infer(model, y, method=Gibbs(), draws=200, progress=False)
    >>> posterior.mean("u").shape
    torch.Size([2])
    """

    name = "gibbs"
    reference = "Papandreou and Yuille (2010), Gaussian sampling by local perturbations"

    sampler: Sampler = field(default_factory=HMC)
    collapsed: bool | None = None
    max_solver_steps: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, HMC | NUTS | MALA):
            raise OptionError(
                f"sampler: got {self.sampler!r}; expected HMC(), NUTS() or MALA(), which follow "
                "the blocks by their gradient and are exact"
            )
        if self.collapsed is not None and not isinstance(self.collapsed, bool):
            raise OptionError(f"collapsed: got {self.collapsed!r}; expected True, False or None")
        check_count("max_solver_steps", self.max_solver_steps)

    def init(self, log_density: Density, position: Tensor) -> GibbsState:
        """First state; looks for blocks, evaluates the density, starts the inner sampler.

        Raises
        ------
        ModelError
            If no site can be drawn exactly; the message says why, site by site.
        OptionError
            If the model does not allow ``collapsed``, or the inner sampler cannot be used.
        """
        density, blocks = _in_units(log_density), blocks_of(log_density)
        self._check(blocks)
        log_prob, _ = density.value_and_grad(position)
        if len(blocks.rest) == 0:
            return GibbsState(position, log_prob, None, None)
        rest: Rest = Given(density, blocks, position)
        if self._collapses(blocks):
            # The variances at their means given the block: a place to begin.
            block = blocks.groups[0]
            variances = block.whiten(position * density.units(position)).abs() + 1.0
            system = BlockSystem.of(block, variances, self.max_solver_steps)
            rest = Integrated(density, blocks, position, system)
        inner = self.sampler.init(rest, position[..., blocks.rest])
        return GibbsState(position, log_prob, inner, None)

    def step(
        self, log_density: Density, state: GibbsState, rng: torch.Generator
    ) -> tuple[GibbsState, GibbsInfo]:
        """A draw of every block, and one step of the inner sampler."""
        density, blocks = _in_units(log_density), blocks_of(log_density)
        solved: list[Solution] = []
        if self._collapses(blocks):
            # The rest with the block integrated out, then the block: a draw of both together.
            system = self._system(density, blocks.groups[0], state.position, rng)
            if state.inner is not None:
                rest = Integrated(density, blocks, state.position, system)
                state = self._move(rest, state, rng)
            state = _draw(density, system, state, rng, solved)
        else:
            for block in blocks.groups:
                system = self._system(density, block, state.position, rng)
                state = _draw(density, system, state, rng, solved)
            if state.inner is not None:
                state = self._move(Given(density, blocks, state.position), state, rng)
        if self._collapses(blocks) or state.inner is None:
            log_prob, _ = density.value_and_grad(state.position)
            state = state._replace(log_prob=log_prob)
        return state, self._info(state, solved)

    def combine(self, earlier: GibbsInfo, later: GibbsInfo) -> GibbsInfo:
        """Divergences of steps that thinning drops still count."""
        return later._replace(diverging=earlier.diverging | later.diverging)

    def adapt(self, state: GibbsState, info: GibbsInfo, iteration: int, warmup: int) -> GibbsState:
        """Warm-up of the inner sampler."""
        if state.inner is None:
            return state
        inner = self.sampler.adapt(state.inner, state.told, iteration, warmup)
        return state._replace(inner=inner)

    # -------------------------------------------------------------------------- parts of a step

    def _system(
        self, density: Standardised, block: GaussianBlock, position: Tensor, rng: torch.Generator
    ) -> BlockSystem:
        """The block's least-squares problem, after a draw of the variances of Laplace sites."""
        variances = torch.ones_like(position[..., block.coordinates])
        if bool(block.mixed.any()):
            variances = laplace_variances(block.whiten(position * density.units(position)), rng)
        return BlockSystem.of(block, variances, self.max_solver_steps)

    def _move(self, rest: Rest, state: GibbsState, rng: torch.Generator) -> GibbsState:
        """One step of the inner sampler in a density that has changed since its last."""
        log_prob, gradient = rest.value_and_grad(state.inner.position)
        inner = state.inner._replace(log_prob=log_prob, gradient=gradient)
        inner, told = self.sampler.step(rest, inner, rng)
        return GibbsState(rest.complete(inner.position), inner.log_prob, inner, told)

    def _info(self, state: GibbsState, solved: list[Solution]) -> GibbsInfo:
        ones, told = torch.ones_like(state.log_prob), state.told
        residual = torch.stack([found.residual for found in solved]).amax(0)
        if not bool((residual < 1e-3).all()):
            warnings.warn(
                f"gibbs: conjugate gradients left a residual of {float(residual.max()):.1e} after "
                f"{self.max_solver_steps} steps; draws are not exact (raise max_solver_steps)",
                RuntimeWarning,
                stacklevel=4,
            )
        return GibbsInfo(
            acceptance_rate=ones if told is None else told.acceptance_rate,
            diverging=ones < 0 if told is None else told.diverging,
            step_size=ones * math.nan if told is None else told.step_size,
            n_steps=0 * ones.long() if told is None else told.n_steps,
            log_prob=state.log_prob,
            solver_steps=ones.long() * sum(found.steps for found in solved),
            solver_residual=residual,
        )

    # -------------------------------------------------------------------------- what is possible

    def _collapses(self, blocks: GaussianBlocks) -> bool:
        if self.collapsed is not None:
            return self.collapsed
        return len(blocks.groups) == 1 and is_factorised(blocks.groups[0])

    def _check(self, blocks: GaussianBlocks) -> None:
        if not blocks:
            why = "; ".join(f"{name!r}: {reason}" for name, reason in blocks.refused.items())
            raise ModelError(
                f"model: it has no site that method 'gibbs' can draw exactly given the others. "
                f"{why}. Use another method, such as 'hmc'"
            )
        if self.collapsed and (len(blocks.groups) > 1 or not blocks.groups[0].is_constant):
            names = [list(block.sites) for block in blocks.groups]
            raise OptionError(
                f"collapsed: got True, but how the data depend on {' and '.join(map(str, names))} "
                "changes with the other sites; use collapsed=False"
            )


def _draw(
    density: Standardised,
    system: BlockSystem,
    state: GibbsState,
    rng: torch.Generator,
    solved: list[Solution],
) -> GibbsState:
    """The state with a block drawn given all else."""
    block, units = system.block, density.units(state.position)
    v = state.position * units
    found = system.draw(v, block.residual(v, torch.zeros_like(system.widths)), rng)
    density.count += 1 + found.steps
    solved.append(found)
    drawn = (block.colour(v, found.s) / units)[..., block.coordinates]
    position = state.position.index_copy(-1, block.coordinates, drawn)
    return state._replace(position=position)


def blocks_of(log_density: Density) -> GaussianBlocks:
    """The Gaussian blocks of the model behind a density.

    Raises
    ------
    ModelError
        If there is no model behind it.
    """
    model: Any = getattr(log_density, "log_density", log_density)
    if not isinstance(model, LogDensity):
        raise ModelError(
            f"log density: method 'gibbs' looks for Gaussian sites in a Pyro model; got "
            f"{type(model).__name__}. Use another method, such as 'hmc'"
        )
    return model.gaussian_blocks


def _in_units(log_density: Density) -> Standardised:
    """The density as methods see it; one that is no such thing is left in its own units."""
    if isinstance(log_density, Standardised):
        return log_density
    density = Standardised(log_density)
    density.scale = 1.0
    return density
