"""Pyro's NUTS."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value

from peers.problem import Clock, Outcome, Problem


class _CountedNUTS(NUTS):
    """NUTS that counts its leapfrog steps and knows how long it took to set itself up."""

    def __init__(self, *args: Any, clock: Clock, **options: Any) -> None:
        super().__init__(*args, **options)
        self.clock, self.steps = clock, 0

    def setup(self, *args: Any, **options: Any) -> None:
        super().setup(*args, **options)
        self.compiling = self.clock.lap()

    def _build_basetree(self, *args: Any) -> Any:
        self.steps += 1
        return super()._build_basetree(*args)


def run(problem: Problem, warmup: int, draws: int, *, jit: bool) -> Outcome:
    """One chain; with ``jit`` the potential energy is traced to a graph."""
    clock = Clock()
    kernel = _CountedNUTS(
        problem.plain_model,
        clock=clock,
        jit_compile=jit,
        ignore_jit_warnings=True,
        init_strategy=init_to_value(values={"z": problem.starts(1)[0]}),
    )
    steps, seconds = 0, 0.0

    def hook(kernel: _CountedNUTS, _: Any, stage: str, iteration: int) -> None:
        nonlocal steps, seconds
        if stage.lower().startswith("warm") and iteration == warmup - 1:
            steps, seconds = kernel.steps, clock.lap()

    pyro.set_rng_seed(0)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, hook_fn=hook, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mcmc.run(problem.y)
    sampling = clock.lap()
    found = mcmc.get_samples(group_by_chain=True)["z"].numpy()
    return Outcome(
        found, kernel.compiling, seconds, sampling, steps, kernel.steps - steps, clock.busy
    )
