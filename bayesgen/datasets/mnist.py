"""The MNIST handwritten digits: the full set from its files, and a few that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from bayesgen.datasets.idx import read_idx
from bayesgen.errors import FileFormatError, OptionError, unknown_option

_PREFIXES = {"train": "train", "test": "t10k"}
_SUFFIXES = ("", ".gz")
_IMAGES = "images-idx3-ubyte"
_SHIPPED = Path(__file__).parent / "data"


class LabelledImages(NamedTuple):
    """Images ``(N, y, x)`` with intensities in [0, 1] and their labels ``(N,)``."""

    images: Tensor
    labels: Tensor


def mnist(path: str | Path, split: str = "train") -> Tensor:
    """Read the images of the MNIST data set (or of one with the same files: Fashion, KMNIST).

    Parameters
    ----------
    path
        Folder with the original files, compressed or not: ``train-images-idx3-ubyte`` and
        ``t10k-images-idx3-ubyte``, with or without ``.gz``.
    split
        ``"train"`` or ``"test"``.

    Returns
    -------
    Tensor
        Images ``(N, 28, 28)``, float32 in [0, 1].

    Raises
    ------
    FileNotFoundError
        If the folder or the file is missing.
    FileFormatError
        If the file is damaged or holds no images.
    """
    return _scaled(mnist_file(path, split))


def mnist_labels(path: str | Path, split: str = "train") -> Tensor:
    """Read the labels, int64 of shape ``(N,)``, that belong to the images of `mnist`."""
    return read_idx(mnist_file(path, split, "labels-idx1-ubyte")).long()


def mnist_samples() -> LabelledImages:
    """Return images 100 to 119 of the MNIST test set, which are shipped with bayesgen.

    Examples
    --------
    >>> images, labels = mnist_samples()
    >>> images.shape, labels[:5].tolist()
    (torch.Size([20, 28, 28]), [6, 0, 5, 4, 9])
    """
    images = _scaled(_SHIPPED / "mnist-samples-images-idx3-ubyte.gz")
    return LabelledImages(images, read_idx(_SHIPPED / "mnist-samples-labels-idx1-ubyte.gz").long())


def holds_mnist(folder: Path) -> bool:
    """Whether a folder has MNIST's images, of either split."""
    names = [f"{prefix}-{_IMAGES}{suffix}" for prefix in _PREFIXES.values() for suffix in _SUFFIXES]
    return any((folder / name).is_file() for name in names)


def mnist_file(path: str | Path, split: str, kind: str = _IMAGES) -> Path:
    """Find the file of a split, compressed or not, and say what to do if there is none."""
    if split not in _PREFIXES:
        raise OptionError(unknown_option("split", split, _PREFIXES))
    folder, name = Path(path), f"{_PREFIXES[split]}-{kind}"
    for suffix in _SUFFIXES:
        if (folder / (name + suffix)).is_file():
            return folder / (name + suffix)
    problem = f"has no {name}" if folder.is_dir() else "is not a folder"
    raise FileNotFoundError(
        f"{folder} {problem}; expected a folder with the MNIST files train-images-idx3-ubyte.gz, "
        "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz "
        "(with or without .gz), which come from http://yann.lecun.com/exdb/mnist/ and, for "
        "instance, from torchvision.datasets.MNIST(root, download=True), in <root>/MNIST/raw"
    )


def _scaled(path: Path) -> Tensor:
    values = read_idx(path)
    if values.ndim not in (3, 4):
        raise FileFormatError(f"{path}: expected images, found shape {tuple(values.shape)}")
    return values.float() / 255 if not values.is_floating_point() else values
