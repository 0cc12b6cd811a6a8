"""What a magnetic resonance scan is made of: which lines are measured, and what the coils see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError
from bayesgen.operators.inputs import as_shape


def cartesian_mask(
    width: int,
    *,
    acceleration: float = 4,
    centre_fraction: float = 0.08,
    seed: int = 0,
    equispaced: bool = False,
) -> Tensor:
    """Lines of k-space for an accelerated scan: all in the centre, some of the others.

    The rule of fastMRI: ``round(width * centre_fraction)`` lines about the frequency zero, and of
    the others so many that ``width / acceleration`` are expected in all. The random numbers are
    not fastMRI's.

    Parameters
    ----------
    width
        Number of lines of the full grid.
    acceleration
        How many times fewer are measured, on average.
    centre_fraction
        Of the full grid; 0.08 is fastMRI's choice for fourfold acceleration, 0.04 for eightfold.
    seed
        Seed of the lines that are drawn.
    equispaced
        Lines outside the centre at equal distances, but for rounding, from a random first one, as
        scanners do it; default: each with the same probability.

    Returns
    -------
    Tensor
        Boolean, ``(width,)``.

    Raises
    ------
    OptionError
        If a number is out of range, or the centre alone has more lines than are wanted in all.

    References
    ----------
    Zbontar et al. (2018), fastMRI: an open dataset and benchmarks for accelerated MRI.

    Examples
    --------
    >>> cartesian_mask(16, centre_fraction=0.125, equispaced=True).int()
    tensor([0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0], dtype=torch.int32)
    """
    if not isinstance(width, int) or width < 1:
        raise OptionError(f"width: expected a positive integer, got {width!r}")
    if not (math.isfinite(acceleration) and acceleration >= 1):
        raise OptionError(f"acceleration: expected a number of at least 1, got {acceleration}")
    if not 0 <= centre_fraction <= 1:
        raise OptionError(f"centre_fraction: expected 0 to 1, got {centre_fraction}")
    num_centre = round(width * centre_fraction)
    others, wanted = width - num_centre, width / acceleration - num_centre
    if wanted < 0:
        raise OptionError(
            f"centre_fraction: the {num_centre} lines of the centre are more than the "
            f"{width / acceleration:.3g} that acceleration={acceleration} leaves of {width}"
        )
    mask = torch.zeros(width, dtype=torch.bool)
    first = (width - num_centre + 1) // 2
    mask[first : first + num_centre] = True
    if wanted == 0:
        return mask
    rng = torch.Generator().manual_seed(seed)
    if not equispaced:
        return mask | (torch.rand(width, generator=rng, dtype=torch.float64) < wanted / others)
    spacing = others / wanted
    offset = int(torch.randint(round(spacing), (), generator=rng))
    lines = torch.arange(offset, width, spacing, dtype=torch.float64)
    mask[lines[lines <= width - 1].round().long()] = True
    return mask


def birdcage_sensitivities(
    coils: int,
    image_shape: Sequence[int],
    *,
    radius: float = 1.5,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    r"""Simulated sensitivities of coils spread evenly on a circle around the image.

    That of coil :math:`c`, at the point :math:`w_c = \rho \, e^{i \theta_c}` of the complex plane
    in which the image fills the square from :math:`-1-i` to :math:`1+i`, is
    :math:`e^{-i \theta_c} / (\overline{w - w_c})`: the field of a long straight wire, turned
    so that all have the same phase in the middle. They are scaled so that the sum over coils of
    :math:`|s_c|^2` is one in each pixel.

    Parameters
    ----------
    coils
        Their number.
    image_shape
        ``(y, x)``.
    radius
        Of the circle, in half sides of the image; the nearer, the more the coils differ. The
        default is the customary one.
    dtype
        Of the maps; pass ``torch.complex128`` for images in double precision.

    Returns
    -------
    Tensor
        Complex, ``(coils, y, x)``.

    Raises
    ------
    OptionError
        If ``coils`` is not a positive integer, the shape not that of an image, or the circle
        crosses the image.
    DtypeError
        If the dtype is not complex.

    References
    ----------
    Roemer, Edelstein, Hayes, Souza and Mueller (1990), The NMR phased array.

    Examples
    --------
    >>> maps = birdcage_sensitivities(8, (32, 24))
    >>> maps.shape, torch.allclose(maps.abs().square().sum(0), torch.ones(32, 24))
    (torch.Size([8, 32, 24]), True)
    """
    if not isinstance(coils, int) or coils < 1:
        raise OptionError(f"coils: expected a positive integer, got {coils!r}")
    shape = as_shape("image_shape", image_shape)
    if len(shape) != 2:
        raise OptionError(f"image_shape: expected (y, x), got {shape}")
    if not (math.isfinite(radius) and radius > math.sqrt(2)):
        raise OptionError(
            f"radius: expected more than 1.414, the distance of the corners, got {radius}"
        )
    if not dtype.is_complex:
        raise DtypeError(f"dtype: expected a complex one, got {dtype}")
    y, x = ((2 * torch.arange(n, dtype=torch.float64) + 1 - n) / n for n in shape)
    angles = 2 * math.pi * torch.arange(coils, dtype=torch.float64)[:, None, None] / coils
    turn = torch.polar(torch.ones_like(angles), angles)
    maps = (
        turn.conj() / (torch.complex(*torch.meshgrid(x, y, indexing="xy")) - radius * turn).conj()
    )
    return (maps / torch.linalg.vector_norm(maps, dim=0)).to(dtype)
