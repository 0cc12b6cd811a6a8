"""Every layer is a bijection and knows its determinant; wrong ones are found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from bayesgen.models.coupling import (
    ActNorm,
    AffineCoupling,
    Chain,
    Flatten,
    Invertible,
    Mixing,
    Split,
    Squeeze,
)
from bayesgen.models.trainable import initialise

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def network(inputs: int, outputs: int, *, images: bool = True) -> nn.Sequential:
    if not images:
        return nn.Sequential(nn.Linear(inputs, 6), nn.SiLU(), nn.Linear(6, outputs))
    return nn.Sequential(
        nn.Conv2d(inputs, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, outputs, 3, padding=1)
    )


def split() -> Split:
    rest = Chain([ActNorm((2, 2, 3)), Flatten((2, 2, 3))])
    return Split(AffineCoupling(network(2, 4), 2), rest, (2, 2, 3))


# The shape of one input, and the layer.
LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], Invertible]]] = {
    "actnorm of vectors": ((5,), lambda: ActNorm((5,))),
    "actnorm of channels": ((3, 2, 4), lambda: ActNorm((3, 1, 1))),
    "actnorm of pixels": ((3, 2, 4), lambda: ActNorm((3, 2, 4))),
    "mixing of vectors": ((5,), lambda: Mixing(5)),
    "mixing of channels": ((4, 2, 3), lambda: Mixing(4)),
    "coupling of vectors": ((5,), lambda: AffineCoupling(network(2, 6, images=False), 2)),
    "coupling of channels": ((4, 2, 3), lambda: AffineCoupling(network(2, 4), 2)),
    "squeeze": ((2, 4, 6), Squeeze),
    "flatten": ((2, 3, 4), lambda: Flatten((2, 3, 4))),
    "split": ((4, 2, 3), split),
    "chain": ((1, 4, 6), lambda: Chain([Squeeze(), Mixing(4), ActNorm((4, 1, 1))])),
}


L = TypeVar("L", bound=Invertible)


def initialised(build: Callable[[], L], rng: torch.Generator) -> L:
    """A layer with its initial weights, made as generators make theirs."""
    with torch.device("meta"):
        layer = build()
    layer.to_empty(device="cpu")
    initialise(layer, rng)
    return layer


def make(name: str, rng: torch.Generator) -> tuple[Invertible, Tensor]:
    """A layer with weights as after training, and a batch, in double precision."""
    shape, build = LAYERS[name]
    layer = initialised(build, rng).double()
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        parameter.data.add_(noise, alpha=0.3)
    return layer, torch.randn(4, *shape, generator=rng, dtype=torch.float64)


def errors(layer: Invertible, x: Tensor) -> tuple[float, float, float]:
    """Of the inverse, of the log-determinant, and of that of the inverse."""
    y, log_det = layer(x)
    back, inverse_log_det = layer.inverse(y)
    there, _ = layer(layer.inverse(y.flip(0))[0])
    distance = max((back - x).abs().max().item(), (there - y.flip(0)).abs().max().item())
    jacobians = [
        torch.autograd.functional.jacobian(lambda x: layer(x[None])[0][0], row) for row in x
    ]
    matrices = torch.stack([jacobian.reshape(x[0].numel(), -1) for jacobian in jacobians])
    exact = torch.linalg.slogdet(matrices)[1]
    return (
        distance,
        (log_det - exact).abs().max().item(),
        (inverse_log_det + exact).abs().max().item(),
    )


@pytest.mark.parametrize("name", LAYERS)
def test_inverse_and_determinants(name: str, rng: torch.Generator) -> None:
    assert max(errors(*make(name, rng))) < 1e-10


@pytest.mark.parametrize("name", LAYERS)
def test_inverse_in_single_precision(name: str, rng: torch.Generator) -> None:
    layer, x = make(name, rng)
    layer, x = layer.float(), x.float()
    y, log_det = layer(x)
    back, _ = layer.inverse(y)
    assert y.dtype == log_det.dtype == back.dtype == torch.float32
    assert (back - x).abs().max() < 1e-5 * x.abs().max()
    there, _ = layer(layer.inverse(y.flip(0))[0])
    assert (there - y.flip(0)).abs().max() < 1e-5 * y.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_empty_batches(name: str, rng: torch.Generator) -> None:
    layer, x = make(name, rng)
    y, log_det = layer(x[:0])
    back, inverse_log_det = layer.inverse(y)
    assert y.shape == layer(x)[0][:0].shape and back.shape == x[:0].shape
    assert log_det.shape == inverse_log_det.shape == (0,)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name: str, rng: torch.Generator) -> None:
    layer, x = make(name, rng)
    torch.autograd.gradcheck(layer, x[:1].requires_grad_(), fast_mode=True)
    torch.autograd.gradcheck(
        layer.inverse, layer(x[:1])[0].detach().requires_grad_(), fast_mode=True
    )
    weights = dict(layer.named_parameters())
    if not weights:
        return

    def of_weights(*values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(weights, values, strict=True)), (x,))

    torch.autograd.gradcheck(of_weights, tuple(weights.values()), fast_mode=True)


class WrongSign(AffineCoupling):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = super().forward(x)
        return y, -log_det


class ForgetsOneScale(ActNorm):
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(y)
        first = y[:, :1] + self.shift[:1]
        return torch.cat([first, x[:, 1:]], 1), log_det


class CountsChannelsOnly(ActNorm):
    def _log_det(self, x: Tensor) -> Tensor:
        return self.log_scale.sum().expand(len(x))


class KeepsPermutation(Mixing):
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        # As if P were its own inverse.
        x, log_det = super().inverse(y[:, self.permutation][:, self.permutation])
        return x, log_det


class OneScaleTooMany(Mixing):
    def _log_det(self, x: Tensor) -> Tensor:
        return super()._log_det(x) + self.log_scale[0]


@pytest.mark.parametrize(
    ("mutant", "finding"),
    [
        (lambda: WrongSign(network(2, 4), 2), 1),
        (lambda: ForgetsOneScale((4, 1, 1)), 0),
        (lambda: CountsChannelsOnly((4, 1, 1)), 1),
        (lambda: KeepsPermutation(4), 0),
        (lambda: OneScaleTooMany(4), 1),
    ],
)
def test_mutants_are_found(
    mutant: Callable[[], Invertible],
    finding: int,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LAYERS, "mutant", ((4, 2, 3), mutant))
    layer, x = make("mutant", rng)
    if isinstance(layer, Mixing):
        # A cycle of three, which is not its own inverse.
        layer.permutation.copy_(torch.tensor([1, 2, 0, 3]))
    assert errors(layer, x)[finding] > 1e-2


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (5, 3, 4)])
def test_actnorm_starts_with_mean_zero_and_variance_one(
    shape: tuple[int, ...], rng: torch.Generator
) -> None:
    scale = torch.logspace(-1, 1, 5, dtype=torch.float64)
    x = torch.randn(200, 5, 3, 4, generator=rng, dtype=torch.float64)
    x = (x * scale[:, None, None] + 7) if len(shape) == 3 else x[..., 0, 0] * scale + 7
    layer = initialised(lambda: ActNorm(shape), rng).double()
    y = layer.prepare(x)
    dims = [0, 2, 3] if shape == (5, 1, 1) else [0]
    assert y.mean(dims).abs().max() < 1e-10
    torch.testing.assert_close(y.var(dims, correction=0), torch.ones_like(y.mean(dims)))
    assert torch.equal(layer(x)[0], y)


def test_what_does_not_vary_is_not_magnified_beyond_measure(rng: torch.Generator) -> None:
    x = torch.randn(50, 2, generator=rng) * torch.tensor([3.0, 0.0])
    layer = initialised(lambda: ActNorm((2,), floor=0.1), rng)
    layer.prepare(x)
    gain = layer.log_scale.exp()
    torch.testing.assert_close(gain[1], 10 * gain[0])
    layer.prepare(torch.full((5, 2), 4.0))
    assert torch.equal(layer.log_scale, torch.zeros(2)) and torch.equal(layer.shift[0], 4 + x[0, 1])


def test_chains_prepare_each_layer_for_what_it_will_see(rng: torch.Generator) -> None:
    def build() -> Chain:
        coupling = AffineCoupling(network(2, 4), 2)
        return Chain([Squeeze(), ActNorm((4, 1, 1)), Mixing(4), coupling, ActNorm((4, 1, 1))])

    chain = initialised(build, rng)
    for parameter in chain.layers[3].parameters():
        nn.init.normal_(parameter, generator=rng)
    y = chain.prepare(torch.rand(300, 1, 4, 4, generator=rng))
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(4))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)


def test_mixing_starts_as_a_rotation_drawn_from_the_seed() -> None:
    def matrix(seed: int) -> Tensor:
        layer = initialised(lambda: Mixing(6), torch.Generator().manual_seed(seed)).double()
        return layer(torch.eye(6, dtype=torch.float64))[0]

    one, other = matrix(1), matrix(2)
    torch.testing.assert_close(one @ one.T, torch.eye(6, dtype=torch.float64))
    assert torch.equal(one, matrix(1)) and not torch.allclose(one, other)


def test_mixing_keeps_a_permutation_beside_its_triangles(rng: torch.Generator) -> None:
    layer = Mixing(3).double()
    layer.permutation.copy_(torch.tensor([1, 2, 0]))
    layer.sign.copy_(torch.tensor([1.0, -1.0, 1.0]))
    nn.init.zeros_(layer.factors)
    layer.log_scale.data = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log()
    y, log_det = layer(torch.tensor([[1.0, 10.0, 100.0]], dtype=torch.float64))
    torch.testing.assert_close(y, torch.tensor([[-20.0, 300.0, 1.0]], dtype=torch.float64))
    assert math.isclose(log_det.item(), math.log(6))


def test_couplings_start_as_the_identity_and_stay_bounded(rng: torch.Generator) -> None:
    layer = initialised(lambda: AffineCoupling(network(2, 4), 2, bound=1.5), rng)
    x = torch.randn(8, 4, 3, 3, generator=rng)
    y, log_det = layer(x)
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(8))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=100.0, generator=rng)
    y, log_det = layer(x)
    # Two of the four channels on nine pixels.
    assert log_det.abs().max() <= 1.5 * 18 * (1 + 1e-6)
    gain = torch.autograd.functional.jvp(
        lambda x: layer(x)[0], x, (x * 0).index_fill(1, torch.tensor([2, 3]), 1.0)
    )[1][:, 2:]
    assert math.exp(-1.5) * (1 - 1e-5) <= gain.min() < gain.max() <= math.exp(1.5) * (1 + 1e-5)


def test_squeezing_agrees_with_torch(rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 6, generator=rng)
    assert torch.equal(Squeeze()(x)[0], nn.functional.pixel_unshuffle(x, 2))


def test_what_leaves_is_standard_normal_given_what_stays(rng: torch.Generator) -> None:
    """One channel is twice the other plus noise of deviation 0.1."""

    def build() -> Split:
        gaussian = nn.Sequential(nn.Conv2d(1, 2, 1))
        return Split(AffineCoupling(gaussian, 1, bound=5.0), Flatten((1, 2, 2)), (1, 2, 2))

    layer = initialised(build, rng).requires_grad_(False)
    weight, bias = layer.coupling.network.parameters()
    # s = log 10 throughout; t = -20 x1.
    weight.copy_(torch.tensor([0.0, -20.0]).reshape(2, 1, 1, 1))
    bias.copy_(torch.tensor([5 * math.atanh(math.log(10) / 5), 0.0]))
    stays, noise = torch.randn(2, 10_000, 1, 2, 2, generator=rng)
    z, log_det = layer(torch.cat([stays, 2 * stays + 0.1 * noise], 1))
    assert torch.equal(z[:, :4], stays.flatten(1))
    torch.testing.assert_close(z[:, 4:], noise.flatten(1), rtol=0, atol=1e-4)
    torch.testing.assert_close(log_det, torch.full((10_000,), 4 * math.log(10)))


def test_half_precision_does_not_touch_the_pixels(rng: torch.Generator) -> None:
    layer, x = make("mixing of channels", rng)
    layer, x = layer.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed, log_det = layer(x)
    plain, exact = layer(x)
    assert torch.equal(mixed, plain) and torch.equal(log_det, exact)
    coupling = make("coupling of channels", rng)[0].float()
    with torch.autocast("cpu", torch.bfloat16):
        y, log_det = coupling(x)
    assert y.dtype == log_det.dtype == torch.float32
    assert torch.equal(y[:, :2], x[:, :2])
