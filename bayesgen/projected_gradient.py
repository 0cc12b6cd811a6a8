r"""Projected gradient descent onto the range of a generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError
from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import prior_moments, rows_at_once
from bayesgen.models.evaluation.least_squares import LatentProblem, levenberg_marquardt
from bayesgen.operators import Operator
from bayesgen.operators.inputs import require_finite
from bayesgen.starts import check_problem, nearest_draws
from bayesgen.types import check_count, check_positive

# Halvings of a step in a row after which rounding, not the step, is what is left.
_MOST_HALVINGS = 20


class ProjectedGradient(NamedTuple):
    """Images in the range of a generator that fit data.

    Attributes
    ----------
    image
        G(z), ``(*batch, *image_shape)``.
    latent
        z, ``(*batch, latent_dim)``.
    misfit
        \\|A G(z) - y\\|, ``(*batch,)``.
    num_iterations
        Gradient steps taken from the start that led there, ``(*batch,)``.
    converged
        Whether the gradient fell below the tolerance, ``(*batch,)``. What was found is a local
        minimum.
    """

    image: Tensor
    latent: Tensor
    misfit: Tensor
    num_iterations: Tensor
    converged: Tensor


def projected_gradient(
    G: Generator,
    A: Operator,
    y: Tensor,
    *,
    start: Tensor | None = None,
    step: float | None = None,
    max_iterations: int = 500,
    projection_iterations: int = 3,
    tolerance: float = 1e-3,
    restarts: int = 4,
    seed: int = 0,
) -> ProjectedGradient:
    r"""Minimise :math:`\|A x - y\|^2` over the images in the range of a generator.

    .. math:: w_k = x_k - t A^* (A x_k - y), \qquad
        z_{k+1} = \arg\min_z \|G(z) - w_k\|^2, \qquad x_{k+1} = G(z_{k+1})

    The projection starts from :math:`z_k` and is a few Levenberg-Marquardt iterations, for all
    problems and restarts at once. There is no prior on z: use it where the data determine it.

    Parameters
    ----------
    G
        The generator. An iteration computes all columns of its Jacobian: meant for some tens of
        latent dimensions.
    A
        The forward operator; it need not be linear.
    y
        Data, ``(*batch, *range_shape)``.
    start
        Latent vectors, ``(*batch, latent_dim)`` or, for several starts a problem,
        ``(*batch, K, latent_dim)``; no others are tried.
    step
        t to begin with; default :math:`1 / \|A\|^2`, of an operator that is not linear with the
        norm of its derivative at the start.
    max_iterations
        Gradient steps at most, refused ones included.
    projection_iterations
        Levenberg-Marquardt iterations of each projection at most.
    tolerance
        A problem has converged when the gradient of
        :math:`\|A G(z) - y\|^2 / (\|y\|^2 + \|A G(m)\|^2)`, with the prior's mean :math:`m`, for
        one standard deviation of the prior, is at most this. Much less than the default is lost in
        the rounding of single precision; then the search ends when no step lowers the misfit.
    restarts
        Starts for each problem, of which the smallest misfit is kept: the best of a thousand draws
        of the prior, see `bayesgen.starts.nearest_draws`.
    seed
        Seed of these draws.

    Returns
    -------
    ProjectedGradient
        Image, latent vector, misfit, and how the search ended.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If generator, operator, data and start do not fit each other, or values are not finite.
    OptionError
        If a number is out of range.
    ModelError
        If the generator has no derivatives in forward mode.

    Notes
    -----
    The misfit never grows. For :math:`t \le 1 / \|A\|^2`

    .. math:: \tfrac12 \|A x - y\|^2 \le \tfrac{1}{2 t} \|x - w_k\|^2 + c_k

    with equality at :math:`x_k`, so that the projection need not be exact: it must be no further
    from :math:`w_k` than :math:`x_k` is, as any search that starts there and only descends. With
    longer steps, and operators that are not linear, a step after which the misfit is larger is
    taken back, and halved.

    References
    ----------
    Shah and Hegde (2018), Solving linear inverse problems using GAN priors: an algorithm with
    provable guarantees, algorithm 1; Duff, Campbell and Ehrhardt (2023), Regularising inverse
    problems with generative machine learning models, equations 8 and 14.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-vae-8"), bg.operators.GaussianMatrix((28, 28), 300, seed=0)
    >>> x = G(torch.full((8,), 0.5))
    >>> found = projected_gradient(G, A, A(x))
    >>> bool(found.converged), bool((found.image - x).norm() < 0.01 * x.norm())
    (True, True)
    """
    check_problem(G, A, y)
    check_positive("step", step, allow_none=True)
    for name, count in (
        ("max_iterations", max_iterations),
        ("projection_iterations", projection_iterations),
        ("restarts", restarts),
    ):
        check_count(name, count)
    check_positive("tolerance", tolerance)
    batch = y.shape[: y.ndim - len(A.range_shape)]
    with torch.no_grad():
        if start is None:
            start = nearest_draws(G, A, y, count=restarts, seed=seed)
        starts = _checked_start(G, start, batch)
        data = y.detach().reshape(-1, *A.range_shape)
        size = max(1, rows_at_once(G, tangents=G.latent_dim) // starts.shape[1])
        parts = []
        for part, begin in zip(data.split(size), starts.split(size), strict=True):
            repeated = part.repeat_interleave(begin.shape[1], dim=0)
            first = _start(G, A, repeated, begin.flatten(0, 1), step)
            end = _descend(G, A, repeated, first, max_iterations, projection_iterations, tolerance)
            parts.append(_best(end, begin.shape[1]))
        z, misfit, iterations, converged = (
            torch.cat(values) for values in zip(*parts, strict=True)
        )
        images = G(z)
    return ProjectedGradient(
        image=images.reshape(*batch, *G.image_shape),
        latent=z.reshape(*batch, G.latent_dim),
        misfit=misfit.reshape(batch),
        num_iterations=iterations.reshape(batch),
        converged=converged.reshape(batch),
    )


@dataclass
class _State:
    """Where each row is: latent vector, image, step, and the gradient and value of the misfit."""

    z: Tensor
    x: Tensor
    step: Tensor
    slope: Tensor
    misfit: Tensor

    def update(self, rows: Tensor, z: Tensor, x: Tensor, slope: Tensor, misfit: Tensor) -> None:
        self.z[rows], self.x[rows], self.slope[rows], self.misfit[rows] = z, x, slope, misfit


def _start(G: Generator, A: Operator, y: Tensor, z: Tensor, step: float | None) -> _State:
    x = G(z)
    slope, misfit = _slope(A, x, y)
    if step is not None:
        steps = torch.full_like(misfit, step)
    elif A.linear:
        steps = torch.full_like(misfit, _inverse_square(A.norm()))
    else:
        steps = misfit.new_tensor([_inverse_square(A.derivative(row).norm()) for row in x])
    return _State(z.clone(), x, steps, slope, misfit)


def _descend(
    G: Generator,
    A: Operator,
    y: Tensor,
    state: _State,
    max_iterations: int,
    projection_iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latent vectors ``(R, latent_dim)``, misfits, iterations and convergence of ``(R,)`` rows."""
    mean, scale = (moment.to(y) for moment in prior_moments(G))
    unit = y.flatten(1).square().sum(1) + A(G(mean)).square().sum()
    unit = torch.where(unit > 0, unit, 1.0)
    iterations = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    converged, halvings = torch.zeros_like(iterations, dtype=torch.bool), iterations.clone()
    for _ in range(max_iterations):
        rows = (~converged & (halvings < _MOST_HALVINGS)).nonzero()[:, 0]
        if len(rows) == 0:
            break
        step = state.step[rows]
        target = state.x[rows] - _per_row(step, state.x) * state.slope[rows]
        # In this unit the gradient, where the projection starts, is that of the misfit in its own.
        problem = LatentProblem(G, target, scale, step * unit[rows])
        begin = state.z[rows] / scale
        found = levenberg_marquardt(
            problem, begin, steps=projection_iterations, tolerance=tolerance
        )
        still = found.converged & (found.iterations == 0)
        converged[rows[still]] = True
        moved = (found.position != begin).any(1)
        z = scale * found.position
        x = G(z)
        slope, misfit = _slope(A, x, y[rows])
        # False for NaN.
        good = moved & (misfit <= state.misfit[rows])
        bad, kept = rows[~good & ~still], rows[good]
        iterations[rows[~still]] += 1
        state.update(kept, z[good], x[good], slope[good], misfit[good])
        state.step[bad], halvings[bad], halvings[kept] = state.step[bad] / 2, halvings[bad] + 1, 0
    return state.z, state.misfit, iterations, converged


