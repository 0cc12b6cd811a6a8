"""What all noise models share: shapes, broadcasting, expansion, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.distributions import (
    GaussianNoise,
    LaplaceNoise,
    Noise,
    PoissonGaussianNoise,
    PoissonNoise,
    RicianNoise,
    StructuredNormal,
    StudentTNoise,
)
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.model_sites import isolated
from bayesgen.traces import elementwise_log_prob

EYE = torch.eye(6)


def structured(mean: Tensor, **options: Any) -> Noise:
    return StructuredNormal(mean, 0.7, torch.full((4, 1, 1), -0.3), **options)


def full(mean: Tensor, cholesky: Tensor = EYE, **options: Any) -> Noise:
    return GaussianNoise(mean, cholesky=cholesky, **options)


def images(*batch: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return 1 + torch.rand((*batch, 2, 3), generator=rng)


MAKE: dict[str, Callable[..., Noise]] = {
    "gaussian": lambda mean, **more: GaussianNoise(mean, 0.5, **more),
    "full gaussian": full,
    "structured": structured,
    "laplace": lambda mean, **more: LaplaceNoise(mean, 0.5, **more),
    "student t": lambda mean, **more: StudentTNoise(mean, 0.5, 4.0, **more),
    "poisson": lambda mean, **more: PoissonNoise(mean, 0.5, 1.0, **more),
    "poisson-gaussian": lambda mean, **more: PoissonGaussianNoise(mean, 0.5, **more),
    "rician": lambda mean, **more: RicianNoise(mean, 0.5, **more),
}


@pytest.fixture(params=MAKE)
def make(request: pytest.FixtureRequest) -> Callable[..., Noise]:
    return MAKE[request.param]


def sample(noise: Any, *shape: int) -> Tensor:
    with isolated(0):
        drawn: Tensor = noise.sample(shape)
    return drawn


def test_the_mean_is_one_event_unless_told_otherwise(make: Callable[..., Noise]) -> None:
    whole, batch = make(images()), make(images(5), event_dim=2)
    assert (whole.batch_shape, whole.event_shape) == ((), (2, 3))
    assert (batch.batch_shape, batch.event_shape) == ((5,), (2, 3))
    assert (batch.event_dim, batch.mean.shape, batch.variance.shape) == (2, (5, 2, 3), (5, 2, 3))
    y = sample(batch, 4)
    assert y.shape == (4, 5, 2, 3)
    assert batch.log_prob(y).shape == (4, 5)
    assert batch.log_prob(y[0, 0]).shape == (5,)
    single = torch.stack([make(mean).log_prob(y[:, i]) for i, mean in enumerate(images(5))], dim=1)
    assert torch.allclose(batch.log_prob(y), single)


def test_events_of_fewer_dimensions_and_numbers() -> None:
    y = images(5)
    entries = LaplaceNoise(images(5), 0.5, event_dim=0)
    assert entries.batch_shape == (5, 2, 3) and entries.event_shape == ()
    for k in range(4):
        noise = LaplaceNoise(images(5), 0.5, event_dim=k)
        summed = entries.log_prob(y + 0.1).flatten(3 - k).sum(-1) if k else None
        assert summed is None or torch.allclose(noise.log_prob(y + 0.1), summed)
    number = GaussianNoise(torch.tensor(1.0), cholesky=torch.tensor([[2.0]]))
    same = dist.Normal(1.0, 2.0).log_prob(torch.tensor(3.0))
    assert torch.allclose(number.log_prob(torch.tensor(3.0)), same)


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
def test_batches_of_size_zero(make: Callable[..., Noise], batch: tuple[int, ...]) -> None:
    noise = make(images(*batch), event_dim=2)
    y = sample(noise, 2)
    assert y.shape == (2, *batch, 2, 3)
    assert noise.log_prob(y).shape == (2, *batch)
    assert sample(make(images()), 0).shape == (0, 2, 3)
    assert make(images()).log_prob(images(0)).shape == (0,)


def test_expand(make: Callable[..., Noise]) -> None:
    noise = make(images(5, 1), event_dim=2)
    wide = noise.expand((4, 5, 3))
    y = sample(wide)
    assert type(wide) is type(noise)
    assert (wide.batch_shape, wide.event_shape) == ((4, 5, 3), (2, 3))
    assert y.shape == wide.mean.shape == wide.variance.shape == (4, 5, 3, 2, 3)
    assert torch.allclose(wide.log_prob(y), noise.log_prob(y))
    assert noise.batch_shape == (5, 1)
    assert noise.expand_by((2,)).batch_shape == (2, 5, 1)
    assert not torch.equal(y[0], y[1])  # draws of their own


def test_parameters_broadcast_and_may_add_batch_dimensions() -> None:
    y = images()
    for std in (0.5, torch.full((3,), 0.5), torch.full((2, 1), 0.5), torch.full((2, 3), 0.5)):
        assert torch.allclose(
            GaussianNoise(y, std).log_prob(y + 1), MAKE["gaussian"](y).log_prob(y + 1)
        )
    stds = torch.tensor([0.5, 1.0]).view(2, 1, 1)
    both = GaussianNoise(y, stds)
    assert both.batch_shape == (2,)
    assert torch.allclose(both.log_prob(y)[1], GaussianNoise(y, 1.0).log_prob(y))
    factors = torch.stack([EYE, 2 * EYE])
    assert torch.allclose(full(y, factors).log_prob(y)[1], GaussianNoise(y, 2.0).log_prob(y))
    assert torch.allclose(
        full(images(2), factors, event_dim=2).variance[1], torch.full((2, 3), 4.0)
    )


def test_parameters_can_be_read() -> None:
    noise = PoissonNoise(images(), gain=0.25, background=torch.full((3,), 2.0))
    assert float(noise.gain) == 0.25 and noise.background.shape == (3,)
    assert torch.equal(noise.mean, images() + 2)
    assert torch.equal(full(images()).cholesky, EYE)
    for name, noise in {k: make(images()) for k, make in MAKE.items()}.items():
        given = [p for p in noise.arg_constraints if p not in ("mean", "std", "cholesky")]
        assert all(isinstance(getattr(noise, p), Tensor) for p in given), name


def test_printing_is_short(make: Callable[..., Noise]) -> None:
    noise = make(images(5), event_dim=2)
    name = type(noise).__name__
    assert repr(noise) == f"{name}(batch_shape=(5,), event_shape=(2, 3))"
    assert len(str(noise.support)) < 80


def test_entries_are_scored_one_by_one_where_they_are_independent(
    make: Callable[..., Noise],
) -> None:
    noise = make(images(5), event_dim=2)
    y = sample(noise)
    entries = elementwise_log_prob({"fn": noise, "value": y, "scale": 1.0, "mask": None})
    assert entries.shape == ((5,) if make in (full, structured) else (5, 2, 3))
    assert torch.allclose(entries.reshape(5, -1).sum(1), noise.log_prob(y))


def test_the_tools_of_pyro_apply(make: Callable[..., Noise]) -> None:
    noise = make(images(5), event_dim=2)
    y = sample(noise)
    assert torch.allclose(noise.to_event(1).log_prob(y), noise.log_prob(y).sum())
    masked = noise.mask(torch.arange(5) > 3).log_prob(y)
    assert (masked[:4] == 0).all() and masked[4] == noise.log_prob(y)[4]
    with isolated(0):
        assert noise().shape == (5, 2, 3)
        trace = pyro.poutine.trace(lambda: pyro.sample("y", noise, obs=y)).get_trace()
    assert torch.allclose(trace.log_prob_sum(), noise.log_prob(y).sum())


REFUSALS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: GaussianNoise([1.0], 1.0), DtypeError, "mean must be a torch tensor, got list"),
    (lambda: RicianNoise(torch.arange(3), 1.0), DtypeError, "magnitude must be real floating-p"),
    (lambda: GaussianNoise(images() * 1j, 1.0), DtypeError, "mean must be real.*complex64"),
    (lambda: LaplaceNoise(images(), "1"), DtypeError, "scale must be a number.*got str"),
    (lambda: LaplaceNoise(images(), True), DtypeError, "scale must be a number.*got bool"),
    (lambda: GaussianNoise(images(), EYE.double()[0, 0]), DtypeError, "std is torch.float64"),
    (lambda: PoissonNoise(images(), torch.tensor(2)), DtypeError, "gain is torch.int64"),
    (lambda: GaussianNoise(images()), OptionError, "either std or cholesky, got neither"),
    (lambda: GaussianNoise(images(), 1.0, cholesky=EYE), OptionError, "got both"),
    (lambda: GaussianNoise(images(), 1.0, event_dim=3), OptionError, "event_dim: got 3.*0 to 2"),
    (lambda: GaussianNoise(images(), 1.0, event_dim=-1), OptionError, "event_dim: got -1"),
    (lambda: GaussianNoise(images(), 1.0, event_dim=True), OptionError, "event_dim: got True"),
    (lambda: GaussianNoise(images(), torch.ones(2)), ShapeError, r"std has shape \(2,\)"),
    (lambda: GaussianNoise(torch.ones(1), torch.ones(3)), ShapeError, r"std.*event shape \(1,\)"),
    (lambda: full(images(), torch.eye(5)), ShapeError, r"cholesky.*\(\*batch, 6, 6\)"),
    (lambda: full(images(), torch.ones(6)), ShapeError, "cholesky has shape"),
    (lambda: full(images(5), EYE.expand(4, 6, 6), event_dim=2), ShapeError, "cholesky has shape"),
    (lambda: GaussianNoise(images(), 0.0), DataError, "std: 1 of 1 values are not finite and posi"),
    (lambda: LaplaceNoise(images(), -1.0), DataError, "scale: .* positive; the first is -1"),
    (lambda: LaplaceNoise(images(), float("inf")), DataError, "scale: .* the first is inf"),
    (lambda: StudentTNoise(images(), 1.0, 0.0), DataError, "df: .* the first is 0"),
    (lambda: PoissonNoise(images(), gain=-1.0), DataError, "gain: "),
    (lambda: PoissonNoise(images(), background=float("nan")), DataError, "background: .* is nan"),
    (lambda: PoissonGaussianNoise(images(), 0.0), DataError, "std: "),
    (lambda: RicianNoise(images(), -images()), DataError, r"std: 6 of 6.* at index \(0, 0\)"),
    (lambda: GaussianNoise(images() / 0, 1.0), DataError, "mean: 6 of 6 values are not finite"),
    (lambda: full(images(), -EYE), DataError, "cholesky: 6 of 36.*positive diagonal"),
    (lambda: full(images(), EYE + EYE.flip(0)), DataError, r"cholesky: 3 of 36.*\(0, 5\)"),
    (lambda: MAKE["gaussian"](images()).log_prob(1.0), DtypeError, "value must be a torch tensor"),
    (lambda: MAKE["gaussian"](images()).log_prob(images()[0]), ShapeError, r"value has.*\(3,\)"),
    (
        lambda: LaplaceNoise(images(5), 1.0, event_dim=2).log_prob(images(4)),
        ShapeError,
        r"value has shape \(4, 2, 3\); expected .*\(5,\)",
    ),
    (lambda: MAKE["gaussian"](images()).log_prob(images() / 0), DataError, "value: 6 of 6"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_refusals_name_the_argument_and_stay_short(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(str(caught.value)) < 250
    assert "tensor(" not in str(caught.value)


def test_values_are_looked_at_only_when_validating() -> None:
    assert GaussianNoise(images(), -1.0, validate_args=False).batch_shape == ()
    with pyro.validation_enabled(False):
        noise = GaussianNoise(images(), -1.0)
        with pytest.raises(DataError, match="std"):
            GaussianNoise(images(), -1.0, validate_args=True)
        with pytest.raises(ShapeError, match="std"):
            GaussianNoise(images(), torch.ones(2))
        assert noise.log_prob(images()).isnan()
    late = PoissonNoise(images())
    with pyro.validation_enabled(False):  # the setting counts when it is used
        assert torch.isfinite(late.log_prob(images()))
        assert torch.isfinite(late.expand((2,)).log_prob(images())).all()
    with pytest.raises(DataError, match="value"):
        late.log_prob(images())
