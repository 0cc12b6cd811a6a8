"""NumPyro's NUTS, all chains in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

from peers.jax_port import CompilerClock, array, decoder
from peers.problem import SIGMA, Clock, Outcome, Problem


def model_of(problem: Problem) -> Callable[[jax.Array], None]:
    """The model in NumPyro's words."""
    decode, matrix = decoder(problem.layers), array(problem.matrix.T.contiguous())

    def model(y: jax.Array) -> None:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(problem.num_dims), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(decode(z) @ matrix, SIGMA).to_event(1), obs=y)

    return model


def density(problem: Problem) -> Callable[[jax.Array], jax.Array]:
    """The log density that NumPyro makes of it, of one latent vector."""
    model, y = model_of(problem), array(problem.y)
    return lambda z: log_density(model, (y,), {}, {"z": z})[0]


_KERNELS = {"nuts": NUTS}


def run(problem: Problem, name: str, chains: int, warmup: int, draws: int) -> Outcome:
    """The kernel of that name with NumPyro's own adaptation."""
    clock, compiling = Clock(), CompilerClock()
    mcmc = MCMC(
        _KERNELS[name](model_of(problem)),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    y, start = array(problem.y), {"z": array(problem.starts(chains))}
    options: dict[str, Any] = {"extra_fields": ("num_steps",)}
    with compiling.watched():
        mcmc.warmup(jax.random.key(0), y, init_params=start, collect_warmup=True, **options)
        steps = int(np.sum(mcmc.get_extra_fields()["num_steps"]))
        warmup_compiling = compiling.seconds
        warmup_seconds = clock.lap() - warmup_compiling
        mcmc.run(mcmc.post_warmup_state.rng_key, y, **options)
        found = np.asarray(mcmc.get_samples(group_by_chain=True)["z"])
        gradients = int(np.sum(mcmc.get_extra_fields()["num_steps"]))
        sampling = clock.lap() - (compiling.seconds - warmup_compiling)
    return Outcome(found, compiling.seconds, warmup_seconds, sampling, steps, gradients, clock.busy)
