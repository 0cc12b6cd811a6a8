"""The networks of the papers, layer by layer.

===================  ===========  ===========  ===========================  ================
layout               images       latent_dim   parts                        from
===================  ===========  ===========  ===========================  ================
``duff-mnist``       28 x 28      8            decoder, encoder, critic     Duff et al.
``duff-shapes``      56 x 56      10           decoder, encoder, critic     Duff et al.
``duff-shapes-gan``  56 x 56      10           decoder, critic              Duff et al.
``duff-knees``       128 x 128    800          decoder, encoder             Duff et al.
``ang-vae``          32 x 32      256          decoder, encoder             Ang
``ang-dcgan``        32 x 32      100          decoder, critic              Ang
``asim-dcgan``       3 x 64 x 64  100          decoder, critic              Asim et al.
===================  ===========  ===========  ===========================  ================

A layout fits its own images only; the number of latent dimensions is free, the published one is
shown. Initial weights are drawn as the authors' software does. Where text and code differ, these
are the networks of the code, which gave the published numbers.

- Dropout and normalisation over the batch act in training mode, which is that of a new generator:
  call ``eval()`` before using one. Trained and loaded generators are in evaluation mode.
- Encoders return log standard deviations: half of the log variances that the papers' networks
  return, and critics log odds, without the sigmoid that some of the papers put last.
- TensorFlow flattens images with channels last, torch with channels first. Weights of dense layers
  next to convolutions have to be permuted accordingly if they are taken over.
- The networks of Asim et al. work on intensities in [-1, 1]; here they are mapped to [0, 1].

References
----------
Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine learning
models, appendix B.
Ang (2021), Using deep generative priors for inverse problems and Bayesian optimisation,
undergraduate research report.
Asim, Daniels, Leong, Ahmed and Hand (2020), Invertible generative models for inverse problems:
mitigating representation error and dataset bias, section 4.

Examples
--------
>>> import torch
>>> from bayesgen.models import VAE
>>> G = VAE((32, 32), latent_dim=256, layout="ang-vae").eval()
>>> G(torch.zeros(3, 256)).shape
torch.Size([3, 32, 32])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from bayesgen.errors import OptionError
from bayesgen.models.layers import (
    Affine,
    BatchNorm,
    Dropout,
    LogStd,
    Network,
    Rule,
    SameConv2d,
    SameConvTranspose2d,
    narrow,
    uniform,
)

if TYPE_CHECKING:
    from bayesgen.models.networks import NetworkConfig


def _no_encoder(config: NetworkConfig, outputs: int) -> nn.Sequential:
    raise OptionError(
        f"layout: {config.layout!r} has no encoder, which VAE, AE and their like need; choose "
        "another, such as 'convolution'"
    )


def _no_critic(config: NetworkConfig) -> nn.Sequential:
    raise OptionError(
        f"layout: {config.layout!r} has no critic, which GAN and WGAN need; choose another, such "
        "as 'convolution'"
    )


@dataclass(frozen=True)
class Layout:
    """Networks that go together: decoder, encoder (given its number of outputs) and critic.

    ``image_shape``, ``(channel, y, x)``, is that of the only images they fit, if they do not fit
    all.
    """

    decoder: Callable[[NetworkConfig], nn.Sequential]
    encoder: Callable[[NetworkConfig, int], nn.Sequential] = _no_encoder
    critic: Callable[[NetworkConfig], nn.Sequential] = _no_critic
    image_shape: tuple[int, int, int] | None = None


def _log_std(config: NetworkConfig, outputs: int) -> list[nn.Module]:
    """Nothing for a network that only encodes one vector for each image."""
    return [LogStd()] if outputs == 2 * config.latent_dim else []


# Duff, Campbell and Ehrhardt. Convolutions are given by their numbers of maps and strides.

Steps = tuple[tuple[int, int], ...]
Make = Callable[[], nn.Module]

_leaky = partial(nn.LeakyReLU, 0.3)

_MNIST = ((64, 2), (64, 2), (64, 1))
_SHAPES = ((64, 1), (64, 2), (64, 2))
# The table in the paper has neither the maps 512 here nor the 356 below, which it gives as 256.
_KNEES_DOWN = (
    *((8, 1), (16, 1), (32, 1)),
    *((64, 2), (64, 1), (64, 1)),
    *((128, 2), (128, 1), (128, 1)),
    *((256, 2), (256, 1), (256, 1)),
    *((512, 2), (512, 1), (512, 1)),
    *((128, 1), (64, 1), (32, 1), (16, 1)),
)
_KNEES_UP = (
    *((32, 1), (64, 1), (128, 1), (356, 1)),
    *((512, 1), (512, 1), (512, 1), (512, 1)),
    *((256, 2), (256, 1), (256, 1), (256, 1)),
    *((128, 2), (128, 1), (128, 1), (128, 1)),
    *((64, 2), (64, 1), (64, 1), (64, 1)),
    *((32, 2), (16, 1), (8, 1), (4, 1)),
)


def _stack(
    kind: Callable[[int, int, int, int], nn.Module],
    maps: int,
    steps: Steps,
    *,
    kernel: int,
    activation: Make = _leaky,
) -> list[nn.Module]:
    """Convolutions from ``maps`` maps on, each with its activation and dropout."""
    layers: list[nn.Module] = []
    for following, stride in steps:
        layers += [kind(maps, following, kernel, stride), activation(), Dropout()]
        maps = following
    return layers


def _duff_encoder(
    config: NetworkConfig, outputs: int, *, steps: Steps, kernel: int = 4
) -> nn.Sequential:
    coarse = config.image_shape[-1] // math.prod(stride for _, stride in steps)
    return Network(
        *_stack(SameConv2d, 1, steps, kernel=kernel),
        nn.Flatten(),
        nn.Linear(steps[-1][0] * coarse**2, outputs),
        *_log_std(config, outputs),
    )


def _duff_critic(config: NetworkConfig, *, steps: Steps) -> nn.Sequential:
    return _duff_encoder(config, 1, steps=steps)


def _mnist_decoder(config: NetworkConfig) -> nn.Sequential:
    up = _stack(SameConvTranspose2d, 1, _MNIST[::-1], kernel=4, activation=nn.ReLU)
    return Network(
        *(nn.Linear(config.latent_dim, 25), _leaky()),
        *(nn.Linear(25, 49), _leaky()),
        nn.Unflatten(1, (1, 7, 7)),
        *up[:-1],  # no dropout after the last
        nn.Flatten(),
        nn.Linear(50_176, 784),
    )


def _shapes_decoder(config: NetworkConfig, *, gan: bool = False) -> nn.Sequential:
    """The maps end at 28 x 28, not at 56 x 56 as in the paper's table."""
    activation = nn.ReLU if gan else _leaky
    up = _stack(SameConvTranspose2d, 1, _SHAPES[::-1], kernel=4, activation=activation)
    return Network(
        *(nn.Linear(config.latent_dim, 49), _leaky()),
        nn.Unflatten(1, (1, 7, 7)),
        *(up[:-1] if gan else up),
        nn.Flatten(),
        nn.Linear(50_176, 3136),
    )


