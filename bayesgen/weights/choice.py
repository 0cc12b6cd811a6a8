"""What a choice of weight goes by and comes back as: data, grid and images checked, the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import Operator
from bayesgen.operators.inputs import as_positive, require_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Estimator = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class Choice:
    """The weight that was chosen, and what it was chosen from.

    Attributes
    ----------
    weight
        The weight.
    image
        The estimate with it, ``domain_shape``; None from `validation`, which has many.
    weights, values
        What was tried, in increasing order, and the criterion at each; double precision, ``(K,)``.
    level
        What the criterion should be equal to, if there is such a value.
    criterion
        What the values are.

    Examples
    --------
    >>> tried, values = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([3.0, 2.0, 4.0])
    >>> Choice(weight=1.0, image=None, weights=tried, values=values, criterion="mean mse")
    Choice(weight=1.0, level=None, criterion='mean mse')
    """

    weight: float
    image: Tensor | None = field(repr=False)
    weights: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    level: float | None = None
    criterion: str = field(kw_only=True)

    def plot(self) -> Figure:
        """Criterion against weight, with the level and the choice marked.

        Returns
        -------
        matplotlib.figure.Figure
        """
        import matplotlib.pyplot as plt

        figure, ax = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
        ax.plot(self.weights.numpy(), self.values.numpy(), "o-", markersize=4)
        ax.set_xscale("log")
        if bool((self.values > 0).all()):
            ax.set_yscale("log")
        if self.level is not None:
            ax.axhline(self.level, color="0.4", linestyle=":", label=f"level {self.level:.3g}")
        ax.axvline(self.weight, color="C1", linestyle="--", label=f"choice {self.weight:.3g}")
        ax.set_xlabel("weight")
        ax.set_ylabel(self.criterion)
        ax.legend(fontsize=8)
        return figure


def least(
    name: str,
    criterion: str,
    weights: Sequence[float],
    values: Sequence[float],
    images: Sequence[Tensor] | None = None,
) -> Choice:
    """The weight of the least value, with a warning if that is at an end of several."""
    best = int(np.argmin(values))
    if len(weights) > 1 and best in (0, len(weights) - 1):
        warnings.warn(
            f"{name}: the least value is at weight {weights[best]:.3g}, an end of weights; a "
            "better one may lie beyond it",
            RuntimeWarning,
            stacklevel=3,
        )
    return Choice(
        weight=weights[best],
        image=None if images is None else images[best],
        weights=torch.tensor(weights, dtype=torch.float64),
        values=torch.tensor(values, dtype=torch.float64),
        criterion=criterion,
    )


def check_problem(estimate: Any, A: Any) -> None:
    """Refuse an estimator that cannot be called, and what is no operator."""
    if not callable(estimate):
        raise DtypeError(
            f"estimate: expected a function of data and weight, got {type(estimate).__name__}"
        )
    if not isinstance(A, Operator):
        raise DtypeError(f"A: expected an Operator, got {type(A).__name__}")


def as_data(A: Operator, y: Any) -> Tensor:
    """One finite data set, without gradients."""
    A._check("y", y, A.range_shape)
    if y.shape != A.range_shape:
        raise ShapeError(
            f"y: expected one data set, of shape {A.range_shape}, got {tuple(y.shape)}; choose a "
            "weight for one after the other"
        )
    require_finite("y", y)
    data: Tensor = y.detach()
    return data


def as_weights(weights: Any, *, minimum: int = 1) -> list[float]:
    """A grid of positive, increasing weights, of at least ``minimum`` of them."""
    if isinstance(weights, Tensor):
        weights = weights.detach().cpu()
        weights = weights.double() if weights.is_floating_point() else weights
    values = np.asarray(weights)
    if values.dtype.kind not in "fiu":
        raise DtypeError(f"weights: expected a list of real numbers, got {weights!r}")
    if values.ndim != 1:
        raise ShapeError(f"weights: expected a list of numbers, got shape {values.shape}")
    if values.size < minimum:
        at_least = "at least one" if minimum == 1 else f"at least {minimum}"
        raise OptionError(f"weights: got {values.size} numbers; expected {at_least}")
    grid = [as_positive(f"weights[{k}]", value) for k, value in enumerate(values.tolist())]
    for before, after in pairwise(grid):
        if not before < after:
            raise OptionError(
                f"weights: expected increasing numbers, none twice; got {after} after {before}"
            )
    return grid


def image_at(estimate: Estimator, A: Operator, y: Tensor, weight: float) -> Tensor:
    """The estimate with a weight, checked."""
    return as_image(estimate(y, weight), A, y, weight)


def as_image(image: Any, A: Operator, y: Tensor, weight: float) -> Tensor:
    """An estimator's image if it is one that fits the operator and is finite."""
    what = f"estimate: at weight {weight:.6g}"
    if not isinstance(image, Tensor):
        raise DtypeError(f"{what} it returned {type(image).__name__}; expected a torch tensor")
    if image.shape != A.domain_shape:
        raise ShapeError(
            f"{what} it returned an image of shape {tuple(image.shape)}; expected {A.domain_shape}"
        )
    if (image.dtype, image.device) != (y.dtype, y.device):
        raise DtypeError(
            f"{what} it returned {image.dtype} on {image.device}; expected {y.dtype} on "
            f"{y.device}, as the data"
        )
    if not bool(torch.isfinite(image).all()):
        raise DataError(f"{what} it returned an image with NaN or infinite entries")
    return image.detach()


def squared_norm(difference: Tensor) -> float:
    """Sum of squares in double precision, which sums of many small ones need."""
    return float(difference.double().square().sum())


@torch.no_grad()
def misfit(A: Operator, x: Tensor, y: Tensor) -> float:
    """|A x - y|^2."""
    return squared_norm(A(x) - y)
