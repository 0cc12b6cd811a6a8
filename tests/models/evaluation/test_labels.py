from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models.evaluation import samples
from bayesgen.models.evaluation.labels import label_shares

LABELS = torch.tensor([7, -1, 3])


def draw(numbers: Tensor, rng: torch.Generator, noise: float = 0.3) -> Tensor:
    """Images ``(N, 2, 3)`` around one centre for each number."""
    centres = torch.eye(3, 6).reshape(3, 2, 3)
    return centres[numbers] + noise * torch.randn(len(numbers), 2, 3, generator=rng)


def test_shares_of_well_separated_labels(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "_BLOCK", 1000)
    reference = torch.arange(90) % 3
    numbers = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    found = label_shares(draw(numbers, rng, 0.1), draw(reference, rng, 0.1), LABELS[reference])
    assert found.labels == (-1, 3, 7)
    assert [share.value for share in found.shares] == pytest.approx([0.3, 0.1, 0.6])
    assert found.shares[0].standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 100))
    assert found.reference_shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found.accuracy == 1
    assert found.factor == pytest.approx(1 / 3 / 0.1)
    assert "3: 0.1 ± 0.03, in the data 0.3333" in str(found)
    assert "within a factor 3.33; classifier right for 100.0%" in str(found)


def test_too_large_shares_count_too(rng: torch.Generator) -> None:
    reference = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    numbers = torch.tensor([0] * 40 + [1] * 20 + [2] * 40)
    found = label_shares(draw(numbers, rng, 0.1), draw(reference, rng, 0.1), LABELS[reference])
    assert found.factor == pytest.approx(0.4 / 0.1)


def test_a_missing_label_is_an_infinite_factor(rng: torch.Generator) -> None:
    reference = torch.arange(90) % 3
    found = label_shares(
        draw(torch.arange(40) % 2, rng, 0.1), draw(reference, rng, 0.1), LABELS[reference]
    )
    assert found.factor == math.inf


def test_votes_by_hand() -> None:
    """Labels 0 at 0, 1 at 1.1 and 2, 2 at 3.5 and 3.6; ties go to the nearest."""
    places = torch.tensor([[0.0], [1.1], [2.0], [3.5], [3.6]])
    labels = torch.tensor([0, 1, 1, 2, 2])
    query = torch.tensor([[0.1]])
    for neighbours, expected in [(1, 0), (2, 0), (3, 1), (4, 1)]:
        found = label_shares(query, places, labels, neighbours=neighbours)
        assert [share.value for share in found.shares].index(1.0) == expected
    # Leaving itself out, the image at 0 is taken for a 1 and all others are right.
    assert label_shares(query, places, labels, neighbours=1).accuracy == 4 / 5


def test_accuracy_is_low_where_labels_mean_nothing(rng: torch.Generator) -> None:
    """A third, within 5 sigma of 600 images (false alarm 6e-7; neighbours agree, so doubled)."""
    labels = torch.arange(600) % 3
    images = torch.rand(600, 4, generator=rng)
    found = label_shares(images, images, labels, neighbours=1)
    assert abs(found.accuracy - 1 / 3) < 5 * math.sqrt(2 * 2 / 9 / 600)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1], DtypeError, "reference_labels: expected a tensor of integers, got list"),
        (torch.zeros(20), DtypeError, "reference_labels: .*got torch.float32"),
        (torch.zeros(19, dtype=torch.int64), ShapeError, r"expected shape \(20,\).*got \(19,\)"),
        (torch.zeros(20, 1, dtype=torch.int64), ShapeError, "reference_labels"),
    ],
)
def test_bad_labels(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        label_shares(torch.zeros(3, 4), torch.zeros(20, 4), labels)


def test_bad_images_and_options() -> None:
    labels = torch.zeros(5, dtype=torch.int32)
    with pytest.raises(ShapeError, match="reference_images: has images of shape"):
        label_shares(torch.zeros(3, 4), torch.zeros(5, 3), labels)
    with pytest.raises(DataError, match="images: holds NaN"):
        label_shares(torch.full((3, 4), math.nan), torch.zeros(5, 4), labels)
    with pytest.raises(OptionError, match="neighbours: got 5; expected fewer than the 5"):
        label_shares(torch.zeros(3, 4), torch.zeros(5, 4), labels)
    with pytest.raises(OptionError, match="neighbours: got 0"):
        label_shares(torch.zeros(3, 4), torch.zeros(5, 4), labels, neighbours=0)
