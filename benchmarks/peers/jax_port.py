"""The same log density in JAX, and the time JAX takes to compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn

from bayesgen.models.networks import Residual
from peers.problem import SIGMA, Problem


def array(tensor: Tensor) -> jax.Array:
    """The same numbers in JAX."""
    return jnp.asarray(tensor.detach().numpy())


def decoder(layers: nn.Sequential) -> Callable[[jax.Array], jax.Array]:
    """The layers of a perceptron's decoder as a function of one latent vector.

    Raises
    ------
    TypeError
        If there is a layer of another kind.
    """
    parts = [_layer(layer) for layer in layers]

    def decode(z: jax.Array) -> jax.Array:
        for part in parts:
            z = part(z)
        return z

    return decode


def _layer(layer: nn.Module) -> Callable[[jax.Array], jax.Array]:
    if isinstance(layer, nn.SiLU):
        return jax.nn.silu
    if isinstance(layer, nn.Sigmoid):
        return jax.nn.sigmoid
    if isinstance(layer, Residual):
        inner = _layer(layer.linear)
        return lambda x: x + jax.nn.silu(inner(x))
    if isinstance(layer, nn.Linear):
        weight, bias = array(layer.weight.T.contiguous()), array(layer.bias)
        return lambda x: x @ weight + bias
    raise TypeError(f"layer: got {type(layer).__name__}; expected one of a perceptron's decoder")


def log_density(problem: Problem) -> Callable[[jax.Array], jax.Array]:
    """Log prior plus log likelihood of one latent vector, constants included."""
    decode = decoder(problem.layers)
    matrix, y = array(problem.matrix.T.contiguous()), array(problem.y)

    def of_one(z: jax.Array) -> jax.Array:
        prior = jax.scipy.stats.norm.logpdf(z).sum()
        return prior + jax.scipy.stats.norm.logpdf(y, decode(z) @ matrix, SIGMA).sum()

    return of_one


def evaluate(function: Callable[[jax.Array], jax.Array]) -> Callable[[Tensor], tuple[Any, ...]]:
    """Values and gradients of a function of one latent vector at many, for `Problem.errors`."""
    mapped = jax.jit(jax.vmap(jax.value_and_grad(function)))

    def of_many(points: Tensor) -> tuple[Any, ...]:
        return tuple(torch.tensor(part.tolist()) for part in mapped(array(points)))

    return of_many


class CompilerClock:
    """Seconds that JAX has spent on tracing, lowering and compiling within a `watched` block."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += seconds

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen to JAX."""
        jax.monitoring.register_event_duration_secs_listener(self)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self)
