"""Forward operators: what maps an image to its data."""

from __future__ import annotations

from bayesgen.operators.base import (
    Adjoint,
    Composition,
    Derivative,
    Operator,
    Scaled,
    Selection,
    Sum,
)
from bayesgen.operators.blur import Blur, gaussian_kernel
from bayesgen.operators.checks import OperatorReport, check_operator
from bayesgen.operators.convolution import Convolution
from bayesgen.operators.deepinv_adapter import from_deepinv
from bayesgen.operators.downsample import Downsample
from bayesgen.operators.fourier import Fourier
from bayesgen.operators.function import Function, Nonlinear, from_function
from bayesgen.operators.gradient import Gradient
from bayesgen.operators.identity import Identity
from bayesgen.operators.mask import Mask
from bayesgen.operators.matrix import GaussianMatrix, Matrix
from bayesgen.operators.mri import birdcage_sensitivities, cartesian_mask
from bayesgen.operators.odl_adapter import from_odl, to_odl
from bayesgen.operators.phase import PhaseRetrieval
from bayesgen.operators.radon import Radon
from bayesgen.operators.scipy_adapter import from_scipy, to_scipy
from bayesgen.operators.sparse import SparseMatrix
from bayesgen.operators.stack import Stack

__all__ = [
    "Operator",
    "Identity",
    "Matrix",
    "GaussianMatrix",
    "SparseMatrix",
    "Mask",
    "Blur",
    "gaussian_kernel",
    "Convolution",
    "Downsample",
    "Gradient",
    "Radon",
    "Fourier",
    "cartesian_mask",
    "birdcage_sensitivities",
    "PhaseRetrieval",
    "Nonlinear",
    "from_function",
    "from_scipy",
    "from_odl",
    "from_deepinv",
    "to_scipy",
    "to_odl",
    "Function",
    "Stack",
    "Adjoint",
    "Composition",
    "Derivative",
    "Scaled",
    "Selection",
    "Sum",
    "check_operator",
    "OperatorReport",
]