def _slope(A: Operator, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of half the squared misfit with respect to the image, and the misfit."""
    if A.linear:
        rest = A(x) - y
        return A.adjoint(rest), rest.flatten(1).norm(dim=1)
    try:
        pulled: Any = torch.func.vjp(A, x)
        data, pull_back = pulled
        (slope,) = pull_back(data - y)
    except (NotImplementedError, RuntimeError) as error:
        raise OptionError(
            f"A: is not linear and could not be differentiated ({error}); expected a linear "
            "operator, or one made of differentiable torch functions"
        ) from error
    return slope, (data - y).flatten(1).norm(dim=1)


def _inverse_square(norm: float) -> float:
    return 1 / norm**2 if norm > 0 else 1.0


def _best(ends: tuple[Tensor, Tensor, Tensor, Tensor], restarts: int) -> tuple[Tensor, ...]:
    """Of all restarts of each problem, the one with the smallest misfit."""
    misfit = torch.nan_to_num(ends[1], nan=float("inf")).reshape(-1, restarts)
    first = restarts * torch.arange(len(misfit), device=misfit.device)
    chosen = first + misfit.argmin(1)
    return tuple(values[chosen] for values in ends)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _checked_start(G: Generator, start: Tensor, batch: tuple[int, ...]) -> Tensor:
    """``(problems, K, latent_dim)``."""
    G._check("start", start, (G.latent_dim,))
    lead = tuple(start.shape[:-1])
    if lead == batch:
        start = start.unsqueeze(-2)
    elif lead[:-1] != batch or len(lead) != len(batch) + 1 or lead[-1] == 0:
        wanted = ", ".join(map(str, (*batch, "K", G.latent_dim)))
        raise ShapeError(
            f"start: expected shape ({', '.join(map(str, (*batch, G.latent_dim)))}) or ({wanted}), "
            f"got {tuple(start.shape)}"
        )
    require_finite("start", start)
    return start.detach().reshape(math.prod(batch), start.shape[-2], G.latent_dim)
