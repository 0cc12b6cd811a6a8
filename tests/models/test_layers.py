"""Layers against the definitions of the software they are taken from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bayesgen.models.layers import (
    Affine,
    BatchNorm,
    Dropout,
    LogStd,
    Network,
    Rule,
    SameConv2d,
    SameConvTranspose2d,
    glorot,
    narrow,
    same_padding,
    uniform,
)
from bayesgen.models.trainable import initialise


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network made as generators make theirs, without global random numbers."""
    with torch.device("meta"):
        network = make()
    network.to_empty(device="cpu")
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.fill_(math.nan if tensor.is_floating_point() else 0)
    initialise(network, torch.Generator().manual_seed(seed))
    return network.double().requires_grad_(False)


def same_convolution(maps: int, following: int, kernel: int, stride: int) -> SameConv2d:
    layer = built(lambda: Network(SameConv2d(maps, following, kernel, stride)))[0]  # type: ignore[index]
    assert isinstance(layer, SameConv2d)
    return layer


def test_padding_follows_the_documentation_of_tensorflow() -> None:
    for size, kernel, stride in itertools.product(range(1, 13), range(1, 6), range(1, 5)):
        # tf.nn, notes on padding: two cases instead of one formula.
        left_over = size % stride
        total = max(kernel - (left_over or stride), 0)
        assert same_padding(size, kernel, stride) == (total // 2, total - total // 2)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 1), (3, 2), (4, 2), (5, 3)])
def test_same_convolution_is_its_definition(kernel: int, stride: int, rng: torch.Generator) -> None:
    """Rows and columns are padded differently, before and after them too."""
    layer = same_convolution(2, 3, kernel, stride)
    layer.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    x = torch.randn(2, 2, 5, 6, generator=rng, dtype=torch.float64)
    y = torch.empty(2, 3, math.ceil(5 / stride), math.ceil(6 / stride), dtype=torch.float64)
    for row, column in itertools.product(range(y.shape[2]), range(y.shape[3])):
        y[:, :, row, column] = torch.tensor([1.0, 2.0, 3.0])
        for i, j in itertools.product(range(kernel), range(kernel)):
            r = row * stride + i - max((y.shape[2] - 1) * stride + kernel - 5, 0) // 2
            c = column * stride + j - max((y.shape[3] - 1) * stride + kernel - 6, 0) // 2
            if 0 <= r < 5 and 0 <= c < 6:
                y[:, :, row, column] += x[:, :, r, c] @ layer.weight[:, :, i, j].T
    torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 1), (3, 2), (4, 2), (5, 2), (5, 3)])
def test_same_transposed_convolution_is_the_adjoint(
    kernel: int, stride: int, rng: torch.Generator
) -> None:
    forward = same_convolution(2, 3, kernel, stride)
    adjoint = built(lambda: Network(SameConvTranspose2d(3, 2, kernel, stride)))[0]  # type: ignore[index]
    adjoint.weight.copy_(forward.weight)
    x = torch.randn(4, 2, 5 * stride, 7 * stride, generator=rng, dtype=torch.float64)
    y = torch.randn(4, 3, 5, 7, generator=rng, dtype=torch.float64)
    torch.testing.assert_close((forward(x) * y).sum(), (x * adjoint(y)).sum())


@pytest.mark.parametrize(
    ("kernel", "stride", "reached"),
    [(4, 1, (2, 5)), (4, 2, (5, 8)), (3, 1, (2, 4)), (3, 2, (6, 8))],
)
def test_pixels_that_one_pixel_reaches(kernel: int, stride: int, reached: tuple[int, int]) -> None:
    """The fourth of seven rows, and the first and last row that depend on it."""
    layer = built(lambda: Network(SameConvTranspose2d(1, 1, kernel, stride)))[0]  # type: ignore[index]
    layer.weight.fill_(1)
    x = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    x[0, 0, 3, 3] = 1
    image = layer(x)[0, 0]
    assert image.shape == (7 * stride, 7 * stride)
    rows, columns = image.nonzero().unbind(-1)
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == reached


