"""The fastMRI data set: its HDF5 files, slice by slice, and the published knee images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bayesgen.datasets.draws import check_dtype
from bayesgen.errors import (
    BayesgenError,
    DataError,
    DtypeError,
    FileFormatError,
    OptionError,
    ShapeError,
    unknown_option,
)
from bayesgen.types import check_count

Method = Literal["rss", "esc"]
_RECONSTRUCTIONS = tuple(f"reconstruction_{method}" for method in get_args(Method))
# Array: kinds of its numbers, and how many dimensions it may have.
_LAYOUT = {
    "kspace": ("c", (3, 4)),
    "mask": ("bif", (1, 2)),
    **dict.fromkeys(_RECONSTRUCTIONS, ("f", (3,))),
}


@dataclass(frozen=True)
class FastMRIVolume:
    """One fastMRI file: what it says about itself, and its arrays when asked for.

    Arrays are read at every call, only as far as the slices that are asked for, and no file stays
    open. Slices are numbered from 0; ``slices=None`` means all. Reading raises `OptionError` if a
    slice does not exist and `FileFormatError` if the file lacks the array or is damaged.

    Parameters
    ----------
    path
        The file.
    acquisition
        Pulse sequence: ``"CORPD_FBK"`` and ``"CORPDFS_FBK"`` for knees (proton density without
        and with fat suppression), ``"AXT1"``, ``"AXT2"``, ``"AXFLAIR"``, ... for brains.
    patient_id
        Anonymised; volumes that share it must not be divided between training and test.
    num_slices
        Number of slices.
    contents
        Names of the arrays in the file.
    max, norm
        Largest value and Euclidean norm of the reconstructed volume; None in test files.
    header
        The scanner's description, ISMRMRD XML; empty if the file has none.
    """

    path: Path
    acquisition: str
    patient_id: str
    num_slices: int
    contents: tuple[str, ...]
    max: float | None
    norm: float | None
    header: str

    def kspace(self, slices: Sequence[int] | None = None) -> Tensor:
        """Measurements, complex: ``(n, ky, kx)`` of one coil or ``(n, coil, ky, kx)`` of many."""
        return self._read("kspace", slices)

    def reconstruction(
        self, slices: Sequence[int] | None = None, *, method: Method = "rss"
    ) -> Tensor:
        """Images ``(n, y, x)`` from all measurements, in the scanner's units.

        ``"rss"`` is the root of the sum of squares over the coils, which all files hold but those
        of the test sets; ``"esc"`` comes from the emulated single coil, in single-coil files.
        """
        return self._read(_reconstruction_name(method), slices)

    def mask(self) -> Tensor:
        """Which columns ``(kx,)`` of k-space were measured, boolean; in test files only."""
        with _opened(self.path) as file:
            return torch.from_numpy(_array(file, self.path, "mask")[()].astype(bool))

    def _read(self, name: str, slices: Sequence[int] | None) -> Tensor:
        indices = _as_indices(slices, self)
        with _opened(self.path) as file:
            array = _array(file, self.path, name)
            values = np.empty((len(indices), *array.shape[1:]), array.dtype.newbyteorder("="))
            for place, index in enumerate(indices):
                array.read_direct(values, np.s_[index], np.s_[place])
        return torch.from_numpy(values)


def read_fastmri(path: str | Path) -> FastMRIVolume:
    """Open a file of the fastMRI knee or brain data, single-coil or multi-coil.

    Parameters
    ----------
    path
        The HDF5 file. It holds ``kspace`` and, unless it belongs to a test set,
        ``reconstruction_rss`` or ``reconstruction_esc``; copies without ``kspace`` are read too.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is not HDF5, damaged, or not laid out as fastMRI files are.

    References
    ----------
    Zbontar et al. (2018), fastMRI: an open dataset and benchmarks for accelerated MRI. The data
    come from https://fastmri.med.nyu.edu, after registration.

    Examples
    --------
    >>> import h5py, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(folder + "/file1.h5", "w") as file:
    ...         file["kspace"] = np.ones((30, 15, 64, 36), "complex64")
    ...         file.attrs["acquisition"] = "CORPD_FBK"
    ...     volume = read_fastmri(folder + "/file1.h5")
    ...     volume.acquisition, volume.num_slices, volume.kspace(slices=[20]).shape
    ('CORPD_FBK', 30, torch.Size([1, 15, 64, 36]))
    """
    path = Path(path)
    with _opened(path) as file:
        names = [name for name in ("kspace", *_RECONSTRUCTIONS) if name in file]
        if not names:
            raise FileFormatError(
                f"{path}: not a fastMRI file; expected kspace or reconstruction_rss, "
                f"found {', '.join(file) or 'nothing'}"
            )
        if "acquisition" not in file.attrs:
            raise FileFormatError(f"{path}: has no attribute acquisition")
        counts = {name: len(_array(file, path, name)) for name in names}
        if len(set(counts.values())) > 1:
            raise FileFormatError(f"{path}: arrays differ in their number of slices: {counts}")
        return FastMRIVolume(
            path=path,
            acquisition=_text(path, "acquisition", file.attrs["acquisition"]),
            patient_id=_text(path, "patient_id", file.attrs.get("patient_id", "")),
            num_slices=counts[names[0]],
            contents=tuple(file),
            max=_number(path, "max", file.attrs.get("max")),
            norm=_number(path, "norm", file.attrs.get("norm")),
            header=_header(file, path),
        )


def fastmri_images(
    files: str | Path | Iterable[str | Path],
    *,
    acquisition: str | None = "CORPD_FBK",
    slices: Sequence[int] | None = range(12, 20),
    size: int = 128,
    method: Method = "rss",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Read slices of fastMRI volumes as images of one size, as in the published experiments.

    Each slice is resized with a Lanczos filter of three lobes, widened where the image shrinks so
    that nothing is aliased, and becomes

    .. math:: (x - \min x) \,/\, \max x

    which begins at 0 and ends at :math:`1 - \min x / \max x`: next to 1, for the air around a
    knee is dark. Slices that are not square are cropped to the square in their middle.

    Parameters
    ----------
    files
        A folder, whose ``.h5`` files are taken in the order of their names, a file, or files. The
        published split is by folder: 484 of the training and 100 of the validation volumes have
        the default acquisition.
    acquisition
        Take only volumes of this pulse sequence, by default knees without fat suppression; None
        takes all.
    slices
        Slices of each volume, from 0; None takes all. The default is published; it leaves out the
        ends of a volume, which show little.
    size
        Side of the images. Knees are stored with 320.
    method
        Which reconstruction; see `FastMRIVolume.reconstruction`.
    dtype
        Of the images. They are computed in double precision and then rounded.

    Returns
    -------
    Tensor
        Images ``(n, size, size)``, the slices of a volume one after another.

    Raises
    ------
    FileNotFoundError
        If the folder or a file is missing, or the folder holds no ``.h5`` file.
    FileFormatError
        If a file is not a fastMRI file, is damaged, or lacks the reconstruction.
    DataError
        If no volume has the acquisition, or a slice is not finite or has nothing above zero.
    OptionError
        If a volume does not have a slice, or another option has a value that is not allowed.
    DtypeError
        If the dtype is not real floating-point.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models; details from the code published with it.

    Examples
    --------
    >>> train = fastmri_images("multicoil_train")  # doctest: +SKIP
    >>> train.shape  # doctest: +SKIP
    torch.Size([3872, 128, 128])
    """
    check_count("size", size, minimum=1)
    check_dtype(dtype)
    _reconstruction_name(method)
    volumes = _matching([read_fastmri(path) for path in _paths(files)], acquisition)
    # All are looked up before the first is read: a short volume should not be found at the end.
    chosen = [_as_indices(slices, volume) for volume in volumes]
    images = torch.empty(sum(map(len, chosen)), size, size, dtype=dtype)
    blocks = images.split([len(indices) for indices in chosen])
    for volume, indices, block in zip(volumes, chosen, blocks, strict=True):
        raw = volume.reconstruction(indices, method=method).double()
        block.copy_(_normalised(raw, size, where=f"{volume.path}, slices {indices}"))
    return images


