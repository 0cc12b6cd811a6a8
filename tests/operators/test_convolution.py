from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.log_density import LogDensity
from bayesgen.operators import Blur, Convolution, check_operator

BOUNDARIES = ("zero", "periodic", "reflect")


def _random(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("domain_shape", [(7, 9), (3, 6, 5)])
@pytest.mark.parametrize("kernel_shape", [(3, 3), (2, 5), (1, 1)])
def test_is_the_blur_with_that_kernel(
    boundary: Any, domain_shape: Any, kernel_shape: Any, rng: torch.Generator
) -> None:
    A = Convolution(domain_shape, kernel_shape, boundary)
    kernel, x = _random(rng, *kernel_shape), _random(rng, 4, *domain_shape)
    assert torch.allclose(A(x, kernel), Blur(domain_shape, kernel, boundary)(x), atol=1e-12)


def test_batches_broadcast(rng: torch.Generator) -> None:
    A = Convolution((2, 5, 4), (3, 2))
    x, kernels = _random(rng, 6, 1, 2, 5, 4), _random(rng, 3, 3, 2)
    y = A(x, kernels)
    assert y.shape == (6, 3, 2, 5, 4)
    for i in range(6):
        for k in range(3):
            assert torch.allclose(y[i, k], A(x[i, 0], kernels[k]), atol=1e-12)
    assert A(x[:0], kernels).shape == (0, 3, 2, 5, 4)
    assert A(x[:0].requires_grad_(), kernels).requires_grad
    with pytest.raises(ShapeError, match=r"batches of images \(6,\) and of kernels \(3,\) do not"):
        A(x[:, 0], kernels)
    assert A(x[0], kernels[:0]).shape == (0, 2, 5, 4)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_derivatives_in_image_and_kernel(boundary: Any, rng: torch.Generator) -> None:
    A = Convolution((5, 4), (3, 2), boundary)
    x, kernel = _random(rng, 5, 4).requires_grad_(), _random(rng, 3, 2).requires_grad_()
    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(A, (x, kernel))
        assert torch.autograd.gradgradcheck(A, (x, kernel))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_operator_from_kernels_to_data(boundary: Any, rng: torch.Generator) -> None:
    A = Convolution((2, 5, 4), (3, 2), boundary)
    x, kernel = _random(rng, 2, 5, 4), _random(rng, 3, 2)
    given = A.given(x)
    check_operator(given).raise_if_failed()
    assert torch.allclose(given(kernel), A(x, kernel))


def test_both_can_be_sites(rng: torch.Generator) -> None:
    """As the chains see it, in one batch, against one at a time."""
    A = Convolution((6, 5), (3, 3), "reflect")
    y = _random(rng, 6, 5)
    zero, one = torch.zeros(6, 5, dtype=torch.float64), torch.ones(9, dtype=torch.float64)

    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(zero, 1.0).to_event(2))
        kernel = pyro.sample("kernel", dist.Dirichlet(one)).reshape(3, 3)
        pyro.sample("y", dist.Normal(A(x, kernel), 0.1).to_event(2), obs=y)

    density = LogDensity(model, y)
    v = _random(rng, 4, density.num_dims)
    value, gradient = density.value_and_grad(v)
    for k in range(4):
        alone, slope = density.value_and_grad(v[k : k + 1])
        assert torch.allclose(value[k], alone[0])
        assert torch.allclose(gradient[k], slope[0])
    values = density.constrain(v)
    kernel, x = values["kernel"].reshape(-1, 3, 3), values["x"]
    exact = dist.Normal(A(x, kernel), 0.1).to_event(2).log_prob(y)
    exact = exact + dist.Normal(zero, 1.0).to_event(2).log_prob(x)
    exact = exact + dist.Dirichlet(one).log_prob(values["kernel"])
    found = density.value_and_grad(v, jacobian=False)[0]
    assert torch.allclose(found, exact)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Convolution((5,), (1,)), ShapeError, r"domain_shape: expected \(y, x\) or"),
        (lambda: Convolution((5, 5), (3,)), ShapeError, r"kernel: expected two dimensions"),
        (
            lambda: Convolution((5, 4), (3, 5)),
            ShapeError,
            r"kernel: \(3, 5\) is larger than the image \(5, 4\); crop it",
        ),
        (lambda: Convolution((5, 5), (0, 3)), OptionError, "kernel_shape: expected a tuple"),
        (lambda: Convolution((5, 5), (3, 3), "wrap"), OptionError, "boundary: unknown value"),
    ],
)
def test_what_cannot_be_made(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "kernel", "error", "message"),
    [
        (torch.ones(4, 5), torch.ones(3, 3), ShapeError, r"Convolution: x must have shape"),
        (torch.ones(5, 5), torch.ones(3, 2), ShapeError, r"Convolution: kernel must have shape"),
        (torch.ones(5, 5), torch.ones(3, 3) * 1j, DtypeError, "kernel must be real"),
        (torch.ones(5, 5), torch.ones(3, 3).double(), DtypeError, "kernel is torch.float64"),
        (torch.ones(5, 5), [[1.0]], DtypeError, "kernel must be a torch tensor, got list"),
    ],
)
def test_bad_arguments(x: Any, kernel: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Convolution((5, 5), (3, 3))(x, kernel)
    with pytest.raises(ShapeError, match=r"expected one image \(5, 5\), got \(2, 5, 5\)"):
        Convolution((5, 5), (3, 3)).given(torch.ones(2, 5, 5))
    with pytest.raises(DataError, match="x: an entry is NaN or infinite"):
        Convolution((5, 5), (3, 3)).given(torch.full((5, 5), torch.inf))
    with pytest.raises(DtypeError, match="x: operators are made of constants"):
        Convolution((5, 5), (3, 3)).given(torch.ones(5, 5, requires_grad=True))
