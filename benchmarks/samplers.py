"""Effective samples a second on one posterior: our samplers, Pyro's, NumPyro's and BlackJAX's.

    pip install jax numpyro blackjax
    python benchmarks/samplers.py
    python benchmarks/samplers.py --scaling

Compressed sensing of a digit with a variational autoencoder as prior: 16 latent coordinates, 150
measurements, noise 0.1. The decoder is ported to JAX; first of all, the log densities and gradients
of all libraries are compared with a computation in double precision at 100 points. At the end, the
posterior means and spreads of all samplers are compared: if they differ by more than chance, the
comparison is void, and says so. Libraries that are not installed are left out; with jax 0.10.2,
numpyro 0.22.0 and blackjax 1.7.1 beside the versions in constraints.txt it is known to run. All of
it keeps to one core; ``--quick`` shows that everything works, but its figures mean nothing.

``--scaling`` measures instead how the cost of a draw grows with chains, latent dimension and image
size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import peers
from peers.agreement import Estimate, differences, estimate, threshold
from peers.arms import Arm, arms, has, warmup_length
from peers.problem import Outcome, Problem
from report import table, write

# An arm with fewer effective samples is too short to be compared.
LEAST_ESS = 200.0
# Of values and gradients relative to their size: a few hundred operations in single precision.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Row:
    """An arm with what came of it."""

    arm: Arm
    outcome: Outcome
    estimate: Estimate

    @property
    def long_enough(self) -> bool:
        """Whether its effective sample size means anything."""
        return self.estimate.ess >= LEAST_ESS

    @property
    def rates(self) -> tuple[float, float]:
        """Effective samples a second, of sampling alone and with warm-up."""
        ess, found = self.estimate.ess, self.outcome
        # The particles of a population are made before they are drawn.
        alone = math.nan if self.arm.population else ess / found.sampling
        return alone, ess / (found.warmup + found.sampling)

    @property
    def gradients(self) -> tuple[float, float]:
        """Gradients for an effective sample, of sampling alone and with warm-up."""
        ess, found = self.estimate.ess, self.outcome
        alone = math.nan if self.arm.population else found.gradients / ess
        return alone, (found.warmup_gradients + found.gradients) / ess


def check_densities(problem: Problem) -> dict[str, tuple[float, float]]:
    """Errors of the log density and gradient that each library works with.

    Raises
    ------
    RuntimeError
        If one is wrong by more than rounding: the samplers would not sample the same law.
    """
    errors = problem.density_errors()
    for library in ("NumPyro", "BlackJAX"):
        if not has(library):
            print(f"{library}: not installed; skipped (pip install jax numpyro blackjax)")
            continue
        from peers import jax_port

        if library == "NumPyro":
            from peers.with_numpyro import density

            function = density(problem)
        else:
            function = jax_port.log_density(problem)
        errors[library] = problem.errors(jax_port.evaluate(function))
    for library, (value, gradient) in errors.items():
        print(f"{library}: error of log density {value:.1e}, of its gradient {gradient:.1e}")
        if not max(value, gradient) < ROUNDING:
            raise RuntimeError(f"{library}: not the same model; rounding is below {ROUNDING}")
    return errors


def measure(tasks: Iterable[Arm], centre: Any) -> tuple[list[Row], list[str]]:
    """Run one arm after the other; what went wrong with the others."""
    rows, failures = [], []
    for arm in tasks:
        try:
            outcome = arm.run()
        except Exception as error:  # A long comparison should not be lost to one of its arms.
            message = str(error).strip().splitlines() or [""]
            failures.append(
                f"{arm.name}, {arm.chains} chains: {type(error).__name__}: {message[0]}"
            )
            print(f"FAILED {failures[-1]}", flush=True)
            continue
        row = Row(arm, outcome, estimate(outcome.draws, centre, population=arm.population))
        rows.append(row)
        print(
            f"{arm.name}, {arm.chains} chains x {arm.draws}: {outcome.compiling:.1f} + "
            f"{outcome.warmup:.1f} + {outcome.sampling:.1f} s, ESS {row.estimate.ess:.0f}, "
            f"processor {outcome.busy:.0%}",
            flush=True,
        )
    return rows, failures


def best(rows: Sequence[Row], library: str, which: int, chains: int | None = None) -> float:
    """Highest rate of a library's long enough arms, of all or with so many chains."""
    found = [
        row.rates[which]
        for row in rows
        if row.arm.library == library and row.long_enough and chains in (None, row.arm.chains)
    ]
    return max(found, default=math.nan)


