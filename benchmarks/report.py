"""What every benchmark shares: the machine it ran on, timing, and writing the results."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, threads and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "pyro-ppl", "numpy", "bayesgen")},
    }


def interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int = 15) -> dict[str, float]:
    """Seconds a call of each function: the least of many rounds, taken in turn.

    Taking turns exposes all of them to the same disturbances; the least is the round that was
    disturbed least.
    """
    counts = {}
    for name, function in functions.items():
        function()
        clock = time.perf_counter()
        function()
        counts[name] = max(1, int(0.1 / max(time.perf_counter() - clock, 1e-6)))
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            clock = time.perf_counter()
            for _ in range(counts[name]):
                function()
            best[name] = min(best[name], (time.perf_counter() - clock) / counts[name])
    return best


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write(name: str, title: str, text: str, results: Mapping[str, Any]) -> None:
    """Print the report, and keep it as Markdown and JSON with the machine's description."""
    RESULTS.mkdir(exist_ok=True)
    about = machine()
    description = ", ".join(f"{key} {value}" for key, value in about.items())
    report = f"# {title}\n\n{text}\n\nMachine: {description}.\n"
    print(report)
    (RESULTS / f"{name}.md").write_text(report)
    content = {"machine": about, **results}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
