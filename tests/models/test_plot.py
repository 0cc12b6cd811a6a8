from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.models import AE, GAN, VAE, Generator, StructuredVAE
from bayesgen.models.plot import (
    correlation_with,
    plot_covariance,
    plot_images,
    save_training_picture,
)

float64 = torch.float64
HISTORY = [
    {"loss": 3.0, "kl": 0.5, "validation_loss": 3.5},
    {"loss": 2.0, "kl": 0.7, "validation_loss": 2.5, "nll": -1.0},
]


@pytest.fixture(autouse=True)
def global_figures() -> Iterator[None]:
    """The user's figure, settings and backend stay as they are, unless a test opens a figure."""
    matplotlib.use("Agg")
    figure, ax = plt.subplots()
    settings = dict(plt.rcParams)
    yield
    assert dict(plt.rcParams) == settings and plt.gcf() is figure and plt.gca() is ax
    assert not ax.images and not ax.lines
    plt.close("all")


def axes() -> Any:
    return Figure().subplots()


def shown(ax: Any) -> np.ndarray[Any, Any]:
    return np.asarray(ax.images[0].get_array())


# ---------------------------------------------------------------------------- tiles


def tiles_of(picture: Tensor, size: tuple[int, int], columns: int) -> list[Tensor]:
    """The tiles ``(channel, y, x)`` inside their frames, row by row; frames are white."""
    height, width = size[0] + 2, size[1] + 2
    rows = picture.shape[-2] // height
    assert picture.shape[-2:] == (rows * height, columns * width)
    found = []
    for i in range(rows):
        for j in range(columns):
            tile = picture[:, i * height : (i + 1) * height, j * width : (j + 1) * width]
            frame = tile.clone()
            frame[:, 1:-1, 1:-1] = 1.0
            assert (frame == 1.0).all()
            found.append(tile[:, 1:-1, 1:-1])
    return found


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize(("num", "columns"), [(6, 3), (7, 3), (1, 1), (2, 5), (5, None), (9, None)])
def test_images_are_laid_out_row_by_row(
    channels: tuple[int, ...], num: int, columns: int | None, rng: torch.Generator
) -> None:
    images = 0.9 * torch.rand(num, *channels, 4, 6, generator=rng)
    ax = axes()
    assert plot_images(images, columns=columns, ax=ax, title="T") is ax
    picture = torch.from_numpy(shown(ax)).float()
    picture = picture.movedim(-1, 0) if channels == (3,) else picture.unsqueeze(0)
    found = tiles_of(picture, (4, 6), columns or math.ceil(math.sqrt(num)))
    assert len(found) >= num
    for tile, image in zip(found, images, strict=False):
        torch.testing.assert_close(tile, image.reshape(-1, 4, 6))
    assert all((blank == 1.0).all() for blank in found[num:])
    assert ax.get_title() == "T" and not ax.axison
    assert ax.images[0].get_clim() == (0.0, 1.0) and ax.images[0].get_cmap().name == "gray"
    assert len(ax.figure.axes) == 1  # no colour bar


def test_images_beyond_the_range_are_cut_and_left_alone() -> None:
    images = torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1).expand(3, 4, 4).requires_grad_()
    ax = axes()
    plot_images(images, columns=3, ax=ax)
    assert shown(ax)[2, 2::6].tolist() == [0.0, 0.5, 1.0]
    assert images.min() == -1.0


def test_new_axes_are_made_where_none_are_given() -> None:
    before = plt.gcf()
    ax = plot_images(torch.zeros(2, 4, 4))
    assert ax.figure is not before
    plt.close(ax.figure)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (3, 2, 4, 4), (1, 1, 1, 4, 4), (2, 0, 4)])
def test_what_is_no_list_of_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"images: expected shape \(N, y, x\) or \(N, channel"):
        plot_images(torch.zeros(shape), ax=axes())


def test_columns_are_counted() -> None:
    with pytest.raises(OptionError, match="columns: got 0; expected an integer of at least 1"):
        plot_images(torch.zeros(2, 4, 4), columns=0, ax=axes())


# ---------------------------------------------------------------------------- covariances


@pytest.fixture
def structured() -> StructuredVAE:
    G = StructuredVAE((4, 5), 2, radius=1, width=6, channels=2).double()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in G.covariance_decoder.parameters():
            parameter.normal_(std=0.5, generator=rng)
    return G


@pytest.mark.parametrize("pixel", [(0, 0), (1, 3), (3, 4)])
def test_correlations_are_those_of_the_dense_inverse(
    pixel: tuple[int, int], structured: StructuredVAE
) -> None:
    z = torch.tensor([0.5, -1.0], dtype=float64)
    law = structured.residual_prior(z)
    units = torch.eye(20, dtype=float64).reshape(20, 4, 5)
    rows = torch.stack([law.whiten(unit) for unit in units]).flatten(1).detach()
    covariance = torch.linalg.inv(rows @ rows.T)
    std = covariance.diagonal().sqrt()
    p = 5 * pixel[0] + pixel[1]
    expected = (covariance[p] / (std * std[p])).reshape(4, 5)
    found = correlation_with(structured, z, pixel)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[pixel].item(), 1.0, rtol=1e-12, atol=0)
    assert found.abs().max() <= 1 + 1e-12 and not found.requires_grad
    # Neither the covariance nor the precision would do.
    assert (found - covariance[p].reshape(4, 5)).abs().max() > 0.01
    assert found.flatten().abs().sort().values[-2] > 0.1


