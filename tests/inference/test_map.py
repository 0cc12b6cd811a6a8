"""MAP through a Pyro model: the mode of the sites' own density."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen import infer
from bayesgen.errors import OptionError
from bayesgen.inference import MAP
from bayesgen.inference.solvers import SOLVERS

Y = torch.tensor([0.5, 0.2, 1.0], dtype=torch.float64)


def gamma_model(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0))
    pyro.sample("y", dist.Exponential(rate).expand([3]).to_event(1), obs=y)


@pytest.mark.parametrize("solver", ["auto", *(s for s in SOLVERS if s != "levenberg-marquardt")])
def test_the_mode_is_that_of_the_site_not_of_its_transform(solver: str) -> None:
    """Gamma(5, 2.7) has its mode at 4 / 2.7; in log space it would be at 5 / 2.7."""
    method = MAP(solver=solver, max_iterations=3000)
    posterior = infer(gamma_model, Y, method=method, chains=3, progress=False)
    assert float(posterior.mode("rate")) == pytest.approx(4 / 2.7, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "lbgfs"}, "solver: unknown value 'lbgfs'.*did you mean 'lbfgs'"),
        ({"max_iterations": 0}, "max_iterations: got 0"),
        ({"tolerance": 0.0}, "tolerance: got 0.0"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MAP(**settings)  # type: ignore[arg-type]
