"""What it costs to follow the data: particles led from posterior to posterior, or begun again.

    python benchmarks/papers.py design-cost --mnist FOLDER

The first test images, pixels in one random order, ten more a round. Both arms are SMC with 128
particles and its other settings at their defaults; one carries its particles from round to round,
the other begins at the prior each time. An evaluation is one log density and gradient of a
population. The error is the squared distance of the posterior mean from that of a reference, 512
particles begun at the prior, over the reference's posterior variance: independent draws would have
1/128 + 1/512 = 0.0098. Deciding is the choice of the next ten by information gain, from 128 draws.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from report import table, write
from torch import Tensor

import bayesgen as bg
from bayesgen import design
from bayesgen.posterior import Posterior

IMAGES, PARTICLES, ROUNDS, BATCH = 4, 128, 15, 10
JUDGED = (4, 9, 14)


def run(options: argparse.Namespace) -> None:
    """Both kinds of model."""
    truths = bg.datasets.mnist(options.mnist, "test")[: options.images or IMAGES]
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (model, noise) in models().items():
        for seed, truth in enumerate(truths):
            for entry in one_run(model, noise, truth, seed):
                found.setdefault(name, []).append(entry)
            print(name, seed, averages(found[name]), flush=True)
            # A population takes long; none should be lost to the next.
            tell(found)


def models() -> dict[str, tuple[Callable[..., None], float]]:
    """The generator's range, and the soft range whose law is decomposed once for every operator."""
    G = bg.models.load("mnist-vae")
    covariance = bg.covariances.load_covariance("mnist-vae")
    made: dict[str, tuple[Callable[..., Any], float]] = {
        "hard range": (lambda A: bg.regularisers.hard(G, A, 0.1), 0.1),
        "soft range": (
            lambda A: bg.regularisers.soft_range(G, A, 0.05, covariance=covariance),
            0.05,
        ),
    }

    def of_operator(given: Callable[..., Any]) -> Callable[..., None]:
        given = lru_cache(maxsize=2)(given)

        def model(A: bg.operators.Operator, y: Tensor | None = None) -> None:
            given(A)(y)

        return model

    return {name: (of_operator(given), noise) for name, (given, noise) in made.items()}


def one_run(
    model: Callable[..., None], noise: float, truth: Tensor, seed: int
) -> list[dict[str, Any]]:
    """Seconds, evaluations and errors of each round."""
    pool = design.Pool.pixels((28, 28))
    order = torch.randperm(784, generator=torch.Generator().manual_seed(seed)).tolist()
    loop = design.acquire(
        model,
        pool,
        design.simulate(pool, truth, noise=noise, seed=seed),
        acquisition=design.FixedOrder(order),
        budget=ROUNDS * BATCH,
        batch=BATCH,
        noise=noise,
        method=bg.inference.SMC(PARTICLES),
        chains=1,
        draws=PARTICLES,
        seed=seed,
    )
    rounds = []
    steps = iter(loop)
    for number in range(ROUNDS):
        clock = time.process_time()
        next(steps)
        carried = {"seconds": time.process_time() - clock} | spent(loop.posterior)
        clock = time.process_time()
        again = posterior(model, loop, PARTICLES, seed)
        fresh = {"seconds": time.process_time() - clock} | spent(again)
        clock = time.process_time()
        design.InformationGain().choose(loop.belief(), BATCH, float(BATCH))
        entry = {"round": number, "carried": carried, "fresh": fresh}
        entry["deciding"] = time.process_time() - clock
        if number in JUDGED:
            reference = posterior(model, loop, 4 * PARTICLES, seed + 1000)
            carried["error"] = distance(loop.posterior, reference)
            fresh["error"] = distance(again, reference)
        rounds.append(entry)
    return rounds


def posterior(
    model: Callable[..., None], loop: design.Loop, particles: int, seed: int
) -> Posterior:
    """Of the loop's data, from the prior."""
    return bg.infer(
        model,
        *loop.data,
        method=bg.inference.SMC(particles),
        chains=1,
        draws=particles,
        seed=seed,
        progress=False,
    )


def spent(found: Posterior) -> dict[str, int]:
    """Evaluations of a population."""
    return {"evaluations": int(found.attributes["num_evaluations"])}


def distance(found: Posterior, reference: Posterior) -> float:
    """Squared error of the mean over the posterior variance."""
    error = (found.mean("x") - reference.mean("x")).square().sum()
    return float(error / reference.std("x").square().sum())


def averages(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Over rounds and images."""

    def mean(arm: str, what: str) -> float:
        values = [e[arm][what] for e in entries if what in e[arm]]
        return sum(values) / len(values)

    return {
        f"{arm} {what}": mean(arm, what)
        for what in ("seconds", "evaluations", "error")
        for arm in ("carried", "fresh")
    } | {"deciding": sum(e["deciding"] for e in entries) / len(entries)}


def tell(found: dict[str, list[dict[str, Any]]]) -> None:
    """A row for a part of the rounds of a model."""
    header = ["model, measured", "evaluations carried", "fresh", "ratio", "CPU s carried", "fresh"]
    header += ["ratio", "error carried", "fresh", "CPU s to decide"]
    rows = []
    for name, entries in found.items():
        later = [e for e in entries if e["round"] > 0]
        parts = {
            "20 to 50": [e for e in later if e["round"] < 5],
            "60 to 100": [e for e in later if 5 <= e["round"] < 10],
            "110 to 150": [e for e in later if e["round"] >= 10],
            "all": later,
        }
        for part, chosen in parts.items():
            rows.append([f"{name}, {part}", *cells(averages(chosen))])
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    title = "Seconds for a decision: carried particles and fresh ones"
    write("design_cost", title, text + "\n\n" + table(header, rows), {"rounds": found})


def cells(found: dict[str, float]) -> list[str]:
    """Figures of one row."""
    made = []
    for what, digits in (("evaluations", 0), ("seconds", 2)):
        carried, fresh = found[f"carried {what}"], found[f"fresh {what}"]
        made += [f"{carried:.{digits}f}", f"{fresh:.{digits}f}", f"{fresh / carried:.1f}"]
    made += [f"{found['carried error']:.4f}", f"{found['fresh error']:.4f}"]
    return [*made, f"{found['deciding']:.3f}"]
