"""What is checked at the door of every operator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators.inputs import (
    as_constant,
    as_count,
    as_factor,
    as_kernel,
    as_positive,
    as_shape,
    expect_size,
    require_finite,
)


def test_shapes() -> None:
    assert as_shape("shape", [2, np.int64(3)]) == (2, 3)
    for bad in ((), (0, 3), (2, -1), (2.5,), 4, "ab"):
        with pytest.raises(OptionError, match="shape: expected a tuple of positive integers"):
            as_shape("shape", bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3)])
def test_counts(value: Any) -> None:
    assert as_count("rows", value) == 3


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None, torch.tensor(2.0)])
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(OptionError, match="rows: expected a positive integer, got"):
        as_count("rows", value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_positive_numbers(value: Any) -> None:
    assert as_positive("width", value) == 0.5


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "1", None, 1j])
def test_what_is_no_positive_number(value: Any) -> None:
    with pytest.raises(OptionError, match="width: expected a positive number, got"):
        as_positive("width", value)


def test_constants() -> None:
    values = torch.ones(2)
    assert as_constant("kernel", values).data_ptr() == values.data_ptr()
    assert as_constant("kernel", np.arange(3.0)[::-1]).tolist() == [2.0, 1.0, 0.0]
    assert as_constant("kernel", [1.0, 2.0]).dtype == torch.float32
    for variable in (values.clone().requires_grad_(), 2 * values.clone().requires_grad_()):
        with pytest.raises(DtypeError, match="kernel: operators are made of constants"):
            as_constant("kernel", variable)


def test_factors() -> None:
    assert as_factor(torch.tensor(2.0)) == 2.0
    with pytest.raises(DtypeError, match="cannot be scaled by a variable"):
        as_factor(torch.tensor(2.0, requires_grad=True))
    with pytest.raises(OptionError, match="a finite number, got inf"):
        as_factor(math.inf)


def test_kernels() -> None:
    assert as_kernel(np.ones((2, 3))).shape == (2, 3)
    for bad, error in (
        (torch.ones(3), ShapeError),
        (torch.ones(0, 2), ShapeError),
        (torch.ones(2, 2) * 1j, DtypeError),
        (torch.ones(2, 2, dtype=torch.int64), DtypeError),
        (torch.tensor([[math.nan]]), DataError),
    ):
        with pytest.raises(error, match="kernel: "):
            as_kernel(bad)


def test_sizes_and_finiteness() -> None:
    expect_size("domain_shape", (2, 3), 6, "columns")
    with pytest.raises(ShapeError, match=r"domain_shape: \(2, 3\) has 6 entries, but .* 5 columns"):
        expect_size("domain_shape", (2, 3), 5, "columns")
    require_finite("y", torch.ones(2))
    for bad in (math.nan, math.inf):
        with pytest.raises(DataError, match="y: an entry is NaN or infinite"):
            require_finite("y", torch.tensor([1.0, bad]))
