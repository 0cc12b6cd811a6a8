"""What it costs to follow the data: particles led from posterior to posterior, or begun again.

    python benchmarks/papers.py design-cost --mnist FOLDER

The first test images, measured by pixels: one more a round or ten more, in a random order or those
of the largest information gain. Both arms are SMC with 128 particles and its other settings at
their defaults, and see the same data; one carries its particles from round to round (`Loop` itself,
its choices included), the other begins at the prior each time. CPU seconds are those of a round,
the first, which both begin at the prior, left out. The error is the squared distance of the
posterior mean from that of a reference, 1024 particles begun at the prior, over the reference's
posterior variance, at three rounds of each image: independent draws would have 1/128 + 1/1024 =
0.0088. Spread is the posterior variance over that of the reference. A round is still when particles
were weighted and not moved, and anew when they began at the prior after all. Deciding is the choice
of the next pixels by information gain, from 128 draws.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from report import table, write
from torch import Tensor

import bayesgen as bg
from bayesgen import design
from bayesgen.posterior import Posterior

IMAGES, PARTICLES = 4, 128


class Study(NamedTuple):
    """In which order pixels are measured, and how many."""

    chosen: str
    batch: int
    rounds: int


STUDIES = [Study("at random", 1, 60), Study("at random", 10, 15), Study("by information", 10, 15)]


def run(options: argparse.Namespace) -> None:
    """Both kinds of model, each kind of order."""
    truths = bg.datasets.mnist(options.mnist, "test")[: options.images or IMAGES]
    found: dict[str, list[dict[str, Any]]] = {}
    for seed, truth in enumerate(truths):
        for name, (model, noise) in models().items():
            for study in STUDIES:
                key = f"{name}, {study.batch} {study.chosen}"
                found.setdefault(key, []).extend(one_run(model, noise, truth, seed, study))
                print(key, seed, averages(found[key]), flush=True)
                # It takes long; none should be lost to the next.
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
    model: Callable[..., None], noise: float, truth: Tensor, seed: int, study: Study
) -> list[dict[str, Any]]:
    """Seconds and errors of each round."""
    pool = design.Pool.pixels((28, 28))
    order = torch.randperm(784, generator=torch.Generator().manual_seed(seed)).tolist()
    by_chance = study.chosen == "at random"
    loop = design.acquire(
        model,
        pool,
        design.simulate(pool, truth, noise=noise, seed=seed),
        acquisition=design.FixedOrder(order) if by_chance else design.InformationGain(),
        budget=study.rounds * study.batch,
        batch=study.batch,
        noise=noise,
        method=bg.inference.SMC(PARTICLES),
        chains=1,
        draws=PARTICLES,
        seed=seed,
    )
    rounds: list[dict[str, Any]] = []
    judged = {study.rounds // 3, 2 * study.rounds // 3, study.rounds - 1}
    steps = iter(loop)
    next(steps)
    for number in range(1, study.rounds):
        clock = time.process_time()
        next(steps)
        entry: dict[str, Any] = {"round": number, "carried": time.process_time() - clock}
        clock = time.process_time()
        fresh = posterior(model, loop, PARTICLES, seed)
        entry["fresh"] = time.process_time() - clock
        entry["anew"] = loop.posterior.attributes["start"] == "prior"
        entry["still"] = bool(loop.posterior.stats["acceptance_rate"].isnan().all())
        clock = time.process_time()
        design.InformationGain().choose(loop.belief(), study.batch, float(study.batch))
        entry["deciding"] = time.process_time() - clock
        if number in judged:
            reference = posterior(model, loop, 8 * PARTICLES, seed + 1000)
            for name, found in (("carried", loop.posterior), ("fresh", fresh)):
                entry[f"{name} error"] = distance(found, reference)
                entry[f"{name} spread"] = variance(found) / variance(reference)
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


def distance(found: Posterior, reference: Posterior) -> float:
    """Squared error of the mean over the posterior variance."""
    error = (found.mean("x") - reference.mean("x")).square().sum()
    return float(error) / variance(reference)


def variance(found: Posterior) -> float:
    """Of the image, all pixels together."""
    return float(found.std("x").square().sum())


def averages(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Over rounds and images."""
    names = ["still", "anew", "deciding", "carried", "fresh"]
    names += [f"{arm} {what}" for arm in ("carried", "fresh") for what in ("error", "spread")]
    found = {name: [entry[name] for entry in entries if name in entry] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def tell(found: dict[str, list[dict[str, Any]]]) -> None:
    """A row for each model and order, and for the halves of its rounds."""
    header = ["model, pixels a round", "rounds", "CPU s carried", "fresh", "fresh over carried"]
    header += [
        "error carried",
        "fresh",
        "spread carried",
        "fresh",
        "still",
        "anew",
        "CPU s to decide",
    ]
    rows = []
    for name, entries in found.items():
        last = max(entry["round"] for entry in entries)
        halves = {
            f"2 to {last // 2 + 1}": [e for e in entries if e["round"] <= last // 2],
            f"{last // 2 + 2} to {last + 1}": [e for e in entries if e["round"] > last // 2],
            "all": entries,
        }
        rows += [[name, part, *cells(averages(chosen))] for part, chosen in halves.items()]
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    title = "Seconds for a decision: carried particles and fresh ones"
    write("design_cost", title, text + "\n\n" + table(header, rows), {"rounds": found})


def cells(found: dict[str, float]) -> list[str]:
    """Figures of one row."""
    carried, fresh = found["carried"], found["fresh"]
    return [
        f"{carried:.2f}",
        f"{fresh:.2f}",
        f"{fresh / carried:.1f}",
        f"{found['carried error']:.4f}",
        f"{found['fresh error']:.4f}",
        f"{found['carried spread']:.2f}",
        f"{found['fresh spread']:.2f}",
        f"{found['still']:.0%}",
        f"{found['anew']:.0%}",
        f"{found['deciding']:.3f}",
    ]
