"""Dense masses: their algebra, what they learn, and that the law stays the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayesgen.inference import HMC, NUTS, ChEES, masses
from bayesgen.inference.adaptation import PooledCovariance, PooledVariance
from bayesgen.inference.base import Sampler
from bayesgen.inference.checks import check_method
from bayesgen.inference.hmc import MOST_DENSE, hamiltonian_init, propose
from bayesgen.inference.runner import run_sampler
from bayesgen.inference.targets import GaussianTarget

float64 = torch.float64
# Variances alike, correlations strong: diagonal masses can do nothing about it.
NARROW = GaussianTarget(
    torch.zeros(4, dtype=float64),
    0.02 * torch.eye(4, dtype=float64) + 0.98 * torch.ones(4, 4, dtype=float64),
)


def covariance(rng: torch.Generator, *lead: int, n: int = 4) -> Tensor:
    half = torch.randn(*lead, n, n, generator=rng, dtype=float64)
    return half @ half.mT + 0.1 * torch.eye(n, dtype=float64)


def test_algebra(rng: torch.Generator) -> None:
    C = covariance(rng, 2)
    p = torch.randn(2, 5, 4, generator=rng, dtype=float64)
    torch.testing.assert_close(masses.velocity(p, C), torch.einsum("bij,bcj->bci", C, p))
    noise = masses.whiten(p, C)
    torch.testing.assert_close(
        noise.square().sum(-1), torch.einsum("bci,bij,bcj->bc", p, torch.linalg.inv(C), p)
    )
    momentum = masses.momentum_of(p, C)
    energy = (momentum * masses.velocity(momentum, C)).sum(-1)
    torch.testing.assert_close(energy, p.square().sum(-1))
    torch.testing.assert_close(masses.mean_log(C)[:, 0, 0], torch.logdet(C) / 4)


def test_diagonal_and_dense_are_the_same_for_a_diagonal_matrix(rng: torch.Generator) -> None:
    variance = torch.rand(2, 1, 4, generator=rng, dtype=float64) + 0.1
    dense = torch.diag_embed(variance[:, 0])
    p = torch.randn(2, 5, 4, generator=rng, dtype=float64)
    for of in (masses.velocity, masses.whiten, masses.momentum_of):
        torch.testing.assert_close(of(p, variance), of(p, dense))
    torch.testing.assert_close(masses.mean_log(variance), masses.mean_log(dense))


def test_a_trajectory_is_that_of_whitened_coordinates(rng: torch.Generator) -> None:
    C = NARROW.covariance
    factor = torch.linalg.cholesky(C)

    class Whitened:
        num_dims = 4

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            value, gradient = NARROW.value_and_grad(v @ factor.T)
            return value, gradient @ factor

    w = torch.randn(6, 4, generator=rng, dtype=float64)
    dense = hamiltonian_init(NARROW, w @ factor.T, 0.5, 0.8)._replace(inverse_mass=C)
    white = hamiltonian_init(Whitened(), w, 0.5, 0.8)
    ends = [
        propose(density, state, torch.Generator().manual_seed(1), 4)
        for density, state in ((NARROW, dense), (Whitened(), white))
    ]
    torch.testing.assert_close(ends[0].change, ends[1].change)
    torch.testing.assert_close(ends[0].end.position, ends[1].end.position @ factor.T)


def test_pooled_covariance_is_that_of_all_points(rng: torch.Generator) -> None:
    points = 3 + torch.randn(20, 2, 8, 5, generator=rng, dtype=float64) @ covariance(rng, n=5)
    running, variances = PooledCovariance.start(points[0]), PooledVariance.start(points[0])
    for point in points:
        running, variances = running.update(point), variances.update(point)
    found = running.estimate()
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), variances.estimate()[:, 0])
    for i in range(2):
        flat = points[:, i].flatten(0, 1)
        shrunk = torch.corrcoef(flat.T) * 160 / 210
        shrunk.fill_diagonal_(1.0)
        spread = found[i].diagonal().sqrt()
        torch.testing.assert_close(found[i] / spread / spread[:, None], shrunk)


@pytest.mark.parametrize("points", [1, 3])
def test_few_points_leave_a_matrix_that_can_be_used(points: int, rng: torch.Generator) -> None:
    running = PooledCovariance.start(torch.zeros(1, 6))
    for _ in range(points):
        running = running.update(torch.randn(1, 6, generator=rng))
    found = running.estimate()
    assert bool(torch.isfinite(found).all()) and bool((torch.linalg.eigvalsh(found) > 0).all())


@pytest.mark.parametrize("points", [0.0, float("inf"), float("nan"), 1e300])
def test_points_without_a_covariance_leave_variances(points: float) -> None:
    running = PooledCovariance.start(torch.zeros(1, 2, 3, dtype=float64))
    for _ in range(3):
        running = running.update(torch.full((1, 2, 3), points, dtype=float64))
    found = running.estimate()
    off = found - torch.diag_embed(found.diagonal(dim1=-2, dim2=-1))
    assert found.shape == (1, 3, 3) and not bool((off.nan_to_num(0.0) != 0).any())


@pytest.mark.parametrize("method", [HMC(max_steps=2), NUTS(max_depth=2), ChEES(max_steps=2)])
def test_chains_that_run_off_are_no_error(method: Sampler, rng: torch.Generator) -> None:
    """A flat density: what follows is for the diagnostics to say."""

    class Flat:
        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(v[..., 0]), torch.zeros_like(v)

    run = run_sampler(method, Flat(), torch.randn(4, 2, generator=rng), rng, draws=20, warmup=150)
    assert run.position.shape == (4, 20, 2)


@pytest.mark.parametrize("method", [HMC(), NUTS(), ChEES()])
def test_strong_correlations_are_learnt_and_the_law_stays(method: Sampler) -> None:
    check_method(method, NARROW, draws=200, warmup=200).raise_if_failed()


def test_momenta_of_another_law_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant draws them as if masses were diagonal."""

    def wrong(noise: Tensor, inverse_mass: Tensor) -> Tensor:
        return noise / inverse_mass.diagonal(dim1=-2, dim2=-1)[..., None, :].sqrt()

    def right_at_first(noise: Tensor, inverse_mass: Tensor) -> Tensor:
        return noise if inverse_mass.shape[-2] == 1 else wrong(noise, inverse_mass)

    monkeypatch.setattr("bayesgen.inference.hmc.momentum_of", right_at_first)
    report = check_method(HMC(), NARROW, draws=200, warmup=200)
    assert not report.passed