def number(value: float) -> str:
    """Three digits; a dash for what is not there."""
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def main_table(rows: Sequence[Row]) -> str:
    """What each sampler took and gave."""
    header = [
        *("sampler", "chains", "draws", "compiling (s)", "warm-up (s)", "sampling (s)"),
        *("least ESS", "ESS a second", "with warm-up", "gradients for an ES", "with warm-up"),
    ]
    cells = []
    for row in rows:
        found, ess = row.outcome, f"{row.estimate.ess:.0f}"
        sampling = math.nan if row.arm.population else found.sampling
        figures = (*row.rates, *row.gradients)
        times = (found.compiling, found.warmup, sampling)
        cells.append(
            [row.arm.name, row.arm.chains, row.arm.draws]
            + [number(value) for value in times]
            + [ess if row.long_enough else f"{ess} (too few)"]
            + [number(value) for value in figures]
        )
    return table(header, cells)


def ratios(rows: Sequence[Row]) -> tuple[str, list[dict[str, Any]]]:
    """Our rates over those of the others: a table and its content."""
    columns = [("Pyro", False)]
    columns += [(name, same) for name in ("NumPyro", "BlackJAX") for same in (False, True)]
    header = ["ours", "chains"]
    header += [f"{name}, as many chains" if same else f"best {name}" for name, same in columns]
    cells, content = [], []
    for row in rows:
        if row.arm.library != "bayesgen" or not row.long_enough:
            continue
        line, entry = [], {"sampler": row.arm.method, "chains": row.arm.chains}
        for title, (library, same) in zip(header[2:], columns, strict=True):
            chains = row.arm.chains if same else None
            pair = [row.rates[i] / best(rows, library, i, chains) for i in (0, 1)]
            line.append(" / ".join(number(value) for value in pair))
            entry[title] = [None if math.isnan(value) else value for value in pair]
        cells.append([row.arm.method, row.arm.chains, *line])
        content.append(entry)
    return table(header, cells), content


def agreement(rows: Sequence[Row], num_dims: int) -> tuple[str, dict[str, Any]]:
    """Whether all arms found the same moments: text and content."""
    found = {f"{row.arm.name}, {row.arm.chains} chains": row.estimate for row in rows}
    reference, scores = differences(found)
    limit = threshold(len(found), num_dims)
    short = {name for name, row in zip(found, rows, strict=True) if not row.long_enough}
    wrong = [name for name, pair in scores.items() if name not in short and not max(pair) < limit]
    cells = [[name, *(f"{score:.1f}" for score in pair)] for name, pair in scores.items()]
    if len(found) - len(short) < 2:
        verdict = "**Not judged**: fewer than two samplers have enough effective samples."
    elif wrong:
        verdict = (
            f"**The comparison is void**: {'; '.join(wrong)} differ from {reference} by more than "
            f"{limit:.1f} standard errors."
        )
    else:
        verdict = f"All samplers agree: no difference exceeds {limit:.1f} standard errors."
    text = (
        f"{verdict} Samplers with too few effective samples are not judged. Largest difference "
        f"over coordinates from {reference}, in Monte Carlo standard errors:\n\n"
        + table(["sampler", "means", "squares"], cells)
    )
    return text, {"reference": reference, "limit": limit, "scores": scores, "void": wrong}


