"""Maps that torch cannot look into: derivatives of every order, vmap, and recording."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.fx.experimental.proxy_tensor import make_fx

from bayesgen._linear_map import LinearMap, apply
from bayesgen.recording import record


class Times(LinearMap):
    """A dense matrix, out of torch's sight."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[1], matrix.shape[0])
        self.matrix = matrix
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not x.requires_grad and x.is_contiguous()
        self.calls.append(tuple(x.shape))
        return torch.from_numpy(x.numpy() @ self.matrix.numpy().T)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.from_numpy(y.numpy() @ self.matrix.numpy())


class WrongAdjoint(Times):
    def adjoint(self, y: Tensor) -> Tensor:
        return 1.01 * super().adjoint(y)


@pytest.fixture
def matrix(rng: torch.Generator) -> Tensor:
    return torch.randn(5, 3, generator=rng, dtype=torch.float64)


@pytest.fixture
def x(rng: torch.Generator) -> Tensor:
    return torch.randn(4, 3, generator=rng, dtype=torch.float64)


def _cubes(linear_map: LinearMap, x: Tensor) -> Tensor:
    return (apply(linear_map, x) ** 3).sum()


def test_values_for_every_batch(matrix: Tensor, x: Tensor) -> None:
    A = Times(matrix)
    for batch in (x, x[0], x[:0], x.reshape(2, 2, 3), x.T.contiguous().T):
        assert torch.allclose(apply(A, batch), batch @ matrix.T)
    y = x @ matrix.T
    assert torch.allclose(apply(A, y, adjoint=True), y @ matrix)
    assert apply(A, y[:0], adjoint=True).shape == (0, 3)


def test_derivatives_of_every_order(matrix: Tensor, x: Tensor) -> None:
    A = Times(matrix)
    leaf = x.clone().requires_grad_()
    data = (x @ matrix.T).requires_grad_()
    with torch.random.fork_rng():  # the checks draw from the global generator
        assert torch.autograd.gradcheck(lambda x: apply(A, x), leaf)
        assert torch.autograd.gradgradcheck(lambda x: apply(A, x) ** 3, leaf)
        assert torch.autograd.gradcheck(lambda y: apply(A, y, adjoint=True), data)
    third = leaf
    value = _cubes(A, leaf)
    for _ in range(3):
        (third,) = torch.autograd.grad(value, leaf, create_graph=True)
        value = third.sum()
    exact = 6 * (matrix.sum(1) ** 2 @ matrix)
    assert torch.allclose(third, exact.expand(4, 3))


def test_a_wrong_adjoint_is_found(matrix: Tensor, x: Tensor) -> None:
    with pytest.raises(GradcheckError):
        A = WrongAdjoint(matrix)
        torch.autograd.gradcheck(lambda x: apply(A, x), x.clone().requires_grad_())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_transforms(matrix: Tensor, x: Tensor) -> None:
    A = Times(matrix)
    slope = 3 * (x @ matrix.T) ** 2 @ matrix
    gradient = torch.func.vmap(torch.func.grad(lambda x: _cubes(A, x)))
    assert torch.allclose(gradient(x), slope)
    assert A.calls == [(4, 3)]  # vmap handed over the whole batch
    hessian = torch.func.vmap(torch.func.hessian(lambda x: _cubes(A, x)))(x)
    exact = torch.einsum("bi,ij,ik->bjk", 6 * x @ matrix.T, matrix, matrix)
    assert torch.allclose(hessian, exact)
    many = x + torch.arange(6.0).reshape(6, 1, 1)
    nested = torch.func.vmap(torch.func.vmap(lambda x: apply(A, x)), in_dims=2)
    assert torch.allclose(nested(many.movedim(0, 2)), many @ matrix.T)


def test_recorded_graphs_keep_their_maps(matrix: Tensor, x: Tensor) -> None:
    slope = 3 * (x @ matrix.T) ** 2 @ matrix

    def recorded() -> Callable[[Tensor], Tensor]:
        A = Times(matrix)
        return record(torch.func.vmap(torch.func.grad(lambda x: _cubes(A, x))), x)

    graph = recorded()
    gc.collect()
    assert torch.allclose(graph(2 * x), 4 * slope)


def test_gradients_keep_their_maps(matrix: Tensor, x: Tensor) -> None:
    leaf = x.requires_grad_()
    value = apply(Times(matrix), leaf).sum()
    gc.collect()
    (gradient,) = torch.autograd.grad(value, leaf)
    assert torch.allclose(gradient, matrix.sum(0).expand(4, 3))


def test_a_map_that_is_gone_is_named(matrix: Tensor, x: Tensor) -> None:
    graph = make_fx(lambda x: apply(Times(matrix), x))(x)
    gc.collect()
    with pytest.raises(RuntimeError, match="operator that this function was recorded with is gone"):
        graph(x)


def test_copies_are_maps_of_their_own(matrix: Tensor, x: Tensor) -> None:
    A = Times(matrix)
    B = copy.deepcopy(A)
    A.matrix = 2 * matrix
    assert torch.allclose(apply(B, x), x @ matrix.T)
    assert torch.allclose(apply(A, x), 2 * x @ matrix.T)
