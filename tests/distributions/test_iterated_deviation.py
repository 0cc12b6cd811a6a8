"""The iteration against the decomposition, which is tested against the dense law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayesgen.distributions import DataSpectrum, IntegratedDeviation, IteratedDeviation
from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.operators import Blur, Fourier, Identity, Matrix, Operator, PhaseRetrieval, Radon
from bayesgen.operators import gaussian_kernel as kernel

float64 = torch.float64


def random(*shape: int, seed: int = 0, dtype: torch.dtype = float64) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=dtype)


OPERATORS: dict[str, Operator] = {
    "fewer data": Matrix(random(7, 20, seed=1), domain_shape=(4, 5)),
    "more data": Matrix(random(30, 20, seed=2), domain_shape=(4, 5)),
    "radon": Radon((6, 6)).double(),
    "blur": Blur((6, 6), kernel(3, 1.0)).double(),
    "identity": Identity((4, 5)),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("std", "scale"), [(0.3, 0.2), (0.5, 0.01), (0.5, 0.3)])
def test_it_is_the_decomposed_law(name: str, std: float, scale: float) -> None:
    A = OPERATORS[name]
    x, y = random(3, *A.domain_shape), random(3, *A.range_shape, seed=4)
    x.requires_grad_()
    exact = IntegratedDeviation(x, DataSpectrum(A, x), std, scale)
    found = IteratedDeviation(x, A, std, scale)
    gap = found.log_prob(y) - exact.log_prob(y)
    # They differ by a constant.
    assert (gap - gap[0]).abs().max() < 1e-7 * exact.log_prob(y).abs().max()
    torch.testing.assert_close(found.deviation(y), exact.deviation(y), rtol=1e-8, atol=1e-8)
    slopes = [torch.autograd.grad(law.log_prob(y).sum(), x)[0] for law in (found, exact)]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-7)
    # The mutant that stops halfway is seen, where there is anything to iterate.
    found.num_steps //= 4
    if (scale * A.norm() / std) > 1:
        assert (found.deviation(y) - exact.deviation(y)).abs().max() > 1e-6


def test_single_precision_batches_and_maps() -> None:
    A = Matrix(random(30, 20, seed=2).float(), domain_shape=(4, 5))
    x, y = random(2, 3, 4, 5).float(), random(2, 3, 30, seed=4).float()
    law = IteratedDeviation(x, A, 0.3, 0.2)
    assert law.log_prob(y).shape == (2, 3) and law.log_prob(y).dtype is torch.float32

    def of_one(a: Tensor, b: Tensor) -> Tensor:
        return IteratedDeviation(a, A, 0.3, 0.2, validate_args=False).log_prob(b)

    mapped = torch.func.vmap(of_one)(x[0], y[0])
    torch.testing.assert_close(mapped, law.log_prob(y)[0], rtol=1e-4, atol=1e-4)
    assert IteratedDeviation(x[:, :0], A, 0.3, 0.2).log_prob(y[:, :0]).shape == (2, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = IteratedDeviation(x[0, 0], A, 0.3, 0.2).sample((4000,))
    variance = IntegratedDeviation(x[0, 0], DataSpectrum(A, x), 0.3, 0.2).variance
    assert ((draws.var(0) / variance - 1) / (2 / 4000) ** 0.5).abs().max() < 6


def test_what_is_refused() -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(OptionError, match="A: is not linear"):
        IteratedDeviation(torch.zeros(4, 4), PhaseRetrieval(Fourier((4, 4))), 0.1, 0.1)
    for std, scale, name in ((0.0, 1.0, "std"), (1.0, -1.0, "scale")):
        with pytest.raises(OptionError, match=name):
            IteratedDeviation(x, Identity((2, 2)), std, scale)
    with pytest.raises(
        OptionError, match=r"scale: 100 is so much larger than the noise, 0.1, that"
    ):
        IteratedDeviation(x, Identity((2, 2)), 0.1, 100.0)
    law = IteratedDeviation(x, Identity((2, 2)), 0.1, 0.1)
    with pytest.raises(ShapeError, match="value: has shape"):
        law.log_prob(torch.zeros(3))
    with pytest.raises(DtypeError, match="value: is torch.float64"):
        law.log_prob(torch.zeros(2, 2, dtype=float64))
    with pytest.raises(ShapeError, match="image: has shape"):
        IteratedDeviation(torch.zeros(3), Identity((2, 2)), 0.1, 0.1)
