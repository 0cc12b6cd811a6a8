"""Forward operators: what maps an image to its data."""

from __future__ import annotations

from bayesgen.operators.base import Adjoint, Composition, Operator, Scaled, Selection
from bayesgen.operators.blur import Blur, gaussian_kernel
from bayesgen.operators.checks import OperatorReport, check_operator
from bayesgen.operators.identity import Identity
from bayesgen.operators.mask import Mask
from bayesgen.operators.matrix import GaussianMatrix, Matrix

__all__ = [
    "Operator",
    "Identity",
    "Matrix",
    "GaussianMatrix",
    "Mask",
    "Blur",
    "gaussian_kernel",
    "Adjoint",
    "Composition",
    "Scaled",
    "Selection",
    "check_operator",
    "OperatorReport",
]
