"""How far is the law of a generator's samples from that of real images? Three distances."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import (
    DataError,
    MissingPackageError,
    ResultError,
)
from bayesgen.models.evaluation.samples import (
    blocks,
    centred,
    image_rows,
    squared_distances,
)
from bayesgen.models.evaluation.sinkhorn import potentials, self_potential
from bayesgen.types import check_count, check_positive

# Of the mean cost; see `sinkhorn_divergence`.
REGULARISATION = 0.2
TOLERANCE, MAX_ITERATIONS = 1e-6, 1000


class Influences(NamedTuple):
    """A distance, and how much each image adds to it: ``(N,)`` and ``(M,)``.

    To first order an image that is drawn anew changes the distance by the difference of influences
    divided by the number of images, so their variances give the standard error.
    """

    value: float
    x: Tensor
    y: Tensor


@torch.no_grad()
def earth_movers_distance(
    x: Tensor, y: Tensor, *, normalised_by: Tensor | None = None, max_iterations: int = 10**9
) -> float:
    r"""Cost of the optimal transport between two sets of images, exactly.

    .. math:: \min_P \sum_{ij} P_{ij} |x_i - y_j|^2, \quad \sum_j P_{ij} = 1/N, \sum_i P_{ij} = 1/M

    Of finite samples it is biased upwards, the more so the more different the images of a set are:
    samples that are *less* varied than real images can come out nearer to them than other real
    images do. Compare with the floor that `compare` gives, and with the other distances.

    The cost matrix and the solver take about 4.6 GB of memory for ten thousand images each, growing
    with N M; the time grows faster, from a second for two thousand to a minute or two.

    Parameters
    ----------
    x, y
        ``(N, *shape)`` and ``(M, *shape)``, on the CPU or not; the solver runs on the CPU.
    normalised_by
        Images by whose mean squared norm the cost is divided, in the published experiments the
        test images; not divided by default.
    max_iterations
        Of the network simplex. POT's own default of 100,000 is too few for two thousand images.

    Returns
    -------
    float
        Squared intensity, summed over pixels.

    Raises
    ------
    MissingPackageError
        If POT is not installed.
    ResultError
        If the solver did not reach the optimum.
    ShapeError, DtypeError, DataError
        If the images cannot be used.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models: the distance of generated samples from the test images. Its first version
    (2021) divides by the mean squared norm.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> earth_movers_distance(x, torch.tensor([[3.0], [1.0]]))  # 0 goes to 1, and 1 to 3
    2.5
    """
    check_count("max_iterations", max_iterations)
    rows = centred(*image_rows(x=x, y=y))
    scale = 1.0
    if normalised_by is not None:
        scale = _mean_square(image_rows(x=x, normalised_by=normalised_by)[1])
        if scale == 0:
            raise DataError("normalised_by: all images are zero; expected some intensity")
    return transport_influences(*rows, max_iterations=max_iterations).value / scale


@torch.no_grad()
def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance between the laws of two sets of images, without bias.

    .. math:: 2 E|X - Y| - E|X - X'| - E|Y - Y'|

    is zero only between equal laws. Each mean is over pairs of different images, so that the
    expected value does not depend on the number of images; between equal laws it is zero, hence
    negative about as often as positive. Distances are computed a block at a time; ten thousand
    images of 28 by 28 pixels take some seconds.

    Parameters
    ----------
    x, y
        ``(N, *shape)`` and ``(M, *shape)``, at least two images each.

    Returns
    -------
    float
        Intensity: the root of a sum of squares over pixels.

    Raises
    ------
    ShapeError, DtypeError, DataError
        If the images cannot be used.

    References
    ----------
    Szekely and Rizzo (2013), Energy statistics: a class of statistics based on distances.

    Examples
    --------
    >>> energy_distance(torch.zeros(3, 4, 4), torch.ones(2, 4, 4))  # each pair 4 apart
    8.0
    """
    return energy_influences(*centred(*image_rows(2, x=x, y=y))).value


