"""Training images of every common kind, as one tensor with intensities in [0, 1]."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from bayesgen.datasets.idx import read_idx
from bayesgen.datasets.image_files import (
    PICTURE_SUFFIXES,
    listed,
    picture_files,
    picture_pixels,
    read_hdf5,
    read_npy,
    read_picture,
)
from bayesgen.datasets.intensities import as_images, stack_images
from bayesgen.datasets.mnist import holds_mnist, mnist_file
from bayesgen.errors import (
    DataError,
    DtypeError,
    FileFormatError,
    OptionError,
    unknown_option,
)
from bayesgen.types import check_count

_SPLITS = ("train", "test")
# A folder is divided if it has the first of these folders and another one of them.
_PARTS = ("train", "val", "test")
_HDF5_SUFFIXES = (".h5", ".hdf5")
_IDX_STARTS = (b"\0\0", b"\x1f\x8b")
_UNDERSTOOD = (
    "a folder with the MNIST files (train-images-idx3-ubyte.gz, ...), a folder of pictures "
    f"({', '.join(suffix[1:] for suffix in PICTURE_SUFFIXES)}), or a file .npy, .h5, .hdf5 or IDX"
)


def read_images(
    path: str | Path, *, split: str = "train", limit: int | None = None, key: str | None = None
) -> Tensor:
    """Read training images from a folder or a file.

    ============================  ================================================================
    ``path``                      what is read
    ============================  ================================================================
    folder with the MNIST files   the images of the split, as by `mnist`
    folder of pictures            PNG, JPEG, TIFF, BMP and PGM files, sorted by name, also those in
                                  folders inside; other files and hidden ones are passed over
    a picture                     that one
    ``.npy``                      an array ``(N, y, x)`` or ``(N, channel, y, x)``
    ``.h5``, ``.hdf5``            a data set of that shape
    IDX file, plain or ``.gz``    the same
    ============================  ================================================================

    Intensities are scaled by their type, never by their values, so that a black image stays black:
    8-bit images are divided by 255 and 16-bit ones by 65535 (the 12 bits of a camera thus stay
    below 1/16); floating-point numbers must be in [0, 1] already. Pictures are taken as they are
    stored, whatever a camera noted of its orientation; of 16-bit colours Pillow reads 8 bits.

    Parameters
    ----------
    path
        The folder or file.
    split
        ``"train"`` or ``"test"``, of the MNIST files or of a folder that has the folders ``train``
        and ``test`` (or ``train`` and ``val``). All other images are training images.
    limit
        Read the first images only; of arrays and pictures nothing else is then read.
    key
        Name of the data set in an HDF5 file, for example ``"train/images"``; needed only if
        several have three or four dimensions.

    Returns
    -------
    Tensor
        Images ``(N, y, x)`` or ``(N, channel, y, x)``, float32 in [0, 1]. Colours are red, green
        and blue.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or file, or the folder holds no images.
    FileFormatError
        If a file is damaged or of a kind that is not understood, or if links run in a circle.
    ShapeError
        If the images are not of one shape, or the array does not have that of images.
    DtypeError
        If the numbers are neither floating-point nor unsigned integers of 8 or 16 bits.
    DataError
        If there are no images, a number is NaN or outside [0, 1], or a picture is transparent,
        has several pages or other colours.
    OptionError
        If the split does not exist, the key is missing or wrong, or the limit is not positive.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(folder + "/faces.npy", np.full((100, 3, 32, 32), 51, "uint8"))
    ...     images = read_images(folder + "/faces.npy", limit=10)
    >>> images.shape, images.max()
    (torch.Size([10, 3, 32, 32]), tensor(0.2000))
    """
    if split not in _SPLITS:
        raise OptionError(unknown_option("split", split, _SPLITS))
    if limit is not None:
        check_count("limit", limit)
    path = Path(path)
    if key is not None and path.suffix.lower() not in _HDF5_SUFFIXES:
        raise OptionError(f"key: got {key!r}; only the data sets of HDF5 files have a name")
    if path.is_dir():
        return _from_folder(path, split, limit)
    if not path.is_file():
        link = ", but a symbolic link that leads nowhere or to itself" if path.is_symlink() else ""
        raise FileNotFoundError(f"{path}: no such file or folder{link}; expected {_UNDERSTOOD}")
    _only_training(path, split)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return stack_images([(str(path), read_picture(path))], 1)
    return as_images(_read_array(path, limit, key), str(path), limit)


def image_tensor(dataset: Dataset[Any], *, limit: int | None = None) -> Tensor:
    """Turn a map-style data set of PyTorch into one tensor of images.

    Intensities are scaled by their type, as in `read_images`.

    Parameters
    ----------
    dataset
        Anything with a length and items: a data set of torchvision with or without transforms, a
        ``TensorDataset``, a list. An item is an image or a tuple that begins with one, for example
        image and label; an image is a tensor or NumPy array ``(y, x)`` or ``(channel, y, x)``, or
        a Pillow image. Items are asked for once each, in their order.
    limit
        Take the first images only.

    Returns
    -------
    Tensor
        Images ``(N, y, x)`` or ``(N, channel, y, x)``, float32 in [0, 1], on the CPU.

    Raises
    ------
    DtypeError
        If the data set has no length or its items are no images, or if the numbers are neither
        floating-point nor unsigned integers of 8 or 16 bits.
    ShapeError
        If the images are not of one shape, or it is not that of images.
    DataError
        If there are no images, a number is NaN or outside [0, 1], or a Pillow image is transparent
        or has other colours than red, green and blue.
    OptionError
        If the limit is not positive.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> bytes, labels = torch.full((60, 28, 28), 51, dtype=torch.uint8), torch.zeros(60)
    >>> images = image_tensor(TensorDataset(bytes, labels))
    >>> images.shape, images.max()
    (torch.Size([60, 28, 28]), tensor(0.2000))
    """
    if limit is not None:
        check_count("limit", limit)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DtypeError(
            f"dataset: expected a map-style data set, with a length and items, got "
            f"{type(dataset).__name__}"
        )
    num = len(dataset) if limit is None else min(limit, len(dataset))
    if num == 0:
        raise DataError("dataset: holds no images")
    names = (f"dataset[{index}]" for index in range(num))
    return stack_images(((name, _item(dataset[i], name)) for i, name in enumerate(names)), num)


def is_divided(path: str | Path) -> bool:
    """Whether there are images set apart for tests, so that ``split="test"`` can be read.

    Examples
    --------
    >>> is_divided("faces.npy")
    False
    """
    path = Path(path)
    return path.is_dir() and (holds_mnist(path) or _test_part(path) is not None)


def _test_part(folder: Path) -> str | None:
    """Without a test part the images for validation are what was not trained on."""
    parts = [part for part in _PARTS if (folder / part).is_dir()]
    held_out = [part for part in parts if part != "train"]
    if "train" not in parts or not held_out:
        return None
    return "test" if "test" in held_out else "val"


def _from_folder(folder: Path, split: str, limit: int | None) -> Tensor:
    if holds_mnist(folder):
        path = mnist_file(folder, split)
        return as_images(read_idx(path).numpy(), str(path), limit)
    test_part = _test_part(folder)
    if test_part is not None:
        folder = folder / ("train" if split == "train" else test_part)
    else:
        _only_training(folder, split)
    files = list(islice(picture_files(folder), limit))
    if not files:
        found = listed(sorted(entry.name for entry in folder.iterdir()))
        raise FileNotFoundError(f"{folder}: holds no images; found {found}, expected {_UNDERSTOOD}")
    return stack_images(((str(file), read_picture(file)) for file in files), len(files))


def _only_training(path: Path, split: str) -> None:
    if split != "train":
        raise OptionError(
            f"split: {path} is not divided into training and test images; expected the MNIST files "
            "or a folder with the folders train and test, or leave out the split for all images"
        )


def _read_array(path: Path, limit: int | None, key: str | None) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return read_npy(path)
    if suffix in _HDF5_SUFFIXES:
        return read_hdf5(path, key=key, limit=limit)
    if suffix == ".npz":
        raise FileFormatError(
            f"{path}: .npz files hold several arrays and cannot be read in part; write the images "
            "alone with numpy.save to a file .npy"
        )
    with path.open("rb") as file:
        start = file.read(2)
    if "idx" in path.name.lower() or start in _IDX_STARTS:
        return read_idx(path).numpy()
    kind = f"files {path.suffix}" if suffix else "files of this kind"
    raise FileFormatError(f"{path}: {kind} are not understood; expected {_UNDERSTOOD}")


def _item(item: Any, name: str) -> np.ndarray:
    """The image in an item of a data set."""
    if isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, Tensor):
        # NumPy has no bfloat16.
        item = item.float() if item.is_floating_point() else item
        return item.numpy(force=True)
    if isinstance(item, np.ndarray):
        return item
    from PIL import Image

    if isinstance(item, Image.Image):
        return picture_pixels(item, name)
    raise DtypeError(
        f"{name}: expected an image (a tensor, a NumPy array or a Pillow image) or a tuple that "
        f"begins with one, got {type(item).__name__}"
    )
