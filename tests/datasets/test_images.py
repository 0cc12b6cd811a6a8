from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from bayesgen.datasets import image_tensor, mnist, read_images, write_idx
from bayesgen.errors import DataError, DtypeError, FileFormatError, OptionError, ShapeError

IMAGES = (torch.arange(5 * 6 * 7) % 256).reshape(5, 6, 7).to(torch.uint8)
SCALED = IMAGES.float() / 255


def _write_pictures(folder: Path, images: Tensor = IMAGES, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images, first):
        PIL.Image.fromarray(image.numpy()).save(folder / f"{index:03d}.png")


def _write(path: Path) -> Path:
    """Write the images as the suffix says; without one, as a folder of pictures."""
    if path.suffix == ".npy":
        np.save(path, IMAGES.numpy())
    elif path.suffix in (".h5", ".hdf5", ".H5"):
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = IMAGES, np.arange(5)
    elif path.suffix:
        write_idx(path, IMAGES)
    else:
        _write_pictures(path)
    return path


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", IMAGES)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", IMAGES[:1])
    return tmp_path


class TestReadImages:
    @pytest.mark.parametrize(
        "name",
        ["a.npy", "a.h5", "a.hdf5", "a.H5", "a.idx", "a.idx3-ubyte", "a.gz", "a.data", "pictures"],
    )
    def test_every_kind_holds_the_same_images(self, tmp_path: Path, name: str) -> None:
        path = _write(tmp_path / name)
        images = read_images(path)
        assert images.dtype == torch.float32 and torch.equal(images, SCALED)
        assert torch.equal(read_images(str(path), limit=2), SCALED[:2])
        assert torch.equal(read_images(path, limit=100), SCALED)

    def test_the_folder_of_mnist_and_its_files(self, mnist_folder: Path) -> None:
        file = read_images(mnist_folder / "train-images-idx3-ubyte.gz")
        assert torch.equal(read_images(mnist_folder), file)
        assert torch.equal(mnist(mnist_folder), file)
        assert torch.equal(read_images(mnist_folder, limit=2), file[:2])
        assert torch.equal(read_images(mnist_folder, split="test"), file[:1])

    def test_one_picture(self, tmp_path: Path) -> None:
        _write_pictures(tmp_path)
        assert torch.equal(read_images(tmp_path / "003.png"), SCALED[3:4])
        path = (tmp_path / "003.png").rename(tmp_path / "3.PNG")
        assert torch.equal(read_images(path), SCALED[3:4])

    def test_pictures_in_colour(self, tmp_path: Path) -> None:
        colour = IMAGES[:3].permute(1, 2, 0).numpy()
        PIL.Image.fromarray(colour).save(tmp_path / "a.bmp")
        PIL.Image.fromarray(255 - colour).save(tmp_path / "b.png")
        images = read_images(tmp_path)
        torch.testing.assert_close(images, torch.stack([SCALED[:3], 1 - SCALED[:3]]))

    def test_pictures_of_both_depths(self, tmp_path: Path) -> None:
        image = IMAGES[0].numpy()
        PIL.Image.fromarray(image).save(tmp_path / "a.png")
        PIL.Image.fromarray(image.astype(np.uint16) * 257).save(tmp_path / "b.png")
        assert torch.equal(read_images(tmp_path), SCALED[[0, 0]])

    def test_a_data_set_by_its_key(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a.h5")
        with h5py.File(path, "a") as file:
            file["more/images"] = 255 - IMAGES
        with pytest.raises(OptionError, match="'images' .*'more/images' .*say which"):
            read_images(path)
        torch.testing.assert_close(read_images(path, key="more/images"), 1 - SCALED)

    def test_limit_decodes_no_more_pictures(self, tmp_path: Path) -> None:
        _write_pictures(tmp_path)
        (tmp_path / "003.png").write_bytes(b"damaged")
        assert torch.equal(read_images(tmp_path, limit=3), SCALED[:3])
        with pytest.raises(FileFormatError, match="003.png: cannot be read as a picture"):
            read_images(tmp_path, limit=4)

    def test_limit_reads_no_more_of_an_array(self, tmp_path: Path) -> None:
        """The file has twenty gigabytes, of which the disk holds what was written."""
        path = tmp_path / "a.npy"
        shape = (20_000, 1000, 1000)
        np.lib.format.open_memmap(path, "w+", np.uint8, shape)[1, 2, 3] = 255  # type: ignore[no-untyped-call]
        images = read_images(path, limit=2)
        path.unlink()
        assert images.shape == (2, 1000, 1000) and images.nonzero().tolist() == [[1, 2, 3]]


class TestSplits:
    @pytest.mark.parametrize("other", ["test", "val"])
    def test_folders_of_each_part(self, tmp_path: Path, other: str) -> None:
        _write_pictures(tmp_path / "train", IMAGES[:3])
        _write_pictures(tmp_path / other, IMAGES[3:])
        assert torch.equal(read_images(tmp_path), SCALED[:3])
        assert torch.equal(read_images(tmp_path, split="test"), SCALED[3:])

    def test_validation_is_not_tested_on_where_there_is_a_test(self, tmp_path: Path) -> None:
        for index, part in enumerate(("train", "val", "test")):
            _write_pictures(tmp_path / part, IMAGES[index : index + 1])
        assert torch.equal(read_images(tmp_path, split="train"), SCALED[:1])
        assert torch.equal(read_images(tmp_path, split="test"), SCALED[2:3])

    def test_classes_in_folders_are_read_together(self, tmp_path: Path) -> None:
        """Also one that is called train, if no other part is there."""
        _write_pictures(tmp_path / "bus", IMAGES[:2])
        _write_pictures(tmp_path / "train", IMAGES[2:])
        assert torch.equal(read_images(tmp_path), SCALED)

    @pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.idx", "pictures", "pictures/000.png"])
    def test_training_images_are_never_handed_out_for_testing(
        self, tmp_path: Path, name: str
    ) -> None:
        _write(tmp_path / name.split("/")[0])
        with pytest.raises(OptionError, match="split: .* is not divided into training and test"):
            read_images(tmp_path / name, split="test")

    def test_a_missing_part_of_mnist(self, mnist_folder: Path) -> None:
        (mnist_folder / "t10k-images-idx3-ubyte").unlink()
        with pytest.raises(FileNotFoundError, match="has no t10k-images-idx3-ubyte"):
            read_images(mnist_folder, split="test")

    def test_unknown_splits(self, mnist_folder: Path) -> None:
        with pytest.raises(OptionError, match="did you mean 'test'"):
            read_images(mnist_folder, split="tests")


class TestBadInput:
    @pytest.mark.parametrize("limit", [0, -1, 2.0, True])
    def test_limit(self, tmp_path: Path, limit: Any) -> None:
        with pytest.raises(OptionError, match="limit: got .* expected an integer of at least 1"):
            read_images(_write(tmp_path / "a.npy"), limit=limit)

    @pytest.mark.parametrize("name", ["a.npy", "pictures"])
    def test_a_key_of_what_has_none(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(OptionError, match="key: got 'x'; only the data sets of HDF5 files"):
            read_images(_write(tmp_path / name), key="x")

    def test_missing_paths(self, tmp_path: Path) -> None:
        message = r"gone.npy: no such file or folder; expected a folder with the MNIST .*\.npy"
        with pytest.raises(FileNotFoundError, match=message):
            read_images(tmp_path / "gone.npy")

    @pytest.mark.parametrize("target", ["circle", "gone"])
    def test_links_to_nowhere(self, tmp_path: Path, target: str) -> None:
        (tmp_path / "circle").symlink_to(tmp_path / target)
        with pytest.raises(FileNotFoundError, match="circle: no such .* a symbolic link that lead"):
            read_images(tmp_path / "circle")

    def test_folders_in_a_circle(self, tmp_path: Path) -> None:
        _write_pictures(tmp_path / "a")
        (tmp_path / "a" / "b").symlink_to(tmp_path)
        with pytest.raises(FileFormatError, match="a/b: a symbolic link that leads back to"):
            read_images(tmp_path)

    @pytest.mark.parametrize(("name", "kind"), [("a.csv", "files .csv"), ("a", "files of this ki")])
    def test_unknown_kinds_are_told_what_is_understood(
        self, tmp_path: Path, name: str, kind: str
    ) -> None:
        (tmp_path / name).write_text("1,2,3")
        message = rf"{kind}.* not understood; expected .*png, jpg, .*\.npy, \.h5, \.hdf5 or IDX"
        with pytest.raises(FileFormatError, match=message):
            read_images(tmp_path / name)

    def test_archives_of_arrays(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", images=IMAGES)
        with pytest.raises(FileFormatError, match="a.npz: .*write the images alone with numpy"):
            read_images(tmp_path / "a.npz")

    @pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.idx", "a.gz"])
    def test_truncated_files(self, tmp_path: Path, name: str) -> None:
        path = _write(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(FileFormatError, match=str(path)):
            read_images(path)

    @pytest.mark.parametrize("name", ["a.idx", "train-images-IDX3-ubyte"])
    def test_what_is_idx_by_name_alone(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("1,2,3")
        with pytest.raises(FileFormatError, match="not an IDX file; it should begin with 00 00"):
            read_images(tmp_path / name)

    def test_empty_folders(self, tmp_path: Path) -> None:
        message = "holds no images; found nothing, expected a folder with the MNIST files"
        with pytest.raises(FileNotFoundError, match=message):
            read_images(tmp_path)

    def test_folders_of_something_else_are_listed(self, tmp_path: Path) -> None:
        for index in range(9):
            (tmp_path / f"{index}.webp").touch()
        (tmp_path / "sub").mkdir()
        message = f"{tmp_path}: holds no images; found 0.webp, 1.webp, .* and 2 more, expected"
        with pytest.raises(FileNotFoundError, match=message):
            read_images(tmp_path)

    def test_unequal_pictures_are_named_with_their_sizes(self, tmp_path: Path) -> None:
        _write_pictures(tmp_path)
        _write_pictures(tmp_path, IMAGES[:, :, :5], first=5)
        message = r"005.png is grey, 6 x 5 \(y, x\), but .*000.png is grey, 6 x 7 \(y, x\)"
        with pytest.raises(ShapeError, match=message):
            read_images(tmp_path)

    def test_grey_among_colour_is_named(self, tmp_path: Path) -> None:
        _write_pictures(tmp_path)
        PIL.Image.fromarray(IMAGES[0].numpy()).convert("RGB").save(tmp_path / "003.png")
        with pytest.raises(ShapeError, match="003.png is colour, .* but .*000.png is grey"):
            read_images(tmp_path)

    def test_the_picture_with_nan_is_named(self, tmp_path: Path) -> None:
        for name, value in {"a": 0.5, "b": np.nan, "c": np.nan}.items():
            PIL.Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / f"{name}.tif")
        with pytest.raises(DataError, match="b.tif: holds NaN"):
            read_images(tmp_path)

    @pytest.mark.parametrize("name", ["a.npy", "a.h5"])
    def test_arrays_are_checked(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        cases: list[tuple[Any, type[Exception], str]] = [
            (np.zeros((0, 4, 4)), DataError, "holds no images"),
            (np.zeros((2, 4, 4), int), DtypeError, "int64"),
            (np.zeros((2, 8, 8, 3)), ShapeError, "channel"),
            (np.full((2, 4, 4), 2.0), DataError, "image 0: .* found 2.0 to 2.0"),
            (np.full((2, 4, 4), np.nan), DataError, "image 0: holds NaN"),
        ]
        for values, error, message in cases:
            if name == "a.npy":
                np.save(path, values)
            else:
                with h5py.File(path, "w") as file:
                    file["x"] = values
            with pytest.raises(error, match=f"{path}.*{message}"):
                read_images(path)
        np.save(tmp_path / "b.npy", np.zeros((4, 4)))
        with pytest.raises(ShapeError, match=r"b.npy: expected \(N, y, x\)"):
            read_images(tmp_path / "b.npy")

    def test_labels_in_place_of_images(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "train-labels-idx1-ubyte", torch.tensor([1, 2]))
        with pytest.raises(ShapeError, match=r"expected \(N, y, x\).* got \(2,\)"):
            read_images(tmp_path / "train-labels-idx1-ubyte")


class _Items(Dataset[Any]):
    """A data set of given items that counts how often it is asked."""

    def __init__(self, *items: Any) -> None:
        self.items, self.asked = items, list[int]()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.items[index]


class TestImageTensor:
    @pytest.mark.parametrize(
        "convert",
        [
            lambda image: image,
            lambda image: image.numpy(),
            lambda image: PIL.Image.fromarray(image.numpy()),
            lambda image: (image, 3),
            lambda image: [PIL.Image.fromarray(image.numpy()), "label", None],
            lambda image: (image.double() / 255).requires_grad_(),
            lambda image: image.to(torch.uint16) * 257,
        ],
    )
    def test_items_of_every_kind(self, convert: Any) -> None:
        images = image_tensor(_Items(*map(convert, IMAGES)))
        assert images.dtype == torch.float32 and not images.requires_grad
        assert torch.equal(images, SCALED)

    def test_colours_of_pictures_come_first(self) -> None:
        picture = PIL.Image.fromarray(IMAGES[:3].permute(1, 2, 0).numpy())
        assert torch.equal(image_tensor(_Items(picture)), SCALED[None, :3])

    def test_half_precision(self) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            assert image_tensor(_Items(torch.full((2, 2), 0.25, dtype=dtype))).max() == 0.25

    def test_data_sets_of_torch(self) -> None:
        whole = TensorDataset(SCALED[:, None], torch.arange(5))
        assert torch.equal(image_tensor(whole), SCALED[:, None])
        assert torch.equal(image_tensor(Subset(whole, [4, 1])), SCALED[[4, 1], None])

    def test_items_are_asked_for_once_and_no_more_than_needed(self) -> None:
        dataset = _Items(*IMAGES)
        assert torch.equal(image_tensor(dataset, limit=3), SCALED[:3])
        assert dataset.asked == [0, 1, 2]
        assert len(image_tensor(dataset, limit=9)) == 5

    def test_the_images_are_copies(self) -> None:
        values = SCALED.clone()
        image_tensor(TensorDataset(values)).zero_()
        assert torch.equal(values, SCALED)

    @pytest.mark.parametrize("item", [3, "text", None, {"image": IMAGES[0]}, (), (1, 2), [[0.5]]])
    def test_items_that_are_no_images(self, item: Any) -> None:
        with pytest.raises(DtypeError, match=r"dataset\[1\]: expected an image .* or a tuple"):
            image_tensor(_Items(IMAGES[0], item))

    @pytest.mark.parametrize(
        ("items", "error", "message"),
        [
            ([], DataError, "dataset: holds no images"),
            ([IMAGES[0], IMAGES[0].T], ShapeError, r"dataset\[1\] is .* 7 x 6 .*dataset\[0\] is"),
            ([IMAGES[0, 0]], ShapeError, r"dataset\[0\]: expected \(N, y, x\).*got \(1, 7\)"),
            ([IMAGES[0].int()], DtypeError, r"dataset\[0\]: cannot know .* int32"),
            ([SCALED[0], SCALED[0] - 1], DataError, r"dataset\[1\]: .*found -1.0 to"),
            ([SCALED[0], SCALED[0] / 0], DataError, r"dataset\[1\]: holds NaN"),
            ([torch.zeros(8, 8, 3)], ShapeError, "looks like"),
        ],
    )
    def test_images_are_checked(self, items: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            image_tensor(_Items(*items))

    def test_data_sets_without_length_or_items(self) -> None:
        class Stream(IterableDataset[Tensor]):
            def __iter__(self) -> Iterator[Tensor]:
                return iter(IMAGES)

        for dataset in (Stream(), iter(IMAGES), 3):
            with pytest.raises(DtypeError, match="dataset: expected a map-style data set, with"):
                image_tensor(dataset)  # type: ignore[arg-type]

    def test_limit(self) -> None:
        with pytest.raises(OptionError, match="limit: got 0"):
            image_tensor(_Items(*IMAGES), limit=0)


@pytest.mark.slow
def test_thousands_of_pictures_take_seconds(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2000, 28, 28), generator=rng, dtype=torch.uint8)
    _write_pictures(tmp_path, images)
    start = time.perf_counter()
    assert len(read_images(tmp_path)) == 2000
    assert time.perf_counter() - start < 10
