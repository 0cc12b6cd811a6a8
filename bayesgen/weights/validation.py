"""Weights by validation: the error itself, on images that are like the one sought."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesgen.datasets.draws import seeded
from bayesgen.errors import OptionError, ShapeError, unknown_option
from bayesgen.operators import Operator
from bayesgen.operators.inputs import as_positive, require_finite
from bayesgen.weights.choice import Choice, Estimator, as_weights, check_problem, image_at, least

_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda difference: difference.square().mean(),
    "mae": lambda difference: difference.abs().mean(),
}


def validation(
    estimate: Estimator,
    A: Operator,
    images: Tensor,
    sigma: float,
    weights: Any,
    *,
    seed: int = 0,
    error: str = "mse",
) -> Choice:
    """Choose the weight of least mean error over validation images.

    Data are simulated once, each image's with noise of its own, and all weights see the same.

    Parameters
    ----------
    estimate
        ``(y, weight) -> image``.
    A
        The forward operator, linear or not.
    images
        ``(N, *domain_shape)``, like the images sought and none of those that are tested on. Every
        one costs an estimate a weight; the papers take twenty.
    sigma
        Standard deviation of the noise.
    weights
        Positive and increasing.
    seed
        Of the noise. The global random state is neither read nor changed.
    error
        ``"mse"``, the mean squared error of a pixel, or ``"mae"``, the mean absolute error, on
        which few large errors weigh less.

    Returns
    -------
    Choice
        Its values are mean errors; there is no image.

    Raises
    ------
    OptionError
        If sigma, the weights, the seed or the error is not allowed.
    ShapeError, DtypeError, DataError
        If the images, or one that the estimator returns, cannot be used.

    Warns
    -----
    RuntimeWarning
        If the least error is at an end of the weights.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models.

    Examples
    --------
    >>> import bayesgen as bg
    >>> A = bg.operators.Identity((50,))
    >>> images = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    >>> ridge = lambda y, weight: bg.reconstruction.tikhonov(A, y, weight)
    >>> validation(ridge, A, images, 0.5, [0.01, 0.05, 0.25, 1.25]).weight  # exact: sigma^2
    0.25
    """
    check_problem(estimate, A)
    images, sigma, grid = _as_images(A, images), as_positive("sigma", sigma), as_weights(weights)
    if error not in _ERRORS:
        raise OptionError(unknown_option("error", error, _ERRORS))
    rng = seeded(seed)
    with torch.no_grad():
        clean = A(images)
        # Drawn on the CPU in double precision: the same noise on every device and in every dtype.
        noise = torch.randn(clean.shape, generator=rng, dtype=torch.float64)
        data = clean + sigma * noise.to(clean)
    values = []
    for weight in grid:
        errors = [
            _ERRORS[error](image_at(estimate, A, y, weight).double() - image.double())
            for y, image in zip(data, images, strict=True)
        ]
        values.append(float(torch.stack(errors).mean()))
    return least("validation", f"mean {error} of {len(images)} images", grid, values)


def _as_images(A: Operator, images: Any) -> Tensor:
    A._check("images", images, A.domain_shape)
    if images.ndim != len(A.domain_shape) + 1 or len(images) == 0:
        wanted = ", ".join(["N", *map(str, A.domain_shape)])
        raise ShapeError(
            f"images: expected shape ({wanted}) with N at least 1, got {tuple(images.shape)}"
        )
    require_finite("images", images)
    checked: Tensor = images.detach()
    return checked
