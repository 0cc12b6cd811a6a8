"""Deviations of any covariance integrated out, and images drawn given the data: dense laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.fx.experimental.proxy_tensor import make_fx

from bayesgen.distributions import DataSpectrum, IntegratedDeviation, IteratedDeviation
from bayesgen.distributions import StructuredNormal as Structured
from bayesgen.distributions.covariance import Covariance, Diagonal, Isotropic
from bayesgen.distributions.dense_covariance import Dense, LowRank
from bayesgen.distributions.integrated import ImageGivenData, Integrated
from bayesgen.distributions.iterated_deviation import data_norm
from bayesgen.distributions.stationary import Stationary
from bayesgen.distributions.structured_deviation import StructuredDeviation, operator_rows
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.inference.checks import MethodReport, moment_report
from bayesgen.operators import Fourier, Identity, Matrix, Operator, PhaseRetrieval

float64 = torch.float64
STD, SCALE = 0.6, 0.7
SHAPE = (2, 3)


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=float64)


ROOT = 0.5 * random(4, 6, seed=1)
COVARIANCES: dict[str, Covariance] = {
    "isotropic": Isotropic(SHAPE, torch.tensor(0.7, dtype=float64)),
    "diagonal": Diagonal(random(*SHAPE, seed=2).square()),
    "dense": Dense(ROOT.T @ ROOT + 0.1 * torch.eye(6, dtype=float64), SHAPE),
    "singular": Dense(ROOT.T @ ROOT, SHAPE),
    "low rank": LowRank(random(2, *SHAPE, seed=3), random(*SHAPE, seed=4).square()),
    "stationary": Stationary(
        torch.tensor(
            [[2.0, 0.8, 0, 0, 0.8], [0.5, 0.1, 0, 0, 0.1], [0.5, 0.1, 0, 0, 0.1]]
        ).double(),
        SHAPE,
    ),
}
OPERATORS: dict[str, Operator] = {
    "fewer data": Matrix(random(4, 6, seed=5), domain_shape=SHAPE, range_shape=(2, 2)),
    "more data": Matrix(random(9, 6, seed=6), domain_shape=SHAPE),
}
LINKS = 0.3 * random(4, *SHAPE, seed=7)
PREDICTED = Structured(torch.zeros(SHAPE, dtype=float64), 0.2 * random(*SHAPE, seed=8), LINKS)


def matrix_of(function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(torch.eye(6, dtype=float64).reshape(6, *SHAPE)).reshape(6, -1).T


def spectral(x: Tensor, A: Operator, C: Covariance) -> Integrated:
    return IntegratedDeviation(x, DataSpectrum(A, x, C), STD, SCALE)


def iterated(x: Tensor, A: Operator, C: Covariance) -> Integrated:
    return IteratedDeviation(x, A, STD, SCALE, covariance=C)


def structured(x: Tensor, A: Operator) -> Integrated:
    return StructuredDeviation(x, PREDICTED, A, operator_rows(A, x), STD, SCALE)


CASES: list[tuple[str, str, str]] = [
    *[("spectral", name, data) for name in COVARIANCES for data in OPERATORS],
    *[("iterated", name, data) for name in ("dense", "stationary") for data in OPERATORS],
    *[("structured", "", data) for data in OPERATORS],
]


def case(kind: str, name: str, data: str, x: Tensor) -> tuple[Integrated, Tensor, Tensor]:
    """The law, and A and C as matrices."""
    A = OPERATORS[data]
    if kind == "structured":
        return structured(x, A), matrix_of(A), matrix_of(PREDICTED.covariance_matmul)
    make = spectral if kind == "spectral" else iterated
    return make(x, A, COVARIANCES[name]), matrix_of(A), matrix_of(COVARIANCES[name])


def data_law(law: Integrated, A: Tensor, C: Tensor) -> MultivariateNormal:
    covariance = STD**2 * torch.eye(len(A), dtype=float64) + SCALE**2 * A @ C @ A.T
    return MultivariateNormal(law.mean.flatten(-len(law.event_shape)), covariance)


def image_law(law: Integrated, A: Tensor, C: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the image given data, by dense algebra."""
    S = STD**2 * torch.eye(len(A), dtype=float64) + SCALE**2 * A @ C @ A.T
    gain = SCALE**2 * C @ A.T @ torch.linalg.inv(S)
    mean = law.image.flatten(-2) + (y.flatten() - law.mean.flatten()) @ gain.T
    return mean, SCALE**2 * (C - gain @ A @ C)


