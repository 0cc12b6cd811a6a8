"""Magnitudes without phases: phase retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.operators.base import Operator, Selection
from bayesgen.operators.fourier import Fourier
from bayesgen.operators.inputs import as_shape
from bayesgen.operators.matrix import GaussianMatrix, Matrix


class PhaseRetrieval(Operator):
    r"""Magnitudes of the complex data of a linear operator.

    .. math:: A(x) = |B x|^p

    It is not linear, and images that differ in the sign (of complex ones, the phase) of all pixels
    have the same data. Where :math:`B x` is zero, the derivative is taken as zero, also for
    :math:`p = 1`.

    Parameters
    ----------
    operator
        Linear, with data that end in an axis of real and imaginary part, like those of `Fourier`.
    power
        2 for intensities, what a detector counts; 1 for amplitudes, whose errors under photon noise
        have the same size everywhere.

    Raises
    ------
    OptionError
        If the operator is not linear or the power another.
    ShapeError
        If the data do not end in an axis of two after at least one other.

    References
    ----------
    Shechtman et al. (2015), Phase retrieval with application to optical imaging. Hand, Leong and
    Voroninski (2018), Phase retrieval under a generative prior.

    Examples
    --------
    >>> A = PhaseRetrieval.gaussian((28, 28), rows=300, seed=0)
    >>> x = torch.ones(28, 28)
    >>> A.range_shape, torch.equal(A(x), A(-x))
    ((300,), True)
    >>> PhaseRetrieval.fourier((28, 28), power=1).range_shape
    (56, 56)
    """

    linear = False

    def __init__(self, operator: Operator, *, power: int = 2) -> None:
        if not operator.linear:
            raise OptionError(f"operator: expected a linear one, got {operator}")
        if len(operator.range_shape) < 2 or operator.range_shape[-1] != 2:
            raise ShapeError(
                "operator: its data must end in an axis of real and imaginary part, (..., 2), got "
                f"the range {operator.range_shape} of {operator}"
            )
        if power not in (1, 2):
            raise OptionError(f"power: expected 1 or 2, got {power!r}")
        super().__init__(operator.domain_shape, operator.range_shape[:-1])
        self.operator = operator
        self.power = power

    @staticmethod
    def gaussian(
        domain_shape: Sequence[int],
        rows: int,
        *,
        power: int = 2,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> PhaseRetrieval:
        """Of a matrix of independent complex normal entries, with real images.

        Parameters
        ----------
        domain_shape
            Shape of the image.
        rows
            Number of measurements. The mean squared magnitude of an entry is ``1 / rows``, with
            which the expected sum of the intensities is the squared norm of the image.
        power
            As above.
        seed, dtype
            As for `GaussianMatrix`.

        Raises
        ------
        OptionError
            If ``rows`` is not a positive integer.
        """
        if not isinstance(rows, int) or rows < 1:
            raise OptionError(f"rows: expected a positive integer, got {rows!r}")
        parts = GaussianMatrix(domain_shape, 2 * rows, seed=seed, dtype=dtype).matrix
        return PhaseRetrieval(Matrix(parts, domain_shape, (rows, 2)), power=power)

    @staticmethod
    def fourier(
        domain_shape: Sequence[int], *, oversampling: float = 2, power: int = 2
    ) -> PhaseRetrieval:
        """Of the Fourier transform of the image in a dark frame: coherent diffraction imaging.

        The transform is orthonormal, with the frequency zero at index ``n // 2``. Shifts of the
        image in its frame and its inversion through the origin cannot be told from the data.

        Parameters
        ----------
        domain_shape
            ``(y, x)`` for real images, ``(2, y, x)`` for the two parts of complex ones.
        oversampling
            Side of the frame relative to that of the image, at least 1. The default, 2, samples
            the intensities finely enough to know the image's autocorrelation.
        power
            As above.

        Raises
        ------
        ShapeError
            If the domain is not that of such an image.
        OptionError
            If the oversampling is less than 1.
        """
        if not (math.isfinite(oversampling) and oversampling >= 1):
            raise OptionError(f"oversampling: expected a number of at least 1, got {oversampling}")
        shape = as_shape("domain_shape", domain_shape)
        sides = [round(oversampling * n) for n in shape[-2:]]
        transform = Fourier((*shape[:-2], *sides))
        places = torch.arange(math.prod(transform.domain_shape)).reshape(transform.domain_shape)
        for axis, n in enumerate(shape):
            # The middle pixel stays in the middle.
            places = places.narrow(axis, places.shape[axis] // 2 - n // 2, n)
        frame = Selection(transform.domain_shape, places).T
        return PhaseRetrieval(transform @ frame, power=power)

    def _forward(self, x: Tensor) -> Tensor:
        intensity = self.operator._forward(x).square().sum(-1)
        return intensity if self.power == 2 else _safe_sqrt(intensity)

    def _select(self, indices: Tensor) -> Operator:
        pairs = torch.stack([2 * indices, 2 * indices + 1], -1)
        return PhaseRetrieval(self.operator._select(pairs), power=self.power)

    def _get_name(self) -> str:
        return f"|{self.operator}|" if self.power == 1 else f"|{self.operator}|^2"


def _safe_sqrt(values: Tensor) -> Tensor:
    """Square root; zero, with all its derivatives, where its derivative would overflow."""
    usable = values >= torch.finfo(values.dtype).tiny
    return torch.where(usable, torch.where(usable, values, 1.0).sqrt(), 0.0)
