"""Every acquisition function through the same checks."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design.acquisitions import ACQUISITIONS, as_acquisition
from bayesgen.design.base import Acquisition
from bayesgen.design.belief import Belief
from bayesgen.design.botorch_adapter import BoTorch
from bayesgen.design.chance import EpsilonGreedy, RandomChoice
from bayesgen.design.estimation import (
    GoalVariance,
    InformationGain,
    PrincipalDirections,
    Variance,
)
from bayesgen.design.fixed import Equispaced, FixedOrder, LowFrequency, VariableDensity
from bayesgen.design.gaussian_maximum import UCB, MaxValueEntropy
from bayesgen.design.maximum import ExpectedImprovement, QuantileUCB, Thompson
from bayesgen.design.mixture import NestedMonteCarlo, PairwiseEntropy
from bayesgen.errors import OptionError, UnknownOptionError


def largest_mean(model: Any, belief: Belief) -> Any:
    return lambda X: model.posterior(X).mean[:, 0, 0]


# Every acquisition function; one that is missing fails the suite.
ALL: dict[str, Acquisition] = {
    "variance": Variance(),
    "information-gain": InformationGain(shrinkage="auto"),
    "goal-variance": GoalVariance(),
    "principal-directions": PrincipalDirections(),
    "pairwise-entropy": PairwiseEntropy(),
    "nested-monte-carlo": NestedMonteCarlo(),
    "thompson": Thompson(),
    "ucb": UCB(),
    "quantile-ucb": QuantileUCB(),
    "expected-improvement": ExpectedImprovement(),
    "max-value-entropy": MaxValueEntropy(),
    "epsilon-greedy": EpsilonGreedy(),
    "random": RandomChoice(),
    "equispaced": Equispaced(),
    "low-frequency": LowFrequency(),
    "variable-density": VariableDensity(),
    "fixed": FixedOrder([0]),
    "botorch": BoTorch(largest_mean),
}
# What cannot do without the noise.
NOISE = {
    "information-gain",
    "goal-variance",
    "pairwise-entropy",
    "nested-monte-carlo",
}


@pytest.fixture(params=ALL)
def acquisition(request: pytest.FixtureRequest) -> Acquisition:
    if request.param == "botorch" and importlib.util.find_spec("botorch") is None:
        pytest.skip("BoTorch is not installed")
    return ALL[request.param]


def fitting(acquisition: Acquisition, n: int) -> Acquisition:
    """With an order of the right length, where it has one."""
    return FixedOrder(range(n)) if isinstance(acquisition, FixedOrder) else acquisition


def subclasses(cls: type[Acquisition]) -> list[type[Acquisition]]:
    found = [below for sub in cls.__subclasses__() for below in subclasses(sub)]
    return [cls, *found] if "name" in vars(cls) and cls.__module__.startswith("bayesgen") else found


def test_every_acquisition_function_is_in_both_tables() -> None:
    assert set(ACQUISITIONS.values()) == set(subclasses(Acquisition))
    assert {name: type(one) for name, one in ALL.items()} == ACQUISITIONS


def at_length(problem: Any, n: int, dtype: torch.dtype = torch.float64, **changes: Any) -> Belief:
    """Two measured, one of them and another not available, and movement that costs."""
    belief = problem(n=n).belief
    measured = (0, n - 1) if n > 2 else ()
    available = torch.ones(n, dtype=torch.bool)
    available[list(measured)] = False

    def costs(last: int | None) -> Tensor:
        return 1.0 + 0.1 * (torch.arange(n) - (0 if last is None else last)).abs()

    given = {
        "images": belief.images.to(dtype),
        "data": belief.data.to(dtype),
        "noise": belief.noise.to(dtype),
        "values": torch.zeros(len(measured), 1, dtype=dtype),
        "measured": measured,
        "available": available,
        "costs_from": costs,
        "round": len(measured),
    }
    return dataclasses.replace(belief, **(given | changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_choices_are_distinct_and_available(
    acquisition: Acquisition, problem: Any, dtype: torch.dtype
) -> None:
    belief = at_length(problem, 8, dtype)
    choice = fitting(acquisition, 8).choose(belief, 4)
    assert len(set(choice.indices)) == 4
    assert all(belief.available[index] for index in choice.indices)
    assert all(type(index) is int for index in choice.indices)
    assert choice.scores.shape == (8,)
    assert torch.equal(choice.scores.isnan(), ~belief.available)
    assert len(fitting(acquisition, 8).choose(belief, 100).indices) == 6


def test_scores_keep_the_dtype(acquisition: Acquisition, problem: Any) -> None:
    if isinstance(acquisition, RandomChoice | VariableDensity):
        return  # random numbers have one of their own
    for dtype in (torch.float32, torch.float64):
        belief = at_length(problem, 8, dtype)
        scores = fitting(acquisition, 8).scores(belief)
        assert scores.dtype == dtype and scores.shape == (8,)


def test_one_candidate(acquisition: Acquisition, problem: Any) -> None:
    assert fitting(acquisition, 1).choose(at_length(problem, 1)).indices == [0]


def test_nothing_is_available(acquisition: Acquisition, problem: Any) -> None:
    belief = at_length(problem, 4, available=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(OptionError, match="available: none of the 4 candidates may be chosen"):
        fitting(acquisition, 4).choose(belief)


def test_candidates_that_are_never_chosen(acquisition: Acquisition, problem: Any) -> None:
    may = acquisition.may_choose(8)
    assert may.shape == (8,) and may.dtype == torch.bool
    everything = torch.ones(8, dtype=torch.bool)
    chosen = acquisition.choose(at_length(problem, 8, available=everything), 8).indices
    assert sorted(chosen) == may.nonzero().flatten().tolist()


def test_budgets_are_kept(acquisition: Acquisition, problem: Any) -> None:
    belief = at_length(problem, 8)
    for affordable in (2.0, 3.0, 5.0):
        indices = fitting(acquisition, 8).choose(belief, 8, affordable).indices
        spent, last = 0.0, belief.last
        for index in indices:
            spent, last = spent + float(belief.costs_from(last)[index]), index
        assert 0.0 < spent <= affordable * (1 + 1e-6) and len(indices) < 6
    with pytest.raises(OptionError, match="affordable: got 0.5, but the cheapest candidate costs"):
        fitting(acquisition, 8).choose(belief, 1, 0.5)


def test_same_seed_same_choice(acquisition: Acquisition, problem: Any) -> None:
    def chosen(seed: int) -> list[int]:
        belief = at_length(problem, 12, rng=torch.Generator().manual_seed(seed))
        return fitting(acquisition, 12).choose(belief, 5).indices

    assert chosen(3) == chosen(3)


def test_the_belief_is_left_as_it_is(acquisition: Acquisition, problem: Any) -> None:
    belief = at_length(problem, 8)
    fields = [name for name in Belief.__dataclass_fields__ if name != "rng"]
    before = {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in ((name, getattr(belief, name)) for name in fields)
    }
    fitting(acquisition, 8).choose(belief, 3)
    for name, value in before.items():
        after = getattr(belief, name)
        same = torch.equal(after, value) if isinstance(value, Tensor) else after is value
        assert same, name


def test_noise_is_optional_or_asked_for(acquisition: Acquisition, problem: Any) -> None:
    belief = at_length(problem, 8, noise=None)
    assert acquisition.needs_noise == (acquisition.name in NOISE)
    if acquisition.name in NOISE:
        with pytest.raises(OptionError, match="noise: this acquisition function"):
            acquisition.choose(belief)
    else:
        assert len(fitting(acquisition, 8).choose(belief, 3).indices) == 3


def test_one_draw_is_enough_or_refused(acquisition: Acquisition, problem: Any) -> None:
    linear = problem(n=4)
    belief = linear.but(images=linear.images[:1], data=linear.belief.data[:1])
    try:
        assert len(fitting(acquisition, 4).choose(belief, 2).indices) == 2
    except OptionError as error:
        assert "images: one posterior draw has no spread" in str(error)


def test_draws_without_spread(acquisition: Acquisition, problem: Any) -> None:
    """Nothing can be learned any more: the choice is still a choice."""
    linear = problem(n=4)
    same = linear.but(
        images=linear.images[:1].expand(5, -1), data=linear.belief.data[:1].expand(5, -1, -1)
    )
    assert len(set(fitting(acquisition, 4).choose(same, 3).indices)) == 3


def test_settings(acquisition: Acquisition) -> None:
    cls = type(acquisition)
    assert cls.reference and cls.task in ("image", "maximum", "either")
    assert dataclasses.is_dataclass(cls) and hash(acquisition) == hash(acquisition)
    with pytest.raises(UnknownOptionError, match=f"{cls.__name__}: unknown option 'sigma'"):
        cls(sigma=1.0)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        acquisition.sigma = 1.0  # type: ignore[attr-defined]


def test_names() -> None:
    assert as_acquisition("ucb") == UCB()
    assert as_acquisition(UCB(kappa=2.0)) == UCB(kappa=2.0)
    assert as_acquisition(Thompson) == Thompson()  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="acquisition: unknown value 'varianc'.*did you mean"):
        as_acquisition("varianc")
    with pytest.raises(OptionError, match="policy: unknown value '3'"):
        as_acquisition(3, "policy")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"'fixed' has no default.*give FixedOrder\(order=...\)"):
        as_acquisition("fixed")
    with pytest.raises(OptionError, match=r"give BoTorch\(acquisition=...\)"):
        as_acquisition("botorch")