def entry(row: Row) -> dict[str, Any]:
    """Plain numbers of one row, for the JSON file."""
    arm, found = row.arm, row.outcome
    return {
        "library": arm.library,
        "method": arm.method,
        "chains": arm.chains,
        "draws": arm.draws,
        "compiling": found.compiling,
        "warmup": found.warmup,
        "sampling": found.sampling,
        "warmup_gradients": found.warmup_gradients,
        "gradients": found.gradients,
        "processor": found.busy,
        "ess": row.estimate.ess,
        "rate": None if arm.population else row.rates[0],
        "rate_with_warmup": row.rates[1],
    }


def compare(chains: Sequence[int], only: Sequence[str], *, quick: bool) -> None:
    """The comparison: table, ratios, and whether it is valid."""
    problem = Problem()
    errors = check_densities(problem)
    tasks = arms(problem, chains, quick=quick)
    wanted = (arm for arm in tasks if not only or arm.library in only or arm.method in only)
    rows, failures = measure(wanted, problem.optimum.numpy())
    if not rows:
        raise SystemExit("nothing was run")
    over, over_content = ratios(rows)
    verdict, verdict_content = agreement(rows, problem.num_dims)
    disturbed = [row.arm.name for row in rows if not 0.9 < row.outcome.busy < 1.1]
    notes = [f"Failed: {failure}." for failure in failures]
    if disturbed:
        notes.append(
            "The machine was not quiet, or a library used more than one core: processor time is "
            f"not within 10 % of wall time for {', '.join(sorted(set(disturbed)))}."
        )
    versions = {name: version(name) for name in ("arviz", "jax", "numpyro", "blackjax")}
    accuracy = "; ".join(
        f"{name} {value:.1e}, {gradient:.1e}" for name, (value, gradient) in errors.items()
    )
    text = "\n\n".join(
        [
            "ESS: least bulk effective sample size over coordinates, of all chains together "
            "(ArviZ); of smc from the spread between independent populations. Seconds of wall "
            "time on one core, compiling apart. Gradients are of one point each. Warm-up takes "
            f"{warmup_length(quick)} iterations. Chains begin near the mode, at the same points "
            "for all libraries; populations begin at the prior, and all of their work counts as "
            "warm-up. Default settings, target acceptance included, but for smc's number of "
            "particles. Where chains of NUTS are computed in step, those that wait for the longest "
            "tree cost time, but their gradients are not counted.",
            main_table(rows),
            "Our effective samples a second over those of the best sampler of each library, and of "
            "the best with as many chains: sampling alone / with warm-up.",
            over,
            verdict,
            f"Largest relative error of log density and gradient at 100 points: {accuracy}.",
            *notes,
            "Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()) + ".",
        ]
    )
    title = "Effective samples a second: bayesgen, Pyro, NumPyro, BlackJAX"
    content = {
        "results": [entry(row) for row in rows],
        "ratios": over_content,
        "agreement": verdict_content,
        "errors": errors,
        "failures": failures,
        "versions": versions,
    }
    finish("samplers", title, text, content, quick=quick)


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def finish(name: str, title: str, text: str, content: dict[str, Any], *, quick: bool) -> None:
    """Keep results; those of a quick run are only printed."""
    if quick:
        print(f"\n# {title}\n\n{text}\n")
    else:
        write(name, title, text, content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="very short chains, nothing is kept")
    parser.add_argument("--scaling", action="store_true", help="cost of a draw, ours alone")
    parser.add_argument("--chains", type=int, nargs="+", default=[4, 64, 256])
    parser.add_argument("--only", nargs="+", default=[], help="libraries or methods")
    options = parser.parse_args(arguments)
    peers.one_core()
    if options.scaling:
        from peers import scaling

        text, entries = scaling.study(quick=options.quick)
        title = "Cost of a draw by chains, latent dimension and image size"
        finish("samplers_scaling", title, text, {"results": entries}, quick=options.quick)
    else:
        compare(options.chains, options.only, quick=options.quick)


if __name__ == "__main__":
    main()
