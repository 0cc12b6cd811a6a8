"""Products and solves with a sparse Cholesky factor: time by image size and neighbourhood.

    OMP_NUM_THREADS=1 python benchmarks/structured_normal.py

A batch of 16 images, each with a factor of its own, in single precision. A solve costs one pass per
front of independent pixels; so does its derivative.
"""

from __future__ import annotations

import torch
from report import interleaved, table, write
from torch import Tensor

from bayesgen.distributions import StructuredNormal

SIZES, RADII, BATCH = (28, 64, 128), (1, 2, 3), 16


def parameters(size: int, radius: int) -> tuple[Tensor, Tensor]:
    """Log diagonals and moderate correlations of a batch."""
    rng = torch.Generator().manual_seed(0)
    shape, maps = (BATCH, size, size), 2 * radius * (radius + 1)
    diagonal = 0.1 * torch.randn(shape, generator=rng)
    weights = 0.3 / maps * torch.randn(BATCH, maps, size, size, generator=rng)
    return diagonal.requires_grad_(), weights.requires_grad_()


def measure(size: int, radius: int) -> tuple[dict[str, float], float]:
    """Seconds for a batch, and the largest error of a solve."""
    maps = parameters(size, radius)
    x = torch.randn(BATCH, size, size, generator=torch.Generator().manual_seed(1))

    def law() -> StructuredNormal:
        return StructuredNormal(torch.zeros_like(x), *maps, validate_args=False)

    normal = law()

    @torch.no_grad()
    def product() -> Tensor:
        return normal.whiten(x)

    @torch.no_grad()
    def solve() -> Tensor:
        return normal.colour(x)

    def density() -> None:
        torch.autograd.grad(law().log_prob(x).sum(), maps)

    def draw() -> None:
        torch.autograd.grad(law().colour(x).square().sum(), maps)

    functions = {"L'v": product, "L'w = b": solve, "log p + grad": density, "draw + grad": draw}
    with torch.no_grad():
        error = (normal.whiten(solve()) - x).abs().max().item()
    return interleaved(functions, repeats=7), error


def main() -> None:
    """Time every size and radius, and write the table."""
    rows, entries = [], []
    for size in SIZES:
        for radius in RADII:
            seconds, error = measure(size, radius)
            entry = {name: 1e3 * value / BATCH for name, value in seconds.items()}
            entries.append({"size": size, "radius": radius, "error": error, **entry})
            per_pixel = 1e9 * seconds["L'w = b"] / (BATCH * size**2)
            cells = [f"{value:.3f}" for value in entry.values()]
            rows.append([f"{size} x {size}", radius, *cells, f"{per_pixel:.0f}", f"{error:.0e}"])
    header = ["image", "r", "L'v", "L'w = b", "log p + grad", "draw + grad", "ns a pixel", "error"]
    text = "Milliseconds an image, of a batch of 16; ns a pixel: of a solve.\n\n"
    title = "Sparse Cholesky factors: products, solves, densities and draws"
    write("structured_normal", title, text + table(header, rows), {"results": entries})


if __name__ == "__main__":
    main()
