"""An approximate inverse of the line integrals: filter each projection, smear it back."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from bayesgen.errors import OptionError, unknown_option
from bayesgen.operators.rays import Scan, pixel_centres

Window = Literal["ramp", "hann", "cosine"]


def filtered_back_projection(
    y: Tensor, scan: Scan, image_shape: tuple[int, ...], pixel: float, window: str = "ramp"
) -> Tensor:
    """Reconstruct images ``(*batch, *image_shape)`` from sinograms ``(*batch, angles, detectors)``.

    Each view is filtered with the ramp, sampled in space so that its mean is right; a fan's is
    first weighted by the cosine of the ray. Each pixel then collects, from all angles, the
    filtered value at its shadow on the detector, interpolated linearly; a fan's counts by the
    square of the magnification.

    Raises
    ------
    OptionError
        If the window is unknown, or a fan beam does not go all the way round.

    References
    ----------
    Kak and Slaney (1988), Principles of Computerized Tomographic Imaging, sections 3.3 and 3.4.
    """
    if window not in get_args(Window):
        raise OptionError(unknown_option("window", window, get_args(Window)))
    spacing, weights = scan.spacing, _angle_weights(scan)
    if scan.radii is not None:
        source, distance = scan.radii[0], sum(scan.radii)
        cosine = distance / torch.hypot(scan.positions, torch.tensor(distance, dtype=torch.float64))
        y = y * cosine.to(y)
        # Kak and Slaney's formula is for a detector that passes through the origin.
        spacing, weights = spacing * source / distance, weights * (source / distance) ** 2
    filtered = _filter(y, spacing, window)
    centres = pixel_centres(image_shape, pixel)
    image = y.new_zeros((*y.shape[:-2], math.prod(image_shape)))
    for k, angle in enumerate(scan.angles):
        shadow, magnification = scan.shadow(centres.flatten(0, 1), angle)
        place = shadow / scan.spacing + (scan.detectors - 1) / 2
        seen = (place >= -0.5) & (place <= scan.detectors - 0.5)
        left = place.floor().clamp(0, max(scan.detectors - 2, 0))
        right = (left + 1).clamp(max=scan.detectors - 1)
        fraction = (place - left).clamp(0, 1).to(y)
        scale = float(weights[k]) * seen.to(y)
        if scan.radii is not None:
            scale = scale * magnification.square().to(y)
        view = filtered[..., k, :]
        low, high = (view[..., at.long().to(y.device)] for at in (left, right))
        image = image + scale * (low + fraction * (high - low))
    return image.reshape(*y.shape[:-2], *image_shape)


def _filter(y: Tensor, spacing: float, window: str) -> Tensor:
    """Convolve each view with the ramp filter, without wrapping around."""
    size = y.shape[-1]
    if y.numel() == 0:
        return y
    length = 2 ** math.ceil(math.log2(2 * size))
    step = torch.arange(length, dtype=torch.float64)
    step = torch.minimum(step, length - step)
    kernel = torch.where(step % 2 == 1, -1 / (math.pi * step).square().clamp(min=1e-300), 0.0)
    kernel[0] = 0.25
    response = torch.fft.rfft(kernel).real / spacing
    frequency = torch.linspace(0, 1, len(response), dtype=torch.float64)
    if window == "hann":
        response = response * torch.cos(math.pi / 2 * frequency).square()
    elif window == "cosine":
        response = response * torch.cos(math.pi / 2 * frequency)
    spectrum = torch.fft.rfft(y, n=length) * response.to(y)
    filtered: Tensor = torch.fft.irfft(spectrum, n=length)[..., :size]
    return filtered


def _angle_weights(scan: Scan) -> Tensor:
    """How much of the half turn (of twice it, for fans) each angle stands for."""
    period = math.pi if scan.radii is None else 2 * math.pi
    wrapped, order = (scan.angles % period).sort()
    gaps = torch.cat([wrapped, wrapped[:1] + period]).diff()
    # Several turns bring angles close together or on top of each other: compare with the mean.
    usual = (period - float(gaps.max())) / max(len(gaps) - 1, 1) or period
    if scan.radii is not None and float(gaps.max()) > 3 * usual:
        raise OptionError(
            "filtered back-projection of a fan beam needs angles all the way round, but the "
            f"largest gap is {math.degrees(float(gaps.max())):.3g} degrees"
        )
    # What a gap hides belongs to nobody: angles at its edges stand for no more than others.
    gaps = torch.where(gaps > 3 * usual, usual, gaps)
    weights = torch.empty_like(gaps)
    weights[order] = (gaps + gaps.roll(1)) / 2
    return weights if scan.radii is None else weights / 2
