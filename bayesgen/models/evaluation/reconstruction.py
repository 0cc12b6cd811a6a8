"""How well a generator can draw images: the latent vectors nearest to them, and what remains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesgen.errors import OptionError, ShapeError, unknown_option
from bayesgen.models.base import Generator
from bayesgen.models.evaluation.access import (
    check_images,
    decode,
    encode,
    prior_draws,
    prior_moments,
    rows_at_once,
)
from bayesgen.models.evaluation.jacobian import MAX_COLUMNS
from bayesgen.models.evaluation.least_squares import (
    LatentProblem,
    Solution,
    descend,
    levenberg_marquardt,
)
from bayesgen.models.evaluation.metrics import has_ssim, mean_absolute_error, nrmse, psnr, ssim
from bayesgen.types import check_count, check_positive

# Iterations by solver: those of the published reconstructions for "backtracking".
STEPS = {"levenberg-marquardt": 50, "adam": 300, "backtracking": 200}
_FIRST_ORDER = {"adam": "adam", "backtracking": "gradient-descent"}
# Draws of the prior among which starts are looked for; decoding them costs as much as one
# iteration does for some hundred images.
SCREENED = 1000
_DECILES = [k / 10 for k in range(11)]


@dataclass(frozen=True)
class NearestLatent:
    """Latent vectors whose images are nearest to given ones.

    Attributes
    ----------
    z
        ``(N, latent_dim)``.
    images
        ``G(z)``, ``(N, *image_shape)``.
    residual
        ``|G(z) - x|``, ``(N,)``.
    converged
        Whether the gradient fell below the tolerance, ``(N,)``. What was found is a local minimum.
    iterations
        Iterations taken from the start that led there, ``(N,)``.
    """

    z: Tensor
    images: Tensor
    residual: Tensor
    converged: Tensor
    iterations: Tensor


def nearest_latent(
    generator: Generator,
    images: Tensor,
    *,
    start: Tensor | None = None,
    restarts: int | None = None,
    solver: str | None = None,
    steps: int | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> NearestLatent:
    r"""Minimise :math:`\|G(z) - x\|^2` over :math:`z`, for all images at once.

    The problem is solved in units of the prior's standard deviation, and from several starts for
    each image, of which the best end is kept: the encoder's guess, where there is an encoder, and
    those of a thousand draws of the prior whose images are nearest. An invertible generator's
    encoder is exact; nothing is searched then.

    Parameters
    ----------
    generator
        The generator; its parameters need not be frozen and are left as they are.
    images
        :math:`x`, ``(N, *image_shape)``.
    start
        ``(N, latent_dim)`` or, for several starts, ``(K, N, latent_dim)``; no others are tried.
    restarts
        Number of starts for each image, the encoder's included; default 1 where there is an encoder
        and 2 elsewhere. More lower the mean squared residual of digits, with the shipped generator,
        by less than 0.1 %.
    solver
        ``"levenberg-marquardt"``, ``"adam"`` (its step falls to zero along a cosine) or
        ``"backtracking"`` (gradient descent, the authors' Algorithm 1, without their early stop).
        The default is Adam from an encoder's guess and for more than 64 latent dimensions, where
        Jacobians are costly, and the first otherwise.
    steps
        Iterations at most; default 50, 300 and 200.
    tolerance
        An image has converged when the gradient of :math:`\|G(z) - x\|^2 / (\|x\|^2 + \|G(m)\|^2)`,
        with the prior's mean :math:`m`, for one standard deviation of the prior, is at most this.
    seed
        Seed of the draws of the prior.

    Returns
    -------
    NearestLatent
        Latent vectors, their images, and how the search ended.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If images or starts do not fit the generator or are not finite.
    OptionError
        If the solver is unknown or a number is out of range.
    ModelError
        If the solver needs derivatives in forward mode, which an operation of the generator lacks.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, the experiment on reconstructing a test set, and Algorithm 1.

    Examples
    --------
    >>> from bayesgen.models import load
    >>> G = load("mnist-vae")
    >>> digits = G(torch.tensor([[0.5] * 16, [-0.5] * 16]))
    >>> found = nearest_latent(G, digits)
    >>> found.z.shape, bool((found.residual < 0.1).all())
    (torch.Size([2, 16]), True)
    """
    check_images(generator, images)
    guessed = start is None and generator.can("encode")
    solver, steps = _choices(generator, solver, steps, guessed)
    restarts = (1 if guessed else 2) if restarts is None else restarts
    check_count("restarts", restarts)
    check_positive("tolerance", tolerance)
    images = images.detach()
    with torch.no_grad():
        if guessed and generator.can("log_abs_det"):
            # Of an invertible generator the encoder is the inverse.
            z = encode(generator, images)
            converged = torch.ones(len(z), dtype=torch.bool, device=z.device)
            iterations = torch.zeros_like(converged, dtype=torch.long)
        else:
            starts = _starts(generator, images, restarts, seed) if start is None else start
            starts = _checked_starts(generator, images, starts)
            z, converged, iterations = _search(generator, images, starts, solver, steps, tolerance)
        found = decode(generator, z)
    return NearestLatent(z, found, (found - images).flatten(1).norm(dim=1), converged, iterations)


def _choices(
    generator: Generator, solver: str | None, steps: int | None, guessed: bool
) -> tuple[str, int]:
    # Measured on 200 test digits with the shipped generator of 16 dimensions, on one core, as mean
    # |G(z) - x|^2 / |x|^2, of which the least known is 0.0462. From the encoder's guess Adam takes
    # 1.8 s to 0.04625; Levenberg-Marquardt 1.4 s to 0.04644, for it stays in the valley where it
    # starts, and 3.6 s to 0.04625 with a second start; backtracking 6.7 s to 0.04645. From two
    # draws of the prior Levenberg-Marquardt takes 4.1 s to 0.04625, and Adam 6.6 s.
    if solver is None:
        cheap = generator.latent_dim <= MAX_COLUMNS and not guessed
        solver = "levenberg-marquardt" if cheap else "adam"
    if solver not in STEPS:
        raise OptionError(unknown_option("solver", solver, STEPS))
    if steps is not None:
        check_count("steps", steps)
    return solver, STEPS[solver] if steps is None else steps


def _starts(generator: Generator, images: Tensor, restarts: int, seed: int) -> Tensor:
    """``(restarts, N, latent_dim)``: the encoder's guess first, then draws of the prior."""
    guesses = [encode(generator, images)[None]] if generator.can("encode") else []
    wanted = restarts - len(guesses)
    if wanted:
        draws = prior_draws(generator, max(SCREENED, wanted), seed=seed).to(images)
        drawn, rows = decode(generator, draws).flatten(1), rows_at_once(generator)
        nearest = [
            torch.cdist(part.flatten(1), drawn).topk(wanted, largest=False).indices
            for part in images.split(rows)
        ]
        guesses.append(draws[torch.cat(nearest).T])
    return torch.cat(guesses)


def _checked_starts(generator: Generator, images: Tensor, starts: Tensor) -> Tensor:
    generator._check("start", starts, (generator.latent_dim,))
    starts = starts.detach()[None] if starts.ndim == 2 else starts.detach()
    if starts.ndim != 3 or starts.shape[1] != len(images) or len(starts) == 0:
        raise ShapeError(
            f"start: expected shape ({len(images)}, {generator.latent_dim}) or "
            f"(K, {len(images)}, {generator.latent_dim}), got {tuple(starts.shape)}"
        )
    if starts.dtype != images.dtype:
        starts = starts.to(images)
    return starts


def _search(
    generator: Generator,
    images: Tensor,
    starts: Tensor,
    solver: str,
    steps: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Best end of all starts, a chunk of images at a time."""
    mean, scale = (moment.to(images) for moment in prior_moments(generator))
    # Where the images are black the size of one that the generator draws is the unit.
    typical = generator(mean).square().sum()
    tangents = generator.latent_dim if solver == "levenberg-marquardt" else 1
    rows = max(1, rows_at_once(generator, tangents=tangents) // len(starts))
    parts = []
    for part, begin in zip(images.split(rows), starts.split(rows, dim=1), strict=True):
        unit = part.flatten(1).square().sum(1) + typical
        unit = torch.where(unit > 0, unit, 1.0)
        repeated = part.repeat(len(begin), *[1] * (part.ndim - 1))
        problem = LatentProblem(generator, repeated, scale, unit.repeat(len(begin)))
        end = _solve(problem, begin.flatten(0, 1) / scale, solver, steps, tolerance)
        value = torch.nan_to_num(end.value, nan=math.inf).reshape(len(begin), -1)
        best = value.argmin(0) * len(part) + torch.arange(len(part), device=value.device)
        parts.append((scale * end.position[best], end.converged[best], end.iterations[best]))
    z, converged, iterations = (torch.cat(values) for values in zip(*parts, strict=True))
    return z, converged, iterations


def _solve(
    problem: LatentProblem, start: Tensor, solver: str, steps: int, tolerance: float
) -> Solution:
    if solver in _FIRST_ORDER:
        name = _FIRST_ORDER[solver]
        return descend(problem, start, solver=name, steps=steps, tolerance=tolerance)
    return levenberg_marquardt(problem, start, steps=steps, tolerance=tolerance)


@dataclass(frozen=True)
class ReconstructionErrors:
    """Errors of reconstructed images; printing it gives a table.

    Attributes
    ----------
    values
        By source (``"encoder"``, where there is one, and ``"nearest"``) and measure (``"nrmse"``,
        ``"psnr"``, ``"ssim"``, ``"l1"``): one number for each image, ``(N,)``.
    nearest
        The best latent vectors.
    """

    values: Mapping[str, Mapping[str, Tensor]]
    nearest: NearestLatent

    def summary(self) -> dict[str, dict[str, dict[str, float | list[float]]]]:
        """By source and measure: ``mean``, ``std``, and ``deciles`` from smallest to largest."""
        return {
            source: {name: _describe(values) for name, values in measures.items()}
            for source, measures in self.values.items()
        }

    def __str__(self) -> str:
        lines = [
            f"{'':8} {'':6} {'mean':>8} {'std':>8} {'smallest':>8} {'median':>8} {'largest':>8}"
        ]
        return "\n".join([*lines, *self._lines()])

    def _lines(self) -> Iterator[str]:
        for source, measures in self.values.items():
            for name, values in measures.items():
                middle = values.quantile(0.5)
                cells = (values.mean(), _std(values), values.min(), middle, values.max())
                yield f"{source:8} {name:6} " + " ".join(f"{float(cell):8.3f}" for cell in cells)


def reconstruction_errors(
    generator: Generator,
    images: Tensor,
    *,
    restarts: int | None = None,
    solver: str | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> ReconstructionErrors:
    """Compare images with the nearest ones that a generator draws, by the usual measures.

    That every image sought can be drawn is the first thing asked of a generator that is to be a
    prior; what it cannot draw, a reconstruction within its range cannot show.

    Parameters
    ----------
    generator
        The generator.
    images
        ``(N, *image_shape)``, intensities in [0, 1], better not those trained on.
    restarts, solver, steps, seed
        As for `nearest_latent`.

    Returns
    -------
    ReconstructionErrors
        `nrmse`, `psnr`, `ssim` and `mean_absolute_error` of each image, decoded from the encoder's
        latent vector, where there is an encoder, and from the best one. The structural similarity
        is left out for images smaller than its window or of more than three dimensions.

    Raises
    ------
    DtypeError, ShapeError, DataError, OptionError, ModelError
        As `nearest_latent`; also for no image at all.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models: histograms of the relative error, and examples at its deciles.

    Examples
    --------
    >>> from bayesgen.datasets import mnist_samples
    >>> from bayesgen.models import load
    >>> found = reconstruction_errors(load("mnist-vae"), mnist_samples().images)
    >>> found.values["encoder"]["psnr"].mean() < found.values["nearest"]["psnr"].mean()
    tensor(True)
    """
    check_images(generator, images, minimum=1)
    images = images.detach()
    nearest = nearest_latent(
        generator, images, restarts=restarts, solver=solver, steps=steps, seed=seed
    )
    sources = {"nearest": nearest.images}
    if generator.can("encode"):
        sources = {"encoder": decode(generator, encode(generator, images)), **sources}
    measures = _measures(generator)
    values = {
        source: {name: measure(found, images) for name, measure in measures.items()}
        for source, found in sources.items()
    }
    return ReconstructionErrors(values, nearest)


def _measures(generator: Generator) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    structural = {"ssim": ssim} if has_ssim(generator.image_shape) else {}
    return {"nrmse": nrmse, "psnr": psnr, **structural, "l1": mean_absolute_error}


def _describe(values: Tensor) -> dict[str, float | list[float]]:
    deciles = values.quantile(values.new_tensor(_DECILES)).tolist()
    return {"mean": values.mean().item(), "std": _std(values).item(), "deciles": deciles}


def _std(values: Tensor) -> Tensor:
    """Standard deviation, 0 for a single value."""
    return values.std() if len(values) > 1 else torch.zeros_like(values).sum()
