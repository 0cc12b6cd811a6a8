"""The identity: the image itself is measured, as in denoising."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bayesgen.operators.base import Operator


class Identity(Operator):
    """``A(x) = x``.

    Parameters
    ----------
    domain_shape
        Shape of the image.

    Examples
    --------
    >>> import torch
    >>> Identity((28, 28))(torch.zeros(3, 28, 28)).shape
    torch.Size([3, 28, 28])
    """

    def __init__(self, domain_shape: Sequence[int]) -> None:
        super().__init__(domain_shape, domain_shape)

    def _forward(self, x: Tensor) -> Tensor:
        # A view, for torch refuses functions with a rule of their own that return their argument.
        return x.view_as(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.view_as(y)

    def _norm(self) -> float:
        return 1.0
