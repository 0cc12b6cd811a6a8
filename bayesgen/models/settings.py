"""How a generator is trained, in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bayesgen.errors import OptionError, unknown_option
from bayesgen.types import check_count, check_positive

_LARGEST_SEED = 2**63 - 1
_STREAMS = ("order", "noise", "validation")


def _cosine(fraction: float, warm_up: float = 0.05) -> float:
    """Learning rate, relative to its peak, after a fraction of the time."""
    if fraction < warm_up:
        return fraction / warm_up
    return 0.5 * (1 + math.cos(math.pi * (fraction - warm_up) / (1 - warm_up)))


def _constant(_: float) -> float:
    return 1.0


def check_seed(seed: int) -> None:
    """Refuse what torch cannot take as a seed."""
    check_count("seed", seed, minimum=0)
    if seed > _LARGEST_SEED:
        raise OptionError(f"seed: got {seed}; expected an integer of at most 2**63 - 1")


def stream_seed(seed: int, stream: str) -> int:
    """Seed of one of the independent streams of random numbers that a training needs.

    Streams of one seed are unrelated, and so are those of two. Were they seeded with the seed and
    its successors, the order of the images for one seed would be the noise for another.

    Parameters
    ----------
    seed
        Of the training.
    stream
        ``"order"``, ``"noise"`` or ``"validation"``.

    Examples
    --------
    >>> stream_seed(0, "order") == stream_seed(0, "noise")
    False
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_STREAMS.index(stream),))
    return int(sequence.generate_state(1, np.uint64)[0])


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "constant": _constant}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Parameters
    ----------
    epochs
        Passes over the training images, in all stages together, divided in proportion to the
        stages' shares; each stage makes at least one.
    batch_size
        Images in one step.
    learning_rate
        Adam's step size at its peak.
    schedule
        ``"cosine"``: the step size rises linearly over the first twentieth of the steps of a stage
        and then falls to zero along a cosine; each step has the size of its middle, so that neither
        the first nor the last is of size zero. ``"constant"`` is what adversarial training was
        published with.
    weight_decay
        Decoupled decay of the weights (AdamW); biases are exempt. None by default, as in the
        papers: moving average and held-out images show overfitting well before it matters here.
    gradient_clip
        Largest norm of a player's gradient; a longer one is shortened to it. None by default. Flows
        need it: the gradient of a rare outlier is hundreds of times longer than the others.
    average
        Decay per step of the moving average of the weights, which is what training returns; less
        in the first steps of a stage, ``s / (s + 10)`` after the s-th.
    validation
        Number of images, drawn at random, on which the loss is reported after every epoch and
        which are not trained on. By default a tenth of the images, and at most 1000.
    reserved
        Part of the remaining images kept for stages that must see images the earlier stages did
        not learn from; used only by generators with such a stage.
    patience
        End a stage after so many epochs without a lower loss on the validation images, and return
        to the weights with the lowest. By default, none: every epoch is made. Adversarial
        generators have no such loss.
    mixed_precision
        Let the networks compute in ``bfloat16`` where that is safe, for GPUs; losses, weights and
        moments stay in single precision. It works on CPUs too, mostly without being faster there.
    seed
        Seed of validation split, order of images and random latent vectors.

    Raises
    ------
    OptionError
        If a setting is out of its range.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    average: float = 0.999
    validation: int | None = None
    reserved: float = 0.2
    patience: int | None = None
    mixed_precision: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("patience", "validation"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_positive("learning_rate", self.learning_rate)
        check_positive("gradient_clip", self.gradient_clip, allow_none=True)
        if self.schedule not in SCHEDULES:
            raise OptionError(unknown_option("schedule", self.schedule, SCHEDULES))
        check_seed(self.seed)
        for name, allowed, fits in (
            ("weight_decay", "of at least 0", lambda value: 0 <= value < math.inf),
            ("average", "in [0, 1)", lambda value: 0 <= value < 1),
            ("reserved", "between 0 and 1, both excluded", lambda value: 0 < value < 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not fits(value):
                raise OptionError(f"{name}: got {value!r}; expected a number {allowed}")
