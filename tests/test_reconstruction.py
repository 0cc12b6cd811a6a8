"""The baselines against closed forms, optimality conditions, and another solver."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import (
    Blur,
    GaussianMatrix,
    Gradient,
    Identity,
    Mask,
    Nonlinear,
    Operator,
    gaussian_kernel,
)
from bayesgen.reconstruction import tikhonov, total_variation


def _matrix(seed: int = 0) -> GaussianMatrix:
    return GaussianMatrix((6, 5), 17, seed=seed, dtype=torch.float64)


def _data(A: Operator, rng: torch.Generator, *batch: int) -> Tensor:
    return torch.randn(*batch, *A.range_shape, generator=rng, dtype=torch.float64)


def _objective(A: Operator, D: Operator, x: Tensor, y: Tensor, weight: Any) -> Tensor:
    misfit = (A(x) - y).square().flatten(x.ndim - 2).sum(-1)
    return misfit + weight * D(x).norm(dim=-3).sum((-2, -1))


class TestTikhonov:
    def test_closed_form(self, rng: torch.Generator) -> None:
        A = _matrix()
        y, weights = _data(A, rng, 3), torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
        found = tikhonov(A, y, weights)
        for k in range(3):
            normal = A.matrix.T @ A.matrix + weights[k] * torch.eye(30, dtype=torch.float64)
            exact = torch.linalg.solve(normal, A.matrix.T @ y[k]).reshape(6, 5)
            assert torch.allclose(found[k], exact, atol=1e-7)
            assert not torch.allclose(tikhonov(A, y[k], 2 * float(weights[k])), exact, atol=1e-3)

    @pytest.mark.parametrize("unit", [1e-25, 1e20])
    def test_data_of_any_unit(self, unit: float, rng: torch.Generator) -> None:
        A = _matrix().float()
        y = _data(A, rng, 2).float()
        y[1] = 0.0
        found = tikhonov(A, unit * y, 0.1)
        assert torch.allclose(found / unit, tikhonov(A, y, 0.1), atol=1e-5)

    def test_with_a_penalty(self, rng: torch.Generator) -> None:
        A, D = _matrix(), Gradient((6, 5))
        y = _data(A, rng)
        found = tikhonov(A, y, 0.3, penalty=D)
        slope = A.adjoint(A(found) - y) + 0.3 * D.adjoint(D(found))
        assert float(slope.norm()) < 1e-6 * float(A.adjoint(y).norm())

    def test_is_the_posterior_mean(self, rng: torch.Generator) -> None:
        """Of x ~ N(0, tau^2), y ~ N(A x, sigma^2), with weight sigma^2 / tau^2."""
        A, sigma, tau = _matrix(), 0.3, 2.0
        y = _data(A, rng)
        gain = torch.linalg.inv(A.matrix @ A.matrix.T * tau**2 + sigma**2 * torch.eye(17))
        mean = (tau**2 * A.matrix.T @ gain @ y).reshape(6, 5)
        assert torch.allclose(tikhonov(A, y, sigma**2 / tau**2), mean, atol=1e-7)

    def test_batches(self, rng: torch.Generator) -> None:
        A = _matrix()
        y = _data(A, rng, 2, 3)
        together = tikhonov(A, y, 0.1)
        assert together.shape == (2, 3, 6, 5)
        assert torch.allclose(together[1, 2], tikhonov(A, y[1, 2], 0.1), atol=1e-10)
        assert tikhonov(A, y[:0], 0.1).shape == (0, 3, 6, 5)
        sweep = tikhonov(A, y[:, :, None], torch.tensor([0.1, 1.0]))
        assert sweep.shape == (2, 3, 2, 6, 5)
        assert torch.allclose(sweep[:, :, 0], together, atol=1e-8)
        assert tikhonov(A.float(), y.float(), 0.1).dtype == torch.float32

    def test_too_few_steps_are_reported(self, rng: torch.Generator) -> None:
        A = _matrix()
        with pytest.warns(RuntimeWarning, match="tikhonov: 2 of 2 problems did not converge in 3"):
            tikhonov(A, _data(A, rng, 2), 1e-3, max_steps=3)


class TestTotalVariation:
    def test_closed_form_in_one_dimension(self) -> None:
        """The steps of a row move towards each other by weight / (2 * pixels on their side)."""
        y = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)
        found = total_variation(Identity((1, 5)), y, 0.6, tolerance=1e-8)
        exact = torch.tensor([[0.1, 0.1, 0.1, 1.85, 1.85]], dtype=torch.float64)
        assert torch.allclose(found, exact, atol=1e-6)
        # And meet in the mean when the weight is large.
        flat = total_variation(Identity((1, 5)), y, 6.0, tolerance=1e-8)
        assert torch.allclose(flat, torch.full((1, 5), 0.8, dtype=torch.float64), atol=1e-6)

    @pytest.mark.parametrize("boundary", ["zero", "periodic", "reflect"])
    @pytest.mark.parametrize("kind", ["matrix", "blur", "mask"])
    def test_nothing_near_is_better(self, boundary: Any, kind: str, rng: torch.Generator) -> None:
        A = {
            "matrix": _matrix(),
            "blur": Blur((6, 5), gaussian_kernel(3, 1.0, dtype=torch.float64)),
            "mask": Mask(torch.arange(30).reshape(6, 5) % 3 > 0),
        }[kind]
        D, y, weight = Gradient((6, 5), boundary), _data(A, rng), 0.4
        x = total_variation(A, y, weight, boundary=boundary, tolerance=1e-5, max_steps=50_000)
        least = _objective(A, D, x, y, weight)
        for size in (1e-1, 1e-2, 1e-3):
            moves = size * torch.randn(200, 6, 5, generator=rng, dtype=torch.float64)
            assert (_objective(A, D, x + moves, y, weight) >= least * (1 - 1e-7)).all()
        # The objective is far lower than at the minimiser for another weight.
        other = total_variation(A, y, 2 * weight, boundary=boundary, max_steps=50_000)
        assert _objective(A, D, other, y, weight) > least * (1 + 1e-4)

    def test_dual_certificate(self, rng: torch.Generator) -> None:
        """For denoising, the dual objective of a feasible q bounds the minimum from below."""
        y = torch.randn(8, 9, generator=rng, dtype=torch.float64)
        weight, D = 0.7, Gradient((8, 9))
        x = total_variation(Identity((8, 9)), y, weight, tolerance=1e-7, max_steps=50_000)
        least = float(_objective(Identity((8, 9)), D, x, y, weight))
        q = torch.zeros(2, 8, 9, dtype=torch.float64)
        for _ in range(3000):  # projected ascent of the dual objective
            q = q + 0.2 * D(y - D.adjoint(q) / 2)
            q = q / (q.norm(dim=0, keepdim=True) / weight).clamp(min=1)
        dual = float((D.adjoint(q) * y).sum() - D.adjoint(q).square().sum() / 4)
        assert dual <= least <= dual * (1 + 1e-5)
        other = total_variation(Identity((8, 9)), y, 1.1 * weight, tolerance=1e-7)
        assert _objective(Identity((8, 9)), D, other, y, weight) > dual * (1 + 1e-5)

    def test_bounds(self, rng: torch.Generator) -> None:
        A = _matrix()
        y = _data(A, rng, 2)
        x = total_variation(A, y, 0.05, bounds=(0.0, 0.5), tolerance=1e-6, max_steps=50_000)
        assert x.min() >= 0 and x.max() <= 0.5
        D = Gradient((6, 5))
        least = _objective(A, D, x, y, 0.05)
        moves = 0.01 * torch.randn(200, 1, 6, 5, generator=rng, dtype=torch.float64)
        moved = (x + moves).clamp(0.0, 0.5)
        assert (_objective(A, D, moved, y, 0.05) >= least * (1 - 1e-8)).all()

    def test_batches_and_sweeps(self, rng: torch.Generator) -> None:
        A, options = _matrix(), {"tolerance": 1e-6, "max_steps": 50_000}
        y = _data(A, rng, 3)
        together = total_variation(A, y, 0.1, **options)
        assert torch.allclose(together[2], total_variation(A, y[2], 0.1, **options), atol=1e-4)
        sweep = total_variation(A, y[:, None], torch.tensor([0.1, 1.0]), **options)
        assert sweep.shape == (3, 2, 6, 5)
        assert torch.allclose(sweep[:, 0], together, atol=1e-4)
        assert total_variation(A, y[:0], 0.1).shape == (0, 6, 5)

    def test_channels_share_edges(self) -> None:
        """The gradient's length is taken over directions, for each channel on its own."""
        y = torch.zeros(2, 1, 4, dtype=torch.float64)
        y[0, 0, 2:] = 1.0
        x = total_variation(Identity((2, 1, 4)), y, 0.4, tolerance=1e-8)
        assert torch.allclose(x[1], torch.zeros(1, 4, dtype=torch.float64), atol=1e-6)
        assert torch.allclose(x[0, 0, :2], torch.tensor([0.1, 0.1]).double(), atol=1e-6)

    @pytest.mark.parametrize("unit", [1e-6, 1e6])
    def test_units_change_nothing(self, unit: float, rng: torch.Generator) -> None:
        A = _matrix()
        y = _data(A, rng)
        found = total_variation(unit * A, unit * y, unit**2 * 0.1, tolerance=1e-6)
        assert torch.allclose(found, total_variation(A, y, 0.1, tolerance=1e-6), atol=1e-5)

    def test_zero_operator(self) -> None:
        A = 0 * Identity((3, 3))
        assert torch.equal(total_variation(A, torch.ones(3, 3), 0.1), torch.zeros(3, 3))

    def test_too_few_steps_are_reported(self, rng: torch.Generator) -> None:
        A = _matrix()
        with pytest.warns(RuntimeWarning, match="total_variation: 2 of 2 problems did not conv"):
            total_variation(A, _data(A, rng, 2), 1e-3, max_steps=5)

    @pytest.mark.skipif(find_spec("odl") is None, reason="needs ODL")
    def test_odl_finds_the_same(self, rng: torch.Generator) -> None:
        from bayesgen.operators import to_odl
        from bayesgen.operators.odl_adapter import import_odl

        odl = import_odl()
        A, weight = _matrix(), 0.2
        y = _data(A, rng)
        found = total_variation(A, y, weight, boundary="zero", tolerance=1e-7, max_steps=50_000)
        theirs = to_odl(A)
        gradient = odl.Gradient(theirs.domain, pad_mode="constant")
        misfit = odl.functionals.L2NormSquared(theirs.range).translated(
            theirs.range.element(y.numpy())
        )
        tv = weight * odl.functionals.GroupL1Norm(gradient.range)
        both = odl.BroadcastOperator(theirs, gradient)
        norm = 1.1 * float(np.hypot(A.norm(), Gradient((6, 5), "zero").norm()))
        x = theirs.domain.zero()
        odl.solvers.pdhg(
            x,
            odl.functionals.ZeroFunctional(theirs.domain),
            odl.functionals.SeparableSum(misfit, tv),
            both,
            niter=1500,
            tau=1 / norm,
            sigma=1 / norm,
        )
        assert np.allclose(x.asarray(), found, atol=1e-3)


