"""Solvers: against the published ones, to the last digit, and which of them should be the default.

Compressed sensing of digits with `mnist-vae-8`, all solvers from the same starts. Objectives are
minus the log density of all sites, in nats; steps are taken in prior standard deviations. Recorded
graphs exist before the clock starts, and the relative change of images is computed after it stops.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from report import RESULTS, table, write
from torch import Tensor

import bayesgen as bg
from bayesgen.inference import MAP, run_optimiser
from bayesgen.inference.runner import Step
from bayesgen.inference.standardised import Standardised
from experiments.common import Problem, simulate

R = bg.regularisers
FIGURES = RESULTS / "papers"
SIGMA, RELAXED, SPARSE = 0.1, 0.1, 0.04
CAPS = (50, 200, 500, 2000)
RESTARTS, STARTS = 8, 16
# An objective is as good as another if it is higher by less, in nats or relatively.
NATS, RELATIVE = 0.01, 1e-3
# Of the published rule: squared norm of the change of x, relative to that of x.
CHANGE = 1e-8
TARGET = 20

Rows = dict[str, dict[str, Any]]


class Climb(NamedTuple):
    """What one run of an optimiser did, a row an iteration, with the problems flattened."""

    seconds: list[float]
    objective: Tensor
    position: Tensor
    n_steps: Tensor
    gradient: Tensor
    first_gradient: Tensor


class Case(NamedTuple):
    """A model as published and as we solve it, with a solver of each."""

    published: Callable[[Any, Problem], Any]
    published_solver: str
    ours: Callable[[Any, Problem], Any]
    solver: str


def hard(G: Any, given: Problem) -> Any:
    """x = G(z)."""
    return R.hard(G, given.A, given.sigma)


def relaxed(G: Any, given: Problem) -> Any:
    """x = G(z) + u, u white and integrated out."""
    return R.relaxed(G, given.A, given.sigma, RELAXED)


def relaxed_with_u(G: Any, given: Problem) -> Any:
    """x = G(z) + u, u white and sought as well."""
    return R.relaxed(G, given.A, given.sigma, RELAXED, integrated=False)


def sparse(G: Any, given: Problem) -> Any:
    """x = G(z) + u, u Laplace."""
    return R.sparse(G, given.A, given.sigma, SPARSE)


CASES = {
    "hard": Case(hard, "gradient-descent", hard, "lbfgs"),
    "relaxed": Case(relaxed_with_u, "alternating", relaxed, "lbfgs"),
    "sparse": Case(sparse, "palm", sparse, "panoc"),
}


def run(options: argparse.Namespace) -> None:
    """Run everything, or the parts ``only`` names: defaults, published, optimality."""
    digits = bg.datasets.mnist(options.mnist, "test")[100 : 100 + (options.images or 10)]
    sigma = (options.sigma or [SIGMA])[0]
    parts = {"defaults": defaults, "published": published, "optimality": optimality}
    found = {}
    for name, part in parts.items():
        if not options.only or name in options.only:
            found[name] = part(digits, sigma)
    if options.only:
        return
    curves = {case: row.pop("curves") for case, row in found["published"].items()}
    draw(curves)
    targets = reached(found)
    write("papers_solvers", "Solvers", describe(found, targets), {**found, "targets": targets})


# ------------------------------------------------------------------------------------- runs


def data(digits: Tensor, sigma: float, rows: int = 150) -> Problem:
    """Gaussian measurements by a matrix of norm 1, the same for all digits."""
    A = bg.operators.GaussianMatrix(tuple(digits.shape[1:]), rows=rows, seed=0).normalised()
    return simulate(A.to(digits.dtype), sigma, digits, seed=2)


def starts_of(given: Problem, latent_dim: int, count: int) -> dict[str, Tensor]:
    """Draws of the prior for z, and no deviation, ``(problems, count, ...)``."""
    shape = (len(given.y), count, latent_dim)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(given.y)
    return {"z": z, "u": z.new_zeros(*shape[:2], *given.A.domain_shape)}


def climb(density: bg.LogDensity, start: dict[str, Tensor], method: MAP) -> Climb:
    """Maximise a log density of several problems, keeping every iterate."""
    begin = density.unconstrain({name: start[name] for name in density.sites.latent})
    scaled = Standardised(density)
    first = method.init(scaled, begin / scaled.scale)
    seen: list[tuple[float, Tensor, Tensor]] = []
    clock = time.perf_counter()

    def keep(step: Step) -> None:
        state = step.state
        seen.append((time.perf_counter() - clock, state.log_prob, state.position))

    done = run_optimiser(method, density, begin, torch.Generator(), monitor=keep)
    seconds, values, positions = zip(*seen, strict=True)
    return Climb(
        list(seconds),
        torch.stack([-value.flatten() for value in values]),
        torch.stack([(position * scaled.scale).flatten(0, -2) for position in positions]),
        done.state.n_steps.flatten(),
        done.state.gradient.norm(dim=-1).flatten(),
        first.gradient.norm(dim=-1).flatten(),
    )


def timed(model: Any, y: Tensor, start: dict[str, Tensor], method: MAP) -> tuple[Climb, float]:
    """A run, after one that recorded all graphs it needs; and the seconds of that first one."""
    clock = time.perf_counter()
    density = bg.LogDensity(model, y, batched=True)
    climb(density, start, method)
    first = time.perf_counter() - clock
    return climb(density, start, method), first


# ------------------------------------------------------------------- which is the default


def defaults(digits: Tensor, sigma: float) -> dict[str, Rows]:
    """How often, and how fast, each solver ends within 0.1 nats of the best optimum known."""
    G, found = bg.models.load("mnist-vae-8"), {}
    for rows in (150, 30):
        given = data(digits, sigma, rows)
        start = starts_of(given, G.latent_dim, STARTS)
        one = {name: value[:1, :4] for name, value in start.items()}
        ends, table_rows = {}, {}
        for solver in ("lbfgs", "levenberg-marquardt", "adam"):
            method, model = MAP(solver=solver), hard(G, given)
            end, first = timed(model, given.y, start, method)
            alone, alone_first = timed(model, given.y[:1], one, method)
            ends[solver] = end.objective[-1].reshape(len(digits), STARTS)
            table_rows[solver] = {
                "iterations": end.n_steps.double().mean().item(),
                "milliseconds_per_start": 1e3 * end.seconds[-1] / ends[solver].numel(),
                "first_seconds": first,
                "one_image_seconds": alone.seconds[-1],
                "one_image_first_seconds": alone_first,
            }
        best = torch.stack(list(ends.values())).amin((0, 2))[:, None]
        for solver, end in ends.items():
            good = end <= best + 0.1
            table_rows[solver]["success"] = good.double().mean().item()
            table_rows[solver]["images_solved"] = int(good.any(1).sum())
            print(f"m = {rows}, {solver}:", table_rows[solver], flush=True)
        found[f"m = {rows}"] = table_rows
    return found


# --------------------------------------------------------------- against those published


def published(digits: Tensor, sigma: float) -> Rows:
    """Algorithms 1 to 3, a start an image, against ours from that start and from seven more."""
    G, given = bg.models.load("mnist-vae-8"), data(digits, sigma)
    start = starts_of(given, G.latent_dim, RESTARTS)
    found = {}
    for name, case in CASES.items():
        several, _ = timed(case.ours(G, given), given.y, start, MAP(solver=case.solver))
        images = [against(case, G, given[i : i + 1], start, i) for i in range(len(digits))]
        found[name] = summary(images, several, len(digits))
        row = {key: value for key, value in found[name].items() if key != "curves"}
        print(f"{name}:", row, flush=True)
    return found


def against(
    case: Case, G: Any, given: Problem, starts: dict[str, Tensor], number: int
) -> dict[str, Any]:
    """Both solvers on one image, from its first start."""
    start = {name: value[number : number + 1, :1] for name, value in starts.items()}
    ours, _ = timed(case.ours(G, given), given.y, start, MAP(solver=case.solver))
    density = bg.LogDensity(case.published(G, given), given.y, batched=True)
    # So tight a tolerance that only the cap, or rounding, ends it.
    method = MAP(solver=case.published_solver, max_iterations=CAPS[-1], tolerance=1e-9)
    climb(density, start, replace(method, max_iterations=2))
    theirs = climb(density, start, method)
    goal = ours.objective[-1, 0].item()
    if case.ours is not case.published:
        end = density.unconstrain(with_deviation(ours.position[-1:], G, given))
        goal = -density.log_prob(end).item()
    excess = theirs.objective[:, 0].double() - goal
    x = images_of(theirs.position[:, 0], G)
    change = (x[1:] - x[:-1]).square().sum(-1) / x[1:].square().sum(-1)
    rule = first_where(torch.cat([change.new_ones(1), change]) < CHANGE)
    return {
        "ours_seconds": ours.seconds[-1],
        "ours_iterations": int(ours.n_steps),
        "seconds": theirs.seconds,
        "excess": excess.tolist(),
        "goal": goal,
        "reached": first_where(excess <= NATS),
        "nearly": first_where(excess <= RELATIVE * abs(goal)),
        "rule": rule,
        "rule_iterations": len(theirs.seconds) if rule is None else rule + 1,
    }


def images_of(position: Tensor, G: Any) -> Tensor:
    """Flat images of latent vectors, followed by deviations if there are any."""
    mean = G(position[:, : G.latent_dim]).flatten(1)
    return mean + position[:, G.latent_dim :] if position.shape[1] > G.latent_dim else mean


def with_deviation(z: Tensor, G: Any, given: Problem) -> dict[str, Tensor]:
    """Latent vectors with the best deviations, which have been integrated out."""
    mean = G(z)
    count = mean[0, 0].numel()
    A = given.A(torch.eye(count).reshape(count, *given.A.domain_shape)).T
    S = given.sigma**2 * torch.eye(len(A)) + RELAXED**2 * A @ A.T
    weights = torch.linalg.solve(S, (given.y - given.A(mean)).mT).mT
    return {"z": z, "u": RELAXED**2 * given.A.adjoint(weights)}


def first_where(condition: Tensor) -> int | None:
    """Number of the first true entry, if there is one."""
    places = condition.nonzero()
    return int(places[0, 0]) if len(places) else None


def summary(images: list[dict[str, Any]], several: Climb, count: int) -> dict[str, Any]:
    """Means over images; times of images where ours is not the worse optimum, for the ratios."""
    better = [image for image in images if image["excess"][-1] >= -NATS]
    # Until ours is reached; where it never is, until the published rule ends it, which is too soon.
    needed = [image["seconds"][or_last(image["reached"], image["rule"])] for image in better]
    stopped = [image["seconds"][or_last(image["rule"])] for image in images]
    ours = sum(image["ours_seconds"] for image in better)
    batch = several.seconds[-1] / several.n_steps.numel()

    def mean(values: list[float]) -> float:
        return sum(values) / max(len(values), 1)

    def at(image: dict[str, Any], cap: int, what: str) -> float:
        value: float = image[what][min(cap, len(image[what])) - 1]
        return value

    return {
        "ours_iterations": mean([image["ours_iterations"] for image in images]),
        "ours_seconds": mean([image["ours_seconds"] for image in images]),
        "ours_seconds_in_batch": batch,
        "ours_excess_of_best_restart": mean(
            [
                several.objective[-1].reshape(count, -1)[i].amin().item()
                - several.objective[-1].reshape(count, -1)[i, 0].item()
                for i in range(count)
            ]
        ),
        "images": len(images),
        "images_not_worse": len(better),
        "images_reached": sum(image["reached"] is not None for image in images),
        "images_nearly": sum(image["nearly"] is not None for image in images),
        "images_stopped_by_rule": sum(image["rule"] is not None for image in images),
        "rule_iterations": mean([image["rule_iterations"] for image in images]),
        "rule_seconds": mean(stopped),
        "rule_excess": mean([image["excess"][or_last(image["rule"])] for image in images]),
        "caps": {
            cap: {
                "seconds": mean([at(image, cap, "seconds") for image in images]),
                "excess": mean([at(image, cap, "excess") for image in images]),
            }
            for cap in CAPS
        },
        "ratio_alone": sum(needed) / ours if better else None,
        "ratio_in_batch": mean(needed) / batch if better else None,
        "curves": [(image["seconds"], image["excess"]) for image in images],
    }


def or_last(number: int | None, *others: int | None) -> int:
    """The first number there is, else -1, which is the last entry."""
    return next((n for n in (number, *others) if n is not None), -1)


# ------------------------------------------------------------------------- to the last digit


def optimality(digits: Tensor, sigma: float) -> Rows:
    """Norms of gradients, with kinks of residuals, that our solvers reach in double precision."""
    G, given = bg.models.load("mnist-vae-8").double(), data(digits.double(), sigma)
    start = starts_of(given, G.latent_dim, 4)
    runs = {
        "hard, lbfgs": (hard, "lbfgs"),
        "hard, levenberg-marquardt": (hard, "levenberg-marquardt"),
        "relaxed, lbfgs": (relaxed, "lbfgs"),
        "sparse, panoc": (sparse, "panoc"),
    }
    found = {}
    for name, (model, solver) in runs.items():
        density = bg.LogDensity(model(G, given), given.y, batched=True)
        method = MAP(solver=solver, tolerance=1e-8, max_iterations=5000)
        end = climb(density, start, method)
        best = end.objective[-1].reshape(len(digits), -1).argmin(1, keepdim=True)
        chosen = end.gradient.reshape(len(digits), -1).take_along_dim(best, 1)[:, 0]
        first = end.first_gradient.reshape(len(digits), -1).take_along_dim(best, 1)[:, 0]
        found[name] = {
            "images": len(digits),
            "best_restart": chosen.max().item(),
            "best_restart_relative": (chosen / first).max().item(),
            "median": end.gradient.median().item(),
            "largest": end.gradient.max().item(),
            "below_target": (end.gradient <= 1e-8).double().mean().item(),
            "iterations": end.n_steps.double().mean().item(),
            "seconds": end.seconds[-1],
        }
        print(f"{name}:", found[name], flush=True)
    return found


# ---------------------------------------------------------------------------------- results


def reached(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What was hoped for, and whether it came true."""
    claims = {}
    for case, row in found["published"].items():
        for how in ("alone", "in_batch"):
            ratio, name = row[f"ratio_{how}"], how.replace("_", " ")
            claims[f"{case}, {name}: {TARGET} times faster"] = bool(ratio and ratio >= TARGET)
    for name, row in found["optimality"].items():
        claims[f"{name}: best restart's gradient at most 1e-8"] = row["best_restart"] <= 1e-8
    return claims


