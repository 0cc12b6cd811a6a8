from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.datasets import mnist_samples, multi_gradient_mnist
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError

# Beyond it a normal variable is once in 500 million, the false-alarm rate of each test below.
Z = 6.0
LINE = torch.linspace(0, 0.5, 32)
RAMPS = {
    "down": LINE[:, None].expand(32, 32),
    "up": LINE.flip(0)[:, None].expand(32, 32),
    "right": LINE.expand(32, 32),
    "left": LINE.flip(0).expand(32, 32),
}


def _directions(images: Tensor) -> list[str]:
    """Direction of each ramp, for images of nothing but ramps."""
    names = []
    for image in images.reshape(-1, 32, 32):
        (name,) = [name for name, ramp in RAMPS.items() if torch.allclose(image, ramp)]
        names.append(name)
    return names


def _bilinear(image: Tensor, size: int) -> Tensor:
    """Enlarge an image by the definition, pixel by pixel."""
    old = len(image)
    result = torch.zeros(size, size, dtype=image.dtype)
    for i in range(size):
        for j in range(size):
            y, x = (min(max((k + 0.5) * old / size - 0.5, 0), old - 1) for k in (i, j))
            top, left = min(int(y), old - 2), min(int(x), old - 2)
            p, q = y - top, x - left
            result[i, j] = (
                (1 - p) * ((1 - q) * image[top, left] + q * image[top, left + 1])
                + p * ((1 - q) * image[top + 1, left] + q * image[top + 1, left + 1])
            )  # fmt: skip
    return result


@pytest.mark.parametrize(
    ("directions", "names"),
    [(1, {"down"}), (2, {"down", "up"}), (4, {"down", "up", "right", "left"})],
)
def test_directions_are_equally_likely(directions: int, names: set[str]) -> None:
    found = _directions(multi_gradient_mnist(torch.zeros(2000, 28, 28), directions=directions))
    assert set(found) == names
    for name in names:
        chance = 1 / directions
        spread = (2000 * chance * (1 - chance)) ** 0.5
        assert abs(found.count(name) - 2000 * chance) <= Z * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_the_digit_and_a_ramp(dtype: torch.dtype) -> None:
    digits = mnist_samples().images[:3].to(dtype)
    images = multi_gradient_mnist(digits, seed=3)
    ramps = multi_gradient_mnist(torch.zeros_like(digits), seed=3)
    assert images.dtype == dtype and images.shape == (3, 32, 32)
    for digit, image, ramp in zip(digits, images, ramps, strict=True):
        assert torch.allclose(image, 0.5 * _bilinear(digit, 32) + ramp, atol=1e-6)
    assert images.min() >= 0 and images.max() <= 1
    assert ramps.amin((1, 2)).tolist() == [0] * 3 and ramps.amax((1, 2)).tolist() == [0.5] * 3


def test_the_default_has_four_directions() -> None:
    digits = mnist_samples().images
    assert torch.equal(multi_gradient_mnist(digits), multi_gradient_mnist(digits, directions=4))
    assert len(set(_directions(multi_gradient_mnist(torch.zeros(40, 28, 28))))) == 4


def test_reduction_averages() -> None:
    """Plain bilinear sampling would see only the dark two of every four columns."""
    stripes = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(64, 16)
    image = multi_gradient_mnist(stripes, directions=1, size=16)
    ramp = torch.linspace(0, 0.5, 16)[:, None]
    assert torch.allclose((image - ramp)[:, 2:-2], torch.tensor(0.25), atol=0.05)


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 0), (2, 3, 1)])
@pytest.mark.parametrize("size", [1, 20, 32])
def test_batches(batch: tuple[int, ...], size: int) -> None:
    images = multi_gradient_mnist(torch.full((*batch, 28, 24), 0.6), size=size)
    assert images.shape == (*batch, size, size)
    assert torch.allclose(images.amin((-2, -1)), torch.tensor(0.3))


def test_directions_go_by_the_place_of_an_image() -> None:
    digits = mnist_samples().images
    images = multi_gradient_mnist(digits, seed=4)
    assert torch.equal(multi_gradient_mnist(digits[:7], seed=4), images[:7])
    folded = multi_gradient_mnist(digits.reshape(4, 5, 28, 28), seed=4)
    assert torch.equal(folded.reshape(20, 32, 32), images)
    assert not torch.equal(multi_gradient_mnist(digits, seed=5), images)


def test_the_input_is_left_alone() -> None:
    digits = mnist_samples().images
    multi_gradient_mnist(digits)
    assert torch.equal(digits, mnist_samples().images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": 3}, "directions: got 3; expected 1, 2 or 4"),
        ({"directions": True}, "directions: got True"),
        ({"directions": "all"}, "directions: got 'all'"),
        ({"size": 0}, "size: got 0; expected an integer of at least 1"),
        ({"size": 32.0}, "size: got 32.0"),
        ({"seed": -1}, "seed: got -1; expected an integer from 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        multi_gradient_mnist(torch.zeros(28, 28), **options)


@pytest.mark.parametrize("images", [torch.zeros(28), torch.zeros(2, 0, 28)])
def test_wrong_shapes_are_refused(images: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"images: expected \(\*batch, y, x\), got"):
        multi_gradient_mnist(images)


@pytest.mark.parametrize("images", [torch.zeros(28, 28, dtype=torch.uint8), [[0.0]]])
def test_wrong_types_are_refused(images: Any) -> None:
    with pytest.raises(DtypeError, match=r"images: expected a real floating-point tensor, got"):
        multi_gradient_mnist(images)


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, torch.nan, torch.inf])
def test_wrong_intensities_are_refused(value: float) -> None:
    digits = torch.zeros(3, 28, 28)
    digits[1, 2, 3] = value
    with pytest.raises(DataError, match="images: expected intensities from 0 to 1"):
        multi_gradient_mnist(digits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_result_stays_on_the_gpu() -> None:
    digits = mnist_samples().images
    images = multi_gradient_mnist(digits.cuda())
    assert images.is_cuda and torch.allclose(images.cpu(), multi_gradient_mnist(digits), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    images = torch.linspace(0, 1, 2 * 28 * 28).reshape(2, 28, 28)
    found = multi_gradient_mnist(images.to(dtype))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), multi_gradient_mnist(images), atol=0.02)