@pytest.mark.parametrize(("kind", "name", "data"), CASES)
def test_data_have_the_dense_law(kind: str, name: str, data: str) -> None:
    x = random(3, *SHAPE)
    law, A, C = case(kind, name, data, x)
    y = random(3, *law.event_shape, seed=9)
    exact = data_law(law, A, C).log_prob(y.flatten(1))
    gap = law.log_prob(y) - exact
    if kind == "iterated":  # without its constant
        gap = gap - gap[0]
    assert gap.abs().max() < 1e-10 * exact.abs().max()
    # The mutant without the deviation.
    white = data_law(law, A, 0 * C).log_prob(y.flatten(1)) - exact
    assert (white - white[0]).abs().max() > 1e-2
    if kind != "iterated":
        torch.testing.assert_close(law.variance.flatten(1), data_law(law, A, C).variance)
        assert law.expand((5, 3)).log_prob(y).shape == (5, 3)


@pytest.mark.parametrize(("kind", "name", "data"), CASES)
def test_data_are_drawn_from_it(kind: str, name: str, data: str) -> None:
    law, A, C = case(kind, name, data, random(*SHAPE))
    exact = data_law(law, A, C)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.sample((20, 500)).flatten(2)
    moment_report("data", draws, exact.mean, exact.covariance_matrix).raise_if_failed()


def report(law: ImageGivenData, mean: Tensor, covariance: Tensor) -> MethodReport:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # What is iterated takes its time.
        num = 100 if isinstance(law.data_law, IteratedDeviation) else 1000
        draws = law.sample((20, num))
    return moment_report("image", draws.flatten(2), mean, covariance)


class WithoutNoise(ImageGivenData):
    def from_noise(self, noise: Tensor) -> Tensor:
        count = self.data_law.event_shape.numel()
        return super().from_noise(torch.cat([noise[..., :-count], 0 * noise[..., -count:]], -1))


class WithoutScale(ImageGivenData):
    """Forgets s^2 in the correction."""

    def from_noise(self, noise: Tensor) -> Tensor:
        law = self.data_law
        first, second = noise.split([law.noise_shape.numel(), law.event_shape.numel()], -1)
        x = law.deviated(first.reshape(*noise.shape[:-1], *law.noise_shape))
        error = STD * second.reshape(*noise.shape[:-1], *law.event_shape)
        return x + law.explained(self.value - law.A(x) - error) / SCALE**2


@pytest.mark.parametrize(("kind", "name", "data"), CASES)
def test_images_are_drawn_from_their_law_given_the_data(kind: str, name: str, data: str) -> None:
    """By z-scores of all means and covariances, false alarm 1e-6 a case."""
    law, A, C = case(kind, name, data, random(*SHAPE))
    y = random(*law.event_shape, seed=9)
    mean, covariance = image_law(law, A, C, y)
    image = law.image_given(y)
    torch.testing.assert_close(image.mean.flatten(), mean)
    report(image, mean, covariance).raise_if_failed()
    for mutant in (WithoutNoise, WithoutScale):
        assert not report(mutant(law, y), mean, covariance).passed
    # The law of the data integrated over the noise: Bayes' rule needs no draws.
    if kind == "iterated" or name in ("singular", "stationary"):
        with pytest.raises(NotImplementedError):
            image.log_prob(image.mean)
        return
    x = random(5, *SHAPE, seed=10)
    exact = MultivariateNormal(mean, covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(image.log_prob(x), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "name", "data"), CASES)
