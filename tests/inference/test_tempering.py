"""Tempering: the tempered law, weights and resampling, ladders and swaps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.inference.hmc import hamiltonian_init, hamiltonian_step
from bayesgen.inference.targets import GaussianTarget
from bayesgen.inference.tempering import (
    Tempered,
    after_move,
    draw_prior,
    effective_fraction,
    equalised,
    log_likelihood,
    next_beta,
    power_ladder,
    swap_order,
    swap_ratios,
    systematic,
    temper,
)
from bayesgen.types import Split

TARGET = GaussianTarget.with_condition(3, 10.0)
float64 = torch.float64


class Sparing:
    """The target, with NaN in all rows that nobody asks for."""

    num_dims = 3

    def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
        split = TARGET.split(v)
        if where is None:
            return split
        spared = (torch.where(where, part, math.nan) for part in split[:2])
        return Split(
            *spared, *(torch.where(where[..., None], part, math.nan) for part in split[2:])
        )


# ------------------------------------------------------------------------------------ tempered law


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_it_leads_from_the_prior_to_the_posterior(dtype: torch.dtype, rng: torch.Generator) -> None:
    target = GaussianTarget.with_condition(3, 10.0, dtype=dtype)
    v = target.prior_draws(5, rng)
    split, beta = target.split(v), torch.tensor([[0.0], [0.25], [1.0]], dtype=float64)
    value, gradient = Tempered(target, beta).value_and_grad(v)
    assert value.dtype == gradient.dtype == dtype
    torch.testing.assert_close(value[0], split.prior)
    torch.testing.assert_close(value[1], split.prior + 0.25 * split.likelihood)
    torch.testing.assert_close((value[2], gradient[2]), target.value_and_grad(v))


def test_an_impossible_point_still_has_a_prior() -> None:
    inf = torch.tensor([-math.inf, math.nan])
    split = Split(torch.ones(2), inf, torch.ones(2, 3), torch.full((2, 3), math.nan))
    value, gradient = temper(split, torch.zeros(2))
    assert bool((value == 1).all() and (gradient == 1).all())
    assert bool((log_likelihood(split) == -math.inf).all())


@pytest.mark.parametrize("density", [TARGET, Sparing()], ids=["all rows", "asked rows"])
def test_the_parts_are_known_where_the_chains_are(density: object, rng: torch.Generator) -> None:
    """After a step, whatever was refused, left out, or needed fewer leapfrog steps."""
    v = TARGET.prior_draws(120, rng).reshape(2, 60, 3)
    beta = torch.tensor([0.1, 0.9], dtype=float64)[:, None]
    where = torch.arange(120).reshape(2, 60) % 3 > 0
    tempered = Tempered(density, beta, where)  # type: ignore[arg-type]
    state = hamiltonian_init(Tempered(TARGET, beta), v, 1.8, 0.8)
    split = TARGET.split(v)
    new, _ = hamiltonian_step(tempered, state, rng, torch.tensor([2, 5]))
    moved = (new.position != v).any(-1)
    assert not bool((moved & ~where).any()) and 0 < int(moved.sum()) < int(where.sum())
    split = after_move(v, new.position, split, tempered.last)
    torch.testing.assert_close(split, TARGET.split(new.position))
    torch.testing.assert_close(temper(split, beta), (new.log_prob, new.gradient))


@pytest.mark.parametrize("lead", [(7,), (2, 7), (2, 3, 7)])
def test_prior_draws_of_densities_that_know_no_problems(
    lead: tuple[int, ...], rng: torch.Generator
) -> None:
    draws = draw_prior(TARGET, (*lead, 3), rng)
    assert draws.shape == (*lead, 3)
    assert len(draws.unique()) == draws.numel()


# ------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("magnitude", [3.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_reweighting_leaves_the_fraction_asked_for(magnitude: float, alpha: float) -> None:
    rng = torch.Generator().manual_seed(0)
    likelihood = magnitude * (torch.randn(4, 3, 256, generator=rng, dtype=float64) - 1e4)
    beta = next_beta(likelihood, torch.zeros(4, 3, dtype=float64), alpha)
    fraction = effective_fraction(beta[..., None] * likelihood)
    torch.testing.assert_close(fraction, torch.full_like(fraction, alpha), rtol=1e-3, atol=0)
    assert bool(((beta > 0) & (beta < 1)).all())


def test_the_last_step_ends_at_one_exactly() -> None:
    likelihood = torch.linspace(-0.1, 0.1, 50, dtype=float64).expand(2, 50)
    beta = next_beta(likelihood, torch.tensor([0.3, 1.0], dtype=float64), 0.7)
    assert beta.tolist() == [1.0, 1.0]


def test_impossible_particles_do_not_hold_it_up() -> None:
    likelihood = torch.zeros(1, 100, dtype=float64)
    likelihood[:, 10:] = -math.inf
    assert next_beta(likelihood, torch.zeros(1, dtype=float64), 0.9).tolist() == [1.0]
    likelihood[:, :5] = 50.0
    beta = next_beta(likelihood, torch.zeros(1, dtype=float64), 0.9)
    assert 0 < float(beta) < 1
    torch.testing.assert_close(
        effective_fraction(beta[:, None] * likelihood), torch.full((1,), 0.09, dtype=float64)
    )


def counts(order: Tensor, num: int) -> Tensor:
    """How often each particle is kept, ``(*batch, N)``."""
    return torch.zeros(*order.shape[:-1], num).scatter_add_(-1, order, torch.ones(order.shape))


@pytest.mark.parametrize("num", [None, 5, 40])
def test_resampling_is_unbiased_and_even(num: int | None, rng: torch.Generator) -> None:
    log_weights = torch.tensor([0.0, -1.0, -math.inf, 2.0, 0.5, 0.5, -3.0], dtype=float64)
    expected = log_weights.softmax(-1) * (num or 7)
    order = systematic(log_weights.expand(20_000, 7), rng, num)
    assert order.shape == (20_000, num or 7)
    kept = counts(order, 7)
    assert float((kept - expected).abs().max()) < 1.0
    error = kept.double().std(0) / 20_000**0.5
    z = (kept.double().mean(0) - expected)[error > 0] / error[error > 0]
    assert float(z.abs().max()) < 5.3  # false alarm 1e-6 over 7 particles

    ignoring = counts(systematic(torch.zeros(20_000, 7, dtype=float64), rng, num), 7)
    assert float((ignoring - expected).abs().max()) > 1.0


def test_equal_weights_keep_every_particle(rng: torch.Generator) -> None:
    order = systematic(torch.zeros(50, 1000, dtype=float64), rng)
    assert bool((order == torch.arange(1000)).all())


# ------------------------------------------------------------------------------------ ladders


def test_ladders_begin_at_the_prior_and_end_at_the_posterior() -> None:
    for rungs in (2, 5, 30):
        ladder = power_ladder(rungs)
        assert len(ladder) == rungs and bool((ladder.diff() > 0).all())
        assert (float(ladder[0]), float(ladder[-1])) == (0.0, 1.0)


def test_the_ladder_converges_to_equal_refusals() -> None:
    """Two problems whose refusals add up as known functions of beta."""

    def refusals(beta: Tensor) -> Tensor:
        barrier = torch.stack([4.0 * beta[0].sqrt(), torch.log1p(1e4 * beta[1]) / 2])
        return barrier.diff(dim=-1).tanh()

    beta = power_ladder(12).expand(2, 12)
    assert float(refusals(beta).std(-1).max()) > 0.1
    for _ in range(10):
        beta = equalised(beta, refusals(beta))
        assert bool((beta.diff(dim=-1) > 0).all()) and beta[:, [0, -1]].tolist() == [[0.0, 1.0]] * 2
    assert float(refusals(beta).std(-1).max()) < 0.005


def test_a_ladder_without_refusals_is_regular_in_its_rungs() -> None:
    ladder = power_ladder(6)
    torch.testing.assert_close(equalised(ladder, torch.zeros(5, dtype=float64)), ladder)


def test_swaps_are_in_detailed_balance(rng: torch.Generator) -> None:
    """P(swap) over P(swap back) is the ratio of the joint densities."""
    beta = torch.tensor([0.0, 0.3, 1.0], dtype=float64)
    likelihood = 3.0 * torch.randn(3, 50, generator=rng, dtype=float64)
    _, log_accept = swap_ratios(likelihood, beta)
    for lower in (0, 1):
        swapped = likelihood.clone()
        swapped[[lower, lower + 1]] = likelihood[[lower + 1, lower]]
        _, back = swap_ratios(swapped, beta)
        joint = beta @ swapped - beta @ likelihood
        torch.testing.assert_close(log_accept[lower] - back[lower], joint)


def test_impossible_replicas_do_not_climb() -> None:
    likelihood = torch.tensor([[-math.inf, -math.inf], [-1.0, -math.inf]], dtype=float64)
    log_ratio, log_accept = swap_ratios(likelihood, power_ladder(2))
    assert log_accept.tolist() == [[-math.inf, -math.inf]] == log_ratio.tolist()


def test_swaps_exchange_pairs(rng: torch.Generator) -> None:
    accepted = torch.rand(4, 6, 10, generator=rng) < 0.5
    accepted[:, 1::2] = False
    order = swap_order(accepted)
    rungs = torch.arange(7)[:, None].expand(order.shape)
    assert torch.equal(order.gather(-2, order), rungs)
    assert torch.equal((order != rungs)[:, :-1] & (order > rungs)[:, :-1], accepted)
