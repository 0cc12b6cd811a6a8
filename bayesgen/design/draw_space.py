"""Gaussian conditioning in the space of draws, where no covariance of all data is ever formed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bayesgen.errors import OptionError

# Numbers in an intermediate tensor: so many stay in the cache, and more are slower.
_MOST = 2**16

# Variances beside which double precision sees of an identity six digits at least.
_LARGE = 1e10


class DrawSpace:
    r"""Covariances of blocks of data as products of a factor, conditioned block after block.

    With F the centred draws over sqrt(S - 1), in units of the noise, the data of candidate a have
    the covariance :math:`F_a^T F_a`. Measuring a turns every covariance :math:`F_b^T F_c` into

    .. math:: F_b^T (I + F_a F_a^T)^{-1} F_c,

    so it is enough to multiply F by the root of an S x S matrix that differs from the identity by
    the rank of one block: a pivoted Cholesky factorisation of the covariance of all data, exact,
    with S n q numbers. Nothing is subtracted from variances, which therefore stay accurate.

    Parameters
    ----------
    blocks
        The factor, ``(S, n, q)``.
    goal
        Centred draws over sqrt(S - 1) of something else that the data tell of, ``(S, k)``.

    Raises
    ------
    OptionError
        If the noise is so small that squares in units of it overflow.

    References
    ----------
    Chen, Zhang and Zhou (2018), *Fast greedy MAP inference for determinantal point process*, whose
    incremental Cholesky factorisation this is for one number a candidate.
    """

    def __init__(self, blocks: Tensor, goal: Tensor | None = None) -> None:
        blocks = compressed(blocks)
        self.num_draws, self.num_candidates, self.size = blocks.shape
        self.factor = blocks.reshape(self.num_draws, -1)
        # Only products between draws matter, which as many numbers as draws have.
        self.goal = None if goal is None else compressed(goal[:, None])[:, 0]
        # Where columns are as good as determined.
        self.nothing = float(self.factor.square().sum(0).max()) ** 0.5
        if not math.isfinite(self.nothing):
            raise OptionError(
                "noise: in units of it the variance of the draws overflows "
                f"{self.factor.dtype}; give a larger one, or all in double precision"
            )
        self.nothing *= self.num_draws * torch.finfo(self.factor.dtype).eps

    def variances(self) -> Tensor:
        """Trace of each block's covariance, ``(n,)``."""
        return self.factor.square().sum(0).reshape(-1, self.size).sum(-1)

    def log_determinants(self) -> Tensor:
        r""":math:`\frac12 \log\det(I + F_a^T F_a)` of each block, ``(n,)``: nats of information."""
        if self.size == 1:
            return 0.5 * self.factor.square().sum(0).log1p()
        roots = (_root(block).diagonal(dim1=-2, dim2=-1) for block in self._blocks())
        return torch.cat([d.abs().log().sum(-1) for d in roots]).to(self.factor)

    def goal_reductions(self) -> Tensor:
        r"""Fall of the goal's total variance by each block, ``(n,)``.

        With G the goal's factor it is the trace of
        :math:`G^T F_a (I + F_a^T F_a)^{-1} F_a^T G`.
        """
        assert self.goal is not None
        if self.size == 1:
            # Divided before it is squared, which might overflow.
            root = (1.0 + self.factor.square().sum(0)).sqrt()
            return (self.goal.T @ self.factor / root).square().sum(0)
        parts = []
        for block in self._blocks():
            cross = block.double() @ self.goal.double()
            solved = torch.linalg.solve_triangular(_root(block), cross, upper=False)
            parts.append(solved.square().sum((-2, -1)))
        return torch.cat(parts).to(self.factor)

    def condition(self, index: int, *, exact: bool = False) -> None:
        """Measure a block: with noise of variance one, or ``exact``, without any."""
        start = index * self.size
        block = self.factor[:, start : start + self.size]
        contract = contraction(block, self.nothing if exact else None)
        self.factor = contract(self.factor)
        if self.goal is not None:
            self.goal = contract(self.goal)

    def _blocks(self) -> Iterator[Tensor]:
        """A number of blocks at a time, ``(*, q, S)``."""
        blocks = self.factor.reshape(self.num_draws, -1, self.size).permute(1, 2, 0)
        yield from in_pieces(blocks, self.size * max(self.size, self.num_draws))


