"""What files hold, as they hold it; how it becomes intensities is tested elsewhere."""

from __future__ import annotations

import os
import pickle
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest

from bayesgen.datasets.image_files import (
    listed,
    picture_files,
    picture_pixels,
    read_hdf5,
    read_npy,
    read_picture,
)
from bayesgen.errors import BayesgenError, DataError, FileFormatError, OptionError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
DEEP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000 + 1
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)
IMAGES = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)


def _save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = PIL.Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


class TestNpy:
    @pytest.mark.parametrize("dtype", ["u1", ">u2", "f4", "f8", "?"])
    def test_arrays_as_they_are(self, tmp_path: Path, dtype: str) -> None:
        for values in (IMAGES.astype(dtype), np.asfortranarray(IMAGES.astype(dtype))):
            np.save(tmp_path / "a.npy", values)
            read = read_npy(tmp_path / "a.npy")
            assert read.dtype == dtype and np.array_equal(read, values)

    def test_the_file_is_mapped(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", IMAGES)
        read = read_npy(tmp_path / "a.npy")
        assert isinstance(read, np.memmap) and not read.flags.writeable

    def test_truncated_at_any_byte(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        np.save(path, IMAGES)
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(FileFormatError, match=f"{path}: cannot be read as an NPY file"):
                read_npy(path)

    def test_pickled_objects_are_never_loaded(self, tmp_path: Path) -> None:
        flag = tmp_path / "executed"
        bomb = np.array([[[_Bomb(flag)]]], dtype=object)
        np.save(tmp_path / "a.npy", bomb, allow_pickle=True)
        (tmp_path / "b.npy").write_bytes(pickle.dumps(_Bomb(flag)))
        with pytest.raises(FileFormatError, match="of plain numbers .*Python objects"):
            read_npy(tmp_path / "a.npy")
        with pytest.raises(FileFormatError, match="of plain numbers"):
            read_npy(tmp_path / "b.npy")
        assert not flag.exists()
        np.load(tmp_path / "a.npy", allow_pickle=True)
        assert flag.exists()  # so that the line before can fail

    def test_a_full_memory_is_not_blamed_on_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise MemoryError

        monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
        with pytest.raises(MemoryError):
            read_npy(tmp_path / "a.npy")

    def test_archives_of_arrays(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", IMAGES)
        os.rename(tmp_path / "a.npz", tmp_path / "a.npy")
        with pytest.raises(FileFormatError, match="magic string"):
            read_npy(tmp_path / "a.npy")


class _Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    """One data set of images, among others that cannot be images."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["part/images"] = IMAGES
        file["labels"] = np.zeros(5)
        file["boxes"] = np.zeros((5, 4))
        file["text"] = "these are images"
        file["nothing"] = h5py.Empty("f")
        file["waves"] = np.zeros((5, 3, 4), complex)
        file["type"] = np.dtype("f4")
        file["part/up"] = h5py.SoftLink("/part")
        file["dangling"] = h5py.SoftLink("/nowhere")
    return path


class TestHdf5:
    def test_the_only_data_set_needs_no_key(self, hdf5: Path) -> None:
        assert np.array_equal(read_hdf5(hdf5), IMAGES)
        for key in ("part/images", "/part/images", "part/up/images"):
            assert np.array_equal(read_hdf5(hdf5, key=key), IMAGES)
        assert read_hdf5(hdf5).dtype == np.uint8

    def test_one_of_several(self, hdf5: Path) -> None:
        with h5py.File(hdf5, "a") as file:
            file["colour"] = np.ones((2, 3, 4, 4), np.float32)
        message = (
            r"key: .*a.h5 holds several data sets that can be images, 'colour' \(2, 3, 4, 4\) "
            r"float32, 'part/images' \(5, 3, 4\) uint8; say which"
        )
        with pytest.raises(OptionError, match=message):
            read_hdf5(hdf5)
        assert read_hdf5(hdf5, key="colour").shape == (2, 3, 4, 4)
        assert np.array_equal(read_hdf5(hdf5, key="part/images"), IMAGES)

    def test_none(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w"):
            pass
        with pytest.raises(FileFormatError, match=f"{path}: holds no images; .* found nothing"):
            read_hdf5(path)
        with h5py.File(path, "w") as file:
            file["labels"] = np.zeros(5)
        with pytest.raises(FileFormatError, match=r"holds no images; .* found 'labels' \(5,\)"):
            read_hdf5(path)

    @pytest.mark.parametrize("key", ["image", "dangling", "", "part/image", 3])
    def test_a_key_that_does_not_exist(self, hdf5: Path, key: Any) -> None:
        with pytest.raises(OptionError, match=rf"key: .* has no {key!r}, but .*'part/images' \(5"):
            read_hdf5(hdf5, key=key)

    @pytest.mark.parametrize("key", ["labels", "text", "nothing", "waves", "type", "part", "/"])
    def test_a_key_of_something_else(self, hdf5: Path, key: str) -> None:
        with pytest.raises(OptionError, match=rf"key: '{key}' of .* cannot be images; .*'part/im"):
            read_hdf5(hdf5, key=key)

    def test_links_in_a_circle(self, hdf5: Path) -> None:
        with h5py.File(hdf5, "a") as file:
            file["circle"] = h5py.SoftLink("/circle")
            file["part/whole"] = file["/"]
        assert np.array_equal(read_hdf5(hdf5), IMAGES)
        with pytest.raises(FileFormatError, match="too many links"):
            read_hdf5(hdf5, key="circle")

    def test_limit_reads_no_more(self, tmp_path: Path) -> None:
        """A damaged image, which its checksum betrays, is found only by those who read it."""
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=IMAGES, chunks=(1, 3, 4), fletcher32=True)
        data = path.read_bytes()
        start = data.index(IMAGES[2].tobytes())
        path.write_bytes(data[:start] + b"\xff" + data[start + 1 :])
        assert np.array_equal(read_hdf5(path, limit=2), IMAGES[:2])
        with pytest.raises(FileFormatError, match=f"{path}: cannot be read as an HDF5 file"):
            read_hdf5(path, limit=3)

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
    def test_truncated(self, hdf5: Path, share: float) -> None:
        data = hdf5.read_bytes()
        hdf5.write_bytes(data[: int(share * len(data))])
        with pytest.raises(FileFormatError, match=f"{hdf5}: cannot be read as an HDF5 file"):
            read_hdf5(hdf5)


class TestPicture:
    @pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "pgm"])
    def test_grey_without_loss(self, tmp_path: Path, suffix: str) -> None:
        pixels = read_picture(_save(tmp_path / f"a.{suffix}", GREY))
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, GREY)

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
    def test_sixteen_bits(self, tmp_path: Path, suffix: str) -> None:
        pixels = read_picture(_save(tmp_path / f"a.{suffix}", DEEP))
        assert pixels.dtype == np.uint16 and np.array_equal(pixels, DEEP)

    def test_sixteen_bits_the_other_way_round(self, tmp_path: Path) -> None:
        pixels = read_picture(_save(tmp_path / "a.tif", DEEP.astype(">u2")))
        assert pixels.dtype.itemsize == 2 and np.array_equal(pixels, DEEP)

    @pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
    def test_channels_come_first(self, tmp_path: Path, suffix: str) -> None:
        pixels = read_picture(_save(tmp_path / f"a.{suffix}", COLOUR))
        assert np.array_equal(pixels, [COLOUR[..., channel] for channel in range(3)])

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
    def test_jpeg(self, tmp_path: Path, suffix: str) -> None:
        grey = read_picture(_save(tmp_path / f"a.{suffix}", np.full((8, 9), 77, np.uint8)))
        assert grey.shape == (8, 9) and abs(grey.astype(int) - 77).max() <= 1
        red = np.full((8, 9, 3), (200, 0, 0), np.uint8)
        pixels = read_picture(_save(tmp_path / f"a.{suffix}", red, quality=95)).astype(int)
        assert pixels.shape == (3, 8, 9)
        assert abs(pixels - np.array([200, 0, 0])[:, None, None]).max() <= 4

    def test_floats_are_left_alone(self, tmp_path: Path) -> None:
        values = (GREY / 240).astype(np.float32)
        pixels = read_picture(_save(tmp_path / "a.tif", values))
        assert pixels.dtype == np.float32 and np.array_equal(pixels, values)

    def test_fewer_bits_fill_the_range(self, tmp_path: Path) -> None:
        pixels = read_picture(_save(tmp_path / "a.png", GREY > 100))
        assert np.array_equal(pixels, np.where(GREY > 100, 255, 0))
        (tmp_path / "a.pgm").write_bytes(b"P2 3 1 15\n0 3 15\n")
        assert read_picture(tmp_path / "a.pgm").tolist() == [[0, 51, 255]]

    def test_palettes_become_their_colours(self, tmp_path: Path) -> None:
        image = PIL.Image.fromarray(np.array([[1, 0, 1]], np.uint8)).convert("P")
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.save(tmp_path / "a.png")
        pixels = read_picture(tmp_path / "a.png")
        assert pixels.transpose(1, 2, 0).tolist() == [[[40, 50, 60], [10, 20, 30], [40, 50, 60]]]

    def test_an_alpha_channel_that_hides_nothing_is_dropped(self, tmp_path: Path) -> None:
        grey = read_picture(_save(tmp_path / "a.png", GREY, "LA"))
        assert np.array_equal(grey, GREY)
        colour = read_picture(_save(tmp_path / "a.png", COLOUR, "RGBA"))
        assert np.array_equal(colour, COLOUR.transpose(2, 0, 1))

    @pytest.mark.parametrize("kind", ["grey", "colour", "level", "deep level", "palette"])
    def test_transparent_pixels_are_refused(self, tmp_path: Path, kind: str) -> None:
        alpha = np.full_like(GREY, 255)
        alpha[1, 2] = 254
        path = tmp_path / "a.png"
        if kind == "grey":
            _save(path, np.stack([GREY, alpha], -1))
        elif kind == "colour":
            _save(path, np.dstack([COLOUR, alpha]))
        elif kind == "palette":
            PIL.Image.fromarray(COLOUR).quantize(8).save(path, transparency=0)
        else:
            _save(path, GREY if kind == "level" else DEEP, transparency=20)
        with pytest.raises(DataError, match=f"{path}: has transparent pixels.*onto a background"):
            read_picture(path)

    @pytest.mark.parametrize(
        ("mode", "suffix"), [("CMYK", "jpg"), ("YCbCr", "tif"), ("LAB", "tif")]
    )
    def test_other_colours_are_refused(self, tmp_path: Path, mode: str, suffix: str) -> None:
        path = _save(tmp_path / f"a.{suffix}", COLOUR, mode)
        with pytest.raises(DataError, match=f"{path}: has the colours {mode}; convert it to grey"):
            read_picture(path)

    def test_thirty_two_bits_are_not_taken_for_sixteen(self, tmp_path: Path) -> None:
        assert read_picture(_save(tmp_path / "a.tif", DEEP.astype(np.int32))).dtype == np.int32

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_pages_are_not_passed_over(self, tmp_path: Path, suffix: str) -> None:
        pages = [PIL.Image.fromarray(page) for page in (GREY, GREY + 1, GREY + 2)]
        path = tmp_path / f"a.{suffix}"
        pages[0].save(path, save_all=True, append_images=pages[1:])
        with pytest.raises(DataError, match=f"{path}: has 3 pages; write each to a file of its"):
            read_picture(path)

    def test_the_second_picture_of_a_camera_is(self, tmp_path: Path) -> None:
        pages = [PIL.Image.fromarray(COLOUR), PIL.Image.fromarray(COLOUR[:2])]
        pages[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pages[1:])
        assert read_picture(tmp_path / "a.jpg").shape == (3, 3, 4)

    def test_pixels_of_images_in_memory(self) -> None:
        assert np.array_equal(picture_pixels(PIL.Image.fromarray(GREY), "x"), GREY)
        with pytest.raises(DataError, match="x: has the colours HSV"):
            picture_pixels(PIL.Image.fromarray(COLOUR).convert("HSV"), "x")

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "pgm"])
    def test_truncated(self, tmp_path: Path, suffix: str) -> None:
        pixels = np.random.default_rng(0).integers(256, size=(40, 50), dtype=np.uint8)
        path = _save(tmp_path / f"a.{suffix}", pixels)
        data = path.read_bytes()
        for share in (0, 0.01, 0.3, 0.8):
            path.write_bytes(data[: int(share * len(data))])
            with pytest.raises(FileFormatError, match=f"{path}: cannot be read as a picture"):
                _quietly(path)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "pgm"])
    def test_any_damage_is_an_error_of_ours(self, tmp_path: Path, suffix: str) -> None:
        """Damage that leaves a valid picture is not noticed, but no other error comes out."""
        rng = random.Random(0)
        path = _save(tmp_path / f"a.{suffix}", COLOUR if suffix != "pgm" else GREY)
        data = path.read_bytes()
        refused = 0
        for _ in range(60):
            damaged = bytearray(data)
            for _ in range(rng.choice([1, 5, 20])):
                damaged[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                _quietly(path)
            except BayesgenError as error:
                assert str(path) in str(error)
                refused += 1
        assert refused > 5

    def test_other_kinds_under_a_known_name(self, tmp_path: Path) -> None:
        """Also those that Pillow could decode: some of its decoders run other programs."""
        for kind, data in {
            "text": b"not a picture",
            "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "gif": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b";",
        }.items():
            path = tmp_path / f"{kind}.png"
            path.write_bytes(data)
            with pytest.raises(FileFormatError, match="cannot identify image file"):
                read_picture(path)

    def test_the_limit_of_pillow_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
        path = tmp_path / "a.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))
        with pytest.raises(FileFormatError, match=f"{path}: .*400000000 pixels.* exceeds limit"):
            read_picture(path)
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 11)
        _save(path, GREY)
        with pytest.warns(PIL.Image.DecompressionBombWarning):
            assert read_picture(path).shape == (3, 4)
        with pytest.raises(PIL.Image.DecompressionBombWarning):
            read_picture(path)

    def test_trouble_with_the_disk_is_not_blamed_on_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="a.png"):
            read_picture(tmp_path / "a.png")
        (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
        with pytest.raises(OSError, match="symbolic links: '.*b.png'"):
            read_picture(tmp_path / "b.png")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _quietly(path: Path) -> None:
    """Read a damaged picture, of whose entries Pillow may warn before it gives up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_picture(path)


class TestPictureFiles:
    def test_sorted_by_name_with_folders_inside(self, tmp_path: Path) -> None:
        names = ["b.PNG", "a.jpg", "c/2.tif", "c/1.tiff", "c/d/0.bmp", "e.jpeg", "f.pgm", "g.png"]
        others = ["notes.txt", "a.webp", ".hidden.png", "._g.png", ".trash/h.png", "png"]
        for name in names + others:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        found = [path.relative_to(tmp_path).as_posix() for path in picture_files(tmp_path)]
        assert found == sorted(names)

    def test_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "far").mkdir()
        (tmp_path / "far" / "a.png").touch()
        (tmp_path / "near").mkdir()
        for name in ("one", "two"):
            (tmp_path / "near" / name).symlink_to(tmp_path / "far")
        found = list(picture_files(tmp_path / "near"))
        assert [path.parent.name for path in found] == ["one", "two"]

    @pytest.mark.parametrize("depth", [0, 1, 3])
    def test_links_in_a_circle_are_named(self, tmp_path: Path, depth: int) -> None:
        inner = tmp_path.joinpath(*"abc"[:depth])
        inner.mkdir(parents=True, exist_ok=True)
        (inner / "back").symlink_to(tmp_path)
        with pytest.raises(
            FileFormatError, match=f"back: a symbolic link that leads back to {tmp_path}"
        ):
            list(picture_files(tmp_path))

    def test_links_that_lead_nowhere_are_not_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
        assert list(picture_files(tmp_path)) == [tmp_path / "a.png"]
        (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
        with pytest.raises(OSError, match="symbolic links: '.*b.png'"):
            list(picture_files(tmp_path))


def test_lists_stay_short() -> None:
    assert listed([]) == "nothing"
    assert listed(list("abc"), most=3) == "a, b, c"
    assert listed(list("abcde"), most=3) == "a, b, c and 2 more"
