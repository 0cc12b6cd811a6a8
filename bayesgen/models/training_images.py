"""The images of a training: what is refused, and who sees which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.models.settings import TrainingSettings
from bayesgen.models.trainable import Stage


def as_tensor(images: Tensor | Dataset[Any], image_shape: tuple[int, ...]) -> Tensor:
    """Read a data set of images, or of vectors, into memory; a tensor is returned as it is."""
    if isinstance(images, Tensor):
        return images
    if len(image_shape) == 1:
        return read_vectors(images, image_shape[0])
    from bayesgen.datasets import image_tensor

    return image_tensor(images)


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


def read_vectors(dataset: Dataset[Any], length: int) -> Tensor:
    """Turn a map-style data set of vectors into one tensor.

    Parameters
    ----------
    dataset
        Anything with a length and items. An item is a vector, or a tuple that begins with one, for
        example vector and label; a vector is a tensor or a NumPy array. Items are asked for once
        each, in their order.
    length
        Of a vector.

    Returns
    -------
    Tensor
        ``(N, length)``, on the CPU and in the precision of the vectors.

    Raises
    ------
    DtypeError
        If the data set has no length, or an item is no vector of floating-point numbers.
    ShapeError
        If a vector has another length, or there is none.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> read_vectors(TensorDataset(torch.zeros(60, 3), torch.arange(60)), 3).shape
    torch.Size([60, 3])
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DtypeError(
            f"images: expected vectors (N, {length}) or a map-style data set of them, with a "
            f"length and items, got {type(dataset).__name__}"
        )
    if len(dataset) == 0:
        raise ShapeError(f"images: expected vectors of length {length}, got an empty data set")
    vectors = [_vector(dataset[i], length, f"images[{i}]") for i in range(len(dataset))]
    return torch.stack(vectors)


def _vector(item: Any, length: int, name: str) -> Tensor:
    """The vector in an item of a data set."""
    if isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, np.ndarray):
        item = torch.as_tensor(item)
    if not isinstance(item, Tensor) or not item.is_floating_point():
        kind = item.dtype if isinstance(item, Tensor) else type(item).__name__
        raise DtypeError(
            f"{name}: expected a vector of floating-point numbers (a tensor or a NumPy array) or a "
            f"tuple that begins with one, got {kind}"
        )
    if item.shape != (length,):
        raise ShapeError(f"{name}: expected shape ({length},), got {tuple(item.shape)}")
    return item.detach().cpu()


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
        wanted = settings.validation
        num = min(1000, math.ceil(len(images) / 10)) if wanted is None else wanted
        held_out, kept = order[:num], order[num:]
        if len(kept) == 0:
            raise OptionError(
                f"validation: holds out {num} images, but there are {len(images)}; hold out fewer"
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
