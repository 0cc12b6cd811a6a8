"""The errors that users can meet; each also is the built-in error one would guess."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BayesgenError(Exception):
    """Base of every error that bayesgen raises on purpose."""


class ShapeError(BayesgenError, ValueError):
    """An array has the wrong shape."""


class DtypeError(BayesgenError, TypeError):
    """An array has the wrong dtype or lives on the wrong device."""


class DataError(BayesgenError, ValueError):
    """Data holds values that cannot be used (NaN, infinity, outside the allowed range)."""


class OptionError(BayesgenError, ValueError):
    """An option has a value that is not allowed."""


class UnknownOptionError(BayesgenError, TypeError):
    """An option that does not exist was given."""


class ModelError(BayesgenError, ValueError):
    """A probabilistic model cannot be used for inference."""


class SamplingError(BayesgenError, RuntimeError):
    """A sampler got nowhere.

    Attributes
    ----------
    posterior
        What it drew, to look at.
    """

    def __init__(self, message: str, posterior: object = None) -> None:
        super().__init__(message)
        self.posterior = posterior


class ResultError(BayesgenError, ValueError):
    """A result cannot answer the question it was asked."""


class MissingPackageError(BayesgenError, ImportError):
    """An optional package is not installed."""


class FileFormatError(BayesgenError, ValueError):
    """A file is truncated, damaged, or of another kind or architecture."""


def unknown_option(name: str, value: str, allowed: Iterable[str]) -> str:
    """Message for a misspelt choice: what came, what is allowed, what was probably meant.

    Examples
    --------
    >>> unknown_option("method", "hcm", ["hmc", "mala", "map"])
    "method: unknown value 'hcm'; expected one of 'hmc', 'mala', 'map' (did you mean 'hmc'?)"
    """
    choices = list(allowed)
    close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{name}: unknown value {value!r}; expected one of {', '.join(map(repr, choices))}{hint}"
