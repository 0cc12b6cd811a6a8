from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesgen import streaming
from bayesgen.errors import ShapeError
from bayesgen.streaming import (
    NUM_BINS,
    exact_quantiles,
    exceedance,
    histogram_quantiles,
    moments,
)

LEVELS = [0.0, 0.05, 0.5, 0.77, 1.0]


def normals(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 3.0 + 0.1 * torch.randn(shape, generator=rng, dtype=torch.float64)


def split(draws: Tensor, sizes: Sequence[int]) -> Callable[[], Iterator[Tensor]]:
    """Chunks of the given sizes, repeated until the draws end."""

    def chunks() -> Iterator[Tensor]:
        begin = number = 0
        while begin < len(draws):
            size = sizes[number % len(sizes)]
            yield draws[begin : begin + size]
            begin, number = begin + size, number + 1

    return chunks


def check_moments(found: streaming.Moments, draws: Tensor, rtol: float = 1e-10) -> None:
    assert found.num_draws == len(draws)
    torch.testing.assert_close(found.mean, draws.mean(0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found.variance, draws.var(0), rtol=rtol, atol=0.0)
    assert torch.equal(found.minimum, draws.amin(0))
    assert torch.equal(found.maximum, draws.amax(0))


@given(
    num=st.integers(2, 40),
    sizes=st.lists(st.integers(1, 17), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_moments_do_not_depend_on_the_chunks(num: int, sizes: list[int], seed: int) -> None:
    draws = normals(num, 2, 3, seed=seed)
    check_moments(moments(split(draws, sizes)), draws)


def test_an_unweighted_merge_of_chunks_is_rejected() -> None:
    def unweighted(chunks: Callable[[], Iterator[Tensor]]) -> streaming.Moments:
        parts = [moments(lambda chunk=chunk: [chunk]) for chunk in chunks()]
        return moments(split(torch.cat(list(chunks())), [100]))._replace(
            mean=torch.stack([part.mean for part in parts]).mean(0),
            variance=torch.stack([part.variance for part in parts]).mean(0),
        )

    draws = normals(25, 3)
    check_moments(moments(split(draws, [10])), draws)
    with pytest.raises(AssertionError):
        check_moments(unweighted(split(draws, [10])), draws)


def test_moments_survive_an_offset_that_ruins_the_naive_formula() -> None:
    draws = 1e6 + normals(1000, 4).float().double()
    check_moments(moments(split(draws, [64])), draws, rtol=1e-7)  # 1e6 / 0.1 * 2e-16, and a margin
    naive = draws.float().square().mean(0) - draws.float().mean(0).square()
    assert not torch.allclose(naive.double(), draws.var(0), rtol=0.1)


def test_one_draw_has_a_mean_and_no_variance() -> None:
    found = moments(split(normals(1, 3), [5]))
    assert torch.equal(found.mean, normals(1, 3)[0])
    assert found.variance.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_keep_the_dtype(dtype: torch.dtype) -> None:
    draws = normals(9, 2).to(dtype)
    chunks = split(draws, [4])
    assert moments(chunks).mean.dtype is dtype
    assert exceedance(chunks, 3.0).dtype is dtype
    assert exact_quantiles(chunks, LEVELS).dtype is dtype
    assert histogram_quantiles(chunks, LEVELS, moments(chunks)).dtype is dtype


def test_truth_values_count_as_numbers() -> None:
    chunks = split(normals(20, 3) > 3.0, [6])
    fraction = (normals(20, 3) > 3.0).float().mean(0)
    torch.testing.assert_close(moments(chunks).mean, fraction)
    assert exact_quantiles(chunks, [0.0, 1.0]).tolist() == [[0.0] * 3, [1.0] * 3]
    found = histogram_quantiles(chunks, [0.0, 1.0], moments(chunks))
    torch.testing.assert_close(found, torch.tensor([[0.0] * 3, [1.0] * 3]), rtol=0, atol=1e-3)


def test_exceedance_counts_strictly_and_broadcasts_thresholds() -> None:
    draws = torch.arange(12.0).reshape(6, 2)
    assert exceedance(split(draws, [4]), 4.0).tolist() == [0.5, pytest.approx(4 / 6)]
    assert exceedance(split(draws, [4]), torch.tensor([10.0, -1.0])).tolist() == [0.0, 1.0]
    with pytest.raises(ShapeError, match=r"threshold: has shape \(3,\); expected.*\(2,\)"):
        exceedance(split(draws, [4]), torch.zeros(3))
    with pytest.raises(ShapeError, match="threshold"):  # it would otherwise add an axis
        exceedance(split(draws, [4]), torch.zeros(4, 2))


@given(
    num=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    levels=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_exact_quantiles_are_those_of_torch(
    num: int, sizes: list[int], levels: list[float]
) -> None:
    draws = normals(num, 2, 2, seed=num)
    expected = torch.quantile(draws, torch.tensor(levels, dtype=torch.float64), dim=0)
    torch.testing.assert_close(exact_quantiles(split(draws, sizes), levels), expected)


def test_exact_quantiles_in_blocks_of_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = normals(11, 3, 5)
    whole = exact_quantiles(split(draws, [4]), LEVELS)
    monkeypatch.setattr(streaming, "SORTED_ELEMENTS", 4)
    assert torch.equal(exact_quantiles(split(draws, [4]), LEVELS), whole)


def check_quantiles(found: Tensor, draws: Tensor, levels: Sequence[float] = LEVELS) -> None:
    """Within a bin of the exact ones; rounding may move a draw at an edge to the next bin."""
    exact = torch.quantile(draws, torch.tensor(levels, dtype=draws.dtype), dim=0)
    width = (draws.amax(0) - draws.amin(0)) / NUM_BINS
    assert ((found - exact).abs() <= 1.001 * width).all()


@given(
    num=st.integers(1, 300),
    sizes=st.lists(st.integers(1, 99), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    level=st.floats(0.0, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_histogram_quantiles_are_within_a_bin(
    num: int, sizes: list[int], seed: int, level: float
) -> None:
    # A cube has tails; two thirds of the draws form a second mode, with a gap between the two.
    draws = normals(num, 3, seed=seed).sub(3.0).mul(20.0).pow(3)
    draws[::3] += 500.0
    chunks = split(draws, sizes)
    levels = [*LEVELS, level]
    check_quantiles(histogram_quantiles(chunks, levels, moments(chunks)), draws, levels)


def test_wrong_histogram_quantiles_are_rejected() -> None:
    draws = normals(2000, 4)
    draws[:1000] += 1.0  # the median lies in a gap: any point of it has half the draws below
    chunks = split(draws, [300])
    known = moments(chunks)
    good = histogram_quantiles(chunks, LEVELS, known)
    check_quantiles(good, draws)
    two_bins = 2 * (known.maximum - known.minimum) / NUM_BINS
    with pytest.raises(AssertionError):
        check_quantiles(good + two_bins, draws)
    lower_median = draws.median(0).values  # no interpolation between order statistics
    with pytest.raises(AssertionError):
        check_quantiles(torch.stack([*good[:2], lower_median, *good[3:]]), draws)


def test_histograms_in_blocks_of_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = split(normals(50, 3, 5), [20])
    whole = histogram_quantiles(chunks, LEVELS, moments(chunks))
    monkeypatch.setattr(streaming, "MAX_HISTOGRAMS", 4)
    assert torch.equal(histogram_quantiles(chunks, LEVELS, moments(chunks)), whole)


def test_constant_elements_have_their_value_for_every_quantile() -> None:
    draws = normals(40, 2).float()
    draws[:, 1] = 0.7
    chunks = split(draws, [7])
    assert (histogram_quantiles(chunks, LEVELS, moments(chunks))[:, 1] == 0.7).all()
    assert (exact_quantiles(chunks, LEVELS)[:, 1] == 0.7).all()
    assert moments(chunks).variance[1] == 0.0


def test_scalars_have_quantiles_too() -> None:
    draws = normals(40)
    chunks = split(draws, [7])
    check_quantiles(histogram_quantiles(chunks, LEVELS, moments(chunks)), draws)
    check_quantiles(exact_quantiles(chunks, LEVELS), draws)
