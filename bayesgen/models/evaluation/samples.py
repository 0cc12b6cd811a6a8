"""What all comparisons of two sets of images need: checked input, distances, estimates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError

# Elements of a block of distances: 64 MB in double precision.
_BLOCK = 2**23
# Two ways of computing one squared distance differ by rounding, which must not decide on ties.
SLACK = 1 + 1e-9


class Estimate(NamedTuple):
    """A number computed from random samples, and its standard error.

    Examples
    --------
    >>> print(Estimate(0.91234, 0.0123))
    0.9123 ± 0.012
    """

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


def mean_estimate(values: Tensor) -> Estimate:
    """Mean of independent numbers ``(N,)``."""
    values = values.double()
    return Estimate(values.mean().item(), (values.var(correction=0) / len(values)).sqrt().item())


def image_rows(minimum: int = 1, /, **sets: Tensor) -> list[Tensor]:
    """Check sets of images of one shape and flatten them.

    Parameters
    ----------
    minimum
        The fewest images a set must have.
    sets
        By name, ``(N, *shape)`` each with its own N.

    Returns
    -------
    list of Tensor
        ``(N, pixels)`` for each set, in double precision: squared distances between images a
        thousandth apart would drown in single precision.

    Raises
    ------
    DtypeError
        If a set is no floating-point tensor, or lives on another device than the first.
    ShapeError
        If a set has too few images, or images of another shape than the first.
    DataError
        If a pixel is not finite.
    """
    rows: list[Tensor] = []
    reference: Tensor | None = None
    for name, images in sets.items():
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise DtypeError(f"{name}: expected a floating-point tensor, got {kind}")
        reference = images if reference is None else reference
        if images.ndim < 2 or images[:1].numel() == 0 or len(images) < minimum:
            raise ShapeError(
                f"{name}: expected shape (N, *image_shape) with at least {minimum} images, "
                f"got {tuple(images.shape)}"
            )
        if images.shape[1:] != reference.shape[1:]:
            raise ShapeError(
                f"{name}: has images of shape {tuple(images.shape[1:])}, but {next(iter(sets))} "
                f"of {tuple(reference.shape[1:])}"
            )
        if images.device != reference.device:
            raise DtypeError(
                f"{name}: is on {images.device}, but {next(iter(sets))} on {reference.device}"
            )
        if not images.isfinite().all():
            raise DataError(f"{name}: holds NaN or infinity; expected finite pixels")
        rows.append(images.detach().flatten(1).double())
    return rows


def check_equal_numbers(**sets: Tensor) -> None:
    """Refuse sets that do not have as many images as the first."""
    first = next(iter(sets))
    for name, images in sets.items():
        if len(images) != len(sets[first]):
            raise ShapeError(
                f"{name}: has {len(images)} images, but {first} has {len(sets[first])}; "
                "expected equal numbers"
            )


def check_level(name: str, value: float) -> None:
    """Refuse what is not strictly between 0 and 1."""
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise OptionError(f"{name}: got {value!r}; expected a number between 0 and 1")


def blocks(num: int, width: int) -> Iterator[slice]:
    """Cut ``num`` rows into slices whose distances to ``width`` points fit into memory."""
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, num, step):
        yield slice(start, min(start + step, num))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    r"""Matrix :math:`|x_i - y_j|^2`, ``(N, M)``, of rows ``(N, pixels)`` and ``(M, pixels)``.

    By matrix multiplication, which is much faster than subtracting image from image. The rounding
    error grows with the norms, so call it with rows from which a common centre was subtracted;
    what is below the error is set to exactly zero, so that copies of an image are told as such.
    """
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    squares = torch.addmm(norms, x, y.T, alpha=-2)
    # A millionth of the images' norm: less than single precision resolves in all pixels together.
    return squares.masked_fill_(squares < 1e-12 * norms, 0)


def centred(*sets: Tensor) -> list[Tensor]:
    """Subtract the mean of the first set from all."""
    centre = sets[0].mean(0)
    return [rows - centre for rows in sets]


def nearest_squares(x: Tensor, k: int) -> Tensor:
    """Squared distances ``(N, k)`` of every row to its ``k`` nearest others, nearest first."""
    found = []
    for rows in blocks(len(x), len(x)):
        squares = squared_distances(x[rows], x)
        squares[torch.arange(len(squares)), torch.arange(rows.start, rows.stop)] = torch.inf
        found.append(squares.topk(k, largest=False).values)
    return torch.cat(found)
