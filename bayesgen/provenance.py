"""Where a result comes from: everything needed to make it again."""

from __future__ import annotations

import datetime
import inspect
import platform
from importlib import metadata
from typing import Any

import torch

from bayesgen._version import __version__
from bayesgen.inference import Method, Optimiser, Run
from bayesgen.log_density import LogDensity


def provenance(
    method: Method, log_density: LogDensity, run: Run, *, seed: int, start: str, thin: int
) -> dict[str, Any]:
    """Plain values that say how a posterior was computed.

    Returns
    -------
    dict
        Strings, numbers and booleans only, so that any file format can hold them.
    """
    model = log_density.model
    return {
        "kind": "optima" if isinstance(method, Optimiser) else "draws",
        "method": method.name,
        "settings": repr(method),
        "reference": method.reference,
        "exact": bool(getattr(method, "exact", False)),
        "caveat": method.caveat,
        "start": start,
        "seed": seed,
        "thin": thin,
        "num_warmup": run.num_warmup,
        "num_evaluations": run.num_evaluations,
        "interrupted": run.interrupted,
        "seconds": run.seconds,
        "warmup_seconds": run.warmup_seconds,
        "vectorised": log_density.vectorised,
        "model": getattr(model, "__name__", type(model).__name__),
        "model_source": _source(model),
        "dtype": str(log_density.dtype),
        "device": str(log_density.device),
        "threads": torch.get_num_threads(),
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inference_library": "bayesgen",
        "inference_library_version": __version__,
        "torch": torch.__version__,
        "pyro": _version("pyro-ppl"),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _source(model: Any) -> str:
    try:
        return inspect.getsource(model)
    except (OSError, TypeError):
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
