"""Every forward operator on the same phantom: what it measures, and what its adjoint makes of it.

One row for each operator: the data (of complex data, the magnitude) and the adjoint applied to
them, which is what a gradient step of any reconstruction sees. Writes ``operators_gallery.png``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

import bayesgen as bg
from bayesgen import operators as ops
from bayesgen.plot import plot_image

SIZE = 64


def gallery() -> dict[str, ops.Operator]:
    """The operators, by the name of what they model."""
    shape, rng = (SIZE, SIZE), torch.Generator().manual_seed(0)
    lines = ops.cartesian_mask(SIZE, acceleration=3, seed=1)
    coils = ops.birdcage_sensitivities(4, shape)
    motion = torch.eye(9) / 9
    blur = ops.Blur(shape, ops.gaussian_kernel(9, std=2.0), "reflect")
    return {
        "denoising\nIdentity": ops.Identity(shape),
        "compressed sensing\nGaussianMatrix": ops.GaussianMatrix(shape, rows=1024),
        "inpainting\nMask": ops.Mask(torch.rand(shape, generator=rng) < 0.3),
        "deblurring\nBlur": blur,
        "blind deblurring\nConvolution": ops.from_function(
            lambda x: ops.Convolution(shape, (9, 9))(x, motion), shape
        ),
        "super-resolution\nDownsample": ops.Downsample(shape, 4),
        "tomography, parallel\nRadon": ops.Radon(shape, 60),
        "tomography, fan\nRadon(fan=...)": ops.Radon(shape, 90, fan=(1.5 * SIZE, SIZE)),
        "tomography, few angles\nRadon(...)[::6]": ops.Radon(shape, 60)[::6],
        "MRI, one coil\nFourier": ops.Fourier(shape, lines),
        "MRI, four coils\nFourier(sensitivities=...)": ops.Fourier(
            shape, lines, sensitivities=coils
        ),
        "differences\nGradient": ops.Gradient(shape),
        "phase retrieval\nPhaseRetrieval.fourier": ops.PhaseRetrieval.fourier(shape, power=1),
        "Beer's law\nNonlinear @ Radon": ops.Nonlinear(lambda y: torch.exp(-0.05 * y), (60, 93))
        @ ops.Radon(shape, 60),
        "blurred and masked\nStack": ops.Stack(
            [blur, ops.Mask(torch.rand(shape, generator=rng) < 0.1)]
        ),
    }


def as_picture(A: ops.Operator, y: Tensor) -> Tensor:
    """Data as something to look at: two-dimensional, in an arrangement that explains it."""
    while isinstance(A, ops.Composition | ops.Scaled):
        A = A.outer if isinstance(A, ops.Composition) else A.operator
    if isinstance(A, ops.Fourier):
        kspace = decibels(A.grid(y).abs())
        if kspace.ndim == 2:
            return kspace
        top, bottom = (torch.cat(list(half), -1) for half in kspace.chunk(2))
        return torch.cat([top, bottom])
    if isinstance(A, ops.Mask):
        return A.adjoint(y)
    if isinstance(A, ops.Gradient):
        return torch.cat(list(y), -1)
    if isinstance(A, ops.PhaseRetrieval):
        return decibels(y)
    if isinstance(A, ops.Stack):
        first = as_picture(A.operators[0], A.split(y)[0])
        return torch.cat([first, as_picture(A.operators[1], A.split(y)[1])], -1)
    if y.ndim == 1:
        side = math.isqrt(len(y))
        return y[: side**2].reshape(side, side)
    return y


def decibels(magnitude: Tensor) -> Tensor:
    """On a logarithmic scale, down to a thousandth of the largest."""
    return 20 * (magnitude / magnitude.max()).clamp(min=1e-3).log10()


def adjoint(A: ops.Operator, x: Tensor) -> Tensor:
    """Of the data; of an operator that is not linear, that of its derivative."""
    return A.derivative(x).adjoint(A(x))


def main() -> None:
    """Measure, check, draw."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()

    x = bg.datasets.ellipses(6, size=SIZE, seed=1)[5]
    operators = gallery()
    columns = 4
    rows = math.ceil((len(operators) + 1) / columns)
    figure, axes = plt.subplots(2 * rows, columns, figsize=(9, 4.8 * rows), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    plot_image(x, ax=axes[0, 0], title="the phantom", colorbar=False)
    for k, (name, A) in enumerate(operators.items(), start=1):
        report = ops.check_operator(A)
        line = name.replace("\n", ", ")
        print(f"{line:55} {A.domain_shape} -> {A.range_shape}  {'ok' if report.passed else report}")
        row, column = divmod(k, columns)
        data, back = axes[2 * row, column], axes[2 * row + 1, column]
        plot_image(as_picture(A, A(x)), ax=data, title=name, colorbar=False)
        data.set_aspect("auto")
        title = "its adjoint" if A.linear else "its derivative's adjoint"
        plot_image(adjoint(A, x), ax=back, title=title, colorbar=False)
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "operators_gallery.png"
    figure.savefig(picture, dpi=100)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
