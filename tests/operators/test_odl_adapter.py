"""ODL's operators here, and ours there."""

from __future__ import annotations

import builtins
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from bayesgen.errors import DtypeError, MissingPackageError, OptionError, ShapeError
from bayesgen.operators import (
    Blur,
    GaussianMatrix,
    Gradient,
    Identity,
    Nonlinear,
    Radon,
    check_operator,
    from_odl,
    to_odl,
)
from bayesgen.operators.odl_adapter import import_odl

needs_odl = pytest.mark.skipif(find_spec("odl") is None, reason="needs ODL")


@needs_odl
class TestODL:
    @pytest.fixture
    def odl(self) -> Any:
        return import_odl()

    @pytest.fixture
    def weighted(self, odl: Any) -> Any:
        """Cells of area 0.1 * 0.25: its inner product is weighted by 0.025."""
        return odl.uniform_discr([0, 0], [0.5, 1.5], (5, 6), dtype="float64")

    def test_importing_leaves_numpy_alone(self) -> None:
        before = np.get_printoptions()
        import_odl()
        assert np.get_printoptions() == before

    def test_weights_are_divided_out(self, odl: Any, weighted: Any) -> None:
        data = odl.rn(30, weighting=np.linspace(1, 2, 30))
        matrix = np.random.default_rng(0).standard_normal((30, 30))

        class Theirs(odl.Operator):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(weighted, data, linear=True)

            def _call(self, x: Any) -> Any:
                return data.element(matrix @ x.asarray().ravel())

            @property
            def adjoint(self) -> Any:
                weights = data.weighting.array
                return Adjoint(lambda y: matrix.T @ (weights * y) / weighted.weighting.const)

        class Adjoint(odl.Operator):  # type: ignore[misc]
            def __init__(self, function: Any) -> None:
                super().__init__(data, weighted, linear=True)
                self.function = function

            def _call(self, y: Any) -> Any:
                return weighted.element(self.function(y.asarray()).reshape(5, 6))

        A = from_odl(Theirs())
        report = check_operator(A)
        report.raise_if_failed()
        eye = torch.eye(30, dtype=torch.float64)
        assert np.allclose(A(eye.reshape(30, 5, 6)).T, matrix)
        assert np.allclose(A.adjoint(eye).reshape(30, 30), matrix)

    def test_power_spaces(self, odl: Any, weighted: Any) -> None:
        A = from_odl(odl.Gradient(weighted, pad_mode="symmetric"))
        assert (A.domain_shape, A.range_shape) == ((5, 6), (2, 5, 6))
        check_operator(A).raise_if_failed()
        unit = odl.uniform_discr([0, 0], [5, 6], (5, 6))
        x = torch.arange(30.0, dtype=torch.float64).reshape(5, 6) ** 2
        theirs = from_odl(odl.Gradient(unit, pad_mode="symmetric"))
        assert torch.allclose(theirs(x), Gradient((5, 6))(x))
        theirs = from_odl(odl.Gradient(unit, pad_mode="constant"))
        assert torch.allclose(theirs(x), Gradient((5, 6), "zero")(x))

    def test_other_product_spaces_are_flattened(self, odl: Any, weighted: Any) -> None:
        both = odl.BroadcastOperator(odl.IdentityOperator(weighted), odl.Gradient(weighted))
        A = from_odl(both)
        assert A.range_shape == (90,)
        check_operator(A).raise_if_failed()

    def test_single_precision_and_torch_spaces(self, odl: Any) -> None:
        for implementation in ("numpy", "pytorch"):
            space = odl.uniform_discr([0, 0], [5, 6], (5, 6), dtype="float32", impl=implementation)
            A = from_odl(2.0 * odl.IdentityOperator(space))
            y = A(torch.ones(3, 5, 6))
            assert y.dtype == torch.float32
            assert torch.equal(y, torch.full((3, 5, 6), 2.0))

    @pytest.mark.parametrize("operator", ["gradient", "matrix", "blur"])
    def test_ours_there(self, odl: Any, operator: str, rng: torch.Generator) -> None:
        A = {
            "gradient": Gradient((5, 6)),
            "matrix": GaussianMatrix((3, 2, 2), 7, dtype=torch.float64),
            "blur": Blur((5, 6), torch.rand(3, 2, generator=rng), "reflect"),
        }[operator]
        theirs = to_odl(A)
        x, y = torch.rand(A.domain_shape, generator=rng), torch.rand(A.range_shape, generator=rng)
        a, b = theirs.domain.element(x.numpy()), theirs.range.element(y.numpy())
        assert np.allclose(theirs(a).asarray(), A(x.to(A._example())), atol=1e-6)
        assert theirs.adjoint.adjoint(a) == theirs(a)
        assert theirs.range.inner(theirs(a), b) == pytest.approx(
            theirs.domain.inner(a, theirs.adjoint(b)), rel=1e-5
        )
        again = from_odl(theirs)
        assert again.domain_shape == A.domain_shape
        check_operator(again, dtype=A._example().dtype).raise_if_failed()

    def test_ours_in_weighted_spaces(self, odl: Any, weighted: Any) -> None:
        kernel = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
        A = Blur((5, 6), kernel)
        data = odl.rn((5, 6), weighting=7.0)
        theirs = to_odl(A, weighted, data)
        x = weighted.element(np.arange(30.0).reshape(5, 6))
        y = data.element(np.cos(np.arange(30.0)).reshape(5, 6))
        assert data.inner(theirs(x), y) == pytest.approx(weighted.inner(x, theirs.adjoint(y)))
        check_operator(from_odl(theirs)).raise_if_failed()

    def test_their_solvers_take_ours(self, odl: Any) -> None:
        A = Radon((8, 7), 20, dtype=torch.float64)
        x = torch.arange(56.0, dtype=torch.float64).reshape(8, 7) / 56
        theirs = to_odl(A)
        found, data = theirs.domain.zero(), theirs.range.element(A(x).numpy())
        odl.solvers.conjugate_gradient_normal(theirs, found, data, niter=100)
        assert np.allclose(found.asarray(), x, atol=1e-4)

    def test_bad_input(self, odl: Any) -> None:
        space = odl.rn(3)
        with pytest.raises(DtypeError, match="expected an odl.Operator, got Identity"):
            from_odl(Identity((3,)))
        with pytest.raises(OptionError, match="PowerOperator is not linear"):
            from_odl(odl.PowerOperator(space, 2))
        with pytest.raises(DtypeError, match="expected real spaces, got"):
            from_odl(odl.IdentityOperator(odl.cn(3)))
        with pytest.raises(OptionError, match="is not weighted entry by entry"):
            matrix = odl.rn(2, weighting=np.array([[2.0, 1.0], [1.0, 2.0]]))
            from_odl(odl.IdentityOperator(matrix))
        with pytest.raises(
            OptionError, match="expected spaces of arrays, but InnerProductOperator"
        ):
            from_odl(odl.InnerProductOperator(space.one()))
        with pytest.raises(DtypeError, match="expected an Operator, got IdentityOperator"):
            to_odl(odl.IdentityOperator(space))
        with pytest.raises(OptionError, match="to_odl: the operator is not linear"):
            to_odl(Nonlinear(torch.sin, (3,)))
        with pytest.raises(ShapeError, match=r"domain: expected shape \(4,\), got \(3,\)"):
            to_odl(Identity((4,)), space)
        with pytest.raises(ShapeError, match=r"range: expected shape \(4,\), got \(3,\)"):
            to_odl(Identity((4,)), range=space)


def test_without_odl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "odl":
            raise ImportError("No module named 'odl'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError, match=r"needs ODL.*pip install 'bayesgen\[odl\]'"):
        to_odl(Identity((3,)))
