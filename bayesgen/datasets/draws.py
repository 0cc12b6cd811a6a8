"""What the simulated data sets share: seeded draws, and what is asked for, checked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError


def uniform_rows(
    num: int, columns: int, *, seed: int, block: int
) -> Iterator[tuple[slice, Tensor]]:
    """Draw uniform numbers in double precision, ``columns`` an image, a block of images at a time.

    All come from one stream, so that an image's numbers depend on its place alone, neither on how
    many images are drawn nor on the size of the blocks.
    """
    rng = seeded(seed)
    for start in range(0, num, block):
        rows = slice(start, min(start + block, num))
        count = rows.stop - rows.start
        yield rows, torch.rand(count, columns, generator=rng, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    """A generator for the seed, which must be an integer from 0 to 2**63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise OptionError(f"seed: got {seed!r}; expected an integer from 0 to 2**63 - 1")
    return torch.Generator().manual_seed(seed)


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse a dtype that images cannot have."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DtypeError(f"dtype: expected a real floating-point dtype of torch, got {dtype!r}")
