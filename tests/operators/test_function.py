from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators import Nonlinear, check_operator, from_function


def test_linear_function() -> None:
    A = from_function(lambda x: x.sum(-1), (3, 4))
    assert (A.domain_shape, A.range_shape, A.linear) == ((3, 4), (3,), True)
    check_operator(A).raise_if_failed()
    assert A.norm() == pytest.approx(2.0)


def test_a_given_adjoint_is_used_and_can_be_found_wrong() -> None:
    right = from_function(lambda x: 2 * x, (3,), adjoint=lambda y: 2 * y)
    check_operator(right).raise_if_failed()
    wrong = from_function(lambda x: 2 * x, (3,), adjoint=lambda y: y)
    report = check_operator(wrong)
    assert not report.passed
    assert report.adjoint_scale == pytest.approx(2.0)


def test_functions_of_one_image() -> None:
    def transposed(x: Tensor) -> Tensor:
        return x.t()  # refuses batches

    A = from_function(transposed, (3, 4), adjoint=transposed, batched=False)
    check_operator(A).raise_if_failed()
    assert A(torch.ones(0, 3, 4)).shape == (0, 4, 3)
    assert A(torch.ones(5, 2, 3, 4)).shape == (5, 2, 4, 3)


def test_modules_and_functions_in_double_precision() -> None:
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 6, 2, bias=False, dtype=torch.float64)
    layer.weight.data = torch.arange(12.0, dtype=torch.float64).reshape(2, 6)
    A = from_function(layer, (6,))
    check_operator(A).raise_if_failed()
    assert A.float()(torch.ones(6)).tolist() == [15.0, 51.0]
    matrix = torch.eye(3, dtype=torch.float64)
    assert from_function(lambda x: x @ matrix, (3,)).range_shape == (3,)


def test_nonlinear_function() -> None:
    A = Nonlinear(lambda x: x.square().sum(-1), (2, 3))
    assert A.range_shape == (2,)
    check_operator(A).raise_if_failed()
    one = Nonlinear(lambda x: x.flatten() ** 2, (2, 3), batched=False)
    check_operator(one).raise_if_failed()
    x = torch.arange(6.0).reshape(2, 3)
    assert A.derivative(x).adjoint(torch.tensor([1.0, 2.0])).tolist() == [[0, 2, 4], [12, 16, 20]]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: from_function(torch.exp, (3,)), OptionError, "function: is not linear .relative"),
        (lambda: from_function(lambda x: x + 1, (3,)), OptionError, "Nonlinear takes such ones"),
        (lambda: from_function(lambda x: x.abs(), (3,)), OptionError, "function: is not linear"),
        (
            lambda: from_function(lambda x: x * torch.nan, (3,)),
            OptionError,
            "function: is not linear",
        ),
        (lambda: from_function(3, (3,)), DtypeError, "expected a function, got int"),
        (lambda: from_function(lambda x: 1.0, (3,)), DtypeError, "return a tensor, got float"),
        (
            lambda: from_function(torch.fft.fft, (3,)),
            DtypeError,
            "expected real data, got torch.complex128; torch.view_as_real gives",
        ),
        (
            lambda: from_function(lambda x: x, (3,), (4,)),
            ShapeError,
            r"range_shape: \(4,\) was given, but the function returns \(3,\)",
        ),
        (lambda: from_function(lambda x: x.sum(), (3,)), OptionError, "range_shape: expected a"),
        (lambda: Nonlinear(torch.exp, (3,), (2,)), ShapeError, r"the function returns \(3,\)"),
        (lambda: from_function(lambda x: x.flatten(), (4, 4)), OptionError, "batched=False vector"),
        (lambda: from_function(lambda x: x - x.mean(), (4, 4)), OptionError, "something else for"),
        (lambda: Nonlinear(lambda x: x.flatten() ** 2, (4, 4)), OptionError, "something else for"),
        (
            lambda: from_function(lambda x: x[..., :2], (4,), adjoint=lambda y: y),
            ShapeError,
            r"adjoint: expected it to return shape \(4,\), got \(2,\)",
        ),
        (
            lambda: from_function(lambda x: x, (4,), adjoint=lambda y: y - y.mean()),
            OptionError,
            "adjoint: gives something else",
        ),
        (lambda: Nonlinear(torch.exp, (0,)), OptionError, "domain_shape: expected a tuple of"),
    ],
)
def test_bad_functions(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_functions_of_one_image_can_be_pickled() -> None:
    A = from_function(torch.fliplr, (3, 4), batched=False)
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(pickle.loads(pickle.dumps(A))(x), x.flip(-1))


def test_nothing_global_is_drawn_and_gradients_pass_parameters() -> None:
    gain = torch.nn.Parameter(torch.tensor(2.0))
    A = Nonlinear(lambda x: gain * x**2, (3,))
    (gradient,) = torch.autograd.grad(A(torch.ones(3)).sum(), gain)
    assert gradient == 3.0


def test_functions_that_hold_single_precision() -> None:
    matrix = torch.arange(9.0).reshape(3, 3)
    for A in (
        from_function(lambda x: x @ matrix, (3,)),
        Nonlinear(lambda x: (x @ matrix).sin(), (3,)),
    ):
        report = check_operator(A)
        report.raise_if_failed()
        assert "torch.float32" in report.operator
