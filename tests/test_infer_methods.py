"""How `infer` picks a method, and what it says of methods that get nowhere."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen.errors import ModelError, OptionError, SamplingError
from bayesgen.inference import HMC, PCN, SMC

Y = torch.tensor([0.5, -0.2])


def smooth(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(torch.tanh(z), 0.3).to_event(1), obs=y)


def rounded(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(torch.round(2 * z) / 2, 0.3).to_event(1), obs=y)


def infer(model: Any, y: Tensor = Y, **options: Any) -> bg.Posterior:
    return bg.infer(model, y, progress=False, **options)


def test_auto_says_what_it_chose_and_why() -> None:
    posterior = infer(smooth, method="auto", draws=200)
    assert posterior.attributes["method"] == "smc"
    assert "method chosen because z (2 unknowns) has a smooth density" in str(posterior.summary())


@pytest.mark.parametrize("options", [{"warmup": 20}, {"start": "map"}, {"thin": 2}])
def test_auto_takes_chains_where_they_were_asked_for(options: dict[str, Any]) -> None:
    posterior = infer(smooth, method="auto", draws=20, **options)
    assert posterior.attributes["method"] == "nuts"
    assert "chains were asked for" in posterior.attributes["chosen_because"]


def test_a_likelihood_without_a_gradient_is_refused_by_methods_that_need_it() -> None:
    with pytest.raises(ModelError, match=r"depends on \['z'\], but has no gradient.*'pcn'"):
        infer(rounded, method="hmc")
    for method in (PCN(), SMC(kernel="pcn", particles=64)):
        options = {"warmup": 20} if isinstance(method, PCN) else {}
        assert infer(rounded, method=method, draws=20, **options).num_draws == 20


def test_a_likelihood_that_ignores_a_site_is_none_of_that() -> None:
    def ignoring(y: Tensor) -> None:
        pyro.sample("idle", dist.Normal(0.0, 1.0))
        smooth(y)

    assert bg.LogDensity(ignoring, Y).sites_without_gradient == []


def test_chains_that_get_nowhere_are_an_error_that_keeps_them() -> None:
    with pytest.raises(SamplingError, match=r"'hmc': .*Start at optima") as caught:
        infer(smooth, method=HMC(step_size=1e4), draws=30, warmup=0)
    assert isinstance(caught.value.posterior, bg.Posterior)
    assert caught.value.posterior.draws("z").shape == (4, 30, 2)


def test_an_improper_posterior_drifts_and_the_summary_says_so() -> None:
    def improper(y: Tensor) -> None:
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        level = pyro.sample("level", flat)
        pyro.sample("y", dist.Normal(0.0 * level, 1.0).expand([2]).to_event(1), obs=y)

    posterior = infer(improper, method=PCN(step_size=1.0), chains=32, draws=1000, warmup=0)
    assert "'level' drifts ever further out" in str(posterior.summary())


def test_unreliable_weights_are_told() -> None:
    posterior = infer(smooth, draws=50, warmup=50)
    posterior.stats["pareto_k"] = torch.full_like(posterior.log_prob, 0.9)
    assert "Pareto k is 0.90" in str(posterior.summary())
    posterior.stats["pareto_k"] = torch.full_like(posterior.log_prob, 0.2)
    assert "well behaved: Pareto k 0.20" in str(posterior.summary())


def test_evidence_is_there_or_says_who_has_it() -> None:
    assert infer(smooth, method="smc", draws=64).log_evidence.shape == (4,)
    with pytest.raises(bg.errors.ResultError, match="method='smc'"):
        _ = infer(smooth, draws=5, warmup=5).log_evidence


def test_unknown_methods_are_answered_with_a_list() -> None:
    with pytest.raises(OptionError, match="'smc'"):
        infer(smooth, method="smcc")


def test_auto_walks_where_there_is_no_gradient() -> None:
    posterior = infer(rounded, method="auto", draws=20)
    assert "kernel='pcn'" in posterior.attributes["settings"]
    assert infer(rounded, method="auto", draws=20, warmup=20).attributes["method"] == "pcn"


def test_a_problem_whose_chains_are_stuck_is_named() -> None:
    # The second problem's likelihood is so sharp that no proposal of this size is taken.
    def sharp(y: Tensor, scale: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, scale).to_event(1), obs=y)

    data = torch.zeros(2, 2), torch.tensor([1.0, 1e-6])
    with pytest.warns(RuntimeWarning, match=r"no chain moved in problems \[1\]"):
        bg.infer(
            sharp,
            *data,
            method=HMC(step_size=0.5),
            batched=True,
            draws=30,
            warmup=0,
            start={"z": torch.zeros(2)},
            progress=False,
        )


def test_weights_that_are_probabilities_are_refused() -> None:
    def image(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(3, 3), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(x[0, :2], 1.0).to_event(1), obs=y)

    posterior = infer(image, draws=50, warmup=50)
    with pytest.raises(OptionError, match="log_weight: all of its values.*as probabilities do"):
        bg.importance.reweight(posterior, lambda x: torch.sigmoid(x.sum((1, 2))))
    bg.importance.reweight(posterior, lambda x: 0.1 * x.sum((1, 2)))


def test_evidence_up_to_a_constant_is_refused() -> None:
    A = bg.operators.Identity((2, 2))

    def iterated(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        law = bg.distributions.IteratedDeviation(z, A, std=0.6, scale=0.8)
        pyro.sample("y", law, obs=y)

    posterior = infer(iterated, torch.zeros(2, 2), method=SMC(particles=32), draws=32)
    with pytest.raises(bg.errors.ResultError, match="up to a constant"):
        _ = posterior.log_evidence


@pytest.mark.parametrize(
    ("method", "told"),
    [("ula", "ula is unadjusted"), ("annealed-langevin", "annealed-langevin is a heuristic")],
)
def test_what_is_not_exact_says_how(method: str, told: str) -> None:
    posterior = infer(smooth, method=method, draws=20, warmup=20)
    assert told in str(posterior.summary())
    assert "not exact" not in str(posterior.summary())
