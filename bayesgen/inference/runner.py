"""The one loop that drives every method: warm-up, recording, progress, interruption."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import ModelError
from bayesgen.inference.base import Optimiser, Population, Sampler
from bayesgen.inference.bridge import Bridge
from bayesgen.inference.standardised import Standardised
from bayesgen.types import Density


@dataclass(frozen=True)
class Step:
    """What a monitor sees after every transition.

    Attributes
    ----------
    phase
        ``"warm-up"``, ``"sampling"``, ``"optimising"`` or, of populations, ``"approaching"``.
    iteration, total
        Number of this transition within its phase, from 0, and the most there will be.
    state, info
        What the method's ``step`` returned.
    """

    phase: str
    iteration: int
    total: int
    state: Any
    info: Any


Monitor = Callable[[Step], None]


@dataclass(frozen=True)
class Run:
    """Everything a run produced.

    Attributes
    ----------
    position
        Recorded points, ``(*problems, chains, draws, num_dims)``.
    log_prob
        Their log densities, ``(*problems, chains, draws)``.
    stats
        The fields of the method's ``Info``, each ``(*problems, chains, draws)``.
    state
        The last state, in units of the density's scale.
    interrupted
        Whether the user stopped the run early.
    seconds, warmup_seconds
        Wall time of all, and of warm-up.
    num_warmup, num_evaluations
        Warm-up iterations done; batched evaluations of the log density, warm-up included.
    """

    position: Tensor
    log_prob: Tensor
    stats: dict[str, Tensor]
    state: Any
    interrupted: bool
    seconds: float
    warmup_seconds: float
    num_warmup: int
    num_evaluations: int


def run_sampler(
    method: Sampler,
    log_density: Density,
    start: Tensor,
    rng: torch.Generator,
    *,
    draws: int,
    warmup: int,
    thin: int = 1,
    monitor: Monitor | None = None,
) -> Run:
    """Warm up, then record ``draws`` draws, every ``thin``-th step one.

    Ctrl-C ends the run after the current step; what was drawn is returned. During warm-up, when
    nothing has been drawn yet, KeyboardInterrupt passes through.

    Raises
    ------
    ModelError
        If the log density is not finite at the start of some chain.
    """
    density = Standardised(log_density)
    clock = time.perf_counter()
    state = method.init(density, start / density.scale)
    _check_start(state)
    for i in range(warmup):
        state, info = method.step(density, state, rng)
        state = method.adapt(state, info, i, warmup)
        _tell(monitor, Step("warm-up", i, warmup, state, info))
    warmup_seconds = time.perf_counter() - clock
    record, interrupted = _Record(start, draws), False
    try:
        for i in range(draws * thin):
            state, new = method.step(density, state, rng)
            # What happened in the steps that thinning drops must not go unseen.
            info = new if i % thin == 0 else method.combine(info, new)
            if (i + 1) % thin == 0:
                record.add(state, info)
            _tell(monitor, Step("sampling", i, draws * thin, state, info))
    except KeyboardInterrupt:
        if record.count == 0:
            raise
        interrupted = True
    return Run(
        **record.result(density.scale),
        state=state,
        interrupted=interrupted,
        seconds=time.perf_counter() - clock,
        warmup_seconds=warmup_seconds,
        num_warmup=warmup,
        num_evaluations=density.count,
    )


def run_optimiser(
    method: Optimiser,
    log_density: Density,
    start: Tensor,
    rng: torch.Generator,
    *,
    monitor: Monitor | None = None,
) -> Run:
    """Step until every chain has stopped; the result has one draw a chain."""
    clock = time.perf_counter()
    density, method = Standardised(log_density), method.suited(log_density)
    state = method.init(density, start / density.scale)
    _check_start(state)
    record, interrupted = _Record(start, 1), False
    try:
        for i in range(method.max_iterations):
            state, info = method.step(density, state, rng)
            _tell(monitor, Step("optimising", i, method.max_iterations, state, info))
            if method.finished(state):
                break
    except KeyboardInterrupt:
        interrupted = True
    record.add(state, method.describe(state))
    return Run(
        **record.result(density.scale),
        state=state,
        interrupted=interrupted,
        seconds=time.perf_counter() - clock,
        warmup_seconds=0.0,
        num_warmup=0,
        num_evaluations=density.count,
    )


def run_population(
    method: Population,
    log_density: Density | Bridge,
    start: Tensor,
    rng: torch.Generator,
    *,
    draws: int,
    monitor: Monitor | None = None,
) -> Run:
    """Step until every chain is ready, then draw; all of it counts as warm-up.

    ``start`` has shape ``(*problems, chains, starts, n)``. There is nothing to return of a run that
    is interrupted, so KeyboardInterrupt passes through.
    """
    # What leads from one posterior to the next knows the units of both.
    density = log_density if isinstance(log_density, Bridge) else Standardised(log_density)
    clock = time.perf_counter()
    state, steps = method.init(density, (start / density.units(start)).contiguous()), 0
    while not method.finished(state) and steps < method.max_iterations:
        state, info = method.step(density, state, rng)
        _tell(monitor, Step("approaching", steps, method.max_iterations, state, info))
        steps += 1
    warmup_seconds = time.perf_counter() - clock
    drawn = method.draw(density, state, draws, rng)
    return Run(
        position=drawn.position * density.units(drawn.position),
        log_prob=drawn.log_prob,
        stats=drawn.stats,
        state=state,
        interrupted=False,
        seconds=time.perf_counter() - clock,
        warmup_seconds=warmup_seconds,
        num_warmup=steps,
        num_evaluations=density.count,
    )


@dataclass
class _Record:
    """Preallocated storage for draws, so that memory is known from the start."""

    start: Tensor
    draws: int
    count: int = 0
    position: Tensor = field(init=False)
    stats: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (*self.start.shape[:-1], self.draws, self.start.shape[-1])
        self.position = self.start.new_empty(shape)

    def add(self, state: Any, info: Any) -> None:
        for name, value in {"log_prob": state.log_prob, **info._asdict()}.items():
            if name not in self.stats:
                self.stats[name] = value.new_empty((*value.shape, self.draws))
            self.stats[name][..., self.count] = value
        self.position[..., self.count, :] = state.position
        self.count += 1

    def result(self, scale: Tensor | float) -> dict[str, Any]:
        stats = {name: value[..., : self.count] for name, value in self.stats.items()}
        units = scale.unsqueeze(-2) if isinstance(scale, Tensor) and scale.ndim > 1 else scale
        return {
            "position": self.position[..., : self.count, :] * units,
            "log_prob": stats.pop("log_prob"),
            "stats": stats,
        }


def _tell(monitor: Monitor | None, step: Step) -> None:
    if monitor is not None:
        monitor(step)


def _check_start(state: Any) -> None:
    bad = ~torch.isfinite(state.log_prob)
    if bad.any():
        raise ModelError(
            f"start: the log density is not finite at {int(bad.sum())} of {bad.numel()} starting "
            "points. Check the model's scales and supports, or give start= points inside the "
            "support of every site."
        )
