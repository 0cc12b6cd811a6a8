"""Statistics of image-sized quantities over many draws, one chunk of draws at a time.

Memory does not grow with the number of draws: moments are updated chunk by chunk, and quantiles
come from histograms when the draws do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Chunks have shape (k, *shape): k draws of a quantity.
Chunks = Callable[[], Iterable[Tensor]]

NUM_BINS = 1024


class Moments(NamedTuple):
    """Count, mean, variance (divisor n - 1) and range of a quantity over all draws."""

    count: int
    mean: Tensor
    variance: Tensor
    minimum: Tensor
    maximum: Tensor


def moments(chunks: Chunks) -> Moments:
    """One pass over the draws (Chan, Golub and LeVeque 1979), accumulated in float64.

    Examples
    --------
    >>> import torch
    >>> draws = torch.arange(10.0)
    >>> moments(lambda: draws.split(3)).mean
    tensor(4.5000)
    """
    count = 0
    mean = squares = minimum = maximum = torch.zeros(())
    dtype = torch.float64
    for chunk in chunks():
        dtype, chunk = chunk.dtype, chunk.double()
        size, centre = len(chunk), chunk.mean(0)
        spread = (chunk - centre).square().sum(0)
        low, high = chunk.amin(0), chunk.amax(0)
        if count == 0:
            mean, squares, minimum, maximum = centre, spread, low, high
        else:
            shift, total = centre - mean, count + size
            squares = squares + spread + shift.square() * (count * size / total)
            mean = mean + shift * (size / total)
            minimum, maximum = torch.minimum(minimum, low), torch.maximum(maximum, high)
        count += size
    variance = squares / (count - 1) if count > 1 else torch.full_like(mean, torch.nan)
    values = (t.to(dtype) for t in (mean, variance, minimum, maximum))
    return Moments(count, *values)


def exceedance(chunks: Chunks, threshold: float | Tensor) -> Tensor:
    """Fraction of draws above ``threshold``."""
    above, count = torch.zeros(()), 0
    for chunk in chunks():
        above = above + (chunk > threshold).double().sum(0)
        count += len(chunk)
    return above / count


def quantiles(
    chunks: Chunks, levels: Sequence[float], known: Callable[[], Moments], max_bytes: int, size: int
) -> Tensor:
    """Quantiles of every element, ``(len(levels), *shape)``.

    Parameters
    ----------
    chunks
        The draws.
    levels
        Probabilities in [0, 1].
    known
        Gives the moments of the same draws; asked only if histograms are needed.
    max_bytes
        Draws that fit are held in memory and their quantiles are exact (linear interpolation
        between order statistics, as ``torch.quantile``). Otherwise they come from histograms of
        1024 bins between each element's extremes, and are that accurate.
    size
        Bytes that all draws would take.
    """
    if size <= max_bytes:
        ordered = torch.cat(list(chunks())).sort(dim=0).values
        return torch.stack([_interpolate(ordered, level) for level in levels])
    extremes = known()
    low, span = extremes.minimum.flatten(), (extremes.maximum - extremes.minimum).flatten()
    counts = torch.zeros(len(low), NUM_BINS, dtype=torch.int64, device=low.device)
    scale = NUM_BINS / span.clamp(min=torch.finfo(span.dtype).tiny)
    for chunk in chunks():
        bins = ((chunk.flatten(1) - low) * scale).long().clamp(0, NUM_BINS - 1)
        counts.scatter_add_(1, bins.T, torch.ones_like(bins.T))
    cumulative = counts.cumsum(1).double()
    results = []
    for level in levels:
        rank = torch.full((len(low), 1), level * extremes.count, dtype=torch.float64).to(low.device)
        index = torch.searchsorted(cumulative, rank).clamp(max=NUM_BINS - 1)
        inside = counts.gather(1, index).double().clamp(min=1)
        before = cumulative.gather(1, index) - inside
        position = index + ((rank - before) / inside).clamp(0, 1)
        results.append(low + span * (position[:, 0] / NUM_BINS).to(span.dtype))
    return torch.stack(results).reshape(len(levels), *extremes.minimum.shape)


def _interpolate(ordered: Tensor, level: float) -> Tensor:
    place = level * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)
