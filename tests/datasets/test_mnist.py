from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest
import torch

from bayesgen.datasets import mnist, mnist_labels, mnist_samples, write_idx
from bayesgen.errors import FileFormatError, OptionError

IMAGES = (torch.arange(3 * 28 * 28) % 256).reshape(3, 28, 28)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", IMAGES)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", IMAGES[:1])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", torch.tensor([7]))
    return tmp_path


def test_splits_and_scaling(folder: Path) -> None:
    train = mnist(folder)
    assert train.dtype == torch.float32 and train.shape == (3, 28, 28)
    assert train.min() == 0 and train.max() == 1
    assert torch.equal(mnist(folder, split="test"), train[:1])
    assert mnist_labels(folder, "test").tolist() == [7]


def test_missing_files_are_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no train-labels.*which come from"):
        mnist_labels(folder, "train")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder; expected.*t10k-images"):
        mnist(tmp_path / "nowhere")


def test_unknown_split_is_explained(folder: Path) -> None:
    with pytest.raises(OptionError, match="did you mean 'test'"):
        mnist(folder, split="tests")


def test_labels_in_place_of_images_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", torch.tensor([1, 2]))
    with pytest.raises(FileFormatError, match="expected images, found shape"):
        mnist(tmp_path)


def test_shipped_samples() -> None:
    images, labels = mnist_samples()
    assert images.shape == (20, 28, 28) and images.dtype == torch.float32
    assert images.amax((1, 2)).min() > 0.9 and images.amin((1, 2)).max() == 0
    assert labels.tolist() == [6, 0, 5, 4, 9, 9, 2, 1, 9, 4, 8, 7, 3, 9, 7, 4, 4, 4, 9, 2]


def test_shipped_samples_are_attributed() -> None:
    data = importlib.resources.files("bayesgen.datasets") / "data"
    text = (data / "ATTRIBUTION.txt").read_text()
    assert "LeCun" in text and "Attribution-ShareAlike" in text
