"""Is a generator fit to be a prior? Two first answers, which go on its model card."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesgen.models.base import Generator


def evaluate(generator: Generator, images: Tensor) -> dict[str, float]:
    """Measure reconstruction and agreement with the prior on images not trained on.

    Parameters
    ----------
    generator
        A generator with an encoder.
    images
        ``(N, *image_shape)``, intensities in [0, 1].

    Returns
    -------
    dict
        ``encoder_psnr`` and ``reconstruction_psnr``: mean peak signal-to-noise ratio, in decibel
        for data range 1, of images decoded from the encoder's latent vectors and from the best
        latent vectors that `nearest_latent` finds. ``latent_mean`` and ``latent_std``: root mean
        square over coordinates of the mean and of the standard deviation of encoded images, ideally
        0 and 1. ``latent_correlation``: largest correlation between two coordinates, ideally 0.
    """
    with torch.no_grad():
        z = generator.encode(images)
        encoded = psnr(generator(z), images)
        best = psnr(generator(nearest_latent(generator, images, z)), images)
    off_diagonal = torch.corrcoef(z.T).reshape(len(z.T), -1).fill_diagonal_(0)
    return {
        "encoder_psnr": encoded.mean().item(),
        "reconstruction_psnr": best.mean().item(),
        "latent_mean": z.mean(0).square().mean().sqrt().item(),
        "latent_std": z.var(0).mean().sqrt().item(),
        "latent_correlation": off_diagonal.abs().max().item(),
    }


def nearest_latent(
    generator: Generator, images: Tensor, start: Tensor, *, steps: int = 300, rate: float = 0.05
) -> Tensor:
    """Minimise ``|G(z) - x|^2`` over ``z`` for all images at once, by Adam from ``start``.

    Parameters
    ----------
    generator
        The generator.
    images
        ``(N, *image_shape)``.
    start
        ``(N, latent_dim)``, for example ``generator.encode(images)``.
    steps, rate
        Number of steps and size of the first; the size falls to zero along a cosine.
    """
    z = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([z])
    with torch.enable_grad():
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = (generator(z) - images).square().sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            optimiser.step()
    return z.detach()


def psnr(found: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in a batch ``(N, ...)``, for data range 1.

    Examples
    --------
    >>> psnr(torch.full((1, 4, 4), 0.1), torch.zeros(1, 4, 4))
    tensor([20.])
    """
    return -10 * (found - truth).square().flatten(1).mean(1).log10()
