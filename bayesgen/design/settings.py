"""What a loop is given, checked at the door."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesgen.design.base import ROUNDING
from bayesgen.design.pool import Pool
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.inference import Method, Optimiser, as_method
from bayesgen.types import check_positive


def as_budget(budget: float, pool: Pool) -> float:
    """A budget that buys something, and no more than there is."""
    check_positive("budget", budget)
    total, least = pool.highest_cost, float(pool.costs.min())
    if budget > total * (1 + ROUNDING):
        raise OptionError(
            f"budget: got {budget:g}, but measuring all of the pool costs {total:g} only"
        )
    if budget * (1 + ROUNDING) < least:
        raise OptionError(f"budget: got {budget:g}, but the cheapest candidate costs {least:g}")
    return float(budget)


def as_initial(initial: Sequence[int], pool: Pool, budget: float) -> list[int]:
    """Candidates that the budget can pay."""
    chosen = list(initial)
    if not chosen:
        return []
    if any(isinstance(i, bool) or int(i) != i for i in chosen):
        raise OptionError(f"initial: got {chosen}; expected numbers of candidates")
    chosen = [int(i) for i in chosen]
    cost = pool.cost_of(chosen)
    if cost > budget * (1 + ROUNDING):
        raise OptionError(f"initial: measuring these costs {cost:g}, but the budget is {budget:g}")
    return chosen


def as_noise(noise: float | Tensor | None, pool: Pool) -> Tensor | None:
    """Standard deviations ``(n, q)``, a copy."""
    if noise is None:
        return None
    try:
        values = torch.as_tensor(noise)
    except (TypeError, ValueError, RuntimeError):
        values = torch.zeros((), dtype=torch.complex64)
    if values.is_complex() or values.dtype == torch.bool:
        raise DtypeError(f"noise: got {noise!r}; expected standard deviations")
    shape = (pool.num_candidates, *pool.value_shape)
    try:
        values = values.expand(shape)
    except RuntimeError:
        raise ShapeError(
            f"noise: expected something that broadcasts to {shape}, got {tuple(values.shape)}"
        ) from None
    if not bool((values > 0).all()) or not bool(torch.isfinite(values).all()):
        raise OptionError("noise: expected positive finite standard deviations")
    return values.reshape(pool.num_candidates, pool.num_numbers).clone()


def as_sampler(method: str | Method) -> Method:
    """A method whose draws say what is uncertain."""
    if method == "auto":
        raise OptionError(
            "method: 'auto' looks at one posterior, and a loop has many; leave it out for 'smc', "
            "or name one"
        )
    found = as_method(method)
    if isinstance(found, Optimiser):
        raise OptionError(
            f"method: {found.name!r} finds optima, which say nothing of what is uncertain; "
            "expected a sampler"
        )
    return found


def as_path(checkpoint: str | os.PathLike[str]) -> Path:
    """A file that can be written, as far as can be told."""
    path = Path(checkpoint)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OptionError(f"checkpoint: {path} is a folder, or in one that does not exist")
    return path


def as_values(values: Any, chosen: Sequence[int], pool: Pool) -> Tensor:
    """Data of the candidates chosen, ``(k, q)``; a copy: instruments use their buffers again."""
    try:
        measured = torch.as_tensor(values).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(
            f"measure: returned {type(values).__name__} for candidates {list(chosen)}; expected "
            f"their data ({error})"
        ) from error
    shape = (len(chosen), *pool.value_shape)
    if measured.is_complex() and shape[-1:] == (2,) and tuple(measured.shape) == shape[:-1]:
        measured = torch.view_as_real(measured)
    if tuple(measured.shape) != shape:
        raise ShapeError(
            f"measure: returned shape {tuple(measured.shape)} for candidates {list(chosen)}; "
            f"expected {shape}"
        )
    if measured.is_complex():
        raise DataError(
            f"measure: returned complex data of candidates {list(chosen)}, but the operator gives "
            "real ones"
        )
    if not bool(torch.isfinite(measured).all()):
        raise DataError(f"measure: returned data of candidates {list(chosen)} with NaN or infinity")
    return measured.reshape(len(chosen), pool.num_numbers)
