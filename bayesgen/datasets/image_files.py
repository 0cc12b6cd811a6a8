"""Files that hold images: NumPy and HDF5 arrays, and folders of pictures, as they are stored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bayesgen.errors import BayesgenError, DataError, FileFormatError, OptionError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm")
# Pillow would go by the contents of a file, whatever its name; some of its decoders run programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM")
# What Pillow's modes become, so that every picture is grey or red, green and blue.
_PLAIN_MODES = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB"}
_MODES = ("L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F", "RGB")


def read_npy(path: Path) -> np.ndarray:
    """Map a NumPy array into memory; of the file only what is used of the array is read.

    Raises
    ------
    FileFormatError
        If the file is damaged or holds pickled objects, which are never loaded: they could run
        any code.
    """
    with _readable(path, "an NPY file of plain numbers"):
        return np.lib.format.open_memmap(path, mode="r")


def read_hdf5(path: Path, *, key: str | None = None, limit: int | None = None) -> np.ndarray:
    """Read the data set ``key`` of an HDF5 file, or the only one that can be images.

    Raises
    ------
    OptionError
        If there is no such data set, or several and no key.
    FileFormatError
        If the file is damaged, or no data set has three or four dimensions and real numbers.
    """
    import h5py

    with _readable(path, "an HDF5 file"), h5py.File(path, "r") as file:
        values: np.ndarray = _data_set(file, path, key)[:limit]
    return values


def picture_files(folder: Path, *, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the pictures in a folder and the folders in it, sorted by name, hidden ones left out.

    Parameters
    ----------
    folder
        Where to look. Symbolic links are followed.
    above
        The folders that led here, with links resolved.

    Raises
    ------
    FileFormatError
        If a link leads back to a folder that contains it.
    OSError
        If a folder may not be read, or a link leads to itself.
    """
    real = folder.resolve()
    if real in above:
        raise FileFormatError(f"{folder}: a symbolic link that leads back to {real}; remove it")
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda entry: entry.name):
        if entry.is_dir():
            yield from picture_files(Path(entry.path), above=(*above, real))
        elif entry.name.lower().endswith(PICTURE_SUFFIXES):
            yield Path(entry.path)


def read_picture(path: Path) -> np.ndarray:
    """Read one picture, ``(y, x)`` if it is grey and ``(3, y, x)`` in colour.

    Raises
    ------
    OSError
        If there is no such file, or it may not be read.
    FileFormatError
        If it is damaged, or has more pixels than Pillow's limit ``PIL.Image.MAX_IMAGE_PIXELS``.
    DataError
        If it has several pages, or see `picture_pixels`.
    """
    from PIL import Image

    with _readable(path, "a picture"), Image.open(path, formats=_FORMATS) as image:
        pages = getattr(image, "n_frames", 1)
        # What some cameras put behind a JPEG picture is the same scene again.
        if pages > 1 and image.format in ("TIFF", "PNG"):
            raise DataError(
                f"{path}: has {pages} pages; write each to a file of its own, or all of them as "
                "an array (N, y, x) with numpy.save"
            )
        return picture_pixels(image, str(path))


def picture_pixels(image: Any, where: str) -> np.ndarray:
    """Return the numbers of a Pillow image, ``(y, x)`` if it is grey and ``(3, y, x)`` in colour.

    An alpha channel that hides nothing is dropped.

    Raises
    ------
    DataError
        If a pixel is transparent, for then its intensity depends on what is behind it, or if the
        colours are not red, green and blue.
    """
    if ("A" in image.getbands() or "transparency" in image.info) and not _is_opaque(image):
        raise DataError(
            f"{where}: has transparent pixels, whose intensity depends on what is behind them; "
            "draw it onto a background first, for example with PIL.Image.alpha_composite"
        )
    if image.mode in _PLAIN_MODES:
        image = image.convert(_PLAIN_MODES[image.mode])
    if image.mode not in _MODES:
        raise DataError(
            f"{where}: has the colours {image.mode}; convert it to grey or RGB, for example with "
            "Pillow's Image.convert"
        )
    pixels = np.asarray(image)
    if image.mode == "I" and image.format in ("PPM", "PNG"):
        # Some 16-bit files come in 32 bits; their values are those of 16.
        pixels = pixels.astype(np.uint16)
    return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _is_opaque(image: Any) -> bool:
    # Pillow loses the transparent grey level of 16-bit pictures when it converts them.
    if image.mode.startswith("I"):
        return False
    opaque: bool = image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    return opaque


def listed(names: Sequence[str], most: int = 8) -> str:
    """Join names for a message, which stays short however many there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into an error that names the file."""
    try:
        yield
    except (BayesgenError, MemoryError, Warning):
        raise
    # Decoders raise nearly anything on damaged data.
    except Exception as error:
        # Trouble with the disk or with permissions has a number, trouble with the contents none.
        if getattr(error, "errno", None) is not None:
            raise
        raise FileFormatError(
            f"{path}: cannot be read as {kind} ({error}); it may be damaged or of another kind"
        ) from error


def _data_set(file: Any, path: Path, key: str | None) -> Any:
    """The data set of an open HDF5 file; its layout is checked, its values are not read."""
    data_sets = _data_sets(file)
    suitable = [name for name, item in data_sets.items() if _is_suitable(item)]
    expected = "expected a data set (N, y, x) or (N, channel, y, x) of real numbers"
    if key is None and not suitable:
        raise FileFormatError(f"{path}: holds no images; {expected}, found {_described(data_sets)}")
    if key is None and len(suitable) > 1:
        several = {name: data_sets[name] for name in suitable}
        raise OptionError(
            f"key: {path} holds several data sets that can be images, {_described(several)}; "
            "say which"
        )
    try:
        item = file[suitable[0] if key is None else key]
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(f"key: {path} has no {key!r}, but {_described(data_sets)}") from error
    if not _is_suitable(item):
        raise OptionError(
            f"key: {key!r} of {path} cannot be images; {expected}, the file holds "
            f"{_described(data_sets)}"
        )
    return item


def _data_sets(file: Any) -> dict[str, Any]:
    """All data sets of a file, with those in its groups, by name."""
    import h5py

    found: dict[str, Any] = {}
    # A visit that returns something would be the last.
    file.visititems(lambda name, item: found.update({name: item}))
    return {name: item for name, item in found.items() if isinstance(item, h5py.Dataset)}


def _is_suitable(item: Any) -> bool:
    # A group has no shape, and that of an empty data set is None.
    return len(getattr(item, "shape", None) or ()) in (3, 4) and item.dtype.kind in "buif"


def _described(data_sets: dict[str, Any]) -> str:
    return listed([f"{name!r} {item.shape} {item.dtype}" for name, item in data_sets.items()])
