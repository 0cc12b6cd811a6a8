"""Geometries of scans: the published ones, and ODL's."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from bayesgen.operators import Radon
from bayesgen.operators.rays import Scan, joseph_weights, pixel_centres, uncovered

# Not pytest.importorskip: importing ODL changes NumPy's print options.
needs_odl = pytest.mark.skipif(find_spec("odl") is None, reason="needs ODL")


@pytest.mark.parametrize(
    ("size", "angles", "detectors", "spacing"),
    [(28, 63, 41, 0.96580), (56, 125, 81, 0.97773), (128, 285, 183, 0.98918)],
)
def test_defaults_are_the_published_geometries(
    size: int, angles: int, detectors: int, spacing: float
) -> None:
    A = Radon((size, size), stored=False)
    assert A.range_shape == (angles, detectors)
    assert A.scan.spacing == pytest.approx(spacing, abs=5e-6)
    middles = (torch.arange(angles, dtype=torch.float64) + 0.5) * math.pi / angles
    assert torch.allclose(A.angles, middles)


def test_what_is_given_decides_the_rest() -> None:
    assert Radon((28, 28), 10, stored=False).range_shape == (10, 41)
    wide = Radon((28, 28), 10, detectors=20, stored=False)
    assert wide.scan.spacing == pytest.approx(math.hypot(28, 28) / 20)
    fine = Radon((28, 28), 10, spacing=0.5, stored=False)
    assert fine.range_shape == (10, 80)
    chosen = Radon((28, 28), [0.1, 0.2, 2.0], stored=False)
    assert chosen.angles.tolist() == [0.1, 0.2, 2.0]


@needs_odl
@pytest.mark.parametrize("fan", [None, (90.0, 45.0)])
@pytest.mark.parametrize("shape", [(56, 56), (40, 61)])
def test_geometry_is_that_of_odl(shape: tuple[int, int], fan: tuple[float, float] | None) -> None:
    from bayesgen.operators.odl_adapter import import_odl

    odl = import_odl()
    from odl.applications import tomo

    corner = np.array(shape) / 2
    space = odl.uniform_discr(-corner, corner, shape)
    if fan is None:
        geometry = tomo.parallel_beam_geometry(space)
    else:
        geometry = tomo.cone_beam_geometry(space, *fan)
    A = Radon(shape, fan=fan, stored=False)
    spacing = float(geometry.det_partition.cell_sides[0])
    if fan is None:
        assert A.scan.spacing == pytest.approx(spacing)
    else:  # theirs misses the corners of the image
        with pytest.warns(UserWarning, match="too small to see"):
            A = Radon(shape, None, geometry.detector.size, spacing, fan=fan, stored=False)
    assert A.range_shape == geometry.partition.shape
    assert np.allclose(A.angles, geometry.angles)
    # Where rays run: from a point of the detector, in ODL's direction.
    points, directions = A.scan.rays(0, A.scan.num_rays)
    for k in range(0, A.scan.num_rays, 997):
        angle = geometry.angles[k // A.scan.detectors]
        u = float(A.scan.positions[k % A.scan.detectors])
        place, towards = geometry.det_point_position(angle, u), geometry.det_to_src(angle, u)
        offset = place - points[k].numpy()
        direction = directions[k].numpy()
        assert abs(offset[0] * direction[1] - offset[1] * direction[0]) < 1e-9
        assert abs(towards[0] * direction[1] - towards[1] * direction[0]) < 1e-9


def test_weights_of_a_single_ray() -> None:
    """Along an axis through the pixels' centres, between two of them, and along the diagonal."""
    scan = Scan(torch.tensor([0.0], dtype=torch.float64), 2, 1.5)  # at -0.75 and 0.75
    weights = torch.zeros(2, 16, dtype=torch.float64)
    for rays, pixels, values in joseph_weights(scan, 0, 2, (4, 4), 1.0):
        weights[rays] = weights[rays].scatter_add(1, pixels.flatten(1).long(), values.flatten(1))
    rows = weights.reshape(2, 4, 4).sum(-1)
    assert torch.allclose(rows[0], torch.tensor([1.0, 3.0, 0.0, 0.0]).double())
    assert torch.allclose(rows[1], torch.tensor([0.0, 0.0, 3.0, 1.0]).double())
    with pytest.warns(UserWarning, match="too small to see"):
        diagonal = Radon((4, 4), [math.pi / 4], 1, 1.0, stored=False, dtype=torch.float64)
    found = diagonal.adjoint(torch.ones(1, 1, dtype=torch.float64))
    assert torch.allclose(found, math.sqrt(2) * torch.eye(4).flip(0).double(), atol=1e-12)


def test_shadows_are_where_rays_go() -> None:
    for radii in (None, (30.0, 12.0)):
        scan = Scan(torch.tensor([0.3, 1.9], dtype=torch.float64), 5, 2.0, radii)
        points, directions = scan.rays(0, scan.num_rays)
        for k in range(scan.num_rays):
            steps = torch.tensor([[0.1], [0.4], [0.9]], dtype=torch.float64)
            along = points[k] + steps * directions[k]
            shadow, magnification = scan.shadow(along, scan.angles[k // 5])
            assert torch.allclose(shadow, scan.positions[k % 5].expand(3))
            if radii is None:
                assert (magnification == 1).all()


def test_uncovered_fraction() -> None:
    angles = torch.tensor([0.0, math.pi / 2], dtype=torch.float64)
    assert uncovered(Scan(angles, 4, 1.0), (4, 4), 1.0) == 0.0
    assert uncovered(Scan(angles, 2, 1.0), (4, 4), 1.0) == 0.5
    assert uncovered(Scan(angles, 2, 1.0), (4, 2), 1.0) == 0.25


def test_pixels_lie_about_the_origin() -> None:
    centres = pixel_centres((2, 3), 0.5)
    assert centres[0, 0].tolist() == [-0.25, -0.5]
    assert centres[1, 2].tolist() == [0.25, 0.5]
