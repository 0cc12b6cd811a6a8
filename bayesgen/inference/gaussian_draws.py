"""Exact draws of the sites of a `bayesgen.gaussian_blocks.GaussianBlock`, given all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bayesgen.gaussian_blocks import Factor, GaussianBlock, cholesky_factor
from bayesgen.inference.hmc import _like
from bayesgen.numerics import conjugate_gradient

# Unknowns up to which systems are factorised: in every step, or once where nothing changes them.
_MOST_EACH, _MOST_ONCE = 256, 2048


def laplace_variances(c: Tensor, rng: torch.Generator) -> Tensor:
    r"""Variances t given c, where c is a standard Laplace variable: a normal one of variance t.

    With :math:`t \sim \mathrm{Exp}(1/2)` and :math:`c | t \sim N(0, t)`, c has density
    :math:`e^{-|c|} / 2`, and :math:`1 / t` given c is inverse Gaussian with mean :math:`1 / |c|`
    and shape 1. It is drawn as one of the two roots of a quadratic equation, written for t, where
    nothing cancels and c may be zero.

    References
    ----------
    Park and Casella (2008), The Bayesian lasso, section 2; Michael, Schucany and Haas (1976),
    Generating random variates using transformations with multiple roots.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> t = laplace_variances(torch.full((100_000,), 3.0), rng)
    >>> abs(float(t.mean()) - 4.0) < 0.05  # exact: |c| + 1
    True
    """
    size, chi = c.abs(), _like(torch.randn, c, rng).square()
    root = size + 0.5 * chi + (size * chi + 0.25 * chi.square()).sqrt()
    # Rounding may make it zero where c is.
    root = root.clamp(min=torch.finfo(c.dtype).tiny)
    first = _like(torch.rand, c, rng) * (root + size) < root
    return torch.where(first, root, size * (size / root))


class Solution(NamedTuple):
    """A minimiser and what it took.

    Attributes
    ----------
    s
        ``(*problems, chains, k)``.
    steps
        Conjugate-gradient steps; 0 where the system was factorised.
    residual
        Relative residual that is left, ``(*problems, chains)``.
    """

    s: Tensor
    steps: int
    residual: Tensor


@dataclass(frozen=True, eq=False)
class BlockSystem:
    r"""Least-squares problems :math:`\min_s |s + e|^2 + |B D s + r|^2`, D = diag(widths).

    Attributes
    ----------
    block
        B belongs to it.
    widths
        Standard deviations of c = D s, ``(*problems, chains, k)``: 1, or of Laplace coordinates
        the square roots of their variances.
    factor
        See `bayesgen.gaussian_blocks.cholesky_factor`; None if systems are solved by conjugate
        gradients.
    max_steps
        Of conjugate gradients.
    """

    block: GaussianBlock
    widths: Tensor
    factor: Factor | None
    max_steps: int

    @classmethod
    def of(cls, block: GaussianBlock, variances: Tensor, max_steps: int) -> BlockSystem:
        """The system for variances ``(*problems, chains, k)`` of the Laplace coordinates."""
        widths = torch.where(block.mixed, variances.sqrt(), 1.0)
        factor = None
        if is_factorised(block) and block.matrix is not None:
            mixed = bool(block.mixed.any())
            factor = cholesky_factor(block.matrix, widths) if mixed else block.factor
        return cls(block, widths, factor, max_steps)

    def minimise(self, v: Tensor, r: Tensor, e: Tensor | None = None) -> Solution:
        """The minimiser for points ``v`` ``(*problems, chains, n)``; e = 0 by default."""
        r = r if e is None else r - self._forward(v, e)
        steps, residual = 0, r.new_zeros(r.shape[:-1])
        if self.factor is None:

            def normal_matrix(s: Tensor) -> Tensor:
                nonlocal steps
                steps += 1
                return s + self._adjoint(v, self._forward(v, s))

            s, residual = conjugate_gradient(
                normal_matrix,
                -self._adjoint(v, r),
                event_dims=1,
                tolerance=max(1e-10, 100 * torch.finfo(r.dtype).eps),
                max_steps=self.max_steps,
            )
        elif self.factor.of_rows:
            s = -self._adjoint(v, self._solve(r))
        else:
            s = -self._solve(self._adjoint(v, r))
        return Solution(s if e is None else s - e, steps, residual)

    def draw(self, v: Tensor, r: Tensor, rng: torch.Generator) -> Solution:
        """A draw of c = D s given the other sites and the variances, in ``s``."""
        e = _like(torch.randn, self.widths, rng)
        found = self.minimise(v, r + _like(torch.randn, r, rng), e)
        return found._replace(s=self.widths * found.s)

    def _forward(self, v: Tensor, s: Tensor) -> Tensor:
        c, matrix = self.widths * s, self.block.matrix
        return self.block.forward(v, c) if matrix is None else c @ matrix.mT

    def _adjoint(self, v: Tensor, y: Tensor) -> Tensor:
        matrix = self.block.matrix
        return self.widths * (self.block.adjoint(v, y) if matrix is None else y @ matrix)

    def _solve(self, b: Tensor) -> Tensor:
        assert self.factor is not None
        return torch.cholesky_solve(b.double().unsqueeze(-1), self.factor.lower).squeeze(-1).to(b)


def is_factorised(block: GaussianBlock) -> bool:
    """Whether the systems of a block are factorised."""
    if block.matrix is None:
        return False
    most = _MOST_EACH if bool(block.mixed.any()) else _MOST_ONCE
    # Zero rows: nothing depends on the block.
    return 0 < min(block.matrix.shape[-2:]) <= most
