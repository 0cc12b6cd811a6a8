"""Gaussian mixtures of latent vectors: the prior that an autoencoder lacks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ShapeError
from bayesgen.operators.inputs import require_finite
from bayesgen.types import check_count

# Numbers in the largest intermediate array: larger ones leave the processor's cache.
_BLOCK = 2**20
# Steps from every start, on no more vectors than this, after which only the best goes on.
_SHORT = 20
_SAMPLE = 10_000
# A component with less weight has no vector left.
_EMPTY = 1e-12


class Mixture(NamedTuple):
    """Parameters of a Gaussian mixture with K components in d dimensions.

    Attributes
    ----------
    log_weights
        ``(K,)``, logarithms of weights that sum to one.
    means
        ``(K, d)``.
    scale_tril
        Lower Cholesky factors of the covariances, ``(K, d, d)``.
    """

    log_weights: Tensor
    means: Tensor
    scale_tril: Tensor


def mixture(log_weights: Tensor, means: Tensor, scale_tril: Tensor) -> dist.TorchDistribution:
    """Make a Gaussian mixture that serves as the prior of a latent site.

    Parameters
    ----------
    log_weights, means, scale_tril
        As in `Mixture`; weights need not sum to one.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.

    Examples
    --------
    >>> scale_tril = torch.eye(3).expand(2, 3, 3)
    >>> prior = mixture(torch.zeros(2), torch.tensor([[0.0] * 3, [1.0] * 3]), scale_tril)
    >>> prior.event_shape, prior.mean
    (torch.Size([3]), tensor([0.5000, 0.5000, 0.5000]))
    """
    count, dim = means.shape if means.ndim == 2 else (0, 0)
    if not count or log_weights.shape != (count,) or scale_tril.shape != (count, dim, dim):
        raise ShapeError(
            "mixture: expected log_weights (K,), means (K, d) and scale_tril (K, d, d), got "
            f"{tuple(log_weights.shape)}, {tuple(means.shape)} and {tuple(scale_tril.shape)}"
        )
    return dist.MixtureSameFamily(
        dist.Categorical(logits=log_weights), dist.MultivariateNormal(means, scale_tril=scale_tril)
    )


def fit_mixture(
    z: Tensor,
    components: int,
    *,
    seed: int = 0,
    restarts: int = 8,
    floor: float = 1e-4,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
) -> Mixture:
    r"""Fit a Gaussian mixture with full covariances by expectation maximisation.

    All starts, from k-means++ centres, take a few steps together on at most ten thousand vectors;
    the likeliest goes on with all of them until it has converged. Computed in double precision, in
    coordinates in which the vectors have mean zero and unit covariance: the result turns, shifts
    and stretches with them.

    Parameters
    ----------
    z
        Latent vectors, ``(N, d)``.
    components
        Number K of components; see `choose_components`. Where fewer suffice, as for vectors with
        many copies, some of the K returned are equal.
    seed
        Seed of the starts.
    restarts
        Number of starts. Eight find the best of several optima in most problems, for a fraction
        of the cost of one converged run.
    floor
        Least variance of a component in any direction, in units of the variance of all vectors
        in that direction. A component that shrinks to one vector would have infinite likelihood;
        by default components are at most a hundred times narrower than the whole.
    tolerance
        Stop once a step raises the mean log likelihood by less, in nats.
    max_steps
        Steps at most, at least two, after the starts were compared.

    Returns
    -------
    Mixture
        In the dtype of ``z``, heaviest component first.

    Raises
    ------
    ShapeError, DtypeError, DataError
        If the vectors are not an ``(N, d)`` array of finite floating-point numbers, are fewer
        than components, or lie in a plane of less than d dimensions.
    OptionError
        If a setting is not allowed.

    Warns
    -----
    RuntimeWarning
        If ``max_steps`` did not suffice.

    References
    ----------
    Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
    Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding, section 7.
    Biernacki, Celeux and Govaert (2003), Choosing starting values for the EM algorithm.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> z = torch.randn(1000, 2, generator=rng)
    >>> z[:300] += 10
    >>> fitted = fit_mixture(z, 2)
    >>> fitted.log_weights.exp(), fitted.means.round().long()
    (tensor([0.7000, 0.3000]), tensor([[ 0,  0],
            [10, 10]]))
    >>> mixture(*fitted).log_prob(z).shape
    torch.Size([1000])
    """
    _check_vectors(z, components)
    check_count("restarts", restarts)
    check_count("max_steps", max_steps, minimum=2)
    for name, value, most in (("floor", floor, 1.0), ("tolerance", tolerance, math.inf)):
        if not 0 < value < most:
            raise OptionError(f"{name}: got {value!r}; expected a number between 0 and {most:g}")
    with torch.no_grad():
        white, shift, scale = _whiten(z)
        rng = torch.Generator().manual_seed(seed)
        few = white[torch.randperm(len(white), generator=rng)[:_SAMPLE].to(white.device)]
        state = _start(few, components, restarts if components > 1 else 1, rng, floor)
        state, heights = _climb(few, state, floor, tolerance, _SHORT)
        best = int(heights[-1].argmax())
        state = _State(*(part[best : best + 1] for part in state))
        state, heights = _climb(white, state, floor, tolerance, max_steps)
        rise = float(heights[-1] - heights[-2])
        if rise > tolerance:
            warnings.warn(
                f"fit_mixture: the mean log likelihood still rose by {rise:.1e} after {max_steps} "
                f"steps, wanted {tolerance:.1e}",
                RuntimeWarning,
                stacklevel=2,
            )
        fitted = _unwhiten(state, shift, scale)
    return Mixture(*(part.to(z.dtype) for part in fitted))


def choose_components(
    z: Tensor,
    candidates: Sequence[int],
    *,
    held_out: float = 0.2,
    seed: int = 0,
    restarts: int = 8,
) -> int:
    """Choose how many components: the fewest that predict other vectors as well as any.

    Parameters
    ----------
    z
        Latent vectors, ``(N, d)``.
    candidates
        Numbers to try.
    held_out
        Share of the vectors, drawn at random, that mixtures fitted to the rest are judged by.
    seed, restarts
        As in `fit_mixture`; the seed also draws the vectors held out.

    Returns
    -------
    int
        The smallest candidate with a mean log likelihood of the vectors held out that is no more
        than one standard error below the largest; the standard error is that of the difference.

    References
    ----------
    Breiman, Friedman, Olshen and Stone (1984), Classification and regression trees, section 3.4.3.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> z = torch.randn(1000, 2, generator=rng)
    >>> z[:300] += 10
    >>> choose_components(z, [1, 2, 8])
    2
    """
    if not candidates:
        raise OptionError("candidates: got none; expected numbers of components to try")
    if not 0 < held_out < 1:
        raise OptionError(f"held_out: got {held_out!r}; expected a number between 0 and 1")
    for count in candidates:
        _check_vectors(z, count)
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(z), generator=rng).to(z.device)
    count = max(1, round(held_out * len(z)))
    test, training = z[order[:count]], z[order[count:]]
    scores = []
    for candidate in sorted(candidates):
        fitted = fit_mixture(training, candidate, seed=seed, restarts=restarts)
        scores.append(mixture(*fitted).log_prob(test).double())
    best = max(scores, key=lambda score: float(score.mean()))
    behind = [best - score for score in scores]
    return next(
        candidate
        for candidate, lag in zip(sorted(candidates), behind, strict=True)
        if lag.mean() <= lag.std(correction=0) / len(lag) ** 0.5
    )


class _State(NamedTuple):
    """R mixtures: covariances as eigenvectors ``(R, K, d, d)`` and eigenvalues ``(R, K, d)``."""

    log_weights: Tensor
    means: Tensor
    vectors: Tensor
    variances: Tensor


def _check_vectors(z: Tensor, components: int) -> None:
    check_count("components", components)
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise DtypeError(f"z: expected a floating-point tensor, got {kind}")
    if z.ndim != 2 or z.numel() == 0:
        raise ShapeError(f"z: expected latent vectors (N, d), got shape {tuple(z.shape)}")
    if len(z) < components:
        raise DataError(f"z: {len(z)} vectors for {components} components; expected more")
    require_finite("z", z)


def _whiten(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors ``w`` of mean zero and unit covariance, and m, T with ``z = m + T w``."""
    z = z.double()
    shift = z.mean(0)
    covariance = (z - shift).T @ (z - shift) / len(z)
    std = covariance.diagonal().sqrt()
    # Without this, a constant coordinate would have the variance of its rounding errors.
    std = torch.where(std > 1e-12 * z.abs().amax(0), std, 0.0)
    correlation = covariance / (std[:, None] * std)
    if (std == 0).any() or float(torch.linalg.eigvalsh(correlation)[0]) < 1e-10:
        raise DataError(
            f"z: the {len(z)} vectors lie in a plane of less than {z.shape[1]} dimensions, where "
            "no density is; expected more vectors, and no coordinate that is constant or a "
            "combination of others"
        )
    scale = std[:, None] * torch.linalg.cholesky(correlation)
    return torch.linalg.solve_triangular(scale, (z - shift).T, upper=False).T, shift, scale


