"""Recorded graphs give the same numbers as the function, and hold nothing superfluous."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesgen.recording import record

WEIGHT = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def value_and_grad(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = fn(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    return both


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "affine": lambda x: (x @ WEIGHT + WEIGHT[0]).square().sum(-1),
    "vmapped": torch.func.vmap(lambda x: (WEIGHT.T @ x).tanh().sum() + WEIGHT.exp().sum()),
    "reshapes": lambda x: x.unsqueeze(1).expand(-1, 2, -1).reshape(len(x), 6).pow(3).sum(-1),
    "permuted": lambda x: x.T.contiguous().square().T.reshape(len(x), -1).sum(-1),
    "transposed view": lambda x: (x.T.unsqueeze(0).squeeze(0).T * WEIGHT[:, 0]).sum(-1),
    "filled": lambda x: (x * torch.ones_like(x) + torch.zeros_like(x) + 2.0).prod(-1),
    "squeezed in place": lambda x: (x @ WEIGHT).unsqueeze(1).squeeze_(1).square().sum(-1),
    "mutated": lambda x: torch.zeros_like(x).add_(x).mul_(2.0).square().sum(-1),
    "powers": lambda x: (x**2 + x**1 + x**3).sum(-1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_values_and_gradients_at_new_points(name: str, rng: torch.Generator) -> None:
    both = value_and_grad(FUNCTIONS[name])
    graph = record(both, torch.zeros(5, 3, dtype=torch.float64))
    for _ in range(3):
        x = torch.randn(5, 3, generator=rng, dtype=torch.float64)
        for found, expected in zip(graph(x), both(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
            assert found.shape == expected.shape


def test_constants_are_evaluated_once() -> None:
    graph = record(lambda x: x * WEIGHT.exp().sum(), torch.zeros(2, dtype=torch.float64))
    called = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert len(called) == 1


def test_graphs_of_in_place_functions_do_not_remember_earlier_calls() -> None:
    def accumulate(x: Tensor) -> Tensor:
        total = torch.zeros(3, dtype=torch.float64)
        total += x
        return total

    graph = record(accumulate, torch.zeros(3, dtype=torch.float64))
    one = torch.ones(3, dtype=torch.float64)
    assert torch.equal(graph(one), one) and torch.equal(graph(one), one)


def test_fresh_random_numbers_are_refused() -> None:
    with torch.random.fork_rng(), pytest.raises(RuntimeError, match="random"):
        record(lambda x: x + torch.randn(3), torch.zeros(3))
