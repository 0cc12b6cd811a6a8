"""The loop: shapes, thinning, seeds, interruption, batches of problems, bad starts."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import infer
from bayesgen.errors import ModelError, OptionError
from bayesgen.inference import (
    DWLS,
    HMC,
    MALA,
    MAP,
    METHODS,
    MYULA,
    NUTS,
    PCN,
    PMALA,
    SKROCK,
    SMC,
    ULA,
    AnnealedLangevin,
    ChEES,
    Drawn,
    LaplaceMixture,
    Method,
    NeuTra,
    ParallelTempering,
    Population,
    Sampler,
    Step,
    Variational,
)
from bayesgen.inference.checks import GaussianTarget
from bayesgen.inference.masses import is_dense
from bayesgen.inference.runner import Run, run_optimiser, run_population, run_sampler

# Guides are fitted for too few steps on purpose: draws are exact all the same.
pytestmark = pytest.mark.filterwarnings("ignore:neutra. the evidence bounds:RuntimeWarning")

TARGET = GaussianTarget.with_condition(3, 10.0)
# Every method; one that is missing fails the suite.
ALL: dict[str, Method] = {
    "map": MAP(),
    "hmc": HMC(),
    "nuts": NUTS(max_depth=4),
    "chees": ChEES(max_steps=16),
    "mala": MALA(),
    "pcn": PCN(),
    "pmala": PMALA(),
    "smc": SMC(particles=32),
    "pt": ParallelTempering(replicas=4),
    "ula": ULA(),
    "myula": MYULA(),
    "skrock": SKROCK(),
    "annealed-langevin": AnnealedLangevin(),
    "dwls": DWLS(),
    "neutra": NeuTra(guide="multivariate", steps=30),
    "laplace-mixture": LaplaceMixture(restarts=2),
    "svi": Variational(guide="normal", learning_rate=0.2, tolerance=5.0),
}
# Methods that need a Pyro model, which this density is not; tests of their own run them.
ON_MODELS = {"gibbs"}
SAMPLERS = [name for name, method in ALL.items() if isinstance(method, Sampler)]


def run(method: Method, start: Tensor, seed: int = 0, **options: object) -> Run:
    rng = torch.Generator().manual_seed(seed)
    if isinstance(method, Sampler):
        options = {"draws": 6, "warmup": 30, **options}
        return run_sampler(method, TARGET, start, rng, **options)  # type: ignore[arg-type]
    if isinstance(method, Population):
        particles = method.num_starts(6)
        start = start.unsqueeze(-2).expand(*start.shape[:-1], particles, 3).clone()
        noise = torch.randn(start.shape, generator=rng, dtype=start.dtype)
        return run_population(method, TARGET, start + 5 * noise, rng, draws=6)
    return run_optimiser(method, TARGET, start, rng, **options)  # type: ignore[arg-type]


def test_every_method_is_listed() -> None:
    assert set(ALL) | ON_MODELS == set(METHODS)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("lead", [(1,), (4,), (2, 3), (5, 1)])
def test_shapes(name: str, lead: tuple[int, ...]) -> None:
    start = torch.zeros(*lead, 3, dtype=torch.float64)
    if name == "chees" and lead[-1] == 1:
        with pytest.raises(OptionError, match="chains: got 1"):
            run(ALL[name], start)
        return
    result = run(ALL[name], start)
    draws = result.position.shape[-2]
    assert result.position.shape == (*lead, draws, 3)
    assert result.log_prob.shape == (*lead, draws)
    assert all(value.shape == (*lead, draws) for value in result.stats.values())
    assert result.num_evaluations > 0 and not result.interrupted


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_draws(name: str) -> None:
    start = torch.ones(4, 3, dtype=torch.float64)
    first, again, other = (run(ALL[name], start, seed) for seed in (1, 1, 2))
    assert torch.equal(first.position, again.position)
    assert isinstance(ALL[name], MAP) or not torch.equal(first.position, other.position)


@pytest.mark.parametrize("name", ALL)
def test_starts_may_be_views(name: str) -> None:
    start = torch.ones(1, 3, dtype=torch.float64).expand(4, 3)
    transposed = torch.ones(3, 4, dtype=torch.float64).T
    assert torch.equal(run(ALL[name], start).position, run(ALL[name], transposed).position)
    assert bool((start == 1).all())


@pytest.mark.parametrize("name", ["hmc", "mala", "nuts", "pcn"])
def test_problems_adapt_on_their_own(name: str) -> None:
    """A problem's warm-up must not depend on what it is batched with, but for the noise."""

    class Scaled:
        """Two Gaussians, one a hundred times wider than the other."""

        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            scale = torch.tensor([1.0, 100.0], dtype=torch.float64)[:, None, None]
            return -0.5 * (v / scale).square().sum(-1), -v / scale**2

    start = torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    method: Any = ALL[name]
    result = run_sampler(method, Scaled(), start, rng, draws=200, warmup=300)
    found = result.state.inverse_mass
    variance = found.diagonal(dim1=-2, dim2=-1) if is_dense(found) else found[..., 0, :]
    width = variance.sqrt().mean(-1)
    assert 50 < float(width[1] / width[0]) < 200
    acceptance = result.stats["acceptance_rate"].mean((1, 2))
    target = method.target_acceptance
    assert bool(((acceptance > target - 0.25) & (acceptance < 0.98)).all())


