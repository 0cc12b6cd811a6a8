from __future__ import annotations

import pytest
import torch

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.models import Generator


class Scale(Generator):
    def __init__(self) -> None:
        super().__init__((2, 3), 1)
        self.weight = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z[..., None] * self.weight


def test_prior_is_standard_normal_in_the_dtype_of_the_weights() -> None:
    prior = Scale().prior()
    assert prior.event_shape == (1,) and prior.mean.dtype == torch.float64
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(0.3))
    torch.testing.assert_close(prior.log_prob(torch.tensor([0.3]).double()), expected.double())
    assert Scale().float().prior().mean.dtype == torch.float32


def test_any_batch_shape() -> None:
    for batch in [(), (1,), (0,), (4, 5)]:
        assert Scale()(torch.zeros(*batch, 1, dtype=torch.float64)).shape == (*batch, 2, 3)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.zeros(4, 2).double(), ShapeError, r"z: expected shape \(\*batch, 1\), got \(4, 2\)"),
        (torch.tensor(0.0).double(), ShapeError, r"got \(\)"),
        (torch.zeros(4, 1), DtypeError, r"z: is torch.float32 .*weights are torch.float64"),
        (torch.zeros(4, 1, dtype=torch.int64), DtypeError, "z: expected a floating-point tensor"),
        ([0.0], DtypeError, "got list"),
    ],
)
def test_bad_latent_vectors(z: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Scale()(z)


def test_encode_is_optional() -> None:
    with pytest.raises(NotImplementedError, match="Scale has no encoder"):
        Scale().encode(torch.zeros(2, 3))


@pytest.mark.parametrize(("shape", "latent"), [((), 1), ((0, 2), 1), ((2, 2), 0), ((2, 2), -3)])
def test_bad_sizes(shape: tuple[int, ...], latent: int) -> None:
    with pytest.raises(OptionError, match="expected"):
        Generator(shape, latent)
