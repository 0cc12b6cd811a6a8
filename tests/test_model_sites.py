"""Reading a model: what it finds, whom it blames, and that it leaves no trace behind."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, ModelError
from bayesgen.model_sites import FixedParameters, argument_names, check_finite, isolated, read_model
from bayesgen.traces import elementwise_log_prob

Y = torch.linspace(0, 1, 4)


def model(y: Tensor, scale: float = 1.0) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2, 2), scale).to_event(2))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    pyro.deterministic("x", z.flatten() + w.sum())
    pyro.sample("y", dist.Normal(z.flatten(), 0.5).to_event(1), obs=y)


def test_sites_and_their_places() -> None:
    sites = read_model(model, (Y,), {"scale": 2.0})
    places = {name: (s.start, s.stop, tuple(s.shape)) for name, s in sites.latent.items()}
    assert places == {"z": (0, 4, (2, 2)), "w": (4, 6, (3,))}
    assert sites.num_dims == 6 and sites.prior_is_static
    assert sites.deterministic == {"x": torch.Size([4])}
    assert list(sites.observed) == ["y"] and sites.observed["y"] is Y


def test_isolation_keeps_parameters_and_random_state() -> None:
    with pyro.get_param_store().scope():
        pyro.param("kept", torch.tensor(1.0))
        before = torch.get_rng_state()
        with isolated(3):
            assert "kept" in pyro.get_param_store()
            pyro.param("gone", torch.tensor(2.0))
            torch.randn(5)
        assert list(pyro.get_param_store()) == ["kept"]
        assert torch.equal(torch.get_rng_state(), before)


def test_parameters_keep_their_trained_values() -> None:
    def with_parameter() -> Tensor:
        value: Tensor = pyro.param("a", torch.tensor(1.0))
        return value

    with pyro.get_param_store().scope():
        assert float(FixedParameters()(with_parameter)().detach()) == 1.0
        assert list(pyro.get_param_store()) == []
        pyro.get_param_store()["a"] = torch.tensor(7.0)
        assert float(FixedParameters()(with_parameter)().detach()) == 7.0


def test_elementwise_log_densities_add_up(rng: torch.Generator) -> None:
    with isolated(0):
        trace = pyro.poutine.trace(model).get_trace(Y)
    found = elementwise_log_prob(dict(trace.nodes["y"]))
    assert found.shape == (4,)
    mean = trace.nodes["z"]["value"].flatten()
    torch.testing.assert_close(found, dist.Normal(mean, 0.5).log_prob(Y))


def test_arguments_are_found_by_name_wherever_they_are() -> None:
    def nested(data: dict[str, Tensor], *rest: Tensor) -> None: ...

    found = argument_names(nested, ({"a": Y}, 2 * Y), {})
    assert [name for name, _ in found] == ["data", "rest"]


def test_the_first_bad_value_is_located() -> None:
    bad = torch.zeros(2, 3)
    bad[1, 2] = torch.inf
    bad[1, 1] = torch.nan
    with pytest.raises(DataError, match=r"it: 2 of 6 values .*\(1, 1\)"):
        check_finite("it", bad)


def test_library_frames_are_not_blamed() -> None:
    def fails(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        torch.linalg.cholesky(-torch.eye(3) * z)

    with pytest.raises(ModelError, match=r"in fails\(\), line \d+, `torch.linalg.cholesky"):
        read_model(fails, (Y,), {})
