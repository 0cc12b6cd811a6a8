"""Filters that act along y and x in turn: products with small dense matrices.

A kernel of rank one (every Gaussian and every box) is a filter along ``y`` after one along ``x``.
Each is a matrix, into which the boundary and the pixels kept are worked: two small matrix products
are faster than Fourier transforms for images of moderate size. A kernel of higher rank is a sum of
such terms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesgen.operators.convolution import Boundary, Torus


def separate(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Profiles ``(term, y)`` and ``(term, x)``, float64, whose products add up to the kernel.

    Terms that are rounding errors of the kernel's dtype are left out; at least one is returned.
    """
    left, values, right = torch.linalg.svd(kernel.double(), full_matrices=False)
    kept = values > 4 * torch.finfo(kernel.dtype).eps * values[0]
    kept[0] = True
    return (left * values).mT[kept], right[kept]


def axis_matrices(profiles: Tensor, size: int, boundary: Boundary, keep: slice) -> Tensor:
    """Matrices ``(term, kept, size)`` that filter an axis and keep some of its entries."""
    torus = Torus((size, 1), (profiles.shape[-1], 1), boundary)
    transfer = torch.fft.rfft2(torus.spread(profiles[..., None]))
    columns = torch.eye(size, dtype=profiles.dtype)[:, :, None]
    filtered = torus.convolve(columns, transfer.unsqueeze(-3))[..., 0]
    return filtered.mT[:, keep].contiguous()


def filter_axes(x: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    """The sum over terms of ``along_y @ x @ along_x.T``, for ``x`` of shape (*batch, y, x)."""
    terms = zip(along_y, along_x, strict=True)
    results = [matrix_y @ (x @ matrix_x.mT) for matrix_y, matrix_x in terms]
    return results[0] if len(results) == 1 else torch.stack(results).sum(0)


def norm_of_axes(along_y: Tensor, along_x: Tensor) -> float | None:
    """Norm of `filter_axes`; known in closed form for one term only."""
    if len(along_y) > 1:
        return None
    parts = (along_y[0], along_x[0])
    return math.prod(float(torch.linalg.matrix_norm(part.double(), ord=2)) for part in parts)
