"""The pictures show what was found, and drawing them leaves the user's figures alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bayesgen.datasets import shapes
from bayesgen.models import GAN, VAE, Generator, StructuredVAE
from bayesgen.models.evaluation import far_samples, interpolation, reconstruction_errors
from bayesgen.models.evaluation.access import decode, encode, encoder_draws, prior_draws
from bayesgen.models.evaluation.outcome import Evaluation
from bayesgen.models.evaluation.pictures import save_pictures
from bayesgen.models.evaluation.verdict import Verdict
from bayesgen.models.plot import correlation_with

KINDS = {
    "vae": lambda: VAE((8, 8), 3, width=16, channels=4),
    "gan": lambda: GAN((8, 8), 3, width=16, channels=4),
    "structured": lambda: StructuredVAE((8, 8), 3, width=16, channels=4, radius=1),
}
ALWAYS = {"samples", "reconstructions", "interpolation", "latent", "far"}


@pytest.fixture(autouse=True)
def global_figures() -> Iterator[None]:
    """The user's figure, settings and backend stay as they are, and no figure is added."""
    matplotlib.use("Agg")
    figure, ax = plt.subplots()
    settings = dict(plt.rcParams)
    yield
    assert dict(plt.rcParams) == settings and plt.gcf() is figure and plt.gca() is ax
    assert plt.get_fignums() == [figure.number]
    assert not ax.images and not ax.lines
    plt.close("all")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return shapes(120, seed=0)[:, ::7, ::7].clone()


def evaluation(kind: str, images: Tensor) -> Evaluation:
    """Of the first thirty images, after training to the extent that images differ."""
    generator = KINDS[kind]()
    generator.prepare(images)
    generator = generator.eval().requires_grad_(False)
    errors = reconstruction_errors(generator, images[:30])
    return Evaluation((), {}, generator, images, errors, Verdict((), ""))


