"""The reader against small files in the layout of the real ones."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesgen.datasets import FastMRIVolume, centre_crop, fastmri_images, read_fastmri
from bayesgen.errors import DataError, DtypeError, FileFormatError, OptionError, ShapeError

# The package has functions of the names of some modules, so this one is taken the sure way.
module = importlib.import_module("bayesgen.datasets.fastmri")

HEADER = '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>'
NUM_SLICES = 22


def _volume(seed: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return (values + 0.1) * 1e-4


def _write(path: Path, *, seed: int = 0, acquisition: str = "CORPD_FBK", **arrays: Any) -> Path:
    """Write a single-coil training file; arrays replace its arrays, None leaves one out."""
    kspace = _volume(seed, NUM_SLICES, 40, 36) + 1j * _volume(seed + 1, NUM_SLICES, 40, 36)
    contents = {
        "ismrmrd_header": HEADER.encode(),
        "kspace": kspace.astype(np.complex64),
        "reconstruction_rss": _volume(seed + 2, NUM_SLICES, 32, 32),
        "reconstruction_esc": _volume(seed + 3, NUM_SLICES, 32, 32),
        **arrays,
    }
    with h5py.File(path, "w") as file:
        for name, values in contents.items():
            if values is not None:
                file[name] = values
        file.attrs["acquisition"] = acquisition
        file.attrs["patient_id"] = "3fa7"
        if contents["reconstruction_rss"] is not None:
            file.attrs["max"] = np.float64(1.1e-4)
            file.attrs["norm"] = np.float64(0.25)
    return path


def _write_test_file(path: Path) -> Path:
    none = {"reconstruction_rss": None, "reconstruction_esc": None}
    return _write(path, **none, mask=np.arange(36) % 4 == 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return _write(tmp_path / "file1000001.h5")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three volumes without and one with fat suppression, and a file of another kind."""
    for number in (4, 1, 2):
        _write(tmp_path / f"file100000{number}.h5", seed=10 * number)
    _write(tmp_path / "file1000003.h5", seed=30, acquisition="CORPDFS_FBK")
    (tmp_path / "readme.txt").write_text("not a volume")
    return tmp_path


