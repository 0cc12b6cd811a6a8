"""ArviZ, imported quietly: before version 1 it announces version 1 whenever it is imported."""

from __future__ import annotations

import warnings
from types import ModuleType


def import_arviz() -> ModuleType:
    """The ``arviz`` module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def major_version() -> int:
    """The first number of ArviZ's version, which decides what its data structure is."""
    return int(import_arviz().__version__.split(".")[0])
