"""Pictures of a loop: what it believes, what it has measured, and what that was worth."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesgen.design.pool import Pool
from bayesgen.design.records import Record
from bayesgen.errors import OptionError, ShapeError
from bayesgen.operators import Identity
from bayesgen.plot import MAGNITUDE, SPREAD, plot_image
from bayesgen.types import check_positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bayesgen.design.loop import Loop

# Shows in its panel the state after the k-th round.
Update = Callable[[int], None]
# What was not measured, or may not be chosen.
_NOTHING = "0.88"
_CHOSEN = "C1"


def plot_loop(loop: Loop) -> Figure:
    """The image, its uncertainty, what was measured, and how the uncertainty fell.

    Panels: posterior mean and standard deviation; what was measured, in order; the scores by which
    the first of the last batch was chosen, with the batch marked; the uncertainty against what was
    spent. Candidates that are pixels or blocks of an image are shown on it, others by number.

    Parameters
    ----------
    loop
        A loop that has finished a round.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    OptionError
        If no round has been finished.

    Examples
    --------
    >>> import pyro, torch, bayesgen as bg
    >>> import pyro.distributions as dist
    >>> def model(A, y=None):
    ...     x = pyro.sample("x", dist.Normal(torch.zeros(2, 2), torch.ones(2, 2)).to_event(2))
    ...     pyro.sample("y", dist.Normal(A(x), 0.5).to_event(1), obs=y)
    >>> loop = bg.design.Loop(
    ...     model, bg.design.Pool.pixels((2, 2)), acquisition="variance", budget=2, draws=16
    ... )
    >>> chosen = loop.ask()
    >>> record = loop.tell([0.3])
    >>> figure = plot_loop(loop)
    >>> [ax.get_title() for ax in figure.axes if ax.get_title()][:3]
    ['posterior mean', 'posterior std', 'measured, in order']
    """
    records = _records_of(loop)
    last = records[-1]
    figure = _figure((9.0, 5.8))
    axes = figure.subplot_mosaic(
        [["mean", "std", "measured"], ["scores", "uncertainty", "uncertainty"]]
    )
    _image_panel(axes["mean"], [last.mean], "posterior mean")(0)
    _image_panel(axes["std"], [_grey(last.std)], "posterior std", spread=True)(0)
    _measured_panel(axes["measured"], loop.pool, records)(len(records) - 1)
    _plot_scores(axes["scores"], loop.pool, last)
    _uncertainty_panel(axes["uncertainty"], records, target=loop.target)(len(records) - 1)
    count = sum(len(record.chosen) for record in records)
    figure.suptitle(
        f"{loop.acquisition.name}: {count} of {loop.pool.num_candidates} candidates measured, "
        f"{last.spent:g} of {loop.budget:g} spent",
        fontsize=10,
    )
    return figure


def animate_loop(
    loop: Loop,
    path: str | os.PathLike[str],
    *,
    truth: Tensor | None = None,
    fps: float = 4.0,
) -> None:
    """Write an animation of the rounds: mean, standard deviation, what was measured, uncertainty.

    Colours and axes are the same in all frames; the last stays for a second longer.

    Parameters
    ----------
    loop
        A loop that has finished a round.
    path
        GIF file to write.
    truth
        The true image, if known: it is shown, and so is the error of the mean beside the
        uncertainty, which should be as large.
    fps
        Rounds a second.

    Raises
    ------
    OptionError
        If no round has been finished, the file is no GIF by its name, or ``fps`` not positive.
    ShapeError
        If the truth has another shape than the image.

    Examples
    --------
    >>> import pyro, tempfile, torch, bayesgen as bg
    >>> import pyro.distributions as dist
    >>> def model(A, y=None):
    ...     x = pyro.sample("x", dist.Normal(torch.zeros(2, 2), torch.ones(2, 2)).to_event(2))
    ...     pyro.sample("y", dist.Normal(A(x), 0.5).to_event(1), obs=y)
    >>> loop = bg.design.Loop(
    ...     model, bg.design.Pool.pixels((2, 2)), acquisition="variance", budget=2, draws=16
    ... )
    >>> chosen = loop.ask()
    >>> record = loop.tell([0.3])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "loop.gif"
    ...     animate_loop(loop, path, truth=torch.eye(2))
    ...     path.read_bytes()[:6]
    b'GIF89a'
    """
    from matplotlib.animation import PillowWriter

    records = _records_of(loop)
    check_positive("fps", fps)
    if Path(path).suffix.lower() != ".gif":
        raise OptionError(f"path: got {os.fspath(path)!r}; expected a name that ends in .gif")
    truth = None if truth is None else _as_truth(truth, records[0].mean)
    means = [record.mean for record in records]
    shared = means if truth is None else [*means, truth]
    panels = 4 if truth is None else 5
    figure = _figure((2.5 * panels, 3.2))
    axes = iter(figure.subplots(1, panels))
    updates = []
    if truth is not None:
        _image_panel(next(axes), [truth], "truth", shared=shared)(0)
    updates.append(_image_panel(next(axes), means, "posterior mean", shared=shared))
    spreads = [_grey(record.std) for record in records]
    updates.append(_image_panel(next(axes), spreads, "posterior std", spread=True))
    updates.append(_measured_panel(next(axes), loop.pool, records))
    updates.append(_uncertainty_panel(next(axes), records, target=loop.target, truth=truth))
    for ax in figure.axes:
        ax.set_box_aspect(None if _is_image(records[0].mean) and ax.images else 1)
    writer = PillowWriter(fps=fps)  # type: ignore[arg-type]
    with writer.saving(figure, os.fspath(path), dpi=90):
        for number, record in enumerate(records):
            for update in updates:
                update(number)
            figure.suptitle(f"round {record.round}: {record.spent:g} spent", fontsize=10)
            if number == 0:
                # Laid out once: nothing moves from frame to frame.
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
            writer.grab_frame()
        for _ in range(round(fps)):
            writer.grab_frame()


# ---------------------------------------------------------------------- panels


def _image_panel(
    ax: Axes,
    images: Sequence[Tensor],
    title: str,
    *,
    shared: Sequence[Tensor] | None = None,
    spread: bool = False,
) -> Update:
    """Images one after the other on one colour scale, that of ``shared``; no images: curves."""
    shown = images if shared is None else shared
    low = 0.0 if spread else min(float(image.min()) for image in shown)
    high = max(float(image.max()) for image in shown)
    if _is_image(images[0]):
        return _pictures(ax, images, title, (low, high), SPREAD if spread else MAGNITUDE)
    (line,) = ax.plot([], [], ".-", markersize=4)
    margin = 0.05 * max(high - low, 1e-12)
    ax.set_xlim(-0.5, images[0].numel() - 0.5)
    ax.set_ylim(low - (0.0 if spread else margin), high + margin)
    ax.set_xlabel("entry of the image", fontsize=8)
    _small(ax, title)

    def update(number: int) -> None:
        values = images[number].detach().cpu().flatten()
        line.set_data(range(len(values)), values.tolist())

    return update


def _measured_panel(ax: Axes, pool: Pool, records: Sequence[Record]) -> Update:
    """What was measured up to a round: on the image, or candidates against rounds."""
    order = [index for record in records for index in record.chosen]
    rounds = [record.round for record in records for _ in record.chosen]
    ends = torch.tensor([len(record.chosen) for record in records]).cumsum(0).tolist()
    if _image_of(pool) is not None:
        maps = []
        for end in ends:
            numbers = torch.full((pool.num_candidates,), float("nan"))
            numbers[order[:end]] = torch.arange(1.0, end + 1)
            maps.append(_on_image(pool, numbers))
        ax.set_facecolor(_NOTHING)
        return _pictures(
            ax, maps, "measured, in order", (0.0, float(len(order))), SPREAD, whole=True
        )
    (dots,) = ax.plot([], [], "o", color=_CHOSEN, markersize=4)
    ax.set_xlim(-0.5, pool.num_candidates - 0.5)
    ax.set_ylim(rounds[0] - 0.5, rounds[-1] + 0.5)
    ax.set_xlabel("candidate", fontsize=8)
    ax.set_ylabel("round", fontsize=8)
    _whole_numbers(ax)
    _small(ax, "measured")

    def update(number: int) -> None:
        dots.set_data(order[: ends[number]], rounds[: ends[number]])

    return update


def _uncertainty_panel(
    ax: Axes, records: Sequence[Record], *, target: float | None, truth: Tensor | None = None
) -> Update:
    """Uncertainty against what was spent, and the error if the truth is known."""
    spent = [record.spent for record in records]
    curves = {"uncertainty": [record.uncertainty for record in records]}
    if truth is not None:
        errors = [float((r.mean - truth).double().square().mean().sqrt()) for r in records]
        curves["error of the mean"] = errors
    styles = zip(curves, ("o-", "s--"), strict=False)
    lines = {name: ax.plot([], [], style, markersize=3, label=name)[0] for name, style in styles}
    if target is not None:
        ax.axhline(target, color="0.4", linestyle=":", label="target")
    top = max([target or 0.0, *(value for values in curves.values() for value in values)])
    ax.set_xlim(0.0, 1.05 * spent[-1])
    ax.set_ylim(0.0, 1.3 * max(top, 1e-12) if len(ax.lines) > 1 else 1.08 * max(top, 1e-12))
    ax.set_xlabel("spent", fontsize=8)
    _small(ax, "uncertainty")
    if len(ax.lines) > 1:
        ax.legend(fontsize=7, loc="upper right")

    def update(number: int) -> None:
        for name, line in lines.items():
            line.set_data(spent[: number + 1], curves[name][: number + 1])

    return update


def _plot_scores(ax: Axes, pool: Pool, record: Record) -> None:
    """Scores before the last choice, and what was chosen."""
    title = f"scores in round {record.round}; marked: chosen"
    scores = record.scores.double().cpu().clone()
    scores[~torch.isfinite(scores)] = float("nan")
    finite = scores[torch.isfinite(scores)]
    if not len(finite):
        ax.text(0.5, 0.5, "no scores", ha="center", va="center", color="0.4")
        ax.set_xticks([])
        ax.set_yticks([])
        _small(ax, title)
        return
    chosen = list(record.chosen)
    shape = _image_of(pool)
    if shape is None:
        for index in chosen:
            ax.axvline(index, color=_CHOSEN, linestyle="--", linewidth=1)
        ax.plot(scores.numpy(), ".-", markersize=4)
        ax.set_xlim(-0.5, pool.num_candidates - 0.5)
        ax.set_xlabel("candidate", fontsize=8)
        _small(ax, title)
        return
    limits = (float(finite.min()), float(finite.max()))
    ax.set_facecolor(_NOTHING)
    _pictures(ax, [_on_image(pool, scores)], title, limits, SPREAD)(0)
    members = pool.members[chosen]
    rows, columns = members // shape[1], members % shape[1]
    ax.plot(
        columns.double().mean(1).numpy(),
        rows.double().mean(1).numpy(),
        "o",
        color="black",
        markerfacecolor="white",
        markersize=4,
    )


def _pictures(
    ax: Axes,
    images: Sequence[Tensor],
    title: str,
    limits: tuple[float, float],
    cmap: str,
    *,
    whole: bool = False,
) -> Update:
    """One image after the other in the same axes, with one colour bar, perhaps of whole numbers."""

    def update(number: int) -> None:
        first = not ax.images
        for old in list(ax.images):
            old.remove()
        plot_image(images[number], ax=ax, title=title, limits=limits, cmap=cmap, colorbar=first)
        bar = ax.images[0].colorbar
        if bar is not None and whole:
            _whole_numbers(bar.ax)

    return update


# ---------------------------------------------------------------------- helpers


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # A figure of its own: the user's, if there is one, and the backend stay as they are.
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _whole_numbers(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def _small(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=7)


def _records_of(loop: Loop) -> list[Record]:
    if not loop.records:
        raise OptionError("loop: no round has been finished yet; there is nothing to show")
    return loop.records


def _as_truth(truth: Tensor, mean: Tensor) -> Tensor:
    truth = torch.as_tensor(truth).detach().to(mean)
    if truth.shape != mean.shape:
        raise ShapeError(
            f"truth: has shape {tuple(truth.shape)}; expected {tuple(mean.shape)}, the image's"
        )
    return truth


def _is_image(image: Tensor) -> bool:
    return image.ndim == 2 or (image.ndim == 3 and image.shape[0] in (1, 3))


def _grey(std: Tensor) -> Tensor:
    """Mean over the channels of a colour image: a spread has no colour."""
    return std.mean(0) if std.ndim == 3 and _is_image(std) else std


def _image_of(pool: Pool) -> tuple[int, int] | None:
    """Shape of the image of which candidates are pixels or blocks; None if they are not."""
    shape = pool.operator.range_shape
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    return shape if isinstance(pool.operator, Identity) and len(shape) == 2 else None


def _on_image(pool: Pool, values: Tensor) -> Tensor:
    """Each candidate's value at its pixels; NaN at those of none."""
    shape = _image_of(pool)
    assert shape is not None
    image = values.new_full((shape[0] * shape[1],), float("nan"))
    image[pool.members] = values[:, None].expand(pool.members.shape)
    return image.reshape(shape)
