"""How exact line integrals are: ours, ASTRA's through ODL, and the published matrices.

    python benchmarks/radon.py [--reference FOLDER]

Against projections known in closed form, relative to their norm. ``--reference`` is a folder with
the published experiments' ray transforms as SciPy sparse files (ray28.npz, ray56.npz).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy.sparse
import torch
from report import table, write
from torch import Tensor

from bayesgen.errors import BayesgenError
from bayesgen.operators import Radon
from bayesgen.operators.odl_adapter import import_odl
from bayesgen.operators.rays import pixel_centres


def lines(A: Radon) -> tuple[Tensor, Tensor]:
    """A point on each ray, and its unit direction."""
    points, directions = A.scan.rays(0, A.scan.num_rays)
    return points, directions / directions.norm(dim=-1, keepdim=True)


def blob(A: Radon, centre: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """A Gaussian at the pixels' centres, and its line integrals."""
    image = torch.exp(
        -(pixel_centres(A.domain_shape, 1.0) - centre).square().sum(-1) / 2 / width**2
    )
    points, directions = lines(A)
    offset = points - centre
    distance = offset[:, 0] * directions[:, 1] - offset[:, 1] * directions[:, 0]
    exact = width * math.sqrt(2 * math.pi) * torch.exp(-((distance / width) ** 2) / 2)
    return image, exact.reshape(A.range_shape)


def ellipse(A: Radon, centre: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """The fraction of each pixel inside an ellipse, and its chords."""
    fine = pixel_centres(tuple(32 * n for n in A.domain_shape), 1 / 32)
    inside = (((fine - centre) / axes).square().sum(-1) < 1).double()
    image = torch.nn.functional.avg_pool2d(inside[None], 32)[0]
    points, directions = lines(A)
    offset, slope = (points - centre) / axes, directions / axes
    a, b = slope.square().sum(-1), (offset * slope).sum(-1)
    discriminant = b**2 - a * (offset.square().sum(-1) - 1)
    return image, (2 * discriminant.clamp(min=0).sqrt() / a).reshape(A.range_shape)


def astra(A: Radon) -> Callable[[Tensor], Tensor] | None:
    """The same geometry in ODL, computed by ASTRA on the CPU."""
    try:
        odl = import_odl()
        import astra  # noqa: F401
        from odl.applications import tomo
    except (ImportError, BayesgenError):
        return None
    corner = torch.tensor(A.domain_shape).numpy() / 2
    space = odl.uniform_discr(-corner, corner, A.domain_shape, dtype="float32")
    angles = odl.nonuniform_partition(
        A.angles.numpy(), min_pt=0, max_pt=math.pi if A.scan.radii is None else 2 * math.pi
    )
    half = A.scan.detectors * A.scan.spacing / 2
    detector = odl.uniform_partition(-half, half, A.scan.detectors)
    if A.scan.radii is None:
        geometry = tomo.Parallel2dGeometry(angles, detector)
    else:
        geometry = tomo.FanBeamGeometry(angles, detector, *A.scan.radii)
    transform = tomo.RayTransform(space, geometry, impl="astra_cpu")
    return lambda x: torch.as_tensor(transform(space.element(x.float().numpy())).asarray()).double()


def error(found: Tensor, exact: Tensor) -> str:
    """In per cent of the norm."""
    return f"{100 * float((found - exact).norm() / exact.norm()):.3f} %"


def accuracy(size: int, fan: bool) -> list[list[Any]]:
    """Rows of the first table."""
    A = Radon((size, size), fan=(1.5 * size, 0.75 * size) if fan else None, dtype=torch.float64)
    theirs = astra(A)
    corner = torch.tensor([-size / 6, size / 10])
    cases = {
        "Gaussian blob": blob(A, corner, size / 14),
        "disc": ellipse(A, torch.zeros(2), torch.full((2,), size / 2.8)),
        "ellipse": ellipse(A, corner / 2, torch.tensor([size / 6, size / 3.3])),
    }
    beam = "fan" if fan else "parallel"
    return [
        [size, beam, name, error(A(x), y), error(theirs(x), y) if theirs else "-"]
        for name, (x, y) in cases.items()
    ]


def reference(path: Path, size: int) -> list[Any]:
    """Row of the second table: how the published matrix differs."""
    A = Radon((size, size), dtype=torch.float64)
    matrix = scipy.sparse.load_npz(path).astype("float64")
    ours = A.product.to_scipy()  # type: ignore[operator]
    difference = scipy.sparse.linalg.norm(matrix - ours) / scipy.sparse.linalg.norm(ours)
    centre, width = torch.tensor([-size / 6, size / 10]), size / 14
    image, exact = blob(A, centre, width)
    theirs = torch.from_numpy(matrix @ image.flatten().numpy()).reshape(A.range_shape)
    steps = torch.arange(-6, 7) / 4
    shifts = [
        (float((theirs - blob(A, centre + torch.stack([dy, dx]), width)[1]).norm()), dy, dx)
        for dy in steps
        for dx in steps
    ]
    least, dy, dx = min(shifts)
    norm = float(scipy.sparse.linalg.svds(matrix, k=1, return_singular_vectors=False)[0])
    return [
        size,
        f"{difference:.2f}",
        f"{norm:.2f} / {A.norm():.2f}",
        f"{error(theirs, exact)} / {error(A(image), exact)}",
        f"({float(dy):+.2f}, {float(dx):+.2f})",
        f"{100 * least / float(exact.norm()):.1f} %",
    ]


def main() -> None:
    """Compare, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="folder with ray28.npz and ray56.npz")
    options = parser.parse_args()
    rows = [row for size in (28, 56, 128) for fan in (False, True) for row in accuracy(size, fan)]
    text = table(["pixels", "rays", "object", "ours", "ASTRA"], rows)
    text += (
        "\n\nASTRA's parallel projector on the CPU has the same rule as ours, its fan-beam one "
        "another. The edges of disc and ellipse are sharper than pixels can show.\n"
    )
    published = []
    if options.reference:
        published = [reference(options.reference / f"ray{n}.npz", n) for n in (28, 56)]
        header = ["pixels", "relative difference", "norm, theirs / ours"]
        header += ["blob, theirs / ours", "best shift of theirs", "error after it"]
        text += "\n" + table(header, published)
        text += (
            "\n\nThe published matrices come from scikit-image, which turns images about the pixel "
            "n // 2 instead of the middle, and are interpolated once more onto ODL's detector. "
            "Their sinograms are those of a shifted, blurred image: entry by entry nearly another "
            "matrix, on smooth images mostly a shift."
        )
    write(
        "radon", "Line integrals against closed forms", text, {"rows": rows, "published": published}
    )


if __name__ == "__main__":
    main()
