"""The IDX file format, in which the MNIST family of data sets is distributed."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesgen.errors import FileFormatError

_GZIP_MAGIC = b"\x1f\x8b"
# Multi-byte numbers are big-endian in the file.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> Tensor:
    """Read an IDX file, plain or compressed with gzip, as it is: no scaling.

    The format is two zero bytes, a byte for the type, a byte for the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values in row-major order.

    Parameters
    ----------
    path
        The file. Whether it is compressed is seen from its first bytes, not from its name.

    Returns
    -------
    Tensor
        The values, in the file's type and shape.

    Raises
    ------
    FileFormatError
        If the file is not IDX, or is shorter or longer than its header says.
    """
    path = Path(path)
    data = path.read_bytes()
    if data.startswith(_GZIP_MAGIC):
        data = _decompress(data, path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _DTYPES:
        raise FileFormatError(
            f"{path}: not an IDX file; it should begin with 00 00 and a known type, "
            f"found {data[:4].hex(' ') or 'nothing'}"
        )
    dtype, num_dims = np.dtype(_DTYPES[data[2]]), data[3]
    start = 4 + 4 * num_dims
    shape = tuple(
        int(size) for size in np.frombuffer(data[4:start], ">u4", len(data[4:start]) // 4)
    )
    expected = start + math.prod(shape) * dtype.itemsize
    if len(shape) < num_dims or len(data) != expected:
        kind = "truncated" if len(data) < expected else "too long"
        raise FileFormatError(
            f"{path}: {kind}; for shape {shape} expected {expected} bytes, found {len(data)}"
        )
    values = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))


def _decompress(data: bytes, path: Path) -> bytes:
    """Unpack as much as is there, so that the length check can say how much is missing."""
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = stream.decompress(data)
    except zlib.error as error:
        raise FileFormatError(f"{path}: damaged gzip data ({error})") from error
    return unpacked


def write_idx(path: str | Path, values: Tensor) -> None:
    """Write unsigned bytes as an IDX file, compressed if the name ends in ``.gz``.

    Equal values give equal bytes: the compressed file carries no time stamp.
    """
    path = Path(path)
    header = bytes([0, 0, 0x08, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    data = header + values.to(torch.uint8).contiguous().numpy().tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