@pytest.mark.parametrize(
    ("make", "fans"),
    [
        (lambda: nn.Linear(50, 90), 50 + 90),
        (lambda: SameConv2d(10, 20, 4), 16 * (10 + 20)),
        (lambda: SameConvTranspose2d(10, 30, 3), 9 * (10 + 30)),
    ],
)
def test_glorot_limits(make: Callable[[], nn.Module], fans: int) -> None:
    layer = built(lambda: Network(make()))[0]  # type: ignore[index]
    assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    _check_uniform(layer.weight, math.sqrt(6 / fans))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(50, 3000),
        lambda: nn.Conv2d(5, 3000, 3),
        lambda: nn.ConvTranspose2d(5, 3000, 2),
    ],
)
def test_uniform_limits_are_those_of_torch(make: Callable[[], nn.Module]) -> None:
    layer = built(lambda: Network(make(), rule=uniform))[0]  # type: ignore[index]
    limit = nn.init._calculate_fan_in_and_fan_out(layer.weight)[0] ** -0.5
    _check_uniform(layer.weight, limit)
    _check_uniform(layer.bias, limit)


def _check_uniform(values: Tensor, limit: float) -> None:
    """False alarms: 0.99 ** 2700 < 1e-11 for the maximum, 6e-7 for the variance."""
    num = values.numel()
    assert num >= 2700
    assert 0.99 * limit < values.abs().max() <= limit
    variance = values.square().mean() / (limit**2 / 3)
    assert abs(variance - 1) < 5 * math.sqrt(0.8 / num)
    assert abs(values.mean()) < 5 * limit / math.sqrt(3 * num)


def test_narrow_weights_are_normal() -> None:
    """At five standard errors: false alarms 6e-7 each."""
    maps = built(lambda: Network(nn.Conv2d(5, 300, 3, bias=False), rule=narrow))[0].weight  # type: ignore[index]
    norm = built(lambda: BatchNorm(3000, 0.02)).weight
    for values, mean in ((maps, 0.0), (norm, 1.0)):
        num = values.numel()
        assert abs(values.mean() - mean) < 5 * 0.02 / math.sqrt(num)
        assert abs(values.std() / 0.02 - 1) < 5 / math.sqrt(2 * num)


def test_every_weight_is_drawn_and_follows_the_seed() -> None:
    rules: tuple[Rule, ...] = (glorot, uniform, narrow)
    for rule in rules:

        def make(rule: Rule = rule) -> Network:
            bias = rule is not narrow
            layers = (SameConv2d(1, 2, 3, bias=bias), BatchNorm(2), nn.ReLU(), Dropout())
            return Network(*layers, rule=rule)

        one, same, other = (built(make, seed).state_dict() for seed in (1, 1, 2))
        assert all(tensor.isfinite().all() for tensor in one.values())
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not torch.equal(one["0.weight"], other["0.weight"])
        assert not torch.equal(one["3.seed"], other["3.seed"])


def test_dropout_zeroes_a_fifth_and_keeps_the_mean() -> None:
    """Five standard errors of a binomial proportion: false alarms 6e-7."""
    dropout = built(Dropout)
    x = torch.full((1000, 100), 3.0)
    y = dropout(x)
    assert set(y.unique().tolist()) == {0.0, 3.75}
    dropped = (y == 0).double()
    assert abs(dropped.mean() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / y.numel())
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_goes_on_where_its_state_left_off() -> None:
    x = torch.ones(100)
    one, other = built(Dropout), built(Dropout, seed=3)
    first = one(x)
    # Files may round to half precision.
    state = {name: tensor.half() for name, tensor in one.state_dict().items()}
    other.load_state_dict(state)
    second, third = one(x), one(x)
    assert torch.equal(other(x), second) and torch.equal(other(x), third)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    # After the largest seed comes zero.
    one.seed.fill_(255)
    one(x)
    assert one.seed.tolist() == [0] * 8


def test_batch_normalisation_is_that_of_torch(rng: torch.Generator) -> None:
    mine, theirs = built(lambda: BatchNorm(3, 0.5)), nn.BatchNorm2d(3).double()
    theirs.weight.data.copy_(mine.weight)
    theirs.bias.data.copy_(mine.bias.fill_(0.3))
    for _ in range(3):
        x = 2 + 3 * torch.randn(5, 3, 4, 4, generator=rng, dtype=torch.float64)
        torch.testing.assert_close(mine(x), theirs(x).detach())
    mine.eval(), theirs.eval()
    torch.testing.assert_close(mine(x), theirs(x).detach())
    # Then an image no longer depends on the others.
    torch.testing.assert_close(mine(x[:1]), mine(x)[:1])
    assert mine(x[:0]).shape == (0, 3, 4, 4)
    assert set(mine.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_fixed_maps() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(LogStd()(x), torch.tensor([[1.0, 2.0, 1.5, 2.0]]))
    assert torch.equal(Affine(2.0, -1.0)(x), torch.tensor([[1.0, 3.0, 5.0, 7.0]]))
