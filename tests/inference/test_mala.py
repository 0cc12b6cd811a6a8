"""MALA is HMC with one leapfrog step, tuned to its own acceptance."""

from __future__ import annotations

import torch

from bayesgen.inference import MALA, run_sampler
from bayesgen.inference.checks import GaussianTarget

TARGET = GaussianTarget.with_condition(3, 10.0)


def test_every_proposal_costs_one_gradient(rng: torch.Generator) -> None:
    run = run_sampler(MALA(step_size=0.5), TARGET, TARGET.starts(4, rng), rng, draws=50, warmup=0)
    assert run.num_evaluations == 51 and bool((run.stats["n_steps"] == 1).all())


def test_without_mass_adaptation_the_scales_stay_one(rng: torch.Generator) -> None:
    method = MALA(adapt_mass=False)
    run = run_sampler(method, TARGET, TARGET.starts(4, rng), rng, draws=5, warmup=200)
    assert torch.equal(run.state.inverse_mass, torch.ones(1, 3, dtype=torch.float64))
