from __future__ import annotations

import torch

from bayesgen.operators import Identity


def test_identity_and_its_norm() -> None:
    A = Identity((3, 2))
    x = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(A(x), x)
    assert torch.equal(A.adjoint(x), x)
    assert A.norm() == 1.0
