"""Every limit from both sides, and what the judgements come to."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from bayesgen.models.evaluation.verdict import judge

CRITERIA = ("range", "samples", "smooth", "latent law", "far away")
MEASURES: dict[str, Any] = {
    "reconstruction": {"residual": 0.06},
    "two_sample_test": {"accuracy": 0.52, "interval": [0.49, 0.55], "num_images": 2000},
    "labels": {"factor": 1.5},
    "smoothness": {"largest": {"largest": 9.0}, "smallest": {"smallest": 0.1}},
    "latent": {"effect": 0.005, "norm_effect": 0.02},
    "far": {"distance": 1.3, "sensitivity": 0.1},
}
GOOD = ["no threshold", "good", "good", "good", "no threshold"]


def changed(**changes: Any) -> dict[str, Any]:
    measures = deepcopy(MEASURES)
    for part, values in changes.items():
        measures[part].update(values)
    return measures


def statuses(measures: dict[str, Any]) -> dict[str, str]:
    return {each.criterion: each.status for each in judge(measures).criteria}


def test_each_criterion_is_judged_once_and_in_order() -> None:
    verdict = judge(MEASURES)
    assert tuple(each.criterion for each in verdict.criteria) == CRITERIA
    assert [each.status for each in verdict.criteria] == GOOD
    assert all(each.found and each.wanted for each in verdict.criteria)


@pytest.mark.parametrize(
    ("criterion", "changes", "status"),
    [
        ("range", {"reconstruction": {"residual": 0.0019}}, "good"),
        ("range", {"reconstruction": {"residual": 0.0020}}, "no threshold"),
        ("samples", {"two_sample_test": {"accuracy": 0.56, "interval": [0.51, 0.6]}}, "fair"),
        ("samples", {"two_sample_test": {"accuracy": 0.994, "interval": [0.98, 1.0]}}, "fair"),
        ("samples", {"two_sample_test": {"accuracy": 0.996, "interval": [0.98, 1.0]}}, "poor"),
        ("samples", {"two_sample_test": {"num_images": 499}}, "no threshold"),
        ("samples", {"two_sample_test": {"num_images": 500}}, "good"),
        ("samples", {"labels": {"factor": 2.9}}, "good"),
        ("samples", {"labels": {"factor": 3.0}}, "poor"),
        ("samples", {"labels": {"factor": "inf"}}, "poor"),
        ("smooth", {"smoothness": {"smallest": {"smallest": 1e-5}}}, "good"),
        ("smooth", {"smoothness": {"smallest": {"smallest": 1e-7}}}, "fair"),
        ("smooth", {"smoothness": {"smallest": {"smallest": 0.0}}}, "fair"),
        ("smooth", {"smoothness": {"smallest": {"smallest": "nan"}}}, "good"),
        ("smooth", {"smoothness": {"largest": {"largest": "inf"}}}, "poor"),
        ("smooth", {"smoothness": {"largest": {"largest": "nan"}}}, "poor"),
        ("latent law", {"latent": {"effect": 0.0099, "norm_effect": 0.099}}, "good"),
        ("latent law", {"latent": {"effect": 0.0101}}, "fair"),
        ("latent law", {"latent": {"norm_effect": 0.101}}, "fair"),
        ("latent law", {"latent": {"effect": 0.0101, "norm_effect": 0.101}}, "poor"),
        ("latent law", {"latent": {"norm_effect": None}}, "good"),
        ("latent law", {"latent": {"effect": 0.0101, "norm_effect": None}}, "poor"),
        ("far away", {"far": {"distance": 1e11, "sensitivity": 0.0}}, "no threshold"),
    ],
)
def test_limits(criterion: str, changes: dict[str, Any], status: str) -> None:
    expected = dict(zip(CRITERIA, GOOD, strict=True)) | {criterion: status}
    assert statuses(changed(**changes)) == expected


def test_labels_need_not_be_there() -> None:
    measures = deepcopy(MEASURES)
    del measures["labels"]
    found = judge(measures).criteria[1]
    assert found.status == "good" and "label" not in found.found and "below" not in found.wanted


def test_the_sentence_follows_the_worst_and_names_it() -> None:
    assert judge(MEASURES).overall.startswith("fit as a prior by all that has a threshold; unless")
    assert "well above 0.06 a pixel" in judge(MEASURES).overall
    told = {"accuracy": 0.8, "interval": [0.78, 0.82]}
    fair = changed(two_sample_test=told)
    assert judge(fair).overall.startswith("fit as a prior, with care (fair: samples); ")
    poor = changed(two_sample_test=told, latent={"effect": 0.2, "norm_effect": 0.9})
    assert judge(poor).overall.startswith("not fit as a prior without a remedy (poor: latent law)")
    both = changed(labels={"factor": 4.0}, latent={"effect": 0.2, "norm_effect": 0.9})
    assert "(poor: samples, latent law)" in judge(both).overall
    exact = judge(changed(reconstruction={"residual": 0.0})).overall
    assert "every image" in exact and "leave the range" not in exact
