"""The rows of the comparison: which samplers, with how many chains, and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from bayesgen.inference import METHODS
from peers import ours, with_pyro
from peers.problem import Outcome, Problem

# Effective samples in a draw, roughly; the number of draws follows from it.
OURS = {"hmc": 0.2, "nuts": 0.4, "chees": 0.3, "mala": 0.007}
NUMPYRO, BLACKJAX = {"nuts": 0.4}, {"nuts": 0.4, "chees": 0.3, "meads": 0.03}
# Packages that samplers of a library need beyond ours.
NEEDS = {"Pyro": (), "NumPyro": ("jax", "numpyro"), "BlackJAX": ("jax", "blackjax")}
# Populations of sequential Monte Carlo, and the particles of each.
POPULATIONS, PARTICLES = 32, 256
# Methods that learn from other chains need some.
FEWEST_TO_POOL = 16


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    library: str
    method: str
    chains: int
    draws: int
    run: Callable[[], Outcome]
    population: bool = False

    @property
    def name(self) -> str:
        """As in the table; with the number of chains it is unique."""
        return f"{self.library} {self.method}"


def warmup_length(quick: bool) -> int:
    """Iterations of warm-up, of all Markov chains."""
    return 100 if quick else 500


def arms(problem: Problem, chains: Sequence[int], *, quick: bool) -> Iterator[Arm]:
    """Everything that can be run here."""
    warmup, (wanted, least) = warmup_length(quick), (50, 30) if quick else (1000, 400)

    def draws(efficiency: float, chains: int) -> int:
        # Chains must be longer than a few autocorrelation times, however many there are.
        lowest = max(least, math.ceil((0.1 if quick else 10) / efficiency))
        return max(lowest, math.ceil(wanted / (efficiency * chains)))

    def batched(
        library: str, methods: dict[str, float], run: Callable[..., Outcome]
    ) -> Iterator[Arm]:
        for method, efficiency in methods.items():
            for count in chains:
                if method in ("chees", "meads") and count < FEWEST_TO_POOL:
                    continue
                length = draws(efficiency, count)
                task = partial(run, problem, method, count, warmup, length)
                yield Arm(library, method, count, length, task)

    available = {name: value for name, value in OURS.items() if name in METHODS}
    missing = sorted({*OURS, "smc"} - set(METHODS))
    if missing:
        print(f"bayesgen: no {', '.join(missing)}; skipped", flush=True)
    yield from batched("bayesgen", available, ours.run)
    if "smc" in METHODS:
        count, size = (4, 64) if quick else (POPULATIONS, PARTICLES)
        task = partial(ours.run, problem, "smc", count, 0, size, particles=size)
        yield Arm("bayesgen", "smc", count, size, task, population=True)
    for jit in (False, True):
        length = 60 if quick else 2500
        task = partial(with_pyro.run, problem, warmup, length, jit=jit)
        yield Arm("Pyro", "nuts, jit" if jit else "nuts", 1, length, task)
    for library, methods in (("NumPyro", NUMPYRO), ("BlackJAX", BLACKJAX)):
        if has(library):
            module = import_module(f"peers.with_{library.lower()}")
            yield from batched(library, methods, module.run)


def has(library: str) -> bool:
    """Whether the packages of a library are there."""
    return all(find_spec(package) is not None for package in NEEDS[library])
