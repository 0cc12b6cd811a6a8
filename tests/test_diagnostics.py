from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen import Posterior
from bayesgen.covariances import Dense, Structured
from bayesgen.diagnostics import (
    CARE,
    DISTRUST,
    TRUST,
    Finding,
    Summary,
    bfmi,
    data_misfit,
    ess,
    rhat,
)
from bayesgen.models import LinearGenerator, StructuredVAE
from bayesgen.operators import Matrix

F64 = torch.float64
SIGMA = 0.5


def model(y: Tensor) -> None:
    """z ~ N(0, 1) in two dimensions; four data per coordinate: the posterior is known."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(torch.zeros((), dtype=F64), 1.0))
    pyro.deterministic("scaled", s * z)
    pyro.sample("y", dist.Normal(z.expand(50, 2), SIGMA).to_event(2), obs=y)


def data(*problems: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return SIGMA * torch.randn((*problems, 50, 2), generator=rng, dtype=F64)


def exact(*lead: int, y: Tensor | None = None, seed: int = 0, **changes: Any) -> Posterior:
    """Independent draws from the posterior itself, dressed as a run."""
    y = data(*lead[:-2]) if y is None else y
    precision = 1.0 + 50 / SIGMA**2
    rng = torch.Generator().manual_seed(seed)
    mean = (y.sum(-2) / SIGMA**2 / precision).reshape(*lead[:-2], 1, 1, 2)
    noise = torch.randn((*lead, 2), generator=rng, dtype=F64)
    energy = torch.randn(lead, generator=rng, dtype=F64)
    parts: dict[str, Any] = {
        "latent": {
            "z": mean + noise / math.sqrt(precision),
            "s": torch.randn(lead, generator=rng, dtype=F64).exp(),
        },
        "log_prob": -0.5 * noise.square().sum(-1),
        "stats": {
            "diverging": torch.zeros(lead, dtype=torch.bool),
            "energy": energy,
            "acceptance_rate": torch.full(lead, 0.8, dtype=F64),
        },
        "attributes": {"kind": "draws", "method": "hmc", "exact": True, "seconds": 1.5},
        "log_density": bg.LogDensity(model, y, batched=len(lead) == 3),
    }
    for name, change in changes.items():
        parts[name] = parts[name] | change if isinstance(parts[name], dict) else change
    return Posterior(**parts)


def texts(summary: Summary, severity: int) -> str:
    return "\n".join(f.text for f in summary.findings if f.severity == severity)


# ---------------------------------------------------------------------- verdicts


def test_independent_draws_of_the_posterior_are_trusted() -> None:
    summary = exact(4, 500).summary()
    assert summary.verdict == TRUST
    assert all(finding.severity == 0 for finding in summary.findings)
    assert summary.numbers["rhat_max"] < 1.01
    assert summary.numbers["ess_bulk_min"] > 1000
    assert summary.numbers["divergences"] == 0
    assert summary.numbers["acceptance_rate"] == pytest.approx(0.8)
    text = str(summary)
    assert "Verdict: trust." in text
    assert "4 chains x 500 draws by hmc" in text
    assert "1.5 s" in text
    assert "the model explains the data" in text


def test_a_real_run_is_judged() -> None:
    posterior = bg.infer(model, data(), draws=100, warmup=100, progress=False)
    summary = posterior.summary()
    assert "R-hat" in str(summary)
    assert set(summary.numbers) >= {"rhat_max", "ess_bulk_min", "divergences", "bfmi_min"}


def test_chains_that_disagree_are_not_trusted() -> None:
    z = exact(4, 500).draws("z").clone()
    z[2] += 1.0
    summary = exact(4, 500, latent={"z": z}).summary()
    assert summary.verdict == DISTRUST
    assert summary.findings[0].severity == 2  # worst first
    assert "chains disagree" in texts(summary, 2)
    assert "site z" in texts(summary, 2)
    assert "several modes" in str(summary)


def test_a_drifting_single_chain_is_not_trusted() -> None:
    still = exact(1, 500)
    assert still.summary().verdict == CARE
    assert "1 chain(s) cannot show" in texts(still.summary(), 1)
    drift = torch.linspace(0.0, 3.0, 500, dtype=F64)[None]
    summary = exact(1, 500, latent={"s": still.draws("s") + 10 * drift}).summary()
    assert "chains disagree" in texts(summary, 2)


@pytest.mark.parametrize("draws", [1, 3])
def test_too_few_draws_to_say_anything(draws: int) -> None:
    summary = exact(4, draws).summary()
    assert summary.verdict == DISTRUST
    assert f"{draws} draws a chain say nothing" in texts(summary, 2)


def test_few_draws_are_taken_with_care_or_not_at_all() -> None:
    assert "too few" in texts(exact(4, 15).summary(), 2)
    assert "interval ends are rough" in texts(exact(4, 60).summary(), 1)


@pytest.mark.parametrize("site", ["z", "s"])
def test_a_coordinate_that_never_moves_is_not_trusted(site: str) -> None:
    """ArviZ gives it NaN for R-hat and a perfect effective sample size."""
    draws = exact(4, 500).draws(site).clone()
    if site == "z":
        draws[..., 1] = 0.25  # the other coordinate moves
    else:
        draws[:] = 0.25
    summary = exact(4, 500, latent={site: draws}).summary()
    assert summary.verdict == DISTRUST
    assert f"stuck: a coordinate of site {site} is the same in all draws" in texts(summary, 2)


def test_chains_that_are_stuck_at_different_places_are_not_trusted() -> None:
    z = exact(4, 500).draws("z")[:, :1].expand(4, 500, 2)
    assert exact(4, 500, latent={"z": z}).summary().verdict == DISTRUST


def test_elements_that_are_constant_by_construction_are_no_alarm() -> None:
    def correlated(y: Tensor) -> None:
        factor = pyro.sample("factor", dist.LKJCholesky(3, torch.ones((), dtype=F64)))
        pyro.sample("y", dist.Normal(factor.sum(), 1.0), obs=y)

    log_density = bg.LogDensity(correlated, torch.tensor(0.0, dtype=F64))
    v = log_density.prior_draws(2000, torch.Generator().manual_seed(0)).reshape(4, 500, -1)
    latent, log_prob = log_density.constrain(v), log_density.log_prob(v)
    posterior = Posterior(latent, log_prob, {}, {"kind": "draws"}, log_density)
    assert (posterior.draws("factor")[..., 0, 2] == 0.0).all()
    assert posterior.summary().verdict == TRUST


@pytest.mark.parametrize(("count", "severity"), [(0, 0), (3, 1), (30, 2)])
def test_divergences(count: int, severity: int) -> None:
    diverging = torch.zeros(4, 500, dtype=torch.bool)
    diverging.view(-1)[:count] = True
    summary = exact(4, 500, stats={"diverging": diverging}).summary()
    assert summary.verdict == (TRUST, CARE, DISTRUST)[severity]
    assert summary.numbers["divergences"] == count
    if count:
        assert f"{count} of 2000 trajectories diverged" in texts(summary, severity)
        assert "target_acceptance" in str(summary)


def test_interrupted_and_unadjusted_runs_are_taken_with_care() -> None:
    summary = exact(4, 500, attributes={"interrupted": True}).summary()
    assert summary.verdict == CARE
    assert "interrupted" in texts(summary, 1)
    summary = exact(4, 500, attributes={"exact": False, "method": "ula"}).summary()
    assert summary.verdict == CARE
    assert "ula is unadjusted" in texts(summary, 1)


def test_energy_that_moves_slowly_is_reported() -> None:
    energy = torch.randn(4, 500, generator=torch.Generator().manual_seed(0), dtype=F64).cumsum(1)
    summary = exact(4, 500, stats={"energy": energy}).summary()
    assert summary.verdict == CARE
    assert "E-BFMI" in texts(summary, 1)


# ---------------------------------------------------------------------- fit to the data


@pytest.mark.parametrize(
    ("scale", "verdict", "text"),
    [
        (1.0, TRUST, "the model explains the data"),
        (1.6, CARE, "does not explain the data to within its noise"),
        (0.3, CARE, "closer than the noise allows"),
    ],
)
def test_data_with_more_or_less_noise_than_the_model_has(
    scale: float, verdict: str, text: str
) -> None:
    summary = exact(4, 500, y=scale * data()).summary()
    assert summary.verdict == verdict
    assert text in str(summary)
    assert summary.numbers["chi_square_ratio"] == pytest.approx(scale**2, abs=0.5)


def test_the_misfit_is_that_of_its_closed_form() -> None:
    posterior = exact(2, 50)
    misfit, count = data_misfit(posterior)
    assert count == 100
    residual = data() - posterior.draws("z").reshape(100, 1, 2)
    torch.testing.assert_close(misfit, residual.square().sum((1, 2)) / SIGMA**2)
    few, _ = data_misfit(posterior, max_draws=3)
    torch.testing.assert_close(few, misfit[[0, 49, 99]])
    many = exact(2, 2, 50)
    misfit, count = data_misfit(many)
    assert misfit.shape == (2, 100)
    torch.testing.assert_close(misfit[1], data_misfit(many[1])[0])


def test_a_false_alarm_about_the_fit_is_rare() -> None:
    """Data drawn from the model: p < 0.01 in at most 1 % of cases, so not even twice in 40."""
    rng = torch.Generator().manual_seed(5)
    z = torch.randn((40, 1, 2), generator=rng, dtype=F64)
    y = z + SIGMA * torch.randn((40, 50, 2), generator=rng, dtype=F64)
    summary = exact(40, 4, 50, y=y).summary()
    assert "0 of 40 problems misfit" in str(summary) or "1 of 40" in str(summary)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


COVARIANCE = 0.1 * torch.eye(16, dtype=F64) + 0.2


def deviating(form: str, factor: float, scale: Any = 0.3) -> Posterior:
    """Draws about the truth of a soft-range model, of 24 data with ``factor`` times its noise."""
    A, shape = Matrix(random(24, 16, seed=2), domain_shape=(4, 4)), (4, 4)
    G: Any = LinearGenerator.from_tensors(random(*shape, 2, seed=3), random(*shape, seed=4), 0.1)
    C: Any = Dense(COVARIANCE, shape)
    z, noise = random(2, seed=5), random(16, seed=7)
    u = C.factor(noise)
    if form == "structured":
        G, C = StructuredVAE(shape, 2, radius=1, width=6, channels=2).double().eval(), Structured()
        u = G.requires_grad_(False).residual_prior(z).colour(noise.reshape(shape))
    y = A(G(z) + 0.3 * u) + factor * SIGMA * random(24, seed=6)
    model = bg.regularisers.soft_range(
        G, A, SIGMA, covariance=C, scale=scale, integrated=form != "site"
    )
    density = bg.LogDensity(model, y, compile=False)
    latent = {"z": z, "u": u, "scale": torch.tensor(0.3, dtype=F64)}
    lead = (4, 100)
    draws = {
        name: latent[name] * (1 + 0.01 * random(*lead, *(1,) * latent[name].ndim, seed=8))
        for name in density.sites.latent
    }
    attributes = {"kind": "draws", "method": "hmc", "exact": True}
    return Posterior(
        latent=draws,
        log_prob=random(*lead, seed=9),
        stats={},
        attributes=attributes,
        log_density=density,
    )


@pytest.mark.parametrize("form", ["integrated", "iterated", "structured", "site"])
def test_the_fit_is_judged_with_the_deviation_that_is_integrated_out(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On data of the model nothing is found; on those of three times its noise a misfit."""
    if form == "iterated":
        for where in ("regularisers.soft_range", "distributions.deviation"):
            monkeypatch.setattr(sys.modules[f"bayesgen.{where}"], "MOST_NUMBERS", 3)
    right, wrong = (deviating(form, factor).summary() for factor in (1.0, 3.0))
    assert "the model explains the data" in texts(right, 0) and "explain" not in texts(right, 1)
    assert abs(right.numbers["chi_square_ratio"] - 1) < 3 * (2 / 24) ** 0.5
    assert "does not explain the data to within its noise" in texts(wrong, 1)
    # The 8 data that no image explains have nine times their share, the others more than theirs.
    assert wrong.numbers["chi_square_ratio"] > 2.5