def centre_crop(images: Tensor, shape: int | tuple[int, int]) -> Tensor:
    """Cut the middle out of images, half a pixel towards the origin where it falls between two.

    Parameters
    ----------
    images
        ``(*batch, y, x)``, of any dtype.
    shape
        Side, or ``(y, x)``.

    Returns
    -------
    Tensor
        ``(*batch, *shape)``, a view.

    Raises
    ------
    DtypeError
        If ``images`` is not a tensor.
    OptionError
        If a size is not a positive integer.
    ShapeError
        If the images are smaller.

    Examples
    --------
    >>> centre_crop(torch.arange(20).reshape(4, 5), (2, 3))
    tensor([[ 6,  7,  8],
            [11, 12, 13]])
    """
    if not isinstance(images, Tensor):
        raise DtypeError(f"images: expected a torch tensor, got {type(images).__name__}")
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape, shape)
    if len(sizes) != 2:
        raise OptionError(f"shape: expected an integer or two of them, got {shape!r}")
    for size in sizes:
        check_count("shape", size, minimum=1)
    if images.ndim < 2 or any(n < m for n, m in zip(images.shape[-2:], sizes, strict=True)):
        raise ShapeError(
            f"images: expected (*batch, y, x) of at least {sizes}, got {tuple(images.shape)}"
        )
    for dim, size in zip((-2, -1), sizes, strict=True):
        images = images.narrow(dim, (images.shape[dim] - size) // 2, size)
    return images


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except BayesgenError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        # Trouble with the disk or with permissions has a number, trouble with the contents none.
        if getattr(error, "errno", None) is not None:
            raise
        raise FileFormatError(f"{path}: not an HDF5 file, or a damaged one ({error})") from error


def _array(file: Any, path: Path, name: str) -> Any:
    """An array of the file; its layout is checked, its values are not read."""
    if name not in file:
        hint = "; files of the test sets have none" if "mask" in file else ""
        raise FileFormatError(f"{path}: has no {name}, but {', '.join(file)}{hint}")
    array, (kinds, num_dims) = file[name], _LAYOUT[name]
    shape, dtype = getattr(array, "shape", None) or (), getattr(array, "dtype", None)
    # Sixteen bytes a number, or thirty-two a complex one, are more than torch can hold.
    readable = dtype is not None and dtype.kind in kinds and dtype.itemsize <= 16
    if not readable or dtype == np.longdouble or len(shape) not in num_dims or 0 in shape[1:]:
        found = "a group" if dtype is None else f"{dtype} of shape {shape}"
        raise FileFormatError(
            f"{path}: {name} should have {' or '.join(map(str, num_dims))} dimensions and "
            f"{'complex' if kinds == 'c' else 'real'} numbers, found {found}"
        )
    return array


def _as_indices(slices: Sequence[int] | None, volume: FastMRIVolume) -> list[int]:
    if slices is None:
        return list(range(volume.num_slices))
    if not isinstance(slices, Sequence):
        raise OptionError(f"slices: expected a range or list of integers, got {slices!r}")
    for index in slices:
        check_count("slices", index, minimum=0)
        if index >= volume.num_slices:
            raise OptionError(
                f"slices: {index} is not among the {volume.num_slices} slices of {volume.path}, "
                "counted from 0"
            )
    return list(slices)


def _reconstruction_name(method: str) -> str:
    if method not in get_args(Method):
        raise OptionError(unknown_option("method", method, get_args(Method)))
    return f"reconstruction_{method}"


def _paths(files: str | Path | Iterable[str | Path]) -> list[Path]:
    if not isinstance(files, str | Path):
        paths = [Path(file) for file in files]
        if not paths:
            raise OptionError("files: expected a folder or at least one file, got none")
        return paths
    paths = sorted(Path(files).glob("*.h5")) if Path(files).is_dir() else [Path(files)]
    if not paths:
        raise FileNotFoundError(
            f"{files}: holds no .h5 file; expected a folder of fastMRI files such as "
            "multicoil_train, which come from https://fastmri.med.nyu.edu"
        )
    return paths


def _matching(volumes: list[FastMRIVolume], acquisition: str | None) -> list[FastMRIVolume]:
    matching = [volume for volume in volumes if acquisition in (None, volume.acquisition)]
    if not matching:
        found = Counter(volume.acquisition for volume in volumes)
        listed = ", ".join(f"{name!r} ({count})" for name, count in sorted(found.items()))
        raise DataError(f"acquisition: no file has {acquisition!r}; found {listed}")
    return matching


def _normalised(images: Tensor, size: int, *, where: str) -> Tensor:
    """Resize images ``(n, y, x)`` and bring each by itself to about [0, 1]."""
    if not torch.isfinite(images).all():
        raise DataError(f"{where}: a pixel is NaN or infinite")
    images = centre_crop(images, min(images.shape[-2:]))
    weights = _lanczos(images.shape[-1], size)
    images = weights @ images @ weights.T
    low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
    if not (high > 0).all():
        raise DataError(f"{where}: an image has nothing above zero")
    return (images - low) / high


def _lanczos(old: int, new: int) -> Tensor:
    """Matrix ``(new, old)`` that resizes a line of pixels."""
    pitch = old / new
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * pitch - 0.5
    t = (torch.arange(old, dtype=torch.float64) - centres[:, None]) / max(pitch, 1.0)
    weights = (torch.sinc(t) * torch.sinc(t / 3)).where(t.abs() < 3, 0)
    return weights / weights.sum(1, keepdim=True)


def _header(file: Any, path: Path) -> str:
    header = file.get("ismrmrd_header", b"")
    if not isinstance(header, bytes):
        header = header[()] if getattr(header, "shape", None) == () else header
    return _text(path, "ismrmrd_header", header)


def _text(path: Path, name: str, value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, bytes | str):
        raise FileFormatError(f"{path}: {name} should be a text, found {value!r}")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _number(path: Path, name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(np.asarray(value).item())
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: {name} should be a number, found {value!r}") from error
