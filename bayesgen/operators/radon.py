"""X-ray tomography: line integrals through the image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesgen._linear_map import LinearMap
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators.base import Operator
from bayesgen.operators.filtered_back_projection import filtered_back_projection
from bayesgen.operators.inputs import (
    as_constant,
    as_count,
    as_positive,
    as_shape,
    require_finite,
)
from bayesgen.operators.opaque import Opaque
from bayesgen.operators.rays import (
    Scan,
    blocks,
    default_scan,
    joseph_matrix,
    joseph_weights,
    uncovered,
)
from bayesgen.operators.sparse import SparseMatrix

# A stored matrix and its transpose may be estimated to take so much.
_STORED_BYTES = 3 * 2**30


class Radon(Operator):
    r"""Line integrals of the image, from parallel or diverging (fan) rays: a sinogram.

    Coordinates, the order of the axes, angles and defaults are those of ODL's
    ``parallel_beam_geometry`` and ``cone_beam_geometry`` for an image space with pixels of side
    ``pixel``, so that both give the same array for the same array (`Scan` has the formulas); only
    the default detector of a fan is wider, for ODL's misses the corners of the image. Rays are
    integrated by Joseph's linear interpolation, as by ASTRA's 'linear' projector, in either
    precision, with the exact adjoint. (For fans on the CPU, ASTRA has a less accurate rule.)

    ``A[angles]`` is the transform for some of the angles only.

    Parameters
    ----------
    image_shape
        ``(y, x)``; square or not.
    angles
        Number of angles, in the middles of equal parts of a half turn (parallel) or full turn
        (fan); or the angles themselves in radians, increasing. Default: as many as resolve what
        the pixels can hold.
    detectors
        Number of detector pixels. Default: as many as that takes, or as ``spacing`` makes needed.
    spacing
        Distance between the centres of detector pixels, in the unit of ``pixel``. Default: the
        detector sees the whole image.
    fan
        ``(source, detector)``: their distances from the middle of the image. Default: parallel.
    pixel
        Side of a pixel. The default, 1, measures everything in pixels.
    stored
        Whether to keep the matrix and, once needed, its transpose: much faster than following the
        rays anew every time, which needs next to no memory. Default: if the two take
        less than 3 GiB (256 x 256 pixels from 360 angles take 0.7 GiB in single precision).
    dtype
        Of the stored matrix, and so of the images it takes.

    Raises
    ------
    OptionError
        If a number is not positive, angles do not increase, or the source is inside the image.
    ShapeError
        If the image is not two-dimensional.
    DtypeError
        If the dtype is not single or double precision, or angles are not real numbers.
    DataError
        If an angle is not finite.

    Warns
    -----
    UserWarning
        If part of the image is not seen by the detector, or the angles look like degrees.

    References
    ----------
    Joseph (1982), IEEE TMI 1(3); Natterer and Wübbeling (2001), chapters 3 and 4.

    Examples
    --------
    >>> A = Radon((28, 28))
    >>> A.range_shape, A[[5, 20]].range_shape
    ((63, 41), (2, 41))
    >>> point = torch.zeros(28, 28)
    >>> point[10, 20] = 1.0
    >>> A.pseudo_inverse(A(point)).argmax() == 10 * 28 + 20
    tensor(True)
    """

    scan: Scan
    product: Operator

    def __init__(
        self,
        image_shape: Sequence[int],
        angles: int | Sequence[float] | Tensor | None = None,
        detectors: int | None = None,
        spacing: float | None = None,
        *,
        fan: tuple[float, float] | None = None,
        pixel: float = 1.0,
        stored: bool | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = as_shape("image_shape", image_shape)
        if len(shape) != 2:
            raise ShapeError(f"image_shape: expected (y, x), got {shape}")
        if dtype not in (torch.float32, torch.float64):
            raise DtypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        pixel = as_positive("pixel", pixel)
        detectors = None if detectors is None else as_count("detectors", detectors)
        spacing = None if spacing is None else as_positive("spacing", spacing)
        if fan is not None:
            _check_fan(fan, pixel * math.hypot(*shape) / 2)
        scan = default_scan(shape, pixel, _as_angles(angles), detectors, spacing, fan)
        if detectors is not None or spacing is not None:
            _warn_of_uncovered(uncovered(scan, shape, pixel))
        if stored is None:
            stored = _estimated_bytes(scan, shape, dtype) < _STORED_BYTES
        range_shape = (len(scan.angles), scan.detectors)
        product: Operator
        if stored:
            product = SparseMatrix(joseph_matrix(scan, shape, pixel, dtype), shape, range_shape)
        else:
            product = _RayByRay(scan, shape, pixel)
        self._assemble(scan, pixel, product)

    def _assemble(self, scan: Scan, pixel: float, product: Operator) -> None:
        super().__init__(product.domain_shape, product.range_shape)
        self.scan = scan
        self.pixel = pixel
        self.product = product

    @property
    def angles(self) -> Tensor:
        """The angles in radians, float64."""
        return self.scan.angles

    def pseudo_inverse(self, y: Tensor, window: str = "ramp") -> Tensor:
        """Filtered back-projection, an approximate inverse: ``(*batch, *range_shape)`` to images.

        Parameters
        ----------
        y
            Sinograms. Fan beams must go all the way round.
        window
            What tempers the ramp filter: ``"ramp"`` nothing, ``"hann"`` or ``"cosine"`` a
            window that falls to zero at the highest frequency, for noisy data.

        Raises
        ------
        OptionError
            If the window is unknown, or a fan beam does not go all the way round.
        """
        self._check("y", y, self.range_shape)
        require_finite("y", y)
        return filtered_back_projection(y, self.scan, self.domain_shape, self.pixel, window)

    def _forward(self, x: Tensor) -> Tensor:
        return self.product._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.product._adjoint(y)

    def _select(self, indices: Tensor) -> Operator:
        detectors = self.scan.detectors
        whole = indices.ndim == 2 and indices.shape[1] == detectors
        if not (whole and torch.equal(indices, indices[:, :1] + torch.arange(detectors))):
            return self.product._select(indices)
        angles = indices[:, 0] // detectors
        scan = Scan(self.scan.angles[angles], detectors, self.scan.spacing, self.scan.radii)
        selected = Radon.__new__(Radon)
        if isinstance(self.product, SparseMatrix):
            selected._assemble(scan, self.pixel, self.product._select(indices))
        else:
            ray_by_ray = _RayByRay(scan, self.domain_shape, self.pixel)
            selected._assemble(scan, self.pixel, ray_by_ray)
        return selected

    def get_extra_state(self) -> Tensor:
        """The angles, for ``state_dict``."""
        return self.scan.angles

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the state of a scan from other angles.

        Raises
        ------
        DataError
            If the angles differ.
        """
        if not torch.equal(state.to(self.scan.angles), self.scan.angles):
            raise DataError(f"{self}: the state is that of a scan from other angles")

    def extra_repr(self) -> str:
        """Shapes, kind of rays and memory, for ``repr``."""
        rays = "parallel" if self.scan.radii is None else f"fan{self.scan.radii}"
        memory = "not stored"
        if isinstance(self.product, SparseMatrix):
            memory = f"{self.product.num_bytes / 2**20:.1f} MiB"
        return f"{super().extra_repr()}, {rays}, {memory}"


