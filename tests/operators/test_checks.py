"""The checks reject every mistake they are there for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesgen.errors import BayesgenError, DtypeError
from bayesgen.operators import Convolution, GaussianMatrix, Operator, OperatorReport, check_operator


class Right(Operator):
    """A random matrix, which the mutants get wrong in one way each."""

    matrix: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__((3, 4), (12,))
        rng = torch.Generator().manual_seed(5)
        entries = torch.randn(12, 12, generator=rng, dtype=torch.float64)
        self.register_buffer("matrix", entries.to(dtype))

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(-2) @ self.matrix.T

    def _adjoint(self, y: Tensor) -> Tensor:
        x = y @ self.matrix
        return x.reshape(x.shape[:-1] + self.domain_shape)


class ShiftedAdjoint(Right):
    def _adjoint(self, y: Tensor) -> Tensor:
        return super()._adjoint(y).roll(1, -1)


class UnscaledAdjoint(Right):
    """As if domain and range had different weights."""

    def _adjoint(self, y: Tensor) -> Tensor:
        return 1.5 * super()._adjoint(y)


class SlightlyUnscaledAdjoint(Right):
    def _adjoint(self, y: Tensor) -> Tensor:
        return (1 + 1e-4) * super()._adjoint(y)


class AdjointNotTransposed(Right):
    def _adjoint(self, y: Tensor) -> Tensor:
        x = y @ self.matrix.T
        return x.reshape(x.shape[:-1] + self.domain_shape)


class AdjointLosesAPixel(Right):
    def _adjoint(self, y: Tensor) -> Tensor:
        return super()._adjoint(y) * (torch.arange(4) > 0)


class AdjointOfAnotherShape(Right):
    def _adjoint(self, y: Tensor) -> Tensor:
        return super()._adjoint(y).flatten(-2)


class NoGradient(Right):
    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x.detach()) + 0 * x.flatten(-2)


class GradientOfTheAdjointIsWrong(Right):
    def _adjoint(self, y: Tensor) -> Tensor:
        x = super()._adjoint(y)
        return 2 * x - x.detach()


class NotLinear(Right):
    """Linear for bright images only."""

    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x.clamp(min=-1.0))


class Offset(Right):
    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x) + 1.0


class WrongNorm(Right):
    def _norm(self) -> float:
        return float(self.matrix.norm())


class MixesTheBatch(Right):
    def _forward(self, x: Tensor) -> Tensor:
        y = super()._forward(x)
        return y + 1e-3 * y.flatten(0, -2).mean(0) if x.ndim > 2 and len(x) else y


class OneBatchDimension(Right):
    def _forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 12) @ self.matrix.T


class ReadsMemoryNotValues(Right):
    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x.as_strided(x.shape, torch.empty_like(x).contiguous().stride()))


class RefusesTheEmptyBatch(Right):
    def _forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-2], -1) @ self.matrix.T


class ChangesItsInput(Right):
    def _forward(self, x: Tensor) -> Tensor:
        y = super()._forward(x)
        with torch.no_grad():
            x.clamp_(max=0.5)
        return y


class AlwaysSingle(Right):
    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x).float()


class NeedsAlignedMemory(Right):
    """As view_as_complex does."""

    def _forward(self, x: Tensor) -> Tensor:
        if x.storage_offset() % 2:
            raise RuntimeError("Tensor must have a storage_offset divisible by 2")
        return super()._forward(x)


class EmptyBatchLosesTheGraph(Right):
    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x) if x.numel() else x.new_zeros(*x.shape[:-2], 12)


MUTANTS: dict[type[Right], str] = {
    ShiftedAdjoint: "adjoint",
    UnscaledAdjoint: "adjoint",
    SlightlyUnscaledAdjoint: "adjoint",
    AdjointNotTransposed: "adjoint",
    AdjointLosesAPixel: "adjoint",
    AdjointOfAnotherShape: "shapes",
    NoGradient: "differences",
    GradientOfTheAdjointIsWrong: "gradient",
    NotLinear: "linearity",
    Offset: "linearity",
    WrongNorm: "norm",
    MixesTheBatch: "batches",
    OneBatchDimension: "batches",
    ReadsMemoryNotValues: "batches",
    RefusesTheEmptyBatch: "batches",
    ChangesItsInput: "shapes",
    NeedsAlignedMemory: "batches",
    EmptyBatchLosesTheGraph: "batches",
}


def _failed(report: OperatorReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_operator_passes(dtype: torch.dtype) -> None:
    report = check_operator(Right(dtype))
    report.raise_if_failed()
    assert report.passed
    assert len(report.checks) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_rejected(mutant: Callable[[torch.dtype], Operator], dtype: torch.dtype) -> None:
    report = check_operator(mutant(dtype))
    assert MUTANTS[mutant] in _failed(report)
    assert not report.passed
    with pytest.raises(BayesgenError, match=f"FAILED +{MUTANTS[mutant]}"):
        report.raise_if_failed()


def test_wrong_dtype_is_rejected() -> None:
    report = check_operator(AlwaysSingle())
    assert "dtype of A(x) is torch.float32, expected torch.float64" in str(report)


def test_factor_of_weighted_inner_products_is_found() -> None:
    report = check_operator(UnscaledAdjoint())
    assert report.adjoint_scale == pytest.approx(1 / 1.5)
    (adjoint,) = (check for check in report.checks if check.name == "adjoint")
    assert adjoint.note.startswith("<A x, y> = 0.666667 <x, A* y> fits best, to ")
    assert float(adjoint.note.rsplit(maxsplit=1)[1]) < 1e-14


def test_report_reads_well() -> None:
    text = str(check_operator(GaussianMatrix((3, 4), rows=5)))
    assert text.startswith("GaussianMatrix: (3, 4) -> (5,), torch.float32 on cpu\n")
    assert text.count("\n  ok ") == 8


def test_operator_is_left_alone() -> None:
    A = Right()
    check_operator(A, dtype=torch.float32)
    assert A.matrix.dtype == torch.float64
    assert A.matrix.grad is None


def test_what_is_no_operator_is_refused() -> None:
    with pytest.raises(DtypeError, match=r"expected an Operator, got Convolution; .* given\(x\)"):
        check_operator(Convolution((3, 3), (2, 2)))  # type: ignore[arg-type]


def test_zero_operator_passes() -> None:
    report = check_operator(0 * Right())
    report.raise_if_failed()
    assert "nan" not in str(report)
