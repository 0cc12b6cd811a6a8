from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import Fourier, birdcage_sensitivities, cartesian_mask


def _random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _maps(*shape: int) -> Tensor:
    return torch.complex(*_random(2, *shape, seed=1))


def _kspace(image: Tensor) -> Tensor:
    """By the sum in the definition, frequency by frequency; NumPy and no fast transform."""
    sides = image.shape[-2:]
    waves = []
    for n in sides:
        place = np.arange(n) - n // 2
        waves.append(np.exp(-2j * np.pi * np.outer(place, place) / n) / np.sqrt(n))
    return torch.as_tensor(waves[0] @ image.numpy() @ waves[1].T)


def _pairs(values: Tensor) -> Tensor:
    return torch.stack([values.real, values.imag], -1)


def _dense(A: Fourier) -> Tensor:
    size = math.prod(A.domain_shape)
    unit_vectors = torch.eye(size, dtype=torch.float64).reshape(size, *A.domain_shape)
    return A(unit_vectors).flatten(1)


SHAPES = [(4, 6), (5, 7), (4, 5), (7, 2), (1, 3), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_definition(shape: tuple[int, int]) -> None:
    x, y = _random(*shape), _random(*shape, seed=1)
    torch.testing.assert_close(Fourier(shape)(x), _pairs(_kspace(x)))
    both = Fourier((2, *shape))(torch.stack([x, y]))
    torch.testing.assert_close(both, _pairs(_kspace(torch.complex(x, y))))


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (4, 5)])
def test_agrees_with_shifted_numpy_and_notices_other_conventions(shape: tuple[int, int]) -> None:
    x = _random(*shape)
    result = torch.view_as_complex(Fourier(shape)(x))

    def numpy(before: Any, after: Any, transform: Any = np.fft.fft2, norm: str = "ortho") -> Tensor:
        return torch.as_tensor(after(transform(before(x.numpy()), norm=norm)))

    shift, unshift = np.fft.fftshift, np.fft.ifftshift
    torch.testing.assert_close(result, numpy(unshift, shift))
    wrong = [numpy(np.copy, np.copy), numpy(np.copy, shift), numpy(unshift, np.copy)]
    wrong += [numpy(unshift, shift, np.fft.ifft2), numpy(unshift, shift, norm="backward")]
    if any(n % 2 for n in shape):
        wrong += [numpy(shift, shift), numpy(unshift, unshift)]
    assert all((result - mistake).abs().max() > 0.1 for mistake in wrong)


def test_samples_come_in_raster_order() -> None:
    mask, x = _random(5, 6) > 0.3, _random(3, 5, 6)
    A = Fourier((5, 6), mask)
    assert A.range_shape == (int(mask.sum()), 2)
    torch.testing.assert_close(A(x), _pairs(_kspace(x)[:, mask]))
    torch.testing.assert_close(Fourier((5, 6), mask.numpy())(x), A(x))


def test_lines_are_columns_of_kspace() -> None:
    mask, x = torch.tensor([True, False, False, True, False, True]), _random(3, 5, 6)
    A = Fourier((5, 6), mask)
    assert A.range_shape == (3, 5, 2)
    torch.testing.assert_close(A(x), _pairs(_kspace(x)[..., mask].transpose(-1, -2)))
    # The same samples as those of a mask of the whole grid, in the order of the lines.
    single = Fourier((5, 6), mask.expand(5, 6))
    torch.testing.assert_close(single(x).reshape(3, 5, 3, 2).transpose(1, 2), A(x))
    torch.testing.assert_close(A.adjoint(A(x)), single.adjoint(single(x)))


