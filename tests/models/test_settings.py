from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bayesgen.errors import OptionError
from bayesgen.models import TrainingSettings
from bayesgen.models.settings import SCHEDULES, stream_seed


def test_cosine_rises_and_falls() -> None:
    cosine = SCHEDULES["cosine"]
    # A twentieth of warm-up, then half a period.
    for fraction, rate in [(0.0, 0.0), (0.025, 0.5), (0.05, 1.0), (0.525, 0.5), (1.0, 0.0)]:
        assert cosine(fraction) == pytest.approx(rate, abs=1e-12)
    third = 0.05 + 0.95 / 3
    assert cosine(third) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    rates = [cosine(step / 1000) for step in range(1001)]
    peak = rates.index(max(rates))
    assert peak == 50
    assert rates[:51] == sorted(rates[:51]) and rates[50:] == sorted(rates[50:], reverse=True)


def test_streams_are_unrelated() -> None:
    names = ("order", "noise", "validation")
    seeds = [stream_seed(seed, name) for seed in (*range(100), 2**63 - 1) for name in names]
    # The low half is all that torch's generator on the CPU takes.
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)
    assert seeds[0] == stream_seed(0, "order"), "not reproducible"
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_constant_is_constant() -> None:
    assert {SCHEDULES["constant"](step / 10) for step in range(11)} == {1.0}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs: got 0; expected an integer of at least 1"),
        ("epochs", 2.0, "epochs: got 2.0; expected an integer"),
        ("batch_size", 0, "batch_size: got 0"),
        ("batch_size", True, "batch_size: got True"),
        ("validation", 0, "validation: got 0"),
        ("patience", 0, "patience: got 0"),
        ("learning_rate", 0.0, "learning_rate: got 0.0; expected a positive finite number"),
        ("learning_rate", math.inf, "learning_rate: got inf"),
        ("learning_rate", math.nan, "learning_rate: got nan"),
        ("schedule", "cosin", r"schedule: unknown value 'cosin'.*did you mean 'cosine'"),
        ("gradient_clip", 0.0, "gradient_clip: got 0.0; expected a positive finite number"),
        ("weight_decay", -0.1, "weight_decay: got -0.1; expected a number of at least 0"),
        ("weight_decay", "much", "weight_decay: got 'much'"),
        ("gradient_clip", 0.0, "gradient_clip: got 0.0; expected a positive finite number"),
        ("average", 1.0, r"average: got 1.0; expected a number in \[0, 1\)"),
        ("average", math.nan, "average: got nan"),
        ("reserved", 0.0, "reserved: got 0.0; expected a number between 0 and 1, both excluded"),
        ("reserved", 1, "reserved: got 1"),
        ("seed", -1, "seed: got -1; expected an integer of at least 0"),
        ("seed", 0.5, "seed: got 0.5"),
        ("seed", 2**63, r"seed: got \d+; expected an integer of at most 2\*\*63 - 1"),
    ],
)
def test_bad_settings(name: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainingSettings(**{name: value})


def test_bounds_that_are_allowed() -> None:
    TrainingSettings(
        epochs=1, batch_size=1, validation=1, patience=1, weight_decay=0, average=0, seed=2**63 - 1
    )


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TrainingSettings().epochs = 3  # type: ignore[misc]
