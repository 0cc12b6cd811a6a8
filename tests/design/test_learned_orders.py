"""Orders learned from training images against refitting from scratch at every step."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesgen.design import draw_space, learned_orders
from bayesgen.design.fixed import FixedOrder
from bayesgen.design.learned_orders import lbcs_order, pca_order
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError

float64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def training(num: int = 60, n: int = 6, q: int = 1, d: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Data, images and noise."""
    images = random(num, d, seed=1) @ random(d, d, seed=2) + random(d, seed=3)
    data = torch.einsum("nqd,sd->snq", random(n, q, d, seed=4), images)
    return data, images, 0.5 + random(n, q, seed=5).abs()


# ------------------------------------------------------------------------------------------ PCA


def information(data: Tensor, noise: Tensor, chosen: list[int]) -> float:
    rows = (data / noise)[:, chosen].flatten(1)
    return 0.5 * float(torch.logdet(torch.eye(rows.shape[1], dtype=float64) + torch.cov(rows.T)))


@pytest.mark.parametrize("q", [1, 3])
def test_most_informative_order(q: int) -> None:
    data, _, noise = training(q=q)
    order = list(pca_order(data, 4, noise=noise).order)
    greedy: list[int] = []
    for _ in range(4):
        rest = [a for a in range(6) if a not in greedy]
        greedy.append(max(rest, key=lambda a: information(data, noise, [*greedy, a])))
    assert order == greedy
    best = max(information(data, noise, list(s)) for s in combinations(range(6), 4))
    assert information(data, noise, order) > (1 - 1 / 2.71828) * best
    apart = [information(data, noise, [a]) for a in range(6)]
    assert sorted(range(6), key=lambda a: -apart[a])[:4] != greedy


# ----------------------------------------------------------------------------------------- LBCS


def refitted_error(
    data: Tensor, images: Tensor, noise: Tensor, chosen: list[int], split: int, seed: int = 0
) -> float:
    """Squared error, on the images not fitted to, of the best linear estimate: normal equations."""
    rng = torch.Generator().manual_seed(seed)
    measured = data + noise * torch.randn(data.shape, generator=rng, dtype=float64)
    y, z = data[:split][:, chosen].flatten(1), measured[split:][:, chosen].flatten(1)
    x = images[:split]
    mean, centre = x.mean(0), y.mean(0)
    Cyy = (y - centre).T @ (y - centre) / (split - 1) + torch.diag(noise[chosen].flatten() ** 2)
    Cxy = (x - mean).T @ (y - centre) / (split - 1)
    estimate = mean + (z - centre) @ torch.linalg.solve(Cyy, Cxy.T)
    return float((images[split:] - estimate).square().sum())


def refitted_order(
    data: Tensor, images: Tensor, noise: Tensor, total: int, split: int, seed: int = 0
) -> list[int]:
    order: list[int] = []
    for _ in range(total):
        rest = [a for a in range(data.shape[1]) if a not in order]
        order.append(
            min(rest, key=lambda a: refitted_error(data, images, noise, [*order, a], split, seed))
        )
    return order


