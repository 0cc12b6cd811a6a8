"""Acquisition functions of BoTorch, through the draws as an ensemble of models."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesgen.design.base import Acquisition, Level, Scorer
from bayesgen.design.belief import Belief
from bayesgen.errors import MissingPackageError, OptionError, ResultError


def import_ensembles() -> Any:
    """The module ``botorch.models.ensemble``, without the warnings of what it imports.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("botorch.models.ensemble")
    except ImportError as error:
        raise MissingPackageError(
            "this needs BoTorch, which could not be imported "
            f"({error}): pip install 'bayesgen[botorch]'"
        ) from error


def ensemble_model(belief: Belief) -> Any:
    """The belief as a model of BoTorch: each posterior draw is a member of an ensemble.

    Parameters
    ----------
    belief
        Posterior draws of the candidates' data.

    Returns
    -------
    botorch.models.ensemble.EnsembleModel
        Its input are numbers of candidates, ``(*batch, points, 1)``; its output their noise-free
        data, q of them. Draws are joint over the points.

    Raises
    ------
    MissingPackageError
        If BoTorch is not installed.
    """
    base: Any = import_ensembles().EnsembleModel

    class BeliefModel(base):  # type: ignore[misc]
        """Looks the draws up."""

        def __init__(self) -> None:
            super().__init__()
            self._num_outputs = belief.num_numbers

        def forward(self, X: Tensor) -> Tensor:
            """Data ``(*batch, S, points, q)`` of the candidates X."""
            return belief.data[:, X[..., 0].round().long()].movedim(0, -3)

    return BeliefModel()


@dataclass(frozen=True)
class BoTorch(Acquisition):
    """An acquisition function of BoTorch, evaluated at every candidate.

    In a batch, the choices so far are its pending points, if it takes any (those whose names begin
    with q do). Functions that need a model conditioned on imagined data (knowledge gradients) do
    not work with an ensemble. Scores need not have a zero: with costs, what counts is the score
    above the lowest, per cost.

    Parameters
    ----------
    acquisition
        Takes the model, by `ensemble_model`, and the belief; returns the acquisition function.

    References
    ----------
    Balandat et al. (2020), *BoTorch: a framework for efficient Monte-Carlo Bayesian optimization*.

    Examples
    --------
    >>> def improvement(model, belief):
    ...     from botorch.acquisition import qLogExpectedImprovement
    ...
    ...     best = belief.values if belief.measured else belief.mean
    ...     return qLogExpectedImprovement(model, best_f=best.max())
    >>> BoTorch(improvement)  # doctest: +ELLIPSIS
    BoTorch(acquisition=<function improvement at ...>)
    """

    name = "botorch"
    reference = (
        "Balandat et al. (2020), BoTorch: a framework for efficient Monte-Carlo Bayesian "
        "optimization"
    )
    task = "either"

    acquisition: Callable[[Any, Belief], Any]

    def __post_init__(self) -> None:
        if not callable(self.acquisition):
            raise OptionError(
                f"acquisition: got {self.acquisition!r}; expected a function of model and belief"
            )

    def begin(self, belief: Belief) -> Scorer:
        """Values of the acquisition function."""
        return _Evaluated(self.acquisition, belief)


class _Evaluated(Level):
    def __init__(self, acquisition: Callable[[Any, Belief], Any], belief: Belief) -> None:
        self.belief, self.taken = belief, list[int]()
        rng = belief.rng
        self.seed = int(torch.randint(2**31, (1,), generator=rng, device=rng.device))
        model = ensemble_model(belief)
        with _own_randomness(self.seed, belief):
            self.function = acquisition(model, belief)
        if not callable(self.function):
            raise OptionError(
                "acquisition: expected it to return an acquisition function of BoTorch, got "
                f"{type(self.function).__name__}"
            )

    def scores(self) -> Tensor:
        numbers = self._points(range(self.belief.num_candidates))
        with torch.no_grad(), _own_randomness(self.seed, self.belief):
            values = self.function(numbers[:, None])
        if not isinstance(values, Tensor) or values.shape != numbers.shape[:1]:
            raise ResultError(
                f"acquisition: expected {len(numbers)} values from the acquisition function, got "
                f"{tuple(getattr(values, 'shape', ()))}"
            )
        return values.to(self.belief.data)

    def take(self, index: int) -> None:
        self.taken.append(index)
        if hasattr(self.function, "set_X_pending"):
            self.function.set_X_pending(self._points(self.taken))

    def _points(self, indices: Sequence[int]) -> Tensor:
        """Numbers of candidates as BoTorch takes them, ``(len(indices), 1)``."""
        # Single precision would round numbers beyond 2^24.
        numbers = torch.tensor(list(indices), device=self.belief.data.device)
        return numbers.double()[:, None]


@contextmanager
def _own_randomness(seed: int, belief: Belief) -> Iterator[None]:
    """BoTorch draws from the global generators: give it its own, and put them back."""
    device = belief.data.device
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