@pytest.mark.parametrize("real", [True, False])
def test_coils_see_the_image_through_their_sensitivities(real: bool) -> None:
    maps, x = _maps(3, 4, 5), _random(2, 4, 5)
    image = x[0] if real else x
    complex_image = x[0] * (1 + 0j) if real else torch.complex(*x)
    lines, samples = _random(5) > -0.2, _random(4, 5) > 0
    kspace = torch.stack([_kspace(one * complex_image) for one in maps])
    domain_shape = tuple(image.shape)
    for mask, expected in [
        (None, kspace),
        (samples, kspace[:, samples]),
        (lines, kspace[..., lines].transpose(-1, -2)),
    ]:
        A = Fourier(domain_shape, mask, sensitivities=maps)
        torch.testing.assert_close(A(image), _pairs(expected))
    wrong = torch.stack([_kspace(one.conj() * complex_image) for one in maps])
    assert (kspace - wrong).abs().max() > 0.1


def test_whole_kspace_of_complex_images_is_unitary() -> None:
    for shape in SHAPES:
        A, x = Fourier((2, *shape)), _random(3, 2, *shape)
        torch.testing.assert_close(A.adjoint(A(x)), x)
        torch.testing.assert_close(A(A.adjoint(A(x))), A(x))
        torch.testing.assert_close(A(x).square().sum(), x.square().sum())


def test_adjoint_is_the_zero_filled_reconstruction() -> None:
    mask, x = _random(8) > 0, _random(2, 6, 8)
    A = Fourier((2, 6, 8), mask)
    filled = np.fft.ifftshift(_kspace(torch.complex(*x)).numpy() * mask.numpy())
    image = np.fft.fftshift(np.fft.ifft2(filled, norm="ortho"))
    torch.testing.assert_close(torch.complex(*A.adjoint(A(x))), torch.as_tensor(image))


@pytest.mark.parametrize("coils", [None, 3])
@pytest.mark.parametrize("mask", [None, _random(4, 5) > 0, _random(5) > 0])
def test_grid_and_sample(coils: int | None, mask: Tensor | None) -> None:
    maps = None if coils is None else _maps(coils, 4, 5)
    A = Fourier((4, 5), mask, sensitivities=maps)
    kspace = torch.complex(*_random(2, 6, *(() if coils is None else (coils,)), 4, 5))
    y = A.sample(kspace)
    assert y.shape == (6, *A.range_shape)
    kept = torch.ones(4, 5) > 0 if mask is None else mask.expand(4, 5)
    torch.testing.assert_close(A.grid(y), kspace * kept)
    assert torch.equal(A.sample(A.grid(y)), y)
    assert torch.equal(A.sample(kspace.numpy()), y)
    assert torch.equal(A.sample(kspace.conj().resolve_conj().conj()), y)
    assert A.sample(kspace.to(torch.complex64)).dtype == torch.float32
    assert A.sample(kspace[:0]).shape == (0, *A.range_shape)
    # What lies between the samples does not matter, even if it is missing.
    assert torch.equal(A.sample(torch.where(kept, kspace, torch.nan)), y)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (4, 5), (1, 4)])
def test_norm_for_real_images(shape: tuple[int, int]) -> None:
    """It is sqrt(1/2) if no frequency is sampled together with its negative one, else 1."""
    norms = set()
    for seed in range(12):
        mask = _random(*shape, seed=seed) > 0.8
        mask.view(-1)[seed % mask.numel()] = True
        A = Fourier(shape, mask)
        assert A.norm() == pytest.approx(float(torch.linalg.matrix_norm(_dense(A), 2)), rel=1e-12)
        norms.add(round(A.norm(), 6))
    assert norms == {1.0, 0.707107}


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("mask", [None, torch.ones(5) > 0, _random(5) > 0, _random(4, 5) > 0.3])
def test_norm_with_coils(real: bool, mask: Tensor | None) -> None:
    A = Fourier((4, 5) if real else (2, 4, 5), mask, sensitivities=_maps(3, 4, 5))
    exact = float(torch.linalg.matrix_norm(_dense(A), 2))
    assert A.norm() == pytest.approx(exact, rel=1e-8)
    if mask is None or mask.ndim == 1:
        assert A.norm() == pytest.approx(exact, rel=1e-13)


