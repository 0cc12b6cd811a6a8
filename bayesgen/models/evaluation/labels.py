"""Does a generator draw all kinds of images as often as they occur? Told by labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import DtypeError, OptionError, ShapeError
from bayesgen.models.evaluation.samples import (
    Estimate,
    blocks,
    centred,
    image_rows,
    mean_estimate,
    squared_distances,
)
from bayesgen.types import check_count


@dataclass(frozen=True)
class LabelShares:
    """What `label_shares` found.

    Attributes
    ----------
    labels
        The labels of the reference images, ascending.
    shares
        Of the images, for each label.
    reference_shares
        The labels' frequencies among the reference images.
    accuracy
        Share of the reference images to which the others give the right label: unless it is near 1,
        the shares say little.
    """

    labels: tuple[int, ...]
    shares: tuple[Estimate, ...]
    reference_shares: tuple[float, ...]
    accuracy: float

    @property
    def factor(self) -> float:
        """The largest factor between a share and its frequency; infinite if a label is missing."""
        pairs = zip(self.shares, self.reference_shares, strict=True)
        shares = [(share.value, expected) for share, expected in pairs]
        if not all(share for share, _ in shares):
            return math.inf
        return max(max(share / expected, expected / share) for share, expected in shares)

    def __str__(self) -> str:
        rows = zip(self.labels, self.shares, self.reference_shares, strict=True)
        lines = [f"{label}: {share}, in the data {expected:.4g}" for label, share, expected in rows]
        lines.append(f"within a factor {self.factor:.3g}; classifier right for {self.accuracy:.1%}")
        return "\n".join(lines)


@torch.no_grad()
def label_shares(
    images: Tensor, reference_images: Tensor, reference_labels: Tensor, *, neighbours: int = 5
) -> LabelShares:
    """Count the labels of images, as told by their nearest neighbours, to see modes that collapsed.

    Each image gets the label that most of its nearest reference images have; among labels with as
    many, that of the nearest.

    Parameters
    ----------
    images
        ``(N, *shape)``, for example generated ones.
    reference_images, reference_labels
        ``(M, *shape)`` and integers ``(M,)``; some thousand are enough to tell digits apart.
    neighbours
        How many vote.

    Returns
    -------
    LabelShares
        Shares with standard errors, and the classifier's accuracy on the reference images.

    Raises
    ------
    OptionError
        If there are not more reference images than neighbours.
    ShapeError, DtypeError, DataError
        If the images or labels cannot be used.

    References
    ----------
    Srivastava, Valkov, Russell, Gutmann and Sutton (2017), VEEGAN: mode collapse measured by the
    labels that a classifier gives to samples.

    Examples
    --------
    >>> from bayesgen.datasets import mnist_samples
    >>> images, labels = mnist_samples()
    >>> label_shares(images[labels != 0], images, labels, neighbours=1).factor
    inf
    """
    rows, reference = image_rows(images=images, reference_images=reference_images)
    check_count("neighbours", neighbours)
    _check_labels(reference_labels, len(reference))
    if len(reference) <= neighbours:
        raise OptionError(
            f"neighbours: got {neighbours}; expected fewer than the {len(reference)} reference "
            "images"
        )
    labels, numbers = reference_labels.to(rows.device).unique(return_inverse=True)
    reference, rows = centred(reference, rows)
    found = _classify(rows, reference, numbers, neighbours, own=False)
    again = _classify(reference, reference, numbers, neighbours, own=True)
    return LabelShares(
        labels=tuple(labels.tolist()),
        shares=tuple(mean_estimate(found == number) for number in range(len(labels))),
        reference_shares=tuple((numbers.bincount() / len(numbers)).tolist()),
        accuracy=(again == numbers).double().mean().item(),
    )


def _check_labels(labels: Tensor, num: int) -> None:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise DtypeError(f"reference_labels: expected a tensor of integers, got {kind}")
    if labels.shape != (num,):
        raise ShapeError(
            f"reference_labels: expected shape ({num},), one for each reference image, "
            f"got {tuple(labels.shape)}"
        )


def _classify(x: Tensor, reference: Tensor, numbers: Tensor, k: int, *, own: bool) -> Tensor:
    """Number of the label of each row, by vote; ``own`` leaves out each row's copy of itself."""
    found = []
    for rows in blocks(len(x), len(reference)):
        squares = squared_distances(x[rows], reference)
        if own:
            squares[torch.arange(len(squares)), torch.arange(rows.start, rows.stop)] = torch.inf
        votes = numbers[squares.topk(k, largest=False).indices]
        counts = torch.nn.functional.one_hot(votes).sum(1)
        # The votes are sorted by distance, and argmax takes the first of equal counts.
        first = counts.gather(1, votes).argmax(1, keepdim=True)
        found.append(votes.gather(1, first).flatten())
    return torch.cat(found)
