"""The pictures of an evaluation: what numbers cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import decode, encoder_draws, prior_draws
from bayesgen.models.evaluation.latent import far_samples, interpolation
from bayesgen.models.evaluation.reconstruction import ReconstructionErrors
from bayesgen.models.plot import plot_covariance, plot_images
from bayesgen.models.structured_vae import StructuredVAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bayesgen.models.evaluation.outcome import Evaluation

_LATENT_POINTS = 2000


def save_pictures(evaluation: Evaluation, folder: Path, *, seed: int = 0) -> list[Path]:
    """Write the pictures of an evaluation as PNG files into a folder and return their paths."""
    generator, images = evaluation.generator, evaluation.images
    figures = {
        "samples": _samples(generator, images, seed),
        "reconstructions": _reconstructions(evaluation.reconstruction, images),
        "interpolation": _interpolation(generator, images),
        "latent": _latent(generator, images, evaluation.reconstruction, seed),
        "far": _far(generator, seed),
    }
    if isinstance(generator, StructuredVAE) and len(generator.image_shape) == 2:
        figures["covariance"] = _covariance(generator, images)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths


def _figure(width: float, height: float) -> Figure:
    """A figure of its own: pyplot's, and the user's backend, stay as they are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _samples(generator: Generator, images: Tensor, seed: int) -> Figure:
    figure = _figure(10, 5.2)
    left, right = figure.subplots(1, 2)
    plot_images(decode(generator, prior_draws(generator, 100, seed=seed)), ax=left, title="samples")
    plot_images(images[:100], columns=10, ax=right, title="images not trained on")
    return figure


def _reconstructions(errors: ReconstructionErrors, images: Tensor) -> Figure:
    """Images at the deciles of the error, with the nearest ones in the range and the rest."""
    psnr = errors.values["nearest"]["psnr"]
    order = psnr.argsort()
    chosen = order[torch.linspace(0, len(order) - 1, 11).long()]
    found = errors.nearest.images[chosen]
    difference = (images[chosen] - found).abs()
    figure = _figure(11, 3.6)
    ax = figure.subplots()
    lowest, highest = psnr[chosen[0]], psnr[chosen[-1]]
    title = f"images, nearest in the range, difference: from {lowest:.1f} to {highest:.1f} dB"
    plot_images(torch.cat([images[chosen], found, difference]), columns=11, ax=ax, title=title)
    return figure


def _interpolation(generator: Generator, images: Tensor) -> Figure:
    figure = _figure(5.2, 5.5)
    grid = interpolation(generator, images[:3])
    ax = figure.subplots()
    title = "between three images: top left, bottom left, top right"
    plot_images(grid.flatten(0, 1), columns=10, ax=ax, title=title)
    return figure


def _latent(
    generator: Generator, images: Tensor, errors: ReconstructionErrors, seed: int
) -> Figure:
    """Latent vectors of images and of the prior, in one random projection, and their norms."""
    known = images[:_LATENT_POINTS]
    encodes = generator.can("encode")
    z = encoder_draws(generator, known, seed=seed) if encodes else errors.nearest.z
    draws = prior_draws(generator, len(z), seed=seed).to(z)
    rng = torch.Generator().manual_seed(seed)
    projection = torch.randn(generator.latent_dim, 2, generator=rng, dtype=z.dtype).to(z.device)
    projection = projection / projection.norm(dim=0)
    # Vectors further out than this are counted, not shown: a few would hide all others.
    reach, longest = 1.5 * (draws @ projection).abs().max(), 1.5 * draws.norm(dim=1).max()
    bins = torch.linspace(0, float(longest), 41).tolist()
    figure = _figure(10, 4.6)
    plane, norms = figure.subplots(1, 2)
    for points, name, colour in ((draws, "prior", "C0"), (z, "images", "C1")):
        x, y = (points @ projection).T.cpu()
        outside = int((points.norm(dim=1) > longest).sum())
        label = f"{name}, {outside} further out" if outside else name
        plane.plot(x, y, ".", markersize=2, alpha=0.5, color=colour, label=name)
        norms.hist(points.norm(dim=1).cpu(), bins=bins, alpha=0.5, color=colour, label=label)
    limits = (-float(reach), float(reach))
    plane.set(title="latent vectors, one random projection", aspect="equal")
    plane.set(xlim=limits, ylim=limits)
    norms.set(title="their norms", xlabel="|z|", ylabel="count")
    _legends(plane, norms)
    return figure


def _legends(*axes: Axes) -> None:
    for ax in axes:
        legend: Any = ax.legend(markerscale=4)
        legend.set_in_layout(True)


def _far(generator: Generator, seed: int) -> Figure:
    figure = _figure(10, 1.6)
    title = "far from the prior: z fifty times too wide"
    far = far_samples(generator, seed=seed)
    plot_images(far.images, columns=10, ax=figure.subplots(), title=title)
    return figure


def _covariance(generator: StructuredVAE, images: Tensor) -> Figure:
    """Draws around the mean of one image, and correlations around four of its pixels."""
    z = generator.encode(images[:1])[0]
    law = generator.conditional(z)
    rng = torch.Generator(z.device).manual_seed(0)
    noise = torch.randn(3, *law.event_shape, generator=rng, dtype=z.dtype, device=z.device)
    shown = torch.cat([images[:1], law.mean[None], law.colour(noise)])
    figure = _figure(12, 5.6)
    rows: Any = figure.subfigures(2, 1)
    title = "image, mean, three draws from N(G(z), Sigma(z)); below: correlations of one pixel"
    plot_images(shown, columns=5, ax=rows[0].subplots(), title=title)
    # Where the residuals are largest, hence worth looking at.
    height, width = generator.image_shape
    for ax, (down, right) in zip(
        rows[1].subplots(1, 4), ((0.35, 0.5), (0.5, 0.35), (0.5, 0.6), (0.65, 0.5)), strict=True
    ):
        plot_covariance(generator, z, (int(down * height), int(right * width)), ax=ax)
    return figure
