from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayesgen.datasets import read_idx, write_idx
from bayesgen.errors import FileFormatError

VALUES = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["values.idx", "values.gz"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    write_idx(tmp_path / name, VALUES)
    assert torch.equal(read_idx(tmp_path / name), VALUES)


def test_compressed_files_are_reproducible(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, VALUES)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize(
    ("code", "payload", "expected"),
    [
        (0x09, b"\xff\x02", torch.tensor([-1, 2], dtype=torch.int8)),
        (0x0B, b"\x01\x00\xff\xfe", torch.tensor([256, -2], dtype=torch.int16)),
        (0x0C, b"\x00\x00\x00\x01\x00\x01\x00\x00", torch.tensor([1, 65536], dtype=torch.int32)),
        (0x0D, b"\x3f\x80\x00\x00\xc0\x00\x00\x00", torch.tensor([1.0, -2.0])),
    ],
)
def test_types_are_big_endian(
    tmp_path: Path, code: int, payload: bytes, expected: torch.Tensor
) -> None:
    path = tmp_path / "values"
    path.write_bytes(bytes([0, 0, code, 1, 0, 0, 0, 2]) + payload)
    found = read_idx(path)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("cut", [0, 1, 3, 6, 15, 16, 39])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncation_is_reported(tmp_path: Path, cut: int, compressed: bool) -> None:
    write_idx(tmp_path / "whole", VALUES)
    data = (tmp_path / "whole").read_bytes()[:cut]
    path = tmp_path / "values"
    path.write_bytes(gzip.compress(data) if compressed else data)
    with pytest.raises(FileFormatError, match=str(path)):
        read_idx(path)


def test_truncation_names_expected_and_found_bytes(tmp_path: Path) -> None:
    path = tmp_path / "values"
    write_idx(path, VALUES)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match=r"truncated.*expected 40 bytes, found 39"):
        read_idx(path)


def test_truncated_compression_names_expected_bytes(tmp_path: Path) -> None:
    path = tmp_path / "values.gz"
    noise = torch.randint(256, (500, 10), generator=torch.Generator().manual_seed(0))
    write_idx(path, noise)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FileFormatError, match=r"truncated.*expected 5012 bytes, found \d+"):
        read_idx(path)


def test_trailing_bytes_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "values"
    write_idx(path, VALUES)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(FileFormatError, match="too long"):
        read_idx(path)


def test_damaged_compression_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "values.gz"
    path.write_bytes(b"\x1f\x8b" + b"nonsense" * 10)
    with pytest.raises(FileFormatError, match="damaged"):
        read_idx(path)


@given(data=st.binary(max_size=64))
def test_any_other_bytes_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("idx") / "values"
    path.write_bytes(data)
    try:
        assert read_idx(path).numel() <= len(data)
    except FileFormatError as error:
        assert str(path) in str(error)
