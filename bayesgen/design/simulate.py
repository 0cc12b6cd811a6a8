"""A measurement to try designs on: a known image, and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index

import torch
from torch import Tensor

from bayesgen.design.pool import Pool
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators.inputs import require_finite


def simulate(
    pool: Pool, truth: Tensor, noise: float = 0.0, *, seed: int = 0
) -> Callable[[Sequence[int]], Tensor]:
    """A function that measures candidates of a known image.

    The noise of a candidate is the same whenever and in whatever order it is measured, so that
    designs are compared on the same data.

    Parameters
    ----------
    pool
        What can be measured.
    truth
        The image.
    noise
        Standard deviation of normal noise; none by default.
    seed
        Seed of the noise.

    Returns
    -------
    callable
        From k numbers of candidates to their data, ``(k, *pool.value_shape)``.

    Raises
    ------
    DtypeError, ShapeError, DataError, OptionError
        If the truth is not one finite image of the pool's operator, the noise is negative, or (by
        the function) a candidate does not exist.

    Examples
    --------
    >>> measure = simulate(Pool.pixels((2, 2)), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> measure([3, 0])
    tensor([4., 1.])
    """
    shape = pool.operator.domain_shape
    if not isinstance(truth, Tensor):
        raise DtypeError(f"truth: expected a tensor, got {type(truth).__name__}")
    if tuple(truth.shape) != shape:
        raise ShapeError(f"truth: expected shape {shape}, one image, got {tuple(truth.shape)}")
    require_finite("truth", truth)
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < 1e300:
        raise OptionError(f"noise: got {noise!r}; expected a number that is not negative")
    clean = pool.data(truth.detach())
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)
    noisy = clean + noise * drawn

    def measure(candidates: Sequence[int]) -> Tensor:
        try:
            chosen = [index(c) for c in candidates]
        except TypeError:
            chosen = [-1]
        if any(not 0 <= c < pool.num_candidates for c in chosen):
            raise OptionError(
                f"candidates: got {candidates!r}; expected numbers from 0 to "
                f"{pool.num_candidates - 1}"
            )
        return noisy[chosen].reshape(len(chosen), *pool.value_shape)

    return measure
