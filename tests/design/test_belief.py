"""What is believed: moments, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError


def test_moments(problem: Any) -> None:
    linear = problem(n=4, q=3)
    belief = linear.belief
    mean = (linear.matrix @ linear.images.mean(0)[:, None])[..., 0]
    torch.testing.assert_close(belief.mean, mean)
    rows = linear.matrix.flatten(0, 1)
    factor = belief.centred.flatten(1)
    torch.testing.assert_close(factor.T @ factor, rows @ linear.covariance @ rows.T)
    assert (belief.num_draws, belief.num_candidates, belief.num_numbers) == (12, 4, 3)
    assert belief.last is None
    values = torch.zeros(2, 3)
    assert linear.but(measured=(2, 0), values=values).last == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": torch.zeros(12, 4)}, r"data: .*got \(12, 4\)"),
        ({"data": torch.zeros(12, 0, 3)}, r"data: .*got \(12, 0, 3\)"),
        ({"images": torch.zeros(3, 5)}, r"images: expected 12 draws.*\(3, 5\)"),
        ({"noise": torch.ones(4)}, r"noise: expected shape \(4, 3\), got \(4,\)"),
        ({"available": torch.ones(3, dtype=torch.bool)}, r"available: expected shape \(4,\)"),
        ({"measured": (1,)}, r"values: expected shape \(1, 3\), got \(0, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(problem: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        problem(n=4, q=3).but(**changes)


def test_other_mistakes_are_named(problem: Any) -> None:
    linear = problem(n=4)
    with pytest.raises(DtypeError, match="available: expected booleans"):
        linear.but(available=torch.ones(4))
    with pytest.raises(DataError, match="data: those of posterior draw 2 are not finite"):
        data = linear.belief.data.clone()
        data[2, 1] = float("nan")
        linear.but(data=data)
    with pytest.raises(OptionError, match="images: one posterior draw"):
        _ = linear.but(images=linear.images[:1], data=linear.belief.data[:1]).centred
    with pytest.raises(OptionError, match="noise: this acquisition"):
        _ = linear.but(noise=None).positive_noise
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="noise: expected positive"):
            _ = linear.but(noise=torch.full((4, 1), value)).positive_noise
