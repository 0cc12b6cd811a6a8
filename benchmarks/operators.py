"""Time 100 images through each operator and its adjoint, beside ODL's torch wrapper and deepinv.

    OMP_NUM_THREADS=1 python benchmarks/operators.py

Needs ``odl`` with ``astra-toolbox``, and ``deepinv``, for the comparison; what is not installed is
left out. Whatever is compared computes the same thing on the same images, in turn, in one process.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from report import interleaved, table, write
from torch import Tensor

from bayesgen import operators as ops
from bayesgen.errors import BayesgenError
from bayesgen.operators.odl_adapter import import_odl

IMAGES = 100


@dataclass
class Peer:
    """Another library's forward map and adjoint, with what they are given."""

    forward: Callable[[Tensor], Any]
    adjoint: Callable[[Any], Any]


def odl_ray_transform(size: int) -> Peer | None:
    """ODL's default geometry computed by ASTRA, in ODL's own wrapper for torch."""
    try:
        odl = import_odl()
        import astra  # noqa: F401
        from odl.applications import tomo
        from odl.contrib.torch import OperatorModule
    except (ImportError, BayesgenError):
        return None
    half = size / 2
    space = odl.uniform_discr([-half, -half], [half, half], (size, size), dtype="float32")
    transform = tomo.RayTransform(space, tomo.parallel_beam_geometry(space), impl="astra_cpu")
    return Peer(OperatorModule(transform), OperatorModule(transform.adjoint))


def import_deepinv() -> Any:
    """The module, or None. Its torchvision may be built for another torch: declare what it lacks.

    None of what is declared is called by the operators compared here.
    """
    library = torch.library.Library("torchvision", "DEF")
    for _ in range(40):
        try:
            import deepinv

            return deepinv
        except ImportError:
            return None
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in list(sys.modules):
                if name.split(".")[0] in ("torchvision", "deepinv"):
                    del sys.modules[name]
    return None


def physics(make: Callable[[Any], Any], deepinv: Any) -> Peer | None:
    """A physics of deepinv."""
    if deepinv is None:
        return None
    made = make(deepinv.physics)
    return Peer(made.A, made.A_adjoint)


def cases(size: int, deepinv: Any) -> Iterator[tuple[str, ops.Operator, dict[str, Peer | None]]]:
    """Name, our operator, and the same of others; images of ours are (y, x)."""
    shape = (size, size)
    rng = torch.Generator().manual_seed(0)
    radon = ops.Radon(shape)
    angles = radon.range_shape[0]
    yield (
        f"Radon, {angles} angles",
        radon,
        {
            "ODL": odl_ray_transform(size),
            "deepinv": physics(
                lambda p: p.Tomography(angles=angles, img_width=size, normalize=False), deepinv
            ),
        },
    )
    kernel = ops.gaussian_kernel(9, std=2.0)
    yield (
        "Blur, 9 x 9, periodic",
        ops.Blur(shape, kernel, "periodic"),
        {
            "deepinv": physics(
                lambda p: p.BlurFFT((1, *shape), filter=kernel[None, None]), deepinv
            ),
            "deepinv, direct": physics(
                lambda p: p.Blur(filter=kernel[None, None], padding="circular"), deepinv
            ),
        },
    )
    keep = torch.rand(shape, generator=rng) < 0.5
    yield (
        "Mask, half of the pixels",
        ops.Mask(keep),
        {"deepinv": physics(lambda p: p.Inpainting((1, *shape), mask=keep.float()[None]), deepinv)},
    )
    yield (
        "GaussianMatrix, 500 rows",
        ops.GaussianMatrix(shape, 500),
        {"deepinv": physics(lambda p: p.CompressedSensing(m=500, img_size=(1, *shape)), deepinv)},
    )
    lines = ops.cartesian_mask(size)
    grid = lines.expand(shape)
    yield (
        "Fourier, 4-fold, complex images",
        ops.Fourier((2, *shape), lines),
        {"deepinv": physics(lambda p: p.MRI(mask=grid.float(), img_size=shape), deepinv)},
    )
    maps = ops.birdcage_sensitivities(4, shape)
    yield (
        "Fourier, 4-fold, 4 coils, complex images",
        ops.Fourier((2, *shape), lines, sensitivities=maps),
        {
            "deepinv": physics(
                lambda p: p.MultiCoilMRI(
                    mask=grid.float()[None, None], coil_maps=maps[None], img_size=shape
                ),
                deepinv,
            )
        },
    )
    yield (
        "Downsample by 4, 9 x 9",
        ops.Downsample(shape, 4, kernel),
        {
            "deepinv": physics(
                lambda p: p.Downsampling(
                    (1, *shape), filter=kernel[None, None], factor=4, padding="reflect"
                ),
                deepinv,
            )
        },
    )
    yield "Gradient", ops.Gradient(shape), {}


def memory(A: ops.Operator) -> float:
    """MiB of what the operator keeps."""
    if isinstance(A, ops.Radon):
        return A.product.num_bytes / 2**20
    return sum(b.numel() * b.element_size() for b in A.buffers()) / 2**20


def measure(A: ops.Operator, peers: dict[str, Peer | None], repeats: int) -> dict[str, list[float]]:
    """Seconds, forward and adjoint, of ours and of each peer."""
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(IMAGES, *A.domain_shape, generator=rng)
    y = A(x)
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: A(x), "ours*": lambda: A.adjoint(y)}
    for name, peer in peers.items():
        if peer is not None:
            # deepinv wants a channel; the first two axes of complex images are that already.
            given = x.unsqueeze(1) if name.startswith("deepinv") and x.ndim == 3 else x
            data = peer.forward(given)
            runs[name] = lambda peer=peer, given=given: peer.forward(given)
            runs[f"{name}*"] = lambda peer=peer, data=data: peer.adjoint(data)
    with torch.no_grad():
        seconds = interleaved(runs, repeats)
    return {name: [seconds[name], seconds[f"{name}*"]] for name in runs if f"{name}*" in runs}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[56, 128])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    np.random.seed(0)  # noqa: NPY002  # deepinv draws from it
    deepinv = import_deepinv()
    rows, results = [], []
    for size in options.sizes:
        for name, A, peers in cases(size, deepinv):
            seconds = measure(A, peers, options.repeats)
            ours = seconds.pop("ours")
            others = [
                f"{peer} {theirs[0] / ours[0]:.1f} / {theirs[1] / ours[1]:.1f}"
                for peer, theirs in seconds.items()
            ]
            row = [
                f"{size} x {size}",
                name,
                f"{1e3 * ours[0]:.2f} / {1e3 * ours[1]:.2f}",
                f"{memory(A):.2f}",
                "; ".join(others) or "-",
            ]
            print(*row, sep=" | ", flush=True)
            rows.append(row)
            results.append(
                {"size": size, "operator": name, "ours": ours, "others": seconds, "MiB": memory(A)}
            )
    header = ["image", "operator", "ours, ms (A / A*)", "MiB", "times as long as ours (A / A*)"]
    text = (
        f"{IMAGES} images in one batch, single precision; the least of {options.repeats} rounds "
        "taken in turn. ODL's wrapper and ASTRA compute an image at a time. Radon's memory counts "
        "the matrix and its transpose.\n\n" + table(header, rows)
    )
    write("operators", "Operators beside ODL and deepinv", text, {"cases": results})


if __name__ == "__main__":
    main()
