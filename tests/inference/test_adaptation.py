"""Warm-up: variances, dual averaging, windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bayesgen.inference import HMC, run_sampler
from bayesgen.inference.adaptation import DualAveraging, PooledVariance, Schedule


def test_pooled_variance_is_that_of_all_points(rng: torch.Generator) -> None:
    points = 3 + 2 * torch.randn(20, 2, 8, 5, generator=rng, dtype=torch.float64)
    running = PooledVariance.start(points[0])
    for point in points:
        running = running.update(point)
    flat = points.movedim(1, 0).reshape(2, 160, 5)
    expected = flat.var(1, keepdim=True) * (160 / 165) + 1e-3 * 5 / 165
    torch.testing.assert_close(running.estimate(), expected)
    torch.testing.assert_close(running.mean, flat.mean(1, keepdim=True))


@pytest.mark.parametrize("target", [0.3, 0.8])
def test_dual_averaging_finds_the_step_with_the_target_acceptance(target: float) -> None:
    averaging = DualAveraging.start(torch.tensor([[1e-3], [50.0]], dtype=torch.float64))
    for _ in range(1000):
        acceptance = torch.exp(-averaging.log_step.exp())  # acceptance of step e is exp(-e)
        averaging = averaging.update(acceptance, target)
    found = torch.exp(-averaging.log_average.exp())
    torch.testing.assert_close(found, torch.full_like(found, target), rtol=0, atol=0.02)


@given(st.integers(0, 3000))
def test_windows_grow_and_leave_room_for_the_step_size(warmup: int) -> None:
    schedule = Schedule.of(warmup)
    ends = list(schedule.window_ends)
    assert ends == sorted(set(ends)) and 0 <= schedule.search <= warmup
    if warmup < 60:
        assert ends == []
    else:
        assert ends[-1] == warmup - min(50, int(0.1 * warmup)) - 1
        lengths = [b - a for a, b in zip([schedule.search - 1, *ends], ends, strict=False)]
        assert ends[0] >= schedule.search
        assert all(length >= 25 for length in lengths) or len(ends) == 1


def test_chains_that_start_far_out_are_not_left_behind(rng: torch.Generator) -> None:
    """With one step size for all, a chain in a steep tail would never accept a proposal."""

    class Quartic:
        """Density exp(-v^4): at v = 50 its gradient is half a million."""

        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            return -(v**4).sum(-1), -4 * v**3

    start = torch.randn(16, 2, generator=rng, dtype=torch.float64)
    start[0] = 50.0
    run = run_sampler(HMC(), Quartic(), start, rng, draws=200, warmup=200)
    assert float(run.position.abs().max()) < 3
    assert float(run.stats["diverging"].double().mean()) < 0.02
    assert run.state.step_size.shape == (1, 1)
