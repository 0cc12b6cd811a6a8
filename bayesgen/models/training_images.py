"""The images of a training: what is refused, and who sees which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models.settings import TrainingSettings
from bayesgen.models.trainable import Stage


def check_images(images: Tensor, image_shape: tuple[int, ...]) -> None:
    """Refuse images that cannot be trained on, and say what to do about it.

    Intensities must be in [0, 1]. Vectors, ``(N, length)``, are no images and may have any values.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If dtype, shape or values cannot be used.
    """
    if not images.is_floating_point():
        raise DtypeError(
            f"images: expected floating point in [0, 1], got {images.dtype}; scale them, for "
            "example images / 255 for 8-bit data"
        )
    if tuple(images.shape[1:]) != image_shape or len(images) == 0:
        wanted = ", ".join(["N", *map(str, image_shape)])
        raise ShapeError(f"images: expected shape ({wanted}), got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise DataError("images: hold NaN or infinity")
    low, high = images.min().item(), images.max().item()
    if len(image_shape) > 1 and not 0 <= low <= high <= 1:
        raise DataError(
            f"images: expected intensities in [0, 1], found {low:g} to {high:g}; scale them, for "
            "example images / 255 for 8-bit data or (images - low) / (high - low)"
        )


class TrainingImages:
    """Images divided into those trained on, reserved for later stages, and held out.

    Parameters
    ----------
    images
        ``(N, *image_shape)``.
    stages
        The stages of the training; images are reserved only if one of them asks for it.
    settings
        How many are held out and reserved.
    rng
        Source of the division.
    like
        Tensor whose dtype and device batches get.

    Raises
    ------
    OptionError
        If there are too few images.
    """

    def __init__(
        self,
        images: Tensor,
        stages: Sequence[Stage],
        settings: TrainingSettings,
        rng: torch.Generator,
        like: Tensor,
    ) -> None:
        self._images, self._like = images.detach(), like
        order = torch.randperm(len(images), generator=rng)
        held_out, kept = order[: settings.validation], order[settings.validation :]
        if len(kept) == 0:
            raise OptionError(
                f"validation: holds out {settings.validation} images, but there are {len(images)}; "
                "hold out fewer"
            )
        uses_reserved = any(stage.images == "reserved" for stage in stages)
        num_reserved = math.ceil(settings.reserved * len(kept)) if uses_reserved else 0
        if num_reserved == len(kept):
            raise OptionError(f"reserved: {settings.reserved} of {len(kept)} images leaves none")
        self._parts = {
            "validation": held_out,
            "reserved": kept[:num_reserved],
            "training": kept[num_reserved:],
        }

    def count(self, part: str) -> int:
        """How many images a part has."""
        return len(self._parts[part])

    def first(self, part: str, limit: int | None = None) -> Tensor:
        """Return the first images of a part, or all of it."""
        return self._take(self._parts[part][:limit])

    def batches(self, part: str, size: int, rng: torch.Generator | None = None) -> Iterator[Tensor]:
        """Yield every image of a part once, in random order if there is a source of it."""
        indices = self._parts[part]
        if rng is not None:
            indices = indices[torch.randperm(len(indices), generator=rng)]
        for chosen in torch.split(indices, size):
            yield self._take(chosen)

    def _take(self, indices: Tensor) -> Tensor:
        return self._images[indices].to(self._like.device, self._like.dtype)
