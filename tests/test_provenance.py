from __future__ import annotations

import datetime
import functools
import json

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen._version import __version__
from bayesgen.inference import HMC


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


def test_a_run_says_how_to_make_it_again() -> None:
    method = HMC(target_acceptance=0.9)
    posterior = bg.infer(
        model, torch.zeros(2), method=method, draws=6, warmup=4, thin=2, seed=7, progress=False
    )
    found = posterior.attributes
    assert found["kind"] == "draws"
    assert found["method"] == "hmc"
    assert found["settings"] == repr(method)
    assert (found["seed"], found["thin"], found["num_warmup"]) == (7, 2, 4)
    assert (found["start"], found["exact"], found["interrupted"]) == ("prior", True, False)
    assert found["num_evaluations"] >= 4 + 12
    assert found["seconds"] >= found["warmup_seconds"] > 0.0
    assert found["model"] == "model"
    assert found["model_source"].startswith("def model(y: Tensor)")
    assert (found["dtype"], found["device"]) == ("torch.float32", "cpu")
    assert found["inference_library_version"] == __version__
    assert found["torch"] == torch.__version__
    assert datetime.datetime.fromisoformat(found["created_at"]).tzinfo is not None
    assert all(isinstance(value, str | int | float) for value in found.values())
    assert json.loads(json.dumps(found)) == found


def test_optima_and_other_starts_are_named() -> None:
    point = bg.infer(model, torch.zeros(2), method="map", progress=False)
    assert (point.attributes["kind"], point.attributes["exact"]) == ("optima", False)
    more = bg.infer(model, torch.zeros(2), draws=2, warmup=0, start=point, progress=False)
    assert more.attributes["start"] == "Posterior"


def test_models_without_source_are_no_trouble() -> None:
    bound = functools.partial(model)
    posterior = bg.infer(bound, torch.zeros(2), draws=2, warmup=0, progress=False)
    assert posterior.attributes["model"] == "partial"
    assert posterior.attributes["model_source"] == ""