def test_thinning_keeps_every_kth_step() -> None:
    start = torch.zeros(2, 3, dtype=torch.float64)
    full = run(HMC(), start, draws=6)
    thinned = run(HMC(), start, draws=3, thin=2)
    assert torch.equal(thinned.position, full.position[:, 1::2])


def test_monitors_see_every_step() -> None:
    seen: list[Step] = []
    run(HMC(), torch.zeros(2, 3, dtype=torch.float64), draws=3, warmup=4, monitor=seen.append)
    assert [(s.phase, s.iteration, s.total) for s in seen] == [
        *(("warm-up", i, 4) for i in range(4)),
        *(("sampling", i, 3) for i in range(3)),
    ]


def test_adaptation_ends_with_warm_up() -> None:
    steps: list[float] = []
    run(
        HMC(),
        torch.zeros(4, 3, dtype=torch.float64),
        draws=20,
        monitor=lambda s: steps.append(float(s.state.step_size)) if s.phase == "sampling" else None,
    )
    assert len(set(steps)) == 1


def interrupt(phase: str, iteration: int) -> object:
    def monitor(step: Step) -> None:
        if (step.phase, step.iteration) == (phase, iteration):
            raise KeyboardInterrupt

    return monitor


def test_an_interrupted_run_returns_what_was_drawn() -> None:
    start = torch.zeros(2, 3, dtype=torch.float64)
    full = run(HMC(), start, draws=10)
    part = run(HMC(), start, draws=10, monitor=interrupt("sampling", 3))
    assert part.interrupted and part.position.shape == (2, 4, 3)
    assert torch.equal(part.position, full.position[:, :4])
    assert all(value.shape == (2, 4) for value in part.stats.values())


def test_an_interrupt_before_the_first_draw_passes_through() -> None:
    start = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt):
        run(HMC(), start, monitor=interrupt("warm-up", 2))
    with pytest.raises(KeyboardInterrupt):
        run(HMC(), start, thin=5, draws=2, monitor=interrupt("sampling", 1))


def test_an_interrupted_optimiser_returns_where_it_was() -> None:
    start = torch.full((2, 3), 5.0, dtype=torch.float64)
    part = run(MAP(solver="adam"), start, monitor=interrupt("optimising", 2))
    assert part.interrupted and part.stats["n_steps"].tolist() == [[3], [3]]
    assert not bool(part.stats["converged"].any())


def test_starts_outside_the_domain_are_refused() -> None:
    class Half:
        num_dims = 1

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            return v[..., 0].log(), 1 / v

    start = torch.tensor([[1.0], [-1.0], [2.0]])
    with pytest.raises(ModelError, match="1 of 3 starting points"):
        run_sampler(HMC(), Half(), start, torch.Generator(), draws=1, warmup=0)


class Importance(Population):
    """Draws from the prior, resampled by the likelihood: the simplest population."""

    name, reference, starts_at_prior, max_iterations = "importance", "", True, 3

    class State(NamedTuple):
        position: Tensor
        log_prob: Tensor
        weights: Tensor
        steps: int

    class Info(NamedTuple):
        beta: Tensor

    def num_starts(self, draws: int) -> int:
        return 20 * draws

    def init(self, log_density: Any, position: Tensor) -> Importance.State:
        parts = log_density.split(position)
        value = parts.prior + parts.likelihood
        return self.State(position, value, parts.likelihood.softmax(-1), 0)

    def step(self, log_density: Any, state: Any, rng: torch.Generator) -> tuple[Any, Any]:
        return state._replace(steps=state.steps + 1), self.Info(state.log_prob.mean(-1))

    def finished(self, state: Any) -> bool:
        return bool(state.steps == 2)

    def draw(self, log_density: Any, state: Any, draws: int, rng: torch.Generator) -> Drawn:
        flat = state.weights.flatten(0, -2)
        chosen = torch.multinomial(flat, draws, replacement=True, generator=rng)
        chosen = chosen.reshape(*state.weights.shape[:-1], draws)
        position = torch.take_along_dim(state.position, chosen[..., None], -2)
        log_prob = torch.take_along_dim(state.log_prob, chosen, -1)
        evidence = torch.zeros_like(log_prob)
        return Drawn(position, log_prob, {"log_evidence": evidence})


def linear(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 2.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_populations_run_through_infer() -> None:
    y = torch.tensor([1.0, 4.0])
    posterior = infer(linear, y, method=Importance(), batched=True, chains=5, draws=100)
    assert posterior.draws("z").shape == (2, 5, 100)
    assert posterior.log_evidence.shape == (2, 5) and not posterior.is_point_estimate
    # 500 draws of N(0.8 y, 0.8), from 10,000 of the prior each.
    assert bool(((posterior.mean("z") - 0.8 * y).abs() < 5 * (0.8 / 400) ** 0.5).all())
    assert posterior.attributes["num_warmup"] == 2


def test_populations_take_no_settings_of_chains() -> None:
    y = torch.tensor(1.0)
    for options in ({"warmup": 3}, {"thin": 2}, {"start": "map"}):
        with pytest.raises(OptionError, match=next(iter(options))):
            infer(linear, y, method=Importance(), **options)


def test_methods_may_add_to_the_model() -> None:
    class Extended(HMC):
        def extend(self, model: Any) -> Any:
            def extended(y: Tensor) -> None:
                model(y)
                pyro.sample("again", dist.Normal(torch.zeros_like(y), 1.0))

            return extended

    posterior = infer(linear, torch.tensor(1.0), method=Extended(), draws=5, warmup=5)
    assert posterior.latent_sites == ["z", "again"]