def describe(found: dict[str, dict[str, Any]], targets: dict[str, bool]) -> str:
    """The report in Markdown."""
    about = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    verdicts = [[name, "reached" if met else "**missed**"] for name, met in targets.items()]
    parts = [about, table(["target", ""], verdicts), *describe_defaults(found["defaults"])]
    parts += [*describe_published(found["published"]), *describe_optimality(found["optimality"])]
    return "\n\n".join(parts)


def describe_defaults(found: dict[str, Rows]) -> list[str]:
    """Success rates and times."""
    rows = [
        [
            problem,
            solver,
            f"{row['success']:.1%}",
            row["images_solved"],
            f"{row['iterations']:.0f}",
            f"{row['milliseconds_per_start']:.1f}",
            f"{row['first_seconds']:.1f}",
            f"{row['one_image_seconds']:.2f} ({row['one_image_first_seconds']:.2f})",
        ]
        for problem, solvers in found.items()
        for solver, row in solvers.items()
    ]
    header = ["", "solver", "starts within 0.1 nats", "images with such a start", "iterations"]
    header += ["ms a start, all in a batch", "first call, s", "one image, 4 starts, s (first call)"]
    title = f"## Hard constraint, {STARTS} starts an image, settings as they are by default"
    return [title, table(header, rows)]


