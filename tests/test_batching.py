"""Operators and generators see whole batches, inside vmap and out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayesgen._batching import native_batch, native_batching

WEIGHT = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


class Spy:
    """A function that remembers the shapes it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return (x @ WEIGHT).sin()


def test_outside_vmap_it_is_a_plain_call() -> None:
    spy = Spy()
    native_batch(spy, torch.ones(2, 3, dtype=torch.float64))
    assert spy.shapes == [(2, 3)]


@pytest.mark.parametrize("depth", [1, 2])
def test_vmapped_dimensions_become_leading_ones(depth: int, rng: torch.Generator) -> None:
    x = torch.randn(*(5, 6)[:depth], 3, generator=rng, dtype=torch.float64, requires_grad=True)
    spy = Spy()

    def fn(x: Tensor) -> Tensor:
        return native_batch(spy, x).sum()

    mapped = fn
    for _ in range(depth):
        mapped = torch.func.vmap(mapped)
    with native_batching(depth):
        value = mapped(x)
    assert spy.shapes == [tuple(x.shape)]
    expected = (x @ WEIGHT).sin().sum(-1)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x)[0])


def test_the_batch_may_be_at_any_dimension(rng: torch.Generator) -> None:
    x = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    with native_batching(1):
        value = torch.func.vmap(lambda x: native_batch(Spy(), x), in_dims=1)(x)
    torch.testing.assert_close(value, (x.T @ WEIGHT).sin())


def test_constants_inside_vmap_keep_their_gradient(rng: torch.Generator) -> None:
    constant = torch.randn(3, generator=rng, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, generator=rng, dtype=torch.float64)
    with native_batching(1):
        value = torch.func.vmap(lambda x: x * native_batch(Spy(), constant).sum())(x)
    (gradient,) = torch.autograd.grad(value.sum(), constant)
    (expected,) = torch.autograd.grad(((constant @ WEIGHT).sin().sum() * x).sum(), constant)
    torch.testing.assert_close(gradient, expected)


def test_the_setting_ends_with_its_block() -> None:
    spy = Spy()
    with pytest.raises(ZeroDivisionError), native_batching(1):
        raise ZeroDivisionError
    torch.func.vmap(lambda x: native_batch(spy, x))(torch.ones(2, 3, dtype=torch.float64))
    assert spy.shapes == [(3,)]
