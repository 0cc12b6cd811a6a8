"""Data with the deviation integrated out, against the dense normal law."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayesgen.distributions import DataSpectrum, IntegratedDeviation
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators import Fourier, Identity, Mask, Matrix, Operator, PhaseRetrieval, Radon

float64 = torch.float64
STD, SCALE = 0.3, 0.2


def random(*shape: int, seed: int = 0, dtype: torch.dtype = float64) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=dtype)


OPERATORS: dict[str, Operator] = {
    "fewer data": Matrix(random(7, 20, seed=1), domain_shape=(4, 5)),
    "more data": Matrix(random(30, 20, seed=2), domain_shape=(4, 5)),
    "redundant data": Matrix(
        torch.cat([random(6, 20, seed=3)] * 4), domain_shape=(4, 5), range_shape=(4, 6)
    ),
    "mask": Mask(torch.arange(20).reshape(4, 5) % 3 == 0),
    "radon": Radon((6, 6)).double(),
}


def dense(A: Operator, x: Tensor, std: float, scale: float) -> torch.distributions.Distribution:
    count = math.prod(A.domain_shape)
    columns = A(torch.eye(count, dtype=float64).reshape(count, *A.domain_shape)).reshape(count, -1)
    eye = torch.eye(columns.shape[1], dtype=float64)
    covariance = std**2 * eye + scale**2 * columns.T @ columns
    return torch.distributions.MultivariateNormal(A(x).reshape(len(x), -1), covariance)


@pytest.mark.parametrize("name", OPERATORS)
def test_density_and_moments_are_those_of_the_dense_law(name: str) -> None:
    A = OPERATORS[name]
    x, y = random(3, *A.domain_shape), random(3, *A.range_shape, seed=4)
    law = IntegratedDeviation(x, DataSpectrum(A, x), STD, SCALE)
    exact = dense(A, x, STD, SCALE)
    torch.testing.assert_close(law.log_prob(y), exact.log_prob(y.flatten(1)), rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(law.variance.flatten(1), exact.variance)
    torch.testing.assert_close(law.mean.flatten(1), exact.mean)
    # Mutants: another noise level, and a deviation left out.
    for std, scale in ((1.1 * STD, SCALE), (STD, 1e-9)):
        other = IntegratedDeviation(x, DataSpectrum(A, x), std, scale)
        assert (other.log_prob(y) - exact.log_prob(y.flatten(1))).abs().min() > 1e-3


@pytest.mark.parametrize("name", OPERATORS)
def test_the_deviation_is_the_mean_given_the_data(name: str) -> None:
    A = OPERATORS[name]
    x, y = random(3, *A.domain_shape), random(3, *A.range_shape, seed=4)
    law = IntegratedDeviation(x, DataSpectrum(A, x), STD, SCALE)
    u = law.deviation(y)
    # The gradient of |A(x + u) - y|^2 / std^2 + |u|^2 / scale^2 is zero there.
    gradient = A.adjoint(A(x + u) - y) / STD**2 + u / SCALE**2
    assert gradient.abs().max() < 1e-7
    assert (A.adjoint(A(x + 0.99 * u) - y) / STD**2 + u / SCALE**2).abs().max() > 1e-3


def test_draws_have_the_moments() -> None:
    A, torch_seed = OPERATORS["fewer data"], 0
    x = random(*A.domain_shape)
    law = IntegratedDeviation(x, DataSpectrum(A, x), STD, SCALE)
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed)
        draws = law.sample((20_000,))
    z = (draws.mean(0) - law.mean) / (law.variance / len(draws)).sqrt()
    assert z.abs().max() < 5.5  # of 7: false alarms below 1e-6
    spread = draws.var(0) / law.variance
    assert ((spread - 1) / math.sqrt(2 / len(draws))).abs().max() < 5.5
    whitened = law.whiten(draws)[..., :-1]
    assert ((whitened.square().mean(0) - 1) / math.sqrt(2 / len(draws))).abs().max() < 5.5


def test_it_batches_expands_and_maps() -> None:
    A = OPERATORS["more data"]
    x, y = random(2, 3, *A.domain_shape), random(2, 3, *A.range_shape, seed=4)
    spectrum = DataSpectrum(A, x)
    law = IntegratedDeviation(x, spectrum, STD, SCALE)
    single = torch.stack(
        [
            IntegratedDeviation(a, spectrum, STD, SCALE).log_prob(b)
            for a, b in zip(x, y, strict=True)
        ]
    )
    torch.testing.assert_close(law.log_prob(y), single)

    def of_one(a: Tensor, b: Tensor, std: Tensor) -> Tensor:
        return IntegratedDeviation(a, spectrum, std, SCALE, validate_args=False).log_prob(b)

    stds = torch.tensor([0.2, 0.4], dtype=float64)
    mapped = torch.func.vmap(of_one)(x[:, 0], y[:, 0], stds)
    torch.testing.assert_close(
        mapped,
        torch.stack([of_one(a, b, s) for a, b, s in zip(x[:, 0], y[:, 0], stds, strict=True)]),
    )
    one = IntegratedDeviation(x[0, 0], spectrum, STD, SCALE).expand((4,))
    assert one.batch_shape == (4,)
    assert one.log_prob(y[0, 0]).shape == (4,)
    empty = IntegratedDeviation(x[:, :0], spectrum, STD, SCALE)
    assert empty.log_prob(y[:, :0]).shape == (2, 0)
    assert empty.deviation(y[:, :0]).shape == (2, 0, *A.domain_shape)


def test_single_precision() -> None:
    A = OPERATORS["more data"]
    A = Matrix(A.matrix.float(), domain_shape=(4, 5))
    x, y = random(4, 5, dtype=torch.float32), random(30, seed=4, dtype=torch.float32)
    law = IntegratedDeviation(x, DataSpectrum(A, x), STD, SCALE)
    exact = dense(OPERATORS["more data"], x.double()[None], STD, SCALE).log_prob(y.double())
    assert law.log_prob(y).dtype is torch.float32
    assert abs(law.log_prob(y) - exact[0]) < 1e-3 * abs(exact[0])


def test_what_is_refused() -> None:
    like = torch.zeros(())
    with pytest.raises(OptionError, match="A: is not linear"):
        DataSpectrum(PhaseRetrieval(Fourier((4, 4))), like)
    with pytest.raises(OptionError, match="A: images of 4900 and data of 4900 numbers"):
        DataSpectrum(Identity((70, 70)), like)
    spectrum = DataSpectrum(Identity((2, 2)), like)
    with pytest.raises(ShapeError, match=r"image: has shape \(3,\); expected \(\*batch, 2, 2\)"):
        IntegratedDeviation(torch.zeros(3), spectrum, 0.1, 0.1)
    with pytest.raises(DtypeError, match="image: expected a floating-point tensor"):
        IntegratedDeviation(torch.zeros(2, 2).long(), spectrum, 0.1, 0.1)
    with pytest.raises(ValueError, match="std"):
        IntegratedDeviation(torch.zeros(2, 2), spectrum, -0.1, 0.1, validate_args=True)


def test_directions_hardly_seen_count_in_double_precision() -> None:
    """Singular values over six decades: those below 1e-7 of the largest square must not be lost."""
    left = torch.linalg.qr(random(30, 20, seed=8))[0]
    right = torch.linalg.qr(random(20, 20, seed=9))[0]
    values = torch.logspace(2, -2, 20, dtype=float64)
    A = Matrix(left * values @ right, domain_shape=(4, 5))
    x, y = random(1, 4, 5), random(1, 30, seed=4)
    law = IntegratedDeviation(x, DataSpectrum(A, x), 1e-2, 1.0)
    expected = dense(A, x, 1e-2, 1.0).log_prob(y.flatten(1))
    torch.testing.assert_close(law.log_prob(y), expected, rtol=1e-4, atol=0)
    with pytest.raises(ShapeError, match=r"value: has shape \(1, 29\); expected data \(30,\)"):
        law.log_prob(y[:, 1:])
    with pytest.raises(DtypeError, match="value: is torch.float32; expected torch.float64"):
        law.log_prob(y.float())


def test_what_images_do_not_explain_survives_single_precision() -> None:
    """With more data than pixels the rest tells sigma, however small it is beside the data."""
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 16, generator=rng, dtype=torch.float64)
    A = Matrix(matrix, domain_shape=(4, 4))
    y = A(10.0 + torch.zeros(4, 4, dtype=torch.float64))
    y = y + 1e-3 * torch.randn(64, generator=rng, dtype=torch.float64)
    values = []
    for dtype in (torch.float32, torch.float64):
        spectrum = DataSpectrum(
            Matrix(matrix.to(dtype), domain_shape=(4, 4)), torch.zeros((), dtype=dtype)
        )
        image = torch.full((4, 4), 10.0, dtype=dtype)
        levels = torch.tensor([0.5e-3, 1e-3, 2e-3], dtype=dtype)
        law = IntegratedDeviation(image, spectrum, std=levels, scale=1.0)
        found = law.log_prob(y.to(dtype)).double()
        values.append(found - found[1])
    assert float((values[0] - values[1]).abs().max()) < 3.0 and float(values[1][0]) < -20
