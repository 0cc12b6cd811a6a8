"""What a loop shows of itself, from records made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.design import Loop, Pool, Record
from bayesgen.design.plot import animate_loop, plot_loop
from bayesgen.errors import OptionError, ShapeError

NAN = float("nan")
PIXELS = Pool.pixels((4, 6))


def loop_over(pool: Pool, shape: tuple[int, ...] = (4, 6), **settings: Any) -> Loop:
    def model(A: Any, y: Tensor | None = None) -> None:
        law = dist.Normal(torch.zeros(shape), torch.ones(shape)).to_event(len(shape))
        pyro.sample("y", dist.Normal(A(pyro.sample("x", law)), 0.1).to_event(1), obs=y)

    return Loop(model, pool, acquisition="variance", budget=6, **settings)


def after(loop: Loop, chosen: Sequence[Sequence[int]], shape: tuple[int, ...] = (4, 6)) -> Loop:
    """The loop with these choices behind it: mean k, standard deviation 1/(k + 1) in round k."""
    for number, indices in enumerate(chosen):
        scores = torch.arange(float(loop.pool.num_candidates))
        scores[loop.measured] = NAN
        loop.measured += indices
        loop.records.append(
            Record(
                round=number,
                chosen=tuple(indices),
                scores=scores,
                spent=float(len(loop.measured)),
                uncertainty=1.0 / (number + 1),
                mean=torch.full(shape, float(number)),
                std=torch.full(shape, 1.0 / (number + 1)),
                seconds_choosing=0.1,
                seconds_updating=0.2,
            )
        )
    return loop


def panels(figure: Any) -> dict[str, Any]:
    """Axes by title, colour bars left out."""
    return {ax.get_title(): ax for ax in figure.axes if ax.get_title()}


def shown(ax: Any) -> np.ndarray[Any, Any]:
    return np.ma.filled(np.ma.asarray(ax.images[0].get_array(), dtype=float), NAN)


def test_pixels_are_shown_on_the_image() -> None:
    figure = plot_loop(after(loop_over(PIXELS), [[7, 0], [23, 2]]))
    found = panels(figure)
    assert list(found) == [
        "posterior mean",
        "posterior std",
        "measured, in order",
        "scores in round 1; marked: chosen",
        "uncertainty",
    ]
    assert (shown(found["posterior mean"]) == 1.0).all()
    assert (shown(found["posterior std"]) == 0.5).all()
    order = np.full((4, 6), NAN)
    order[1, 1], order[0, 0], order[3, 5], order[0, 2] = 1, 2, 3, 4
    np.testing.assert_array_equal(shown(found["measured, in order"]), order)
    scores = found["scores in round 1; marked: chosen"]
    expected = np.arange(24.0)
    expected[[7, 0]] = NAN
    np.testing.assert_array_equal(shown(scores), expected.reshape(4, 6))
    np.testing.assert_array_equal(scores.lines[0].get_xydata(), [[5, 3], [2, 0]])
    (curve,) = found["uncertainty"].lines
    np.testing.assert_array_equal(curve.get_xydata(), [[2.0, 1.0], [4.0, 0.5]])
    assert figure.get_suptitle().startswith("variance: 4 of 24 candidates measured, 4 of 6 spent")


def test_blocks_cover_their_pixels() -> None:
    found = panels(plot_loop(after(loop_over(Pool.blocks((4, 6), 2)), [[1], [5]])))
    order = np.full((4, 6), NAN)
    order[:2, 2:4], order[2:, 4:] = 1, 2
    np.testing.assert_array_equal(shown(found["measured, in order"]), order)
    marked = found["scores in round 1; marked: chosen"].lines[0].get_xydata()
    np.testing.assert_array_equal(marked, [[4.5, 2.5]])


def test_other_candidates_are_shown_by_number() -> None:
    pool = Pool(bg.operators.Matrix(torch.eye(24), (4, 6)))
    found = panels(plot_loop(after(loop_over(pool, target=0.7), [[3, 9], [20]])))
    (dots,) = found["measured"].lines
    np.testing.assert_array_equal(dots.get_xydata(), [[3, 0], [9, 0], [20, 1]])
    *marks, scores = found["scores in round 1; marked: chosen"].lines
    assert [line.get_xdata()[0] for line in marks] == [20]
    assert np.isnan(scores.get_ydata()).nonzero()[0].tolist() == [3, 9]
    legend = found["uncertainty"].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["uncertainty", "target"]


def test_images_that_are_none_are_curves() -> None:
    pool = Pool(bg.operators.Matrix(torch.eye(8), (8,)))
    loop = after(loop_over(pool, (8,), target=0.1), [[3]], (8,))
    found = panels(plot_loop(loop))
    np.testing.assert_array_equal(found["posterior std"].lines[0].get_ydata(), np.ones(8))


def test_colours_are_for_means_only() -> None:
    loop = after(loop_over(PIXELS), [[3]], (3, 4, 6))
    found = panels(plot_loop(loop))
    assert shown(found["posterior mean"]).shape == (4, 6, 3)
    assert shown(found["posterior std"]).shape == (4, 6)


def test_a_choice_without_scores_says_so() -> None:
    loop = after(loop_over(PIXELS), [[3]])
    loop.records[0].scores[:] = NAN
    ax = panels(plot_loop(loop))["scores in round 0; marked: chosen"]
    assert [text.get_text() for text in ax.texts] == ["no scores"]
    loop.records[0].scores[4:6] = torch.tensor([2.0, -float("inf")])
    ax = panels(plot_loop(loop))["scores in round 0; marked: chosen"]
    assert np.isfinite(shown(ax)).sum() == 1


def test_the_animation_has_a_frame_a_round(tmp_path: Path) -> None:
    from PIL import Image

    loop = after(loop_over(PIXELS), [[7, 0], [23], [2]])
    animate_loop(loop, tmp_path / "loop.gif", truth=torch.zeros(4, 6), fps=5)
    with Image.open(tmp_path / "loop.gif") as film:
        assert film.n_frames == 3
        frames, durations = [], []
        for number in range(3):
            film.seek(number)
            frames.append(np.asarray(film.convert("L")))
            durations.append(film.info["duration"])
    assert durations == [200, 200, 1200]
    assert frames[0].shape[1] > 3 * frames[0].shape[0]
    assert all((frames[i] != frames[i + 1]).any() for i in (0, 1))


def test_the_animation_is_refused(tmp_path: Path) -> None:
    loop = loop_over(PIXELS)
    with pytest.raises(OptionError, match="loop: no round has been finished"):
        animate_loop(loop, tmp_path / "loop.gif")
    with pytest.raises(OptionError, match="loop: no round has been finished"):
        plot_loop(loop)
    after(loop, [[3]])
    with pytest.raises(OptionError, match=r"path: got .*loop.mp4'; expected .* in \.gif"):
        animate_loop(loop, tmp_path / "loop.mp4")
    with pytest.raises(OptionError, match="fps"):
        animate_loop(loop, tmp_path / "loop.gif", fps=0)
    with pytest.raises(ShapeError, match=r"truth: has shape \(6, 4\); expected \(4, 6\)"):
        animate_loop(loop, tmp_path / "loop.gif", truth=torch.zeros(6, 4))
    assert not list(tmp_path.iterdir())