def describe_published(found: Rows) -> list[str]:
    """Times and objectives against Algorithms 1 to 3."""
    text = f"""## Against Algorithms 1 to 3

One start of one image at a time, as published, with u = 0 at first where it is a site, against ours
from the same start, alone and with {RESTARTS - 1} more restarts of all images in one batch. Excess
is the published objective less ours from the same start. The ratio is of seconds until the
published objective is within {NATS} nats of ours, over ours; where it never is, until the
published rule stops (squared relative change of x below {CHANGE:g}), and of images where ours is
not the worse optimum."""
    header = ["", "images", "reach ours", "ours not worse", "iterations, s, excess at their stop"]
    header += ["ours: iterations, s", "in a batch, s a start", "ratio", "in a batch"]
    rows = []
    for case, row in found.items():
        stop = f"{row['rule_iterations']:.0f}, {row['rule_seconds']:.2f}, {row['rule_excess']:.2f}"
        ours = f"{row['ours_iterations']:.0f}, {row['ours_seconds']:.2f}"
        ratios = [
            "none" if row[key] is None else f"{row[key]:.1f}"
            for key in ("ratio_alone", "ratio_in_batch")
        ]
        counts = [row["images"], row["images_reached"], row["images_not_worse"]]
        rows.append([case, *counts, stop, ours, f"{row['ours_seconds_in_batch']:.3f}", *ratios])
    capped = [
        [case, *(f"{at['excess']:.3f} ({at['seconds']:.2f} s)" for at in row["caps"].values())]
        for case, row in found.items()
    ]
    head = ["mean excess after", *(f"{cap} iterations" for cap in CAPS)]
    figure = "![excess against time](papers/solvers_published.png)"
    return [text, table(header, rows), table(head, capped), figure]


