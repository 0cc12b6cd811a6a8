"""Is a generator fit to be a prior for inverse problems? All measures, in one evaluation.

What is asked follows Duff, Campbell and Ehrhardt (2023), section 2: every image sought is in the
generator's range, samples look like the images sought, the generator is smooth, the law of the
latent vectors of images is known, and nothing odd comes from outside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import DataError, ShapeError
from bayesgen.models.base import Generator
from bayesgen.models.calibration import fit_log_odds
from bayesgen.models.evaluation.access import check_images, decode, prior_draws
from bayesgen.models.evaluation.comparison import compare
from bayesgen.models.evaluation.coverage import precision_recall
from bayesgen.models.evaluation.labels import label_shares
from bayesgen.models.evaluation.latent import far_samples, latent_agreement
from bayesgen.models.evaluation.likelihood import (
    WhitenedResiduals,
    importance_weighted_bound,
    negative_log_density,
    whitened_residuals,
)
from bayesgen.models.evaluation.outcome import Evaluation, Row, plain
from bayesgen.models.evaluation.reconstruction import ReconstructionErrors, reconstruction_errors
from bayesgen.models.evaluation.smoothness import smoothness
from bayesgen.models.evaluation.support import support_size
from bayesgen.models.evaluation.two_sample import two_sample_test
from bayesgen.models.evaluation.verdict import judge
from bayesgen.models.glow import Glow
from bayesgen.models.structured_vae import StructuredVAE
from bayesgen.models.vae import VAE
from bayesgen.types import check_count

# Images looked at one by one: enough for standard errors of a few hundredths.
_RECONSTRUCTED, _LIKELIHOOD = 500, 500


@dataclass
class _Report:
    """What was measured so far."""

    rows: list[Row] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)

    def add(self, criterion: str, name: str, value: str, wanted: str) -> None:
        self.rows.append(Row(criterion, name, value, wanted))


def evaluate(
    generator: Generator,
    images: Tensor,
    *,
    samples: int = 2000,
    reference: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda part: None,
) -> Evaluation:
    """Measure whether a generator is fit to be a prior, on images that it was not trained on.

    Parameters
    ----------
    generator
        The generator.
    images
        ``(N, *image_shape)``, intensities in [0, 1]; 4000 or more for figures that can be compared
        with those of the shipped generators. Half of them stand for other real images, which tell
        what a perfect generator would reach.
    samples
        Number of generated images, and of real ones they are compared with; at most half of N.
        Exact optimal transport of 2000 takes a second, of 10,000 a minute or two and 5 GB.
    reference
        Labelled images, ``(M, *image_shape)`` and ``(M,)``, by which to count the kinds of images
        generated.
    seed
        Seed of everything random.
    progress
        Called with the name of each part when it begins.

    Returns
    -------
    Evaluation
        The table, the verdict, all numbers, and what is needed for pictures.

    Raises
    ------
    ShapeError, DtypeError, DataError
        If the images do not fit the generator, are fewer than 40, or are not finite.
    MissingPackageError
        If POT is not installed.

    References
    ----------
    Duff, Campbell and Ehrhardt (2023), Regularising inverse problems with generative machine
    learning models, sections 2 and 4.

    Examples
    --------
    >>> from bayesgen.datasets import mnist_samples
    >>> from bayesgen.models import load
    >>> found = evaluate(load("mnist-vae"), mnist_samples().images)  # doctest: +SKIP
    >>> print(found)  # doctest: +SKIP
    """
    check_images(generator, images)
    if len(images) and not images.any():
        raise DataError("images: all are black; there is nothing to compare with")
    if len(images) < 40:
        raise ShapeError(f"images: expected at least 40 to compare with, got {len(images)}")
    check_count("samples", samples, minimum=20)
    images, samples = images.detach(), min(samples, len(images) // 2)
    generated = as_bytes(decode(generator, prior_draws(generator, samples, seed=seed)))
    real, other_real = images[:samples], images[samples : 2 * samples]
    report = _Report()
    progress("reconstruction")
    errors = _reconstruction(report, generator, images[:_RECONSTRUCTED], seed)
    progress("samples against real images")
    _divergences(report, generated, real, other_real)
    _coverage(report, generated, real, other_real, seed)
    if generator.can("discriminate"):
        _discriminator(report, generator, generated, real)
    if reference is not None:
        _labels(report, generated, *reference)
    progress("smoothness")
    _smoothness(report, generator, seed)
    progress("latent space")
    _latent(report, generator, errors, images, seed)
    progress("likelihood")
    _likelihood(report, generator, images[:_LIKELIHOOD], seed)
    measures = plain(report.measures)
    verdict = judge(measures)
    measures["verdict"] = plain(verdict)
    return Evaluation(tuple(report.rows), measures, generator, images, errors, verdict)


def as_bytes(images: Tensor) -> Tensor:
    """Round to eight bits within [0, 1], as stored images are.

    Otherwise a classifier tells generated images by their digits after the third, and divergences
    count what no file would hold.
    """
    return (images.clamp(0, 1) * 255).round() / 255


def _reconstruction(
    report: _Report, generator: Generator, images: Tensor, seed: int
) -> ReconstructionErrors:
    errors = reconstruction_errors(generator, images, seed=seed)
    squares = errors.nearest.residual.square() / math.prod(generator.image_shape)
    residual = squares.mean().sqrt().item()
    report.measures["reconstruction"] = errors.summary() | {
        "images": len(images),
        "residual": residual,
    }
    wanted = {
        "psnr": "above what the data's noise allows",
        "nrmse": "small beside the noise of the data",
        "ssim": "near 1",
        "l1": "near 0",
    }
    for source, values in errors.values.items():
        title = {"encoder": "encoder's", "nearest": "nearest image in the range"}[source]
        for name, each in values.items():
            unit = " dB" if name == "psnr" else ""
            # An invertible generator reconstructs exactly, with infinite signal-to-noise ratio.
            spread = f" ± {each.std():.2g}" if each.isfinite().all() else ""
            found = f"{each.mean():.4g}{spread}{unit}"
            report.add("range", f"{title}: {name.upper()}", found, wanted[name])
    return errors


def _divergences(report: _Report, generated: Tensor, real: Tensor, other_real: Tensor) -> None:
    found = compare(generated, real, other_real)
    unit = found.mean_square_norm
    report.measures["divergences"] = plain(found) | {
        "earth_movers_normalised": {
            "generated": found["earth_movers"].generated.value / unit,
            "floor": found["earth_movers"].floor.value / unit,
        }
    }
    transport = found["earth_movers"]
    report.add(
        "samples",
        f"earth mover's distance over mean |x|^2, {found.num_images} images",
        f"{transport.generated.value / unit:.3f}, real {transport.floor.value / unit:.3f}",
        "near that of other real images; below it means blur",
    )
    for name in ("energy", "sinkhorn"):
        wanted = "that of other real images" if name == "energy" else "the same, debiased transport"
        report.add("samples", f"{name} divergence", str(found[name]), wanted)


def _coverage(
    report: _Report, generated: Tensor, real: Tensor, other_real: Tensor, seed: int
) -> None:
    found = precision_recall(generated, real)
    floor = precision_recall(other_real, real)
    report.measures["coverage"] = {"generated": found, "real": floor}
    for name in ("precision", "recall", "density", "coverage"):
        value = f"{getattr(found, name)}, real {getattr(floor, name)}"
        report.add("samples", name, value, "that of other real images")
    test = two_sample_test(generated, real, seed=seed)
    report.measures["two_sample_test"] = test
    report.add(
        "samples", "classifier against real images", str(test), "accuracy 0.5; 1 tells all apart"
    )
    size = support_size(generated, real)
    report.measures["support"] = size
    report.add("samples", "different images drawn", str(size), "more than the training images")


@torch.no_grad()
def _discriminator(report: _Report, generator: Generator, generated: Tensor, real: Tensor) -> None:
    """Whether log odds are right: refitted to these images they should have slope one."""
    scores = {"real": generator.discriminate(real), "fake": generator.discriminate(generated)}
    slope, offset = fit_log_odds(scores["real"], scores["fake"])
    right = [(scores["real"] > 0).double().mean(), (scores["fake"] < 0).double().mean()]
    accuracy = float(sum(right)) / 2
    report.measures["discriminator"] = {"accuracy": accuracy, "slope": slope, "offset": offset}
    report.add("samples", "its own discriminator's accuracy", f"{accuracy:.3f}", "0.5")
    found = f"{slope:.3f}, {offset:.3f}"
    report.add("samples", "calibration of its log odds: slope, offset", found, "1, 0")


def _labels(report: _Report, generated: Tensor, images: Tensor, labels: Tensor) -> None:
    found = label_shares(generated, images, labels)
    report.measures["labels"] = plain(found) | {"factor": found.factor}
    value = (
        f"within a factor {found.factor:.3g} of the data's; classifier {found.accuracy:.1%} right"
    )
    report.add("samples", "frequencies of labels", value, "a factor below 3: no mode is lost")


def _smoothness(report: _Report, generator: Generator, seed: int) -> None:
    found = smoothness(generator, seed=seed)
    report.measures["smoothness"] = found.summary()
    wanted = {
        "largest": "finite, and 95 % near the median: no jumps",
        "smallest": "above 0: every direction does something",
        "condition": "small: samplers and solvers are quick",
        "effective_rank": "near the latent dimension",
    }
    for name, values in found.summary().items():
        if math.isfinite(values["median"]):
            title = "effective rank" if name == "effective_rank" else f"Jacobian: {name}"
            title = f"{title} singular value" if name in ("largest", "smallest") else title
            spread = f"{values['median']:.3g} (5 % {values['5 %']:.3g}, 95 % {values['95 %']:.3g})"
            report.add("smooth", title, spread, wanted[name])


def _latent(
    report: _Report, generator: Generator, errors: ReconstructionErrors, images: Tensor, seed: int
) -> None:
    z = None if generator.can("encode") else errors.nearest.z
    found = latent_agreement(generator, images, z=z, seed=seed)
    report.measures["latent"] = found
    report.add(
        "latent law",
        "latent vectors of images: mean, width, correlation",
        f"{found.mean:.3f}, {found.std:.3f}, {found.correlation:.3f}",
        "0, 1, 0 in units of the prior",
    )
    report.add(
        "latent law",
        "their distance from the prior (energy, 0 to 1)",
        f"{found.effect:.4f} (p = {found.p_value:.2g})",
        "below 0.01",
    )
    if found.norm_effect is not None:
        value = f"{found.norm_effect:.3f} (p = {found.norm_p_value:.2g})"
        report.add(
            "latent law", "their |z|^2 against chi-square (Kolmogorov-Smirnov)", value, "below 0.1"
        )
    far = far_samples(generator, seed=seed)
    report.measures["far"] = {
        "distance": far.distance.mean().item(),
        "sensitivity": far.sensitivity.mean().item(),
    }
    report.add(
        "far away",
        "far from the prior: distance from its images, gradient",
        f"{far.distance.mean():.2f}, {far.sensitivity.mean():.2g}",
        "distance near 1; gradient away from 0",
    )


def _likelihood(report: _Report, generator: Generator, images: Tensor, seed: int) -> None:
    measures: dict[str, Any] = {}
    pixels = math.prod(generator.image_shape)
    if isinstance(generator, Glow):
        measures["bits_per_dimension"] = generator.bits_per_dimension(images).mean().item()
        value = f"{measures['bits_per_dimension']:.3f}"
        report.add("samples", "bits per dimension of held-out images", value, "small; 8 is uniform")
    if isinstance(generator, VAE | StructuredVAE):
        bound = importance_weighted_bound(generator, images, samples=100, seed=seed) / pixels
        nll = negative_log_density(generator, images, seed=seed)
        measures["bound_per_pixel"] = bound.mean().item()
        measures["nll_per_pixel"] = nll.mean().item()
        report.add(
            "samples",
            "log density of held-out images, nats a pixel (bound, 100 samples)",
            f"{bound.mean():.4f}",
            "large",
        )
        report.add("samples", "-log p(x | z), nats a pixel", f"{nll.mean():.4f}", "small")
    if isinstance(generator, StructuredVAE):
        measures["whitened"] = _add_whitened(report, generator, images, seed)
    if measures:
        report.measures["likelihood"] = measures


def _add_whitened(
    report: _Report, generator: StructuredVAE, images: Tensor, seed: int
) -> WhitenedResiduals:
    white = whitened_residuals(generator, images, seed=seed)
    near = max(abs(white.row_correlation[1]), abs(white.column_correlation[1]))
    before = max(abs(white.raw_row_correlation[1]), abs(white.raw_column_correlation[1]))
    thirds = ", ".join(f"{width:.2f}" for width in white.std_by_brightness)
    for measure, value, good in (
        ("whitened residuals: width", f"{white.std:.3f}", "1"),
        ("  where the mean is dark, medium, bright", thirds, "1; above, too narrow bands"),
        ("  correlation of neighbours", f"{near:.3f}, before {before:.3f}", "0"),
        ("width of drawn residuals over that of residuals", f"{white.drawn_width:.3g}", "1"),
    ):
        report.add("samples", measure, value, good)
    return white
