"""Invertible layers, from which normalising flows are composed.

Every layer is a bijection between batches with one leading dimension. ``forward`` goes from data
to latent vectors, the direction of training, ``inverse`` back; both also return the logarithm of
the absolute determinant of their own Jacobian, one number for each element of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bayesgen.models.trainable import Initialised, initialise

Mapped = tuple[Tensor, Tensor]


class Invertible(nn.Module):
    """A bijection.

    To write one:

    - define `forward` and `inverse`; each returns the mapped batch and, of shape ``(batch,)``, the
      log-determinant of that direction;
    - override `prepare` if parameters are set from the data before training;
    - derive from `Initialised` as well, if it has parameters or buffers of its own.
    """

    def forward(self, x: Tensor) -> Mapped:
        """Map towards the latent vectors."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def inverse(self, y: Tensor) -> Mapped:
        """Map towards the data."""
        raise NotImplementedError(f"{type(self).__name__} does not define inverse")

    def prepare(self, x: Tensor) -> Tensor:
        """Set what depends on data; return the mapped batch, for the next layer to see."""
        return cast(Tensor, self(x)[0])


class Chain(Invertible):
    """One layer after the other.

    Parameters
    ----------
    layers
        From the data to the latent vectors.
    """

    def __init__(self, layers: Sequence[Invertible]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Mapped:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor) -> Mapped:
        total = y.new_zeros(len(y))
        for layer in reversed(self.layers):
            y, log_det = cast(Invertible, layer).inverse(y)
            total = total + log_det
        return y, total

    def prepare(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = cast(Invertible, layer).prepare(x)
        return x


class ActNorm(Invertible, Initialised):
    """Shift and scale, at first such that the data have mean zero and variance one.

    Parameters
    ----------
    shape
        Of shift and scale: ``(channel,)`` for vectors; for images ``(channel, 1, 1)`` or, with a
        scale for every pixel, ``(channel, y, x)``.
    floor
        Smallest standard deviation to divide by at first, relative to the largest. What hardly
        varies in one batch of data may vary in the next.

    References
    ----------
    Kingma and Dhariwal (2018), Glow: generative flow with invertible 1x1 convolutions, section 3.1.
    """

    def __init__(self, shape: Sequence[int], *, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor
        self.shift = nn.Parameter(torch.empty(*shape))
        self.log_scale = nn.Parameter(torch.empty(*shape))

    def initialise(self, rng: torch.Generator) -> None:
        nn.init.zeros_(self.shift)
        nn.init.zeros_(self.log_scale)

    def forward(self, x: Tensor) -> Mapped:
        return (x - self.shift) * self.log_scale.exp(), self._log_det(x)

    def inverse(self, y: Tensor) -> Mapped:
        return y * (-self.log_scale).exp() + self.shift, -self._log_det(y)

    @torch.no_grad()
    def prepare(self, x: Tensor) -> Tensor:
        dims = [0, *(dim + 1 for dim, size in enumerate(self.shift.shape) if size == 1)]
        std, mean = torch.std_mean(x, dims, correction=0, keepdim=True)
        std = std.clamp(min=self.floor * std.max().item())
        self.shift.copy_(mean[0])
        self.log_scale.copy_(-torch.where(std > 0, std, 1.0).log()[0])
        return super().prepare(x)

    def _log_det(self, x: Tensor) -> Tensor:
        repeats = math.prod(x.shape[1:]) // self.log_scale.numel()
        return (self.log_scale.sum() * repeats).expand(len(x))


class Mixing(Invertible, Initialised):
    r"""An invertible matrix over the channels, :math:`W = P L (U + \operatorname{diag} s)`.

    It generalises a permutation of the channels and starts as a random rotation. P is a fixed
    permutation, L lower triangular with ones on its diagonal, U strictly upper triangular, so that
    :math:`\log|\det W| = \sum \log|s|`; the signs of s are fixed.

    Parameters
    ----------
    channels
        Size of the first dimension after the batch; the others, if any, are positions.

    References
    ----------
    Kingma and Dhariwal (2018), Glow: generative flow with invertible 1x1 convolutions, section 3.2.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Strictly lower part: of L; strictly upper part: of U; the diagonal is not used.
        self.factors = nn.Parameter(torch.empty(channels, channels))
        self.log_scale = nn.Parameter(torch.empty(channels))
        self.register_buffer("sign", torch.empty(channels))
        self.register_buffer("permutation", torch.empty(channels, dtype=torch.int64))

    def initialise(self, rng: torch.Generator) -> None:
        # Decomposed in double precision: what is rounded is the result only.
        normal = torch.randn(self.factors.shape, generator=rng, dtype=torch.float64)
        P, L, U = torch.linalg.lu(torch.linalg.qr(normal)[0])
        self.permutation.copy_(P.argmax(1))
        self.factors.copy_(L.tril(-1) + U.triu(1))
        self.log_scale.copy_(U.diagonal().abs().log())
        self.sign.copy_(U.diagonal().sign())

    def forward(self, x: Tensor) -> Mapped:
        # Half precision, which training may choose on a GPU, would round the pixels themselves.
        with torch.autocast(x.device.type, enabled=False):
            lower, upper = self._factors()
            return _multiply((lower @ upper)[self.permutation], x), self._log_det(x)

    def inverse(self, y: Tensor) -> Mapped:
        lower, upper = self._factors()
        # Rows of W are those of L U in the order of the permutation, which is undone first.
        identity = torch.eye(len(self.sign), dtype=y.dtype, device=y.device)
        solved = torch.linalg.solve_triangular(
            lower, identity[self.permutation].T, upper=False, unitriangular=True
        )
        matrix = torch.linalg.solve_triangular(upper, solved, upper=True)
        return _multiply(matrix, y), -self._log_det(y)

    def _factors(self) -> tuple[Tensor, Tensor]:
        identity = torch.eye(len(self.sign), dtype=self.sign.dtype, device=self.sign.device)
        diagonal = torch.diag(self.sign * self.log_scale.exp())
        return self.factors.tril(-1) + identity, self.factors.triu(1) + diagonal

    def _log_det(self, x: Tensor) -> Tensor:
        repeats = math.prod(x.shape[1:]) // len(self.log_scale)
        return (self.log_scale.sum() * repeats).expand(len(x))


class AffineCoupling(Invertible, Initialised):
    r"""Scale and shift some channels by functions of the others.

    .. math:: y_1 = x_1, \quad y_2 = x_2 e^{s(x_1)} + t(x_1), \quad s = c \tanh(\tilde s / c)

    The scale is smooth and bounded, so that the inverse is as accurate as the forward map wherever
    training leads. With a last layer of zeros the coupling starts as the identity.

    Parameters
    ----------
    network
        From :math:`x_1` to :math:`(\tilde s, t)`, stacked along the channels. Its last layer, a
        linear one or a convolution, is set to zero.
    passive
        Number of channels in :math:`x_1`, the first ones.
    bound
        :math:`c`, the largest change of the logarithm of a scale.

    References
    ----------
    Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP, equations 7 and 8.
    """

    def __init__(self, network: nn.Sequential, passive: int, *, bound: float = 2.0) -> None:
        super().__init__()
        self.network = network
        self.passive = passive
        self.bound = bound

    def initialise(self, rng: torch.Generator) -> None:
        initialise(self.network, rng)
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Mapped:
        x1, x2 = x[:, : self.passive], x[:, self.passive :]
        log_scale, shift = self._scale_and_shift(x1)
        return torch.cat([x1, x2 * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Mapped:
        y1, y2 = y[:, : self.passive], y[:, self.passive :]
        log_scale, shift = self._scale_and_shift(y1)
        return torch.cat([y1, (y2 - shift) * (-log_scale).exp()], 1), -log_scale.flatten(1).sum(1)

    def _scale_and_shift(self, x1: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(x1).to(x1.dtype).chunk(2, 1)
        return self.bound * torch.tanh(raw / self.bound), shift


class Squeeze(Invertible):
    """Blocks of 2 by 2 pixels become channels: ``(c, y, x)`` to ``(4 c, y / 2, x / 2)``."""

    def forward(self, x: Tensor) -> Mapped:
        blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5)
        return blocks.flatten(3).movedim(-1, 1), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Mapped:
        blocks = y.unflatten(1, (-1, 2, 2)).permute(0, 4, 2, 5, 3, 1)
        return blocks.flatten(3, 4).flatten(1, 2).movedim(-1, 1), y.new_zeros(len(y))


class Flatten(Invertible):
    """From arrays to vectors.

    Parameters
    ----------
    shape
        Of one array.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Mapped:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Mapped:
        return _channels_last(y.unflatten(1, self.shape)), y.new_zeros(len(y))


class Split(Invertible):
    r"""Some channels become latent variables, the others go on to further layers.

    Those that leave have a Gaussian distribution, of learnt mean and variance, given those that
    stay. It is written as a coupling, so that the latent variables themselves are independent
    standard normals: :math:`z_2 = (x_2 - \mu(x_1)) / \sigma(x_1)`.

    Parameters
    ----------
    coupling
        Standardises the channels that leave; its passive channels stay.
    rest
        From the channels that stay to a vector, which comes first in the result.
    shape
        Of one array of channels that leave.

    References
    ----------
    Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP, section 3.6.
    """

    def __init__(self, coupling: AffineCoupling, rest: Invertible, shape: Sequence[int]) -> None:
        super().__init__()
        self.coupling = coupling
        self.rest = rest
        self.flatten = Flatten(shape)

    def forward(self, x: Tensor) -> Mapped:
        y, log_det = self.coupling(x)
        passive = self.coupling.passive
        stays, rest_log_det = self.rest(y[:, :passive])
        leaves, _ = self.flatten(y[:, passive:])
        return torch.cat([stays, leaves], 1), log_det + rest_log_det

    def inverse(self, y: Tensor) -> Mapped:
        size = y.shape[1] - math.prod(self.flatten.shape)
        stays, rest_log_det = self.rest.inverse(y[:, :size])
        leaves, _ = self.flatten.inverse(y[:, size:])
        x, log_det = self.coupling.inverse(torch.cat([stays, leaves], 1))
        return x, log_det + rest_log_det

    def prepare(self, x: Tensor) -> Tensor:
        self.rest.prepare(self.coupling.prepare(x)[:, : self.coupling.passive])
        return super().prepare(x)


def _multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrix times channels, ``(batch, channel, *positions)``."""
    return linear(x.movedim(1, -1), matrix).movedim(-1, 1)


def _channels_last(x: Tensor) -> Tensor:
    """Reorder memory: couplings then take two thirds of the time on a CPU."""
    # Not by memory_format, which torch.func.vmap does not know.
    return x.movedim(1, -1).contiguous().movedim(-1, 1)
