"""Which rays a scanner sends through an image, and what each pixel contributes to each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Rays are followed in blocks of so many pixels crossed, to bound the memory in use.
_BLOCK = 2**21


@dataclass(frozen=True)
class Scan:
    r"""A two-dimensional scan with a flat detector, in ODL's conventions.

    The first axis of the image carries the coordinate :math:`p_0`, the second :math:`p_1`; the
    origin, about which the scanner turns, is the middle of the image. At the angle :math:`\varphi`
    the detector lies along :math:`(\cos\varphi, \sin\varphi)` and rays run along
    :math:`(-\sin\varphi, \cos\varphi)`: parallel to it, or from a source at ``-source`` times it to
    a detector through ``+detector`` times it.

    Attributes
    ----------
    angles
        ``(angles,)``, in radians, float64.
    detectors
        Number of detector pixels.
    spacing
        Distance between their centres, which lie symmetrically about the middle of the detector.
    radii
        Distances ``(source, detector)`` from the origin; None for parallel rays.
    """

    angles: Tensor
    detectors: int
    spacing: float
    radii: tuple[float, float] | None = None

    @property
    def positions(self) -> Tensor:
        """Centres of the detector pixels along the detector, float64."""
        steps = torch.arange(self.detectors, dtype=torch.float64) - (self.detectors - 1) / 2
        return self.spacing * steps

    @property
    def num_rays(self) -> int:
        """Number of line integrals measured."""
        return len(self.angles) * self.detectors

    def rays(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """A point on each ray, and its direction: ``(last - first, 2)`` each."""
        number = torch.arange(first, last)
        along, across = _axes(self.angles[number // self.detectors])
        points = self.positions[number % self.detectors, None] * along
        if self.radii is None:
            return points, across
        source, detector = self.radii
        return -source * across, points + (source + detector) * across

    def shadow(self, points: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Where on the detector ``points`` (..., 2) are seen, and how much they are magnified."""
        along, across = (points @ axis for axis in _axes(angle))
        if self.radii is None:
            return along, torch.ones_like(along)
        source, detector = self.radii
        magnification = (source + detector) / (source + across)
        return along * magnification, magnification


def default_scan(
    image_shape: tuple[int, ...],
    pixel: float,
    angles: int | Tensor | None,
    detectors: int | None,
    spacing: float | None,
    radii: tuple[float, float] | None,
) -> Scan:
    """What is not given, by the sampling rules of ODL's default geometries.

    They resolve all that the pixels can hold, and the detector sees every pixel from everywhere. To
    that end it is a little wider for a fan than ODL's, which misses the corners of the image.

    References
    ----------
    Natterer and Wübbeling (2001), Mathematical Methods in Image Reconstruction, pages 71-76.
    """
    radius = pixel * math.hypot(*image_shape) / 2
    if radii is None:
        width, arc = 2 * radius, math.pi
        needed = 2 * math.ceil(radius / pixel) + 1
        turns = math.ceil(math.pi * radius / pixel)
    else:
        distance = sum(radii)
        # The outermost ray touches the circle about the image.
        width = 2 * radius * distance / math.sqrt(radii[0] ** 2 - radius**2)
        arc = 2 * math.pi
        oblique = math.hypot(distance, width / 2)
        needed = 2 * math.ceil(width / pixel * distance / (2 * oblique)) + 1
        turns = math.ceil(2 * math.pi * radius / pixel * distance / (distance + radius))
    if not isinstance(angles, Tensor):
        turns = turns if angles is None else angles
        angles = (torch.arange(turns, dtype=torch.float64) + 0.5) * (arc / turns)
    if detectors is None:
        detectors = needed if spacing is None else math.ceil(width / spacing)
    return Scan(angles, detectors, width / detectors if spacing is None else spacing, radii)


