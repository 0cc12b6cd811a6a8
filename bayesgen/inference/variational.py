"""Variational inference with Pyro's guides, one for every chain of every problem, in one batch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bayesgen.inference.base import Drawn, Population
from bayesgen.inference.guides import (
    GUIDES,
    Guide,
    Guides,
    Parameters,
    check_guide,
    make_guides,
)
from bayesgen.inference.pareto import log_volume, pareto_smoothed
from bayesgen.model_sites import isolated
from bayesgen.types import Density, check_count, check_positive

# Unknowns up to which a guide with all covariances is affordable.
_FULL = 100
# Fewest steps whose bounds and parameters are averaged; times the learning rate is divided by ten.
_WINDOW, _REDUCTIONS = 100, 2
# Stands for the log density of points outside the model's domain.
_OUTSIDE = -1e10


class Progress(NamedTuple):
    """What is known of the evidence bounds; tensors are of shape ``(*problems, chains)``.

    Attributes
    ----------
    steps, length
        Steps in this window, and how many it shall have.
    total, squares
        Sums of this window's bounds and their squares.
    mean, variance
        Of the last whole window, and the mean's variance; minus infinity before there is one.
    stalled
        Whether the bound has stopped rising at this learning rate.
    parameters
        Sum of this window's parameters.
    """

    steps: int
    length: int
    total: Tensor
    squares: Tensor
    mean: Tensor
    variance: Tensor
    stalled: Tensor
    parameters: Parameters


class VariationalState(NamedTuple):
    """Where the guides are.

    Attributes
    ----------
    position, log_prob
        A draw from each, ``(*problems, chains, 1, n)``, and its log density.
    guides, parameters, average
        The family; the parameters of every row; their mean over the last whole window.
    optimiser
        Adam's moments.
    reductions
        How often the learning rate has been divided by ten.
    progress
        What is known of the bounds.
    """

    position: Tensor
    log_prob: Tensor
    guides: Guides
    parameters: Parameters
    average: Parameters
    optimiser: dict[str, Any]
    reductions: int
    progress: Progress


class VariationalInfo(NamedTuple):
    """How a step went; of shape ``(*problems, chains)``.

    Attributes
    ----------
    elbo
        Estimate of the bound on the log evidence, in the units of the step.
    learning_rate
        Adam's.
    """

    elbo: Tensor
    learning_rate: Tensor


@dataclass(frozen=True)
class Variational(Population):
    r"""Fit a simple law q to the posterior, and draw from that: Pyro's SVI with its autoguides.

    The guide maximises the evidence lower bound :math:`E_q[\log p(v, y) - \log q(v)]` over the
    unconstrained space by Adam, until its mean over a hundred steps (more, where it is noisy) no
    longer rises; the learning rate is then divided by ten, twice, and the parameters of the last
    hundred steps are averaged.

    Draws follow q, not the posterior, and q tends to be too narrow and to hold one mode only. The
    statistic ``pareto_k`` tells: above 0.7 q is not to be trusted (Yao et al. 2018). ``elbo`` is
    the bound on the log evidence that was reached.

    Parameters
    ----------
    guide
        ``"normal"`` (independent coordinates), ``"multivariate"`` (all covariances), ``"low-rank"``
        (some of them), ``"iaf"`` (an autoregressive flow), or what makes a guide of a model, such
        as a class of `pyro.infer.autoguide`. ``"auto"``, the default, is multivariate up to 100
        unknowns and low-rank beyond.
    max_iterations
        Most steps; a bound that still rises then is told in a warning.
    learning_rate
        First one of Adam, in prior standard deviations.
    num_particles
        Draws of each guide a step evaluates.
    tolerance
        Rise of the mean bound, in nats from a hundred or more steps to the next, that counts as
        none.

    Notes
    -----
    Every chain of every problem has a guide of its own; their parameters are stacked and a step
    serves all. Guides of the user must therefore do without control flow on their parameters.

    References
    ----------
    Kucukelbir et al. (2017), Automatic differentiation variational inference; Kingma et al. (2016),
    Improved variational inference with inverse autoregressive flow; Dhaka et al. (2020), Robust,
    accurate stochastic optimization for variational inference (averaging); Yao, Vehtari, Simpson
    and Gelman (2018), Yes, but did it work?

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> import bayesgen as bg
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(z, 0.5), obs=y)
    >>> found = bg.infer(model, torch.tensor(1.0), method=Variational(), chains=1, progress=False)
    >>> abs(float(found.mean("z")) - 0.8) < 0.1  # exact: 1 / (1 + 0.25)
    True
    """

    name: ClassVar[str] = "svi"
    reference: ClassVar[str] = "Kucukelbir et al. (2017), Automatic differentiation VI"
    exact: ClassVar[bool] = False
    caveat: ClassVar[str] = "an approximation by the nearest law of a family"

    guide: Guide = "auto"
    max_iterations: int = 5000
    learning_rate: float = 0.05
    num_particles: int = 16
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        check_guide(self.guide, ("auto", *GUIDES))
        check_count("max_iterations", self.max_iterations)
        check_positive("learning_rate", self.learning_rate)
        check_count("num_particles", self.num_particles)
        check_positive("tolerance", self.tolerance)

    def num_starts(self, draws: int) -> int:
        """One, where the guide begins."""
        return 1

    def init(self, log_density: Density, position: Tensor) -> VariationalState:
        """Make a guide for each start ``(*problems, chains, 1, n)``."""
        guide = self.guide
        if guide == "auto":
            guide = "multivariate" if position.shape[-1] <= _FULL else "low-rank"
        log_prob, _ = log_density.value_and_grad(position)
        # Weights of flows begin at numbers of a fixed stream.
        guides, parameters = make_guides(guide, position.reshape(-1, position.shape[-1]), seed=0)
        progress = _fresh(parameters, log_prob[..., 0])
        return VariationalState(position, log_prob, guides, parameters, parameters, {}, 0, progress)

    def step(
        self, log_density: Density, state: VariationalState, rng: torch.Generator
    ) -> tuple[VariationalState, VariationalInfo]:
        """One step of Adam for every guide."""
        rate = self.learning_rate * 0.1**state.reductions
        climb = _Climb(log_density, state, self.num_particles, rng)
        parameters, optimiser = climb.step(rate)
        elbo = climb.log_ratio.mean(0).reshape(state.progress.total.shape)
        state = state._replace(
            position=climb.position[0].reshape(state.position.shape),
            log_prob=climb.log_prob[0].reshape(state.log_prob.shape),
            parameters=parameters,
            optimiser=optimiser,
        )
        return self._judge(state, elbo), VariationalInfo(elbo, torch.full_like(elbo, rate))

    def _judge(self, state: VariationalState, elbo: Tensor) -> VariationalState:
        """Count the step; at the end of a window, average, and lower the rate if all stall."""
        old, elbo = state.progress, elbo.double()
        summed = {name: old.parameters[name] + value for name, value in state.parameters.items()}
        steps, total, squares = old.steps + 1, old.total + elbo, old.squares + elbo.square()
        if steps < old.length:
            progress = old._replace(steps=steps, total=total, squares=squares, parameters=summed)
            return state._replace(progress=progress)
        mean = total / steps
        variance = (squares / steps - mean.square()).clamp(min=0.0) / steps
        rise, noise = mean - old.mean, (variance + old.variance).sqrt()
        stalled = old.stalled | (rise + noise <= self.tolerance)
        average = {name: value / steps for name, value in summed.items()}
        if bool(stalled.all()):
            fresh = _fresh(state.parameters, total)
            reductions = state.reductions + 1
            return state._replace(average=average, reductions=reductions, progress=fresh)
        # Where noise hides what happens, more steps will show it.
        hidden = not bool((~stalled & (rise > noise)).any())
        fresh = _fresh(state.parameters, total, 2 * steps if hidden else steps)
        progress = fresh._replace(mean=mean, variance=variance, stalled=stalled)
        return state._replace(average=average, progress=progress)

    def finished(self, state: VariationalState) -> bool:
        """Whether no bound rises any more, at any learning rate."""
        return state.reductions > _REDUCTIONS

    def draw(
        self, log_density: Density, state: VariationalState, draws: int, rng: torch.Generator
    ) -> Drawn:
        """Draws from the averaged guides."""
        if not self.finished(state):
            warnings.warn(
                f"{self.name}: the evidence bound still rose after {self.max_iterations} steps; "
                "raise max_iterations, or begin nearer to the posterior with start='map'",
                RuntimeWarning,
                stacklevel=2,
            )
        lead = state.position.shape[:-2]
        with torch.no_grad(), pyro.validation_enabled(False):
            v, log_q = state.guides.draw(state.average, draws, rng)
        v = v.transpose(0, 1).reshape(*lead, draws, v.shape[-1])
        log_prob, _ = log_density.value_and_grad(v)
        log_ratio = log_prob - log_q.transpose(0, 1).reshape(*lead, draws)
        log_ratio = log_ratio + log_volume(log_density, v)
        _, pareto_k = pareto_smoothed(log_ratio)
        facts = {"pareto_k": pareto_k, "elbo": log_ratio.mean(-1)}
        stats = {name: fact.unsqueeze(-1).expand(*lead, draws) for name, fact in facts.items()}
        return Drawn(v, log_prob, stats)


class _Climb:
    """One step of Pyro's SVI, after which nothing of it is left in Pyro's global state.

    The log density is evaluated beforehand, at the draws that the step will make: it may be a Pyro
    model itself, which must not run inside another.
    """

    def __init__(
        self,
        log_density: Density,
        state: VariationalState,
        num_particles: int,
        rng: torch.Generator,
    ) -> None:
        self.state, self.num_particles, self.device = state, num_particles, rng.device
        self.seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        with torch.no_grad(), pyro.validation_enabled(False):
            self.position, log_q = self._draw(state.parameters)
        self.log_prob, self.gradient = _evaluate(log_density, self.position, state.position)
        self.log_ratio = self.log_prob - log_q

    def _draw(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        rng = torch.Generator(self.device).manual_seed(self.seed)
        return self.state.guides.draw(parameters, self.num_particles, rng)

    def step(self, rate: float) -> tuple[Parameters, dict[str, Any]]:
        """The parameters after the step, and Adam's moments."""
        optimiser = PyroOptim(torch.optim.Adam, {"lr": rate})
        # Adam works in place.
        moments: dict[str, Any] = tree_map_only(Tensor, torch.clone, self.state.optimiser)
        for known in moments.values():
            known["param_groups"][0]["lr"] = rate
        optimiser.set_state(moments)
        loss = Trace_ELBO(self.num_particles, max_plate_nesting=1, vectorize_particles=True)
        with isolated(), pyro.validation_enabled(False), torch.enable_grad():
            pyro.clear_param_store()
            SVI(self._model, self._guide, optimiser, loss).step()
            store = pyro.get_param_store()
            parameters = {name: store[name].detach() for name in self.state.parameters}
            return parameters, optimiser.get_state()

    def _guide(self) -> None:
        fitted = {name: pyro.param(name, p.clone()) for name, p in self.state.parameters.items()}
        v, log_q = self._draw(fitted)
        pyro.sample("v", dist.Delta(v, log_q, event_dim=1))

    def _model(self) -> None:
        n = self.position.shape[-1]
        v = pyro.sample("v", dist.ImproperUniform(constraints.real_vector, (), (n,)))
        # Value and gradient of the log density at the draws.
        moved = (self.gradient * (v - v.detach())).sum(-1)
        pyro.factor("log_density", self.log_prob + moved)


def _evaluate(log_density: Density, v: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Log density and gradient at ``(particles, rows, n)``, rows being those of ``like``.

    Points outside its domain pull nowhere.
    """
    points = v.transpose(0, 1).reshape(*like.shape[:-2], *v.shape[::2])
    value, gradient = log_density.value_and_grad(points)
    inside = torch.isfinite(value) & torch.isfinite(gradient).all(-1)
    value = torch.where(inside, value, _OUTSIDE).reshape(v.shape[1], -1)
    gradient = torch.where(inside.unsqueeze(-1), gradient, 0.0).reshape(v.transpose(0, 1).shape)
    return value.T, gradient.transpose(0, 1)


def _fresh(parameters: Parameters, like: Tensor, length: int = _WINDOW) -> Progress:
    """An empty window, nothing being known of those before it."""
    zero = torch.zeros_like(like, dtype=torch.float64)
    never = torch.zeros_like(zero, dtype=torch.bool)
    none = {name: torch.zeros_like(value) for name, value in parameters.items()}
    return Progress(0, length, zero, zero, zero - torch.inf, zero, never, none)
