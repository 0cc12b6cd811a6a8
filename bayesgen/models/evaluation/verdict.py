"""Is it good? What an evaluation found of each criterion, judged by what good looks like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Half a grey level of eight bits: whatever noise the data have, images are not known more sharply.
_RESOLVED = 0.5 / 255
# Beyond these the prior favours other images than those sought, or draws miss some kind of them.
_LATENT_EFFECT, _NORM_EFFECT, _LABEL_FACTOR = 0.01, 0.1, 3.0
# Of fewer images, chance decides whether an accuracy differs from one half or a label is rare.
_ENOUGH = 500
# Singular values below this share of the largest are zero but for rounding, in single precision.
_ROUNDING = 2.0**-23
# What the worst judgement means for the whole, from the worst on.
_FITNESS = {
    "poor": "not fit as a prior without a remedy",
    "fair": "fit as a prior, with care",
    "good": "fit as a prior by all that has a threshold",
}


@dataclass(frozen=True)
class Judgement:
    """One criterion.

    Attributes
    ----------
    criterion
        Which: ``"range"``, ``"samples"``, ``"smooth"``, ``"latent law"``, ``"far away"``.
    found
        What was found, in words.
    wanted
        What good looks like.
    status
        ``"good"``, ``"fair"``, ``"poor"``, or ``"no threshold"`` where that depends on the problem
        or nobody knows where good ends.
    """

    criterion: str
    found: str
    wanted: str
    status: str


@dataclass(frozen=True)
class Verdict:
    """Whether a generator is fit to be a prior for inverse problems.

    Attributes
    ----------
    criteria
        One judgement each.
    overall
        One sentence.
    """

    criteria: tuple[Judgement, ...]
    overall: str


def judge(measures: Mapping[str, Any]) -> Verdict:
    """Judge the numbers of an evaluation, `Evaluation.measures`.

    Range: how far images may be from it depends on the noise of the data, so there is no threshold,
    but for generators that draw them as exactly as they are stored. Samples: no judgement of fewer
    than 500 images; good if the interval of the classifier's accuracy holds one half; poor if it
    tells all apart or a label's frequency is wrong by a factor of 3. Smooth: poor if the Jacobian
    is infinite somewhere, fair if some direction does nothing. Latent law: good if both its
    distances from the prior are below their limits, poor if none is. Far away: no threshold.

    Parameters
    ----------
    measures
        As `evaluate` returns them, or as read from ``evaluation.json``.

    Returns
    -------
    Verdict
        A judgement for each criterion, and one sentence.

    Examples
    --------
    >>> measures = {
    ...     "reconstruction": {"residual": 0.06},
    ...     "two_sample_test": {"accuracy": 0.8, "interval": [0.78, 0.82], "num_images": 2000},
    ...     "smoothness": {"largest": {"largest": 9.0}, "smallest": {"smallest": 0.1}},
    ...     "latent": {"effect": 0.005, "norm_effect": 0.02},
    ...     "far": {"distance": 1.3, "sensitivity": 0.1},
    ... }
    >>> [judgement.status for judgement in judge(measures).criteria]
    ['no threshold', 'fair', 'good', 'good', 'no threshold']
    """
    residual = float(measures["reconstruction"]["residual"])
    criteria = (
        _range(residual),
        _samples(measures["two_sample_test"], measures.get("labels")),
        _smooth(measures["smoothness"]),
        _latent_law(measures["latent"]),
        _far(measures["far"]),
    )
    return Verdict(criteria, _overall(criteria, residual))


def _range(residual: float) -> Judgement:
    found = f"{residual:.2g} a pixel (root mean square)"
    status = "good" if residual <= _RESOLVED else "no threshold"
    return Judgement("range", found, "small beside the noise of the data", status)


def _samples(test: Mapping[str, Any], labels: Mapping[str, Any] | None) -> Judgement:
    accuracy, lowest = float(test["accuracy"]), float(test["interval"][0])
    factor = 1.0 if labels is None else float(labels["factor"])
    found, wanted = f"classifier {accuracy:.1%} right", "50%, within error"
    if labels is not None:
        found, wanted = f"{found}, labels {factor:.2g}", f"{wanted}, below {_LABEL_FACTOR:g}"
    if int(test["num_images"]) < _ENOUGH:
        found = f"{found}, of {test['num_images']} images: too few to tell"
        return Judgement("samples", found, wanted, "no threshold")
    status = "good" if lowest <= 0.5 else "fair"
    # A kind of images that is not drawn cannot be found; and where a classifier is always right, to
    # two digits, nothing drawn is like an image.
    if factor >= _LABEL_FACTOR or round(accuracy, 2) == 1:
        status = "poor"
    return Judgement("samples", found, wanted, status)


def _smooth(smoothness: Mapping[str, Any]) -> Judgement:
    largest = float(smoothness["largest"]["largest"])
    smallest = float(smoothness["smallest"]["smallest"])
    if math.isnan(smallest):  # in many dimensions only the largest is computed
        found, wanted, status = f"singular values up to {largest:.2g}", "finite", "good"
    else:
        found, wanted = f"singular values {smallest:.2g} to {largest:.2g}", "above 0, finite"
        status = "good" if smallest > _ROUNDING * largest else "fair"
    return Judgement("smooth", found, wanted, status if math.isfinite(largest) else "poor")


def _latent_law(latent: Mapping[str, Any]) -> Judgement:
    effect = float(latent["effect"])
    met, found, wanted = (
        [effect < _LATENT_EFFECT],
        f"energy {effect:.2g}",
        f"below {_LATENT_EFFECT}",
    )
    if latent["norm_effect"] is not None:
        norm = float(latent["norm_effect"])
        met.append(norm < _NORM_EFFECT)
        found, wanted = f"{found}, |z|^2 {norm:.2g}", f"{wanted}, below {_NORM_EFFECT}"
    status = "good" if all(met) else "fair" if any(met) else "poor"
    return Judgement("latent law", found, wanted, status)


def _far(far: Mapping[str, Any]) -> Judgement:
    found = f"distance {float(far['distance']):.2g}, gradient {float(far['sensitivity']):.2g}"
    return Judgement("far away", found, "near 1, away from 0", "no threshold")


def _overall(criteria: tuple[Judgement, ...], residual: float) -> str:
    present = {each.status for each in criteria}
    worst = next((status for status in ("poor", "fair") if status in present), "good")
    said = _FITNESS[worst]
    if worst != "good":
        names = [each.criterion for each in criteria if each.status == worst]
        said = f"{said} ({worst}: {', '.join(names)})"
    if residual <= _RESOLVED:
        return f"{said}; it draws every image as exactly as images are stored"
    return (
        f"{said}; unless the noise, in units of the image, is well above {residual:.2g} a pixel, "
        "let the model leave the range: x = G(z) + u with a prior on u"
    )