def _unwhiten(state: _State, shift: Tensor, scale: Tensor) -> Mixture:
    """The first mixture of the state in the original coordinates, heaviest component first."""
    log_weights, means, vectors, variances = (part[0].clone() for part in state)
    # An empty component becomes one of two halves of the heaviest, which changes no density.
    for index in (log_weights < math.log(_EMPTY)).nonzero().flatten().tolist():
        heaviest = int(log_weights.argmax())
        log_weights[heaviest] -= math.log(2)
        for part in (log_weights, means, vectors, variances):
            part[index] = part[heaviest]
    roots = scale @ (vectors * variances.sqrt().unsqueeze(-2))
    covariances = roots @ roots.mT
    std = covariances.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-1)
    factors = std * torch.linalg.cholesky(covariances / std / std.mT)
    order = log_weights.argsort(descending=True, stable=True)
    return Mixture(log_weights[order], (shift + means @ scale.T)[order], factors[order])


def _start(z: Tensor, components: int, restarts: int, rng: torch.Generator, floor: float) -> _State:
    """Mixtures of the cells around k-means++ centres: each the best of a few drawn at random."""
    distance = torch.full((restarts, len(z)), torch.inf, dtype=z.dtype, device=z.device)
    labels = torch.zeros(distance.shape, dtype=torch.long, device=z.device)
    tries = 2 + int(math.log(components))
    for label in range(components):
        # Where all vectors are centres already, or none is, one is as good as another.
        total = distance.sum(-1, keepdim=True)
        weight = torch.where((total > 0) & total.isfinite(), distance, 1.0)
        chosen = torch.multinomial(weight.cpu(), tries, replacement=True, generator=rng)
        new = torch.cdist(z[chosen.to(z.device)], z).square()
        best = torch.minimum(new, distance.unsqueeze(1)).sum(-1).argmin(-1)
        new = new[torch.arange(restarts, device=z.device), best]
        labels = torch.where(new < distance, label, labels)
        distance = torch.minimum(new, distance)

    def cells(block: slice) -> Tensor:
        return torch.nn.functional.one_hot(labels[:, block].T, components).double()

    return _maximise(*_sums(z, cells, restarts, components), floor)


