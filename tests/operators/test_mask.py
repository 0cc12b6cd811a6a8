from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.errors import DtypeError, OptionError
from bayesgen.operators import Mask


def test_mask_keeps_and_puts_back() -> None:
    rng = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 7, generator=rng) > 0.5
    x = torch.rand(3, 5, 7, generator=rng)
    A = Mask(mask)
    assert torch.equal(A(x), x[:, mask])
    assert torch.equal(A.adjoint(A(x)), x * mask)
    assert A.norm() == 1.0
    assert torch.equal(A[[3, 1]](x), x[:, mask][:, [3, 1]])
    assert torch.equal(Mask(mask.numpy())(x), A(x))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(2, 3) > 0, OptionError, r"keeps none of the pixels of shape \(2, 3\)"),
        (np.zeros((0, 3), dtype=bool), OptionError, r"keeps none of the pixels of shape \(0, 3\)"),
        (torch.ones(2, 3), DtypeError, "expected booleans, got torch.float32; compare first"),
        ([[0, 1]], DtypeError, "expected booleans, got torch.int64"),
    ],
)
def test_bad_masks(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Mask(mask)
