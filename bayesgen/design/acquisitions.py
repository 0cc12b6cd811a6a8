"""All acquisition functions, by name."""

from __future__ import annotations

from dataclasses import MISSING, fields

from bayesgen.design.base import Acquisition, Choice
from bayesgen.design.botorch_adapter import BoTorch
from bayesgen.design.chance import EpsilonGreedy, RandomChoice
from bayesgen.design.estimation import (
    GoalVariance,
    InformationGain,
    PrincipalDirections,
    Variance,
)
from bayesgen.design.fixed import Equispaced, FixedOrder, LowFrequency, VariableDensity
from bayesgen.design.gaussian_maximum import UCB, MaxValueEntropy
from bayesgen.design.maximum import ExpectedImprovement, QuantileUCB, Thompson
from bayesgen.design.mixture import NestedMonteCarlo, PairwiseEntropy
from bayesgen.errors import OptionError, unknown_option

_ACQUISITIONS: tuple[type[Acquisition], ...] = (
    Variance,
    InformationGain,
    GoalVariance,
    PrincipalDirections,
    PairwiseEntropy,
    NestedMonteCarlo,
    Thompson,
    UCB,
    QuantileUCB,
    ExpectedImprovement,
    MaxValueEntropy,
    EpsilonGreedy,
    RandomChoice,
    Equispaced,
    LowFrequency,
    VariableDensity,
    FixedOrder,
    BoTorch,
)
ACQUISITIONS: dict[str, type[Acquisition]] = {cls.name: cls for cls in _ACQUISITIONS}


def as_acquisition(acquisition: str | Acquisition, argument: str = "acquisition") -> Acquisition:
    """The acquisition function of that name with its default settings, or itself.

    Raises
    ------
    OptionError
        If the name is unknown, the message lists those that exist; or if there are no default
        settings.

    Examples
    --------
    >>> as_acquisition("information-gain")
    InformationGain(shrinkage=0.0)
    """
    if isinstance(acquisition, Acquisition):
        return acquisition
    if isinstance(acquisition, type) and issubclass(acquisition, Acquisition):
        return _with_defaults(acquisition, argument)
    if not isinstance(acquisition, str) or acquisition not in ACQUISITIONS:
        raise OptionError(unknown_option(argument, str(acquisition), ACQUISITIONS))
    return _with_defaults(ACQUISITIONS[acquisition], argument)


def _with_defaults(cls: type[Acquisition], argument: str) -> Acquisition:
    missing = [
        field.name
        for field in fields(cls)  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise OptionError(
            f"{argument}: {cls.name!r} has no default settings; give "
            f"{cls.__name__}({', '.join(f'{name}=...' for name in missing)})"
        )
    return cls()


__all__ = ["ACQUISITIONS", "Acquisition", "Choice", "as_acquisition"]
