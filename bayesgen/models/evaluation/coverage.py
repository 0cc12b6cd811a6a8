"""Does a generator draw only what is real, and all of it? Told by nearest neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.models.evaluation.samples import (
    SLACK,
    Estimate,
    blocks,
    centred,
    image_rows,
    mean_estimate,
    nearest_squares,
    squared_distances,
)
from bayesgen.types import check_count


@dataclass(frozen=True)
class PrecisionRecall:
    """What `precision_recall` found.

    Standard errors are over the images that are counted, taking the balls around the other images
    as given.

    Attributes
    ----------
    precision
        Share of the generated images within a ball around a real image.
    recall
        Share of the real images within a ball around a generated image.
    density
        Number of real images' balls that hold a generated image, divided by ``density_neighbours``,
        on average; 1 for equal laws, and more where generated images crowd.
    coverage
        Share of the real images whose ball holds a generated image.
    expected_coverage
        Mean of the coverage if both laws are equal, whatever they are; for equal numbers of images
        a little more than ``1 - 2**-density_neighbours``.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    expected_coverage: float

    def __str__(self) -> str:
        names = ("precision", "recall", "density", "coverage")
        text = ", ".join(f"{name} {getattr(self, name)}" for name in names)
        return f"{text} (equal laws: density 1, coverage {self.expected_coverage:.4g})"


@torch.no_grad()
def precision_recall(
    generated: Tensor, real: Tensor, *, neighbours: int = 3, density_neighbours: int = 5
) -> PrecisionRecall:
    """Estimate how many samples are real and how much of what is real is sampled.

    The support of a law is taken to be the balls around its samples that reach to their k-th
    nearest neighbour, including the sphere, so that laws with repeated images are treated well.
    Distances are between pixels: for small images without background that is meaningful, for
    others pass features.

    Precision and recall are deceived by outliers, whose balls are large; density and coverage,
    which use the balls of real images only, less so. All depend on the numbers of images: compare
    generators with the same numbers, and with other real images in place of the generated ones.

    Parameters
    ----------
    generated, real
        ``(N, *shape)`` and ``(M, *shape)``; the time grows with N M, the memory does not.
    neighbours
        k for precision and recall, 3 in the paper.
    density_neighbours
        k for density and coverage, 5 in the paper.

    Returns
    -------
    PrecisionRecall
        Four estimates with standard errors.

    Raises
    ------
    OptionError
        If there are not more images in a set than neighbours.
    ShapeError, DtypeError, DataError
        If the images cannot be used.

    References
    ----------
    Kynkaanniemi, Karras, Laine, Lehtinen and Aila (2019), Improved precision and recall metric for
    assessing generative models, equations 1 and 2.
    Naeem, Oh, Uh, Choi and Yoo (2020), Reliable fidelity and diversity metrics for generative
    models: density and coverage; lemma 2, the expected coverage.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> real = torch.rand(200, 2, 1, generator=rng)
    >>> generated = torch.rand(200, 2, 1, generator=rng) * torch.tensor([[1.0], [0.5]])
    >>> found = precision_recall(generated, real)
    >>> found.precision.value > 0.9, found.recall.value < 0.7, found.coverage.value < 0.7
    (True, True, True)
    """
    generated, real = image_rows(generated=generated, real=real)
    check_count("neighbours", neighbours)
    check_count("density_neighbours", density_neighbours)
    most = max(neighbours, density_neighbours)
    for name, images in {"generated": generated, "real": real}.items():
        if len(images) <= most:
            raise OptionError(
                f"neighbours, density_neighbours: got {neighbours} and {density_neighbours}; "
                f"expected fewer than the {len(images)} {name} images"
            )
    real, generated = centred(real, generated)
    around_real = nearest_squares(real, most) * SLACK
    around_generated = nearest_squares(generated, neighbours)[:, -1] * SLACK
    precise, dense = [], []
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = recalled.clone()
    for rows in blocks(len(generated), len(real)):
        squares = squared_distances(generated[rows], real)
        precise.append((squares <= around_real[:, neighbours - 1]).any(1))
        inside = squares <= around_real[:, density_neighbours - 1]
        dense.append(inside.sum(1) / density_neighbours)
        covered |= inside.any(0)
        recalled |= (squares <= around_generated[rows, None]).any(0)
    return PrecisionRecall(
        mean_estimate(torch.cat(precise)),
        mean_estimate(recalled),
        mean_estimate(torch.cat(dense)),
        mean_estimate(covered),
        _expected_coverage(len(generated), len(real), density_neighbours),
    )


def _expected_coverage(num_generated: int, num_real: int, k: int) -> float:
    """Not all of the k nearest to a real image, among all others, are real themselves."""
    others = num_real - 1
    return 1 - math.prod((others - i) / (others + num_generated - i) for i in range(k))
