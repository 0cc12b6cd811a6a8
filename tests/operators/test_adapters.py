"""Operators of other libraries here, and ours there."""

from __future__ import annotations

import builtins
import math
import pickle
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, MissingPackageError, OptionError, ShapeError
from bayesgen.operators import (
    Blur,
    GaussianMatrix,
    Gradient,
    Identity,
    Nonlinear,
    Radon,
    SparseMatrix,
    check_operator,
    from_deepinv,
    from_odl,
    from_scipy,
    to_odl,
    to_scipy,
)
from bayesgen.operators.external import External
from bayesgen.operators.odl_adapter import import_odl

needs_odl = pytest.mark.skipif(find_spec("odl") is None, reason="needs ODL")


def _dense(rng: torch.Generator, rows: int = 6, columns: int = 4) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = torch.randn(rows, columns, generator=rng).double().numpy()
    return array


class TestSciPy:
    def test_linear_operators(self, rng: torch.Generator) -> None:
        dense = _dense(rng)
        A = from_scipy(scipy.sparse.linalg.aslinearoperator(dense), (2, 2), (3, 2))
        for dtype in (torch.float32, torch.float64):
            check_operator(A, dtype=dtype).raise_if_failed()
        x = torch.randn(5, 2, 2, generator=rng).double()
        assert np.allclose(A(x).reshape(5, 6), x.reshape(5, 4).numpy() @ dense.T)

    def test_those_that_know_only_one_vector(self, rng: torch.Generator) -> None:
        dense = _dense(rng)
        theirs = scipy.sparse.linalg.LinearOperator(
            (6, 4), matvec=lambda x: dense @ x, rmatvec=lambda y: dense.T @ y, dtype=np.float64
        )
        check_operator(from_scipy(theirs)).raise_if_failed()

    def test_sparse_matrices_stay_sparse(self, rng: torch.Generator) -> None:
        A = from_scipy(scipy.sparse.random_array((6, 4), density=0.5, rng=0), (2, 2))
        assert isinstance(A, SparseMatrix)
        assert A.domain_shape == (2, 2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_ours_there(self, dtype: torch.dtype, rng: torch.Generator) -> None:
        A = Blur((4, 5), torch.rand(3, 3, generator=rng, dtype=dtype), "reflect")
        theirs = to_scipy(A)
        assert theirs.shape == (20, 20)
        assert theirs.dtype == (np.float32 if dtype == torch.float32 else np.float64)
        x = torch.rand(7, 4, 5, generator=rng, dtype=dtype)
        assert np.allclose(theirs @ x.reshape(7, 20).numpy().T, A(x).reshape(7, 20).numpy().T)
        assert np.allclose(theirs @ x[0].flatten().numpy(), A(x[0]).flatten())
        assert np.allclose(theirs.T @ x[0].flatten().numpy(), A.adjoint(x[0]).flatten())
        assert np.allclose(theirs.rmatmat(x.reshape(7, 20).numpy().T).T, A.adjoint(x).flatten(1))
        again = from_scipy(theirs, (4, 5), (4, 5))
        assert torch.allclose(again(x), A(x), atol=1e-6)

    def test_their_solvers_take_ours(self) -> None:
        A = Radon((8, 7), 20, dtype=torch.float64)
        x = torch.arange(56.0, dtype=torch.float64).reshape(8, 7)
        found = scipy.sparse.linalg.lsqr(
            to_scipy(A), A(x).flatten().numpy(), atol=1e-12, btol=1e-12
        )
        assert np.allclose(found[0].reshape(8, 7), x, atol=1e-6)

    def test_bad_input(self, rng: torch.Generator) -> None:
        linear = scipy.sparse.linalg.aslinearoperator(_dense(rng))
        with pytest.raises(DtypeError, match="or LinearOperator, got ndarray; Matrix takes dense"):
            from_scipy(_dense(rng))
        with pytest.raises(DtypeError, match="expected a real operator, got complex128"):
            from_scipy(scipy.sparse.linalg.aslinearoperator(1j * _dense(rng)))
        with pytest.raises(ShapeError, match=r"domain_shape: \(5,\) has 5 .* 4 columns"):
            from_scipy(linear, (5,))
        with pytest.raises(ShapeError, match=r"range_shape: \(7,\) has 7 .* 6 rows"):
            from_scipy(linear, (4,), (7,))
        with pytest.raises(DtypeError, match="expected an Operator, got MatrixLinearOperator"):
            to_scipy(linear)
        with pytest.raises(OptionError, match="to_scipy: the operator is not linear"):
            to_scipy(Nonlinear(torch.sin, (3,)))
        with pytest.raises(DtypeError, match="expected real vectors, got complex128"):
            to_scipy(Identity((3,))) @ (1j * np.ones(3))
        forward = scipy.sparse.linalg.LinearOperator((3, 3), matvec=lambda x: x, dtype=np.float64)
        assert from_scipy(forward)(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]
        with pytest.raises(
            OptionError, match="has no adjoint; give the LinearOperator its rmatvec"
        ):
            from_scipy(forward).adjoint(torch.ones(3))

    def test_pickling(self, rng: torch.Generator) -> None:
        A = from_scipy(scipy.sparse.linalg.aslinearoperator(_dense(rng)))
        x = torch.randn(4, generator=rng)
        assert torch.equal(pickle.loads(pickle.dumps(A))(x), A(x))


def test_results_of_the_wrong_shape_are_noticed() -> None:
    A = External("theirs", (3,), (2,), lambda x: x, lambda y: y, torch.float64)
    with pytest.raises(DataError, match=r"the library returned shape \(1, 3\), not \(1, 2\)"):
        A(torch.ones(3))


def test_the_library_cannot_change_our_tensors() -> None:
    def greedy(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x *= 2
        return x

    A, x = External("theirs", (3,), (3,), greedy, greedy, torch.float64), torch.ones(3).double()
    y = A(x)
    assert x.tolist() == [1.0, 1.0, 1.0]
    A(x + 1)
    assert y.tolist() == [2.0, 2.0, 2.0]


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


def test_inner_products_agree_everywhere(rng: torch.Generator) -> None:
    """SciPy's own check of an adjoint, on ours."""
    for A in (Radon((6, 5), 4, dtype=torch.float64), Gradient((6, 5))):
        theirs = to_scipy(A)
        x = torch.randn(math.prod(A.domain_shape), generator=rng).double().numpy()
        y = torch.randn(math.prod(A.range_shape), generator=rng).double().numpy()
        assert (theirs @ x) @ y == pytest.approx(x @ (theirs.H @ y), rel=1e-12)
