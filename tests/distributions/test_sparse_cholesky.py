"""Products and solves against the dense matrix that a factor stands for; and their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from bayesgen.distributions import sparse_cholesky
from bayesgen.distributions.sparse_cholesky import (
    inverse_diagonal,
    multiply,
    offsets,
    radius_of,
    solve,
)
from bayesgen.model_sites import isolated
from bayesgen.recording import record

float64 = torch.float64
Linear = Callable[..., Tensor]
# Height, width, radius: odd, oblong, a row, a column, a radius larger than the image.
SIZES = [
    (1, 1, 0),
    (3, 4, 0),
    (3, 4, 1),
    (5, 3, 2),
    (4, 7, 3),
    (2, 3, 3),
    (1, 6, 2),
    (6, 1, 2),
    (2, 4, 6),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


def factor_of(height: int, width: int, radius: int, *batch: int) -> Tensor:
    factor = 0.4 * random(*batch, 1 + 2 * radius * (radius + 1), height, width)
    return torch.cat([factor[..., :1, :, :].exp(), factor[..., 1:, :, :]], dim=-3)


def links(height: int, width: int, radius: int) -> list[tuple[int, int, int]]:
    """Map, earlier pixel and later pixel of every entry below the diagonal, by the definition."""
    found = []
    for first in range(height * width):
        for second in range(first + 1, height * width):
            dy = second // width - first // width
            dx = second % width - first % width
            if dy <= radius and abs(dx) <= radius:
                below = radius + (2 * radius + 1) * (dy - 1) + dx + radius
                found.append((1 + (below if dy else dx - 1), first, second))
    return found


def dense(factor: Tensor) -> Tensor:
    """The matrix, entry by entry; differentiable."""
    maps, height, width = factor.shape[-3:]
    matrix = torch.diag_embed(factor[..., 0, :, :].flatten(-2))
    flat = factor.flatten(-2)
    for k, first, second in links(height, width, radius_of(maps - 1) or 0):
        unit = torch.zeros_like(matrix)
        unit[..., second, first] = 1.0
        matrix = matrix + unit * flat[..., k, first, None, None]
    return matrix


def applied(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x.flatten(-2).unsqueeze(-1)).squeeze(-1).reshape(x.shape)


def error(multiply: Linear, solve: Linear, factor: Tensor) -> float:
    """Largest deviation of products and solves from those with the dense matrix."""
    matrix, x = dense(factor), random(4, *factor.shape[-2:])
    pairs = [
        (multiply(factor, x), applied(matrix, x)),
        (multiply(factor, x, transpose=True), applied(matrix.mT, x)),
        (multiply(factor, solve(factor, x)), x),
        (applied(matrix, solve(factor, x)), x),
        (applied(matrix.mT, solve(factor, x, transpose=True)), x),
    ]
    return max(float((found - expected).abs().max()) for found, expected in pairs)


@pytest.mark.parametrize("size", SIZES)
def test_products_and_solves_are_those_of_the_matrix(size: tuple[int, int, int]) -> None:
    factor = factor_of(*size)
    assert error(multiply, solve, factor) < 1e-12
    matrix = dense(factor)
    assert torch.equal(matrix, matrix.tril()) and (matrix.diagonal() > 0).all()
    units = torch.eye(size[0] * size[1], dtype=float64).unflatten(1, size[:2])
    assert torch.equal(multiply(factor, units).flatten(1).T, matrix)
    variance = torch.linalg.inv(matrix @ matrix.T).diagonal().reshape(size[:2])
    assert torch.allclose(inverse_diagonal(factor), variance, rtol=1e-10)


def swapped(fn: Linear) -> Linear:
    return lambda factor, x, transpose=False: fn(factor, x, transpose=not transpose)


def wrapped(factor: Tensor, x: Tensor, *, transpose: bool = False) -> Tensor:
    """Neighbours across the edge of the image count."""
    out = factor[..., 0, :, :] * x
    for k, (dy, dx) in enumerate(offsets(radius_of(factor.shape[-3] - 1) or 0), 1):
        here = factor[..., k, :, :]
        if transpose:
            out = out + here * x.roll((-dy, -dx), (-2, -1))
        else:
            out = out + (here * x).roll((dy, dx), (-2, -1))
    return out


def wrong_times(time: Callable[..., Tensor]) -> Linear:
    """Solves in another order."""

    def wrong(factor: Tensor, x: Tensor, *, transpose: bool = False) -> Tensor:
        plan = sparse_cholesky._plan.__wrapped__
        with mock.patch.multiple(sparse_cholesky, _time=time, _plan=plan):
            return solve(factor, x, transpose=transpose)

    return wrong


WRONG: dict[str, tuple[Linear, Linear]] = {
    "transposed products": (swapped(multiply), solve),
    "transposed solves": (multiply, swapped(solve)),
    "neighbours across the edge": (wrapped, solve),
    "the diagonal alone": (
        multiply,
        lambda f, x, transpose=False: x / f[..., 0, :, :],
    ),
    "fronts too steep": (multiply, wrong_times(lambda y, x, r: x + r * y)),
    "diagonal fronts": (multiply, wrong_times(lambda y, x, r: x + y)),
    "a row at a time": (multiply, wrong_times(lambda y, x, r: y)),
    "from the end": (multiply, wrong_times(lambda y, x, r: -x - (r + 1) * y)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones_are_noticed(name: str) -> None:
    assert error(*WRONG[name], factor_of(5, 6, 2)) > 1e-3
    assert error(multiply, wrong_times(sparse_cholesky._time), factor_of(5, 6, 2)) < 1e-12


@pytest.mark.parametrize("fill", [torch.nan, torch.inf, 7.0])
def test_entries_outside_the_image_are_ignored(fill: float) -> None:
    height, width, radius = 4, 5, 2
    factor, x = factor_of(height, width, radius), random(height, width)
    inside = torch.zeros(factor.shape, dtype=torch.bool)
    inside[0] = True
    for k, first, _ in links(height, width, radius):
        inside[k].view(-1)[first] = True
    filled = torch.where(inside, factor, fill).requires_grad_()
    for fn in (multiply, solve):
        for transpose in (False, True):
            found = fn(filled, x, transpose=transpose)
            assert torch.equal(found, fn(factor, x, transpose=transpose))
            (gradient,) = torch.autograd.grad(found.square().sum(), filled)
            assert (gradient[~inside] == 0).all() and (gradient[inside] != 0).all()


CALLS: dict[str, Linear] = {
    "L": multiply,
    "transpose": lambda f, x: multiply(f, x, transpose=True),
    "solve": solve,
    "solve with the transpose": lambda f, x: solve(f, x, transpose=True),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Linear:
    return CALLS[request.param]


@pytest.mark.parametrize(("left", "right"), [((), ()), ((2,), ()), ((), (2,)), ((2,), (3, 1))])
def test_derivatives_of_first_and_second_order(
    call: Linear, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    """Also where batches broadcast, and where one of the two is a constant."""
    factor = factor_of(3, 2, 1, *left).requires_grad_()
    x = random(*right, 3, 2).requires_grad_()
    with isolated(0):
        assert torch.autograd.gradcheck(call, (factor, x))
        assert torch.autograd.gradgradcheck(call, (factor, x))
        assert torch.autograd.gradcheck(call, (factor, x.detach()))
        assert torch.autograd.gradcheck(call, (factor.detach(), x))


def test_derivatives_are_those_through_the_matrix(call: Linear) -> None:
    factor, x = factor_of(4, 5, 2).requires_grad_(), random(4, 5).requires_grad_()
    matrix = dense(factor)
    through = {
        multiply: applied(matrix, x),
        CALLS["transpose"]: applied(matrix.T, x),
        solve: torch.linalg.solve(matrix, x.flatten()).reshape(4, 5),
        CALLS["solve with the transpose"]: torch.linalg.solve(matrix.T, x.flatten()).reshape(4, 5),
    }[call]
    weight = random(4, 5, seed=1)
    found = torch.autograd.grad(call(factor, x), (factor, x), weight)
    expected = torch.autograd.grad(through, (factor, x), weight)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # PyTorch's own
def test_forward_mode(call: Linear) -> None:
    point = factor_of(3, 4, 1), random(3, 4)
    direction = random(5, 3, 4, seed=1), random(3, 4, seed=2)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(point, direction, strict=True)]
        found = forward_ad.unpack_dual(call(*duals)).tangent
    assert found is not None
    step = 1e-5
    ends = [
        call(*(p + s * step * d for p, d in zip(point, direction, strict=True))) for s in (1, -1)
    ]
    assert torch.allclose(found, (ends[0] - ends[1]) / (2 * step), atol=1e-7)


def looped(fn: Linear, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Tensor:
    count = next(t.shape[d] for t, d in zip(inputs, in_dims, strict=True) if d is not None)
    rows = [
        [t if d is None else t.select(d, i) for t, d in zip(inputs, in_dims, strict=True)]
        for i in range(count)
    ]
    return torch.stack([fn(*row) for row in rows])


VMAPS: list[tuple[tuple[int | None, int | None], tuple[int, ...], tuple[int, ...]]] = [
    ((0, 0), (3,), (3,)),
    ((None, 0), (), (3,)),
    ((0, None), (3,), ()),
    ((1, 0), (2, 3), (3,)),
    ((0, 1), (3,), (2, 3)),
    ((0, None), (3,), (4, 2)),
    ((None, 2), (2,), (4, 1, 3)),
]


@pytest.mark.parametrize(("in_dims", "left", "right"), VMAPS)
def test_vmap(
    call: Linear,
    in_dims: tuple[int | None, int | None],
    left: tuple[int, ...],
    right: tuple[int, ...],
) -> None:
    inputs = factor_of(3, 4, 1, *left), random(*right, 3, 4)
    found = torch.func.vmap(call, in_dims)(*inputs)
    assert torch.allclose(found, looped(call, in_dims, *inputs), rtol=1e-12, atol=1e-12)

    def gradient(factor: Tensor, x: Tensor) -> Tensor:
        total = torch.func.grad(lambda f, x: call(f, x).pow(3).sum(), argnums=(0, 1))(factor, x)
        return torch.cat([part.flatten() for part in total])

    found = torch.func.vmap(gradient, in_dims)(*inputs)
    assert torch.allclose(found, looped(gradient, in_dims, *inputs), rtol=1e-10, atol=1e-10)


def test_nested_vmaps_recorded(call: Linear) -> None:
    """A solve is a node of the graph, whatever the number of fronts; nothing is in place."""
    factor, x = factor_of(9, 8, 2, 2), random(2, 3, 9, 8)
    mapped = torch.func.vmap(torch.func.vmap(call, (None, 0)))

    def value_and_gradient(factor: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        value = mapped(factor, x)
        return value.detach(), *torch.autograd.grad(value.square().sum(), x)

    expected = torch.stack([call(f, rows) for f, rows in zip(factor, x, strict=True)])
    for run in (record(value_and_gradient, factor, x), make_fx(value_and_gradient)(factor, x)):
        value, gradient = run(factor, x)
        assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)
        assert torch.allclose(gradient, value_and_gradient(factor, x)[1], rtol=1e-12)
        assert len(run.graph.nodes) < 40
        # It computes anew for other inputs.
        assert torch.allclose(run(factor, 2 * x)[1], 2 * gradient, rtol=1e-12)


@pytest.mark.parametrize(
    ("left", "right"),
    [((0,), (0,)), ((), (0,)), ((0,), ()), ((1,), (0,)), ((1,), (1,)), ((1,), ())],
)
def test_batches_of_zero_and_one(
    call: Linear, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    factor, x = factor_of(3, 4, 1, *left).requires_grad_(), random(*right, 3, 4).requires_grad_()
    out = call(factor, x)
    assert out.shape == (*torch.broadcast_shapes(left, right), 3, 4)
    gradients = torch.autograd.grad(out.square().sum(), (factor, x))
    assert [g.shape for g in gradients] == [factor.shape, x.shape]
    if out.numel():
        single = call(factor.detach().reshape(5, 3, 4), x.detach().reshape(3, 4))
        assert torch.allclose(out[0], single, rtol=1e-12)


def test_memory_layout_does_not_matter(call: Linear) -> None:
    factor, x = factor_of(5, 4, 2, 3), random(3, 5, 4)
    expected = call(factor, x)
    for strided in (
        call(factor.mT.contiguous().mT, x),
        call(factor, x.movedim(0, -1).contiguous().movedim(-1, 0)),
        call(factor[:1].expand(3, -1, -1, -1), x)[:1],
    ):
        assert torch.allclose(strided, expected[: len(strided)], rtol=1e-12)
        assert strided.stride()[1:] == (4, 1)


def test_inputs_are_left_alone(call: Linear) -> None:
    factor, x = factor_of(3, 4, 1), random(3, 4)
    before = factor.clone(), x.clone()
    call(factor, x).zero_()
    assert torch.equal(factor, before[0]) and torch.equal(x, before[1])


def test_single_precision(call: Linear) -> None:
    factor, x = factor_of(12, 9, 2), random(6, 12, 9)
    found = call(factor.float(), x.float())
    assert found.dtype == torch.float32
    # Single precision has 1e-7; the factor's condition number is below 100.
    assert torch.allclose(found.double(), call(factor, x), rtol=1e-4, atol=1e-4)


def test_a_number_of_maps_without_a_radius_is_refused() -> None:
    with pytest.raises(ValueError, match="has 4 maps; expected 1, 5, 13"):
        multiply(torch.ones(4, 3, 3), torch.ones(3, 3))


# ---------------------------------------------------------------------- marginal variances


def variance_through_the_matrix(factor: Tensor) -> Tensor:
    matrix = dense(factor)
    covariance = torch.linalg.inv(matrix @ matrix.mT)
    return covariance.diagonal(dim1=-2, dim2=-1).reshape(factor.shape[:-3] + factor.shape[-2:])


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
@pytest.mark.parametrize("batch", [(), (2,), (2, 1), (0,)])
def test_inverse_diagonal_in_chunks(chunk: int, batch: tuple[int, ...]) -> None:
    factor = factor_of(4, 3, 2, *batch).requires_grad_()
    with mock.patch.object(sparse_cholesky, "_CHUNK", chunk):
        found, expected = inverse_diagonal(factor), variance_through_the_matrix(factor)
        assert found.shape == expected.shape == (*batch, 4, 3)
        assert torch.allclose(found, expected, rtol=1e-10)
        weight = random(*found.shape, seed=1)
        gradients = [torch.autograd.grad(v, factor, weight)[0] for v in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-10)


def test_memory_is_bounded() -> None:
    """The largest solve has a chunk of unit vectors, with a gradient too."""
    sizes: list[int] = []
    original = sparse_cholesky._solve

    def spy(factor: Tensor, b: Tensor, transpose: bool) -> Tensor:
        sizes.append(b.numel() * factor[..., 0, 0, 0].numel())
        return original(factor, b, transpose)

    factor = factor_of(4, 3, 1, 2).requires_grad_()
    patch: dict[str, Any] = {"_CHUNK": 100, "_solve": spy}
    with mock.patch.multiple(sparse_cholesky, **patch):
        inverse_diagonal(factor).sum().backward()
        torch.func.vmap(inverse_diagonal)(factor.detach())
    assert max(sizes) <= 2 * 100  # the second solve of the gradient has the batch in b as well


def test_derivatives_and_vmap_of_the_inverse_diagonal() -> None:
    factor = factor_of(3, 2, 1, 2).requires_grad_()
    with isolated(0):
        assert torch.autograd.gradcheck(inverse_diagonal, (factor,))
        assert torch.autograd.gradgradcheck(inverse_diagonal, (factor,))
    mapped = torch.func.vmap(inverse_diagonal, 1)(factor.detach().movedim(0, 1))
    assert torch.allclose(mapped, inverse_diagonal(factor), rtol=1e-12)
    slope = torch.func.grad(lambda f: inverse_diagonal(f).log().sum())
    mapped = torch.func.vmap(slope)(factor.detach())
    assert torch.allclose(mapped, torch.stack([slope(f) for f in factor.detach()]), rtol=1e-10)
