"""Pictures of generators: samples, reconstructions, interpolations, covariances, training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, ShapeError
from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import decode, encode, prior_draws
from bayesgen.models.structured_vae import StructuredVAE
from bayesgen.plot import ERROR, plot_image
from bayesgen.types import check_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_images(
    images: Tensor, *, columns: int | None = None, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Show many images side by side, on one grey scale from 0 to 1.

    Parameters
    ----------
    images
        ``(N, y, x)`` or ``(N, channel, y, x)`` with one or three channels.
    columns
        Images in a row; by default, as many as make a square.
    ax
        Axes to draw into; new ones by default.
    title
        Heading.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ShapeError
        If there are no images, or they are not images.
    OptionError
        If ``columns`` is not a positive integer.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> ax = plot_images(torch.zeros(5, 8, 8), title="digits", ax=Figure().subplots())
    >>> ax.get_title()
    'digits'
    """
    colours = images.shape[1] if images.ndim == 4 else 1
    if images.ndim not in (3, 4) or 0 in images.shape or colours not in (1, 3):
        raise ShapeError(
            "images: expected shape (N, y, x) or (N, channel, y, x) with N at least 1 and one or "
            f"three channels, got {tuple(images.shape)}"
        )
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    check_count("columns", columns)
    ax = plot_image(_tile(images, columns), ax=ax, title=title, limits=(0.0, 1.0), colorbar=False)
    ax.set_axis_off()
    return ax


def plot_covariance(
    generator: StructuredVAE, z: Tensor, pixel: tuple[int, int], *, ax: Axes | None = None
) -> Axes:
    r"""Show how the residual of one pixel is correlated with those of all others.

    Positive and negative correlations are told apart by colour; the pixel itself has 1.

    Parameters
    ----------
    generator
        A generator with correlated residuals, of images ``(y, x)``.
    z
        The latent vector, ``(latent_dim,)``.
    pixel
        Row and column.
    ax
        Axes to draw into; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    DtypeError, ShapeError
        As `correlation_with`.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> G = StructuredVAE((8, 8), latent_dim=2)
    >>> ax = plot_covariance(G, torch.zeros(2), (4, 4), ax=Figure().subplots())
    >>> ax.images[0].get_clim()
    (-1.0, 1.0)
    """
    correlation = correlation_with(generator, z, pixel)
    limits = (-1.0, 1.0)
    ax = plot_image(correlation, ax=ax, limits=limits, cmap=ERROR)
    ax.plot(pixel[1], pixel[0], "k+", markersize=6)
    return ax


@torch.no_grad()
def correlation_with(generator: StructuredVAE, z: Tensor, pixel: tuple[int, int]) -> Tensor:
    """Correlation ``(y, x)`` of one pixel's residual with all others, given ``z``.

    Exact; time grows with the square of the number of pixels.

    Parameters
    ----------
    generator
        A generator with correlated residuals, of images ``(y, x)``.
    z
        The latent vector, ``(latent_dim,)``.
    pixel
        Row and column.

    Raises
    ------
    DtypeError
        If the generator's residuals have no covariance of this kind.
    ShapeError
        If ``pixel`` is outside the image, images have channels, or ``z`` is not one vector.

    Examples
    --------
    >>> G = StructuredVAE((8, 8), latent_dim=2, covariance="diagonal")
    >>> correlation_with(G, torch.zeros(2), (0, 3))[0, 2:5].round()
    tensor([0., 1., 0.])
    """
    if not isinstance(generator, StructuredVAE):
        raise DtypeError(f"generator: expected a StructuredVAE, got {type(generator).__name__}")
    shape = generator.image_shape
    if len(shape) != 2:
        raise ShapeError(f"generator: expected one of images (y, x), got images {shape}")
    inside = len(pixel) == 2 and all(
        isinstance(at, int) and 0 <= at < size for at, size in zip(pixel, shape, strict=True)
    )
    if not inside:
        raise ShapeError(f"pixel: expected a row and a column of an image {shape}, got {pixel}")
    law = generator.residual_prior(z)
    if law.batch_shape:
        raise ShapeError(f"z: expected shape ({generator.latent_dim},), got {tuple(z.shape)}")
    unit = torch.zeros(shape, dtype=z.dtype, device=z.device)
    unit[pixel] = 1.0
    covariance = law.covariance_matmul(unit)
    std = law.variance.sqrt()
    return covariance / (std * std[pixel])


def save_training_picture(
    path: Path, generator: Generator, history: Sequence[dict[str, float]], images: Tensor
) -> None:
    """Write a picture of losses, samples and, where there is an encoder, reconstructions.

    Parameters
    ----------
    path
        PNG file to write.
    generator
        The generator as it is now.
    history
        Losses of every epoch so far, as `bayesgen.models.train` returns them.
    images
        A few images ``(N, *image_shape)`` to reconstruct; used only where there is an encoder.

    Examples
    --------
    >>> import tempfile
    >>> from bayesgen.models import GAN
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "training.png"
    ...     history = [{"generator": 0.7}, {"generator": 0.6}]
    ...     save_training_picture(path, GAN((8, 8), 2), history, torch.zeros(4, 8, 8))
    ...     path.stat().st_size > 0
    True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    encodes = generator.can("encode")
    panels = 3 if encodes else 2
    # A figure of its own: the user's, if there is one, and the backend stay as they are.
    figure = Figure(figsize=(5 * panels, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    _plot_losses(axes[0], history)
    samples = decode(generator, prior_draws(generator, 64, seed=0))
    plot_images(_visible(samples), ax=axes[1], title="samples")
    if encodes:
        known = images.to(samples)
        pairs = torch.cat([known, decode(generator, encode(generator, known))])
        title = "images, reconstructions"
        plot_images(_visible(pairs), columns=len(images), ax=axes[2], title=title)
    figure.savefig(path, dpi=110)


def _plot_losses(ax: Axes, history: Sequence[dict[str, float]]) -> None:
    """Draw every loss, training and validation, relative to its own scale of the last epochs."""
    names = dict.fromkeys(name for epoch in history for name in epoch if "validation" not in name)
    for name in names:
        epochs = [number for number, epoch in enumerate(history, 1) if name in epoch]
        values = torch.tensor([history[number - 1][name] for number in epochs])
        scale = values[-1].abs().clamp(min=1e-12)
        (line,) = ax.plot(epochs, values / scale, label=f"{name}, at last {values[-1]:.3g}")
        held_out = [history[n - 1].get(f"validation_{name}", math.nan) for n in epochs]
        ax.plot(epochs, torch.tensor(held_out) / scale, "--", color=line.get_color())
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss, relative to the last epoch's")
    ax.set_ylim(-1.0, 4.0)
    ax.set_title("losses; dashed: held-out images")
    if names:
        ax.legend(fontsize=8)


def _visible(images: Tensor) -> Tensor:
    """Images ``(N, *image_shape)``; of channels that are no colours, the mean."""
    colours = images.ndim == 4 and images.shape[1] in (1, 3)
    return images if images.ndim == 3 or colours else images.mean(1)


def _tile(images: Tensor, columns: int) -> Tensor:
    """One image ``(channel, y, x)`` of all, framed in white, and white where there is none."""
    images = images.detach().cpu().clamp(0, 1)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    rows = math.ceil(len(images) / columns)
    blank = images.new_ones(rows * columns - len(images), *images.shape[1:])
    framed = torch.nn.functional.pad(torch.cat([images, blank]), (1, 1, 1, 1), value=1.0)
    _, channels, height, width = framed.shape
    grid = framed.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)
