"""deepinv's physics as operators."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from bayesgen.errors import DtypeError, ShapeError
from bayesgen.operators import (
    check_operator,
    from_deepinv,
)


class Physics(torch.nn.Module):
    """As deepinv's: images (batch, channel, y, x), no empty batches."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        mask = (torch.arange(20).reshape(1, 4, 5) % 3 > 0).float()
        self.register_buffer("mask", mask)
        self.scale = scale

    def A(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or not len(x):
            raise ValueError(f"expected (batch, channel, y, x), got {tuple(x.shape)}")
        return self.mask * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.scale * self.A(y)


class Saturating(torch.nn.Module):
    def A(self, x: Tensor) -> Tensor:
        return x.tanh()


class Several(torch.nn.Module):
    def A(self, x: Tensor) -> list[Tensor]:
        return [x, x]


class TestDeepinv:
    def test_linear_physics(self) -> None:
        A = from_deepinv(Physics(), (1, 4, 5))
        for dtype in (torch.float32, torch.float64):
            check_operator(A, dtype=dtype).raise_if_failed()
        assert "from_deepinv(Physics)" in str(A)

    def test_a_scaled_adjoint_is_found(self) -> None:
        report = check_operator(from_deepinv(Physics(scale=0.5), (1, 4, 5)))
        assert not report.passed
        assert report.adjoint_scale == pytest.approx(2.0)

    def test_nonlinear_physics(self) -> None:
        A = from_deepinv(Saturating(), (1, 4, 5))
        assert not A.linear
        check_operator(A).raise_if_failed()

    def test_bad_input(self) -> None:
        with pytest.raises(DtypeError, match="expected a deepinv Physics, got Identity"):
            from_deepinv(torch.nn.Identity(), (2,))
        with pytest.raises(ShapeError, match=r"Physics does not take images \(4, 5\): expected"):
            from_deepinv(Physics(), (4, 5))
        with pytest.raises(DtypeError, match="one real tensor, got list"):
            from_deepinv(Several(), (1, 4, 5))

    @pytest.mark.skipif(find_spec("deepinv") is None, reason="needs deepinv")
    def test_their_own(self) -> None:
        try:
            import deepinv
        except RuntimeError as error:  # its torchvision may be built for another torch
            pytest.skip(f"deepinv cannot be imported: {error}")
        A = from_deepinv(deepinv.physics.Inpainting((1, 6, 5), mask=0.5), (1, 6, 5))
        check_operator(A).raise_if_failed()