@pytest.mark.parametrize("size", [{"q": 1}, {"q": 3}, {"q": 1, "num": 12, "d": 20}])
@pytest.mark.parametrize("most", [2**24, 1])
def test_reconstruction_decides(
    size: dict[str, int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw_space, "_MOST", most)
    data, images, noise = training(**size)
    split = len(data) // 2
    order = list(lbcs_order(data, images, 5, noise=noise).order)
    assert order == refitted_order(data, images, noise, 5, split)
    assert order != list(pca_order(data, 5, noise=noise).order)


@pytest.mark.parametrize("size", [{"q": 1}, {"q": 3}, {"q": 1, "num": 12, "d": 20}])
def test_predicted_falls_of_the_error_are_those_of_refitting(size: dict[str, int]) -> None:
    data, images, noise = training(**size)
    split = len(data) // 2
    simulated = torch.randn(data.shape, generator=torch.Generator().manual_seed(0), dtype=float64)
    search: Any = learned_orders._LinearDecoder(data / noise, images, split, simulated)
    stale: Any = learned_orders._LinearDecoder(data / noise, images, split, simulated)
    chosen: list[int] = []
    for index in (2, 0, 5):
        before = float((images[split:] - images[:split].mean(0)).square().sum())
        if chosen:
            before = refitted_error(data, images, noise, chosen, split)
        rest = [a for a in range(6) if a not in chosen]
        expected = torch.tensor(
            [before - refitted_error(data, images, noise, [*chosen, a], split) for a in rest],
            dtype=float64,
        )
        torch.testing.assert_close(search.error_reductions()[rest], expected)
        if chosen:  # a mutant whose covariances are not conditioned
            wrong = (stale.error_reductions()[rest] - expected).abs().max()
            assert float(wrong / expected.abs().max()) > 1e-3
        blocks, spread = stale.blocks, stale.spread
        search.measure(index)
        stale.measure(index)
        stale.blocks, stale.spread = blocks, spread
        chosen.append(index)


def test_images_may_have_any_shape_and_noise_be_one_number() -> None:
    data, images, _ = training()
    flat = lbcs_order(data, images, 3, noise=0.3, seed=4)
    assert lbcs_order(data, images.reshape(-1, 2, 4), 3, noise=0.3, seed=4) == flat
    full = torch.full((6, 1), 0.3, dtype=float64)
    assert lbcs_order(data, images, 3, noise=full, seed=4) == flat
    single = lbcs_order(data.float(), images.float(), 3, noise=0.3, seed=4)
    assert isinstance(single, FixedOrder) and len(single.order) == 3
    assert pca_order(data.float(), 6, noise=0.3) == pca_order(data, 6, noise=0.3)


@pytest.mark.parametrize("q", [1, 3])
def test_noise_is_broadcast(q: int) -> None:
    data, images, _ = training(q=q)
    own = 0.2 + torch.arange(6.0) / 3
    kinds = [(own[:, None], own[:, None].expand(6, q)), (own[:q], own[:q].expand(6, q))]
    kinds += [(own, own[:, None])] if q == 1 else []
    for given, full in kinds:
        assert pca_order(data, 4, noise=given) == pca_order(data, 4, noise=full)
        lists = lbcs_order(data, images, 4, noise=given.tolist())  # type: ignore[arg-type]
        assert lists == lbcs_order(data, images, 4, noise=full)
    if q > 1:
        with pytest.raises(ShapeError, match=r"noise: .*broadcasts to \(6, 3\), got \(6,\)"):
            pca_order(data, 4, noise=own)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": [[1.0]]}, DtypeError, "data: expected a tensor"),
        ({"data": torch.zeros(9, 6, 1, dtype=torch.int64)}, DtypeError, "data: expected"),
        ({"data": torch.zeros(9, 6)}, ShapeError, r"data: .*got \(9, 6\)"),
        ({"data": torch.zeros(1, 6, 1)}, ShapeError, r"data: .*at least two images.*\(1, 6, 1\)"),
        ({"data": torch.full((9, 6, 1), torch.nan)}, DataError, "data: some of it is not finite"),
        ({"total": 7}, OptionError, "total: got 7; expected at most 6"),
        ({"total": 0}, OptionError, "total: got 0"),
        ({"noise": 0.0}, OptionError, "noise: expected positive"),
        ({"noise": torch.ones(5)}, ShapeError, r"noise: .*broadcasts to \(6, 1\), got \(5,\)"),
        ({"noise": torch.ones(1, 6, 1)}, ShapeError, r"noise: .*got \(1, 6, 1\)"),
        ({"noise": "loud"}, DtypeError, "noise: got 'loud'"),
        ({"noise": [[1.0], [1.0, 2.0]]}, DtypeError, "noise: got"),
        ({"noise": 1j}, DtypeError, "noise: got 1j"),
    ],
)
def test_bad_data_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"data": training()[0], "total": 3, "noise": 0.3} | changes
    with pytest.raises(error, match=message):
        pca_order(**given)
    with pytest.raises(error, match=message):
        lbcs_order(images=training()[1], **given)


def test_images_must_fit_the_data() -> None:
    data, images, _ = training()
    with pytest.raises(ShapeError, match=r"images: expected 60 images.*got shape \(59, 8\)"):
        lbcs_order(data, images[1:], 3, noise=0.3)
    with pytest.raises(DtypeError, match="images: expected a tensor"):
        lbcs_order(data, images.tolist(), 3, noise=0.3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="images: some are not finite"):
        lbcs_order(data, images / 0.0, 3, noise=0.3)
    for fitted in (0.0, 1.0, -1.0, "a", None, True, float("nan")):
        with pytest.raises(OptionError, match="fitted: got"):
            lbcs_order(data, images, 3, noise=0.3, fitted=fitted)  # type: ignore[arg-type]
    for fitted in (0.01, 0.999):
        with pytest.raises(OptionError, match="fitted: of 60 images it leaves"):
            lbcs_order(data, images, 3, noise=0.3, fitted=fitted)
