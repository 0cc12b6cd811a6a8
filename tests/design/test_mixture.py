"""Information by simulation and by pairs of draws: bounds, closed forms, batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design import draw_space
from bayesgen.design.base import Acquisition, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.estimation import InformationGain
from bayesgen.design.mixture import NestedMonteCarlo, PairwiseEntropy
from bayesgen.errors import OptionError

float64 = torch.float64


def fresh(linear: Any, draws: int, seed: int) -> Belief:
    """Independent draws of the Gaussian, not matched to its moments."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(draws, len(linear.covariance), generator=rng, dtype=float64)
    images = images @ torch.linalg.cholesky(linear.covariance).T
    data = torch.einsum("nqd,sd->snq", linear.matrix, images)
    belief: Belief = linear.but(images=images, data=data, rng=rng)
    return belief


def weak(problem: Any, **size: int) -> Any:
    """Candidates that tell between a tenth of a nat and two."""
    linear = problem(**size)
    q = linear.noise.shape[1]
    for a in range(len(linear.matrix)):
        target = 0.1 + 1.9 * a / (len(linear.matrix) - 1)
        low, high = 1e-3, 1e3
        for _ in range(60):
            middle = math.sqrt(low * high)
            linear.noise[a] = middle * (1.0 + torch.arange(q))
            low, high = (middle, high) if linear.information([a]) > target else (low, middle)
    return linear


def estimates(acquisition: Acquisition, linear: Any, draws: int, repeats: int) -> Tensor:
    return torch.stack([acquisition.scores(fresh(linear, draws, i)) for i in range(repeats)])


def worst_z(acquisition: Acquisition, linear: Any, draws: int = 400, repeats: int = 24) -> float:
    """Largest deviation from the information of the Gaussian, in standard errors."""
    truth = torch.tensor([linear.information([a]) for a in range(len(linear.matrix))])
    values = estimates(acquisition, linear, draws, repeats)
    errors = (values.mean(0) - truth) / (values.std(0) / repeats**0.5)
    return float(errors.abs().max())


class WrongNoise(NestedMonteCarlo):
    """Simulates half the noise."""

    name = "mutant"

    def begin(self, belief: Belief) -> Scorer:
        return super().begin(replace(belief, noise=0.5 * belief.positive_noise))


# Student's t with 23 degrees of freedom exceeds 8 with probability 5e-8, for any of 3 candidates
# 2e-7; the bias of 400 draws is below half a standard error.
@pytest.mark.parametrize("q", [1, 3])
def test_simulation_finds_the_closed_form(problem: Any, q: int) -> None:
    linear = weak(problem, n=3, q=q)
    for bound in ("lower", "upper"):
        assert worst_z(NestedMonteCarlo(bound), linear) < 8.0  # type: ignore[arg-type]
    assert worst_z(WrongNoise(), linear) > 8.0


@pytest.mark.parametrize("bound", ["lower", "upper"])
def test_bounds_of_simulation_are_bounds(problem: Any, bound: Any) -> None:
    """With ten draws the bias shows: it has the sign that the name says."""
    linear = weak(problem, n=4)
    truth = torch.tensor([linear.information([a]) for a in range(4)])
    values = estimates(NestedMonteCarlo(bound, repeats=4), linear, 10, 600)
    z = (values.mean(0) - truth) / (values.std(0) / 600**0.5)
    sign = -1.0 if bound == "lower" else 1.0
    assert bool((sign * z[1:] > 5.0).all()) and float(sign * z[0]) > -5.0


def test_where_scores_saturate(problem: Any) -> None:
    linear = problem(n=3)
    linear.noise[:] = 1e-6
    belief = linear.belief
    limit = math.log(12)
    for acquisition in (PairwiseEntropy("lower"), PairwiseEntropy("upper"), NestedMonteCarlo()):
        torch.testing.assert_close(
            acquisition.scores(belief), torch.full((3,), limit, dtype=float64)
        )
    assert bool((NestedMonteCarlo("upper").scores(belief) > 10 * limit).all())


