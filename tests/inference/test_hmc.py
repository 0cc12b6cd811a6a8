"""HMC: reversibility and energy of the integrator, divergences, settings."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import HMC, MALA
from bayesgen.inference.checks import GaussianTarget, moment_report
from bayesgen.inference.hmc import hamiltonian_init, hamiltonian_step
from bayesgen.inference.runner import run_sampler
from bayesgen.log_density import LogDensity

TARGET = GaussianTarget.with_condition(4, 10.0)


def test_one_leapfrog_step_is_a_langevin_proposal(rng: torch.Generator) -> None:
    """v' = v + h/2 grad + sqrt(h) xi with h the squared step (Neal 2011, section 5.2)."""
    state = hamiltonian_init(TARGET, TARGET.starts(3, rng), 0.2, 0.8)
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    proposal = state.position + 0.02 * state.gradient + 0.2 * noise
    new, info = hamiltonian_step(TARGET, state, torch.Generator().manual_seed(5), 1)
    moved = (new.position != state.position).any(-1)
    torch.testing.assert_close(new.position[moved], proposal[moved])
    # The Langevin ratio, written out.
    value, gradient = TARGET.value_and_grad(proposal)
    forward = -(proposal - state.position - 0.02 * state.gradient).square().sum(-1) / 0.08
    backward = -(state.position - proposal - 0.02 * gradient).square().sum(-1) / 0.08
    ratio = (value - state.log_prob + backward - forward).clamp(max=0).exp()
    torch.testing.assert_close(info.acceptance_rate, ratio)


def test_divergences_are_found_and_rejected(rng: torch.Generator) -> None:
    start = TARGET.starts(8, rng)
    run = run_sampler(HMC(step_size=1e3), TARGET, start, rng, draws=5, warmup=0)
    assert bool(run.stats["diverging"].all())
    assert torch.equal(run.position[:, -1], start)


def test_leaving_the_domain_is_a_rejection_not_a_crash(rng: torch.Generator) -> None:
    class Disc:
        """Uniform on the unit disc; NaN outside."""

        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            inside = v.square().sum(-1) < 1
            return torch.where(inside, 0.0, math.nan), torch.where(
                inside[..., None], 0.0 * v, v * math.nan
            )

    run = run_sampler(HMC(), Disc(), torch.zeros(8, 2), rng, draws=200, warmup=50)
    assert bool((run.position.square().sum(-1) < 1).all())
    assert run.position.std() > 0.2


class Widths:
    """Independent Gaussians, those of the second problem ten times wider."""

    num_dims = 2
    widths = torch.tensor([1.0, 10.0], dtype=torch.float64)[:, None, None]

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        return -0.5 * (v / self.widths).square().sum(-1), -v / self.widths**2


class Sparing(Widths):
    """Evaluates only the rows that are asked for, and remembers how many those were."""

    takes_where = True

    def __init__(self) -> None:
        self.rows: list[int] = []

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool = True, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        value, gradient = super().value_and_grad(v)
        where = torch.ones_like(value, dtype=torch.bool) if where is None else where
        self.rows.append(int(where.sum()))
        return (
            torch.where(where, value, math.nan),
            torch.where(where[..., None], gradient, math.nan),
        )


def test_problems_take_their_own_numbers_of_steps(rng: torch.Generator) -> None:
    start = Widths().widths * torch.randn(2, 64, 2, generator=rng, dtype=torch.float64)
    method = HMC(trajectory=20.0, adapt_mass=False)
    run = run_sampler(method, Widths(), start, rng, draws=200, warmup=100)
    steps = run.stats["n_steps"].double().mean((1, 2))
    assert 5.0 < float(steps[0] / steps[1]) < 20.0
    for i, width in enumerate((1.0, 10.0)):
        truth = torch.zeros(2).double(), width**2 * torch.eye(2).double()
        moment_report("", run.position[i], *truth).raise_if_failed()


