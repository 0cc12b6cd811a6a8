"""Images to train on and to reconstruct."""

from __future__ import annotations

from bayesgen.datasets.idx import read_idx, write_idx
from bayesgen.datasets.mnist import (
    LabelledImages,
    mnist,
    mnist_labels,
    mnist_samples,
    read_images,
)

__all__ = [
    "LabelledImages",
    "mnist",
    "mnist_labels",
    "mnist_samples",
    "read_idx",
    "read_images",
    "write_idx",
]