def pairs(belief: Belief, a: int, scale: float) -> float:
    """The formula, pair by pair."""
    y = belief.data[:, a] / belief.positive_noise[a]
    inner = [
        math.log(sum(math.exp(-float((u - v).square().sum()) / scale) for v in y) / len(y))
        for u in y
    ]
    return -sum(inner) / len(y)


@pytest.mark.parametrize("size", [{"q": 1}, {"q": 3}, {"q": 20}])
@pytest.mark.parametrize("most", [2**24, 1])
def test_pairs_are_the_published_formula(
    problem: Any, size: dict[str, int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw_space, "_MOST", most)
    linear = problem(n=4, **size)
    belief = linear.but(noise=(4.0 + size["q"]) * linear.noise)
    for bound, scale in (("lower", 8.0), ("upper", 2.0)):
        expected = torch.tensor([pairs(belief, a, scale) for a in range(4)], dtype=float64)
        scores = PairwiseEntropy(bound).scores(belief)  # type: ignore[arg-type]
        torch.testing.assert_close(scores, expected)
        halved = torch.tensor([pairs(belief, a, scale / 2) for a in range(4)], dtype=float64)
        assert float((scores - halved).abs().max()) > 1e-3


def mixture_information(belief: Belief, samples: int = 20_000) -> tuple[Tensor, Tensor]:
    """Of the mixture of the draws themselves, by simulation, with standard errors."""
    rng = torch.Generator().manual_seed(1)
    values, errors = [], []
    for a in range(belief.num_candidates):
        y = belief.data[:, a] / belief.positive_noise[a]
        which = torch.randint(len(y), (samples,), generator=rng)
        noise = torch.randn(samples, y.shape[1], generator=rng, dtype=float64)
        distances = ((y[which] + noise)[:, None] - y).square().sum(-1)
        ratio = -0.5 * noise.square().sum(-1) - (-0.5 * distances).logsumexp(1) + math.log(len(y))
        values.append(ratio.mean())
        errors.append(ratio.std() / samples**0.5)
    return torch.stack(values), torch.stack(errors)


def test_pairs_bound_the_mixture(problem: Any) -> None:
    belief = weak(problem, n=5, q=2).belief
    truth, error = mixture_information(belief)
    lower, upper = (PairwiseEntropy(b).scores(belief) for b in ("lower", "upper"))  # type: ignore[arg-type]
    assert bool((lower < truth - 5 * error).all()) and bool((truth + 5 * error < upper).all())
    assert bool((truth - lower < 0.5 * truth).all())  # of the right size, too


def test_all_order_candidates_as_the_closed_form_does(problem: Any) -> None:
    linear = weak(problem, n=5)
    belief = fresh(linear, 400, 0)
    acquisitions = [PairwiseEntropy(b) for b in ("lower", "upper")]  # type: ignore[arg-type]
    for acquisition in (*acquisitions, NestedMonteCarlo(), InformationGain()):
        assert acquisition.scores(belief).argsort().tolist() == [0, 1, 2, 3, 4]


def test_two_modes_are_told_apart_by_one_candidate(problem: Any) -> None:
    """A Gaussian of the same variance would think more of the other candidate."""
    modes = torch.tensor([-1.0, 1.0]).double().repeat(100)
    spread = 1.5 * torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=float64)
    linear = problem(n=2, draws=200)
    noise = torch.tensor([[0.1], [1.0]], dtype=float64)
    data = torch.stack([modes, 12.0 * spread], 1)[:, :, None]
    belief = linear.but(data=data, noise=noise)
    gaussian = InformationGain().scores(belief)
    assert abs(float(gaussian[0]) - 2.3) < 0.1 and abs(float(gaussian[1]) - 2.9) < 0.1
    for acquisition in (PairwiseEntropy(), NestedMonteCarlo()):
        scores = acquisition.scores(belief)
        assert float(scores[0]) == pytest.approx(math.log(2.0), abs=1e-6)
        assert float(scores[1]) > 1.0