def test_levels_that_are_inferred_are_not_taken_for_a_good_fit() -> None:
    scale = dist.LogNormal(torch.zeros((), dtype=F64), 1.0)
    found = texts(deviating("integrated", 1.0, scale).summary(), 0)
    assert "fit to the data not checked: the level of the noise, or of a deviation" in found
    # No scale of the deviation makes up for what no image explains.
    summary = deviating("integrated", 3.0, scale).summary()
    assert "does not explain the data" in texts(summary, 1)


def test_other_noise_has_no_chi_square() -> None:
    def counts(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.ones((), dtype=F64), 1.0))
        pyro.sample("y", dist.Poisson(rate.expand(5)).to_event(1), obs=y)

    posterior = bg.infer(counts, torch.ones(5, dtype=F64), draws=10, warmup=10, progress=False)
    assert "fit to the data not checked: the noise is not" in str(posterior.summary())
    assert "chi_square_p" not in posterior.summary().numbers


def test_without_the_model_the_fit_is_not_judged() -> None:
    summary = exact(4, 500, log_density=None).summary()
    assert summary.verdict == TRUST
    assert "loaded without the model" in texts(summary, 0)


# ---------------------------------------------------------------------- kinds of results


def test_many_problems_are_judged_together() -> None:
    good = exact(3, 4, 500)
    assert good.summary().verdict == TRUST
    assert "0 of 3 problems misfit" in str(good.summary())
    z = good.draws("z").clone()
    z[1, 0] += 1.0  # one chain of one problem
    summary = exact(3, 4, 500, latent={"z": z}).summary()
    assert summary.verdict == DISTRUST
    assert rhat(good)["site z"].shape == (3, 2)


