from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models import Player, Stage, TrainingSettings
from bayesgen.models.training_images import TrainingImages, as_tensor, check_images

SETTINGS = TrainingSettings(validation=3, reserved=0.25)


def stages(*images: str) -> list[Stage]:
    player = Player((nn.utils.skip_init(nn.Linear, 1, 1),), lambda x, rng: {})
    return [Stage(name, (player,), images=name) for name in images]  # type: ignore[arg-type]


def divided(num: int, *parts: str, seed: int = 0) -> TrainingImages:
    """Images that hold their number."""
    images = torch.arange(float(num)).reshape(-1, 1, 1).expand(num, 4, 4)
    rng = torch.Generator().manual_seed(seed)
    return TrainingImages(
        images, stages(*parts), SETTINGS, rng, torch.zeros((), dtype=torch.double)
    )


def numbers(images: Tensor) -> list[int]:
    assert images.dtype == torch.double
    return images[:, 0, 0].int().tolist()


def test_parts_are_disjoint_and_complete() -> None:
    images = divided(20, "training", "reserved")
    parts = [numbers(images.first(name)) for name in ("training", "reserved", "validation")]
    # A quarter of seventeen, rounded up.
    assert [len(part) for part in parts] == [12, 5, 3]
    assert sorted(itertools.chain(*parts)) == list(range(20))
    assert [images.count(name) for name in ("training", "reserved", "validation")] == [12, 5, 3]


def test_nothing_is_reserved_where_no_stage_asks_for_it() -> None:
    images = divided(20, "training")
    assert images.count("reserved") == 0 and images.count("training") == 17


def test_the_division_follows_the_generator() -> None:
    one, same, other = (
        numbers(divided(20, "training", seed=s).first("training")) for s in (1, 1, 2)
    )
    assert one == same != other


def test_batches_show_every_image_once() -> None:
    images = divided(20, "training")
    rng = torch.Generator().manual_seed(0)
    first, second = (list(images.batches("training", 5, rng)) for _ in range(2))
    assert [len(batch) for batch in first] == [5, 5, 5, 2]
    shown = [list(itertools.chain(*map(numbers, batches))) for batches in (first, second)]
    assert sorted(shown[0]) == sorted(shown[1]) == sorted(numbers(images.first("training")))
    assert shown[0] != shown[1]
    (whole,) = images.batches("validation", 100)
    assert numbers(whole) == numbers(images.first("validation"))


def test_too_few_images() -> None:
    with pytest.raises(OptionError, match="validation: holds out 3 images, but there are 3"):
        divided(3, "training")
    with pytest.raises(OptionError, match="reserved: 0.25 of 1 images leaves none"):
        divided(4, "training", "reserved")
    assert divided(5, "training", "reserved").count("training") == 1


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (60, 6), (20_000, 1000)])
def test_by_default_a_tenth_is_held_out(count: int, held_out: int) -> None:
    settings = dataclasses.replace(SETTINGS, validation=None)
    rng, like = torch.Generator().manual_seed(0), torch.zeros(())
    images = TrainingImages(torch.zeros(count, 1, 1), stages("training"), settings, rng, like)
    assert images.count("validation") == held_out


def test_the_held_out_number_is_that_of_the_settings() -> None:
    settings = dataclasses.replace(SETTINGS, validation=7)
    rng, like = torch.Generator().manual_seed(0), torch.zeros(())
    images = TrainingImages(torch.zeros(20, 4, 4), stages("training"), settings, rng, like)
    assert images.count("validation") == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_are_read_from_every_kind_of_item(dtype: torch.dtype) -> None:
    vectors = torch.linspace(-3, 5, 12, dtype=dtype).reshape(4, 3)
    for dataset in (
        TensorDataset(vectors),
        TensorDataset(vectors, torch.arange(4)),
        [vector.clone().requires_grad_() for vector in vectors],
        [(vector.numpy(), "label") for vector in vectors],
    ):
        found = as_tensor(dataset, (3,))  # type: ignore[arg-type]
        assert torch.equal(found, vectors) and found.dtype == dtype and not found.requires_grad
    assert as_tensor(vectors, (3,)) is vectors


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (
            [torch.zeros(3), torch.zeros(4)],
            ShapeError,
            r"images\[1\]: expected shape \(3,\), got \(4,",
        ),
        ([torch.zeros(1, 3)], ShapeError, r"images\[0\]: expected shape \(3,\), got \(1, 3\)"),
        ([(torch.zeros(3, dtype=torch.int64), 1)], DtypeError, r"images\[0\]: .* got torch.int64"),
        ([[0.0, 1.0, 2.0]], DtypeError, r"images\[0\]: expected a vector .* got float"),
        ([()], DtypeError, "got tuple"),
        ([], ShapeError, "vectors of length 3, got an empty data set"),
        (iter([torch.zeros(3)]), DtypeError, "map-style data set.* got list_iterator"),
    ],
)
def test_data_sets_of_other_things_are_refused(
    dataset: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        as_tensor(dataset, (3,))


def test_intensities_are_those_of_images() -> None:
    check_images(torch.tensor([0.0, 1.0]).reshape(2, 1, 1), (1, 1))
    with pytest.raises(DataError, match=r"intensities in \[0, 1\], found 0 to 1.5"):
        check_images(torch.tensor([0.0, 1.5]).reshape(2, 1, 1), (1, 1))
    check_images(torch.tensor([[-3.0], [1.5]]), (1,))
    with pytest.raises(DataError, match="NaN"):
        check_images(torch.tensor([[torch.nan], [1.5]]), (1,))
