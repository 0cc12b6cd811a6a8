"""Fixed orders of measurement learned from training images."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesgen.design.belief import Belief
from bayesgen.design.draw_space import contraction, in_pieces
from bayesgen.design.estimation import InformationGain
from bayesgen.design.fixed import FixedOrder
from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.types import check_count, strict_options


@strict_options
def pca_order(data: Tensor, total: int, *, noise: float | Tensor) -> FixedOrder:
    """The most informative measurements of a Gaussian with the covariance of training images.

    The greedy choice of the largest log determinant: the best that can be chosen before anything is
    measured, as far as the covariance of the images, their principal components, tells. At least
    1 - 1/e of the most that any so many measurements tell.

    Parameters
    ----------
    data
        Noise-free data of every candidate for training images, ``(N, n, q)``.
    total
        How many candidates to choose.
    noise
        Standard deviation of the measurements: what broadcasts to ``(n, q)``; if q = 1, also
        ``(n,)``.

    Raises
    ------
    ShapeError, DataError, DtypeError, OptionError
        If the data are not of that kind, or ``total`` is more than the candidates.

    References
    ----------
    Krause, Singh and Guestrin (2008), *Near-optimal sensor placements in Gaussian processes*.

    Examples
    --------
    >>> data = torch.tensor([[-1.0, -1.1, 0.4], [1.0, 1.1, 0.4], [0.0, 0.0, -0.8]])[:, :, None]
    >>> pca_order(data, 2, noise=0.1)
    FixedOrder(2 candidates: 1, 2)
    """
    std = _checked(data, total, noise)
    num = data.shape[1]
    belief = Belief(
        images=data,
        data=data,
        noise=std,
        available=torch.ones(num, dtype=torch.bool, device=data.device),
        costs_from=lambda last: torch.ones(num, device=data.device),
        measured=(),
        values=data.new_zeros(0, data.shape[2]),
        round=0,
        rng=torch.Generator(),
    )
    return FixedOrder(InformationGain().choose(belief, total).indices)


@strict_options
def lbcs_order(
    data: Tensor,
    images: Tensor,
    total: int,
    *,
    noise: float | Tensor,
    fitted: float = 0.5,
    seed: int = 0,
) -> FixedOrder:
    """The measurements that, one after the other, lower the error of reconstructed images most.

    Learning-based compressed sensing with a linear decoder: the best linear estimate (of least mean
    squared error) is fitted to some of the images; candidates are judged by its squared error on
    the others, measured with simulated noise.

    Parameters
    ----------
    data
        Noise-free data of every candidate for training images, ``(N, n, q)``.
    images
        These images, ``(N, *image_shape)``.
    total
        How many candidates to choose.
    noise
        Standard deviation of the measurements: what broadcasts to ``(n, q)``; if q = 1, also
        ``(n,)``.
    fitted
        Share of the images, the first, that the estimate is fitted to. One half: an estimate judged
        on images it knows would look too good wherever there are fewer images than pixels.
    seed
        Of the simulated noise.

    Raises
    ------
    ShapeError, DataError, DtypeError, OptionError
        If data and images are not of that kind, or too few, or ``total`` is more than the
        candidates.

    References
    ----------
    Gözcü et al. (2018), *Learning-based compressive MRI*, algorithm 1.

    Examples
    --------
    >>> images = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> images = images * torch.tensor([1.0, 3.0, 2.0])
    >>> lbcs_order(images[:, :, None], images, 2, noise=0.1)
    FixedOrder(2 candidates: 1, 2)
    """
    std = _checked(data, total, noise)
    if not isinstance(images, Tensor) or images.is_complex():
        raise DtypeError("images: expected a tensor of real numbers")
    if images.ndim < 1 or len(images) != len(data):
        raise ShapeError(
            f"images: expected {len(data)} images, as of the data, got shape {tuple(images.shape)}"
        )
    if not bool(torch.isfinite(images).all()):
        raise DataError("images: some are not finite")
    if not isinstance(fitted, int | float) or not 0.0 < fitted < 1.0:
        raise OptionError(f"fitted: got {fitted!r}; expected a share between 0 and 1")
    split = round(fitted * len(data))
    if split < 2 or split == len(data):
        raise OptionError(
            f"fitted: of {len(data)} images it leaves {split} to fit to and {len(data) - split} to "
            "judge by; expected at least two and one"
        )
    # Where data are precise, the best linear estimate is nearly singular.
    data = data.double()
    rng = torch.Generator().manual_seed(seed)
    simulated = torch.randn(data.shape, generator=rng, dtype=data.dtype).to(data.device)
    search = _LinearDecoder(data / std.double(), images.to(data).flatten(1), split, simulated)
    order: list[int] = []
    for _ in range(total):
        falls = search.error_reductions()
        falls[order] = -float("inf")
        order.append(int((falls == falls.max()).nonzero()[0]))
        search.measure(order[-1])
    return FixedOrder(order)


class _LinearDecoder:
    """The best linear estimate from the measurements so far, and its errors on other images.

    Estimates are the mean plus combinations of the images fitted to; only what the others have in
    that span matters.
    """

    def __init__(self, data: Tensor, images: Tensor, split: int, noise: Tensor) -> None:
        mean_data, mean_image = data[:split].mean(0), images[:split].mean(0)
        root = (split - 1) ** 0.5
        self.blocks = (data[:split] - mean_data) / root
        self.size = data.shape[2]
        spread = (images[:split] - mean_image) / root
        basis = torch.linalg.qr(spread.T).Q
        self.spread = spread @ basis
        self.errors = (images[split:] - mean_image) @ basis
        # What the measurements of the others are above their expectation.
        self.surprises = data[split:] + noise[split:] - mean_data

    def error_reductions(self) -> Tensor:
        """Fall of the summed squared error by each candidate, ``(n,)``."""
        num, count, size = self.blocks.shape
        inner = torch.eye(size, dtype=self.blocks.dtype, device=self.blocks.device)
        parts = []
        candidates = torch.arange(count, device=self.blocks.device)
        for piece in in_pieces(candidates, size * max(num, size, len(self.errors))):
            blocks = self.blocks[:, piece].permute(1, 0, 2)
            gains = torch.linalg.solve(inner + blocks.mT @ blocks, blocks.mT @ self.spread)
            changes = self.surprises[:, piece].permute(1, 0, 2) @ gains
            parts.append((changes * (2.0 * self.errors - changes)).sum((1, 2)))
        return torch.cat(parts)

    def measure(self, index: int) -> None:
        """Condition the covariances, and add what the measurements tell to the estimates."""
        block, surprise = self.blocks[:, index], self.surprises[:, index]
        inner = torch.eye(self.size, dtype=block.dtype, device=block.device) + block.T @ block
        told = torch.linalg.solve(inner, surprise.T).T
        coefficients = told @ block.T
        self.errors = self.errors - coefficients @ self.spread
        expected = coefficients @ self.blocks.flatten(1)
        self.surprises = self.surprises - expected.reshape(self.surprises.shape)
        contract = contraction(block)
        self.blocks = contract(self.blocks.flatten(1)).reshape(self.blocks.shape)
        self.spread = contract(self.spread)


def _checked(data: Tensor, total: int, noise: float | Tensor) -> Tensor:
    """The noise as ``(n, q)``."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        raise DtypeError("data: expected a tensor of floating-point numbers")
    if data.ndim != 3 or len(data) < 2 or 0 in data.shape:
        raise ShapeError(
            "data: expected data of at least two images, (images, candidates, numbers), got "
            f"{tuple(data.shape)}"
        )
    if not bool(torch.isfinite(data).all()):
        raise DataError("data: some of it is not finite")
    check_count("total", total, maximum=data.shape[1])
    try:
        std = torch.as_tensor(noise, dtype=data.dtype, device=data.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"noise: got {noise!r}; expected standard deviations") from error
    num, size = data.shape[1:]
    if size == 1 and std.shape == (num,):
        std = std[:, None]
    try:
        std = std.expand(num, size)
    except RuntimeError:
        raise ShapeError(
            f"noise: expected something that broadcasts to ({num}, {size}), got {tuple(std.shape)}"
        ) from None
    if not bool(((std > 0) & torch.isfinite(std)).all()):
        raise OptionError("noise: expected positive finite standard deviations")
    return std
