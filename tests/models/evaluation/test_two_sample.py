from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, OptionError, ShapeError
from bayesgen.models.evaluation import samples, two_sample
from bayesgen.models.evaluation.two_sample import two_sample_test

CLASSIFIERS = ["mlp", "neighbours"]


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_equal_laws_cannot_be_told_apart(classifier: str, rng: torch.Generator) -> None:
    """The accuracy is 0.5 and its error is not understated.

    Twenty z-scores: their mean has standard error at most 0.22 and their mean square, if the error
    is right, lies below 3.3 except with probability 8e-7.
    """
    results = [
        two_sample_test(*normal(rng, 2, 60, 2, 4), classifier=classifier, seed=seed)
        for seed in range(20)
    ]
    scores = torch.tensor([(found.accuracy - 0.5) / found.standard_error for found in results])
    assert abs(scores.mean()) < 5 / math.sqrt(20)
    assert scores.square().mean() < 3.3
    inside = sum(found.interval[0] <= 0.5 <= found.interval[1] for found in results)
    # Fewer than 13 of 20 at a coverage of 97 %, which is what was seen: probability 1e-7.
    assert inside >= 13


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_far_laws_are_told_apart_always(classifier: str, rng: torch.Generator) -> None:
    found = two_sample_test(normal(rng, 100, 5) + 10, normal(rng, 100, 5), classifier=classifier)
    assert found.accuracy == 1 and found.fold_accuracies == (1,) * 5
    assert found.interval[0] > 0.95 and found.interval[1] == pytest.approx(1)
    assert found.p_value < 1e-10 and found.num_images == 100


def test_the_accuracy_is_near_the_best_possible(rng: torch.Generator) -> None:
    """Normal laws at distance 2: no classifier is right more often than Phi(1) = 0.8413."""
    shift = torch.full((8,), 2 / math.sqrt(8))
    found = two_sample_test(normal(rng, 800, 8) + shift, normal(rng, 800, 8))
    best = 0.5 * math.erfc(-1 / math.sqrt(2))
    assert best - 0.03 - 5 * found.standard_error < found.accuracy
    assert found.accuracy < best + 5 * found.standard_error


def test_a_difference_no_linear_classifier_sees(rng: torch.Generator) -> None:
    found = two_sample_test(2 * normal(rng, 300, 5), normal(rng, 300, 5))
    assert found.accuracy > 0.7


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_images_are_not_classified_by_what_they_taught(
    classifier: str, rng: torch.Generator
) -> None:
    """Many pixels: training images would be learned by heart, accuracy near 1."""
    found = two_sample_test(*normal(rng, 2, 50, 200), classifier=classifier, folds=2)
    assert found.accuracy < 0.5 + 5 * found.standard_error


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_the_seed_decides(classifier: str, rng: torch.Generator) -> None:
    x, y = normal(rng, 2, 60, 3, 4)
    one, same, other = (
        two_sample_test(x + 0.2, y, classifier=classifier, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same and one != other


def test_neighbours_by_hand(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_BLOCK", 500)
    x = normal(rng, 40, 3).double()
    truth, fold = torch.arange(40) < 20, torch.arange(40) % 4
    found = two_sample._neighbours(x, truth, fold, 4)
    for i in range(40):
        others = (fold != fold[i]).nonzero().flatten()
        nearest = others[(x[others] - x[i]).norm(dim=1).argsort()[:5]]
        assert found[i] == (truth[nearest].sum() >= 3)


def test_numbers_by_hand() -> None:
    """140 of 200 right: standard error for 200 / (1 + 5 / 4) images, and Wilson's interval."""
    right = torch.tensor([1.0] * 140 + [0.0] * 60, dtype=torch.float64)
    fold = torch.arange(200) % 5
    found = two_sample._judge(right, fold, 5, 0.95)
    n, z = 200 / 2.25, 1.959964
    assert found.accuracy == pytest.approx(0.7) and found.fold_accuracies == (0.7,) * 5
    assert found.standard_error == pytest.approx(math.sqrt(0.7 * 0.3 / n))
    for end in found.interval:  # where the score test has its critical value
        assert abs(0.7 - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(z, rel=1e-5)
    score = 0.2 / math.sqrt(0.25 / n)
    assert found.p_value == pytest.approx(0.5 * math.erfc(score / math.sqrt(2)))
    assert "accuracy 0.7000" in str(found) and "p = 8.1e-05" in str(found)


def test_invisible_differences_do_not_count(rng: torch.Generator) -> None:
    """As sigmoids leave a millionth where real images are black."""
    x = normal(rng, 2, 200, 6)
    x[..., 4:] = 0.0
    x[0, :, 4] = 1e-6
    found = two_sample_test(x[0], x[1])
    assert abs(found.accuracy - 0.5) < 5 * found.standard_error
    black = torch.zeros(10, 3)
    assert two_sample_test(black, black).accuracy == 0.5


def test_double_precision_and_gradients(rng: torch.Generator) -> None:
    x, y = normal(rng, 2, 40, 2, 3)
    found = two_sample_test(x.requires_grad_(), y + 1)
    assert two_sample_test(x.double(), (y + 1).double()) == found


def test_bad_input_is_named() -> None:
    x = torch.zeros(20, 2)
    with pytest.raises(OptionError, match="classifier: unknown value 'mpl'.*did you mean 'mlp'"):
        two_sample_test(x, x, classifier="mpl")
    with pytest.raises(ShapeError, match="real: has 19 images, but generated has 20"):
        two_sample_test(x, x[1:])
    with pytest.raises(DataError, match="generated: holds NaN"):
        two_sample_test(x * math.nan, x)
    with pytest.raises(OptionError, match="folds: got 1"):
        two_sample_test(x, x, folds=1)
    with pytest.raises(OptionError, match="folds: got 11; expected at most half the 20 images"):
        two_sample_test(x, x, folds=11)
    with pytest.raises(OptionError, match="confidence"):
        two_sample_test(x, x, confidence=95)
    with pytest.raises(OptionError, match="seed"):
        two_sample_test(x, x, seed=-1)
