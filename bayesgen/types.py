"""Types that several layers share."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from bayesgen.errors import OptionError, UnknownOptionError

P = ParamSpec("P")
R = TypeVar("R")


class Density(Protocol):
    """What a method needs to know of the problem: a log density on R^n, many points at a time.

    It may also have an attribute ``scale``, a tensor that broadcasts against points and says how
    far each coordinate ranges under the prior; methods then work in units of it.
    """

    @property
    def num_dims(self) -> int:
        """Dimension n."""
        ...

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Log density ``v.shape[:-1]`` and its gradient ``v.shape``."""
        ...


class Split(NamedTuple):
    """A log density taken apart; the parts add up.

    Attributes
    ----------
    prior, likelihood
        Log prior of the point, its Jacobian included, and log likelihood, ``(*batch,)``.
    prior_gradient, likelihood_gradient
        Their gradients, ``(*batch, n)``.
    """

    prior: Tensor
    likelihood: Tensor
    prior_gradient: Tensor
    likelihood_gradient: Tensor


class SplitDensity(Density, Protocol):
    """A density of which prior and likelihood are known apart, as tempering needs it."""

    def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
        """Log prior and log likelihood; rows that ``where`` leaves out may be NaN."""
        ...

    def prior_draws(self, num: int, rng: torch.Generator) -> Tensor:
        """Exact draws from the prior, ``(*problems, num, n)``."""
        ...


def check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Answer a misspelt keyword with the list of those that exist.

    Raises
    ------
    UnknownOptionError
        If ``options`` holds a name that is no parameter of ``function``.
    """
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            allowed = [p for p in parameters if p != "self"]
            close = difflib.get_close_matches(option, allowed, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UnknownOptionError(
                f"{name}: unknown option {option!r}; expected one of "
                f"{', '.join(map(repr, allowed))}{hint}"
            )


def strict_options(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function with `check_options`."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_options(function.__qualname__.removesuffix(".__init__"), function, kwargs)
        return function(*args, **kwargs)

    return checked


def check_positive(name: str, value: float | None, *, allow_none: bool = False) -> None:
    """Refuse a setting that is not a positive finite number."""
    if value is None and allow_none:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):  # type: ignore[operator]
        raise OptionError(f"{name}: got {value!r}; expected a positive finite number")


def check_count(name: str, value: int, *, minimum: int = 1, maximum: int | None = None) -> None:
    """Refuse a count that is not an integer of at least ``minimum``, and at most ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise OptionError(f"{name}: got {value!r}; expected an integer of at least {minimum}")
    if maximum is not None and value > maximum:
        raise OptionError(f"{name}: got {value}; expected at most {maximum}")
