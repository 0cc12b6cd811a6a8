"""Every operator through the same checks, and against the matrix that it stands for."""

from __future__ import annotations

import copy
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bayesgen import operators
from bayesgen._batching import native_batching
from bayesgen.operators import (
    Adjoint,
    Blur,
    GaussianMatrix,
    Identity,
    Mask,
    Matrix,
    Operator,
    Scaled,
    Selection,
    check_operator,
)


def _random(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(math.prod(shape))
    return torch.rand(*shape, generator=rng, dtype=torch.float64)


def _mask(*shape: int) -> Mask:
    return Mask(_random(*shape) > 0.6)


def _gaussian(domain_shape: tuple[int, ...], rows: int) -> GaussianMatrix:
    return GaussianMatrix(domain_shape, rows, seed=1, dtype=torch.float64)


OPERATORS: dict[str, Callable[[], Operator]] = {
    "identity": lambda: Identity((5, 4)),
    "identity of a vector": lambda: Identity((7,)),
    "matrix": lambda: Matrix(_random(5, 7)),
    "tall matrix with shapes": lambda: Matrix(_random(24, 6), (2, 3), (4, 2, 3)),
    "matrix of one row": lambda: Matrix(_random(1, 6), (2, 3)),
    "gaussian matrix": lambda: _gaussian((6, 5), 11),
    "gaussian matrix of channels": lambda: _gaussian((3, 4, 5), 70),
    "mask": lambda: _mask(6, 5),
    "mask of channels": lambda: _mask(3, 4, 5),
    "mask of one pixel": lambda: Mask(torch.arange(6).reshape(2, 3) == 4),
    "blur, odd kernel": lambda: Blur((9, 7), _random(3, 5)),
    "blur, even kernel": lambda: Blur((8, 7), _random(4, 2)),
    "blur of channels": lambda: Blur((2, 7, 10), _random(3, 3)),
    "blur, kernel of one pixel": lambda: Blur((4, 5), _random(1, 1)),
    "blur, kernel as large as the image": lambda: Blur((4, 5), _random(4, 5)),
    "blur, periodic, odd": lambda: Blur((9, 7), _random(3, 5), "periodic"),
    "blur, periodic, even": lambda: Blur((3, 8, 6), _random(4, 6), "periodic"),
    "blur, reflect, odd": lambda: Blur((9, 7), _random(3, 5), "reflect"),
    "blur, reflect, even": lambda: Blur((2, 8, 5), _random(4, 2), "reflect"),
    "blur, reflect, as large as the image": lambda: Blur((4, 5), _random(4, 5), "reflect"),
    "selection": lambda: Selection((3, 4), torch.tensor([7, 0, 11, 3])),
    "adjoint": lambda: Adjoint(Blur((6, 5), _random(2, 3), "reflect")),
    "scaled": lambda: Scaled(_gaussian((6, 5), 11), -2.5),
    "composition": lambda: _mask(6, 5) @ Blur((6, 5), _random(3, 3)),
    "normal operator": lambda: _gaussian((4, 3), 5).T @ _gaussian((4, 3), 5),
    "rows of a blur": lambda: Blur((4, 5), _random(2, 3))[[3, 0, 19]],
    "rows of a composition": lambda: (_gaussian((4, 5), 8) @ Blur((4, 5), _random(2, 3)))[::3],
}
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> Operator:
    return OPERATORS[request.param]()


def _classes() -> Iterator[type[Operator]]:
    """All operators that the package defines."""
    for file in pkgutil.iter_modules(operators.__path__):
        module = importlib.import_module(f"bayesgen.operators.{file.name}")
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, Operator):
                yield item


