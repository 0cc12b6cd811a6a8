"""Statistics of image-sized quantities over many draws, one chunk of draws at a time.

Memory does not grow with the number of draws: moments are updated chunk by chunk, and quantiles
come from histograms when the draws do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import ShapeError

# Chunks have shape (k, *shape): k draws of a quantity. Every call starts a new pass over them.
Chunks = Callable[[], Iterable[Tensor]]

NUM_BINS = 1024
# Elements whose histograms are held at once (256 MiB); more take further passes over the draws.
MAX_HISTOGRAMS = 2**16
# Elements whose draws are sorted at once: sorting takes three times their memory.
SORTED_ELEMENTS = 1024


class Moments(NamedTuple):
    """Number of draws, mean, variance (divisor n - 1) and range of a quantity over all draws."""

    num_draws: int
    mean: Tensor
    variance: Tensor
    minimum: Tensor
    maximum: Tensor


def moments(chunks: Chunks) -> Moments:
    """One pass over the draws (Chan, Golub and LeVeque 1979); chunks are merged in float64.

    The variance of a single draw is NaN. Truth values count as 0 and 1.

    Examples
    --------
    >>> import torch
    >>> draws = torch.arange(10.0)
    >>> moments(lambda: draws.split(3)).mean
    tensor(4.5000)
    """
    count = 0
    mean = squares = minimum = maximum = torch.zeros(())
    dtype = torch.get_default_dtype()
    for chunk in chunks():
        dtype = _real_dtype(chunk)
        chunk = chunk.to(dtype)
        size, low, high = len(chunk), chunk.amin(0), chunk.amax(0)
        # Within a chunk, distances from its first draw are accurate in their own dtype, and fast.
        first = chunk[0]
        distance = chunk - first
        offset = distance.mean(0)
        spread = distance.sub_(offset).square_().sum(0).double()
        centre = first.double() + offset.double()
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
    """Fraction of draws above ``threshold``, element by element.

    Raises
    ------
    ShapeError
        If a tensor of thresholds does not broadcast to the shape of one draw.

    Examples
    --------
    >>> import torch
    >>> draws = torch.arange(10.0)
    >>> exceedance(lambda: draws.split(3), 6.5)
    tensor(0.3000)
    """
    above, count = torch.zeros(()), 0
    dtype = torch.get_default_dtype()
    for chunk in chunks():
        limit = torch.as_tensor(threshold, device=chunk.device)
        if count == 0 and not _broadcasts(limit.shape, chunk.shape[1:]):
            raise ShapeError(
                f"threshold: has shape {tuple(limit.shape)}; expected a number or a shape that "
                f"broadcasts to {tuple(chunk.shape[1:])}"
            )
        dtype = _real_dtype(chunk)
        above = (chunk > limit).sum(0) + above.to(chunk.device)
        count += len(chunk)
    return (above.double() / count).to(dtype)


def exact_quantiles(chunks: Chunks, levels: Sequence[float]) -> Tensor:
    """Quantiles of every element, ``(len(levels), *shape)``; holds all draws in memory.

    Linear interpolation between order statistics, as ``torch.quantile``, whose limit of 16 million
    numbers does not apply.

    Examples
    --------
    >>> import torch
    >>> draws = torch.arange(10.0)
    >>> exact_quantiles(lambda: draws.split(3), [0.0, 0.5])
    tensor([0.0000, 4.5000])
    """
    drawn = torch.cat([chunk.to(_real_dtype(chunk)) for chunk in chunks()])
    columns = drawn.flatten(1) if drawn.ndim > 1 else drawn[:, None]
    results = []
    for block in torch.split(columns, SORTED_ELEMENTS, dim=1):
        ordered = block.sort(dim=0).values
        results.append(
            torch.stack([_interpolate(ordered.__getitem__, len(ordered), q) for q in levels])
        )
    return torch.cat(results, dim=1).reshape(len(levels), *drawn.shape[1:])


def histogram_quantiles(chunks: Chunks, levels: Sequence[float], known: Moments) -> Tensor:
    """Quantiles of every element, ``(len(levels), *shape)``, in constant memory.

    Each element has a histogram of 1024 bins between its extremes, which places every order
    statistic within one bin; the result is off the exact quantile by at most the width of a bin.

    Parameters
    ----------
    chunks
        The draws.
    levels
        Probabilities in [0, 1].
    known
        The moments of the same draws.

    Examples
    --------
    >>> import torch
    >>> draws = torch.arange(10.0)
    >>> chunks = lambda: draws.split(3)
    >>> bool((histogram_quantiles(chunks, [0.5], moments(chunks)) - 4.5).abs() < 9 / 1024)
    True
    """
    shape, num_elements = known.minimum.shape, known.minimum.numel()
    results = [
        _quantiles_of_block(chunks, levels, known, slice(begin, begin + MAX_HISTOGRAMS))
        for begin in range(0, num_elements, MAX_HISTOGRAMS)
    ]
    return torch.cat(results, dim=1).reshape(len(levels), *shape)


def _quantiles_of_block(
    chunks: Chunks, levels: Sequence[float], known: Moments, elements: slice
) -> Tensor:
    low = known.minimum.flatten()[elements]
    span = known.maximum.flatten()[elements] - low
    scale = NUM_BINS / torch.where(span > 0, span, 1.0)
    counts = torch.zeros(len(low), NUM_BINS, dtype=torch.int32, device=low.device)
    one = counts.new_ones(())
    for chunk in chunks():
        values = chunk.reshape(len(chunk), -1)[:, elements].to(low.dtype)
        bins = values.sub(low).mul_(scale).long().clamp_(0, NUM_BINS - 1)
        counts.scatter_add_(1, bins.T, one.expand(bins.T.shape))
    below = counts.cumsum(1, dtype=torch.int32)

    def order_statistic(rank: int) -> Tensor:
        wanted = torch.full((len(low), 1), rank + 1, dtype=torch.int32, device=low.device)
        bin_of = torch.searchsorted(below, wanted)
        inside = counts.gather(1, bin_of)
        place = (wanted - below.gather(1, bin_of) + inside - 0.5) / inside
        return low + span * ((bin_of + place)[:, 0] / NUM_BINS).to(span.dtype)

    return torch.stack([_interpolate(order_statistic, known.num_draws, q) for q in levels])


def _interpolate(order_statistic: Callable[[int], Tensor], count: int, level: float) -> Tensor:
    place = level * (count - 1)
    below = math.floor(place)
    above = min(below + 1, count - 1)
    return torch.lerp(order_statistic(below), order_statistic(above), place - below)


def _real_dtype(chunk: Tensor) -> torch.dtype:
    return chunk.dtype if chunk.is_floating_point() else torch.get_default_dtype()


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )
