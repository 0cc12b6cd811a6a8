"""The ray transform against projections known in closed form, and against ASTRA where it is."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators import Radon, Selection, SparseMatrix
from bayesgen.operators.rays import pixel_centres

# Not pytest.importorskip: importing ODL changes NumPy's print options.
needs_odl = pytest.mark.skipif(find_spec("odl") is None, reason="needs ODL")
FAN = (1.5, 0.75)  # source and detector, in sides of the image


def _radon(size: int, fan: bool = False, **options: Any) -> Radon:
    radii = (FAN[0] * size, FAN[1] * size) if fan else None
    return Radon((size, size), fan=radii, dtype=torch.float64, **options)


def _random(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=rng, dtype=torch.float64)


def _blob(A: Radon, centre: tuple[float, float], width: float) -> Tensor:
    offsets = pixel_centres(A.domain_shape, A.pixel) - torch.tensor(centre, dtype=torch.float64)
    return torch.exp(-offsets.square().sum(-1) / (2 * width**2))


def _lines(A: Radon) -> tuple[Tensor, Tensor]:
    """Foot of the perpendicular from the origin on each ray, and its unit direction."""
    points, directions = A.scan.rays(0, A.scan.num_rays)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    along = (points * directions).sum(-1, keepdim=True)
    return points - along * directions, directions


def _projected_blob(A: Radon, centre: tuple[float, float], width: float) -> Tensor:
    points, directions = _lines(A)
    offset = points - torch.tensor(centre, dtype=torch.float64)
    distance = offset[:, 0] * directions[:, 1] - offset[:, 1] * directions[:, 0]
    height = width * math.sqrt(2 * math.pi)
    return (height * torch.exp(-((distance / width) ** 2) / 2)).reshape(A.range_shape)


def _projected_ellipse(A: Radon, centre: tuple[float, float], axes: tuple[float, float]) -> Tensor:
    """Chord lengths, from the quadratic equation of where a line meets the ellipse."""
    scale = torch.tensor(axes, dtype=torch.float64)
    points, directions = _lines(A)
    offset = (points - torch.tensor(centre, dtype=torch.float64)) / scale
    slope = directions / scale
    a, b = slope.square().sum(-1), (offset * slope).sum(-1)
    discriminant = b**2 - a * (offset.square().sum(-1) - 1)
    return (2 * discriminant.clamp(min=0).sqrt() / a).reshape(A.range_shape)


def _ellipse(A: Radon, centre: tuple[float, float], axes: tuple[float, float]) -> Tensor:
    """Fraction of each pixel inside, from 32 x 32 points."""
    fine = 32
    sub = pixel_centres(tuple(fine * n for n in A.domain_shape), A.pixel / fine)
    scaled = (sub - torch.tensor(centre, dtype=torch.float64)) / torch.tensor(axes)
    inside = (scaled.square().sum(-1) < 1).double()
    return torch.nn.functional.avg_pool2d(inside[None], fine)[0]


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("fan", [False, True])
@pytest.mark.parametrize(("size", "limit"), [(56, 0.007), (128, 0.002)])
def test_blob(size: int, limit: float, fan: bool) -> None:
    A = _radon(size, fan)
    centre, width = (-size / 6, size / 10), size / 14
    exact = _projected_blob(A, centre, width)
    assert _error(A(_blob(A, centre, width)), exact) < limit
    # What the usual mistakes would give: half a pixel off, axes swapped, angles backwards.
    mutants = [
        A(_blob(A, (centre[0] + 0.5, centre[1]), width)),
        A(_blob(A, centre, width).T),
        A(_blob(A, centre, width)).flip(0),
        A(_blob(A, centre, width)).flip(1),
        1.01 * A(_blob(A, centre, width)),
    ]
    for mutant in mutants:
        assert _error(mutant, exact) > limit


@pytest.mark.parametrize("fan", [False, True])
@pytest.mark.parametrize(
    ("centre", "axes"), [((0.0, 0.0), (20.0, 20.0)), ((5.0, -3.0), (9.0, 17.0))]
)
def test_disc_and_ellipse(
    centre: tuple[float, float], axes: tuple[float, float], fan: bool
) -> None:
    """Their edges are sharper than pixels can tell: the error is that of the pixels."""
    A = _radon(56, fan)
    exact = _projected_ellipse(A, centre, axes)
    assert _error(A(_ellipse(A, centre, axes)), exact) < 0.025
    assert _error(A(_ellipse(A, (centre[0] + 0.5, centre[1]), axes)), exact) > 0.025


def test_error_falls_with_the_square_of_the_pixel() -> None:
    errors = []
    for size in (28, 56, 112):
        A = _radon(size, pixel=56 / size, angles=30)
        errors.append(_error(A(_blob(A, (-9.0, 5.0), 4.0)), _projected_blob(A, (-9.0, 5.0), 4.0)))
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_rectangles_of_any_shape_and_unit() -> None:
    for shape, pixel in [((40, 61), 1.0), ((61, 40), 0.2), ((33, 90), 3.0)]:
        A = Radon(shape, pixel=pixel, dtype=torch.float64)
        centre, width = (-4 * pixel, 6 * pixel), 4 * pixel
        assert _error(A(_blob(A, centre, width)), _projected_blob(A, centre, width)) < 0.005


@needs_odl
@pytest.mark.skipif(find_spec("astra") is None, reason="needs astra-toolbox")
def test_astra_through_odl_gives_the_same() -> None:
    from bayesgen.operators.odl_adapter import import_odl

    odl = import_odl()
    from odl.applications import tomo

    space = odl.uniform_discr([-28, -20], [28, 20], (56, 40), dtype="float32")
    theirs = tomo.RayTransform(space, tomo.parallel_beam_geometry(space), impl="astra_cpu")
    x = _random(56, 40).float()
    y = torch.as_tensor(theirs(space.element(x.numpy())).asarray())
    assert _error(Radon((56, 40))(x), y) < 1e-5


@pytest.mark.parametrize("fan", [None, (20.0, 5.0)])
def test_ray_by_ray_is_the_stored_matrix(fan: tuple[float, float] | None) -> None:
    shape, dtype = (13, 9), torch.float64
    stored = Radon(shape, 11, fan=fan, dtype=dtype, stored=True)
    followed = Radon(shape, 11, fan=fan, dtype=dtype, stored=False)
    assert isinstance(stored.product, SparseMatrix)
    x, y = _random(2, *shape), _random(2, *stored.range_shape)
    assert torch.allclose(followed(x), stored(x), rtol=0, atol=1e-12)
    assert torch.allclose(followed.adjoint(y), stored.adjoint(y), rtol=0, atol=1e-12)
    assert "not stored" in repr(followed)
    assert "MiB" in repr(stored)


@pytest.mark.parametrize("stored", [True, False])
def test_some_angles(stored: bool) -> None:
    A = Radon((12, 10), 9, stored=stored)
    x = _random(3, 12, 10).float()
    for index in ([7, 2], slice(1, 8, 3), 4, [False] * 8 + [True]):
        some = A[index]
        assert torch.allclose(some(x), A(x)[:, index], atol=1e-5)
    chosen = A[[7, 2]]
    assert isinstance(chosen, Radon)
    assert chosen.angles.tolist() == A.angles[[7, 2]].tolist()
    assert isinstance(chosen[[1]], Radon)
    assert not isinstance(A[:, 3:5], Radon | Selection)


@pytest.mark.parametrize("fan", [False, True])
def test_filtered_back_projection_inverts(fan: bool) -> None:
    A = _radon(56, fan)
    image = _blob(A, (-9.0, 5.0), 4.0)
    exact = _projected_blob(A, (-9.0, 5.0), 4.0)
    found = A.pseudo_inverse(exact.expand(2, *A.range_shape))
    assert found.shape == (2, 56, 56)
    assert _error(found[0], image) < 0.01
    assert torch.equal(found[0], found[1])
    # A half pixel off, or half as bright, is no inverse.
    assert _error(found[0], _blob(A, (-8.5, 5.0), 4.0)) > 0.05
    # Reordering the angles changes nothing.
    order = torch.randperm(len(A.angles), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = A[order]
    assert isinstance(shuffled, Radon)
    assert torch.allclose(shuffled.pseudo_inverse(exact[order]), found[0], atol=1e-10)


def test_windows_of_filtered_back_projection() -> None:
    A = _radon(56)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(A.range_shape, generator=rng, dtype=torch.float64)
    sizes = [float(A.pseudo_inverse(noise, w).norm()) for w in ("ramp", "cosine", "hann")]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]
    disc = _projected_ellipse(A, (0.0, 0.0), (20.0, 20.0))
    for window in ("ramp", "cosine", "hann"):
        middle = A.pseudo_inverse(disc, window)[20:36, 20:36]
        assert torch.allclose(middle, torch.ones(()).double(), atol=0.02)
    with pytest.raises(OptionError, match="window: unknown value 'han'.*did you mean 'hann'"):
        A.pseudo_inverse(disc, "han")


def test_filtered_back_projection_is_linear_and_differentiable() -> None:
    A = Radon((9, 8), 6, dtype=torch.float64)
    y = _random(2, *A.range_shape).requires_grad_()
    (gradient,) = torch.autograd.grad(A.pseudo_inverse(y).square().sum() / 2, y)
    y = y.detach()
    assert float((gradient * y).sum()) == pytest.approx(float(A.pseudo_inverse(y).norm() ** 2))
    assert A.pseudo_inverse(y[:0]).shape == (0, 9, 8)
    with pytest.raises(ShapeError, match="y must have shape"):
        A.pseudo_inverse(y[0, 0])


def test_fans_that_do_not_go_round_have_no_back_projection() -> None:
    A = Radon((8, 8), np.linspace(0, math.pi, 20), fan=(20.0, 5.0))
    with pytest.raises(OptionError, match="needs angles all the way round, .* is 180 degrees"):
        A.pseudo_inverse(torch.zeros(A.range_shape))


def test_small_detectors_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"too small to see the whole image: \d+\.\d\d% of the"):
        A = Radon((28, 28), 10, detectors=14, spacing=1.0)
    assert A.range_shape == (10, 14)
    # At 0 and 90 degrees, a detector as wide as half the image misses half of it.
    with pytest.warns(UserWarning, match="50.00% of the views"):
        Radon((28, 28), [0.0, math.pi / 2], detectors=14, spacing=1.0)
    with pytest.warns(UserWarning, match="of the views of a pixel fall beside it"):
        Radon((28, 28), 10, detectors=20, spacing=1.0, fan=(30.0, 10.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Radon((28, 28), 10, detectors=40)
        Radon((28, 28), 10, spacing=1.0, fan=(30.0, 10.0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_shape": (28,)}, ShapeError, r"image_shape: expected \(y, x\), got \(28,\)"),
        ({"image_shape": 28}, OptionError, "image_shape: expected a tuple of positive integers"),
        ({"image_shape": (1, 28, 28)}, ShapeError, r"image_shape: expected \(y, x\)"),
        ({"image_shape": (28, 0)}, OptionError, "image_shape: expected a tuple of positive"),
        ({"image_shape": (28, 2.5)}, OptionError, "image_shape: expected a tuple of positive"),
        ({"angles": 0}, OptionError, "angles: expected a positive integer, got 0"),
        ({"angles": 30.0}, OptionError, "angles: expected a positive integer, got 30.0"),
        ({"angles": True}, OptionError, "angles: expected a positive integer, got True"),
        ({"angles": ["a"]}, DtypeError, "angles: expected real numbers, got .'a'."),
        (
            {"angles": torch.ones(2, requires_grad=True)},
            DtypeError,
            "angles: .* this is a variable",
        ),
        ({"angles": []}, OptionError, r"angles: expected a number or a list .* \(0,\)"),
        ({"angles": [[0.1]]}, OptionError, r"angles: expected a number or a list .* \(1, 1\)"),
        ({"angles": [0.1, 0.3, 0.2]}, OptionError, "angle 2 is 0.2 after 0.3"),
        ({"angles": [0.1, 0.1]}, OptionError, "increasing ones, each once, but angle 1 is 0.1"),
        ({"angles": [0.1, math.nan]}, DataError, "angles: one of them is NaN or infinite"),
        ({"detectors": 0}, OptionError, "detectors: expected a positive integer, got 0"),
        ({"detectors": 3.0}, OptionError, "detectors: expected a positive integer, got 3.0"),
        ({"spacing": -1.0}, OptionError, "spacing: expected a positive number, got -1.0"),
        ({"pixel": math.inf}, OptionError, "pixel: expected a positive number, got inf"),
        ({"fan": 3.0}, OptionError, r"fan: expected \(source, detector\), .* got 3.0"),
        ({"fan": (30.0, -1.0)}, OptionError, r"fan: expected two distances, got \(30.0, -1.0\)"),
        ({"fan": (19.0, 5.0)}, OptionError, "the source, 19.0 .* not outside the circle of radius"),
        ({"dtype": torch.int64}, DtypeError, "dtype: expected torch.float32 or torch.float64"),
        ({"dtype": torch.float16}, DtypeError, "dtype: expected torch.float32 or torch.float64"),
    ],
)
def test_bad_input(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Radon(**{"image_shape": (28, 28), "stored": False, **options})


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    A = Radon((np.int64(28), 28), np.int64(10), np.int64(41), np.float32(1.0), stored=False)  # type: ignore[arg-type]
    B = Radon((28, 28), torch.tensor(10), torch.tensor(41), 1.0, stored=False)  # type: ignore[arg-type]
    assert A.range_shape == B.range_shape == (10, 41)


def test_degrees_are_suspected() -> None:
    with pytest.warns(UserWarning, match="179 radians, more than four turns; convert degrees"):
        Radon((8, 8), np.arange(180.0), stored=False)


@pytest.mark.parametrize("step", [2 * math.pi / 120, 0.02, 2 * math.pi / 121])
def test_back_projection_of_more_than_half_a_turn(step: float) -> None:
    """Angles that coincide with others from behind, or nearly do, share the weight."""
    A = Radon((56, 56), torch.arange(0, 2 * math.pi - 1e-9, step, dtype=torch.float64))
    B = Radon((56, 56), 120)
    x = _blob(B, (-9.0, 5.0), 4.0).float()
    assert _error(A.pseudo_inverse(A(x)), x) < 0.03
    assert _error(B.pseudo_inverse(B(x)), x) < 0.03


def test_back_projection_of_two_turns_of_a_fan() -> None:
    angles = torch.arange(0, 4 * math.pi - 1e-9, math.pi / 90, dtype=torch.float64)
    A = Radon((56, 56), angles, fan=(84.0, 42.0))
    x = _blob(A, (-9.0, 5.0), 4.0).float()
    assert _error(A.pseudo_inverse(A(x)), x) < 0.03


def test_states_of_other_scans_are_refused() -> None:
    A, B = Radon((6, 6), [0.3], dtype=torch.float64), Radon((6, 6), [math.pi - 0.3])
    with pytest.raises(DataError, match="the state is that of a scan from other angles"):
        A.load_state_dict(B.state_dict())


def test_data_that_are_not_finite_are_not_back_projected() -> None:
    A = Radon((6, 6), 3)
    with pytest.raises(DataError, match="y: an entry is NaN or infinite"):
        A.pseudo_inverse(torch.full(A.range_shape, torch.nan))


@pytest.mark.slow
def test_large_images_stay_within_memory() -> None:
    """256 x 256 pixels from 360 angles, forward and back in both precisions, within 4 GiB."""
    script = """
import resource, torch, bayesgen as bg
for dtype in (torch.float32, torch.float64):
    A = bg.operators.Radon((256, 256), 360, dtype=dtype)
    assert isinstance(A.product, bg.operators.SparseMatrix)
    A.adjoint(A(torch.ones(4, 256, 256, dtype=dtype)))
    del A
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 4 * 2**30
