"""HMC: reversibility and energy of the integrator, divergences, settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import HMC, MALA
from bayesgen.inference.checks import GaussianTarget
from bayesgen.inference.hmc import _leapfrog, hamiltonian_init, hamiltonian_step
from bayesgen.inference.runner import run_sampler

TARGET = GaussianTarget.with_condition(4, 10.0)


def test_the_integrator_is_reversible(rng: torch.Generator) -> None:
    state = hamiltonian_init(TARGET, TARGET.starts(5, rng), 0.3, 0.8)
    momentum = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    position, log_prob, gradient, end = _leapfrog(TARGET, state, momentum, 7)
    there = state._replace(position=position, log_prob=log_prob, gradient=gradient)
    back = _leapfrog(TARGET, there, -end, 7)
    torch.testing.assert_close(back[0], state.position)
    torch.testing.assert_close(back[3], -momentum)


def test_the_energy_error_is_of_second_order(rng: torch.Generator) -> None:
    start = TARGET.starts(50, rng)
    momentum = torch.randn(50, 4, generator=rng, dtype=torch.float64)
    errors = []
    for step, count in ((0.1, 10), (0.05, 20)):
        state = hamiltonian_init(TARGET, start, step, 0.8)
        _, log_prob, _, end = _leapfrog(TARGET, state, momentum, count)
        energy = 0.5 * (end.square() - momentum.square()).sum(-1) - log_prob + state.log_prob
        errors.append(float(energy.abs().mean()))
    assert 3.5 < errors[0] / errors[1] < 4.5


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
