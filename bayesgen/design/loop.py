"""The loop: what is believed chooses what is measured, and what is measured changes the belief."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesgen.design.acquisitions import as_acquisition
from bayesgen.design.base import ROUNDING, Acquisition, Choice
from bayesgen.design.belief import Belief
from bayesgen.design.model import check_data, check_model, prior_posterior
from bayesgen.design.pool import Pool
from bayesgen.design.records import Record, read_loop, write_loop
from bayesgen.design.settings import (
    as_budget,
    as_initial,
    as_noise,
    as_path,
    as_sampler,
    as_values,
)
from bayesgen.design.update import updated
from bayesgen.errors import OptionError, SamplingError
from bayesgen.infer import check_budget, generator_of, infer
from bayesgen.inference import SMC, Method
from bayesgen.posterior import Posterior
from bayesgen.types import check_count, check_positive, strict_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measure = Callable[[list[int]], Any]


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
        one posterior to the next, unless new data come as such a surprise that they must begin at
        the prior. Chains of other samplers start at the last draws.
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
        File that is written after each choice and each round. If it exists, the loop continues
        from it.

    Raises
    ------
    ModelError, ShapeError, DtypeError, DataError, OptionError
        If the model does not follow the operator or has no such site, the budget exceeds the pool,
        the acquisition function needs ``noise``, or an option is out of range.
    FileFormatError
        If the checkpoint is of a loop with another pool, seed, site or model. Acquisition function,
        budget, batch and target may have changed.

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
        generator_of(seed)
        self.model, self.pool, self.measure = model, pool, measure
        self.acquisition = as_acquisition(acquisition)
        self.budget, self.batch, self.site = as_budget(budget, pool), batch, site
        self.target, self.fresh, self.seed = target, fresh, seed
        self._noise = as_noise(noise, pool)
        if self._noise is None and self.acquisition.needs_noise:
            raise OptionError(
                f"noise: {self.acquisition.name!r} weighs what is expected against the noise; give "
                "the standard deviation of the measurements"
            )
        self._ever = self.acquisition.may_choose(pool.num_candidates)
        self._chains, self._draws, self._warmup = chains, draws, warmup
        self.method = as_sampler(SMC(particles=max(draws, 16)) if method is None else method)
        check_budget(self.method, chains, draws, warmup)
        self._initial = as_initial(initial, pool, self.budget)
        # Shows dtype and device of the data.
        self._example = check_model(model, pool, site)
        self.measured: list[int] = []
        self.values: Tensor | None = None
        self.records: list[Record] = []
        self._pending: Choice | None = None
        self._choosing = 0.0
        self._posterior: Posterior | None = None
        # Whether what was measured last has not come to the posterior yet, and how often that
        # failed.
        self._behind, self._failures = False, 0
        self.checkpoint = None if checkpoint is None else as_path(checkpoint)
        if self.checkpoint is not None and self.checkpoint.exists():
            read_loop(self, self.checkpoint)

    def __repr__(self) -> str:
        state = self.outcome or f"{self.spent:g} of {self.budget:g} spent"
        return f"Loop({self.acquisition!r} from {self.pool!r}, {len(self.records)} rounds: {state})"

    # ------------------------------------------------------------------ what is known

    @property
    def posterior(self) -> Posterior:
        """Given all that was measured; before that, draws of the prior."""
        self._catch_up()
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
    def spent(self) -> float:
        """What all measurements so far have cost."""
        return self.pool.cost_of(self.measured)

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
        if self._initial and not self.measured:
            return None
        left &= self._ever
        if not bool(left.any()):
            return "order exhausted"
        costs = self.pool.costs_from(self.measured[-1] if self.measured else None)
        if float(costs[left].min()) > self.budget * (1 + ROUNDING) - self.spent:
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
        self._catch_up()
        if self._pending is None:
            if self.outcome is not None:
                raise OptionError(f"loop: {self.outcome}; there is nothing left to ask")
            clock = time.perf_counter()
            self._pending = self._choose()
            self._choosing = time.perf_counter() - clock
            # Another day must find the same question.
            self._keep()
        return list(self._pending.indices)

    def tell(self, values: Any, candidates: Sequence[int] | None = None) -> Record:
        """Take the data of the candidates asked for, ``(k, *pool.value_shape)``, and learn.

        Complex data are taken for the real and imaginary parts that the operator gives.

        Parameters
        ----------
        values
            The data, in the order in which candidates were asked for.
        candidates
            What was measured, to make sure that it is what was asked for; not needed.

        Raises
        ------
        OptionError
            If nothing was asked for, or something else was.
        ShapeError, DtypeError, DataError
            If the data have another shape, or are not finite numbers; the loop waits for others.
        """
        if self._behind:
            raise OptionError(
                f"loop: the data of {self._last_chosen} are known, but the posterior failed to "
                "follow; ask() tries again, withdraw() takes them back"
            )
        if self._pending is None:
            raise OptionError("loop: no candidates have been asked for; call ask() first")
        chosen = self._pending.indices
        if candidates is not None and [int(i) for i in candidates] != chosen:
            raise OptionError(f"candidates: got {list(candidates)}, but {chosen} were asked for")
        new = as_values(values, chosen, self.pool).to(self._example)
        self.values = new if self.values is None else torch.cat([self.values, new])
        self.measured = [*self.measured, *chosen]
        self._behind = True
        self._catch_up()
        return self.records[-1]

    def withdraw(self) -> list[int]:
        """Take back the data told last, to which the posterior failed to follow.

        Returns
        -------
        list of int
            The candidates to measure again.

        Raises
        ------
        OptionError
            If the posterior knows all data: then there is nothing to take back.
        """
        if not self._behind:
            raise OptionError("loop: the posterior has followed all data; nothing is taken back")
        count = len(self._last_chosen)
        assert self.values is not None
        self.measured, values = self.measured[:-count], self.values[:-count]
        self.values = values if self.measured else None
        self._behind = False
        self._keep()
        return self.ask()

    def __iter__(self) -> Iterator[Record]:
        """Measure and learn until the end, a record a round.

        After an error of ``measure``, iterate again: the same candidates are measured once more.
        """
        if self.measure is None:
            raise OptionError("measure: the loop has none; use ask() and tell(), or give one")
        if self._behind:
            self._catch_up()
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

    @property
    def _last_chosen(self) -> list[int]:
        return [] if self._pending is None else list(self._pending.indices)

    def _keep(self) -> None:
        if self.checkpoint is not None:
            write_loop(self, self.checkpoint)

    def _catch_up(self) -> None:
        """Bring the posterior and the records up to what was measured."""
        if not self._behind:
            return
        try:
            self._update()
        except SamplingError:
            # The same seed would fail again.
            self._failures += 1
            raise
        finally:
            self._keep()

    def _update(self) -> None:
        clock = time.perf_counter()
        operator, y = self.data
        check_data(self.model, operator, y)
        known = self._posterior if self.records and not self.fresh else None
        run = functools.partial(self._inferred, operator, y)
        posterior = updated(run, known, self.method)
        if posterior.attributes.get("interrupted"):
            raise KeyboardInterrupt
        mean, std = posterior.mean(self.site), posterior.std(self.site)
        choice = self._pending
        assert choice is not None
        record = Record(
            round=len(self.records),
            chosen=tuple(choice.indices),
            scores=choice.scores.detach().cpu(),
            spent=self.spent,
            uncertainty=float(std.double().square().mean().sqrt()),
            mean=mean,
            std=std,
            seconds_choosing=self._choosing,
            seconds_updating=time.perf_counter() - clock,
        )
        self.records.append(record)
        self._posterior, self._pending, self._behind = posterior, None, False

    def _inferred(self, operator: Any, y: Tensor, start: Any) -> Posterior:
        return infer(
            self.model,
            operator,
            y,
            method=self.method,
            start=start,
            seed=self._seed_of(2 * len(self.records) + 2) + self._failures,
            progress=False,
            chains=self._chains,
            draws=self._draws,
            warmup=self._warmup,
        )

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