class TestReadFastmri:
    def test_attributes(self, path: Path) -> None:
        volume = read_fastmri(str(path))
        assert volume == FastMRIVolume(
            path=path,
            acquisition="CORPD_FBK",
            patient_id="3fa7",
            num_slices=NUM_SLICES,
            contents=("ismrmrd_header", "kspace", "reconstruction_esc", "reconstruction_rss"),
            max=1.1e-4,
            norm=0.25,
            header=HEADER,
        )

    def test_single_coil_arrays(self, path: Path) -> None:
        volume = read_fastmri(path)
        kspace = volume.kspace()
        assert kspace.shape == (NUM_SLICES, 40, 36) and kspace.dtype == torch.complex64
        assert np.array_equal(kspace.real, _volume(0, NUM_SLICES, 40, 36))
        assert np.array_equal(kspace.imag, _volume(1, NUM_SLICES, 40, 36))
        images = volume.reconstruction()
        assert images.dtype == torch.float32
        assert np.array_equal(images, _volume(2, NUM_SLICES, 32, 32))
        esc = volume.reconstruction(method="esc")
        assert np.array_equal(esc, _volume(3, NUM_SLICES, 32, 32))

    def test_multicoil_arrays(self, tmp_path: Path) -> None:
        kspace = _volume(7, 4, 3, 40, 36).astype(np.complex64)
        images = _volume(8, 4, 32, 32)
        path = _write(
            tmp_path / "brain.h5",
            acquisition="AXT2",
            kspace=kspace,
            reconstruction_rss=images,
            reconstruction_esc=None,
        )
        volume = read_fastmri(path)
        assert (volume.acquisition, volume.num_slices) == ("AXT2", 4)
        assert np.array_equal(volume.kspace([2, 1]), kspace[[2, 1]])
        with pytest.raises(FileFormatError, match="has no reconstruction_esc, but ismrmrd_header"):
            volume.reconstruction(method="esc")

    def test_test_files_have_a_mask_and_no_reconstruction(self, tmp_path: Path) -> None:
        volume = read_fastmri(_write_test_file(tmp_path / "test.h5"))
        assert volume.max is None and volume.norm is None
        assert volume.mask().dtype == torch.bool
        assert volume.mask().nonzero().flatten().tolist() == list(range(0, 36, 4))
        with pytest.raises(FileFormatError, match="reconstruction_rss.*files of the test sets"):
            volume.reconstruction()
        assert "mask" in volume.contents

    def test_training_files_have_no_mask(self, path: Path) -> None:
        with pytest.raises(FileFormatError, match="has no mask, but ismrmrd_header, kspace"):
            read_fastmri(path).mask()

    @pytest.mark.parametrize(
        "slices", [range(12, 20), [3], [20, 0, 7], (5, 5), [], range(21, -1, -4)]
    )
    def test_slices(self, path: Path, slices: Any) -> None:
        images = read_fastmri(path).reconstruction(slices)
        assert np.array_equal(images, _volume(2, NUM_SLICES, 32, 32)[list(slices)])

    @pytest.mark.parametrize(
        ("slices", "message"),
        [
            ([NUM_SLICES], "22 is not among the 22 slices of .*file1000001.h5, counted from 0"),
            (range(12, 30), "22 is not among"),
            ([-1], "slices: got -1; expected an integer of at least 0"),
            ([1.0], "slices: got 1.0"),
            ([True], "slices: got True"),
            (3, "slices: expected a range or list of integers, got 3"),
            ("12", "slices: got '1'"),
        ],
    )
    def test_wrong_slices_are_refused(self, path: Path, slices: Any, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            read_fastmri(path).kspace(slices)

    def test_unknown_methods_are_refused(self, path: Path) -> None:
        with pytest.raises(OptionError, match="method: unknown value 'rs'.*did you mean 'rss'"):
            read_fastmri(path).reconstruction(method="rs")  # type: ignore[arg-type]

    def test_no_other_slice_is_read(self, tmp_path: Path) -> None:
        """A damaged slice, which its checksum betrays, is found only by those who read it."""
        values = _volume(2, NUM_SLICES, 32, 32)
        path = _write(tmp_path / "file.h5", reconstruction_rss=None)
        with h5py.File(path, "a") as file:
            file.create_dataset(
                "reconstruction_rss", data=values, chunks=(1, 32, 32), fletcher32=True
            )
        data = path.read_bytes()
        start = data.index(values[5].tobytes())
        path.write_bytes(data[:start] + b"\xff" + data[start + 1 :])
        volume = read_fastmri(path)
        others = [i for i in range(NUM_SLICES) if i != 5]
        assert np.array_equal(volume.reconstruction(others), values[others])
        for slices in ([5], None):
            with pytest.raises(FileFormatError, match=f"{path}: .*damaged"):
                volume.reconstruction(slices)

    def test_no_file_stays_open(self, path: Path) -> None:
        volume = read_fastmri(path)
        volume.kspace([0])
        with h5py.File(path, "r+") as file:
            file["kspace"][0] = 3.0
        assert (volume.kspace([0]) == 3).all()

    def test_big_endian_numbers(self, tmp_path: Path) -> None:
        images = _volume(2, NUM_SLICES, 32, 32)
        path = _write(tmp_path / "file.h5", reconstruction_rss=images.astype(">f4"))
        assert np.array_equal(read_fastmri(path).reconstruction(), images)

    def test_what_may_be_missing(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "small.h5", kspace=None, ismrmrd_header=None)
        with h5py.File(path, "a") as file:
            for name in ("patient_id", "max"):
                del file.attrs[name]
            file.attrs["norm"] = np.array([2.0])
        volume = read_fastmri(path)
        assert (volume.header, volume.patient_id) == ("", "")
        assert (volume.max, volume.norm) == (None, 2.0)
        assert volume.num_slices == NUM_SLICES
        with pytest.raises(FileFormatError, match="has no kspace, but reconstruction_esc"):
            volume.kspace()

    def test_attributes_as_bytes(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            file.attrs["acquisition"] = np.bytes_("CORPD_FBK")
        assert read_fastmri(path).acquisition == "CORPD_FBK"


class TestBadFiles:
    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nothing.h5: no such file"):
            read_fastmri(tmp_path / "nothing.h5")
        with pytest.raises(FileNotFoundError, match="not a file"):
            read_fastmri(tmp_path)

    def test_files_that_vanish(self, path: Path) -> None:
        volume = read_fastmri(path)
        path.unlink()
        with pytest.raises(FileNotFoundError, match="no such file"):
            volume.kspace()

    @settings(max_examples=30, deadline=None)
    @given(data=st.binary(max_size=200))
    def test_other_kinds(self, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        path = tmp_path_factory.mktemp("fastmri") / "file.h5"
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=f"{path}: not an HDF5 file"):
            read_fastmri(path)

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7, 0.999])
    def test_truncation(self, path: Path, share: float) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(FileFormatError, match=f"{path}: not an HDF5 file, or a damaged one"):
            read_fastmri(path)

    def test_nothing_of_fastmri(self, tmp_path: Path) -> None:
        path = tmp_path / "other.h5"
        with h5py.File(path, "w") as file:
            file["temperature"] = [1.0]
        with pytest.raises(FileFormatError, match="not a fastMRI file.*found temperature"):
            read_fastmri(path)
        with h5py.File(path, "w"):
            pass
        with pytest.raises(FileFormatError, match="found nothing"):
            read_fastmri(path)

    def test_no_acquisition(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file.attrs["acquisition"]
        with pytest.raises(FileFormatError, match="has no attribute acquisition"):
            read_fastmri(path)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"kspace": np.zeros((4, 4), "c8")}, "kspace should have 3 or 4 dimensions"),
            ({"kspace": np.zeros((22, 4, 4), "f4")}, "complex numbers, found float32 of shape"),
            ({"kspace": np.complex64(1)}, r"found complex64 of shape \(\)"),
            ({"reconstruction_rss": np.zeros((22, 4, 4), "c8")}, "real numbers, found complex64"),
            ({"reconstruction_esc": np.zeros((22, 4), "f4")}, "should have 3 dimensions"),
            ({"reconstruction_rss": np.zeros((21, 4, 4), "f4")}, "differ in their number of slice"),
            ({"kspace": None, "kspace/coil": 1.0}, "kspace should .* found a group"),
            ({"ismrmrd_header": None, "ismrmrd_header/x": 1.0}, "ismrmrd_header should be a text"),
            ({"reconstruction_rss": np.zeros((22, 4, 4), "f16")}, "real numbers, found float128"),
            ({"reconstruction_rss": np.zeros((22, 0, 4), "f4")}, r"found float32 of shape \(22, 0"),
        ],
    )
    def test_wrong_layout(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        path = _write(tmp_path / "file.h5", **arrays)
        with pytest.raises(FileFormatError, match=message) as error:
            read_fastmri(path)
        assert str(path) in str(error.value)

    def test_wrong_numbers(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            file.attrs["max"] = "large"
        with pytest.raises(FileFormatError, match="max should be a number, found .large"):
            read_fastmri(path)

    def test_texts_of_every_kind(self, path: Path) -> None:
        for value in (np.array([b"CORPD_FBK"]), "CORPD_FBK", np.bytes_(b"CORPD_FBK")):
            with h5py.File(path, "a") as file:
                file.attrs["acquisition"] = value
            assert read_fastmri(path).acquisition == "CORPD_FBK"
        for value in (h5py.Empty("S5"), 3.0, np.array([b"a", b"b"])):
            with h5py.File(path, "a") as file:
                file.attrs["acquisition"] = value
            with pytest.raises(FileFormatError, match="acquisition should be a text, found"):
                read_fastmri(path)

    def test_trouble_with_the_disk_is_not_blamed_on_the_file(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(h5py, "File", refuse)
        with pytest.raises(PermissionError):
            read_fastmri(path)


def _expected(path: Path, slices: Any, size: int) -> Tensor:
    """The published preparation, by Pillow."""
    image_module = pytest.importorskip("PIL.Image")
    images = []
    with h5py.File(path) as file:
        for index in slices:
            image = image_module.fromarray(file["reconstruction_rss"][index])
            resized = np.asarray(image.resize((size, size), image_module.Resampling.LANCZOS))
            images.append((resized - resized.min()) / resized.max())
    return torch.from_numpy(np.stack(images))


class TestFastmriImages:
    @pytest.mark.parametrize("size", [8, 13, 32, 50])
    def test_prepared_as_published(self, folder: Path, size: int) -> None:
        images = fastmri_images(folder, size=size)
        assert images.shape == (24, size, size) and images.dtype == torch.float32
        names = ["file1000001.h5", "file1000002.h5", "file1000004.h5"]
        expected = torch.cat([_expected(folder / name, range(12, 20), size) for name in names])
        assert torch.allclose(images, expected, atol=2e-6)

    def test_divided_by_the_largest_value_not_by_the_range(self, path: Path) -> None:
        images = fastmri_images(path, size=32)
        raw = read_fastmri(path).reconstruction(range(12, 20))
        low, high = raw.amin((1, 2)), raw.amax((1, 2))
        assert (images.amin((1, 2)) == 0).all()
        assert torch.allclose(images.amax((1, 2)), 1 - low / high)
        assert images.max() < 0.95

    def test_the_default_size(self, path: Path) -> None:
        assert fastmri_images(path).shape == (8, 128, 128)

    def test_nothing_is_aliased(self, tmp_path: Path) -> None:
        """The finest stripes turn to an even grey; picking pixels would keep them."""
        stripes = np.broadcast_to(np.arange(96) % 2 + 1.0, (2, 96, 96)).astype(np.float32)
        arrays = {"kspace": None, "reconstruction_esc": None, "reconstruction_rss": stripes}
        path = _write(tmp_path / "file.h5", **arrays)
        images = fastmri_images(path, slices=[0], size=20)
        assert images[:, 4:-4, 4:-4].std() < 0.01

    def test_acquisitions(self, folder: Path) -> None:
        suppressed = fastmri_images(folder, acquisition="CORPDFS_FBK", size=16)
        assert torch.equal(suppressed, _alone(folder / "file1000003.h5", 16))
        every = fastmri_images(folder, acquisition=None, size=16)
        assert torch.equal(every[16:24], suppressed) and len(every) == 32

    def test_files_in_their_order(self, folder: Path) -> None:
        files = [folder / "file1000004.h5", str(folder / "file1000001.h5")]
        images = fastmri_images(iter(files), slices=[7, 3], size=16, dtype=torch.float64)
        assert images.dtype == torch.float64 and images.shape == (4, 16, 16)
        swapped = fastmri_images(files[::-1], slices=[3, 7], size=16, dtype=torch.float64)
        assert torch.equal(images, swapped.flip(0))

    def test_methods(self, path: Path) -> None:
        images = fastmri_images(path, size=32, method="esc", slices=[0])
        raw = read_fastmri(path).reconstruction([0], method="esc")
        assert torch.allclose(images, (raw - raw.min()) / raw.max(), atol=1e-6)

    def test_none_and_all_slices(self, folder: Path) -> None:
        assert fastmri_images(folder, slices=[], size=16).shape == (0, 16, 16)
        _write(folder / "file1000005.h5", reconstruction_rss=_volume(0, 3, 9, 9), **_ONLY_RSS)
        images = fastmri_images(folder, slices=None, size=16)
        assert images.shape == (3 * NUM_SLICES + 3, 16, 16)

    def test_the_middle_square_of_oblong_slices(self, tmp_path: Path) -> None:
        wide = _volume(0, 20, 12, 17)
        for name, values in [("wide.h5", wide), ("square.h5", wide[:, :, 2:14])]:
            _write(tmp_path / name, reconstruction_rss=values, **_ONLY_RSS)
        square = fastmri_images(tmp_path / "square.h5", size=10)
        assert torch.equal(fastmri_images(tmp_path / "wide.h5", size=10), square)

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="holds no .h5 file; expected a folder of fast"):
            fastmri_images(tmp_path)
        with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
            fastmri_images(tmp_path / "nowhere")
        with pytest.raises(OptionError, match="files: expected a folder or at least one file"):
            fastmri_images([])

    def test_no_such_acquisition(self, folder: Path) -> None:
        message = r"no file has 'CORPD'; found 'CORPDFS_FBK' \(1\), 'CORPD_FBK' \(3\)"
        with pytest.raises(DataError, match=message):
            fastmri_images(folder, acquisition="CORPD")

    def test_short_volumes_are_named_before_any_is_read(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _write(folder / "file1000005.h5", reconstruction_rss=_volume(0, 15, 9, 9), **_ONLY_RSS)
        monkeypatch.setattr(FastMRIVolume, "_read", None)
        message = "slices: 15 is not among the 15 slices of .*file1000005.h5"
        with pytest.raises(OptionError, match=message):
            fastmri_images(folder)

    def test_test_files_are_refused(self, tmp_path: Path) -> None:
        _write_test_file(tmp_path / "file.h5")
        with pytest.raises(FileFormatError, match="has no reconstruction_rss.*test sets"):
            fastmri_images(tmp_path)

    def test_damaged_files_are_named(self, folder: Path) -> None:
        (folder / "file1000009.h5").write_bytes(b"\x89HDF")
        with pytest.raises(FileFormatError, match="file1000009.h5: not an HDF5 file"):
            fastmri_images(folder)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite(self, tmp_path: Path, value: float) -> None:
        images = _volume(0, 20, 9, 9)
        images[13, 2, 2] = value
        path = _write(tmp_path / "file.h5", reconstruction_rss=images, **_ONLY_RSS)
        with pytest.raises(DataError, match=f"{path}, slices .*13.*: a pixel is NaN or infinite"):
            fastmri_images(path)
        assert len(fastmri_images(path, slices=[12, 14])) == 2

    def test_dark_slices(self, tmp_path: Path) -> None:
        images = _volume(0, 20, 9, 9)
        images[19] = 0
        path = _write(tmp_path / "file.h5", reconstruction_rss=images, **_ONLY_RSS)
        with pytest.raises(DataError, match="file.h5, slices .*: an image has nothing above zero"):
            fastmri_images(path)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": 0}, "size: got 0; expected an integer of at least 1"),
            ({"method": "sos"}, "method: unknown value 'sos'; expected one of 'rss', 'esc'"),
            ({"slices": 3}, "slices: expected a range or list"),
        ],
    )
    def test_wrong_options(self, path: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(OptionError, match=message):
            fastmri_images(path, **options)

    def test_wrong_dtypes(self, path: Path) -> None:
        with pytest.raises(DtypeError, match="dtype: expected a real floating-point"):
            fastmri_images(path, dtype=torch.complex64)


_ONLY_RSS = {"kspace": None, "reconstruction_esc": None}


def _alone(path: Path, size: int) -> Tensor:
    return fastmri_images(path, acquisition=None, size=size)


class TestCentreCrop:
    @pytest.mark.parametrize(
        ("old", "new", "first"), [(5, 3, 1), (6, 3, 1), (5, 2, 1), (6, 2, 2), (7, 7, 0)]
    )
    def test_position(self, old: int, new: int, first: int) -> None:
        line = torch.arange(old)
        assert torch.equal(centre_crop(line.expand(2, old), (1, new))[0], line[first : first + new])
        upright = line[:, None].expand(old, 2)
        assert torch.equal(centre_crop(upright, (new, 1))[:, 0], line[first : first + new])

    @pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
    def test_batches_and_dtypes(self, batch: tuple[int, ...]) -> None:
        images = torch.zeros(*batch, 6, 5, dtype=torch.complex64)
        assert centre_crop(images, 4).shape == (*batch, 4, 4)
        assert centre_crop(images, (2, 5)).shape == (*batch, 2, 5)
        assert centre_crop(images, 4).dtype == torch.complex64

    @pytest.mark.parametrize("shape", [0, -1, 2.0, True, (2,), (2, 2, 2), (2, 0), "ab"])
    def test_wrong_sizes(self, shape: Any) -> None:
        with pytest.raises(OptionError, match="shape: "):
            centre_crop(torch.zeros(4, 4), shape)

    @pytest.mark.parametrize("images", [torch.zeros(4, 3), torch.zeros(3, 4), torch.zeros(4)])
    def test_small_images(self, images: Tensor) -> None:
        with pytest.raises(ShapeError, match=r"of at least \(4, 4\), got"):
            centre_crop(images, 4)

    def test_other_types(self) -> None:
        with pytest.raises(DtypeError, match="images: expected a torch tensor, got ndarray"):
            centre_crop(np.zeros((4, 4)), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("old", "new"), [(320, 128), (32, 32), (10, 30), (5, 1)])
def test_lanczos_weights_keep_constants_and_copy_at_the_same_size(old: int, new: int) -> None:
    weights = module._lanczos(old, new)
    assert torch.allclose(weights.sum(1), torch.ones(new, dtype=torch.float64))
    assert torch.allclose(weights, weights.flip(0, 1))
    if old == new:
        assert torch.allclose(weights, torch.eye(old, dtype=torch.float64), atol=1e-15)
