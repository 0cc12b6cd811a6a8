"""BlackJAX: NUTS with window adaptation, ChEES-HMC and MEADS, all chains in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from blackjax.adaptation.base import get_filter_adapt_info_fn

from peers.jax_port import CompilerClock, array, log_density
from peers.problem import Clock, Outcome, Problem

# Of Adam, in the search for a length of trajectory (Hoffman, Radul and Sountsov 2021).
_LEARNING_RATE = 0.025

Density = Callable[[jax.Array], jax.Array]


class Adapted(NamedTuple):
    """What warm-up leaves.

    Attributes
    ----------
    state, parameters
        Of every chain; parameters that all chains share are bound into ``kernel`` instead.
    kernel
        From the parameters of a chain to its step.
    gradients
        That warm-up took.
    """

    state: Any
    parameters: dict[str, Any]
    kernel: Callable[..., Callable[[jax.Array, Any], tuple[Any, Any]]]
    gradients: jax.Array


def _nuts(density: Density, key: jax.Array, start: jax.Array, warmup: int, _: int) -> Adapted:
    """Each chain adapts by itself, as Stan's do."""
    keep = get_filter_adapt_info_fn(info_keys={"num_integration_steps"})
    adaptation = blackjax.window_adaptation(blackjax.nuts, density, adaptation_info_fn=keep)

    @jax.jit
    @jax.vmap
    def adapt(key: jax.Array, start: jax.Array) -> tuple[Any, jax.Array]:
        found, info = adaptation.run(key, start, num_steps=warmup)
        return found, info.info.num_integration_steps.sum()

    found, steps = adapt(jax.random.split(key, len(start)), start)

    def kernel(**parameters: Any) -> Any:
        return blackjax.nuts(density, **parameters).step

    return Adapted(found.state, found.parameters, kernel, steps)


def _chees(density: Density, key: jax.Array, start: jax.Array, warmup: int, draws: int) -> Adapted:
    """Chains share a step, a length of trajectory and a diagonal mass matrix."""
    keep = get_filter_adapt_info_fn(info_keys={"num_integration_steps"})
    adaptation = blackjax.chees_adaptation(
        density, len(start), adaptation_info_fn=keep, mass_matrix_estimation="diagonal"
    )
    optimiser = optax.adam(_LEARNING_RATE)
    found, info = adaptation.run(key, start, 0.1, optimiser, warmup, max_sampling_steps=draws)

    def kernel() -> Any:
        return blackjax.dynamic_hmc(density, **found.parameters).step

    return Adapted(found.state, {}, kernel, info.info.num_integration_steps)


def _meads(density: Density, key: jax.Array, start: jax.Array, warmup: int, _: int) -> Adapted:
    """Chains learn from the other folds of chains; one gradient a step."""
    keep = get_filter_adapt_info_fn()
    adaptation = blackjax.meads_adaptation(density, len(start), adaptation_info_fn=keep)
    found, _info = adaptation.run(key, start, warmup)

    def kernel() -> Any:
        return blackjax.ghmc(density, **found.parameters).step

    return Adapted(found.state, {}, kernel, jnp.asarray(warmup * len(start)))


_ADAPTATIONS = {"nuts": _nuts, "chees": _chees, "meads": _meads}


def _sample(adapted: Adapted, key: jax.Array, draws: int) -> tuple[jax.Array, jax.Array]:
    """Draws of all chains, ``(chains, draws, n)``, and the gradients that each took."""

    @jax.jit
    @jax.vmap
    def chain(key: jax.Array, state: Any, parameters: dict[str, Any]) -> Any:
        step = adapted.kernel(**parameters)

        def one(state: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            state, info = step(key, state)
            steps = getattr(info, "num_integration_steps", jnp.ones((), int))
            return state, (state.position, steps)

        return jax.lax.scan(one, state, jax.random.split(key, draws))[1]

    chains = len(adapted.state.position)
    return chain(jax.random.split(key, chains), adapted.state, adapted.parameters)


def run(problem: Problem, name: str, chains: int, warmup: int, draws: int) -> Outcome:
    """Adapt and sample by the algorithm of that name."""
    clock, compiling, start = Clock(), CompilerClock(), array(problem.starts(chains))
    keys = jax.random.split(jax.random.key(0))
    with compiling.watched():
        adapt = _ADAPTATIONS[name]
        adapted = adapt(log_density(problem), keys[0], start, warmup, draws)
        jax.block_until_ready(adapted.state)
        warmup_compiling = compiling.seconds
        warmup_seconds = clock.lap() - warmup_compiling
        found, steps = jax.block_until_ready(_sample(adapted, keys[1], draws))
        sampling = clock.lap() - (compiling.seconds - warmup_compiling)
    return Outcome(
        draws=np.asarray(found),
        compiling=compiling.seconds,
        warmup=warmup_seconds,
        sampling=sampling,
        warmup_gradients=int(np.sum(adapted.gradients)),
        gradients=int(np.sum(steps)),
        busy=clock.busy,
    )
