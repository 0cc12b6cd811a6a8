"""What is believed of the image at the moment of a decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError


@dataclass(frozen=True, eq=False)
class Belief:
    """What an acquisition function sees at one decision.

    Attributes
    ----------
    images
        Posterior draws, ``(S, *image_shape)``.
    data
        Noise-free data that each of n candidates, of q numbers each, would give for these draws,
        ``(S, n, q)``.
    noise
        Standard deviation of the measurement noise, ``(n, q)``; None if it is unknown.
    available
        Which candidates may be chosen now, ``(n,)``, boolean.
    costs_from
        Takes the number of the last measured candidate, or None; returns the cost of measuring
        each candidate next, movement included, ``(n,)``, all positive.
    measured
        Candidates measured so far, in order.
    values
        What was measured, ``(len(measured), q)``.
    round
        Decisions made before this one.
    rng
        Where acquisition functions take random numbers from.
    """

    images: Tensor
    data: Tensor
    noise: Tensor | None
    available: Tensor
    costs_from: Callable[[int | None], Tensor]
    measured: tuple[int, ...]
    values: Tensor
    round: int
    rng: torch.Generator

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or 0 in self.data.shape:
            raise ShapeError(
                "data: expected draws of the data of each candidate, (draws, candidates, numbers), "
                f"got {tuple(self.data.shape)}"
            )
        if self.images.ndim < 1 or len(self.images) != self.num_draws:
            raise ShapeError(
                f"images: expected {self.num_draws} draws, as of the data, got shape "
                f"{tuple(self.images.shape)}"
            )
        expected = {"available": (self.num_candidates,), "noise": tuple(self.data.shape[1:])}
        expected["values"] = (len(self.measured), self.num_numbers)
        for name, shape in expected.items():
            given = getattr(self, name)
            if given is not None and tuple(given.shape) != shape:
                raise ShapeError(f"{name}: expected shape {shape}, got {tuple(given.shape)}")
        if self.available.dtype != torch.bool:
            raise DtypeError(f"available: expected booleans, got {self.available.dtype}")
        wrong = (~torch.isfinite(self.data).flatten(1).all(1)).nonzero()
        if len(wrong):
            raise DataError(f"data: those of posterior draw {int(wrong[0])} are not finite")

    @property
    def num_draws(self) -> int:
        """Posterior draws S."""
        return int(self.data.shape[0])

    @property
    def num_candidates(self) -> int:
        """Candidates n, those measured included."""
        return int(self.data.shape[1])

    @property
    def num_numbers(self) -> int:
        """Numbers q that one measurement gives."""
        return int(self.data.shape[2])

    @property
    def last(self) -> int | None:
        """Candidate measured last."""
        return self.measured[-1] if self.measured else None

    @cached_property
    def mean(self) -> Tensor:
        """Posterior mean of the data, ``(n, q)``."""
        return self.data.mean(0)

    @cached_property
    def centred(self) -> Tensor:
        """Deviations over sqrt(S - 1): the products of columns are the covariances, ``(S, n, q)``.

        Raises
        ------
        OptionError
            If there is one draw only, which has no spread.
        """
        if self.num_draws < 2:
            raise OptionError("images: one posterior draw has no spread; expected at least two")
        return (self.data - self.mean) / (self.num_draws - 1) ** 0.5

    @cached_property
    def positive_noise(self) -> Tensor:
        """The noise, ``(n, q)``, known and positive.

        Raises
        ------
        OptionError
            If it is not.
        """
        if self.noise is None:
            raise OptionError(
                "noise: this acquisition function weighs what is expected against the noise; give "
                "the standard deviation of the measurements"
            )
        if not bool((self.noise > 0).all()) or not bool(torch.isfinite(self.noise).all()):
            raise OptionError("noise: expected positive finite standard deviations")
        return self.noise.to(self.data)