def _images(operator: Operator, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return _random(*batch, *operator.domain_shape).to(dtype) - 0.4


def _data(operator: Operator, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return _random(*batch, *operator.range_shape).to(dtype) - 0.4


def _dense(operator: Operator) -> Tensor:
    """The operator's matrix, column by column."""
    size = math.prod(operator.domain_shape)
    unit_vectors = torch.eye(size, dtype=torch.float64).reshape(size, *operator.domain_shape)
    return operator(unit_vectors).flatten(1).T


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    scale = max(1.0, float(b.detach().norm()))
    return a.shape == b.shape and float((a - b).detach().norm()) <= tolerance * scale


def test_every_operator_of_the_package_is_in_the_table() -> None:
    assert set(_classes()) - {Operator} == {type(make()) for make in OPERATORS.values()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_checks_pass(operator: Operator, dtype: torch.dtype) -> None:
    report = check_operator(operator, dtype=dtype)
    report.raise_if_failed()
    assert report.adjoint_scale == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adjoint_is_exact(operator: Operator, dtype: torch.dtype) -> None:
    operator = operator.to(dtype)
    x, y = _images(operator, 20, dtype=dtype), _data(operator, 20, dtype=dtype)
    there = (operator(x) * y).double().flatten(1).sum(1)
    back = (x * operator.adjoint(y)).double().flatten(1).sum(1)
    scale = operator.norm() * x.double().flatten(1).norm(dim=1) * y.double().flatten(1).norm(dim=1)
    assert ((there - back).abs() <= DTYPES[dtype] * scale).all()


def test_matrix_of_operator_and_adjoint(operator: Operator) -> None:
    dense = _dense(operator)
    assert _close(_dense(operator.T), dense.T)
    x, y = _images(operator, 3), _data(operator, 3)
    assert _close(operator(x).flatten(1), x.flatten(1) @ dense.T)
    assert _close(operator.adjoint(y).flatten(1), y.flatten(1) @ dense)
    assert operator.norm() == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-7)
    assert operator.normalised().norm() == pytest.approx(1.0, rel=1e-7)


def test_matrix_of_combinations(operator: Operator) -> None:
    dense = _dense(operator)
    size = len(dense)
    other = GaussianMatrix(operator.range_shape, 4, dtype=torch.float64)
    assert _close(_dense(other @ operator), other.matrix @ dense)
    assert _close(_dense((other @ operator).T), (other.matrix @ dense).T)
    for scaled, factor in [(2 * operator, 2), (operator * 3.0, 3), (-operator, -1)]:
        assert _close(_dense(scaled), factor * dense)
        assert _close(_dense(scaled.T), factor * dense.T)
    assert _close(_dense(operator / 4), dense / 4)
    for rows in ([0], [size - 1, 0] if size > 1 else [0], slice(None, None, 2)):
        for selected in (operator[rows], (2 * operator)[rows] / 2, (-operator)[:][rows] * -1):
            assert selected.range_shape == (len(dense[rows]),)
            assert _close(_dense(selected), dense[rows])
            assert _close(_dense(selected.T), dense[rows].T)


@pytest.mark.parametrize("depth", [0, 1])
def test_vmap_and_gradients_of_any_order(operator: Operator, depth: int) -> None:
    """Plainly and as inference runs it, recorded and not."""

    def function(x: Tensor) -> Tensor:
        return (operator(x) ** 4).sum() + (operator.T(operator(x)) ** 2).sum()

    def batched(x: Tensor) -> tuple[Tensor, Tensor]:
        with native_batching(depth):
            values = torch.func.vmap(function)(x)
        return values, torch.autograd.grad(values.sum(), x)[0]

    x = _images(operator, 3).requires_grad_()
    dense = _dense(operator)
    data = x.detach().flatten(1) @ dense.T
    exact = (data**4).sum(1) + ((data @ dense) ** 2).sum(1)
    gradient = 4 * data**3 @ dense + 2 * data @ dense @ dense.T @ dense
    for run in (batched, make_fx(batched)(x)):
        values, slopes = run(x)
        assert _close(values, exact, 1e-11)
        assert _close(slopes.flatten(1), gradient, 1e-11)


# Forward mode makes PyTorch compile its own decompositions, in a way it calls deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_higher_derivatives(operator: Operator) -> None:
    def function(x: Tensor) -> Tensor:
        return (operator(x) ** 3).sum()

    x, direction = _images(operator, 2), _images(operator, 2).flip(0)
    dense = _dense(operator)
    data = x.flatten(1) @ dense.T
    slope = 3 * data**2 @ dense
    curvature = 6 * data * (direction.flatten(1) @ dense.T) @ dense

    gradient = torch.func.vmap(torch.func.grad(function))
    recorded = make_fx(gradient)(x)
    forward_over_reverse = torch.func.jvp(gradient, (x,), (direction,))[1]
    reverse_over_reverse = torch.func.vjp(gradient, x)[1](direction)[0]
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first, leaf, direction)
    for found in (gradient(x), recorded(x), first):
        assert _close(found.flatten(1), slope, 1e-11)
    for found in (forward_over_reverse, reverse_over_reverse, second):
        assert _close(found.flatten(1), curvature, 1e-11)


def test_converting_keeps_the_operator(operator: Operator) -> None:
    norm = operator.norm()
    single = copy.deepcopy(operator).float()
    x = _images(operator, 2)
    assert single(x.float()).dtype == torch.float32
    assert _close(single(x.float()).double(), operator(x), 1e-6)
    assert single.norm() == pytest.approx(norm, rel=1e-6)
    assert _close(single.double()(x), operator(x), 1e-6)


def test_state_survives_saving(operator: Operator) -> None:
    twin = copy.deepcopy(operator)
    for buffer in twin.buffers():
        if buffer.is_floating_point():
            buffer.zero_()
    twin.load_state_dict(operator.state_dict())
    assert torch.equal(twin(_images(operator)), operator(_images(operator)))
    assert twin.norm() == pytest.approx(operator.norm(), rel=1e-12)


def test_printing_names_operator_and_shapes(operator: Operator) -> None:
    assert str(operator) in repr(operator)
    assert str(operator.domain_shape) in repr(operator)


def test_inference_mode(operator: Operator) -> None:
    with torch.inference_mode():
        made = copy.deepcopy(operator)
        x, y = _images(operator, 2), _data(operator, 2)
        assert _close(made(x), operator(x))
        assert _close(made.adjoint(y), operator.adjoint(y))
        assert made.norm() == pytest.approx(operator.norm())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_checks_pass_on_the_gpu(operator: Operator, dtype: torch.dtype) -> None:
    check_operator(operator.to("cuda"), dtype=dtype).raise_if_failed()