def drawn(
    found: Evaluation, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0
) -> dict[str, Figure]:
    """The figures that are written, by name."""
    figures: dict[str, Figure] = {}
    write = Figure.savefig

    def savefig(figure: Figure, path: Path, **options: Any) -> None:
        figures[path.stem] = figure
        write(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    paths = save_pictures(found, folder, seed=seed)
    assert paths == [folder / f"{name}.png" for name in figures]
    return figures


def axes(figure: Figure) -> list[Any]:
    return [ax for ax in figure.get_axes() if ax.get_label() != "<colorbar>"]


def tiles(ax: Any, columns: int) -> Tensor:
    """The images of 8 by 8 shown, row by row, without their frames of one pixel."""
    (picture,) = ax.images
    assert picture.get_clim() == (0.0, 1.0)
    array = torch.as_tensor(picture.get_array().data)
    rows, width = array.shape[0] // 10, array.shape[1]
    assert array.shape == (10 * rows, width) and width == 10 * columns
    cut = array.reshape(rows, 10, columns, 10).permute(0, 2, 1, 3).flatten(0, 1)
    return cut[:, 1:-1, 1:-1]


def same(shown: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(shown.float(), expected.clamp(0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_pictures(
    kind: str, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(evaluation(kind, images), tmp_path, monkeypatch)
    assert set(figures) == ALWAYS | ({"covariance"} if kind == "structured" else set())
    panels = {name: len(axes(figure)) for name, figure in figures.items()}
    expected = {"samples": 2, "reconstructions": 1, "interpolation": 1, "latent": 2, "far": 1}
    assert panels == expected | ({"covariance": 5} if kind == "structured" else {})
    for name in figures:
        picture = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert min(picture.shape[:2]) > 100 and picture.std() > 0


def test_images_shown_are_those_found(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluation("vae", images)
    G = found.generator
    figures = drawn(found, tmp_path, monkeypatch, seed=3)
    samples, real = figures["samples"].get_axes()
    same(tiles(samples, 10), decode(G, prior_draws(G, 100, seed=3)))
    same(tiles(real, 10), images[:100])
    same(tiles(figures["interpolation"].get_axes()[0], 10), corners(G, images))
    same(tiles(figures["far"].get_axes()[0], 10), far_samples(G, seed=3).images)


def corners(G: Generator, images: Tensor) -> Tensor:
    grid = interpolation(G, images[:3]).flatten(0, 1)
    same(grid[[0, 90, 9]], decode(G, encode(G, images[:3])))
    return grid


def test_reconstructions_go_from_the_worst_to_the_best(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluation("gan", images)
    (ax,) = drawn(found, tmp_path, monkeypatch)["reconstructions"].get_axes()
    original, nearest, rest = tiles(ax, 11).float().split(11)
    errors = (original - nearest).square().mean((1, 2))
    assert (errors.diff() <= 0).all()
    squares = found.reconstruction.nearest.residual.square() / 64
    torch.testing.assert_close(errors[[0, -1]], torch.stack([squares.max(), squares.min()]))
    torch.testing.assert_close(rest, (original - nearest).abs())
    known = {tuple(image.flatten().tolist()) for image in images[:30]}
    assert {tuple(image.flatten().tolist()) for image in original} <= known
    assert f"from {-10 * squares.max().log10():.1f} to" in ax.get_title()


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_latent_vectors_shown_are_those_of_images_and_of_the_prior(
    kind: str, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GAN has no encoder: the latent vectors nearest to its reconstructed images are shown."""
    found = evaluation(kind, images)
    G = found.generator
    plane, norms = drawn(found, tmp_path, monkeypatch)["latent"].get_axes()
    z = encoder_draws(G, images, seed=0) if kind == "vae" else found.reconstruction.nearest.z
    draws = prior_draws(G, len(z), seed=0)
    prior, known = (torch.as_tensor(line.get_xydata()).float() for line in plane.lines)
    assert [line.get_label() for line in plane.lines] == ["prior", "images"]
    # One linear map takes both to the plane, and its columns are of unit length.
    projection = torch.linalg.lstsq(draws, prior).solution
    torch.testing.assert_close(projection.norm(dim=0), torch.ones(2))
    torch.testing.assert_close(draws @ projection, prior, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z @ projection, known, rtol=1e-4, atol=1e-4)
    # Each norm is in a bin, or among those that the label counts.
    longest = 1.5 * draws.norm(dim=1).max()
    inside = [int((points.norm(dim=1) <= longest).sum()) for points in (draws, z)]
    counts = [sum(bar.get_height() for bar in bars) for bars in norms.containers]
    assert counts == inside and inside[0] == len(draws)


def test_vectors_far_out_are_counted(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluation("gan", images)
    found.reconstruction.nearest.z[:4] = 1e4
    plane, norms = drawn(found, tmp_path, monkeypatch)["latent"].get_axes()
    labels = [text.get_text() for text in norms.get_legend().get_texts()]
    assert labels == ["prior", "images, 4 further out"]
    assert plane.get_xlim()[1] < 1e3


def test_covariances_shown_are_those_of_the_first_image(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluation("structured", images)
    G = found.generator
    assert isinstance(G, StructuredVAE)
    above, *below = axes(drawn(found, tmp_path, monkeypatch)["covariance"])
    z = G.encode(images[0])
    shown = tiles(above, 5)
    same(shown[:2], torch.stack([images[0], G(z)]))
    assert not torch.equal(shown[2], shown[1]) and not torch.equal(shown[3], shown[4])
    for ax, pixel in zip(below, [(2, 4), (4, 2), (4, 4), (5, 4)], strict=True):
        correlation = torch.as_tensor(ax.images[0].get_array().data)
        torch.testing.assert_close(correlation.float(), correlation_with(G, z, pixel))
        assert [line.get_xydata().tolist() for line in ax.lines] == [[[pixel[1], pixel[0]]]]