def test_norm_of_an_accelerated_scan() -> None:
    """Too slow a case for iteration, which warns there."""
    maps = birdcage_sensitivities(4, (64, 64), dtype=torch.complex128)
    A = Fourier((64, 64), cartesian_mask(64), sensitivities=maps)
    x = _random(64, 64)
    for _ in range(50):
        x = A.adjoint(A(x))
        x = x / x.norm()
    assert 0.99 * A.norm() < float(A(x).norm()) <= A.norm() <= 1 + 1e-12
    assert Fourier((4, 4), torch.arange(4) == 1, sensitivities=0 * _maps(2, 4, 4)).norm() == 0.0


def test_conversion_keeps_imaginary_parts() -> None:
    maps, x = _maps(2, 4, 5), _random(4, 5)
    A = Fourier((4, 5), sensitivities=maps)
    expected = A(x)
    torch.testing.assert_close(A.float()(x.float()).double(), expected, rtol=1e-5, atol=1e-5)
    assert all(not buffer.is_complex() for buffer in A.buffers())


def test_caller_keeps_the_sensitivities() -> None:
    maps = _maps(2, 4, 5)
    A = Fourier((4, 5), sensitivities=maps)
    maps.zero_()
    assert A(_random(4, 5)).any()


def test_empty_batches_are_differentiable() -> None:
    A = Fourier((2, 4, 5), sensitivities=_maps(2, 4, 5))
    x = torch.zeros(0, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(A.adjoint(A(x)).sum(), x)[0].shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "maps", "error", "message"),
    [
        (((4,),), None, ShapeError, r"or \(2, y, x\) for complex images, got \(4,\)"),
        (((3, 4, 5),), None, ShapeError, r"or \(2, y, x\) for complex images, got \(3, 4, 5\)"),
        (((4, 5), torch.ones(5)), None, DtypeError, "expected booleans, got torch.float32"),
        (((4, 5), torch.ones(4) > 0), None, ShapeError, r"\(5,\), one entry for .* got \(4,\)"),
        (((4, 5), torch.ones(5, 4) > 0), None, ShapeError, r"the shape \(4, 5\) .* got \(5, 4\)"),
        (((4, 5), torch.ones(1, 4, 5) > 0), None, ShapeError, r"got \(1, 4, 5\)"),
        (((4, 5), torch.zeros(5) > 0), None, OptionError, r"none of the samples of shape \(5,\)"),
        (((4, 5),), torch.ones(2, 4, 5), DtypeError, "expected complex numbers, got torch.float32"),
        (((4, 5),), _maps(4, 5), ShapeError, r"expected shape \(coil, 4, 5\), got \(4, 5\)"),
        (((4, 5),), _maps(2, 5, 4), ShapeError, r"expected shape \(coil, 4, 5\), got \(2, 5, 4\)"),
        (((4, 5),), _maps(2, 4, 5)[:0], ShapeError, r"got \(0, 4, 5\)"),
        (((4, 5),), _maps(2, 4, 5) * math.nan, DataError, "sensitivities: an entry is NaN or inf"),
    ],
)
def test_bad_fourier(arguments: Any, maps: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Fourier(*arguments, sensitivities=maps)


def test_bad_data() -> None:
    A = Fourier((4, 5), torch.arange(5) == 2, sensitivities=_maps(3, 4, 5))
    with pytest.raises(DtypeError, match="x must be real, got torch.complex128"):
        A(_maps(4, 5))
    with pytest.raises(DtypeError, match="kspace must be complex, got torch.float64"):
        A.sample(_random(3, 4, 5))
    for wrong in (_maps(4, 5), _maps(2, 4, 5)):
        with pytest.raises(ShapeError, match=r"kspace must have shape \(\*batch, 3, 4, 5\), got"):
            A.sample(wrong)
    with pytest.raises(ShapeError, match=r"y must have shape \(\*batch, 3, 1, 4, 2\)"):
        A.grid(_random(3, 4, 2))
    with pytest.raises(DataError, match="holds NaN or infinity where it was sampled"):
        A.sample(_maps(3, 4, 5) / 0)
