"""Projected gradient descent: constrained least squares, monotone misfits, and MAP beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen import projected_gradient as module
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models import VAE, LinearGenerator
from bayesgen.operators import GaussianMatrix, Identity, Matrix, Nonlinear, PhaseRetrieval
from bayesgen.projected_gradient import ProjectedGradient, projected_gradient
from bayesgen.starts import nearest_draws

float64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=float64)


@pytest.fixture
def A() -> Matrix:
    return Matrix(random(9, 20, seed=1), domain_shape=(4, 5))


@pytest.fixture
def G() -> VAE:
    """Untrained, with images of some contrast."""
    G = VAE((4, 5), 2, width=6).double().eval().requires_grad_(False)
    for parameter in G.decoder.parameters():
        parameter.mul_(3)
    return G


@pytest.fixture
def linear() -> LinearGenerator:
    weight, mean = random(4, 5, 3, seed=2), random(4, 5, seed=3)
    return LinearGenerator.from_tensors(weight, mean, noise_level=0.1)


def nearest(G: LinearGenerator, A: Matrix, y: Tensor) -> Tensor:
    """Constrained least squares: the latent vectors with the smallest misfit."""
    columns = A(G.weight.movedim(-1, 0)).T
    return torch.linalg.lstsq(columns, (y - A(G.mean)).T).solution.T


def misfits(G: Any, A: Any, y: Tensor, iterations: int, **options: Any) -> Tensor:
    """After each iteration; the runs share their beginnings."""
    return torch.stack(
        [
            projected_gradient(G, A, y, max_iterations=k, tolerance=1e-12, **options).misfit
            for k in range(1, iterations + 1)
        ]
    )


def grows(misfit: Tensor) -> bool:
    return bool((misfit.diff(dim=0) > 0).any())


class TestLinearGenerator:
    @pytest.mark.parametrize("iterations", [1, 3])
    def test_closed_form(self, iterations: int, linear: LinearGenerator, A: Matrix) -> None:
        y = random(2, 9)
        found = projected_gradient(
            linear,
            A,
            y,
            tolerance=1e-7,
            max_iterations=5000,
            restarts=1,
            projection_iterations=iterations,
        )
        exact = nearest(linear, A, y)
        assert bool(found.converged.all())
        torch.testing.assert_close(found.latent, exact, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.image, linear(exact), rtol=0, atol=1e-6)
        torch.testing.assert_close(found.misfit, (A(linear(exact)) - y).norm(dim=1))
        # Stopped early it is not there yet, and says so.
        early = projected_gradient(linear, A, y, tolerance=1e-7, max_iterations=2)
        assert not bool(early.converged.any()) and bool((early.num_iterations == 2).all())
        assert (early.latent - exact).abs().max() > 1e-4

    def test_each_step_is_the_projection(self, linear: LinearGenerator, A: Matrix) -> None:
        """Of the published algorithm, for which a linear range has a closed form."""
        y, z, step = random(9), random(3, seed=4), 1 / A.norm() ** 2
        W = linear.weight.reshape(20, 3)
        x = linear(z)
        for k in range(1, 4):
            target = (x - step * A.adjoint(A(x) - y)).flatten()
            z_next = torch.linalg.lstsq(W, target - linear.mean.flatten()).solution
            x = linear(z_next)
            found = projected_gradient(
                linear,
                A,
                y,
                start=z,
                max_iterations=k,
                projection_iterations=30,
                tolerance=1e-13,
            )
            torch.testing.assert_close(found.image, x, rtol=0, atol=1e-8)

    def test_the_wrong_sign_is_seen(
        self, linear: LinearGenerator, A: Matrix, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = module._slope

        def wrong(*arguments: Any) -> tuple[Tensor, Tensor]:
            slope, misfit = right(*arguments)
            return -slope, misfit

        monkeypatch.setattr(module, "_slope", wrong)
        y = random(4, 9)
        found = projected_gradient(linear, A, y, max_iterations=200)
        assert (found.latent - nearest(linear, A, y)).abs().max() > 1e-2
        assert not bool(found.converged.any())


@pytest.mark.parametrize("factor", [1.0, 20.0])
def test_misfits_never_grow(factor: float, G: VAE, A: Matrix) -> None:
    """Also with a step far too long, which is shortened."""
    y, step = random(5, 9), factor / A.norm() ** 2
    history = misfits(G, A, y, 12, step=step, start=torch.zeros(5, 2, dtype=float64))
    assert not grows(history)
    assert history[-1].mean() < 0.95 * history[0].mean()


def test_without_shortening_a_long_step_diverges(linear: LinearGenerator, A: Matrix) -> None:
    """What `test_misfits_never_grow` would see."""
    y, W = random(9), linear.weight.reshape(20, 3)
    projection = W @ torch.linalg.pinv(W)
    x, history = linear.mean, []
    for _ in range(12):
        target = (x - 20 / A.norm() ** 2 * A.adjoint(A(x) - y) - linear.mean).flatten()
        x = linear.mean + (projection @ target).reshape(4, 5)
        history.append((A(x) - y).norm())
    assert grows(torch.stack(history))


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)])
def test_batches(batch: tuple[int, ...], G: VAE, A: Matrix) -> None:
    y = random(*batch, 9)
    found = projected_gradient(G, A, y, max_iterations=20)
    shapes = ProjectedGradient((*batch, 4, 5), (*batch, 2), batch, batch, batch)  # type: ignore
    assert tuple(tuple(part.shape) for part in found) == shapes
    assert found.num_iterations.dtype is torch.int64 and found.converged.dtype is torch.bool
    if y.numel():
        torch.testing.assert_close(found.image, G(found.latent))
        torch.testing.assert_close(found.misfit, (A(found.image) - y).norm(dim=-1))
        alone = projected_gradient(G, A, y.reshape(-1, 9)[-1], max_iterations=20)
        torch.testing.assert_close(alone.latent, found.latent.reshape(-1, 2)[-1])


def test_starts(G: VAE, A: Matrix) -> None:
    """Of several, the end with the smallest misfit is kept."""
    y, starts = random(3, 9), 3 * random(3, 4, 2, seed=5)
    together = projected_gradient(G, A, y, start=starts, max_iterations=5)
    apart = [
        projected_gradient(G, A, y, start=starts[:, k], max_iterations=5).misfit for k in range(4)
    ]
    torch.testing.assert_close(together.misfit, torch.stack(apart).amin(0))
    assert torch.stack(apart).std(0).min() > 1e-4
    one, same, other = (projected_gradient(G, A, y, seed=s, max_iterations=1) for s in (1, 1, 2))
    assert torch.equal(one.latent, same.latent)
    assert not torch.equal(one.latent, other.latent)


def test_nothing_to_do(linear: LinearGenerator, A: Matrix) -> None:
    """From the optimum, and for an operator that sees nothing."""
    y = random(9)
    z = nearest(linear, A, y[None])[0]
    found = projected_gradient(linear, A, y, start=z)
    assert bool(found.converged) and int(found.num_iterations) == 0
    torch.testing.assert_close(found.latent, z)
    blind = Matrix(torch.zeros(9, 20, dtype=float64), domain_shape=(4, 5))
    assert bool(projected_gradient(linear, blind, y).converged)


def test_operators_that_are_not_linear(linear: LinearGenerator) -> None:
    A = PhaseRetrieval.gaussian((4, 5), 60, seed=0, dtype=float64)
    z = random(2, 3)
    found = projected_gradient(
        linear, A, A(linear(z)), start=z + 0.1 * random(2, 3, seed=1), tolerance=1e-9
    )
    assert bool(found.converged.all())
    torch.testing.assert_close(found.latent, z, rtol=0, atol=1e-6)
    assert not grows(misfits(linear, A, A(linear(z)), 4, restarts=1))


def test_digits_as_well_as_maximum_a_posteriori() -> None:
    """With hardly any prior and from the same starts, the misfits are the same to 2 %."""
    G, A = bg.models.load("mnist-vae-8"), GaussianMatrix((28, 28), 150, seed=0)
    y = A(bg.datasets.mnist_samples().images[:2])
    y = y + 0.02 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    starts = nearest_draws(G, A, y, count=2)
    model = bg.regularisers.hard(G, A, 0.1, latent_weight=1e-6)
    best = bg.infer(
        model, y, batched=True, method="map", chains=2, start={"z": starts}, progress=False
    )
    reference = (A(G(best.mode("z"))) - y).norm(dim=1)
    found = projected_gradient(G, A, y, start=starts)
    assert bool(found.converged.all())
    assert (found.misfit / reference - 1).abs().max() < 0.02
    early = projected_gradient(G, A, y, start=starts, max_iterations=3)
    assert (early.misfit / reference - 1).abs().max() > 0.02


def test_what_is_refused(G: VAE, A: Matrix) -> None:
    y = random(3, 9)
    for name in ("max_iterations", "projection_iterations", "restarts"):
        with pytest.raises(OptionError, match=f"{name}: got 0; expected an integer of at least 1"):
            projected_gradient(G, A, y, **{name: 0})
    for name in ("step", "tolerance"):
        with pytest.raises(OptionError, match=f"{name}: got -1.0; expected a positive finite"):
            projected_gradient(G, A, y, **{name: -1.0})
    with pytest.raises(DtypeError, match="G: expected a Generator, got Matrix"):
        projected_gradient(A, A, y)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"A: takes images \(3, 3\), but the generator's have"):
        projected_gradient(G, Identity((3, 3)), random(3, 3))
    with pytest.raises(ShapeError, match=r"y must have shape \(\*batch, 9\)"):
        projected_gradient(G, A, y[:, :5])
    with pytest.raises(DataError, match="y: an entry is NaN or infinite"):
        projected_gradient(G, A, y / 0)
    for shape in ((2,), (4, 2), (3, 0, 2), (3, 3, 3, 2), (2, 3, 2)):
        with pytest.raises(ShapeError, match=r"start: expected shape \(3, 2\) or \(3, K, 2\), got"):
            projected_gradient(G, A, y, start=random(*shape))
    with pytest.raises(DtypeError, match="start: is torch.float32"):
        projected_gradient(G, A, y, start=torch.zeros(3, 2))
    with pytest.raises(DataError, match="start: an entry is NaN or infinite"):
        projected_gradient(G, A, y, start=torch.full((3, 2), torch.inf, dtype=float64))
    numpy = Nonlinear(lambda x: torch.from_numpy(abs(x.numpy())), (4, 5), (4, 5))
    with pytest.raises(OptionError, match="A: is not linear and could not be differentiated"):
        projected_gradient(G, numpy, random(3, 4, 5))
