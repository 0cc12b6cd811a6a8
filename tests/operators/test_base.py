from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import (
    Blur,
    Composition,
    Downsample,
    Fourier,
    GaussianMatrix,
    Identity,
    Mask,
    Matrix,
    Operator,
    Selection,
    check_operator,
)


class Gain(Operator):
    """As a user would write it: no adjoint, no norm."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__(gain.shape, gain.shape)
        self.register_buffer("gain", gain)

    def _forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class Square(Operator):
    linear = False

    def _forward(self, x: Tensor) -> Tensor:
        return x.square()


def _gain() -> Gain:
    return Gain(torch.tensor([3.0, -4.0, 0.5], dtype=torch.float64))


def test_default_adjoint_and_norm() -> None:
    A = _gain()
    check_operator(A).raise_if_failed()
    check_operator(A, dtype=torch.float32).raise_if_failed()
    assert A.norm() == pytest.approx(4.0)
    y = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(A.adjoint(y), A.gain * y)


def test_structure_is_kept_where_it_is_cheap() -> None:
    A, B = GaussianMatrix((4, 4), rows=6), Blur((4, 4), torch.ones(2, 2))
    assert A.T.T is A
    rows = A[[4, 1]]
    assert isinstance(rows, Matrix)
    assert torch.equal(rows.matrix, A.matrix[[4, 1]])
    composed = (A @ B)[[4, 1]]
    assert isinstance(composed, Composition)
    assert isinstance(composed.outer, Matrix)
    assert isinstance(Mask(torch.ones(4, 4) > 0)[2:5], Selection)
    assert rows[0].range_shape == (1,)


def test_norm_follows_every_change() -> None:
    A = _gain()
    B = 2 * A
    assert (A.norm(), B.norm()) == (pytest.approx(4.0), pytest.approx(8.0))
    A.gain[1] = 5.0
    assert (A.norm(), B.norm()) == (pytest.approx(5.0), pytest.approx(10.0))
    A.gain = torch.tensor([6.0, 0.0, 0.0], dtype=torch.float64)
    assert (A.norm(), B.norm()) == (pytest.approx(6.0), pytest.approx(12.0))
    A.load_state_dict(_gain().state_dict())
    assert (A.norm(), B.norm()) == (pytest.approx(4.0), pytest.approx(8.0))
    # 1/3 rounded to single precision and back is another number.
    A.gain.fill_(1 / 3)
    assert A.norm() == pytest.approx(1 / 3, rel=1e-14)
    assert A.float().double().norm() == pytest.approx(float(np.float32(1 / 3)), rel=1e-14)


def test_norm_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    A, calls = _gain(), []
    original = A._norm
    monkeypatch.setattr(A, "_norm", lambda: calls.append(1) or original())
    assert A.norm() == A.norm()
    assert len(calls) == 1


def test_copies_keep_working() -> None:
    A = GaussianMatrix((3, 4), rows=5).normalised()
    x = torch.ones(3, 4)
    assert A.norm() == pytest.approx(1.0, rel=1e-6)
    for twin in (copy.deepcopy(A), pickle.loads(pickle.dumps(A))):
        assert torch.equal(twin(x), A(x))
        assert twin.norm() == A.norm()


def test_scalars_of_every_kind() -> None:
    A, x = _gain(), torch.ones(3, dtype=torch.float64)
    for two in (2, 2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2.0)):
        for B in (two * A, A * two, A / (1 / two)):
            assert isinstance(B, Operator)
            assert torch.equal(B(x), 2 * A(x))


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda A: A * 1j, DtypeError, "scaled by a real number, got 1j"),
        (lambda A: A * "2", DtypeError, "scaled by a real number, got '2'"),
        (lambda A: torch.ones(3) * A, DtypeError, "scaled by a real number"),
        (lambda A: math.nan * A, OptionError, "scaled by a finite number, got nan"),
        (lambda A: A / 0, OptionError, "Gain / 0: the divisor must not be zero"),
        (lambda A: (0 * A).normalised(), DataError, r"0 \* Gain: cannot be normalised"),
        (lambda A: A @ torch.ones(3), DtypeError, r"to apply one to a tensor, call it: A\(x\)"),
        (
            lambda A: Identity((4,)) @ A,
            ShapeError,
            r"Identity @ Gain: the right one yields \(3,\), the left one takes \(4,\)",
        ),
        (lambda A: list(A), TypeError, "not iterable"),
        (lambda A: A[3], OptionError, "3 entries, index 3 is out of range"),
        (lambda A: A + 1.0, DtypeError, r"Gain \+ float: \+ adds two operators"),
        (lambda A: A + A[:2], ShapeError, r"range_shape \(3,\) and \(2,\) differ"),
        (lambda A: A - Identity((4,)), ShapeError, r"domain_shape \(3,\) and \(4,\) differ"),
        (lambda A: A @ torch.ones(2), DtypeError, "to apply one to a tensor"),
        (lambda A: A[[]], OptionError, "got none"),
    ],
)
def test_bad_combinations(use: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use(_gain())


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 4), ShapeError, r"Gain: x must have shape \(\*batch, 3\), got \(2, 4\)"),
        (torch.tensor(1.0), ShapeError, r"got \(\)"),
        (torch.ones(3), DtypeError, r"x is torch.float32, the operator torch.float64; convert"),
        (torch.ones(3, dtype=torch.int64), DtypeError, r"floating-point.*x.double\(\)"),
        (torch.ones(3) > 0, DtypeError, "must be floating-point, got torch.bool"),
        (torch.ones(3) * 1j, DtypeError, "must be real, got torch.complex64"),
        (np.ones(3), DtypeError, "must be a torch tensor, got ndarray; torch.as_tensor converts"),
        (torch.ones(3, dtype=torch.float64, device="meta"), DtypeError, "is on meta, the operator"),
    ],
)
def test_bad_images(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _gain()(x)


def test_bad_data_is_named_y() -> None:
    with pytest.raises(ShapeError, match=r"\(Selection @ Gain\): y must have shape \(\*batch, 2\)"):
        _gain()[:2].adjoint(torch.ones(3))
    with pytest.raises(ShapeError, match=r"Gain.T: x must have shape \(\*batch, 3\)"):
        _gain().T(torch.ones(2))


def test_operators_without_buffers_take_both_dtypes() -> None:
    A = Mask(torch.ones(2, 2) > 0)
    for dtype in (torch.float32, torch.float64):
        assert A(torch.ones(2, 2, dtype=dtype)).dtype == dtype


def test_parts_of_different_dtype_are_refused() -> None:
    A = GaussianMatrix((3,), rows=2) @ _gain()
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(DtypeError, match=r"GaussianMatrix @ Gain.*convert one of them"):
            A(torch.ones(3, dtype=dtype))
    assert A.double()(torch.ones(3, dtype=torch.float64)).shape == (2,)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, -1), (2.5,), 4, "ab"])
def test_bad_shapes(shape: Any) -> None:
    with pytest.raises(OptionError, match="domain_shape: expected a tuple of positive integers"):
        Identity(shape)


def test_operators_that_are_not_linear() -> None:
    A = Square((3,), (3,))
    check_operator(A).raise_if_failed()
    x = torch.tensor([1.0, 2.0, 3.0])
    assert (2 * A)[[2]](x).tolist() == [18.0]
    for B in (A, 2 * A, A @ Identity((3,)), A[:2]):
        assert not B.linear
        with pytest.raises(OptionError, match=r"norm: the operator is not linear; A.derivative"):
            B.normalised()
        with pytest.raises(OptionError, match=r"adjoint: the operator is not linear"):
            B.adjoint(x)
        with pytest.raises(OptionError, match=r"T: the operator is not linear"):
            _ = B.T
    # B is A[:2] here.
    check_operator(B.derivative(x), dtype=torch.float64).raise_if_failed()
    assert B.derivative(x)(torch.ones(3)).tolist() == [2.0, 4.0]
    assert B.derivative(x).adjoint(torch.ones(2)).tolist() == [2.0, 4.0, 0.0]


def test_derivative() -> None:
    A, x = Square((3,), (3,)), torch.tensor([1.0, 2.0, 3.0])
    D = A.derivative(x)
    x.zero_()
    assert str(D) == "Square'"
    assert D(torch.ones(2, 3)).tolist() == [[2.0, 4.0, 6.0]] * 2
    gain = _gain()
    assert gain.derivative(torch.ones(3, dtype=torch.float64)) is gain
    with pytest.raises(ShapeError, match=r"one image of shape \(3,\), got \(2, 3\)"):
        A.derivative(torch.ones(2, 3))


def test_sums_and_differences() -> None:
    A, x = _gain(), torch.ones(3, dtype=torch.float64)
    assert (A + 2 * A)(x).tolist() == [9.0, -12.0, 1.5]
    assert (A - A)(x).tolist() == [0.0, 0.0, 0.0]
    assert not (Square((3,), (3,)) + Identity((3,))).linear


def test_operator_without_forward() -> None:
    with pytest.raises(NotImplementedError, match="Operator does not define _forward"):
        Operator((2,), (2,))(torch.ones(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda v: Blur((8, 8), v),
        lambda v: Matrix(v),
        lambda v: Downsample((8, 8), 2, v),
        lambda v: Fourier((3, 3), sensitivities=v[None] * 1j),
        lambda v: Square((3, 3), (3, 3)).derivative(v),
    ],
)
def test_variables_are_refused_where_their_gradient_would_be_lost(make: Any) -> None:
    message = "operators are made of constants, but this is a variable"
    with pytest.raises(DtypeError, match=message):
        make(torch.ones(3, 3, requires_grad=True))
    with pytest.raises(DtypeError, match=message):
        make(torch.ones(3, 3, requires_grad=True) * 2)
    with pytest.raises(DtypeError, match=message):
        torch.func.vmap(lambda v: make(v) and v)(torch.ones(2, 3, 3))
    make(torch.ones(3, 3, requires_grad=True).detach())


def test_arrays_with_negative_strides() -> None:
    kernel = np.arange(6.0).reshape(2, 3)[::-1, ::-1]
    assert Matrix(kernel).matrix[0].tolist() == [5.0, 4.0, 3.0]
    assert Blur((4, 4), kernel)(torch.ones(4, 4).double()).shape == (4, 4)
    assert Mask((kernel > 2)[::-1]).range_shape == (3,)


def test_masks_take_their_state_with_them() -> None:
    A, B = Mask(torch.tensor([1, 1, 0]) > 0), Mask(torch.tensor([0, 1, 1]) > 0)
    A.load_state_dict(B.state_dict())
    assert A(torch.tensor([1.0, 2.0, 3.0])).tolist() == [2.0, 3.0]
    assert A.adjoint(torch.tensor([1.0, 2.0])).tolist() == [0.0, 1.0, 2.0]
