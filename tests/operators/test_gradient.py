from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.operators.gradient import Gradient

NUMPY_MODE = {"zero": "constant", "periodic": "wrap", "reflect": "symmetric"}


def _random(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _reference(x: Tensor, mode: Any) -> Tensor:
    """Along y and x, with NumPy's idea of the boundary."""
    rows = np.diff(np.pad(x.numpy(), ((0, 1), (0, 0)), mode=mode), axis=0)
    columns = np.diff(np.pad(x.numpy(), ((0, 0), (0, 1)), mode=mode), axis=1)
    return torch.as_tensor(np.stack([rows, columns]))


@pytest.mark.parametrize("boundary", NUMPY_MODE)
@pytest.mark.parametrize("shape", [(5, 7), (6, 2), (1, 4), (3, 1), (1, 1)])
def test_agrees_with_numpy(boundary: Any, shape: tuple[int, int]) -> None:
    x = _random(*shape)
    torch.testing.assert_close(Gradient(shape, boundary)(x), _reference(x, NUMPY_MODE[boundary]))


@pytest.mark.parametrize("boundary", NUMPY_MODE)
def test_comparison_with_numpy_notices_mistakes(boundary: Any) -> None:
    """Another boundary, axes exchanged, the other sign, backward differences."""
    x = _random(6, 6)
    result, right = Gradient((6, 6), boundary)(x), _reference(x, NUMPY_MODE[boundary])
    wrong = [_reference(x, mode) for mode in NUMPY_MODE.values() if mode != NUMPY_MODE[boundary]]
    wrong += [right.flip(0), -right, -_reference(x.flip(0, 1), NUMPY_MODE[boundary]).flip(1, 2)]
    assert all((result - mistake).abs().max() > 0.1 for mistake in wrong)


def test_channels_are_taken_one_by_one() -> None:
    x = _random(4, 3, 5, 6)
    result = Gradient((3, 5, 6), "zero")(x)
    assert result.shape == (4, 2, 3, 5, 6)
    torch.testing.assert_close(result.movedim(1, 2), Gradient((5, 6), "zero")(x))


@pytest.mark.parametrize("boundary", NUMPY_MODE)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 1), (1, 5), (4, 1), (2, 2), (3, 2), (4, 5), (7, 3), (2, 3, 4)]
)
def test_norm_is_exact(boundary: Any, shape: tuple[int, ...]) -> None:
    A = Gradient(shape, boundary)
    size = math.prod(shape)
    dense = A(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1)
    exact = float(torch.linalg.matrix_norm(dense, 2))
    assert A.norm() == pytest.approx(exact, rel=1e-12, abs=1e-14)
    # The bound that is often taken for it is further off.
    if max(shape[-2:]) > 1 and boundary != "periodic":
        assert abs(math.sqrt(8) - exact) > 1e-3


def test_null_space() -> None:
    flat = torch.ones(5, 4, dtype=torch.float64)
    assert not Gradient((5, 4)).forward(flat).any()
    assert not Gradient((5, 4), "periodic")(flat).any()
    assert Gradient((5, 4), "zero")(flat).abs().sum() == 9
    assert Gradient((1, 1)).norm() == Gradient((1, 1), "periodic").norm() == 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((4,),), ShapeError, r"expected \(y, x\) or \(channel, y, x\), got \(4,\)"),
        (((1, 1, 4, 4),), ShapeError, r"expected \(y, x\) or \(channel, y, x\)"),
        (((4, 0),), OptionError, "domain_shape: expected a tuple of positive integers"),
        (((4, 4), "neumann"), OptionError, "boundary: unknown value 'neumann'; expected one of"),
        (((4, 4), "periodc"), OptionError, "did you mean 'periodic'?"),
    ],
)
def test_bad_gradients(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Gradient(*arguments)