def test_rows_that_are_done_are_left_out(rng: torch.Generator) -> None:
    start = Widths().widths * torch.randn(2, 3, 2, generator=rng, dtype=torch.float64)
    sparing, ends = Sparing(), []
    for density in (Widths(), sparing):
        state = hamiltonian_init(density, start, 0.5, 0.8)
        steps = torch.tensor([2, 5])
        ends.append(hamiltonian_step(density, state, torch.Generator().manual_seed(1), steps))
    assert sparing.rows == [6, 6, 6, 3, 3, 3]
    for one, other in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(ends[0][0].position, ends[1][0].position)
    assert ends[0][1].n_steps.tolist() == [[2] * 3, [5] * 3]


def test_warm_up_reaches_the_target_acceptance(rng: torch.Generator) -> None:
    for method, target in ((HMC(), 0.8), (MALA(), 0.574), (HMC(target_acceptance=0.95), 0.95)):
        run = run_sampler(method, TARGET, TARGET.starts(32, rng), rng, draws=300, warmup=500)
        # The averaged step of dual averaging is known to end a little above its target.
        assert abs(float(run.stats["acceptance_rate"].mean()) - target) < 0.12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trajectory": 0.0}, "trajectory: got 0.0"),
        ({"trajectory": math.inf}, "trajectory: got inf"),
        ({"step_size": -1.0}, "step_size: got -1.0"),
        ({"target_acceptance": 1.0}, "target_acceptance: got 1.0"),
        ({"splitting": "priors"}, r"splitting: unknown value 'priors'.*did you mean 'prior'"),
        ({"max_steps": 0}, "max_steps: got 0"),
        ({"max_steps": 2.5}, "max_steps: got 2.5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        HMC(**settings)  # type: ignore[arg-type]


def test_misspelt_settings_are_refused_with_the_list() -> None:
    with pytest.raises(UnknownOptionError, match=r"HMC: unknown option 'step_sise'.*'step_size'"):
        HMC(step_sise=0.1)  # type: ignore[call-arg]
    with pytest.raises(UnknownOptionError, match="MALA"):
        MALA(trajectory=1.0)  # type: ignore[call-arg]


def model(y: Tensor) -> None:
    """A linear generator whose latent prior is neither centred nor of unit width."""
    z = pyro.sample("z", dist.Normal(torch.full((3,), 1.5).double(), 2.0).to_event(1))
    level = pyro.sample("level", dist.Gamma(torch.tensor(3.0).double(), 1.0))
    pyro.sample("counts", dist.Exponential(level).expand([4]).to_event(1), obs=y[:4])
    pyro.sample("y", dist.Normal(z[:2], 0.5).to_event(1), obs=y[4:])


@pytest.mark.parametrize("splitting", ["none", "prior"])
def test_a_model_with_normal_and_other_priors(splitting: str, rng: torch.Generator) -> None:
    """Closed form: normal times normal, Gamma times exponential."""
    y = torch.tensor([0.3, 0.5, 0.1, 0.9, 1.0, -1.0], dtype=torch.float64)
    log_density = LogDensity(model, y)
    start = log_density.prior_draws(32, rng)
    method = HMC(splitting=splitting)  # type: ignore[arg-type]
    run = run_sampler(method, log_density, start, rng, draws=200, warmup=200)
    values = log_density.constrain(run.position.reshape(-1, 4))
    draws = torch.cat([values["z"], values["level"][:, None]], -1).reshape(32, 200, 4)
    precision = torch.tensor([4.25, 4.25, 0.25, 1.0], dtype=torch.float64)
    mean = (1.5 * 0.25 + 4.0 * torch.tensor([1.0, -1.0, 0.0]).double()) / precision[:3]
    shape, rate = 3.0 + 4.0, 1.0 + float(y[:4].sum())
    mean = torch.cat([mean, torch.tensor([shape / rate]).double()])
    variance = 1.0 / precision
    variance[3] = shape / rate**2
    moment_report("", draws, mean, torch.diag(variance)).raise_if_failed()
