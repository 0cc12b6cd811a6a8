"""Images to train on and to reconstruct."""

from __future__ import annotations

from bayesgen.datasets.ellipses import ellipses
from bayesgen.datasets.fastmri import FastMRIVolume, centre_crop, fastmri_images, read_fastmri
from bayesgen.datasets.gradients import multi_gradient_mnist
from bayesgen.datasets.idx import read_idx, write_idx
from bayesgen.datasets.images import image_tensor, read_images
from bayesgen.datasets.mnist import LabelledImages, mnist, mnist_labels, mnist_samples
from bayesgen.datasets.shapes import shapes, shapes_plus

__all__ = [
    "FastMRIVolume",
    "LabelledImages",
    "centre_crop",
    "ellipses",
    "fastmri_images",
    "image_tensor",
    "mnist",
    "mnist_labels",
    "mnist_samples",
    "multi_gradient_mnist",
    "read_fastmri",
    "read_idx",
    "read_images",
    "shapes",
    "shapes_plus",
    "write_idx",
]
