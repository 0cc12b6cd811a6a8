from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.inference import HMC, MAP
from bayesgen.progress import progress_monitor


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    """Within it the error stream is a terminal (a fixture would be undone by pytest's capture)."""
    with contextlib.redirect_stderr(Terminal()) as stream:
        yield stream


def test_a_sampler_shows_its_phases() -> None:
    with terminal() as stream:
        bg.infer(model, torch.zeros(2), draws=20, warmup=10)
    text = stream.getvalue()
    assert "hmc, 4 chains: warm-up: 100%" in text
    assert "hmc, 4 chains: sampling: 100%" in text
    assert "20/20" in text
    assert "accept=" in text
    assert "divergent=" in text


def test_an_optimiser_shows_its_objective() -> None:
    with terminal() as stream:
        bg.infer(model, torch.zeros(3, 2), method="map", chains=2, batched=True)
    text = stream.getvalue()
    assert "map, 2 chains x 3 problems: optimising" in text
    assert "converged=" in text


def test_there_is_no_bar_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    bg.infer(model, torch.zeros(2), draws=5, warmup=5)
    assert capfd.readouterr() == ("", "")


def test_there_is_no_bar_if_none_is_wanted() -> None:
    with terminal() as stream:
        bg.infer(model, torch.zeros(2), draws=5, warmup=5, progress=False)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("method", [HMC(), MAP()])
def test_a_bar_does_not_change_the_draws(method: Any) -> None:
    sizes = {} if isinstance(method, MAP) else {"draws": 5, "warmup": 5}
    with terminal():
        runs = [
            bg.infer(model, torch.ones(2), method=method, progress=show, **sizes)
            for show in (True, False)
        ]
    assert torch.equal(runs[0].draws("z"), runs[1].draws("z"))


def test_the_bar_is_closed_when_a_run_fails() -> None:
    with (
        terminal() as stream,
        pytest.raises(RuntimeError),
        progress_monitor(HMC(), 4, None, show=True),
    ):
        raise RuntimeError
    assert stream.getvalue().endswith("\n")