@pytest.mark.parametrize("method", [HMC, NUTS, ChEES])
def test_fewer_steps_than_with_diagonal_masses(method: type[Sampler], rng: torch.Generator) -> None:
    steps = []
    for dense in (True, False):
        start = NARROW.starts(16, rng)
        run = run_sampler(method(dense_mass=dense), NARROW, start, rng, draws=50, warmup=200)
        steps.append(float(run.stats["step_size"].mean()))
        assert masses.is_dense(getattr(run.state, "chains", run.state).inverse_mass) == dense
    # With diagonal masses the narrowest direction, a seventh of the others, rules.
    assert steps[0] > 3 * steps[1]


def test_problems_learn_their_own(rng: torch.Generator) -> None:
    class Two:
        num_dims = 2

        def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
            sign = torch.tensor([0.9, -0.9], dtype=float64)
            precision = torch.eye(2, dtype=float64).repeat(2, 1, 1)
            precision[:, 0, 1] = precision[:, 1, 0] = -sign
            moved = torch.einsum("pij,pcj->pci", precision / 0.19, v)
            return -0.5 * (v * moved).sum(-1), -moved

    start = torch.randn(2, 16, 2, generator=rng, dtype=float64)
    run = run_sampler(HMC(), Two(), start, rng, draws=10, warmup=200)
    assert run.state.inverse_mass.shape == (2, 2, 2)
    found = [float(torch.corrcoef(x.flatten(0, 1).T)[0, 1]) for x in run.position]
    assert found[0] > 0.7 and found[1] < -0.7


@pytest.mark.parametrize(
    ("num_dims", "options"), [(MOST_DENSE + 1, {}), (3, {"splitting": "prior"}), (1, {})]
)
def test_where_masses_stay_diagonal(num_dims: int, options: dict[str, str]) -> None:
    state = HMC(**options).init(  # type: ignore[arg-type]
        GaussianTarget(torch.zeros(num_dims), torch.eye(num_dims)), torch.zeros(2, num_dims)
    )
    assert isinstance(state.variance, PooledVariance)