def test_draws_are_functions_of_their_noise(kind: str, name: str, data: str) -> None:
    x, A = random(3, *SHAPE), OPERATORS[data]
    law, _, _ = case(kind, name, data, x)
    y = random(*law.event_shape, seed=9)
    image = law.image_given(y)
    noise = random(3, *image.noise_shape)
    whole = image.from_noise(noise)
    assert image.batch_shape == (3,) and whole.shape == (3, *SHAPE)
    assert image.expand((4, 3)).from_noise(noise.expand(4, *noise.shape)).shape == (4, 3, *SHAPE)
    spectrum = DataSpectrum(A, x, COVARIANCES[name]) if kind == "spectral" else None
    rows = operator_rows(A, x) if kind == "structured" else None
    norm = data_norm(A, COVARIANCES[name]) if kind == "iterated" else None

    def of_one(x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        if spectrum is not None:
            law: Integrated = IntegratedDeviation(x, spectrum, STD, s, validate_args=False)
        elif rows is not None:
            law = StructuredDeviation(x, PREDICTED, A, rows, STD, s, validate_args=False)
        else:
            C = COVARIANCES[name]
            law = IteratedDeviation(x, A, STD, SCALE, covariance=C, norm=norm, validate_args=False)
        return law.image_given(y).from_noise(noise)

    mapped = torch.func.vmap(of_one)
    given = (x, noise, torch.full((3,), SCALE, dtype=float64))
    torch.testing.assert_close(mapped(*given), whole)
    if kind != "iterated":  # thousands of operations, tried in tests/test_soft_range.py
        torch.testing.assert_close(make_fx(mapped)(*given)(*given), whole)
    assert case(kind, name, data, x[:0])[0].image_given(y).from_noise(noise[:0]).shape == (0, 2, 3)


def test_single_precision() -> None:
    A = Matrix(OPERATORS["fewer data"].matrix.float(), SHAPE, (2, 2))
    C = Dense(ROOT.T @ ROOT + 0.1 * torch.eye(6, dtype=float64), SHAPE).float()
    x, y = random(*SHAPE), random(2, 2, seed=9)
    law = IntegratedDeviation(x.float(), DataSpectrum(A, x.float(), C), STD, SCALE)
    exact = spectral(x, OPERATORS["fewer data"], COVARIANCES["dense"])
    assert law.log_prob(y.float()).dtype is torch.float32
    noise = random(law.image_given(y.float()).noise_shape.numel())
    found = law.image_given(y.float()).from_noise(noise.float())
    assert found.dtype is torch.float32
    torch.testing.assert_close(
        found.double(), exact.image_given(y).from_noise(noise), rtol=1e-4, atol=1e-4
    )


def test_deviations_of_channels_are_integrated() -> None:
    A = Matrix(random(3, 12, seed=5), domain_shape=(2, *SHAPE))
    zero = torch.zeros(2, *SHAPE, dtype=float64)
    deviation = Structured(zero, 0.0, 0.3 * random(2, 4, *SHAPE, seed=7), event_dim=3)
    law = StructuredDeviation(zero, deviation, A, operator_rows(A, zero), STD, SCALE)
    eye = torch.eye(12, dtype=float64)
    C = deviation.covariance_matmul(eye.reshape(12, 2, *SHAPE)).reshape(12, 12)
    columns = A(eye.reshape(12, 2, *SHAPE))
    S = STD**2 * torch.eye(3, dtype=float64) + SCALE**2 * columns.T @ C @ columns
    exact = MultivariateNormal(torch.zeros(3, dtype=float64), S).log_prob(random(3))
    torch.testing.assert_close(law.log_prob(random(3)), exact)


def test_what_is_refused() -> None:
    zero, A = torch.zeros(4, 4), PhaseRetrieval(Fourier((4, 4)))
    with pytest.raises(OptionError, match="A: is not linear"):
        operator_rows(A, zero)
    with pytest.raises(OptionError, match="A: yields 529 numbers, and every evaluation would solv"):
        operator_rows(Identity((23, 23)), zero)
    unit = Structured(zero, 0.0)
    with pytest.raises(ShapeError, match=r"deviation_law: is of images \(4, 4\); A takes images"):
        StructuredDeviation(zero, unit, Identity((2, 2)), zero, 0.1, 0.1)
    with pytest.raises(ShapeError, match=r"covariance: is of images \(2, 3\); A takes images"):
        DataSpectrum(Identity((2, 2)), zero, COVARIANCES["dense"])
    law = spectral(random(*SHAPE), OPERATORS["fewer data"], COVARIANCES["dense"])
    with pytest.raises(ShapeError, match="value: has shape"):
        law.image_given(torch.zeros(3, dtype=float64))
    with pytest.raises(DtypeError, match="value: is torch.float32"):
        law.image_given(torch.zeros(2, 2))
    assert math.prod(law.image_given(torch.zeros(2, 2, dtype=float64)).noise_shape) == 10
