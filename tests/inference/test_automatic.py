"""The method that is chosen for a model, and the sentence that says why."""

from __future__ import annotations

import re
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from bayesgen import LogDensity
from bayesgen.covariances import Isotropic, Stationary
from bayesgen.distributions import Deviation, TotalVariation
from bayesgen.inference.automatic import choose_method

Model = Callable[[Tensor], None]


def normal(size: int, name: str = "z") -> Tensor:
    value: Tensor = pyro.sample(name, dist.Normal(torch.zeros(size), 1.0).to_event(1))
    return value


def see(x: Tensor, y: Tensor) -> None:
    pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=y)


def small(y: Tensor) -> None:
    see(normal(3).tanh(), y)


def two_sites(y: Tensor) -> None:
    scale = pyro.sample("s", dist.Gamma(2.0, 2.0))
    see(scale * normal(3).tanh(), y)


def large(y: Tensor) -> None:
    see(normal(100).tanh()[:3], y)


def large_and_positive(y: Tensor) -> None:
    s = pyro.sample("s", dist.Gamma(torch.full((100,), 2.0), 2.0).to_event(1))
    see(s[:3].log(), y)


def improper(y: Tensor) -> None:
    z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (3,)))
    see(z.exp() + z, y)


def linear(y: Tensor) -> None:
    see(2.0 * normal(3), y)


def relaxed(y: Tensor) -> None:
    z, u = normal(3), normal(100, "u")
    see(z.tanh() + u[:3], y)


def slightly_relaxed(y: Tensor) -> None:
    z, u = normal(3), normal(3, "u")
    see(z.tanh() + u, y)


def sparse(y: Tensor) -> None:
    z = normal(3)
    u = pyro.sample("u", dist.Laplace(torch.zeros(3), 0.1).to_event(1))
    see(z.tanh() + u, y)


def bent_spikes(y: Tensor, size: int = 3) -> None:
    u = pyro.sample("u", dist.Laplace(torch.zeros(size), 1.0).to_event(1))
    see(u[:3].tanh(), y)


def many_bent_spikes(y: Tensor) -> None:
    bent_spikes(y, 300)


def edges(y: Tensor) -> None:
    u = pyro.sample("u", TotalVariation((4, 4), 1.0))
    see(u[0, :3], y)


NEIGHBOURS = torch.tensor([[1.0, *[0.1] * 9], *[[0.1] + [0.0] * 9] * 9])
SMOOTH = Stationary(NEIGHBOURS, (10, 10))


def correlated(y: Tensor) -> None:
    z, u = normal(3), pyro.sample("u", Deviation(SMOOTH))
    see(z.tanh() + u[0, :3], y)


def white(y: Tensor) -> None:
    u = pyro.sample("u", Deviation(Isotropic((2, 3), 0.5)))
    see(u.sum(0), y)


CASES: dict[str, tuple[Model, str, str]] = {
    "small": (small, "smc", r"z \(3 unknowns\) has .*proper prior.*to temper"),
    "two sites": (two_sites, "smc", r"s \(1 unknown\) and z \(3 unknowns\) have .*proper priors"),
    "large": (large, "hmc", "100 unknowns are too many to temper.*100 unknowns have normal priors"),
    "large, not normal": (large_and_positive, "nuts", "100 unknowns are too many to temper"),
    "improper": (improper, "nuts", r"the prior of z \(3 unknowns\) is improper"),
    "linear": (linear, "gibbs", r"the posterior of z \(3 unknowns\) is Gaussian"),
    "relaxed": (relaxed, "gibbs", r"u \(100 unknowns\) is Gaussian.*z \(3 unknowns\) follows"),
    "correlated": (correlated, "gibbs", r"u \(100 unknowns\) is Gaussian.*z \(3 unknowns\) f"),
    "white": (white, "gibbs", r"the posterior of u \(6 unknowns\) is Gaussian"),
    "slightly relaxed": (slightly_relaxed, "smc", "small enough to temper"),
    "sparse": (sparse, "gibbs", r"Laplace prior of u \(3 unknowns\).*z \(3 unknowns\) follows"),
    "bent spikes": (bent_spikes, "pmala", r"the prior of u \(3 unknowns\) has kinks"),
    "many bent spikes": (many_bent_spikes, "skrock", "300 unknowns.*draws are slightly biased"),
    "edges": (edges, "pmala", r"the prior of u \(16 unknowns\) has kinks"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_suits(case: str) -> None:
    model, name, reason = CASES[case]
    method, why = choose_method(LogDensity(model, torch.zeros(3)))
    assert method.name == name
    assert re.search(reason, why), why
    assert "\n" not in why and not why.endswith(".")


def test_normal_priors_are_integrated_exactly() -> None:
    method, _ = choose_method(LogDensity(large, torch.zeros(3)))
    assert method.splitting == "prior"  # type: ignore[attr-defined]


def test_models_in_a_loop_are_not_tempered() -> None:
    def branching(y: Tensor) -> None:
        z = normal(3)
        see(z.tanh() if float(z.detach().sum()) > 0 else z.sin(), y)

    with pytest.warns(RuntimeWarning, match="cannot be vectorised"):
        log_density = LogDensity(branching, torch.zeros(3))
    method, why = choose_method(log_density)
    assert method.name == "nuts" and "the model runs in a loop" in why


def test_batches_of_problems() -> None:
    method, why = choose_method(LogDensity(small, torch.zeros(2, 3), batched=True))
    assert method.name == "smc" and "z (3 unknowns)" in why