class _RayByRay(Opaque):
    """The same products without a stored matrix: the weights are worked out each time."""

    def __init__(self, scan: Scan, image_shape: tuple[int, ...], pixel: float) -> None:
        super().__init__(image_shape, (len(scan.angles), scan.detectors))
        self.map = _RayProduct(scan, image_shape, pixel)

    def _map(self) -> LinearMap:
        return self.map


class _RayProduct(LinearMap):
    def __init__(self, scan: Scan, image_shape: tuple[int, ...], pixel: float) -> None:
        super().__init__(math.prod(image_shape), scan.num_rays)
        self.scan = scan
        self.image_shape = image_shape
        self.pixel = pixel

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), self.range_size)
        for rays, pixels, weights in self._weights(x):
            # One image after the other: gathering for all at once would multiply the memory.
            for image, data in zip(x, y, strict=True):
                data[rays] = (image[pixels] * weights).sum((-2, -1))
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), self.domain_size)
        for rays, pixels, weights in self._weights(y):
            for image, data in zip(x, y, strict=True):
                image.index_add_(0, pixels.flatten(), (data[rays, None, None] * weights).flatten())
        return x

    def _weights(self, like: Tensor) -> Any:
        for first, last in blocks(self.scan, self.image_shape):
            block = joseph_weights(self.scan, first, last, self.image_shape, self.pixel)
            for rays, pixels, weights in block:
                yield (first + rays).to(like.device), pixels.to(like.device), weights.to(like)


def _as_angles(angles: Any) -> int | Tensor | None:
    if angles is None or (angles.ndim if isinstance(angles, Tensor) else np.ndim(angles)) == 0:
        return None if angles is None else as_count("angles", angles)
    if not isinstance(angles, Tensor):
        try:  # in double precision, which a list of Python numbers would not become by itself
            angles = np.asarray(angles, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DtypeError(f"angles: expected real numbers, got {angles!r}") from error
    values = as_constant("angles", angles).to("cpu", torch.float64)
    if values.ndim != 1 or len(values) == 0:
        raise OptionError(
            f"angles: expected a number or a list of them, got the shape {tuple(values.shape)}"
        )
    if not torch.isfinite(values).all():
        raise DataError("angles: one of them is NaN or infinite")
    falling = (values.diff() <= 0).nonzero()
    if len(falling):
        k = int(falling[0])
        raise OptionError(
            f"angles: expected increasing ones, each once, but angle {k + 1} is "
            f"{float(values[k + 1]):.6g} after {float(values[k]):.6g}"
        )
    if float(values[-1] - values[0]) > 8 * math.pi:
        warnings.warn(
            f"angles: they span {float(values[-1] - values[0]):.4g} radians, more than four turns; "
            "convert degrees with numpy.deg2rad",
            UserWarning,
            stacklevel=3,
        )
    return values


def _check_fan(fan: tuple[float, float], radius: float) -> None:
    if not isinstance(fan, tuple | list) or len(fan) != 2:
        raise OptionError(f"fan: expected (source, detector), their distances, got {fan!r}")
    for value in fan:
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise OptionError(f"fan: expected two distances, got {fan!r}")
    if fan[0] <= radius:
        raise OptionError(
            f"fan: the source, {fan[0]} from the middle, is not outside the circle of radius "
            f"{radius:.6g} about the image"
        )


def _warn_of_uncovered(fraction: float) -> None:
    if fraction > 0:
        warnings.warn(
            f"Radon: the detector is too small to see the whole image: {fraction:.2%} of the views "
            "of a pixel fall beside it; give it more or wider pixels (detectors=, spacing=)",
            UserWarning,
            stacklevel=3,
        )


def _estimated_bytes(scan: Scan, image_shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """At most: every ray crosses the image along its longer side."""
    return 2 * scan.num_rays * max(image_shape) * 2 * (4 + dtype.itemsize)