def test_a_point_estimate_carries_no_uncertainty() -> None:
    posterior = bg.infer(model, data(), method="map", chains=3, progress=False)
    summary = posterior.summary()
    assert summary.verdict == CARE
    assert "carries no uncertainty" in texts(summary, 1)
    assert "3 restarts ended in 1 optimum" in str(summary)
    assert summary.numbers["converged"] == 1.0
    stopped = bg.infer(
        model, data() + 3.0, method=bg.inference.MAP(max_iterations=1), chains=3, progress=False
    )
    assert "restarts converged" in texts(stopped.summary(), 1)
    many = bg.infer(model, data(2), method="map", batched=True, chains=2, progress=False)
    assert many.summary().verdict == CARE


# ---------------------------------------------------------------------- numbers


def test_rhat_and_ess_are_those_of_arviz() -> None:
    posterior = exact(4, 200)
    from bayesgen._arviz import import_arviz

    idata = posterior.to_arviz()
    np.testing.assert_allclose(rhat(posterior)["site z"], import_arviz().rhat(idata.posterior)["z"])
    for method in ("bulk", "tail"):
        np.testing.assert_allclose(
            ess(posterior, method)["site z"],
            import_arviz().ess(idata.posterior, method=method)["z"],
        )


def test_many_coordinates_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesgen.diagnostics.MAX_COORDINATES", 10)
    draws = torch.randn(4, 50, 95, generator=torch.Generator().manual_seed(0))
    posterior = Posterior({"z": draws}, draws.sum(-1), {}, {})
    found = rhat(posterior)["site z"]
    assert found.shape == (10,)


def test_bfmi_by_hand() -> None:
    energy = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 0.0]], dtype=F64)
    # Differences 1, 2 over deviations -4/3, -1/3, 5/3; differences 1, -1 over -1/3, 2/3, -1/3.
    expected = torch.tensor([5.0 / (42.0 / 9.0), 2.0 / (6.0 / 9.0)], dtype=F64)
    torch.testing.assert_close(bfmi(energy), expected)


def test_findings_are_printed_with_their_advice() -> None:
    summary = Summary("trust with care", (Finding(1, "odd", "look"), Finding(0, "fine")), {}, "A")
    assert str(summary) == (
        "A\nVerdict: trust with care.\n  [care] odd\n         -> look\n  [ok  ] fine"
    )


def test_users_see_no_warning_of_arviz() -> None:
    code = (
        "import torch; from bayesgen import Posterior; "
        "z = torch.randn(4, 100, 2, generator=torch.Generator().manual_seed(0)); z[..., 1] = 0; "
        "p = Posterior({'z': z}, z.sum(-1), {}, {}); print(p.summary()); p.to_arviz()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
