"""Is a generator's distance from real images more than that of other real images?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import OptionError, unknown_option
from bayesgen.models.evaluation.divergence import (
    REGULARISATION,
    Influences,
    energy_influences,
    mean_cost,
    sinkhorn_influences,
    transport_influences,
)
from bayesgen.models.evaluation.samples import Estimate, centred, check_equal_numbers, image_rows
from bayesgen.types import check_positive


@dataclass(frozen=True)
class Divergence:
    """One distance of generated from real images, beside that of other real images.

    Attributes
    ----------
    generated
        Distance of the generated from the real images.
    floor
        Distance of other real images, as many, from the same real images: what a perfect generator
        would reach, by the finite number of images alone.
    excess
        Their difference. Its standard error allows for both being distances from the same images.
    """

    generated: Estimate
    floor: Estimate
    excess: Estimate

    def __str__(self) -> str:
        return f"{self.generated}, real {self.floor}, excess {self.excess}"


@dataclass(frozen=True)
class Divergences:
    """What `compare` found; ``found["energy"]`` is one distance, printing gives a line for each.

    Attributes
    ----------
    num_images
        In each of the sets.
    mean_square_norm
        Mean of ``|x|^2`` over the real images: the unit in which transport costs are published.
    distances
        By name.
    """

    num_images: int
    mean_square_norm: float
    distances: dict[str, Divergence]

    def __getitem__(self, measure: str) -> Divergence:
        if measure not in self.distances:
            raise OptionError(unknown_option("measure", measure, self.distances))
        return self.distances[measure]

    def __str__(self) -> str:
        lines = [f"generated against real, {self.num_images} images each"]
        return "\n".join(lines + [f"{name}: {value}" for name, value in self.distances.items()])


@torch.no_grad()
def compare(
    generated: Tensor,
    real: Tensor,
    other_real: Tensor,
    *,
    measures: Sequence[str] = ("earth_movers", "energy", "sinkhorn"),
    regularisation: float = REGULARISATION,
) -> Divergences:
    """Set the distance of generated from real images beside that of other real images.

    Parameters
    ----------
    generated, real, other_real
        ``(N, *shape)`` each, of the same N, since what is left of finite samples depends on it. The
        two sets of real images share none and were not trained on.
    measures
        Which distances: ``"earth_movers"`` (slow and large beyond a few thousand images, see
        `earth_movers_distance`), ``"energy"``, ``"sinkhorn"``.
    regularisation
        See `sinkhorn_divergence`; here a fraction of the mean cost between the real sets, the same
        for both comparisons.

    Returns
    -------
    Divergences
        With standard errors from the influence of each image. They are right between different
        laws and too large, by up to the root of two, between equal ones.

    Raises
    ------
    ShapeError, DtypeError, DataError, OptionError
        If the images or the options cannot be used.
    MissingPackageError
        If POT is not installed and ``measures`` holds ``"earth_movers"``.
    ResultError
        If a solver does not converge.

    References
    ----------
    del Barrio and Loubes (2019), Central limit theorems for empirical transportation cost in
    general dimension: the influence of an image on a transport cost is its dual potential.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> generated, real, other_real = torch.rand(3, 200, 4, 4, generator=rng)
    >>> found = compare(generated / 2, real, other_real, measures=["energy"])
    >>> found["energy"].excess.value > 10 * found["energy"].excess.standard_error
    True
    """
    check_positive("regularisation", regularisation)
    sets = {"generated": generated, "real": real, "other_real": other_real}
    rows = image_rows(2, **sets)
    check_equal_numbers(**sets)
    mean_square = rows[1].square().sum(1).mean().item()
    real, generated, other_real = centred(rows[1], rows[0], rows[2])
    epsilon = regularisation * (mean_cost(real, other_real) or mean_cost(generated, real))
    functions: dict[str, Callable[[Tensor, Tensor], Influences]] = {
        "earth_movers": transport_influences,
        "energy": energy_influences,
        "sinkhorn": lambda x, y: sinkhorn_influences(x, y, epsilon),
    }
    distances = {}
    for measure in measures:
        if measure not in functions:
            raise OptionError(unknown_option("measures", measure, functions))
        distance = functions[measure]
        distances[measure] = _divergence(distance(generated, real), distance(other_real, real))
    return Divergences(len(real), mean_square, distances)


def _divergence(generated: Influences, floor: Influences) -> Divergence:
    return Divergence(
        _estimate(generated.value, generated.x, generated.y),
        _estimate(floor.value, floor.x, floor.y),
        _estimate(generated.value - floor.value, generated.x, floor.x, generated.y - floor.y),
    )


def _estimate(value: float, *influences: Tensor) -> Estimate:
    """Standard error from the influences of the images of each independent set."""
    variance = sum(part.var(correction=0).item() / len(part) for part in influences)
    return Estimate(value, math.sqrt(variance))