def pixel_centres(image_shape: tuple[int, ...], pixel: float) -> Tensor:
    """``(*image_shape, 2)``, float64."""
    axes = [pixel * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) for n in image_shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def uncovered(scan: Scan, image_shape: tuple[int, ...], pixel: float) -> float:
    """Fraction of the views, one for each pixel and angle, that fall beside the detector."""
    centres, half = pixel_centres(image_shape, pixel), scan.detectors * scan.spacing / 2
    # By so much may rounding take the outermost pixel's centre off a detector that fits exactly.
    limit = half * (1 + 1e-9)
    missed = [
        (scan.shadow(centres, angle)[0].abs() > limit).double().mean() for angle in scan.angles
    ]
    return float(torch.stack(missed).mean())


def blocks(scan: Scan, image_shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First and last ray of blocks that fit in memory."""
    size = max(1, _BLOCK // max(image_shape))
    for first in range(0, scan.num_rays, size):
        yield first, min(first + size, scan.num_rays)


def joseph_weights(
    scan: Scan, first: int, last: int, image_shape: tuple[int, ...], pixel: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Line integrals by Joseph's rule, which ASTRA calls 'linear'.

    A ray is followed along the axis that it is closer to. In every row (or column) of pixels that
    it crosses, the image is interpolated linearly between the two pixels beside the crossing, and
    counts with the length of the ray from one row to the next. Outside the image there is nothing.

    Yields
    ------
    rays, pixels, weights
        Numbers ``(rays,)`` of the rays, counted from ``first``; the flat indices of the pixels that
        they meet and their weights, ``(rays, rows, 2)``. Pixels beside the image have weight zero.

    References
    ----------
    Joseph (1982), An improved algorithm for reprojecting rays through pixel images, IEEE TMI 1(3).
    """
    points, directions = scan.rays(first, last)
    steep = directions[:, 0].abs() >= directions[:, 1].abs()
    for major, chosen in ((0, steep), (1, ~steep)):
        numbers = chosen.nonzero().flatten()
        if len(numbers) == 0:
            continue
        minor, rows, columns = 1 - major, image_shape[major], image_shape[1 - major]
        slope = (directions[numbers, minor] / directions[numbers, major])[:, None]
        centres = torch.arange(rows, dtype=torch.float64) - (rows - 1) / 2
        start = points[numbers] / pixel
        crossing = start[:, minor, None] + (centres - start[:, major, None]) * slope
        crossing = crossing + (columns - 1) / 2
        before = crossing.floor()
        beyond = (crossing - before) * (length := pixel * torch.sqrt(1 + slope**2))
        column = torch.stack([before, before + 1], -1).int()
        inside = (column >= 0) & (column < columns)
        weights = torch.stack([length - beyond, beyond], -1) * inside
        row = torch.arange(rows, dtype=torch.int32)[:, None]
        column = column.clamp(0, columns - 1)
        flat = row * columns + column if major == 0 else column * rows + row
        yield numbers, flat, weights


def joseph_matrix(
    scan: Scan, image_shape: tuple[int, ...], pixel: float, dtype: torch.dtype
) -> Any:
    """All the weights as a ``scipy.sparse.csr_array`` of shape (rays, pixels)."""
    from scipy.sparse import csr_array, vstack

    parts = []
    for first, last in blocks(scan, image_shape):
        numbers, groups = [], []
        for rays, pixels, weights in joseph_weights(scan, first, last, image_shape, pixel):
            kept = (weights > 0).numpy()
            starts = np.concatenate([[0], kept.sum((1, 2)).cumsum()])
            entries = (weights.to(dtype).numpy()[kept], pixels.numpy()[kept], starts)
            groups.append(csr_array(entries, shape=(len(rays), math.prod(image_shape))))
            numbers.append(rays)
        # Rays were grouped by the axis they follow; back to their own order.
        parts.append(vstack(groups, format="csr")[torch.cat(numbers).argsort().numpy()])
    return csr_array(vstack(parts, format="csr"))


def _axes(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors along and across the detector."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)
