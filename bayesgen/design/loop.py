"""The loop: what is believed chooses what is measured, and what is measured changes the belief."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesgen.design.acquisitions import as_acquisition
from bayesgen.design.base import Acquisition, Choice
from bayesgen.design.belief import Belief
from bayesgen.design.model import check_model, prior_posterior
from bayesgen.design.pool import Pool
from bayesgen.design.records import Record, read_loop, write_loop
from bayesgen.errors import DataError, OptionError, ShapeError
from bayesgen.infer import infer
from bayesgen.inference import SMC, Method, Optimiser, Population, as_method
from bayesgen.posterior import Posterior
from bayesgen.types import check_count, check_positive, strict_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measure = Callable[[list[int]], Any]
# Rounding of costs that fill a budget exactly.
_ROUNDING = 1e-6


class Loop:
    """Measurements that are chosen one batch after the other, by what the earlier ones told.

    `acquire` runs it with a function that measures. A step at a time, ``ask`` says what to measure
    next and ``tell`` takes the result; whatever fails in between, what was measured is kept and the
    loop goes on where it was.

    Parameters
    ----------
    model
        A Pyro model ``model(A, y)`` of the forward operator and its data: its likelihood applies
        the operator that it is given, which measures more with every round. ``y=None`` draws data.
    pool
        What can be measured.
    measure
        Takes a list of k candidates and returns their data ``(k, *pool.value_shape)``. Not needed
        for ``ask`` and ``tell``.
    acquisition
        How candidates are chosen: one of `bayesgen.design`, or its name.
    budget
        Most that all measurements may cost together. With costs of one, the default of a pool, it
        is their number.
    batch
        Candidates measured at a time; each batch takes one update of the posterior.
    noise
        Standard deviation of the measurement noise, one number or something that broadcasts to
        ``(n, *pool.value_shape)``, for acquisition functions that weigh what is expected against
        it. The model has its own.
    method
        Sampler: by default `SMC` with as many particles as draws, whose particles are carried from
        one posterior to the next. Chains of other samplers start at the last draws.
    chains, draws, warmup
        As in `bayesgen.infer`. 4 x 128 (the default) is enough to score candidates by; a final
        posterior to be reported may deserve more.
    site
        The image in the model.
    initial
        Candidates to measure first, without a choice; needed only if no data can be drawn from the
        model.
    target
        Stop when the uncertainty, the root of the mean posterior variance of the image, is at most
        this.
    fresh
        Whether to begin every posterior at the prior again (slower; to check the default against).
    seed
        Seed of all randomness.
    checkpoint
        File that is written after each round. If it exists, the loop continues from it.

    Raises
    ------
    ModelError, ShapeError, DtypeError, DataError, OptionError
        If the model takes no operator, the budget exceeds the pool, or an option is out of range.
    FileFormatError
        If the checkpoint is of another loop.

    References
    ----------
    Chaloner and Verdinelli (1995), Bayesian experimental design: a review; Chopin (2002), A
    sequential particle filter method for static models.

    Examples
    --------
    >>> import pyro, torch, bayesgen as bg
    >>> import pyro.distributions as dist
    >>> def model(A, y=None):
    ...     x = pyro.sample("x", dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1))
    ...     pyro.sample("y", dist.Normal(A(x), 0.1).to_event(1), obs=y)
    >>> rows = bg.operators.Matrix(torch.diag(torch.tensor([1.0, 3.0, 2.0])), (3,))
    >>> loop = Loop(model, bg.design.Pool(rows), acquisition="variance", budget=2)
    >>> loop.ask()
    [1]
    >>> record = loop.tell(torch.tensor([3.0]))
    >>> loop.ask(), loop.spent
    ([2], 1.0)
    """

    @strict_options
    def __init__(
        self,
        model: Callable[..., Any],
        pool: Pool,
        measure: Measure | None = None,
        *,
        acquisition: str | Acquisition,
        budget: float,
        batch: int = 1,
        noise: float | Tensor | None = None,
        method: str | Method | None = None,
        chains: int = 4,
        draws: int = 128,
        warmup: int | None = None,
        site: str = "x",
        initial: Sequence[int] = (),
        target: float | None = None,
        fresh: bool = False,
        seed: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(pool, Pool):
            raise OptionError(f"pool: got {type(pool).__name__}; expected a bayesgen.design.Pool")
        for name, count in (("batch", batch), ("chains", chains), ("draws", draws)):
            check_count(name, count)
        check_positive("target", target, allow_none=True)
        self.model, self.pool, self.measure = model, pool, measure
        self.acquisition = as_acquisition(acquisition)
        self.budget, self.batch, self.site = _as_budget(budget, pool), batch, site
        self.target, self.fresh, self.seed = target, fresh, seed
        self._noise = _as_noise(noise, pool)
        self._chains, self._draws, self._warmup = chains, draws, warmup
        self.method = _as_sampler(SMC(particles=max(draws, 16)) if method is None else method)
        self._initial = [int(i) for i in initial]
        if self._initial:
            pool._checked(self._initial)
        self.measured: list[int] = []
        self.values: Tensor | None = None
        self.spent = 0.0
        self.records: list[Record] = []
        self._pending: Choice | None = None
        self._choosing = 0.0
        self._posterior: Posterior | None = None
        # Whether what was measured last has not come to the posterior yet.
        self._behind = False
        check_model(model, pool)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        if self.checkpoint is not None and self.checkpoint.exists():
            read_loop(self, self.checkpoint)

    def __repr__(self) -> str:
        state = self.outcome or f"{self.spent:g} of {self.budget:g} spent"
        return f"Loop({self.acquisition!r} from {self.pool!r}, {len(self.records)} rounds: {state})"

    # ------------------------------------------------------------------ what is known

    @property
    def posterior(self) -> Posterior:
        """Given all that was measured; before that, draws of the prior."""
        if self._behind:
            self._update()
        if self._posterior is None:
            shape = (self._chains, self._draws)
            self._posterior = prior_posterior(self.model, self.pool, shape, self._seed_of(0))
        return self._posterior

    @property
    def data(self) -> tuple[Any, Tensor]:
        """The operator of all that was measured, and its data: arguments of the model.

        Raises
        ------
        OptionError
            If nothing has been measured yet.
        """
        if self.values is None:
            raise OptionError("loop: nothing has been measured yet")
        return self.pool.at(self.measured), self.pool.arrange(self.values, self.measured)

    @property
    def available(self) -> Tensor:
        """Which candidates have not been measured, ``(n,)``."""
        left = torch.ones(self.pool.num_candidates, dtype=torch.bool)
        left[self.measured] = False
        return left

    @property
    def outcome(self) -> str | None:
        """Why the loop has ended; None if it has not."""
        reached = self.target is not None and bool(self.records)
        if reached and self.records[-1].uncertainty <= (self.target or 0.0):
            return "target reached"
        left = self.available
        if not bool(left.any()):
            return "pool exhausted"
        costs = self.pool.costs_from(self.measured[-1] if self.measured else None)
        if float(costs[left].min()) > (self.budget - self.spent) * (1 + _ROUNDING):
            return "budget spent"
        return None

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to ask."""
        return self.outcome is not None

    def belief(self) -> Belief:
        """What the acquisition function sees now."""
        images = self.posterior.draws(self.site).flatten(0, 1)
        with torch.no_grad():
            data = self.pool.data(images)
        values = data.new_zeros(0, self.pool.num_numbers) if self.values is None else self.values
        return Belief(
            images=images,
            data=data,
            noise=None if self._noise is None else self._noise.to(data),
            available=self.available.to(data.device),
            costs_from=lambda last: self.pool.costs_from(last).to(data.device),
            measured=tuple(self.measured),
            values=values.to(data),
            round=len(self.records),
            rng=torch.Generator().manual_seed(self._seed_of(2 * len(self.records) + 1)),
        )

    # ------------------------------------------------------------------ one step

    def ask(self) -> list[int]:
        """Candidates to measure next; the same until their data are told.

        Raises
        ------
        OptionError
            If the loop has ended.
        """
        if self._behind:
            self._update()
        if self._pending is None:
            if self.outcome is not None:
                raise OptionError(f"loop: {self.outcome}; there is nothing left to ask")
            clock = time.perf_counter()
            self._pending = self._choose()
            self._choosing = time.perf_counter() - clock
        return list(self._pending.indices)

    def tell(self, values: Any) -> Record:
        """Take the data of the candidates asked for, ``(k, *pool.value_shape)``, and learn.

        Raises
        ------
        OptionError
            If nothing was asked for.
        ShapeError, DataError
            If the data have another shape or are not finite; the loop waits for others.
        """
        if self._pending is None or self._behind:
            raise OptionError("loop: no candidates have been asked for; call ask() first")
        measured = self._as_values(values, self._pending.indices)
        last = self.measured[-1] if self.measured else None
        for index in self._pending.indices:
            self.spent += float(self.pool.costs_from(last)[index])
            last = index
        earlier = self.values
        self.values = measured if earlier is None else torch.cat([earlier, measured.to(earlier)])
        self.measured = [*self.measured, *self._pending.indices]
        self._behind = True
        try:
            self._update()
        finally:
            if self.checkpoint is not None:
                write_loop(self, self.checkpoint)
        return self.records[-1]

    def __iter__(self) -> Iterator[Record]:
        """Measure and learn until the end, a record a round.

        After an error of ``measure``, iterate again: the same candidates are measured once more.
        """
        if self.measure is None:
            raise OptionError("measure: the loop has none; use ask() and tell(), or give one")
        if self._behind:
            self._update()
            yield self.records[-1]
        while not self.finished:
            yield self.tell(self.measure(self.ask()))

    def plot(self) -> Figure:
        """The image, its uncertainty, what was measured, and how the uncertainty fell."""
        from bayesgen.design.plot import plot_loop

        return plot_loop(self)

    def animate(
        self, path: str | os.PathLike[str], *, truth: Tensor | None = None, fps: float = 4.0
    ) -> None:
        """Write the rounds as an animation (GIF), beside the true image if it is known."""
        from bayesgen.design.plot import animate_loop

        animate_loop(self, path, truth=truth, fps=fps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all there is to go on from; give the file as ``checkpoint`` to do so."""
        write_loop(self, Path(path))

    # ------------------------------------------------------------------ inside

    def _choose(self) -> Choice:
        if self._initial and not self.measured:
            scores = torch.full((self.pool.num_candidates,), float("nan"))
            return Choice(self._initial, scores)
        left = self.budget - self.spent
        return self.acquisition.choose(self.belief(), self.batch, left)

    def _as_values(self, values: Any, chosen: Sequence[int]) -> Tensor:
        measured = torch.as_tensor(values)
        shape = (len(chosen), *self.pool.value_shape)
        if tuple(measured.shape) != shape:
            raise ShapeError(
                f"measure: returned shape {tuple(measured.shape)} for candidates {list(chosen)}; "
                f"expected {shape}"
            )
        if measured.is_complex() or not bool(torch.isfinite(measured).all()):
            raise DataError(
                f"measure: returned data of candidates {list(chosen)} that are complex, NaN or "
                "infinite"
            )
        if not measured.is_floating_point():
            measured = measured.to(torch.get_default_dtype())
        return measured.detach().reshape(len(chosen), self.pool.num_numbers)

    def _update(self) -> None:
        """Bring the posterior and the records up to what was measured."""
        clock = time.perf_counter()
        operator, y = self.data
        check_model(self.model, self.pool, operator, y)
        # Approximations are fitted anew each time; there is nothing to carry on.
        carries = not isinstance(self.method, Population) or self.method.starts_at_prior
        warm = carries and bool(self.records) and not self.fresh
        self._posterior = infer(
            self.model,
            operator,
            y,
            method=self.method,
            start=self._posterior if warm and self._posterior is not None else "prior",
            seed=self._seed_of(2 * len(self.records) + 2),
            progress=False,
            chains=self._chains,
            draws=self._draws,
            warmup=self._warmup,
        )
        mean, std = self._posterior.mean(self.site), self._posterior.std(self.site)
        updating = time.perf_counter() - clock
        choice = self._pending
        assert choice is not None
        self.records.append(
            Record(
                round=len(self.records),
                chosen=tuple(choice.indices),
                scores=choice.scores.detach().cpu(),
                spent=self.spent,
                uncertainty=float(std.double().square().mean().sqrt()),
                mean=mean,
                std=std,
                seconds_choosing=self._choosing,
                seconds_updating=updating,
            )
        )
        self._pending, self._behind = None, False

    def _seed_of(self, number: int) -> int:
        """The ``number``-th of a sequence of seeds that belongs to this loop."""
        rng = torch.Generator().manual_seed(self.seed)
        return int(torch.randint(2**62, (number + 1,), generator=rng)[-1])


def acquire(model: Callable[..., Any], pool: Pool, measure: Measure, **settings: Any) -> Loop:
    """Measure what tells most, learn from it, and so on until the budget is spent.

    Parameters
    ----------
    model, pool, measure, settings
        As for `Loop`, which this returns: iterating over it runs it and yields a `Record` a round.

    Examples
    --------
    >>> import pyro, torch, bayesgen as bg
    >>> import pyro.distributions as dist
    >>> G = bg.models.load("mnist-vae-8")
    >>> def model(A, y=None):
    ...     z = pyro.sample("z", G.prior())
    ...     x = pyro.deterministic("x", G(z))
    ...     pyro.sample("y", dist.Normal(A(x), 0.1).to_event(1), obs=y)
    >>> pool = bg.design.Pool.pixels((28, 28))
    >>> measure = bg.design.simulate(pool, G(torch.ones(8)), noise=0.1)
    >>> run = acquire(model, pool, measure, acquisition="variance", budget=20, batch=10, draws=32)
    >>> [len(record.chosen) for record in run]
    [10, 10]
    >>> run.outcome
    'budget spent'
    """
    if not callable(measure):
        raise OptionError(
            f"measure: got {type(measure).__name__}; expected a function of a list of candidates"
        )
    return Loop(model, pool, measure, **settings)


def _as_budget(budget: float, pool: Pool) -> float:
    check_positive("budget", budget)
    total = float(pool.costs.sum())
    if pool._movement is None and budget > total * (1 + _ROUNDING):
        raise OptionError(
            f"budget: got {budget:g}, but measuring all of the pool costs {total:g} only"
        )
    return float(budget)


def _as_noise(noise: float | Tensor | None, pool: Pool) -> Tensor | None:
    if noise is None:
        return None
    values, shape = torch.as_tensor(noise), (pool.num_candidates, *pool.value_shape)
    try:
        values = values.expand(shape)
    except RuntimeError:
        raise ShapeError(
            f"noise: expected something that broadcasts to {shape}, got {tuple(values.shape)}"
        ) from None
    if not bool((values > 0).all()) or not bool(torch.isfinite(values).all()):
        raise OptionError("noise: expected positive finite standard deviations")
    return values.reshape(pool.num_candidates, pool.num_numbers)


def _as_sampler(method: str | Method) -> Method:
    found = as_method(method)
    if isinstance(found, Optimiser):
        raise OptionError(
            f"method: {found.name!r} finds optima, which say nothing of what is uncertain; "
            "expected a sampler"
        )
    return found