def merged(belief: Belief, chosen: list[int]) -> Belief:
    """Each candidate's data together with those of the chosen ones, as one block."""
    held = belief.data[:, chosen].flatten(1)[:, None].expand(-1, belief.num_candidates, -1)
    noise = belief.positive_noise[chosen].flatten().expand(belief.num_candidates, -1)
    return replace(
        belief,
        data=torch.cat([belief.data, held], -1),
        noise=torch.cat([belief.positive_noise, noise], -1),
        values=torch.zeros(0, belief.num_numbers * (1 + len(chosen))),
    )


@pytest.mark.parametrize("bound", ["lower", "upper"])
def test_batches_by_pairs_are_joint(problem: Any, bound: Any) -> None:
    belief = weak(problem, n=5, q=2).belief
    acquisition = PairwiseEntropy(bound)
    scorer = acquisition.begin(belief)
    known = 0.0
    for step, index in enumerate([1, 4], start=1):
        known = float((scorer.scores() + known)[index])
        scorer.take(index)
        joint = acquisition.scores(merged(belief, [1, 4][:step]))
        torch.testing.assert_close(scorer.scores() + known, joint)
    assert float((scorer.scores() - acquisition.scores(belief)).abs().max()) > 1e-2


@dataclass(frozen=True)
class SameNoise(NestedMonteCarlo):
    """Simulates every measurement of a batch with one and the same noise."""

    name = "mutant"

    def begin(self, belief: Belief) -> Scorer:
        scorer: Any = super().begin(belief)
        noise = scorer.noise
        scorer._drawn = lambda: noise
        return scorer


def test_batches_by_simulation_are_joint(problem: Any) -> None:
    linear = weak(problem, n=4)
    linear.matrix[:] = linear.matrix[0]  # the same thing measured again and again
    truth = torch.tensor([linear.information([3, a]) - linear.information([3]) for a in range(4)])

    def z(acquisition: Acquisition) -> float:
        gains = []
        for seed in range(24):
            scorer = acquisition.begin(fresh(linear, 400, seed))
            scorer.scores()
            scorer.take(3)
            gains.append(scorer.scores())
        values = torch.stack(gains)
        return float(((values.mean(0) - truth) / (values.std(0) / 24**0.5)).abs().max())

    assert z(NestedMonteCarlo()) < 8.0
    assert z(SameNoise()) > 8.0


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("repeats", [1, 2])
def test_copies_of_a_candidate_score_the_same(
    problem: Any, q: int, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However candidates are divided into pieces, at every place of a batch."""
    linear = problem(n=5, q=q)
    linear.matrix[:], linear.noise[:] = linear.matrix[0].clone(), linear.noise[0].clone()
    for most in (2**24, 1):
        monkeypatch.setattr(draw_space, "_MOST", most)
        scorer = NestedMonteCarlo(repeats=repeats).begin(linear.belief)
        for index in (3, 1):
            scores = scorer.scores()
            torch.testing.assert_close(scores, scores[:1].expand(5))
            assert torch.equal(scores, scorer.scores())
            scorer.take(index)


def test_the_noise_of_the_one_taken_is_that_of_its_score(problem: Any) -> None:
    belief = problem(n=4, q=2).belief
    scorer: Any = NestedMonteCarlo().begin(belief)
    known = 0.0
    for index in (2, 0):
        known += float(scorer.scores()[index])
        scorer.take(index)
        assert float(scorer.known) == pytest.approx(known)


def test_more_repeats_less_noise(problem: Any) -> None:
    belief = weak(problem, n=3).belief

    def spread(repeats: int) -> float:
        acquisition = NestedMonteCarlo(repeats=repeats)
        return float(torch.stack([acquisition.scores(belief) for _ in range(200)]).std(0).mean())

    assert spread(16) < 0.5 * spread(1)


def test_impossible_settings_are_refused(problem: Any) -> None:
    for cls in (PairwiseEntropy, NestedMonteCarlo):
        with pytest.raises(OptionError, match="bound: unknown value 'lowest'.*did you mean"):
            cls(bound="lowest")
        linear = problem()
        one = linear.but(images=linear.images[:1], data=linear.belief.data[:1])
        with pytest.raises(OptionError, match="images: one posterior draw"):
            cls().scores(one)
    with pytest.raises(OptionError, match="repeats: got 0"):
        NestedMonteCarlo(repeats=0)