def describe_optimality(found: Rows) -> list[str]:
    """Norms of gradients in double precision."""
    text = """## To the last digit

Double precision, tolerance 1e-8, norms in nats a prior standard deviation: of the restart with the
best objective, the largest over images; also relative to its start; and over all restarts."""
    header = ["", "images", "best restart", "relative to start", "median of all", "largest"]
    header += ["restarts at most 1e-8", "iterations"]
    keys = ("best_restart", "best_restart_relative", "median", "largest")
    rows = []
    for name, row in found.items():
        norms = [f"{row[key]:.1e}" for key in keys]
        share, steps = f"{row['below_target']:.0%}", f"{row['iterations']:.0f}"
        rows.append([name, row["images"], *norms, share, steps])
    return [text, table(header, rows)]


def draw(curves: dict[str, list[tuple[list[float], list[float]]]]) -> None:
    """Draw by how much the published objective exceeds ours, against time."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, len(curves), sharey=True)
    for ax, (case, images) in zip(axes, curves.items(), strict=True):
        for seconds, excess in images:
            ax.loglog(seconds, [max(value, 1e-4) for value in excess], linewidth=0.8)
        ax.axhline(NATS, color="k", linestyle=":")
        ax.set(title=f"{case}, {CASES[case].published_solver}", xlabel="seconds")
    axes[0].set_ylabel("objective less ours, nats")
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / "solvers_published.png", dpi=80)
