"""Empirical Bayes: the hyper-parameters under which the data are most probable."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.datasets.draws import seeded
from bayesgen.errors import DtypeError, ModelError, OptionError
from bayesgen.inference import HMC, MALA, Method, as_method
from bayesgen.inference.adaptation import DualAveraging, PooledVariance
from bayesgen.inference.hmc import HMCState
from bayesgen.model_sites import Model
from bayesgen.operators.inputs import as_positive
from bayesgen.types import check_count, strict_options
from bayesgen.weights.joint import Joint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Exponent of the decreasing steps (Vidal et al. 2020, section 3.3).
DECAY = 0.8
# Largest change of a logarithm in one iteration; chains can follow a factor of 1.6.
LONGEST = 0.5
# Weight of the newest curvature in its running mean while steps are full.
MEMORY = 0.1
# Between default bounds and start.
REACH = 1000.0
# Of a logarithm over the last quarter, beyond which it is not at rest, however uncertain.
DRIFT = 0.1


@dataclass(frozen=True, eq=False)
class EmpiricalBayes:
    """The hyper-parameters that were found, and the way to them.

    Attributes
    ----------
    parameters
        Hyper-parameter -> estimate: the exponential of the mean logarithm over the last
        ``averaged`` iterations.
    standard_errors
        How far the estimates would spread over data sets, from the curvature of the marginal
        likelihood; NaN where it has no maximum inside the bounds. Chance in the chains is not part
        of it.
    path
        Hyper-parameter -> its values, double precision, ``(iterations,)``.
    averaged
        Iterations at the end that were averaged.

    Examples
    --------
    >>> path = {"sigma": torch.tensor([0.4, 0.2, 0.1, 0.1])}
    >>> EmpiricalBayes({"sigma": 0.1}, {"sigma": 0.01}, path, averaged=2)
    EmpiricalBayes(parameters={'sigma': 0.1}, standard_errors={'sigma': 0.01}, averaged=2)
    """

    parameters: dict[str, float]
    standard_errors: dict[str, float]
    path: dict[str, Tensor] = field(repr=False)
    averaged: int

    def plot(self) -> Figure:
        """Hyper-parameters against iterations, with the estimates and what they are means of.

        Returns
        -------
        matplotlib.figure.Figure
        """
        import matplotlib.pyplot as plt

        size = (4.5, 0.8 + 2.0 * len(self.path))
        figure, axes = plt.subplots(
            len(self.path), sharex=True, squeeze=False, figsize=size, layout="constrained"
        )
        for ax, (name, values) in zip(axes[:, 0], self.path.items(), strict=True):
            ax.plot(values.numpy(), linewidth=1)
            ax.axvspan(len(values) - self.averaged, len(values), color="0.9", label="averaged")
            estimate = self.parameters[name]
            ax.axhline(estimate, color="C1", linestyle="--", label=f"estimate {estimate:.3g}")
            ax.set_yscale("log")
            ax.set_ylabel(name)
            ax.legend(fontsize=8)
        axes[-1, 0].set_xlabel("iteration")
        return figure


@strict_options
def empirical_bayes(
    model: Model,
    *args: Any,
    start: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]] | None = None,
    chains: int = 8,
    warmup: int = 200,
    iterations: int = 800,
    method: str | Method | None = None,
    seed: int = 0,
) -> EmpiricalBayes:
    r"""Maximise the marginal likelihood of a model over its hyper-parameters.

    .. math::
        \hat\theta = \arg\max_\theta p(y | \theta), \qquad
        \nabla_\theta \log p(y | \theta)
            = \mathrm{E}_{v | y, \theta} \nabla_\theta \log p(y, v | \theta).

    The expectation (Fisher's identity) is the mean over Markov chains that make one transition an
    iteration, at the current :math:`\theta`. Iteration k of n moves :math:`\log \theta_i` by

    .. math::
        \delta_k \frac{\partial \log p(y | \theta) / \partial \log \theta_i}{H_i}, \qquad
        \delta_k = \max(1, 4 k / n)^{-0.8},

    where :math:`H_i` is a running mean of the complete data's information,
    :math:`-\partial^2 \log p(y, v | \theta) / \partial (\log \theta_i)^2`.

    Parameters
    ----------
    model
        A Python function with ``pyro.sample`` statements, all densities with their normalising
        constants: what depends on the hyper-parameters cannot be left out.
    *args
        Its arguments but for the hyper-parameters: one data set.
    start
        Argument of the model -> first value. The model gets tensors of shape ``()``, with the dtype
        and device of the data. Prefer large standard deviations: from one that is far too small for
        the data to matter, the way up is long.
    bounds
        Hyper-parameter -> (smallest, largest); by default a thousandth and a thousand times the
        start.
    chains
        Their mean gradient is followed. They cost less than proportionally.
    warmup
        Transitions at the start's values, which bring the chains to the posterior.
    iterations
        The first quarter takes full steps, and adapts the kernel again on the way; the last half is
        averaged.
    method
        ``"hmc"``, ``"mala"`` or an instance. The default is HMC of at most 10 leapfrog steps: the
        chains need not forget their position in one iteration.
    seed
        Of all randomness. The global random state is neither read nor changed.

    Returns
    -------
    EmpiricalBayes
        Estimates, their standard errors, and the path.

    Raises
    ------
    OptionError, UnknownOptionError
        If ``start`` or ``bounds`` are not as described, or another option is not allowed.
    ModelError
        If the model does not depend on a hyper-parameter, or its density is not finite.
    ModelError, ShapeError, DtypeError, DataError
        If the model or its data cannot be used; see `bayesgen.LogDensity`.

    Warns
    -----
    RuntimeWarning
        If an estimate is at a bound, where there is no maximum, or is still on the move.

    Notes
    -----
    With one hyper-parameter a full step is that of the EM gradient algorithm (Lange 1995), which
    does not overshoot near a maximum, however many pixels and data there are. The standard errors
    are from Louis' identity: the information of the data is the mean information of the complete
    data less the posterior covariance of their gradient. Supports may not depend on
    hyper-parameters.

    References
    ----------
    Vidal, De Bortoli, Pereyra and Durmus (2020), Maximum likelihood estimation of regularisation
    parameters in high-dimensional inverse problems: an empirical Bayesian approach, algorithm 1;
    Polyak and Juditsky (1992), on averaging; Louis (1982), Finding the observed information matrix
    when using the EM algorithm; Lange (1995), A gradient algorithm locally equivalent to the EM
    algorithm.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> def model(y, scale):
    ...     x = pyro.sample("x", dist.Normal(torch.zeros(100), scale).to_event(1))
    ...     pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> y = 5.0 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    >>> found = empirical_bayes(model, y, start={"scale": 1.0}, warmup=50, iterations=150)
    >>> exact = (float(y.square().mean()) - 1.0) ** 0.5
    >>> abs(found.parameters["scale"] / exact - 1) < 0.02
    True
    """
    values = _as_start(model, start)
    bottom, top = _as_bounds(bounds, values)
    for option, count, least in (("chains", chains, 1), ("warmup", warmup, 0)):
        check_count(option, count, minimum=least)
    check_count("iterations", iterations, minimum=8)
    kernel, rng = _as_kernel(method), seeded(seed)
    joint = Joint(model, args, values)
    state = _warm_up(joint, kernel, chains, warmup, rng)
    steps = _ascend(joint, kernel, state, iterations, (bottom, top), rng)
    averaged = iterations // 2
    path = torch.stack([step.place for step in steps])
    estimate = path[-averaged:].mean(0)
    errors = _standard_errors(steps[-averaged:], estimate)
    _warn(joint.names, path[-averaged:], errors, (bottom, top))
    return EmpiricalBayes(
        parameters=dict(zip(values, estimate.exp().tolist(), strict=True)),
        # Those of a logarithm are relative.
        standard_errors=dict(zip(values, (errors * estimate.exp()).tolist(), strict=True)),
        path=dict(zip(values, path.exp().unbind(1), strict=True)),
        averaged=averaged,
    )


class _Step(NamedTuple):
    """Where an iteration was, in log theta, and the derivatives that it found there."""

    place: Tensor
    gradients: Tensor
    information: Tensor


def _warm_up(
    joint: Joint, kernel: HMC | MALA, chains: int, warmup: int, rng: torch.Generator
) -> HMCState:
    density = joint.standardised
    start = joint.density.prior_draws(chains, rng) / density.scale
    state = kernel.init(density, start)
    if not bool(torch.isfinite(state.log_prob).all()):
        raise ModelError(
            "start: the log density is not finite at draws from the prior; check the model's "
            "scales, and the first values"
        )
    levels = []
    for i in range(warmup):
        state, info = kernel.step(density, state, rng)
        state = kernel.adapt(state, info, i, warmup)
        levels.append(state.log_prob)
    # From here one step size, and estimates that start afresh.
    step = state.step_size.log().mean(-2, keepdim=True).exp()
    averaging, variance = DualAveraging.start(step), PooledVariance.start(state.position)
    state = state._replace(step_size=step, averaging=averaging, variance=variance)
    return _regroup(state, levels, rng)


def _regroup(state: HMCState, levels: list[Tensor], rng: torch.Generator) -> HMCState:
    """Draw chains anew from among them, by their mean log density of late.

    The posteriors of generators have modes that differ by tens in log density, and chains that do
    not leave the lesser ones. Within a mode it does no harm: copies part again.
    """
    if not levels:
        return state
    mean = torch.stack(levels[len(levels) // 2 :]).double().mean(0).cpu()
    chosen = torch.multinomial(mean.softmax(0), len(mean), replacement=True, generator=rng)
    position, log_prob, gradient = (part[chosen.to(part.device)] for part in state[:3])
    return state._replace(position=position, log_prob=log_prob, gradient=gradient)


def _ascend(
    joint: Joint,
    kernel: HMC | MALA,
    state: HMCState,
    iterations: int,
    bounds: tuple[Tensor, Tensor],
    rng: torch.Generator,
) -> list[_Step]:
    """Stochastic approximation; algorithm 1 of Vidal et al., in log theta, with scaled steps."""
    full = iterations // 4
    place = torch.stack(joint.hyper).double().cpu().log()
    running: Tensor | None = None
    steps, levels = [], []
    for k in range(1, iterations + 1):
        state, info = kernel.step(joint.standardised, state, rng)
        if k <= full:
            state = kernel.adapt(state, info, k - 1, full)
            levels.append(state.log_prob)
            state = _regroup(state, levels, rng) if k == full else state
        else:
            miss = float(info.acceptance_rate.mean()) - kernel.target_acceptance
            factor = math.exp((k - full) ** -DECAY * miss)
            state = state._replace(step_size=state.step_size * factor)
        gradients, information = joint.derivatives(state.position)
        gradient, curvature = gradients.mean(0), information.diagonal()
        if not bool(torch.isfinite(gradient).all() & torch.isfinite(curvature).all()):
            values = dict(zip(joint.names, place.exp().tolist(), strict=True))
            raise ModelError(f"model: derivatives of its density are not finite at {values}")
        steps.append(_Step(place, gradients, information))
        length = max(1.0, k / full) ** -DECAY
        running = (
            curvature if running is None else running + MEMORY * length * (curvature - running)
        )
        change = (gradient / running.abs().clamp(min=1e-300)).clamp(-LONGEST, LONGEST)
        place = (place + length * change).clamp(*bounds)
        joint.set(place)
        log_prob, slope = joint.standardised.value_and_grad(state.position)
        state = state._replace(log_prob=log_prob, gradient=slope)
    return steps


def _standard_errors(steps: list[_Step], estimate: Tensor) -> Tensor:
    """Of the logarithms, by Louis' identity; NaN if the information is not positive."""
    # The gradients belong to other places; to first order the information moves them.
    moved = [s.gradients + s.information @ (s.place - estimate) for s in steps]
    complete = torch.stack([s.information for s in steps]).mean(0)
    missing = torch.cov(torch.cat(moved).T).reshape(complete.shape)
    values, vectors = torch.linalg.eigh(complete - missing)
    if not bool((values > 0).all()):
        return torch.full_like(estimate, math.nan)
    return (vectors.square() / values).sum(1).sqrt()


def _warn(names: list[str], tail: Tensor, errors: Tensor, bounds: tuple[Tensor, Tensor]) -> None:
    """Say which estimates are none."""
    half = len(tail) // 2
    drift = (tail[half:].mean(0) - tail[:half].mean(0)).abs()
    for i, name in enumerate(names):
        value = math.exp(float(tail[:, i].mean()))
        problem = ""
        if bool((tail[half:, i] <= bounds[0][i]).any() | (tail[half:, i] >= bounds[1][i]).any()):
            problem = (
                "is at a bound: the marginal likelihood has no maximum inside, or the model leaves "
                "out a normalising constant"
            )
        elif float(drift[i]) > float(errors[i].nan_to_num(DRIFT).clamp(max=DRIFT)):
            problem = (
                f"still moves, by {100 * math.expm1(float(drift[i])):.0f} % over the last quarter; "
                "take more iterations, or start from it"
            )
        if problem:
            warnings.warn(
                f"empirical_bayes: {name} = {value:.3g} {problem}", RuntimeWarning, stacklevel=4
            )


def _as_start(model: Model, start: Any) -> dict[str, float]:
    """Names and first values of the hyper-parameters."""
    if not isinstance(start, Mapping):
        raise DtypeError(f"start: expected a dictionary, got {type(start).__name__}")
    if not start:
        raise OptionError("start: expected at least one hyper-parameter, got none")
    if not callable(model):
        raise ModelError(f"model: expected a function with pyro.sample statements, got {model!r}")
    parameters = inspect.signature(model).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in start:
        if name not in parameters and not takes_any:
            known = ", ".join(map(repr, parameters))
            raise OptionError(f"start: {name!r} is no argument of the model, which has {known}")
    return {name: as_positive(f"start[{name!r}]", value) for name, value in start.items()}


def _as_bounds(bounds: Any, start: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Logarithms of the smallest and the largest values."""
    if bounds is not None and not isinstance(bounds, Mapping):
        raise DtypeError(f"bounds: expected a dictionary, got {type(bounds).__name__}")
    given = dict(bounds or {})
    unknown = [name for name in given if name not in start]
    if unknown:
        raise OptionError(f"bounds: {unknown[0]!r} is not in start, which has {list(start)}")
    pairs = []
    for name, value in start.items():
        pair = given.get(name, (value / REACH, value * REACH))
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise OptionError(f"bounds[{name!r}]: expected (smallest, largest), got {pair!r}")
        low, high = (as_positive(f"bounds[{name!r}][{i}]", end) for i, end in enumerate(pair))
        if not low <= value <= high or low == high:
            raise OptionError(f"bounds[{name!r}]: {pair!r} is no interval around start = {value:g}")
        pairs.append((low, high))
    ends = torch.tensor(pairs, dtype=torch.float64).log()
    return ends[:, 0], ends[:, 1]


def _as_kernel(method: str | Method | None) -> HMC | MALA:
    kernel = HMC(max_steps=10) if method is None else as_method(method)
    if not isinstance(kernel, HMC | MALA):
        raise OptionError(f"method: got {kernel.name!r}; expected 'hmc' or 'mala'")
    return kernel