@pytest.mark.parametrize("method", [tikhonov, total_variation])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 2), torch.ones(4), 1.0), DtypeError, "A: expected an Operator, got Tensor"),
        ((Nonlinear(torch.sin, (2, 2)), torch.ones(2, 2), 1.0), OptionError, "is not linear"),
        ((Identity((2, 2)), torch.ones(3, 2), 1.0), ShapeError, r"y must have shape \(\*batch, 2"),
        ((Identity((2, 2)), torch.ones(2, 2) * torch.nan, 1.0), DataError, "y: an entry is NaN"),
        ((Identity((2, 2)), torch.ones(2, 2), 0.0), OptionError, "weight: expected positive"),
        ((Identity((2, 2)), torch.ones(2, 2), torch.inf), OptionError, "weight: expected positive"),
        (
            (Identity((2, 2)), torch.ones(3, 2, 2), torch.ones(4)),
            ShapeError,
            r"weight: shape \(4,\) does not broadcast against the batch \(3,\) of y",
        ),
    ],
)
def test_bad_input(method: Any, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        method(*arguments)


def test_bad_options() -> None:
    A, y = Identity((2, 2)), torch.ones(2, 2)
    with pytest.raises(OptionError, match=r"bounds: expected \(smallest, largest\), got \(1, 0\)"):
        total_variation(A, y, 1.0, bounds=(1, 0))
    for bounds in [(0,), (0, 1, 2), ("a", "b"), 5, (torch.nan, 1)]:
        with pytest.raises(OptionError, match=r"bounds: expected \(smallest, largest\), got"):
            total_variation(A, y, 1.0, bounds=bounds)  # type: ignore[arg-type]
    assert total_variation(A, -y, 0.1, bounds=(0, None)).abs().max() == 0
    for method in (tikhonov, total_variation):
        for weight in ("a", None, 1 + 1j, True):
            with pytest.raises(DtypeError, match="weight: expected"):
                method(A, y, weight)  # type: ignore[arg-type]
        for tolerance in (0.0, -1.0, torch.nan):
            with pytest.raises(OptionError, match="tolerance: expected a positive number, got"):
                method(A, y, 1.0, tolerance=tolerance)
        for steps in (0, -1, 10.5, "a"):
            with pytest.raises(OptionError, match="max_steps: expected a positive integer, got"):
                method(A, y, 1.0, max_steps=steps)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="boundary: unknown value 'wrap'"):
        total_variation(A, y, 1.0, boundary="wrap")  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="penalty: expected an Operator, got int"):
        tikhonov(A, y, 1.0, penalty=3)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"penalty: takes \(3, 2\), but images have shape \(2, 2"):
        tikhonov(A, y, 1.0, penalty=Gradient((3, 2)))
