"""Scores by second moments against the closed forms of linear Gaussian problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Scorer
from bayesgen.design.belief import Belief
from bayesgen.design.estimation import (
    GoalVariance,
    InformationGain,
    PrincipalDirections,
    Variance,
)
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError

float64 = torch.float64
GOAL = torch.tensor([[1.0, 0.0, -1.0, 0.0, 0.5], [0.0, 2.0, 0.0, 0.0, 1.0]], dtype=float64)


def region(images: Tensor) -> Tensor:
    return images @ GOAL.T


def variance(linear: Any, a: int, chosen: list[int]) -> float:
    A = linear.matrix[a]
    return float((A @ linear.covariance @ A.T).trace())


def information(linear: Any, a: int, chosen: list[int]) -> float:
    return float(linear.information([*chosen, a]) - linear.information(chosen))


def goal(linear: Any, a: int, chosen: list[int]) -> float:
    before, after = linear.posterior(chosen), linear.posterior([*chosen, a])
    return float((GOAL @ (before - after) @ GOAL.T).trace())


def whole(linear: Any, a: int, chosen: list[int]) -> float:
    return float((linear.posterior(chosen) - linear.posterior([*chosen, a])).trace())


def direction(linear: Any, a: int, chosen: list[int]) -> float:
    A, C = linear.matrix[a], linear.covariance
    if chosen:
        B = linear.matrix[chosen].flatten(0, 1)
        C = C - C @ B.T @ torch.linalg.pinv(B @ C @ B.T, rtol=1e-10, hermitian=True) @ B @ C
    return float((A @ C @ A.T).trace())


Truth = Callable[[Any, int, list[int]], float]
CLOSED_FORMS: dict[str, tuple[Acquisition, Truth]] = {
    "variance": (Variance(), variance),
    "information-gain": (InformationGain(), information),
    "goal-variance": (GoalVariance(goal=region), goal),
    "goal-variance of the image": (GoalVariance(), whole),
    "principal-directions": (PrincipalDirections(), direction),
}
# The last: more numbers a candidate than draws.
SIZES: list[dict[str, int]] = [{"n": 7, "q": 1}, {"n": 5, "q": 3}, {"n": 4, "q": 9, "draws": 7}]


def worst_error(acquisition: Acquisition, truth: Truth, linear: Any, steps: int = 3) -> float:
    """Largest relative deviation from the closed form, along a batch of any candidates."""
    scorer = acquisition.begin(linear.belief)
    chosen: list[int] = []
    worst = 0.0
    for index in [2, 0, 3][:steps]:
        values = [truth(linear, a, chosen) for a in range(len(linear.matrix))]
        expected = torch.tensor(values, dtype=float64)
        rest = [a for a in range(len(linear.matrix)) if a not in chosen]
        error = (scorer.scores() - expected)[rest].abs().max() / expected.abs().max().clamp(1e-9)
        # Nothing is left to learn without noise once all directions are known.
        worst = max(worst, float(error) if float(expected.abs().max()) > 1e-9 else 0.0)
        scorer.take(index)
        chosen.append(index)
    return worst


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_scores_are_the_closed_forms(name: str, size: dict[str, int], problem: Any) -> None:
    acquisition, truth = CLOSED_FORMS[name]
    assert worst_error(acquisition, truth, problem(**size)) < 1e-6
    single = acquisition.scores(problem(**size).belief)
    values = [truth(problem(**size), a, []) for a in range(size["n"])]
    expected = torch.tensor(values, dtype=float64)
    torch.testing.assert_close(single, expected, rtol=1e-9, atol=1e-9)


class WrongNoise(InformationGain):
    """Takes the standard deviation for the variance."""

    name = "mutant"

    def begin(self, belief: Belief) -> Scorer:
        noise = belief.positive_noise.sqrt()
        return InformationGain().begin(Belief(**{**vars_of(belief), "noise": noise}))


class Uncentred(InformationGain):
    """Divides by S."""

    name = "mutant"

    def begin(self, belief: Belief) -> Scorer:
        root = ((belief.num_draws - 1) / belief.num_draws) ** 0.5
        return InformationGain().begin(Belief(**{**vars_of(belief), "data": root * belief.data}))


@dataclass(frozen=True)
class Alone(Acquisition):
    """Scores of the base that learn nothing of the choices."""

    base: Acquisition
    name = "mutant"
    task = "image"

    def begin(self, belief: Belief) -> Scorer:
        return Scorer(self.base.scores(belief))


def vars_of(belief: Belief) -> dict[str, Any]:
    return {name: getattr(belief, name) for name in Belief.__dataclass_fields__}


@pytest.mark.parametrize("size", SIZES)
def test_mutants_are_rejected(size: dict[str, int], problem: Any) -> None:
    linear = problem(**size)
    for mutant in (WrongNoise(), Uncentred(), Alone(InformationGain())):
        assert worst_error(mutant, information, linear) > 1e-3
    if size["q"] < 5:  # else the first measurement leaves nothing
        assert worst_error(Alone(PrincipalDirections()), direction, linear) > 1e-3
    assert worst_error(Alone(GoalVariance(region)), goal, linear) > 1e-3
    assert worst_error(GoalVariance(lambda x: 2 * region(x)), goal, linear) > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_batches_are_the_greedy_ones(size: dict[str, int], problem: Any) -> None:
    linear = problem(**size)
    for acquisition, truth in CLOSED_FORMS.values():
        if isinstance(acquisition, Variance | PrincipalDirections):
            continue
        greedy: list[int] = []
        for _ in range(3):
            rest = [a for a in range(size["n"]) if a not in greedy]
            greedy.append(max(rest, key=lambda a: truth(linear, a, greedy)))
        assert acquisition.choose(linear.belief, 3).indices == greedy


def with_copies(problem: Any) -> Any:
    """The four most telling candidates are one and the same."""
    linear = problem(n=9)
    linear.matrix[:4] = 3.0 * linear.matrix[0]
    linear.noise[:] = 0.05
    return linear


def share_of_best(acquisition: Acquisition, linear: Any, batch: int) -> float:
    """Information of the batch over that of the best set of its size."""
    best = max(linear.information(s) for s in combinations(range(len(linear.matrix)), batch))
    return float(linear.information(acquisition.choose(linear.belief, batch).indices) / best)


def test_greedy_batches_keep_their_bound(problem: Any) -> None:
    for seed in range(5):
        for size in SIZES:
            share = share_of_best(InformationGain(), problem(**size, seed=seed), 3)
            assert 1.0 - 1.0 / math.e <= share <= 1.0 + 1e-9
    linear = with_copies(problem)
    assert share_of_best(InformationGain(), linear, 4) > 0.9
    assert share_of_best(Alone(InformationGain()), linear, 4) < 1.0 - 1.0 / math.e
    assert share_of_best(Variance(), linear, 4) < 1.0 - 1.0 / math.e


def test_shrunk_information_is_that_of_the_shrunk_covariance(problem: Any) -> None:
    linear = problem(n=5, q=3)
    rows, rho = linear.matrix.flatten(0, 1), 0.3
    C = rows @ linear.covariance @ rows.T
    C = (1 - rho) * C + rho * torch.diag(C.diagonal())
    C = C / linear.noise.flatten() / linear.noise.flatten()[:, None]

    def told(indices: list[int]) -> float:
        at = [3 * a + k for a in indices for k in range(3)]
        return 0.5 * float(torch.logdet(torch.eye(len(at), dtype=float64) + C[at][:, at]))

    def shrunk(_: Any, a: int, chosen: list[int]) -> float:
        return told([*chosen, a]) - (told(chosen) if chosen else 0.0)

    assert worst_error(InformationGain(shrinkage=rho), shrunk, linear) < 1e-9
    assert worst_error(InformationGain(shrinkage=0.0), shrunk, linear) > 1e-3
    everything = InformationGain(shrinkage=1.0).begin(linear.belief)
    before = everything.scores()
    everything.take(0)
    torch.testing.assert_close(everything.scores()[1:], before[1:])


def test_shrinkage_by_itself(problem: Any) -> None:
    """With few draws chance correlations are taken for what they are, with many there are none."""
    linear = problem(n=6, q=4, d=24, draws=26)
    linear.covariance[:] = torch.eye(24, dtype=float64)
    linear.matrix[:] = torch.eye(24, dtype=float64).reshape(6, 4, 24)
    truth = torch.tensor([linear.information([a]) for a in range(6)], dtype=float64)
    for draws, gain in ((8, 1.2), (1000, 1.0)):
        errors = []
        for shrinkage in (0.0, "auto"):
            error = 0.0
            for seed in range(5):
                rng = torch.Generator().manual_seed(seed)
                images = torch.randn(draws, 24, generator=rng, dtype=float64)
                belief = linear.but(images=images, data=images.reshape(-1, 6, 4))
                acquisition = InformationGain(shrinkage=shrinkage)  # type: ignore[arg-type]
                error += float((acquisition.scores(belief) - truth).square().mean())
            errors.append(error)
        assert errors[1] <= errors[0] / gain


def test_principal_directions_are_found_among_others(problem: Any) -> None:
    """With unit vectors as candidates, a batch is the principal subspace."""
    linear = problem(n=12, d=5)
    eigenvectors = torch.linalg.eigh(linear.covariance).eigenvectors.flip(1).T
    linear.matrix[:] = torch.nn.functional.normalize(linear.matrix, dim=-1)
    linear.matrix[4:9, 0] = eigenvectors
    assert PrincipalDirections().choose(linear.belief, 3).indices == [4, 5, 6]


def test_one_number_may_be_the_goal(problem: Any) -> None:
    linear = problem()
    flat = GoalVariance(lambda x: x[:, 0]).scores(linear.belief)
    torch.testing.assert_close(flat, GoalVariance(lambda x: x[:, :1]).scores(linear.belief))
    before, after = linear.posterior([]), linear.posterior([3])
    assert float(flat[3]) == pytest.approx(float((before - after)[0, 0]))


def test_a_goal_may_have_parameters(problem: Any) -> None:
    """No graph is kept, and no warning given."""
    weight = torch.nn.Parameter(GOAL)

    def network(images: Tensor) -> Tensor:
        return images @ weight.T

    linear = problem(q=3)
    scorer = GoalVariance(network).begin(linear.belief)
    scorer.take(2)
    assert not scorer.scores().requires_grad
    choice = GoalVariance(network).choose(linear.belief, 2)
    assert choice.indices == GoalVariance(region).choose(linear.belief, 2).indices
    assert torch.equal(choice.scores, GoalVariance(region).scores(linear.belief))


def test_images_may_have_any_shape(problem: Any) -> None:
    linear = problem(d=6)
    square = linear.but(images=linear.images.reshape(-1, 2, 3))
    torch.testing.assert_close(GoalVariance().scores(square), GoalVariance().scores(linear.belief))


@pytest.mark.parametrize(
    ("goal", "error", "message"),
    [
        (lambda x: 1.0, DtypeError, "goal: expected it to return a tensor, got float"),
        (lambda x: x.sum(), ShapeError, r"goal: expected values of 12 images.*got shape \(\)"),
        (lambda x: x[:3], ShapeError, r"goal: .*got shape \(3, 5\)"),
        (lambda x: x / 0.0, DataError, "goal: .*not finite"),
    ],
)
def test_bad_goals_are_refused(
    problem: Any, goal: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        GoalVariance(goal).scores(problem().belief)


def test_impossible_settings_are_refused() -> None:
    for value in (-0.1, 1.1, float("nan"), "automatic", None, True, False):
        with pytest.raises(OptionError, match="shrinkage: got"):
            InformationGain(shrinkage=value)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="goal: got 3"):
        GoalVariance(goal=3)  # type: ignore[arg-type]