@torch.no_grad()
def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    *,
    regularisation: float = REGULARISATION,
    self_pairs: bool = False,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> float:
    r"""Entropic optimal transport between two sets of images, without the cost within each.

    .. math::

        S(x, y) &= T(x, y) - \tfrac12 T(x, x) - \tfrac12 T(y, y), \\
        T(x, y) &= \min_P \sum_{ij} P_{ij} |x_i - y_j|^2 + \epsilon\, KL(P \,|\, a \otimes b)

    with uniform weights a and b. Like the exact transport cost it measures in squared intensity how
    far images are moved.

    As published, the transport within a set may leave images where they are, so that equal sets are
    at distance zero. Of finite samples this is biased like the exact cost, to which it tends for a
    small regularisation. By default images therefore have to move to others in T(x, x) and T(y, y),
    as they must in T(x, y): then equal *laws* are at distance near zero, and the value may be
    negative. This is to the published divergence what a U-statistic is to a V-statistic.

    Parameters
    ----------
    x, y
        ``(N, *shape)`` and ``(M, *shape)``, at least two images each.
    regularisation
        :math:`\epsilon` as a fraction of the mean of :math:`|x_i - y_j|^2`, which makes it mean the
        same for images of any size and intensity; but to compare generators with each other or
        with other real images use `compare`, which takes the same :math:`\epsilon` for all. A
        large one leaves only the distance of the means, a small one takes more iterations and
        images. Of 0.05 to 1, those from 0.1 to 0.2 told blurred from sharp discs and rectangles,
        five hundred of each, most surely.
    self_pairs
        Whether images may stay where they are, as published.
    tolerance
        Iterations end when the plan's marginals differ by no more from a and b, in the sum of
        absolute differences; the value is then accurate to about this times the largest cost.
    max_iterations
        Updates of both potentials, of which each costs N M exponentials.

    Returns
    -------
    float
        Squared intensity, summed over pixels.

    Raises
    ------
    ResultError
        If the tolerance is not reached.
    ShapeError, DtypeError, DataError, OptionError
        If the images or the options cannot be used.

    References
    ----------
    Feydy, Sejourne, Vialard, Amari, Trouve and Peyre (2019), Interpolating between optimal
    transport and MMD using Sinkhorn divergences; there with ``self_pairs``.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> found = sinkhorn_divergence(x, x + 2, self_pairs=True)
    >>> round(found, 6)  # a translation costs the square of its length
    4.0
    """
    check_positive("regularisation", regularisation)
    check_positive("tolerance", tolerance)
    check_count("max_iterations", max_iterations)
    x, y = centred(*image_rows(2, x=x, y=y))
    epsilon = regularisation * mean_cost(x, y)
    settings = (epsilon, tolerance, max_iterations)
    return sinkhorn_influences(x, y, *settings, self_pairs=self_pairs).value


def transport_influences(x: Tensor, y: Tensor, *, max_iterations: int = 10**9) -> Influences:
    """See `earth_movers_distance`; the influence of an image is its dual potential."""
    ot = import_pot()
    cost = squared_distances(x, y).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the log says the same, and is turned into an error
        value, log = ot.emd2([], [], cost, numItermax=max_iterations, log=True)
    if log["warning"] is not None:
        raise ResultError(
            f"the transport solver did not reach the optimum ({log['warning']}); raise "
            f"max_iterations, now {max_iterations}, or give fewer images"
        )
    u, v = (torch.as_tensor(log[key], device=x.device) for key in "uv")
    return Influences(float(value), u, v)


def import_pot() -> Any:
    """The module ``ot``, without the other array libraries that it would import with it."""
    names = [f"POT_BACKEND_DISABLE_{library}" for library in ("JAX", "TENSORFLOW", "CUPY")]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        return importlib.import_module("ot")
    except ImportError as error:
        raise MissingPackageError(
            f"the earth mover's distance needs POT, which could not be imported ({error}): "
            "pip install 'bayesgen[pot]'"
        ) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def energy_influences(x: Tensor, y: Tensor) -> Influences:
    """See `energy_distance`."""
    to_y, to_x = _mean_distances(x, y), _mean_distances(y, x)
    # Sums include the distance 0 of an image to itself; means are over the others.
    in_x = _mean_distances(x, x) * (len(x) / (len(x) - 1))
    in_y = _mean_distances(y, y) * (len(y) / (len(y) - 1))
    value = 2 * to_y.mean() - in_x.mean() - in_y.mean()
    return Influences(value.item(), 2 * (to_y - in_x), 2 * (to_x - in_y))


def _mean_distances(x: Tensor, y: Tensor) -> Tensor:
    """Mean distance of each row of x to those of y."""
    means = [squared_distances(x[rows], y).sqrt().mean(1) for rows in blocks(len(x), len(y))]
    return torch.cat(means)


def sinkhorn_influences(
    x: Tensor,
    y: Tensor,
    epsilon: float,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    *,
    self_pairs: bool = False,
) -> Influences:
    """See `sinkhorn_divergence`; ``epsilon`` is in units of the cost."""
    if epsilon == 0:  # all images are the same
        return Influences(0.0, x.new_zeros(len(x)), y.new_zeros(len(y)))
    f, g = potentials(squared_distances(x, y), epsilon, tolerance, max_iterations)
    within = []
    for rows in (x, y):
        cost = squared_distances(rows, rows)
        if not self_pairs:
            cost.fill_diagonal_(torch.inf)
        within.append(self_potential(cost, epsilon, tolerance, max_iterations))
    value = (f - within[0]).mean() + (g - within[1]).mean()
    return Influences(value.item(), f - within[0], g - within[1])


def mean_cost(x: Tensor, y: Tensor) -> float:
    """Mean of all ``|x_i - y_j|^2``."""
    spread = x.var(0, correction=0).sum() + y.var(0, correction=0).sum()
    return (spread + (x.mean(0) - y.mean(0)).square().sum()).item()


def _mean_square(rows: Tensor) -> float:
    return rows.square().sum(1).mean().item()
