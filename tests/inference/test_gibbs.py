"""Gibbs: exact draws of blocks, closed forms, quadrature, agreement with HMC; and mutants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from bayesgen import infer
from bayesgen.covariances import Covariance, Dense, LowRank, Stationary
from bayesgen.distributions import Deviation, StructuredNormal
from bayesgen.errors import ModelError, OptionError
from bayesgen.gaussian_blocks import Factor, cholesky_factor
from bayesgen.inference import HMC, MALA, METHODS, NUTS, Sampler, gaussian_draws, gibbs, run_sampler
from bayesgen.inference.checks import GaussianTarget, MethodReport, check_method, moment_report
from bayesgen.inference.conditional import Integrated
from bayesgen.inference.gaussian_draws import BlockSystem, laplace_variances
from bayesgen.inference.gibbs import Gibbs, blocks_of
from bayesgen.log_density import LogDensity
from bayesgen.models.linear import LinearGenerator
from bayesgen.operators import Matrix
from bayesgen.regularisers import relaxed, soft_range

float64 = torch.float64
Model = Callable[[Tensor], None]
FALSE_ALARM = 1e-6


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=float64)


def draws_of(
    method: Sampler,
    model: Model,
    y: Tensor,
    *,
    chains: int = 600,
    draws: int = 20,
    warmup: int = 50,
    seed: int = 0,
) -> Tensor:
    """``(chains, draws, n)``."""
    log_density, rng = LogDensity(model, y), torch.Generator().manual_seed(seed)
    start = log_density.prior_draws(chains, rng)
    return run_sampler(method, log_density, start, rng, draws=draws, warmup=warmup).position


# --------------------------------------------------------------------- variances of Laplace sites


@pytest.mark.parametrize("size", [1e-4, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_variances_are_reciprocal_inverse_gaussian(size: float, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    t = laplace_variances(torch.full((20_000,), -size, dtype=dtype), rng)
    assert t.dtype == dtype and bool((t > 0).all())
    law = stats.invgauss(1 / size)  # mean 1 / size, shape 1
    assert stats.kstest((1 / t.double()).numpy(), law.cdf).pvalue > FALSE_ALARM
    # A wrong shape is noticed, and where the mean matters a wrong one is.
    wrong = [stats.invgauss(1 / size, scale=1.2), stats.invgauss(1.2 / size)]
    for law in wrong if size >= 1.0 else wrong[:1]:
        assert stats.kstest((1 / t.double()).numpy(), law.cdf).pvalue < FALSE_ALARM


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-25])
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_variances_where_almost_nothing_deviates(size: float, dtype: torch.dtype) -> None:
    """The limit is chi-squared with one degree of freedom."""
    rng = torch.Generator().manual_seed(0)
    t = laplace_variances(torch.full((20_000,), size, dtype=dtype), rng)
    assert bool(torch.isfinite(t).all())
    assert stats.kstest(t.double().numpy(), stats.chi2(1).cdf).pvalue > FALSE_ALARM


def test_the_mixture_is_laplace() -> None:
    """c Laplace and t given c: together t is exponential and c / sqrt(t) normal."""
    rng = torch.Generator().manual_seed(0)
    c = torch.from_numpy(stats.laplace.rvs(size=40_000, random_state=0))
    t = laplace_variances(c, rng)
    assert stats.kstest(t.numpy(), stats.expon(scale=2).cdf).pvalue > FALSE_ALARM
    assert stats.kstest((c / t.sqrt()).numpy(), stats.norm.cdf).pvalue > FALSE_ALARM
    wrong = laplace_variances(1.2 * c, rng)
    assert stats.kstest(wrong.numpy(), stats.expon(scale=2).cdf).pvalue < FALSE_ALARM


# ------------------------------------------------------------------------------- draws of a block


def block_report(num_rows: int, most: int, dtype: torch.dtype = float64) -> MethodReport:
    """Draws of c with variances of their own, against the closed form."""
    matrix, y = random(num_rows, 6).to(dtype), random(num_rows, seed=1).to(dtype)

    def model(y: Tensor) -> None:
        u = pyro.sample("u", dist.Laplace(torch.full_like(matrix[0], 0.2), 0.5).to_event(1))
        pyro.sample("y", dist.Normal(matrix @ u, 0.3).to_event(1), obs=y)

    block = blocks_of(LogDensity(model, y, compile=False))["u"]
    rng, v = torch.Generator().manual_seed(0), torch.zeros(4000, 6, dtype=dtype)
    variances = torch.arange(1.0, 7.0, dtype=dtype)
    with mock.patch.multiple(gaussian_draws, _MOST_EACH=most, _MOST_ONCE=most):
        system = BlockSystem.of(block, variances.expand(4000, 6), 100)
        assert (system.factor is None) == (most == 0)
        found = system.draw(v, block.residual(v, torch.zeros_like(v)), rng)
    assert (found.steps > 0) == (most == 0) and float(found.residual.max()) < 2e-5
    forward = (matrix * 0.5 / 0.3).double()
    covariance = torch.linalg.inv(torch.diag(1 / variances.double()) + forward.T @ forward)
    mean = covariance @ forward.T @ (y.double() - matrix.double().sum(1) * 0.2) / 0.3
    # Draws are independent: chains of some.
    return moment_report("", found.s.double().reshape(100, 40, 6), mean, covariance)


@pytest.mark.parametrize("num_rows", [4, 6, 9])
@pytest.mark.parametrize("most", [0, 10])
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_draws_of_a_block_are_exact(num_rows: int, most: int, dtype: torch.dtype) -> None:
    block_report(num_rows, most, dtype).raise_if_failed()


@pytest.mark.parametrize("num_rows", [4, 6, 9])
@pytest.mark.parametrize("most", [0, 10])
def test_perturbations_of_a_wrong_size_are_rejected(num_rows: int, most: int) -> None:
    def too_large(*args: Any) -> Tensor:
        return 1.1 * right(*args)

    right = gaussian_draws._like
    with mock.patch.object(gaussian_draws, "_like", too_large):
        assert not block_report(num_rows, most).passed


def without_prior(matrix: Tensor, widths: Tensor) -> Factor:
    """Of a system that forgets the identity, all but."""
    lower, of_rows = cholesky_factor(30.0 * matrix, widths)
    return Factor(lower / 30.0, of_rows)


def of_the_other(matrix: Tensor, widths: Tensor) -> Factor:
    """Takes one of the two matrices for the other, which may have as many rows."""
    lower, of_rows = cholesky_factor(matrix, widths)
    return Factor(lower, not of_rows)


def test_a_forgotten_prior_is_rejected() -> None:
    with mock.patch.object(gaussian_draws, "cholesky_factor", without_prior):
        assert not block_report(9, 10).passed


def test_as_many_data_as_coordinates_are_no_exception() -> None:
    """Where both matrices have one size, the wrong one would be taken without an error."""
    with mock.patch.object(gaussian_draws, "cholesky_factor", of_the_other):
        assert not block_report(6, 10).passed


# ------------------------------------------------------------------------------------ closed forms


class Linear:
    """x = W z + u with normal z and u, y = A x + noise: all is Gaussian."""

    weight, matrix, y = random(6, 2), random(4, 6, seed=1), random(4, seed=2)
    deviation, sigma = 0.5, 0.3

    def posterior(self) -> tuple[Tensor, Tensor]:
        forward = torch.cat([self.matrix @ self.weight, self.matrix], dim=1) / self.sigma
        prior = torch.tensor([1.0] * 2 + [self.deviation**-2] * 6, dtype=float64)
        covariance = torch.linalg.inv(torch.diag(prior) + forward.T @ forward)
        return covariance @ forward.T @ self.y / self.sigma, covariance

    def model(self, y: Tensor) -> None:
        """The prior of z is a factor, of which Gibbs knows nothing, so that HMC moves it."""
        flat = dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
        flat.dtype = float64
        z = pyro.sample("z", flat)
        pyro.factor("prior", -0.5 * z.square().sum())
        u = pyro.sample("u", dist.Normal(torch.zeros_like(self.matrix[0]), 0.5).to_event(1))
        mean = self.matrix @ (self.weight @ z + u)
        pyro.sample("y", dist.Normal(mean, self.sigma).to_event(1), obs=y)

    def report(self, method: Gibbs, **budget: int) -> MethodReport:
        draws = draws_of(method, self.model, self.y, **budget)
        return moment_report(repr(method), draws, *self.posterior())


class SquareLinear(Linear):
    """As many data as coordinates of u."""

    matrix, y = random(6, 6, seed=1), random(6, seed=2)


@pytest.mark.parametrize("problem", [Linear(), SquareLinear()])
@pytest.mark.parametrize("collapsed", [None, False])
def test_linear_generator_in_closed_form(problem: Linear, collapsed: bool | None) -> None:
    problem.report(Gibbs(collapsed=collapsed)).raise_if_failed()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [MALA(), NUTS(max_depth=4), HMC(splitting="prior")])
def test_other_samplers_and_conjugate_gradients(sampler: Sampler) -> None:
    with mock.patch.multiple(gaussian_draws, _MOST_EACH=0, _MOST_ONCE=0):
        for collapsed in (True, False):
            method = Gibbs(sampler=sampler, collapsed=collapsed)
            # With the block fixed a random walk takes long to forget its start.
            Linear().report(method, draws=50, warmup=300).raise_if_failed()


def test_a_wrong_integral_is_rejected() -> None:
    """Mutant: the density of the rest without the prior of the block it integrates out."""

    def wrong(self: Any, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        value, gradient = right(self, v, **options)
        point = self.complete(v)
        r = self._system.block.residual(point, torch.zeros_like(self._system.widths))
        return value + 0.1 * self._system.minimise(point, r).s.square().sum(-1), gradient

    right = Integrated.value_and_grad
    with mock.patch.object(Integrated, "value_and_grad", wrong):
        assert not Linear().report(Gibbs()).passed


def test_relaxed_model_all_in_one_block(rng: torch.Generator) -> None:
    """Nothing is left to move: draws are independent, from the first on."""
    problem = Linear()
    weight, mean = problem.weight.reshape(2, 3, 2), torch.zeros(2, 3, dtype=float64)
    G = LinearGenerator.from_tensors(weight, mean, noise_level=0.1)
    A = Matrix(problem.matrix, (2, 3))
    model = relaxed(G, A, problem.sigma, problem.deviation, integrated=False)
    log_density = LogDensity(model, problem.y)
    start = torch.full((500, 8), 30.0, dtype=float64)
    run = run_sampler(Gibbs(), log_density, start, rng, draws=10, warmup=0)
    moment_report("", run.position, *problem.posterior()).raise_if_failed()
    assert bool((run.stats["acceptance_rate"] == 1).all()) and int(run.stats["n_steps"].max()) == 0
    expected = log_density.value_and_grad(run.position.flatten(0, 1))[0]
    torch.testing.assert_close(run.log_prob.flatten(), expected)


ROOT = random(6, 6, seed=7)
COVARIANCES: dict[str, Callable[[], Covariance]] = {
    "dense": lambda: Dense(0.1 * ROOT.T @ ROOT + 0.1 * torch.eye(6).double(), (2, 3)),
    "low rank": lambda: LowRank(ROOT[:2].reshape(2, 2, 3), 0.1 + ROOT[3].square().reshape(2, 3)),
    "stationary": lambda: Stationary(
        torch.tensor([[1.0, 0.3, 0.3], [0.4, 0.1, 0.1]], dtype=float64), (2, 3)
    ),
}


class SoftRange:
    """Deviations of a covariance as a site, where the law of the image has a closed form."""

    A = Matrix(Linear.matrix, (2, 3))
    mean, scale = random(2, 3, seed=3), 0.7

    def __init__(self, kind: str) -> None:
        self.covariance = COVARIANCES[kind]()

    def image(self) -> tuple[Tensor, Tensor]:
        eye, weight, rows = torch.eye(6, dtype=float64), Linear.weight, Linear.matrix
        C = self.covariance(eye.reshape(6, 2, 3)).reshape(6, 6)
        prior = weight @ weight.T + self.scale**2 * C
        gain = prior @ rows.T
        gain = gain @ torch.linalg.inv(rows @ gain + Linear.sigma**2 * torch.eye(4).double())
        mean = self.mean.flatten()
        return mean + gain @ (Linear.y - rows @ mean), prior - gain @ rows @ prior

    def report(self, scale: float | None = None, **options: Any) -> MethodReport:
        weight = Linear.weight.reshape(2, 3, 2)
        G = LinearGenerator.from_tensors(weight, self.mean, noise_level=0.1)
        s = self.scale if scale is None else scale
        model = soft_range(
            G, self.A, Linear.sigma, covariance=self.covariance, scale=s, integrated=False
        )
        options = {"chains": 200, "draws": 20, "progress": False} | options
        found = infer(model, Linear.y, **options)
        assert found.attributes["method"] == "gibbs"
        return moment_report("", found.draws("x").flatten(-2), *self.image())


@pytest.mark.parametrize("kind", COVARIANCES)
def test_soft_range_is_drawn_exactly(kind: str) -> None:
    problem = SoftRange(kind)
    problem.report(method=Gibbs(), warmup=0).raise_if_failed()
    # The mutant has another scale.
    assert not problem.report(1.2 * problem.scale, method=Gibbs(), warmup=0).passed


def test_a_root_that_is_not_the_inverse_of_whitening_is_refused() -> None:
    C = COVARIANCES["low rank"]()

    def model(y: Tensor) -> None:
        u = pyro.sample("u", Deviation(C))
        pyro.sample("y", dist.Normal(u.sum(0), 0.3).to_event(1), obs=y)

    y = random(3)
    assert not blocks_of(LogDensity(model, y)).refused
    with mock.patch.object(LowRank, "_factor", lambda C, noise: C.variances.sqrt() * noise):
        refused = blocks_of(LogDensity(model, y)).refused
    assert refused == {"u": "whiten and colour of its prior are not inverse"}


@pytest.mark.slow
def test_soft_range_with_a_latent_scale() -> None:
    """The deviation as a site, drawn exactly, agrees with the form that integrates it out."""
    problem, features = SoftRange("dense"), []
    G = LinearGenerator.from_tensors(Linear.weight.reshape(2, 3, 2), problem.mean, noise_level=0.1)
    law = dist.LogNormal(torch.zeros((), dtype=float64), 0.3)
    for integrated, method in ((False, Gibbs()), (True, HMC())):
        model = soft_range(
            G, problem.A, 0.3, covariance=problem.covariance, scale=law, integrated=integrated
        )
        options: dict[str, Any] = {"draws": 30, "warmup": 40, "progress": False}
        found = infer(model, Linear.y, method=method, chains=150, **options)
        x = found.draws("x").flatten(2)
        both = torch.cat([x, x.square(), found.draws("scale").unsqueeze(-1)], -1)
        features.append(both.mean(1))
    error = (features[0].var(0) / 150 + features[1].var(0) / 150).sqrt()
    z = (features[0].mean(0) - features[1].mean(0)) / error
    assert float(z.abs().max()) < stats.norm.isf(FALSE_ALARM / (2 * len(z)))


class GaussianModel(LogDensity):
    """The law of a Gaussian target as that of a model: the first half flat, the rest normal."""

    def __init__(self, target: GaussianTarget) -> None:
        self.mean, self.covariance, self.starts = target.mean, target.covariance, target.starts
        n = len(target.mean)
        num_flat, stddev = n // 2, (2 * torch.linalg.eigvalsh(target.covariance)[-1]).sqrt()
        prior = torch.where(torch.arange(n) < num_flat, 0.0, stddev**-2)
        precision = torch.linalg.inv(target.covariance)
        noise = torch.linalg.inv(precision - prior.diag())
        flat = dist.ImproperUniform(dist.constraints.real_vector, (), (num_flat,))
        flat.dtype = target.mean.dtype
        normal = dist.Normal(torch.zeros_like(target.mean[num_flat:]), stddev).to_event(1)

        def model(y: Tensor) -> None:
            parts = [pyro.sample("w", flat), pyro.sample("u", normal)]
            pyro.sample("y", dist.MultivariateNormal(torch.cat(parts), noise), obs=y)

        super().__init__(model, noise @ precision @ target.mean)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_the_common_check_of_samplers(dtype: torch.dtype) -> None:
    target = GaussianModel(GaussianTarget.with_condition(5, 10.0, dtype=dtype))
    check_method(Gibbs(), target, draws=100, warmup=100).raise_if_failed()  # type: ignore[arg-type]


def test_problems_without_data_of_their_own(rng: torch.Generator) -> None:
    """As the common checks of the loop do, which hand any number of leading axes."""
    target = GaussianModel(GaussianTarget.with_condition(3, 10.0))
    start = torch.zeros(2, 3, 3, dtype=float64)
    run = run_sampler(Gibbs(), target, start, rng, draws=4, warmup=4)
    assert run.position.shape == (2, 3, 4, 3) and run.num_evaluations > 0
    assert all(value.shape == (2, 3, 4) for value in run.stats.values())


# -------------------------------------------------------------------------------------- quadrature


class Sparse:
    """x = tanh(2 z) + u in two pixels, u Laplace: given z, the pixels of u are independent."""

    scale, sigma = 0.4, 0.3
    y = torch.tensor([0.9, -0.3], dtype=float64)

    def model(self, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(y[0]), 1.0))
        u = pyro.sample("u", dist.Laplace(torch.zeros_like(y), self.scale).to_event(1))
        pyro.sample("y", dist.Normal((2 * z).tanh() + u, self.sigma).to_event(1), obs=y)

    def posterior(self) -> tuple[Tensor, Tensor]:
        """By the trapezoidal rule, which the kink at a grid point does not disturb much."""
        z = torch.linspace(-6, 6, 1201, dtype=float64)
        u = torch.linspace(-4, 4, 4001, dtype=float64)
        misfit = self.y - (2 * z).tanh()[:, None] - u[:, None, None]
        weight = -0.5 * (misfit / self.sigma).square() - u.abs()[:, None, None] / self.scale
        powers = torch.stack([torch.ones_like(u), u, u.square()])
        moments = torch.einsum("uzi,pu->pzi", weight.exp(), powers)
        mass = (-0.5 * z.square()).exp() * moments[0].prod(-1)
        mass = mass / mass.sum()
        first, second = moments[1] / moments[0], moments[2] / moments[0]
        given = torch.cat([z[:, None], first], dim=1)
        mean = mass @ given
        raw = torch.einsum("z,zi,zj->ij", mass, given, given)
        raw[[1, 2], [1, 2]] = mass @ second
        return mean, raw - torch.outer(mean, mean)

    def report(self, method: Gibbs) -> MethodReport:
        return moment_report("", draws_of(method, self.model, self.y), *self.posterior())


@pytest.mark.parametrize("collapsed", [None, False])
def test_sparse_model_by_quadrature(collapsed: bool | None) -> None:
    Sparse().report(Gibbs(collapsed=collapsed)).raise_if_failed()


class SquareSparse:
    """As many data as Laplace coordinates, mixed by a matrix that is not symmetric."""

    matrix, sigma = torch.tensor([[1.0, 2.0], [-0.5, 0.5]], dtype=float64), 0.3
    y = torch.tensor([0.9, -0.6], dtype=float64)

    def model(self, y: Tensor) -> None:
        u = pyro.sample("u", dist.Laplace(torch.zeros_like(y), 0.7).to_event(1))
        pyro.sample("y", dist.Normal(self.matrix @ u, self.sigma).to_event(1), obs=y)

    def posterior(self) -> tuple[Tensor, Tensor]:
        """By the trapezoidal rule on a plane."""
        line = torch.linspace(-6, 6, 1201, dtype=float64)
        u = torch.cartesian_prod(line, line)
        misfit = (self.y - u @ self.matrix.T) / self.sigma
        mass = (-0.5 * misfit.square().sum(1) - u.abs().sum(1) / 0.7).softmax(0)
        mean = mass @ u
        return mean, (u - mean).T @ (mass[:, None] * (u - mean))

    def draws(self) -> Tensor:
        return draws_of(Gibbs(), self.model, self.y, chains=400)


def test_as_many_data_as_sparse_coordinates_by_quadrature() -> None:
    problem = SquareSparse()
    mean, covariance = problem.posterior()
    moment_report("", problem.draws(), mean, covariance).raise_if_failed()
    with mock.patch.object(gaussian_draws, "cholesky_factor", of_the_other):
        # Draws that run away, with which their standard errors do too.
        wrong = problem.draws().flatten(0, 1).std(0)
    assert bool((wrong > 10 * covariance.diagonal().sqrt()).all())


def test_wrong_mixing_variances_are_rejected() -> None:
    def wrong(c: Tensor, rng: torch.Generator) -> Tensor:
        """Takes u for u / b."""
        return laplace_variances(Sparse.scale * c, rng)

    with mock.patch.object(gibbs, "laplace_variances", wrong):
        assert not Sparse().report(Gibbs()).passed


# ------------------------------------------------------------------------------- agreement with HMC


def hierarchical(y: Tensor) -> None:
    """Scales of deviation and noise are latent, so that no factorisation is kept."""
    s, sigma = (pyro.sample(n, dist.LogNormal(torch.zeros_like(y[0]), 0.3)) for n in ("s", "t"))
    u = pyro.sample("u", dist.Laplace(torch.zeros_like(y), s).to_event(1))
    pyro.sample("y", dist.Normal(u.cumsum(0), sigma).to_event(1), obs=y)


def structured(y: Tensor) -> None:
    """The covariance of the deviation depends on z."""
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y[:2]), 1.0).to_event(1))
    off = 0.5 * z[1].tanh() * torch.ones_like(y).expand(4, 3).reshape(4, 1, 3)
    u = pyro.sample("u", StructuredNormal(torch.zeros_like(y[None]), 0.5 * z[0], off))[0]
    pyro.sample("y", dist.Normal(z.square().sum() + u, 0.5).to_event(1), obs=y)


def bilinear(y: Tensor) -> None:
    """Two blocks, each Gaussian given the other."""
    h = pyro.sample("h", dist.Normal(torch.ones_like(y[0]), 0.5))
    x = pyro.sample("x", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(h * x, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize(
    "model",
    [hierarchical, *(pytest.param(m, marks=pytest.mark.slow) for m in (structured, bilinear))],
)
def test_agreement_with_hmc(model: Model) -> None:
    y = torch.tensor([1.0, -0.5, 2.0], dtype=float64)
    features = []
    for method in (Gibbs(), HMC()):
        v = draws_of(method, model, y, chains=200, draws=60, warmup=60)
        features.append(torch.cat([v, v.square()], dim=-1).mean(1))
    error = (features[0].var(0) / 200 + features[1].var(0) / 200).sqrt()
    z = (features[0].mean(0) - features[1].mean(0)) / error
    assert float(z.abs().max()) < stats.norm.isf(FALSE_ALARM / (2 * len(z)))


# ------------------------------------------------------------------------------ shapes and refusals


def nonlinear(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    u = pyro.sample("u", dist.Laplace(torch.zeros_like(y), 0.5).to_event(1))
    pyro.sample("y", dist.Normal(z.tanh() + u, 0.2).to_event(1), obs=y)


@pytest.mark.parametrize(("dtype", "chains"), [(torch.float32, 1), (float64, 3)])
def test_shapes_and_seeds(dtype: torch.dtype, chains: int) -> None:
    y = random(2, 3).to(dtype)
    options = {"method": Gibbs(), "batched": True, "chains": chains, "progress": False}
    options |= {"draws": 6, "warmup": 6}
    first, again = (infer(nonlinear, y, seed=1, **options) for _ in range(2))
    assert first.draws("u").shape == (2, chains, 6, 3) and first.draws("u").dtype == dtype
    assert all(value.shape == (2, chains, 6) for value in first.stats.values())
    assert torch.equal(first.draws("u"), again.draws("u"))


def test_problems_of_a_batch_are_apart() -> None:
    def model(y: Tensor, matrix: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros_like(matrix[0]), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(matrix @ u, 0.5).to_event(1), obs=y)

    y, matrices = random(2, 3), random(2, 3, 4, seed=1)
    method = Gibbs()
    found = infer(
        model, y, matrices, method=method, batched=True, chains=300, draws=10, progress=False
    )
    for i in range(2):
        covariance = torch.linalg.inv(torch.eye(4).double() + 4 * matrices[i].T @ matrices[i])
        mean = covariance @ matrices[i].T @ y[i] * 4
        moment_report("", found.draws("u")[i], mean, covariance).raise_if_failed()


def test_a_block_that_no_data_depend_on_has_its_prior() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("u", dist.Normal(torch.ones_like(y), 0.5).to_event(1))
        z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.exp(), 0.5).to_event(1), obs=y)

    draws = draws_of(Gibbs(), model, random(2), chains=100, draws=10, warmup=0)[..., :2]
    mean, covariance = torch.ones(2, dtype=float64), 0.25 * torch.eye(2, dtype=float64)
    moment_report("", draws, mean, covariance).raise_if_failed()


def test_too_few_solver_steps_are_told() -> None:
    method = Gibbs(max_solver_steps=1)
    y = torch.tensor([1.0, -0.5, 2.0], dtype=float64)
    with pytest.warns(RuntimeWarning, match="residual of .* after 1 steps; draws are not exact"):
        draws_of(method, hierarchical, y, chains=2, draws=1, warmup=0)


def test_models_without_a_block_are_refused() -> None:
    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2 * torch.ones_like(y[0]), 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros_like(y[0]), 1.0))
        pyro.sample("y", dist.Normal(z.exp(), rate).expand([3]).to_event(1), obs=y)

    message = (
        "no site that method 'gibbs' can draw.*'rate': its prior, Gamma, is neither normal nor "
        "Laplace; 'z': the residuals of \\['y'\\] are not affine in it. Use .*'hmc'"
    )
    with pytest.raises(ModelError, match=message):
        infer(model, torch.ones(3), method=Gibbs(), progress=False)
    target = GaussianTarget.with_condition(3, 2.0)
    with pytest.raises(ModelError, match="in a Pyro model; got GaussianTarget"):
        run_sampler(Gibbs(), target, random(2, 3), torch.Generator(), draws=1, warmup=0)


def test_what_cannot_be_collapsed_is_told() -> None:
    y = torch.tensor([1.0, -0.5, 2.0], dtype=float64)
    for model, sites in ((hierarchical, r"\['u'\]"), (bilinear, r"\['x'\] and \['h'\]")):
        with pytest.raises(OptionError, match=f"collapsed: got True, but how .* {sites} changes"):
            draws_of(Gibbs(collapsed=True), model, y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "hmc"}, "sampler: got 'hmc'"),
        ({"sampler": Gibbs()}, "sampler: got Gibbs"),
        ({"collapsed": 1}, "collapsed: got 1"),
        ({"max_solver_steps": 0}, "max_solver_steps: got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Gibbs(**settings)


@pytest.mark.parametrize("name", ["pcn", "myula", "pt", "gibbs"])
def test_samplers_that_cannot_follow_the_blocks_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match="expected HMC\\(\\), NUTS\\(\\) or MALA"):
        Gibbs(sampler=METHODS[name]())  # type: ignore[arg-type]
