"""Guards: a test that leaves global state changed fails."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def global_state_is_untouched() -> Iterator[None]:
    """The package may read none of the process's global state and change none of it."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch_rng = torch.get_rng_state()
    numpy_rng = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    options, params = np.get_printoptions(), dict(pyro.get_param_store())
    yield
    assert torch.get_default_dtype() is dtype, "the default dtype was changed"
    assert torch.get_num_threads() == threads, "the number of threads was changed"
    assert torch.equal(torch.get_rng_state(), torch_rng), "torch's global RNG was disturbed"
    now = np.random.get_state()[1]  # type: ignore[index]
    assert np.array_equal(now, numpy_rng), "numpy's global RNG was disturbed"
    assert np.get_printoptions() == options, "numpy's print options were changed"
    assert dict(pyro.get_param_store()) == params, "Pyro's parameter store was changed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log densities are recorded as graphs at once, however rarely they are evaluated."""
    monkeypatch.setattr("bayesgen.log_density.RECORD_AFTER", 0)


@pytest.fixture
def rng() -> torch.Generator:
    """A fresh, seeded generator."""
    return torch.Generator().manual_seed(0)