def _climb(
    z: Tensor, state: _State, floor: float, tolerance: float, max_steps: int
) -> tuple[_State, list[Tensor]]:
    """EM steps, and the mean log likelihood ``(R,)`` of each state on the way but the last."""
    restarts, components = state.log_weights.shape
    heights: list[Tensor] = []
    for _ in range(max_steps):
        total = z.new_zeros(restarts)

        def responsibilities(block: slice) -> Tensor:
            log_joint = _log_joint(z[block], state)  # noqa: B023
            log_prob = log_joint.logsumexp(-1, keepdim=True)
            total.add_(log_prob.sum((0, 2)))  # noqa: B023
            return (log_joint - log_prob).exp()

        sums = _sums(z, responsibilities, restarts, components)
        heights.append(total / len(z))
        if len(heights) > 1 and bool((heights[-1] - heights[-2] <= tolerance).all()):
            break
        state = _maximise(*sums, floor)
    return state, heights


def _log_joint(z: Tensor, state: _State) -> Tensor:
    """Log of weight times density of every component, ``(N, R, K)``."""
    dim = state.means.shape[-1]
    roots = state.vectors * state.variances.rsqrt().unsqueeze(-2)
    centre = (state.means.unsqueeze(-2) @ roots).squeeze(-2)
    scaled = (z @ roots.permute(2, 0, 1, 3).reshape(dim, -1)).unflatten(-1, centre.shape)
    distance = (scaled - centre).square().sum(-1)
    log_det = state.variances.log().sum(-1)
    return state.log_weights - 0.5 * (distance + log_det + dim * math.log(2 * math.pi))


def _sums(
    z: Tensor, weigh: Callable[[slice], Tensor], restarts: int, components: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of w, w z and w z z^T over vectors with weights w ``(N, R, K)``, block by block."""
    num, dim = z.shape
    size = max(1, _BLOCK // (dim * max(dim, restarts * components)))
    first = z.new_zeros(restarts * components, dim + 1)
    second = z.new_zeros(restarts * components, dim**2)
    for start in range(0, num, size):
        block = slice(start, min(start + size, num))
        part, weight = z[block], weigh(block).flatten(1)
        first += weight.T @ torch.nn.functional.pad(part, (0, 1), value=1.0)
        second += weight.T @ (part.unsqueeze(-1) * part.unsqueeze(-2)).flatten(1)
    lead = (restarts, components)
    return (
        first[:, -1].reshape(lead),
        first[:, :-1].reshape(*lead, dim),
        second.reshape(*lead, dim, dim),
    )


def _maximise(counts: Tensor, first: Tensor, second: Tensor, floor: float) -> _State:
    """The likeliest mixtures, given the responsibilities, with no variance below the floor.

    Raising the eigenvalues of the covariance to the floor gives the exact constrained maximum,
    so the likelihood cannot fall.
    """
    total = counts.sum(-1, keepdim=True)
    # An empty component has no moments; its weight is zero, so any will do.
    safe = counts.clamp(min=_EMPTY).unsqueeze(-1)
    means = first / safe
    covariances = second / safe.unsqueeze(-1) - means.unsqueeze(-1) * means.unsqueeze(-2)
    variances, vectors = torch.linalg.eigh(covariances)
    return _State((counts / total).log(), means, vectors, variances.clamp(min=floor))
