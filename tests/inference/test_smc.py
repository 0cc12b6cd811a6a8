"""SMC: moments, mode weights and evidence against the truth, and mutants that fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.errors import ModelError, OptionError, UnknownOptionError
from bayesgen.inference import HMC, particle_moves, smc
from bayesgen.inference.checks import MethodReport, check_method, moment_report
from bayesgen.inference.hmc import HMCState
from bayesgen.inference.particle_moves import Kernel
from bayesgen.inference.runner import Run, run_population, run_sampler
from bayesgen.inference.smc import SMC, SMCInfo, SMCState
from bayesgen.inference.targets import GaussianTarget, MixtureTarget
from bayesgen.inference.tempering import Tempered
from bayesgen.log_density import LogDensity
from bayesgen.types import Density, Split

float64 = torch.float64
QUICK = SMC(particles=256)
TARGET = GaussianTarget.with_condition(3, 10.0)
MODES = MixtureTarget.pair(distance=20.0, weight=0.3)


def run(
    method: SMC, target: object, lead: tuple[int, ...] = (4,), seed: int = 0, **options: object
) -> Run:
    rng = torch.Generator().manual_seed(seed)
    num = method.num_starts(0)
    start = target.prior_draws(math.prod((*lead, num)), rng)  # type: ignore[attr-defined]
    start = start.reshape(*lead, num, -1)
    return run_population(method, target, start, rng, **{"draws": num, **options})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("kernel", ["hmc", "pcn"])
def test_moments(kernel: str) -> None:
    check_method(SMC(particles=128, kernel=kernel), draws=128).raise_if_failed()


def test_moments_in_single_precision() -> None:
    target = GaussianTarget.with_condition(3, 10.0, dtype=torch.float32)
    check_method(SMC(particles=128), target, draws=128).raise_if_failed()


def mode_report(method: SMC) -> MethodReport:
    return check_method(method, MODES, draws=64)


@pytest.mark.parametrize("kernel", ["hmc", "pcn"])
def test_mode_weights(kernel: str) -> None:
    mode_report(SMC(particles=128, kernel=kernel)).raise_if_failed()


def test_one_start_of_plain_hmc_finds_one_mode() -> None:
    start, rng = MODES.centres[:1].expand(16, 2), torch.Generator().manual_seed(0)
    result = run_sampler(HMC(), MODES, start, rng, draws=100, warmup=100)
    assert not moment_report("", result.position, MODES.mean, MODES.covariance).passed


def test_resampling_that_ignores_weights_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def ignoring(log_weights: Tensor, rng: torch.Generator, num: int | None = None) -> Tensor:
        count = log_weights.shape[-1] if num is None else num
        return torch.arange(count).expand(*log_weights.shape[:-1], count)

    monkeypatch.setattr(smc, "systematic", ignoring)
    assert not mode_report(SMC(particles=64)).passed


def test_moves_without_an_accept_step_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(
        tempered: Tempered, particles: HMCState, split: Split, rng: torch.Generator, count: int
    ) -> tuple[HMCState, Split, Tensor]:
        noise = torch.randn(particles.position.shape, generator=rng, dtype=float64)
        position = particles.position + 0.2 * noise
        log_prob, gradient = tempered.value_and_grad(position)
        moved = particles._replace(position=position, log_prob=log_prob, gradient=gradient)
        return moved, tempered.last, torch.full(position.shape[:-2], 0.7, dtype=float64)

    monkeypatch.setitem(particle_moves.KERNELS, "hmc", Kernel(walk, 0.7, math.inf))
    assert not check_method(SMC(particles=64), draws=64).passed


# ------------------------------------------------------------------------------------- evidence


class LinearProblem:
    """y = W z + noise with normal z: y is normal too."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.weight = torch.randn(6, 3, generator=rng, dtype=float64)
        self.y = torch.randn(6, generator=rng, dtype=float64)

    def model(self, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=float64), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z @ self.weight.T, 0.5).to_event(1), obs=y)

    def log_evidence(self, y: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + 0.25 * torch.eye(6, dtype=float64)
        return dist.MultivariateNormal(torch.zeros(6, dtype=float64), covariance).log_prob(y)


def z_of_evidence(log_evidence: Tensor, truth: Tensor | float) -> float:
    """Standard errors between the mean estimate of the evidence itself and the truth."""
    ratio = (log_evidence[:, 0] - truth).exp()
    return float((ratio.mean() - 1.0) / (ratio.std() / len(ratio) ** 0.5))


# |t| with 31 degrees of freedom is larger with probability 1e-6.
ALARM = 6.1


@pytest.mark.parametrize("kernel", ["hmc", "pcn"])
def test_the_evidence_is_unbiased(kernel: str) -> None:
    found = run(SMC(particles=256, kernel=kernel), TARGET, (64,)).stats["log_evidence"]
    assert abs(z_of_evidence(found, TARGET.log_evidence)) < ALARM


def test_the_evidence_of_a_linear_model() -> None:
    problem = LinearProblem()
    found = run(SMC(particles=128), LogDensity(problem.model, problem.y), (32,)).stats[
        "log_evidence"
    ]
    assert abs(z_of_evidence(found, problem.log_evidence(problem.y))) < ALARM


def mutant(change: Callable[[Tensor, SMC], Tensor]) -> SMC:
    """Increments of the log evidence that are changed."""

    @dataclass(frozen=True)
    class Mutant(SMC):
        def step(
            self, log_density: Density, state: SMCState, rng: torch.Generator
        ) -> tuple[SMCState, SMCInfo]:
            new, info = super().step(log_density, state, rng)
            increment = change(new.log_evidence - state.log_evidence, self)
            return new._replace(log_evidence=state.log_evidence + increment), info

    return Mutant(particles=256)


@pytest.mark.parametrize(
    "change",
    [
        lambda increment, method: -increment,
        lambda increment, method: increment + math.log(method.particles),
        lambda increment, method: 0.9 * increment,
    ],
    ids=["sign", "sum instead of mean", "size"],
)
def test_wrong_increments_are_rejected(change: Callable[[Tensor, SMC], Tensor]) -> None:
    found = run(mutant(change), TARGET, (64,)).stats["log_evidence"]
    assert abs(z_of_evidence(found, TARGET.log_evidence)) > ALARM


def test_large_likelihoods_in_single_precision() -> None:
    """Weights are differences: what likelihoods have in common must not drown them."""

    class Shifted(GaussianTarget):
        def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
            split = super().split(v)
            return split._replace(likelihood=split.likelihood - 1e4)

    target = GaussianTarget.with_condition(3, 10.0, dtype=torch.float32)
    shifted = Shifted(target.mean, target.covariance)
    result = run(QUICK, shifted, (64,))
    moment_report("", result.position, target.mean, target.covariance).raise_if_failed()
    found = result.stats["log_evidence"]
    assert found.dtype == float64
    assert abs(z_of_evidence(found, target.log_evidence - 1e4)) < ALARM


# ------------------------------------------------------------------------------------- populations


@pytest.mark.parametrize("lead", [(1,), (2, 3), (5, 1)])
def test_shapes(lead: tuple[int, ...]) -> None:
    result = run(SMC(particles=32), TARGET, lead, draws=20)
    assert result.position.shape == (*lead, 20, 3)
    assert result.log_prob.shape == (*lead, 20)
    assert all(value.shape == (*lead, 20) for value in result.stats.values())
    torch.testing.assert_close(result.log_prob, TARGET.value_and_grad(result.position)[0])
    assert bool((result.stats["tempered"] == 1).all())


def test_problems_and_chains_have_temperatures_of_their_own() -> None:
    """Data sets near the prior mean and far from it, in one batch."""
    problem = LinearProblem()
    y = problem.y * torch.tensor([0.0, 0.5, 1.5, 10.0])[:, None]
    density, rng = LogDensity(problem.model, y, batched=True), torch.Generator().manual_seed(0)
    start = density.prior_draws(2 * 256, rng).unflatten(1, (2, 256))
    betas: list[Tensor] = []
    result = run_population(
        QUICK, density, start, rng, draws=256, monitor=lambda s: betas.append(s.state.beta)
    )
    path = torch.stack(betas)
    assert bool((path.diff(dim=0) >= 0).all()) and len(path[0].unique()) == 8
    temperatures = result.stats["temperatures"][..., 0]
    assert torch.equal(temperatures, (path < 1).sum(0) + 1)
    assert int(temperatures[-1].min()) > int(temperatures[0].max())
    error = result.stats["log_evidence"][..., 0] - problem.log_evidence(y)[:, None]
    assert float(error[:3].abs().max()) < 1.0 and float(error[3].abs().max()) < 3.0


def test_chains_that_have_arrived_wait(rng: torch.Generator) -> None:
    target = GaussianTarget.with_condition(2, 4.0)
    state = QUICK.init(target, target.prior_draws(512, rng).reshape(2, 256, 2))
    state = state._replace(beta=torch.tensor([0.0, 1.0], dtype=float64))
    new, info = QUICK.step(target, state, rng)
    assert float(new.beta[0]) > 0 and info.n_moves.tolist()[1] == 0
    assert not torch.equal(new.position[0], state.position[0])
    assert torch.equal(new.position[1], state.position[1])
    assert new.temperatures.tolist() == [1, 0] and float(new.log_evidence[1]) == 0.0


def test_prior_draws_are_not_posterior_draws(rng: torch.Generator) -> None:
    target = GaussianTarget.with_condition(2, 4.0)
    state = QUICK.init(target, target.prior_draws(256, rng)[None])
    assert not QUICK.finished(state) and float(state.beta) == 0.0
    with pytest.warns(RuntimeWarning, match="1 of 1 chains have not come"):
        drawn = QUICK.draw(target, state, 10, rng)
    assert float(drawn.stats["tempered"].max()) == 0.0


def test_running_out_of_temperatures_is_said() -> None:
    target = GaussianTarget.with_condition(5, 10.0)
    with pytest.warns(RuntimeWarning, match="max_iterations=2 temperatures"):
        result = run(SMC(particles=64, max_iterations=2), target)
    assert 0.0 < float(result.stats["tempered"].max()) < 1.0


def test_there_are_particles_for_all_draws(rng: torch.Generator) -> None:
    assert (QUICK.num_starts(100), QUICK.num_starts(1000)) == (256, 1000)
    assert SMC.starts_at_prior
    target = GaussianTarget.with_condition(2, 4.0)
    result = run(QUICK, target, draws=100)
    assert all(len(chain.unique(dim=0)) > 90 for chain in result.position)


def test_impossible_prior_draws_are_weighted_away() -> None:
    """A uniform law on the right tenth of the prior, and nothing outside."""

    class Half(GaussianTarget):
        def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
            split = super().split(v)
            outside = (v[..., 0] < 5.0) | (v[..., 0] > 10.0)
            return split._replace(likelihood=torch.where(outside, math.nan, split.likelihood))

    right = GaussianTarget.with_condition(2, 4.0)
    result = run(SMC(), Half(torch.tensor([7.0, 0.0]).double(), right.covariance))
    assert bool(((result.position[..., 0] >= 5) & (result.position[..., 0] <= 10)).all())


# ------------------------------------------------------------------------------------- bad input


def test_a_likelihood_that_is_nowhere_positive_is_refused() -> None:
    class Impossible(GaussianTarget):
        def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
            split = super().split(v)
            lost = split.likelihood.new_tensor([-math.inf, math.nan, 0.0])
            return split._replace(likelihood=split.likelihood + lost[:, None])

    target = GaussianTarget.with_condition(2, 4.0)
    with pytest.raises(ModelError, match="in 2 of 3 chains .* all 256 draws .* raise particles"):
        run(QUICK, Impossible(target.mean, target.covariance), (3,))


def test_densities_without_a_prior_are_refused(rng: torch.Generator) -> None:
    class Whole:
        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            return -0.5 * v.square().sum(-1), -v

    with pytest.raises(ModelError, match=r"Whole has no split\(\)"):
        run_population(QUICK, Whole(), torch.zeros(1, 256, 2), rng, draws=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 15}, "particles: got 15; expected an integer of at least 16"),
        ({"alpha": 1.0}, "alpha: got 1.0; expected a number between 0 and 1"),
        ({"moves": 0}, "moves: got 0"),
        ({"max_moves": 1}, "max_moves: got 1; expected an integer of at least 2"),
        ({"leapfrog": 0}, "leapfrog: got 0"),
        ({"kernel": "hcm"}, "kernel: unknown value 'hcm'.*did you mean 'hmc'"),
        ({"target_acceptance": 1.5}, "target_acceptance: got 1.5"),
        ({"max_iterations": 0}, "max_iterations: got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SMC(**settings)  # type: ignore[arg-type]


def test_misspelt_settings_are_refused_with_the_list() -> None:
    with pytest.raises(UnknownOptionError, match="SMC: unknown option 'num_particles'"):
        SMC(num_particles=100)  # type: ignore[call-arg]


def test_moves_know_the_correlations_of_the_particles() -> None:
    """In their units a narrow law is far rounder than in those of its variances, as "pcn" has."""
    target = GaussianTarget.with_condition(6, 1e4)

    def condition(masses: Tensor) -> float:
        factor = torch.linalg.cholesky(masses)
        white = torch.linalg.solve(factor, target.covariance) @ torch.linalg.inv(factor).mT
        values = torch.linalg.eigvalsh(white)
        return float(values.max() / values.min())

    dense = run(QUICK, target).state.particles.inverse_mass
    assert dense.shape == (4, 2, 6, 6)
    half = dense[0, 0]
    assert condition(half) < condition(half.diagonal().diag()) / 10
    walk = run(SMC(particles=256, kernel="pcn"), target).state.particles.inverse_mass
    assert walk.shape == (4, 1, 6)


@pytest.mark.parametrize("own", [False, True])
def test_particles_are_not_held_back_by_covariances_that_they_helped_to_fit(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Many unknowns for the particles; the mutant gives each half its own covariance."""
    if own:
        learnt = smc._learnt_masses
        monkeypatch.setattr(smc, "_learnt_masses", lambda *args: learnt(*args).flip(-3))
    target = GaussianTarget.with_condition(20, 100.0)
    result = run(SMC(particles=128), target, (24,), draws=128)
    error = result.stats["log_evidence"][:, 0] - target.log_evidence
    assert (float(error.mean().abs()) < 0.5) != own
