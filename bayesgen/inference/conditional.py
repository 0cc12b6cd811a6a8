"""Densities of the coordinates that are in no Gaussian block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesgen.gaussian_blocks import GaussianBlocks
from bayesgen.inference.gaussian_draws import BlockSystem
from bayesgen.inference.standardised import Standardised


class Rest:
    """A density of the coordinates that are in no block, at given points of all coordinates."""

    def __init__(self, density: Standardised, blocks: GaussianBlocks, position: Tensor) -> None:
        self.num_dims = len(blocks.rest)
        self._density, self._rest, self._position = density, blocks.rest, position

    def complete(self, w: Tensor) -> Tensor:
        """The points with the rest at ``w``."""
        return self._position.index_copy(-1, self._rest, w)

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    @property
    def normal_prior(self) -> tuple[Tensor, Tensor]:
        """See `bayesgen.inference.standardised.Standardised`."""
        mean, precision = self._density.normal_prior
        return mean[..., self._rest], precision[..., self._rest]


class Given(Rest):
    """The rest given the blocks."""

    @property
    def takes_where(self) -> bool:
        return self._density.takes_where

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        value, gradient = self._density.value_and_grad(self.complete(v), **options)
        return value, gradient[..., self._rest]


class Integrated(Rest):
    """The rest with the block integrated out, given the variances of Laplace coordinates.

    As B is constant, the integral over s is the largest value over s, up to a constant; and there
    the gradient is that at fixed s.
    """

    takes_where = False

    def __init__(
        self, density: Standardised, blocks: GaussianBlocks, position: Tensor, system: BlockSystem
    ) -> None:
        super().__init__(density, blocks, position)
        self._system = system

    def value_and_grad(
        self, v: Tensor, *, jacobian: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        position, system = self.complete(v), self._system
        units = self._density.units(position)
        point, zero = position * units, torch.zeros_like(system.widths)
        found = system.minimise(point, system.block.residual(point, zero))
        value, gradient = system.block.value_and_grad(point, system.widths * found.s)
        self._density.count += 1 + found.steps
        return value - 0.5 * found.s.square().sum(-1), (gradient * units)[..., self._rest]