def contraction(block: Tensor, nothing: float | None = None) -> Callable[[Tensor], Tensor]:
    """Multiplication of any ``(S, k)`` by the root of :math:`(I + F_a F_a^T)^{-1}`.

    Parameters
    ----------
    block
        The factor of what is measured, ``(S, q)``.
    nothing
        If given, there is no noise, and the root is the projection on what the block leaves open;
        singular values up to this one are taken for zero.
    """
    directions, singular, _ = torch.linalg.svd(block, full_matrices=False)
    if nothing is None:
        # 1 - 1 / sqrt(1 + s^2) without cancellation.
        root = singular.hypot(torch.ones_like(singular))
        shrink = singular / root * (singular / (1.0 + root))
    else:
        shrink = (singular > nothing).to(block)
    return lambda matrix: matrix - directions @ (shrink[:, None] * (directions.T @ matrix))


def _root(block: Tensor) -> Tensor:
    """L with L L^T = I + F^T F, from F^T ``(*, q, S)``: lower triangular, in double precision.

    Its diagonal may be negative.
    """
    rows = block.double()
    identity = torch.eye(block.shape[-2], dtype=rows.dtype, device=block.device)
    gram = identity + rows @ rows.mT
    if float(gram.max()) < _LARGE:
        return torch.linalg.cholesky(gram)
    # The square would hide the identity, on which all depends where F lacks full rank.
    stacked = torch.cat([rows.mT, identity.expand_as(gram)], dim=-2)
    return torch.linalg.qr(stacked, mode="r").R.mT


def in_pieces(rows: Tensor, numbers: int) -> Iterator[Tensor]:
    """Some rows at a time, where one row needs that many numbers of memory."""
    yield from rows.split(max(1, _MOST // max(numbers, 1)))


def compressed(blocks: Tensor) -> Tensor:
    """Blocks ``(S, n, q)`` with the same products between draws and q at most S."""
    num_draws, _, size = blocks.shape
    if size <= num_draws:
        return blocks
    pieces = in_pieces(blocks.permute(1, 2, 0), size * num_draws)
    return torch.cat([torch.linalg.qr(piece, mode="r").R for piece in pieces]).permute(2, 0, 1)


def best_shrinkage(factor: Tensor) -> float:
    r"""How far to shrink a sample covariance towards its diagonal, estimated from the draws.

    .. math:: \rho = \sum_{i \ne j} \mathrm{Var}(c_{ij}) \Big/ \sum_{i \ne j} c_{ij}^2

    of least expected squared error. The draws must be independent, or nearly so.

    Parameters
    ----------
    factor
        Centred draws over sqrt(S - 1), ``(S, p)``.

    Returns
    -------
    float
        Between 0 and 1.

    References
    ----------
    Schäfer and Strimmer (2005), *A shrinkage approach to large-scale covariance matrix estimation*,
    target D on the scale of covariances.

    Examples
    --------
    >>> draws = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0)).cumsum(1)
    >>> best_shrinkage((draws - draws.mean(0)) / 9_999**0.5) < 0.001
    True
    """
    x = factor.double()
    num = len(x)
    products = (x @ x.T).square().sum() - x.square().sum(0).square().sum()
    fourth = x.square().sum(1).square().sum() - x.pow(4).sum()
    # Sums over draws of squared deviations of the products x_i x_j from their mean over draws.
    deviations = fourth - products / num
    spread = num / (num - 1) * deviations
    return float((spread / products).clamp(0.0, 1.0)) if float(products) > 0 else 1.0
