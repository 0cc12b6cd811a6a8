"""What the measures need of a generator: its prior, its encoder, its images, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, ShapeError
from bayesgen.model_sites import isolated
from bayesgen.models.base import Generator

# Numbers that one chunk of images, or of Jacobians, may hold.
CHUNK = 2**22
# Draws that stand for a prior whose mean and standard deviation are not known in closed form.
_MOMENT_DRAWS = 10_000


def check_images(generator: Generator, images: Tensor, *, minimum: int = 0) -> None:
    """Refuse anything but ``minimum`` or more finite images ``(N, *image_shape)``.

    Raises
    ------
    DtypeError
        If the generator is none, or the images have another dtype or device than it.
    ShapeError
        If the shape is another, or there are too few.
    DataError
        If an entry is NaN or infinite.
    """
    check_is_generator(generator)
    generator._check("images", images, generator.image_shape)
    if images.ndim != 1 + len(generator.image_shape) or len(images) < minimum:
        wanted = ", ".join(["N", *map(str, generator.image_shape)])
        least = f" with N at least {minimum}" if minimum else ""
        raise ShapeError(f"images: expected shape ({wanted}){least}, got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise DataError("images: hold NaN or infinity")


def check_latent(generator: Generator, name: str, z: Tensor, *, minimum: int = 0) -> None:
    """Refuse anything but ``minimum`` or more finite latent vectors ``(N, latent_dim)``.

    Raises
    ------
    DtypeError, ShapeError, DataError
        As `check_images`.
    """
    check_is_generator(generator)
    generator._check(name, z, (generator.latent_dim,))
    if z.ndim != 2 or len(z) < minimum:
        least = f" with N at least {minimum}" if minimum else ""
        raise ShapeError(
            f"{name}: expected shape (N, {generator.latent_dim}){least}, got {tuple(z.shape)}"
        )
    if not z.isfinite().all():
        raise DataError(f"{name}: holds NaN or infinity")


def check_is_generator(generator: Generator) -> None:
    """Refuse what is no generator."""
    if not isinstance(generator, Generator):
        raise DtypeError(f"generator: expected a Generator, got {type(generator).__name__}")


def prior_draws(generator: Generator, count: int, *, seed: int) -> Tensor:
    """``(count, latent_dim)`` draws of the prior, by a random state of their own."""
    # Pyro's distributions draw from the global state only, so that is put aside and back again.
    # Other draws with the same seed, be they a user's latent vectors, must not be the same numbers.
    with isolated(seed + 2**31), torch.no_grad():
        return generator.prior().sample((count,))


def prior_moments(generator: Generator) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(latent_dim,)`` of the prior, estimated if need be.

    A coordinate that does not vary, or so wildly that it has no variance, counts as of width 1.
    """
    prior = generator.prior()
    try:
        mean, std = prior.mean.detach(), prior.stddev.detach()
    except NotImplementedError:
        draws = prior_draws(generator, _MOMENT_DRAWS, seed=0)
        mean, std = draws.mean(0), draws.std(0)
    usable = std.isfinite() & (std > 0)
    return torch.where(mean.isfinite(), mean, 0.0), torch.where(usable, std, 1.0)


def decode(generator: Generator, z: Tensor) -> Tensor:
    """Images of latent vectors ``(N, latent_dim)``, without gradients and a chunk at a time."""
    return _chunked(generator, z, generator)


def encode(generator: Generator, images: Tensor) -> Tensor:
    """Guesses of the latent vectors of ``(N, *image_shape)``, as `decode`."""
    return _chunked(generator.encode, images, generator)


def encoder_draws(generator: Generator, images: Tensor, *, seed: int) -> Tensor:
    """One draw for each image of the encoder's law, or its guess where it has none; as `encode`."""
    encoding = getattr(generator, "encoding", None)
    if encoding is None:
        return encode(generator, images)

    def moments(part: Tensor) -> Tensor:
        law = encoding(part)
        return torch.stack([law.mean, law.stddev], 1)

    mean, std = _chunked(moments, images, generator).unbind(1)
    # Not the numbers that the prior, or a user with the same seed, draws.
    rng = torch.Generator(mean.device).manual_seed(seed + 3 * 2**30)
    return mean + std * torch.randn(mean.shape, generator=rng, dtype=mean.dtype, device=mean.device)


def rows_at_once(generator: Generator, *, tangents: int = 1) -> int:
    """How many images, each with so many derivatives, make a chunk."""
    return max(1, CHUNK // (tangents * math.prod(generator.image_shape)))


def _chunked(function: Callable[[Tensor], Tensor], batch: Tensor, generator: Generator) -> Tensor:
    with torch.no_grad():
        return torch.cat([function(part) for part in batch.split(rows_at_once(generator))])
