from __future__ import annotations

from typing import Any

import pytest
import torch

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators import Blur, GaussianMatrix, Identity, Mask, Nonlinear, Stack

SHAPE = (4, 5)


def _parts() -> list[Any]:
    kernel = torch.tensor([[1.0, 2.0, 1.0]]) / 4
    return [Blur(SHAPE, kernel), Mask(torch.eye(4, 5) > 0), GaussianMatrix(SHAPE, 3)]


def test_data_are_put_end_to_end(rng: torch.Generator) -> None:
    parts = _parts()
    A = Stack(parts)
    x = torch.randn(2, *SHAPE, generator=rng)
    assert A.range_shape == (20 + 4 + 3,)
    expected = [part(x) for part in parts]
    assert torch.equal(A(x), torch.cat([y.flatten(1) for y in expected[:1]] + expected[1:], 1))
    for found, exact in zip(A.split(A(x)), expected, strict=True):
        assert torch.equal(found, exact)
    assert torch.equal(A.join(expected), A(x))
    assert torch.allclose(
        A.adjoint(A(x)), sum(part.adjoint(y) for part, y in zip(parts, expected, strict=True))
    )


def test_of_a_single_operator_and_of_nonlinear_ones() -> None:
    one = Stack([Identity(SHAPE)])
    assert one(torch.ones(SHAPE)).shape == (20,)
    assert one.norm() == pytest.approx(1.0)
    mixed = Stack([Identity(SHAPE), Nonlinear(torch.sin, SHAPE)])
    assert not mixed.linear
    x = torch.ones(SHAPE)
    assert torch.allclose(mixed.derivative(x)(x).reshape(2, 20)[1], torch.cos(x).flatten())


@pytest.mark.parametrize(
    ("operators", "error", "message"),
    [
        ([], OptionError, "operators: expected at least one, got none"),
        ([torch.ones(2)], DtypeError, "operators: expected operators, got Tensor"),
        (
            [Identity((2, 2)), Identity((3,))],
            ShapeError,
            r"Identity takes \(2, 2\), but Identity takes \(3,\)",
        ),
    ],
)
def test_what_cannot_be_stacked(operators: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Stack(operators)


def test_bad_data() -> None:
    A = Stack(_parts())
    with pytest.raises(ShapeError, match=r"Stack: y must have shape \(\*batch, 27\)"):
        A.split(torch.ones(26))
    with pytest.raises(ShapeError, match="parts: expected 3, got 2"):
        A.join([torch.ones(SHAPE), torch.ones(4)])
    with pytest.raises(ShapeError, match=r"Mask: parts must have shape \(\*batch, 4\)"):
        A.join([torch.ones(SHAPE), torch.ones(5), torch.ones(3)])
