"""The methods of bayesgen, by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesgen.inference import METHODS
from bayesgen.inference.base import Population, Sampler
from bayesgen.inference.runner import Step, run_population, run_sampler
from bayesgen.log_density import LogDensity
from peers.problem import Clock, Outcome, Problem


class Counted(LogDensity):
    """A log density that counts the points at which it was asked for, and times its recording."""

    points, recording = 0, 0.0

    def evaluate(
        self, name: str, fn: Any, v: Tensor, where: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        self.points += v[..., 0].numel() if where is None else int(where.sum())
        return super().evaluate(name, fn, v, where)

    def _recorded(
        self, name: str, fn: Any, rows: Tensor, data: Sequence[Tensor]
    ) -> Callable[..., Any]:
        clock = time.perf_counter()
        graph = super()._recorded(name, fn, rows, data)
        self.recording += time.perf_counter() - clock
        return graph


def run(
    problem: Problem, name: str, chains: int, warmup: int, draws: int, **settings: Any
) -> Outcome:
    """Sample by the method of that name, with default settings but those given.

    Of methods that end with a population, ``chains`` counts populations; these begin at the prior,
    and all but the drawing is their warm-up.
    """
    method, clock = METHODS[name](**settings), Clock()
    density = Counted(method.extend(problem.model), problem.y)
    preparing, points, recording = clock.lap(), 0, 0.0

    def watch(step: Step) -> None:
        nonlocal points, recording
        if step.phase != "sampling":
            points, recording = density.points, density.recording

    rng = torch.Generator().manual_seed(0)
    if isinstance(method, Population):
        size = method.num_starts(draws)
        start = density.prior_draws(chains * size, rng).reshape(chains, size, problem.num_dims)
        found = run_population(method, density, start, rng, draws=draws, monitor=watch)
    else:
        assert isinstance(method, Sampler)
        start = problem.starts(chains)
        found = run_sampler(method, density, start, rng, draws=draws, warmup=warmup, monitor=watch)
    return Outcome(
        draws=found.position.numpy(),
        compiling=preparing + density.recording,
        warmup=found.warmup_seconds - recording,
        sampling=found.seconds - found.warmup_seconds - (density.recording - recording),
        warmup_gradients=points,
        gradients=density.points - points,
        busy=clock.busy,
    )