def _knees_decoder(config: NetworkConfig) -> nn.Sequential:
    """As trained. The code that evaluates it has other last layers, tanh or none at all, and which
    of them made the figures is not known. In training the code also drops pixels of the finished
    image, which is left out here.
    """
    return Network(
        *(nn.Linear(config.latent_dim, 1024), nn.ReLU()),
        nn.Unflatten(1, (16, 8, 8)),
        *_stack(SameConvTranspose2d, 16, _KNEES_UP, kernel=3, activation=nn.ReLU),
        *(SameConvTranspose2d(4, 1, 3), nn.Sigmoid()),
    )


# Ang.


def _ang_encoder(config: NetworkConfig, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for maps, following in pairwise((1, 28, 64, 64)):
        layers += [nn.Conv2d(maps, following, 3, 2, 1), BatchNorm(following), nn.LeakyReLU()]
    # The last activation and dropout are the author's: means are hardly ever negative.
    last = (nn.Linear(1024, outputs), nn.LeakyReLU(), Dropout())
    return Network(*layers, nn.Flatten(), *last, *_log_std(config, outputs), rule=uniform)


def _ang_decoder(config: NetworkConfig) -> nn.Sequential:
    first = (nn.Linear(config.latent_dim, 1024), nn.LeakyReLU(), Dropout())
    layers: list[nn.Module] = []
    for maps, following in pairwise((64, 64, 28, 1)):
        layers += [nn.UpsamplingNearest2d(scale_factor=2)]
        layers += [nn.ConvTranspose2d(maps, following, 3, 1, 1)]
        layers += [BatchNorm(following), nn.LeakyReLU()] if following > 1 else [nn.Sigmoid()]
    return Network(*first, nn.Unflatten(1, (64, 4, 4)), *layers, rule=uniform)


# Deep convolutional generative adversarial networks (DCGAN): Ang; Asim et al.

_MAPS = (512, 256, 128, 64)


@dataclass(frozen=True)
class _DCGAN:
    """From maps of ``coarse`` by ``coarse`` pixels to images 16 times as wide, and back.

    ``signed`` networks work on intensities in [-1, 1]; ``std`` is that of the weights of the
    normalisation.
    """

    coarse: int
    channels: int
    activation: Make
    signed: bool = False
    rule: Rule = uniform
    std: float = 0.0

    def decoder(self, config: NetworkConfig) -> nn.Sequential:
        dim = config.latent_dim
        first = nn.ConvTranspose2d(dim, _MAPS[0], self.coarse, bias=False)
        layers: list[nn.Module] = [nn.Unflatten(1, (dim, 1, 1)), first]
        for maps, following in pairwise((*_MAPS, self.channels)):
            layers += [BatchNorm(maps, self.std), self.activation()]
            layers += [nn.ConvTranspose2d(maps, following, 4, 2, 1, bias=False)]
        last = (nn.Tanh(), Affine(0.5, 0.5)) if self.signed else (nn.Sigmoid(),)
        return Network(*layers, *last, rule=self.rule)

    def critic(self, config: NetworkConfig) -> nn.Sequential:
        layers: list[nn.Module] = [Affine(2.0, -1.0)] if self.signed else []
        for maps, following in pairwise((self.channels, *_MAPS[::-1])):
            layers += [nn.Conv2d(maps, following, 4, 2, 1, bias=False)]
            layers += [BatchNorm(following, self.std)] if maps > self.channels else []
            layers += [nn.LeakyReLU(0.2)]
        last = nn.Conv2d(_MAPS[0], 1, self.coarse, bias=False)
        return Network(*layers, last, nn.Flatten(), rule=self.rule)


_ANG = _DCGAN(2, 1, nn.Mish)
_ASIM = _DCGAN(4, 3, nn.ReLU, signed=True, rule=narrow, std=0.02)


LAYOUTS: Mapping[str, Layout] = {
    "duff-mnist": Layout(
        _mnist_decoder,
        partial(_duff_encoder, steps=_MNIST),
        partial(_duff_critic, steps=_MNIST),
        image_shape=(1, 28, 28),
    ),
    "duff-shapes": Layout(
        _shapes_decoder,
        partial(_duff_encoder, steps=_SHAPES),
        partial(_duff_critic, steps=_SHAPES),
        image_shape=(1, 56, 56),
    ),
    "duff-shapes-gan": Layout(
        partial(_shapes_decoder, gan=True),
        critic=partial(_duff_critic, steps=_SHAPES),
        image_shape=(1, 56, 56),
    ),
    "duff-knees": Layout(
        _knees_decoder,
        partial(_duff_encoder, steps=_KNEES_DOWN, kernel=3),
        image_shape=(1, 128, 128),
    ),
    "ang-vae": Layout(_ang_decoder, _ang_encoder, image_shape=(1, 32, 32)),
    "ang-dcgan": Layout(_ANG.decoder, critic=_ANG.critic, image_shape=(1, 32, 32)),
    "asim-dcgan": Layout(_ASIM.decoder, critic=_ASIM.critic, image_shape=(3, 64, 64)),
}
