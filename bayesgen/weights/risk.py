"""Stein's unbiased risk estimates: the error, without the truth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesgen.datasets.draws import seeded
from bayesgen.numerics import iteration_tolerance
from bayesgen.operators import Operator
from bayesgen.operators.inputs import as_positive
from bayesgen.reconstruction import tikhonov
from bayesgen.types import check_count
from bayesgen.weights.choice import (
    Choice,
    Estimator,
    as_data,
    as_weights,
    check_problem,
    image_at,
    least,
    misfit,
    squared_norm,
)


def sure(
    estimate: Estimator,
    A: Operator,
    y: Tensor,
    sigma: float,
    weights: Any,
    *,
    probes: int = 1,
    seed: int = 0,
) -> Choice:
    r"""Choose the weight of least estimated error of the predicted data.

    .. math::
        \mathrm{SURE}(w) = \|A x_w(y) - y\|^2 - m \sigma^2
            + 2 \sigma^2 \operatorname{div}_y A x_w(y),

    whose expectation over Gaussian noise is that of :math:`\|A x_w(y) - A x\|^2`. The divergence
    is the mean over probes b, of independent signs, of :math:`b^T (A x_w(y + h b) - A x_w(y)) / h`.

    Parameters
    ----------
    estimate
        ``(y, weight) -> image``; with the same seed for all data and weights if it is random, or
        its own randomness goes into the difference.
    A
        The forward operator, linear or not.
    y
        One data set, ``range_shape``.
    sigma
        Standard deviation of the noise: independent, Gaussian, the same for all data.
    weights
        Positive and increasing.
    probes
        The same for all weights, so that their error is much the same and the minimum is hardly
        moved. Each costs an estimate a weight; for large images one is enough.
    seed
        Of the probes. The global random state is neither read nor changed.

    Returns
    -------
    Choice
        Its values are risks, of all data together; being estimates, they may be negative.

    Raises
    ------
    OptionError
        If sigma, the weights, ``probes`` or the seed is not allowed.
    ShapeError, DtypeError, DataError
        If the data or an image that the estimator returns cannot be used.

    Warns
    -----
    RuntimeWarning
        If the least value is at an end of the weights.

    Notes
    -----
    The step h balances the error of iterative solvers, :math:`\varepsilon |y| / h` with
    :math:`\varepsilon` their relative tolerance (6e-6 in single, 1e-8 in double precision) and
    :math:`|y|` the size of an entry, against that of the difference, which over signs is of order
    :math:`(h / \sigma)^2` if the estimate is smooth on the scale of the noise:
    :math:`h^3 = \varepsilon |y| \sigma^2`. An estimator solved more roughly than that needs more
    probes.

    References
    ----------
    Stein (1981), Estimation of the mean of a multivariate normal distribution; Ramani et al.
    (2008), Monte-Carlo SURE: a black-box optimization of regularization parameters for general
    denoising algorithms; Hutchinson (1989), on signs.

    Examples
    --------
    >>> import bayesgen as bg
    >>> A, y = bg.operators.Identity((4,)), torch.tensor([3.0, -1.0, 1.0, 5.0])
    >>> ridge = lambda y, weight: bg.reconstruction.tikhonov(A, y, weight)
    >>> found = sure(ridge, A, y, 1.0, [0.01, 0.1, 1.0, 10.0])
    >>> found.weight, [round(value, 1) for value in found.values.tolist()]
    (0.1, [3.9, 3.6, 9.0, 26.5])
    """
    check_problem(estimate, A)
    y, sigma, grid = as_data(A, y), as_positive("sigma", sigma), as_weights(weights)
    signs, step = _signs(y, probes, seed), _step(y, sigma)
    images, values = [], []
    for weight in grid:
        image = image_at(estimate, A, y, weight)
        changes = _changes(estimate, A, y, weight, image, signs, step)
        with torch.no_grad():
            divergence = _mean_product(signs, [A(image + c) - A(image) for c in changes]) / step
        images.append(image)
        values.append(misfit(A, image, y) - y.numel() * sigma**2 + 2 * sigma**2 * divergence)
    return least("sure", "SURE, estimate of |A (x_w - x)|^2", grid, values, images)


def gsure(
    estimate: Estimator,
    A: Operator,
    y: Tensor,
    sigma: float,
    weights: Any,
    *,
    probes: int = 1,
    seed: int = 0,
    damping: float | None = None,
) -> Choice:
    r"""Choose the weight of least estimated error of the image, in what the operator sees of it.

    With :math:`P = A^+ A`, the projection onto the row space of A,

    .. math::
        \mathrm{GSURE}(w) = \|P x_w(y)\|^2 - 2 x_w(y)^T A^+ y
            + 2 \sigma^2 \operatorname{div}_y (A^+)^T x_w(y),

    whose expectation is that of :math:`\|P (x_w(y) - x)\|^2` less :math:`\|P x\|^2`, which no
    weight changes. To the image's error `sure` is blind where singular values are small; this is
    not, except where they are zero. The divergence is that of `sure`, with
    :math:`(A^+ b)^T (x_w(y + h b) - x_w(y)) / h`.

    Parameters
    ----------
    estimate, y, sigma, weights, probes, seed
        As for `sure`.
    A
        A linear forward operator.
    damping
        Where A is ill-conditioned, :math:`A^+ y` is all noise. So :math:`A^+` is replaced by
        :math:`B = (A^T A + \delta \|A\|^2 I)^{-1} A^T`, by conjugate gradients, P by B A and
        :math:`A^+ y` by B A B y: GSURE then is as unbiased for the error
        :math:`\|B A (x_w - x)\|^2`, in which singular values below :math:`\sqrt\delta \|A\|` no
        longer count. The default, the square root of the solver's tolerance, is the smallest with
        which B is as accurate as that square root: 2e-3 in single, 1e-4 in double precision.

    Returns
    -------
    Choice
        Its values are risks less the constant, which makes most of them negative.

    Raises
    ------
    OptionError
        If the operator is not linear, or an option is not allowed.
    ShapeError, DtypeError, DataError
        If the data or an image that the estimator returns cannot be used.

    Warns
    -----
    RuntimeWarning
        If the least value is at an end of the weights, or conjugate gradients do not converge.

    References
    ----------
    Eldar (2009), Generalized SURE for exponential families: applications to regularization;
    Giryes, Elad and Eldar (2011), The projected GSURE for automatic parameter tuning in iterative
    shrinkage methods.

    Examples
    --------
    >>> import bayesgen as bg
    >>> A = bg.operators.Matrix(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    >>> ridge = lambda y, weight: bg.reconstruction.tikhonov(A, y, weight)
    >>> gsure(ridge, A, torch.tensor([1.0, 0.6]), 0.3, [0.01, 0.1, 1.0]).weight
    0.1
    """
    check_problem(estimate, A)
    A._require_linear("gsure")
    y, sigma, grid = as_data(A, y), as_positive("sigma", sigma), as_weights(weights)
    damping = iteration_tolerance(y.dtype) ** 0.5 if damping is None else damping
    shift = as_positive("damping", damping) * (A.norm() or 1.0) ** 2
    signs, step = _signs(y, probes, seed), _step(y, sigma)
    with torch.no_grad():
        # Once for all weights: B A B of the data and of each probe.
        once = tikhonov(A, torch.stack([y, *signs]), shift)
        seen, *directions = tikhonov(A, A(once), shift)
    images, values = [], []
    for weight in grid:
        image = image_at(estimate, A, y, weight)
        changes = _changes(estimate, A, y, weight, image, signs, step)
        divergence = _mean_product(directions, changes) / step
        with torch.no_grad():
            size = squared_norm(tikhonov(A, A(image), shift))
        inner = _mean_product([image], [seen])
        images.append(image)
        values.append(size - 2 * inner + 2 * sigma**2 * divergence)
    return least("gsure", "GSURE, estimate of |P (x_w - x)|^2 - |P x|^2", grid, values, images)


def _signs(y: Tensor, probes: int, seed: int) -> list[Tensor]:
    """Probes like the data, drawn on the CPU, so that they are the same on every device."""
    check_count("probes", probes)
    drawn = torch.randint(0, 2, (probes, *y.shape), generator=seeded(seed))
    return list((2 * drawn - 1).to(y))


def _step(y: Tensor, sigma: float) -> float:
    size = max(float(y.double().square().mean()) ** 0.5, sigma)
    return float((iteration_tolerance(y.dtype) * size * sigma**2) ** (1 / 3))


def _changes(
    estimate: Estimator,
    A: Operator,
    y: Tensor,
    weight: float,
    image: Tensor,
    signs: list[Tensor],
    step: float,
) -> list[Tensor]:
    """How the estimate changes with the data, for each probe."""
    return [image_at(estimate, A, y + step * sign, weight) - image for sign in signs]


def _mean_product(first: list[Tensor], second: list[Tensor]) -> float:
    """Mean of the inner products of pairs."""
    products = [(a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)]
    return float(torch.stack(products).mean())
