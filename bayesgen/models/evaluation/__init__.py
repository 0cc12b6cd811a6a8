"""Is a generator fit to be a prior? Each measure by itself, and all in one report."""

from __future__ import annotations

from bayesgen.models.evaluation.comparison import Divergence, Divergences, compare
from bayesgen.models.evaluation.coverage import PrecisionRecall, precision_recall
from bayesgen.models.evaluation.divergence import (
    earth_movers_distance,
    energy_distance,
    sinkhorn_divergence,
)
from bayesgen.models.evaluation.labels import LabelShares, label_shares
from bayesgen.models.evaluation.latent import (
    FarSamples,
    LatentAgreement,
    far_samples,
    interpolation,
    latent_agreement,
)
from bayesgen.models.evaluation.likelihood import (
    WhitenedResiduals,
    importance_weighted_bound,
    negative_log_density,
    whitened_residuals,
)
from bayesgen.models.evaluation.metrics import mean_absolute_error, nrmse, psnr, ssim
from bayesgen.models.evaluation.outcome import Evaluation, Row
from bayesgen.models.evaluation.reconstruction import (
    NearestLatent,
    ReconstructionErrors,
    nearest_latent,
    reconstruction_errors,
)
from bayesgen.models.evaluation.report import evaluate
from bayesgen.models.evaluation.smoothness import Smoothness, smoothness
from bayesgen.models.evaluation.support import SupportSize, support_size
from bayesgen.models.evaluation.two_sample import TwoSampleTest, two_sample_test
from bayesgen.models.evaluation.verdict import Judgement, Verdict

__all__ = [
    "Divergence",
    "Divergences",
    "Evaluation",
    "FarSamples",
    "Judgement",
    "LabelShares",
    "LatentAgreement",
    "NearestLatent",
    "PrecisionRecall",
    "ReconstructionErrors",
    "Row",
    "Smoothness",
    "SupportSize",
    "TwoSampleTest",
    "Verdict",
    "WhitenedResiduals",
    "compare",
    "earth_movers_distance",
    "energy_distance",
    "evaluate",
    "far_samples",
    "importance_weighted_bound",
    "interpolation",
    "label_shares",
    "latent_agreement",
    "mean_absolute_error",
    "nearest_latent",
    "negative_log_density",
    "nrmse",
    "precision_recall",
    "psnr",
    "reconstruction_errors",
    "sinkhorn_divergence",
    "smoothness",
    "ssim",
    "support_size",
    "two_sample_test",
    "whitened_residuals",
]
