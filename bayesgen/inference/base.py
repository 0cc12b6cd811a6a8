"""What every inference method is: settings, and a kernel ``init``/``step``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from bayesgen.types import Density, check_options


class State(Protocol):
    """Where a kernel is. Concrete states are named tuples with these and their own fields.

    ``position`` has shape ``(*problems, chains, num_dims)`` and ``log_prob`` ``(*problems,
    chains)``. Chains of one problem may share what they learn; problems never do.
    """

    @property
    def position(self) -> Tensor: ...

    @property
    def log_prob(self) -> Tensor: ...


class Method:
    """Settings of one algorithm; subclasses are frozen dataclasses.

    To write one:

    - derive from `Sampler`, `Population` or `Optimiser`, decorate with
      ``@dataclass(frozen=True)``, give every field a default and check the fields in
      ``__post_init__``;
    - ``init(log_density, position)`` returns the first state, a named tuple with at least
      ``position`` and ``log_prob``;
    - ``step(log_density, state, rng)`` returns the next state and a named tuple of tensors
      ``(*problems, chains)`` that is stored with the draw; it changes neither its arguments nor
      ``self`` and draws random numbers from ``rng`` only;
    - treat all leading axes of ``position`` but the last (chains) as independent problems;
    - add it to ``METHODS`` in ``bayesgen/inference/__init__.py`` and to the tables in
      ``tests/inference/test_runner.py`` and, for samplers, ``tests/inference/test_checks.py``,
      which run every method through the same checks.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    # What a method that is not exact does to its draws, for the summary.
    caveat: ClassVar[str] = "unadjusted: its draws are biased"

    @property
    def uses_gradient(self) -> bool:
        """Whether it needs the gradient of the log density."""
        return True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse options that do not exist, listing those that do."""
        check_options(cls.__name__, cls.__init__, kwargs)
        return super().__new__(cls)

    def extend(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model that the method samples: the user's, unless the method adds to it."""
        return model

    def init(self, log_density: Density, position: Tensor) -> Any:
        """First state at ``position``."""
        raise NotImplementedError

    def step(self, log_density: Density, state: Any, rng: torch.Generator) -> tuple[Any, Any]:
        """One transition of every chain."""
        raise NotImplementedError


class Sampler(Method):
    """A method whose steps are draws from the posterior once it has warmed up.

    Attributes
    ----------
    exact
        Whether the chain's stationary distribution is the posterior itself; unadjusted methods
        are biased and their results say so.
    """

    exact: ClassVar[bool] = True

    def combine(self, earlier: Any, later: Any) -> Any:
        """Info of two steps of which only the later is kept, when a run is thinned."""
        return later

    def adapt(self, state: Any, info: Any, iteration: int, warmup: int) -> Any:
        """Learn from step ``iteration`` of ``warmup``; called during warm-up only."""
        raise NotImplementedError


class Drawn(NamedTuple):
    """A set of draws for each chain.

    Attributes
    ----------
    position
        ``(*problems, chains, draws, n)``.
    log_prob
        Log density of each, ``(*problems, chains, draws)``.
    stats
        What is known of each, by name, of the same shape; what is known of a chain is repeated.
    """

    position: Tensor
    log_prob: Tensor
    stats: dict[str, Tensor]


class Population(Method):
    """A method that ends with a set of draws for each chain, not with one draw after the other.

    Chains are independent repetitions, so that their agreement says how far to trust them. States
    have positions ``(*problems, chains, starts, n)``; infos are of shape ``(*problems, chains)``.

    Attributes
    ----------
    exact
        Whether draws follow the posterior itself, at least as their number grows.
    starts_at_prior
        Whether draws from the prior are the only right start.
    max_iterations
        Most steps a run takes.
    """

    exact: ClassVar[bool] = True
    starts_at_prior: ClassVar[bool] = False
    max_iterations: int

    def num_starts(self, draws: int) -> int:
        """Starting points a chain needs for so many draws."""
        raise NotImplementedError

    def finished(self, state: Any) -> bool:
        """Whether every chain is ready to be drawn from."""
        raise NotImplementedError

    def draw(self, log_density: Density, state: Any, draws: int, rng: torch.Generator) -> Drawn:
        """Draws from a finished state, or from one that ran out of steps."""
        raise NotImplementedError


class Optimiser(Method):
    """A method whose steps climb to a maximum of the posterior density."""

    max_iterations: int

    def suited(self, log_density: Density) -> Optimiser:
        """The method with everything decided that was left to the structure of the problem."""
        return self

    def finished(self, state: Any) -> bool:
        """Whether every chain has stopped."""
        raise NotImplementedError

    def describe(self, state: Any) -> Any:
        """Named tuple of tensors ``(*problems, chains)`` that says how each chain ended."""
        raise NotImplementedError
