"""Every operator through the same checks, and against the matrix that it stands for."""

from __future__ import annotations

import copy
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bayesgen import operators
from bayesgen._batching import native_batching
from bayesgen.operators import (
    Adjoint,
    Blur,
    Convolution,
    Downsample,
    Fourier,
    GaussianMatrix,
    Gradient,
    Identity,
    Mask,
    Matrix,
    Nonlinear,
    Operator,
    PhaseRetrieval,
    Radon,
    Scaled,
    Selection,
    SparseMatrix,
    Stack,
    check_operator,
    from_deepinv,
    from_function,
    from_scipy,
    gaussian_kernel,
)
from bayesgen.operators.opaque import Opaque


def _random(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(math.prod(shape))
    return torch.rand(*shape, generator=rng, dtype=torch.float64)


def _blur_by_transforms(*arguments: Any) -> Blur:
    """As for large images, for which matrices would be slower."""
    with mock.patch.dict("bayesgen.operators.blur._SMALL", zero=0, periodic=0, reflect=0):
        return Blur(*arguments)


def _complex(*shape: int) -> Tensor:
    return torch.complex(*(_random(2, *shape) - 0.3))


def _mask(*shape: int) -> Mask:
    return Mask(_random(*shape) > 0.6)


def _sparse(rows: int, columns: int) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(
        torch.where(_random(rows, columns) > 0.6, 1.5, 0.0).double().numpy()
    )


def _saturation(x: Tensor) -> Tensor:
    return x / (1 + x.square().sum(-1, keepdim=True))


class _Physics(torch.nn.Module):
    """As deepinv's are: one batch dimension, no empty batches, parameters in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", _random(4, 5))

    def A(self, x: Tensor) -> Tensor:
        assert x.ndim == 4 and len(x) > 0
        return self.mask * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)


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
    "blur by transforms": lambda: _blur_by_transforms((2, 7, 10), _random(3, 3)),
    "blur by transforms, periodic": lambda: _blur_by_transforms((8, 6), _random(4, 6), "periodic"),
    "blur by transforms, reflect": lambda: _blur_by_transforms((8, 5), _random(4, 3), "reflect"),
    "blur, gaussian": lambda: Blur((9, 7), gaussian_kernel(5, 1.0, dtype=torch.float64)),
    "selection": lambda: Selection((3, 4), torch.tensor([7, 0, 11, 3])),
    "adjoint": lambda: Adjoint(Blur((6, 5), _random(2, 3), "reflect")),
    "scaled": lambda: Scaled(_gaussian((6, 5), 11), -2.5),
    "composition": lambda: _mask(6, 5) @ Blur((6, 5), _random(3, 3)),
    "normal operator": lambda: _gaussian((4, 3), 5).T @ _gaussian((4, 3), 5),
    "rows of a blur": lambda: Blur((4, 5), _random(2, 3))[[3, 0]],
    "some entries of a blur": lambda: Blur((4, 5), _random(2, 3))[_random(4, 5) > 0.5],
    "sum": lambda: Blur((4, 5), _random(2, 3)) + 2 * Identity((4, 5)),
    "stack": lambda: Stack([_mask(6, 5), Blur((6, 5), _random(3, 3)), _gaussian((6, 5), 3)]),
    "function": lambda: from_function(lambda x: x.cumsum(-1)[..., 1:, :], (4, 5)),
    "function of one image": lambda: from_function(torch.fliplr, (4, 5), batched=False),
    "derivative": lambda: Nonlinear(_saturation, (3, 5)).derivative(_random(3, 5)),
    "kernel of a convolution": lambda: Convolution((5, 6), (2, 3), "reflect").given(_random(5, 6)),
    "sparse matrix": lambda: SparseMatrix(_sparse(7, 12), (3, 4), (7, 1)),
    "from SciPy": lambda: from_scipy(aslinearoperator(_sparse(7, 12)), (3, 4)),
    "from deepinv": lambda: from_deepinv(_Physics(), (1, 4, 5)),
    "radon, parallel, odd": lambda: Radon((9, 7), 5, dtype=torch.float64),
    "radon, parallel, default": lambda: Radon((6, 6), dtype=torch.float64),
    "radon, fan": lambda: Radon((7, 10), 4, fan=(9.0, 3.0), dtype=torch.float64),
    "radon, ray by ray": lambda: Radon((5, 8), 3, stored=False, dtype=torch.float64),
    "radon, some angles": lambda: Radon((6, 5), 8, dtype=torch.float64)[[6, 1]],
    "radon, some angles ray by ray": lambda: Radon((6, 5), 8, stored=False)[1:3],
    "radon, some rays": lambda: Radon((6, 5), 8, dtype=torch.float64)[:, 2:9:3],
    "rows of a composition": lambda: (_gaussian((4, 5), 8) @ Blur((4, 5), _random(2, 3)))[::3],
    "gradient": lambda: Gradient((5, 4)),
    "gradient of channels": lambda: Gradient((3, 4, 7)),
    "gradient of a row": lambda: Gradient((1, 6)),
    "gradient, zero": lambda: Gradient((6, 5), "zero"),
    "gradient, zero, channels": lambda: Gradient((2, 3, 1), "zero"),
    "gradient, periodic": lambda: Gradient((5, 6), "periodic"),
    "gradient, periodic, channels": lambda: Gradient((2, 7, 3), "periodic"),
    "downsample": lambda: Downsample((6, 9), 3),
    "downsample of channels": lambda: Downsample((2, 6, 5), (2, 5)),
    "downsample by one": lambda: Downsample((3, 5), 1),
    "downsample, gaussian, even": lambda: Downsample((8, 12), 4, "gaussian").double(),
    "downsample, gaussian, odd": lambda: Downsample((2, 9, 6), (3, 2), "gaussian").double(),
    "downsample, kernel": lambda: Downsample((6, 10), (3, 2), _random(3, 4)),
    "downsample, no kernel": lambda: Downsample((3, 6, 4), (3, 2), None),
    "fourier": lambda: Fourier((5, 4)),
    "fourier, complex image": lambda: Fourier((2, 3, 6)),
    "fourier, one pixel": lambda: Fourier((1, 1)),
    "fourier, samples": lambda: Fourier((7, 4), _random(7, 4) > 0.6),
    "fourier, samples without mirror images": lambda: Fourier(
        (5, 3), torch.arange(5)[:, None] + torch.arange(3) > 4
    ),
    "fourier, samples, complex image": lambda: Fourier((2, 5, 4), _random(5, 4) > 0.5),
    "fourier, lines": lambda: Fourier((6, 7), _random(7) > 0.4),
    "fourier, one line, complex image": lambda: Fourier((2, 4, 5), torch.arange(5) == 1),
    "fourier, coils": lambda: Fourier((5, 6), sensitivities=_complex(3, 5, 6)),
    "fourier, coils, complex image": lambda: Fourier((2, 4, 3), sensitivities=_complex(2, 4, 3)),
    "fourier, coils, samples": lambda: Fourier(
        (5, 4), _random(5, 4) > 0.6, sensitivities=_complex(2, 5, 4)
    ),
    "fourier, coils, lines, complex image": lambda: Fourier(
        (2, 5, 6), _random(6) > 0.5, sensitivities=_complex(3, 5, 6)
    ),
    "fourier, one coil, lines": lambda: Fourier(
        (3, 8), _random(8) > 0.5, sensitivities=_complex(1, 3, 8)
    ),
}
NONLINEAR: dict[str, Callable[[], Operator]] = {
    "nonlinear": lambda: Nonlinear(_saturation, (3, 5)),
    "phase, amplitudes": lambda: PhaseRetrieval(Fourier((5, 4)), power=1),
    "phase, coils and lines": lambda: PhaseRetrieval(
        Fourier((2, 5, 6), _random(6) > 0.5, sensitivities=_complex(3, 5, 6))
    ),
    "phase, gaussian": lambda: PhaseRetrieval.gaussian((3, 5), 7, seed=1, dtype=torch.float64),
    "phase, gaussian, amplitudes": lambda: PhaseRetrieval.gaussian(
        (2, 3, 4), 9, power=1, dtype=torch.float64
    ),
    "phase, fourier": lambda: PhaseRetrieval.fourier((3, 4)),
    "phase, fourier, complex image": lambda: PhaseRetrieval.fourier(
        (2, 3, 5), oversampling=1.5, power=1
    ),
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


def test_every_operator_of_the_package_is_in_the_tables() -> None:
    tested = {type(part) for make in OPERATORS.values() for part in make().modules()}
    tested |= {type(make()) for make in NONLINEAR.values()}
    assert set(_classes()) - {Operator, Opaque} <= tested


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
    other = GaussianMatrix(operator.range_shape, 4, dtype=torch.float64)
    assert _close(_dense(other @ operator), other.matrix @ dense)
    assert _close(_dense((other @ operator).T), (other.matrix @ dense).T)
    for scaled, factor in [(2 * operator, 2), (operator * 3.0, 3), (-operator, -1)]:
        assert _close(_dense(scaled), factor * dense)
        assert _close(_dense(scaled.T), factor * dense.T)
    assert _close(_dense(operator / 4), dense / 4)
    total = operator + 2 * operator - other.T @ other @ operator
    assert _close(_dense(total), 3 * dense - other.matrix.T @ other.matrix @ dense)
    assert _close(_dense(total.T), _dense(total).T)


def test_matrix_of_a_selection(operator: Operator) -> None:
    dense = _dense(operator).reshape(*operator.range_shape, -1)
    size = len(dense)
    everything = torch.ones(operator.range_shape) > 0
    last_axis = (slice(None),) * (len(operator.range_shape) - 1) + ([0],)
    order = [size - 1, 0] if size > 1 else [0]
    for index in (0, order, slice(None, None, 2), everything, last_axis):
        expected = dense[index].reshape(-1, dense.shape[-1])
        for selected in (operator[index], (2 * operator)[index] / 2, (-operator)[:][index] * -1):
            shape = tuple(dense[index].shape[:-1]) or (1,)
            assert selected.range_shape == shape
            assert _close(_dense(selected), expected)
            assert _close(_dense(selected.T), expected.T)
    again = operator[order][[-1]]
    assert _close(_dense(again), dense[order[-1:]].reshape(-1, dense.shape[-1]))


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


@pytest.fixture(params=NONLINEAR)
def nonlinear(request: pytest.FixtureRequest) -> Operator:
    return NONLINEAR[request.param]()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nonlinear_operators(nonlinear: Operator, dtype: torch.dtype) -> None:
    check_operator(nonlinear, dtype=dtype).raise_if_failed()
    x = _images(nonlinear, dtype=torch.float64)
    check_operator(nonlinear.derivative(x)).raise_if_failed()


def test_derivative_of_nonlinear_operators(nonlinear: Operator) -> None:
    assert not nonlinear.linear
    x, direction = _images(nonlinear), _images(nonlinear, 2)[1]
    found = nonlinear.derivative(x)(direction)
    step = 1e-5
    difference = (nonlinear(x + step * direction) - nonlinear(x - step * direction)) / (2 * step)
    assert _close(found, difference, 1e-7)
    assert not _close(1.001 * found, difference, 1e-7)


@pytest.mark.parametrize("depth", [0, 1])
def test_nonlinear_operators_in_models(nonlinear: Operator, depth: int) -> None:
    def function(x: Tensor) -> Tensor:
        return (nonlinear(x) ** 3).sum()

    def batched(x: Tensor) -> tuple[Tensor, Tensor]:
        with native_batching(depth):
            values = torch.func.vmap(function)(x)
        return values, torch.autograd.grad(values.sum(), x)[0]

    x = _images(nonlinear, 3).requires_grad_()
    exact = torch.stack([function(one) for one in x])
    (gradient,) = torch.autograd.grad(exact.sum(), x)
    for run in (batched, make_fx(batched)(x)):
        values, slopes = run(x)
        assert _close(values, exact, 1e-11)
        assert _close(slopes, gradient, 1e-11)


def test_second_derivatives_of_nonlinear_operators(nonlinear: Operator) -> None:
    gradient = torch.func.grad(lambda x: (nonlinear(x) ** 3).sum())
    x, direction = _images(nonlinear), _images(nonlinear, 2)[1]
    found = torch.func.vjp(gradient, x)[1](direction)[0]
    difference = (gradient(x + 1e-5 * direction) - gradient(x - 1e-5 * direction)) / 2e-5
    assert _close(found, difference, 1e-6)


def test_copies_and_parts_of_nonlinear_operators(nonlinear: Operator) -> None:
    x = _images(nonlinear, 2)
    twin = copy.deepcopy(nonlinear)
    for buffer in twin.buffers():
        if buffer.is_floating_point():
            buffer.zero_()
    twin.load_state_dict(nonlinear.state_dict())
    assert torch.equal(twin(x), nonlinear(x))
    assert _close(copy.deepcopy(nonlinear).float()(x.float()).double(), nonlinear(x), 1e-6)
    for index in ([0], slice(None, None, 2)):
        part = (2 * nonlinear)[index]
        assert not part.linear
        assert _close(part(x), 2 * nonlinear(x)[:, index])
    with torch.inference_mode():
        assert _close(copy.deepcopy(nonlinear)(_images(nonlinear, 2)), nonlinear(x))


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
