"""Missing pixels: inpainting."""

from __future__ import annotations

from typing import Any

import torch

from bayesgen.errors import DtypeError, OptionError
from bayesgen.operators.base import Selection
from bayesgen.operators.inputs import as_constant


class Mask(Selection):
    """Keep the pixels where ``mask`` is true, in raster order, as a flat vector.

    The adjoint puts the values back and zeros elsewhere.

    Parameters
    ----------
    mask
        Boolean tensor or array in the shape of the image.

    Raises
    ------
    DtypeError
        If it is not boolean.
    OptionError
        If it keeps no pixel.

    Examples
    --------
    >>> A = Mask([[True, False], [False, True]])
    >>> A(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([1., 4.])
    >>> A.adjoint(torch.tensor([1.0, 4.0]))
    tensor([[1., 0.],
            [0., 4.]])
    """

    def __init__(self, mask: Any) -> None:
        mask = as_constant("mask", mask)
        if mask.dtype != torch.bool:
            raise DtypeError(
                f"mask: expected booleans, got {mask.dtype}; compare first, as in mask > 0.5"
            )
        if not mask.any():
            raise OptionError(f"mask: keeps none of the pixels of shape {tuple(mask.shape)}")
        super().__init__(mask.shape, mask.flatten().nonzero().flatten())
