from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from bayesgen.operators import gaussian_kernel
from bayesgen.operators.convolution import Boundary
from bayesgen.operators.separable import axis_matrices, filter_axes, norm_of_axes, separate

MODES = {"zero": "constant", "periodic": "wrap", "reflect": "reflect"}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_terms_add_up_to_the_kernel(rank: int, rng: torch.Generator) -> None:
    left = torch.randn(rank, 5, generator=rng, dtype=torch.float64)
    right = torch.randn(rank, 4, generator=rng, dtype=torch.float64)
    kernel = left.T @ right
    along_y, along_x = separate(kernel)
    assert (len(along_y), len(along_x)) == (rank, rank)
    assert torch.allclose(along_y.T @ along_x, kernel)
    assert len(separate(kernel.float())[0]) == rank
    assert torch.equal(separate(torch.zeros(3, 3))[0], torch.zeros(1, 3).double())


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("size", [(3, 3), (4, 5), (1, 2)])
def test_is_the_convolution_of_scipy(
    boundary: Boundary, size: tuple[int, int], rng: torch.Generator
) -> None:
    kernel = torch.randn(size, generator=rng, dtype=torch.float64)
    x = torch.randn(2, 7, 6, generator=rng, dtype=torch.float64)
    profiles = separate(kernel)
    keep = slice(1, None, 2), slice(None)
    along_y = axis_matrices(profiles[0], 7, boundary, keep[0])
    along_x = axis_matrices(profiles[1], 6, boundary, keep[1])
    found = filter_axes(x, along_y, along_x)
    for image, result in zip(x, found, strict=True):
        exact = scipy.ndimage.convolve(image.numpy(), kernel.numpy(), mode=MODES[boundary])
        assert np.allclose(result, exact[keep], atol=1e-12)
    wrong = filter_axes(x, along_y.flip(1), along_x)
    assert not torch.allclose(wrong, found)


def test_norm() -> None:
    profiles = separate(gaussian_kernel((3, 5), 1.0, dtype=torch.float64))
    along_y = axis_matrices(profiles[0], 7, "zero", slice(None))
    along_x = axis_matrices(profiles[1], 6, "zero", slice(None))
    dense = torch.kron(along_y[0], along_x[0])
    assert norm_of_axes(along_y, along_x) == pytest.approx(float(torch.linalg.norm(dense, 2)))
    assert norm_of_axes(along_y.repeat(2, 1, 1), along_x.repeat(2, 1, 1)) is None
