"""Effective samples a second: batched chains against Pyro's own NUTS on the same model.

python benchmarks/pyro_nuts.py
"""

from __future__ import annotations

import argparse
import time
import warnings

import pyro
import pyro.distributions as dist
import torch
from report import table, write
from torch import Tensor

import bayesgen as bg


def least_ess(draws: Tensor) -> float:
    """Smallest bulk effective sample size over coordinates; draws ``(chains, draws, n)``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz as az
    return float(az.ess(az.convert_to_dataset({"z": draws.numpy()})).z.min())


def main() -> None:
    """One shipped digit, 150 measurements, noise 0.1; warm-up counts as time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--nuts-draws", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    G = bg.models.load("mnist-vae")
    A = bg.operators.GaussianMatrix((28, 28), rows=150, seed=0).normalised()
    truth = bg.datasets.mnist_samples().images[3]
    y = A(truth) + 0.1 * torch.randn(150, generator=torch.Generator().manual_seed(0))

    def model(y: Tensor) -> None:
        z = pyro.sample("z", G.prior())
        x = pyro.deterministic("x", G(z))
        pyro.sample("y", dist.Normal(A(x), 0.1).to_event(1), obs=y)

    optimum = bg.infer(model, y, method="map", chains=16, progress=False).mode("z")
    rows, results = [], {}
    for name in ("hmc", "mala"):
        clock = time.perf_counter()
        posterior = bg.infer(
            model,
            y,
            method=name,
            chains=options.chains,
            draws=options.draws,
            start={"z": optimum},
            progress=False,
        )
        seconds = time.perf_counter() - clock
        results[f"bayesgen {name}"] = (seconds, least_ess(posterior.draws("z")))

    from pyro.infer import MCMC, NUTS

    pyro.set_rng_seed(0)
    kernel = NUTS(model, init_strategy=pyro.infer.autoguide.init_to_value(values={"z": optimum}))
    mcmc = MCMC(kernel, num_samples=options.nuts_draws, warmup_steps=300, disable_progbar=True)
    clock = time.perf_counter()
    mcmc.run(y)
    seconds = time.perf_counter() - clock
    results["Pyro NUTS"] = (seconds, least_ess(mcmc.get_samples(group_by_chain=True)["z"]))

    rate = {name: ess / seconds for name, (seconds, ess) in results.items()}
    for name, (seconds, ess) in results.items():
        ratio = rate[name] / rate["Pyro NUTS"]
        rows.append([name, f"{seconds:.1f}", f"{ess:.0f}", f"{rate[name]:.1f}", f"{ratio:.1f}"])
    header = ["sampler", "seconds", "least ESS", "ESS a second", "over Pyro NUTS"]
    text = table(header, rows) + (
        f"\n\nbayesgen: {options.chains} chains x {options.draws} draws after 500 warm-up; Pyro: "
        f"1 chain x {options.nuts_draws} after 300. All start at the same MAP estimate; warm-up "
        "and recording are part of the time."
    )
    content = {n: {"seconds": s, "ess": e, "rate": e / s} for n, (s, e) in results.items()}
    write("pyro_nuts", "Effective samples a second against Pyro's NUTS", text, content)


if __name__ == "__main__":
    main()
