"""BoTorch's acquisition functions through an ensemble of draws, against this package's own."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design.belief import Belief
from bayesgen.design.botorch_adapter import BoTorch, ensemble_model
from bayesgen.design.maximum import ExpectedImprovement
from bayesgen.errors import MissingPackageError, OptionError, ResultError

float64 = torch.float64


@pytest.fixture
def botorch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("botorch")


def with_values(problem: Any, draws: Tensor, **changes: Any) -> Belief:
    linear = problem(n=draws.shape[1], draws=12)
    belief: Belief = linear.but(images=draws, data=draws[:, :, None], **changes)
    return belief


def some_values() -> Tensor:
    draws = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=float64)
    draws[:, 1] = draws[:, 0] + 0.01
    draws[:, :2] += 0.8
    return draws


MEASURED = {"measured": (5,), "values": torch.tensor([[0.5]], dtype=float64)}


def test_the_model_looks_draws_up(botorch: Any, problem: Any) -> None:
    belief = problem(n=5, q=3).belief
    model = ensemble_model(belief)
    numbers = torch.tensor([[[4.0], [0.0]], [[2.0], [2.0]]], dtype=float64)
    posterior = model.posterior(numbers)
    assert posterior.values.shape == (2, 12, 2, 3) and model.num_outputs == 3
    torch.testing.assert_close(posterior.values[0, :, 0], belief.data[:, 4])
    torch.testing.assert_close(posterior.mean[1, 0], belief.mean[2])
    torch.testing.assert_close(posterior.variance[0, 1], belief.centred[:, 0].square().sum(0))


def simple(model: Any, belief: Belief) -> Any:
    """An exact expected improvement for any number of points, pending ones included."""

    class Exact(torch.nn.Module):
        pending: Tensor | None = None

        def set_X_pending(self, points: Tensor) -> None:
            self.pending = points

        def forward(self, X: Tensor) -> Tensor:
            if self.pending is not None:
                X = torch.cat([X, self.pending.expand(len(X), -1, -1)], 1)
            values = model.posterior(X).values[..., 0]
            return (values.amax(-1) - belief.values.max()).clamp(min=0).mean(-1)

    return Exact()


def test_scores_and_batches_are_those_of_expected_improvement(botorch: Any, problem: Any) -> None:
    belief = with_values(problem, some_values(), **MEASURED)
    own = ExpectedImprovement().choose(belief, 4)
    theirs = BoTorch(simple).choose(belief, 4)
    torch.testing.assert_close(theirs.scores, own.scores)
    assert theirs.indices == own.indices


def test_published_functions_work(botorch: Any, problem: Any) -> None:
    from botorch import acquisition

    belief = with_values(problem, some_values(), **MEASURED)
    own = ExpectedImprovement().scores(belief)

    def log_improvement(model: Any, belief: Belief) -> Any:
        best = belief.values if belief.measured else belief.mean
        return acquisition.qLogExpectedImprovement(model, best_f=best.max())

    def bound(model: Any, belief: Belief) -> Any:
        return acquisition.qUpperConfidenceBound(model, beta=4.0)

    def regret(model: Any, belief: Belief) -> Any:
        return acquisition.qSimpleRegret(model)

    for make in (log_improvement, bound, regret):
        choice = BoTorch(make).choose(belief, 3)
        assert len(set(choice.indices)) == 3 and choice.indices[0] in (0, 1)
    # At the first choice, too, where nothing has been measured.
    first = with_values(problem, some_values())
    assert BoTorch(log_improvement).choose(first).indices[0] in (0, 1)
    scores = BoTorch(log_improvement).scores(belief)
    # 512 draws with replacement by default: within 5 standard errors.
    spread = (belief.data[..., 0] - 0.5).clamp(min=0).std(0) / 512**0.5
    assert bool(((scores.exp() - own).abs() < 5 * spread + 1e-3).all())


def test_random_numbers_are_the_beliefs(botorch: Any, problem: Any) -> None:
    def sampled(model: Any, belief: Belief) -> Any:
        return lambda X: model.posterior(X).rsample(torch.Size([4])).mean((0, 2, 3))

    def scores(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return BoTorch(sampled).scores(with_values(problem, some_values(), rng=rng))

    torch.testing.assert_close(scores(1), scores(1))
    assert not torch.equal(scores(1), scores(2))


def test_functions_without_pending_points_are_taken_as_they_are(botorch: Any, problem: Any) -> None:
    def means(model: Any, belief: Belief) -> Any:
        return lambda X: model.posterior(X).mean[:, 0, 0]

    belief = with_values(problem, some_values())
    expected = belief.mean[:, 0].argsort(descending=True)[:3].tolist()
    assert BoTorch(means).choose(belief, 3).indices == expected


def test_what_is_not_an_acquisition_function_is_refused(botorch: Any, problem: Any) -> None:
    belief = with_values(problem, some_values())
    with pytest.raises(OptionError, match="acquisition: expected it to return .* got float"):
        BoTorch(lambda model, belief: 1.0).scores(belief)
    with pytest.raises(ResultError, match=r"acquisition: expected 6 values.*got \(6, 1\)"):
        BoTorch(lambda model, belief: lambda X: X[:, 0]).scores(belief)


def test_settings() -> None:
    with pytest.raises(OptionError, match="acquisition: got 'qLogEI'"):
        BoTorch("qLogEI")  # type: ignore[arg-type]


def test_without_botorch_the_extra_is_named(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    belief = problem().belief
    with pytest.raises(MissingPackageError, match=r"pip install 'bayesgen\[botorch\]'"):
        BoTorch(simple).choose(belief)
