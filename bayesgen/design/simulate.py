"""A measurement to try designs on: a known image, and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayesgen.design.pool import Pool
from bayesgen.errors import OptionError
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

    Examples
    --------
    >>> measure = simulate(Pool.pixels((2, 2)), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> measure([3, 0])
    tensor([4., 1.])
    """
    require_finite("truth", truth)
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < 1e300:
        raise OptionError(f"noise: got {noise!r}; expected a number that is not negative")
    clean = pool.data(truth.detach())
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)
    noisy = clean + noise * drawn

    def measure(candidates: Sequence[int]) -> Tensor:
        return noisy[list(candidates)].reshape(len(candidates), *pool.value_shape)

    return measure