def test_a_covariance_is_shown_in_two_colours(structured: StructuredVAE) -> None:
    ax, z = axes(), torch.zeros(2, dtype=float64)
    assert plot_covariance(structured, z, (1, 3), ax=ax) is ax
    expected = correlation_with(structured, z, (1, 3)).numpy()
    np.testing.assert_allclose(shown(ax), expected)
    assert ax.images[0].get_clim() == (-1.0, 1.0)
    assert ax.images[0].get_cmap().name == "PuOr_r"  # which the colour-blind can read
    marker: Any = ax.lines[0]
    assert len(ax.lines) == 1
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (3, 1)


@pytest.mark.parametrize("pixel", [(4, 0), (0, 5), (-1, 0), (0,), (1, 2, 3), (1.0, 2.0), (1, 2.5)])
def test_pixels_outside_are_refused(pixel: Any, structured: StructuredVAE) -> None:
    with pytest.raises(ShapeError, match=r"pixel: expected a row and a column of an image \(4, 5"):
        correlation_with(structured, torch.zeros(2, dtype=float64), pixel)


def test_generators_without_such_a_covariance_are_refused(structured: StructuredVAE) -> None:
    with pytest.raises(DtypeError, match="generator: expected a StructuredVAE, got VAE"):
        correlation_with(VAE((4, 5), 2), torch.zeros(2), (0, 0))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"generator: expected one of images \(y, x\), got .*2, 4"):
        correlation_with(StructuredVAE((2, 4, 5), 2), torch.zeros(2), (0, 0))
    with pytest.raises(ShapeError, match=r"z: expected shape \(2,\), got \(3, 2\)"):
        correlation_with(structured, torch.zeros(3, 2, dtype=float64), (0, 0))


# ---------------------------------------------------------------------------- training


def picture_of(
    path: Path, generator: Generator, images: Tensor, history: Any, monkeypatch: Any
) -> Figure:
    """The figure that was written."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    open_figures = plt.get_fignums()
    save_training_picture(path, generator, history, images)
    assert plt.get_fignums() == open_figures
    pixels = matplotlib.image.imread(path)
    assert pixels.ndim == 3 and pixels.std() > 0.01
    (figure,) = figures
    return figure


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (2, 4, 5)])
def test_a_picture_of_a_training_with_an_encoder(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: torch.Generator,
) -> None:
    """Whatever the channels, and the precision of the generator."""
    G = VAE(shape, 2, width=4, channels=2).to(dtype)
    images = torch.rand(6, *shape, generator=rng)
    figure = picture_of(tmp_path / "a.png", G, images, HISTORY, monkeypatch)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["losses; dashed: held-out images", "samples", "images, reconstructions"]
    assert shown(figure.axes[1]).shape[:2] == (8 * 6, 8 * 7)
    pairs = torch.from_numpy(shown(figure.axes[2])).float()
    assert pairs.shape[:2] == (2 * 6, 6 * 7)
    if shape == (4, 5):
        found = tiles_of(pairs.unsqueeze(0), (4, 5), 6)
        again = G(G.encode(images.to(dtype))).float()
        torch.testing.assert_close(torch.cat(found), torch.cat([images, again]))


@pytest.mark.parametrize("kind", [GAN, AE, StructuredVAE])
def test_a_picture_of_every_kind(
    kind: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    G = kind((4, 5), 2, width=4, channels=2)
    images = torch.rand(6, 4, 5, generator=rng)
    figure = picture_of(tmp_path / "a.png", G, images, HISTORY, monkeypatch)
    assert len(figure.axes) == (2 if kind is GAN else 3)


def test_losses_are_relative_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    G = GAN((4, 5), 2, width=4, channels=2)
    images = torch.rand(2, 4, 5, generator=rng)
    figure = picture_of(tmp_path / "a.png", G, images, HISTORY, monkeypatch)
    lines: Any = figure.axes[0].lines
    assert [line.get_label() for line in lines if not line.get_label().startswith("_")] == [
        "loss, at last 2",
        "kl, at last 0.7",
        "nll, at last -1",
    ]
    data = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in lines]
    assert data[0] == ([1, 2], [1.5, 1.0]) and data[1] == ([1, 2], [1.75, 1.25])
    assert lines[1].get_linestyle() == "--" and lines[1].get_color() == lines[0].get_color()
    # Of a stage that began later, with the sign that it has; and nothing where nothing is known.
    assert data[4] == ([2], [-1.0]) and all(map(math.isnan, data[3][1]))
    # Before the first epoch there are no losses, but there are images.
    picture_of(tmp_path / "b.png", G, images, [], monkeypatch)
