"""What the papers' networks are made of, where torch does not have it.

Initial weights as the authors' software draws them, TensorFlow's padding, and layers whose random
numbers and initial values come from our own generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bayesgen.models.trainable import Initialised

Weighted = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
Rule = Callable[[Weighted, torch.Generator], None]


def glorot(layer: Weighted, rng: torch.Generator) -> None:
    """Uniform of variance 2 / (fan-in + fan-out), biases zero: the default of TensorFlow 1."""
    shape = layer.weight.shape
    limit = math.sqrt(6 / (math.prod(shape[2:]) * (shape[0] + shape[1])))
    nn.init.uniform_(layer.weight, -limit, limit, rng)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def uniform(layer: Weighted, rng: torch.Generator) -> None:
    """Weights and biases uniform up to fan-in^(-1/2): the default of torch."""
    # For transposed convolutions torch takes the second dimension, their outputs, as fan-in too.
    limit = layer.weight[0].numel() ** -0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -limit, limit, rng)


def narrow(layer: Weighted, rng: torch.Generator) -> None:
    """Normal of standard deviation 0.02, as in Radford, Metz and Chintala (2016)."""
    nn.init.normal_(layer.weight, 0.0, 0.02, rng)


class Network(Initialised, nn.Sequential):
    """Layers one after the other, and the rule for the initial weights of all."""

    def __init__(self, *layers: nn.Module, rule: Rule = glorot) -> None:
        super().__init__(*layers)
        self.rule = rule

    def initialise(self, rng: torch.Generator) -> None:
        for layer in self:
            if isinstance(layer, Initialised):
                layer.initialise(rng)
            elif isinstance(layer, Weighted):
                self.rule(layer, rng)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's padding 'same': n pixels become n / stride, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            same_padding(size, kernel, stride)
            for size, kernel, stride in zip(
                x.shape[-2:], self.kernel_size, self.stride, strict=True
            )
        )
        return super().forward(nn.functional.pad(x, (*columns, *rows)))


class SameConvTranspose2d(nn.ConvTranspose2d):
    """The adjoint of `SameConv2d`, plus the bias: n pixels become n * stride.

    The kernel must not be smaller than the stride.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        whole = super().forward(x, output_size)
        for dim, kernel, stride in zip((-2, -1), self.kernel_size, self.stride, strict=True):
            size = x.shape[dim] * stride
            whole = whole.narrow(dim, same_padding(size, kernel, stride)[0], size)
        return whole


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a row of pixels; an odd one goes after it.

    Examples
    --------
    >>> same_padding(28, kernel=4, stride=2), same_padding(28, kernel=3, stride=2)
    ((1, 1), (0, 1))
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Dropout(Initialised):
    """Zero each value with a given probability, in training mode, and scale up the others.

    The zeros follow from the seed of the initial weights, and the seed of the next ones is part of
    the state, so that a resumed training meets those of one that was never interrupted.
    """

    seed: Tensor

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        self.rate = rate
        # As bytes, which are exact also in files in half precision.
        self.register_buffer("seed", torch.empty(8, dtype=torch.uint8))

    def initialise(self, rng: torch.Generator) -> None:
        self.seed.random_(0, 256, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        seed = int.from_bytes(self.seed.tolist(), "little")
        following = ((seed + 1) % 2**64).to_bytes(8, "little")
        self.seed.copy_(torch.tensor(list(following), dtype=torch.uint8))
        rng = torch.Generator(x.device).manual_seed(seed)
        kept = torch.rand(x.shape, generator=rng, dtype=torch.float32, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class BatchNorm(Initialised):
    """Normalise each map over the batch in training mode, else by running averages of its moments.

    ``std`` is that of the initial weights about 1. There is no count of batches as torch has it,
    which would overflow in files in half precision.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, maps: int, std: float = 0.0) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(maps))
        self.bias = nn.Parameter(torch.empty(maps))
        self.register_buffer("running_mean", torch.empty(maps))
        self.register_buffer("running_var", torch.empty(maps))

    def initialise(self, rng: torch.Generator) -> None:
        nn.init.normal_(self.weight, 1.0, self.std, rng)
        nn.init.ones_(self.running_var)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        moments = (self.running_mean, self.running_var)
        return nn.functional.batch_norm(x, *moments, self.weight, self.bias, self.training)


class Affine(nn.Module):
    """``scale * x + shift`` with fixed numbers."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class LogStd(nn.Module):
    """Means and log standard deviations from means and log variances: halve the second half."""

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = x.chunk(2, -1)
        return torch.cat([mean, 0.5 * log_variance], -1)
