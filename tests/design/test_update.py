"""When particles are led on, and when they begin at the prior again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.design import Loop, Pool, update
from bayesgen.design.update import updated
from bayesgen.errors import ModelError, OptionError, ResultError
from bayesgen.inference import SMC
from bayesgen.posterior import Posterior


class Found:
    """As much of a posterior as is looked at."""

    def __init__(self, temperatures: int = 1, evidence: float | None = 0.0) -> None:
        self.stats = {"temperatures": torch.full((4, 8), temperatures)}
        self.evidence = evidence

    @property
    def log_evidence(self) -> Tensor:
        if self.evidence is None:
            raise ResultError("known up to a constant")
        return torch.full((4,), self.evidence)


def chosen(carried: Found, fresh: Found, method: Any = None) -> list[str]:
    """Where the runs began, and last what became of them."""
    known, runs = Found(), []

    def run(start: Any) -> Found:
        runs.append("carried" if start is known else start)
        return carried if start is known else fresh

    method = method or SMC(alpha=0.7)
    found = updated(cast(Callable[[Any], Posterior], run), cast(Posterior, known), method)
    return [*runs, "carried" if cast(Any, found) is carried else "fresh"]


def test_near_posteriors_are_carried() -> None:
    assert chosen(Found(temperatures=9), Found()) == ["carried", "carried"]


def test_what_is_near_depends_on_how_far_a_temperature_goes() -> None:
    assert chosen(Found(temperatures=7), Found(), SMC(alpha=0.4)) == ["carried", "prior", "fresh"]


@pytest.mark.parametrize(
    ("carried", "fresh", "kept"),
    [
        (0.0, 0.0, "fresh"),
        (2.0, 0.0, "fresh"),
        (5.0, 0.0, "carried"),
        (None, None, "fresh"),
        (None, 0.0, "fresh"),
    ],
)
def test_far_posteriors_begin_anew_unless_their_evidence_is_lower(
    carried: float | None, fresh: float | None, kept: str
) -> None:
    found = chosen(Found(20, carried), Found(20, fresh))
    assert found == ["carried", "prior", kept]


def test_chains_and_what_does_not_begin_at_the_prior() -> None:
    far = Found(temperatures=50)
    assert chosen(far, Found(), bg.inference.HMC()) == ["carried", "carried"]
    assert chosen(far, Found(), bg.inference.Variational()) == ["prior", "fresh"]


def test_what_cannot_be_carried_begins_at_the_prior() -> None:
    def run(start: Any) -> Any:
        if start != "prior":
            raise OptionError("start: other supports")
        return start

    with pytest.warns(RuntimeWarning, match="cannot be carried on.*other supports"):
        assert cast(Any, updated(run, cast(Posterior, Found()), SMC())) == "prior"


def test_a_prior_that_explains_nothing_leaves_what_was_carried() -> None:
    known, far = Found(), Found(temperatures=50)

    def run(start: Any) -> Any:
        if start == "prior":
            raise ModelError("the likelihood is zero")
        return far

    assert cast(Any, updated(run, cast(Posterior, known), SMC())) is far


def flipping(A: bg.operators.Operator, y: Tensor | None = None) -> None:
    """Two wells; its first number, and more so its third, tell which is the right one."""
    z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    x = pyro.deterministic("x", torch.cat([z, 3.0 * z.abs(), 3.0 * z]))
    pyro.sample("y", dist.Normal(A(x), 0.05).to_event(1), obs=y)


@pytest.mark.parametrize("given_up", [True, False])
def test_a_mode_that_was_lost_is_found_again(
    monkeypatch: pytest.MonkeyPatch, given_up: bool
) -> None:
    """All particles are in one well when a second measurement says that it is the other one.

    The mutant leads them on wherever they come from.
    """
    if not given_up:
        monkeypatch.setattr(update, "_FAR", 1e9)
    loop = Loop(
        flipping,
        Pool.pixels((3,)),
        acquisition=bg.design.FixedOrder([1, 0, 2]),
        budget=3,
        method=SMC(particles=64),
        draws=64,
        chains=1,
    )
    # 0.5 or -0.5; then 0.5; then, more precisely, -0.5.
    for value in (1.5, 0.5, -1.5):
        loop.ask()
        loop.tell(torch.tensor([value]))
    signs = loop.posterior.draws("z").sign().mean()
    assert bool(signs < 0) == given_up


def test_data_that_rule_out_all_particles_begin_at_the_prior() -> None:
    """Counts, of rates that are zero where the first measurement said the particles should be."""

    def counts(A: bg.operators.Operator, y: Tensor | None = None) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Poisson(50.0 * (1.0 + A(x)).relu()).to_event(1), obs=y)

    loop = Loop(
        counts,
        Pool(bg.operators.Matrix(torch.tensor([[1.0], [-1.0]]), (1,))),
        acquisition=bg.design.FixedOrder([0, 1]),
        budget=2,
        method=SMC(particles=64, kernel="pcn"),
        draws=64,
    )
    loop.ask()
    loop.tell(torch.tensor([150.0]))
    loop.ask()
    with pytest.warns(RuntimeWarning, match="begins at the prior.*draws of the earlier posterior"):
        loop.tell(torch.tensor([3.0]))
    assert bool((loop.posterior.draws("x") < 1.0).all())
