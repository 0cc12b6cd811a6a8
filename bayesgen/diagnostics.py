"""Whether to trust a posterior: the usual diagnostics, and what they mean in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

if TYPE_CHECKING:
    import xarray

    from bayesgen.posterior import Posterior

# R-hat and effective sample size as recommended by Vehtari et al. (2021).
RHAT_GOOD, RHAT_USABLE = 1.01, 1.05
ESS_GOOD, ESS_USABLE = 400, 100
# Diagnostics look at no more coordinates than this, evenly spread (ArviZ takes 15 s for 16384).
MAX_COORDINATES = 1000
MISFIT_DRAWS = 200

TRUST, CARE, DISTRUST = "trust", "trust with care", "do not trust"


@dataclass(frozen=True)
class Finding:
    """One thing the diagnostics say.

    Attributes
    ----------
    severity
        0 good, 1 care, 2 not to be trusted.
    text
        What was found.
    advice
        What to do about it; empty if nothing need be done.
    """

    severity: int
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Summary:
    """A verdict on a result, its reasons, and the numbers behind it.

    Attributes
    ----------
    verdict
        ``"trust"``, ``"trust with care"`` or ``"do not trust"``. It says whether the draws
        represent the posterior of the model, and whether the model can explain the data; not
        whether the generator is a good prior for this image.
    findings
        The reasons, worst first.
    numbers
        Diagnostic values by name.
    title
        One line that says what was run.
    """

    verdict: str
    findings: tuple[Finding, ...]
    numbers: dict[str, float] = field(default_factory=dict)
    title: str = ""

    def __str__(self) -> str:
        marks = {0: "ok  ", 1: "care", 2: "BAD "}
        lines = [self.title, f"Verdict: {self.verdict}."]
        for finding in self.findings:
            lines.append(f"  [{marks[finding.severity]}] {finding.text}")
            if finding.advice:
                lines.append(f"         -> {finding.advice}")
        return "\n".join(lines)


def summarise(posterior: Posterior) -> Summary:
    """Judge a posterior; see `Summary`.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), *Rank-normalization, folding, and
    localization*; Betancourt (2017), sections 5.3 and 6.2; Gelman, Meng and Stern (1996),
    posterior predictive checks.
    """
    numbers: dict[str, float] = {}
    judge = _judge_optima if posterior.is_point_estimate else _judge_draws
    findings = [*judge(posterior, numbers), *_judge_fit(posterior, numbers)]
    if posterior.interrupted:
        findings.append(
            Finding(1, "the run was interrupted before all draws were made", "run it to the end")
        )
    findings.sort(key=lambda finding: -finding.severity)
    worst = max((finding.severity for finding in findings), default=0)
    seconds = float(posterior.attributes.get("seconds", math.nan))
    return Summary(
        verdict=(TRUST, CARE, DISTRUST)[worst],
        findings=tuple(findings),
        numbers=numbers,
        title=f"{posterior!r}, {seconds:.1f} s",
    )


def rhat(posterior: Posterior) -> xarray.Dataset:
    """Rank-normalised split R-hat of the latent sites and of the log density (``lp``)."""
    import arviz as az

    with np.errstate(all="ignore"):
        return az.rhat(_coordinates(posterior))


def ess(posterior: Posterior, method: str = "bulk") -> xarray.Dataset:
    """Effective sample size (``"bulk"`` or ``"tail"``) of the latent sites and of ``lp``."""
    import arviz as az

    with np.errstate(all="ignore"):
        return az.ess(_coordinates(posterior), method=method)


def bfmi(energy: Tensor) -> Tensor:
    """Energy Bayesian fraction of missing information of each chain (Betancourt 2017, eq. 35).

    Parameters
    ----------
    energy
        ``(*batch, draws)``.
    """
    spread = (energy - energy.mean(-1, keepdim=True)).square().sum(-1)
    return energy.diff(dim=-1).square().sum(-1) / spread


def data_misfit(posterior: Posterior, max_draws: int = MISFIT_DRAWS) -> tuple[Tensor, int]:
    """Chi-square of the data, sum of ((y - mean)/std)^2, at draws of the posterior.

    Returns
    -------
    misfit, count
        Values ``(*problems, draws)`` at evenly spread draws (the mode, for a point estimate),
        and the number of data, which is what to expect of a model that is right.
    """
    log_density = posterior.model
    axis = 0 if posterior.num_problems is None else 1
    total = posterior.num_chains * posterior.num_draws
    if posterior.is_point_estimate:
        latent = {name: posterior.mode(name).unsqueeze(axis) for name in posterior.latent_sites}
    else:
        index = torch.linspace(0, total - 1, min(max_draws, total)).long()
        latent = {
            name: posterior.draws(name)
            .flatten(axis, axis + 1)
            .index_select(axis, index.to(posterior.log_prob.device))
            for name in posterior.latent_sites
        }
    sites = posterior.observed

    def misfit(trace: poutine.Trace) -> dict[str, Tensor]:
        nodes = [trace.nodes[name] for name in sites]
        terms = [
            ((node["value"] - node["fn"].mean).square() / node["fn"].variance).sum()
            for node in nodes
        ]
        return {"misfit": torch.stack(terms).sum()}

    count = sum(value.numel() for value in sites.values())
    return log_density.map_draws(misfit, latent)["misfit"], count


def _coordinates(posterior: Posterior) -> xarray.Dataset:
    """Scalars to diagnose: (thinned) coordinates of the latent sites, and the log density."""
    import xarray

    lead = ("chain", "draw") if posterior.num_problems is None else ("problem", "chain", "draw")
    variables = {"lp": (lead, posterior.log_prob.cpu().double().numpy())}
    for name in posterior.latent_sites:
        value = posterior.draws(name).flatten(len(lead))
        stride = max(1, math.ceil(value.shape[-1] / MAX_COORDINATES))
        array = value[..., ::stride].cpu().double().numpy()
        variables[f"site {name}"] = ((*lead, f"coordinate of {name}"), array)
    return xarray.Dataset(variables)


def _judge_draws(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    if posterior.num_draws >= 4:
        yield from _judge_mixing(posterior, numbers)
    else:
        yield Finding(2, f"{posterior.num_draws} draws a chain say nothing", "set draws >= 100")
    if not posterior.attributes.get("exact", True):
        yield Finding(
            1,
            f"{posterior.attributes.get('method')} is unadjusted: its draws are biased",
            "compare with an exact method such as 'hmc'",
        )
    stats = posterior.stats
    if "diverging" in stats:
        yield _judge_divergences(int(stats["diverging"].sum()), stats["diverging"].numel(), numbers)
    if "energy" in stats and posterior.num_draws >= 4:
        numbers["bfmi_min"] = float(bfmi(stats["energy"].double()).min())
        if numbers["bfmi_min"] < 0.3:
            yield Finding(
                1,
                f"E-BFMI is {numbers['bfmi_min']:.2f} (< 0.3): momenta explore the energy slowly",
                "reparametrise heavy tails or scales of scales; draw more",
            )
    if "acceptance_rate" in stats:
        numbers["acceptance_rate"] = float(stats["acceptance_rate"].mean())


def _judge_mixing(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    worst_rhat, at = _extreme(rhat(posterior), max)
    bulk, tail = (_extreme(ess(posterior, method), min)[0] for method in ("bulk", "tail"))
    numbers.update(rhat_max=worst_rhat, ess_bulk_min=bulk, ess_tail_min=tail)
    more = "draw or warm up longer, or start at optima (start='map')"
    if posterior.num_chains < 4:
        yield Finding(
            1, f"{posterior.num_chains} chains cannot show that chains agree", "set chains >= 4"
        )
    if not worst_rhat <= RHAT_USABLE:
        text = f"chains disagree: R-hat is {worst_rhat:.2f} at {at} (should be <= {RHAT_GOOD})"
        yield Finding(2, text, f"the posterior may have several modes; {more}")
    elif worst_rhat > RHAT_GOOD:
        text = f"R-hat is {worst_rhat:.3f} at {at} (should be <= {RHAT_GOOD})"
        yield Finding(1, text, more)
    else:
        yield Finding(0, f"chains agree: largest R-hat {worst_rhat:.3f}")
    least = min(bulk, tail)
    text = f"effective sample size at least {bulk:.0f} (bulk), {tail:.0f} (tail)"
    if not least >= ESS_USABLE:
        yield Finding(2, f"{text}: too few", more)
    elif least < ESS_GOOD:
        yield Finding(1, f"{text}: means are fine, interval ends are rough", more)
    else:
        yield Finding(0, text)


def _judge_divergences(diverging: int, count: int, numbers: dict[str, float]) -> Finding:
    numbers["divergences"] = diverging
    if diverging == 0:
        return Finding(0, "no divergent trajectories")
    severity = 2 if diverging > 0.01 * count else 1
    return Finding(
        severity,
        f"{diverging} of {count} trajectories diverged: the integrator missed sharp regions",
        "raise target_acceptance (0.9, 0.95), or reparametrise",
    )


def _judge_optima(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    converged = posterior.stats["converged"]
    numbers["converged"] = float(converged.double().mean())
    yield Finding(1, "a point estimate: it carries no uncertainty", "infer with method='hmc'")
    if not bool(converged.all()):
        yield Finding(
            1,
            f"{int(converged.sum())} of {converged.numel()} restarts converged",
            "raise max_iterations",
        )
    if posterior.num_problems is None:
        best = posterior.log_prob.flatten()
        near = int((best >= best.max() - 0.1).sum())
        numbers["restarts_at_best"] = near
        severity = 0 if near > 1 or len(best) == 1 else 1
        yield Finding(
            severity,
            f"{near} of {len(best)} restarts ended within 0.1 of the best log density",
            "" if severity == 0 else "use more restarts (chains=)",
        )


def _judge_fit(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    if posterior._log_density is None or not posterior.observed:
        return
    try:
        misfit, count = data_misfit(posterior)
    except NotImplementedError:  # a likelihood without mean or variance
        return
    if not bool(torch.isfinite(misfit).all()):
        return
    from scipy.stats import chi2

    p_value = chi2.sf(misfit.double().cpu().numpy(), count).mean(-1)
    ratio = (misfit.double().mean(-1) / count).cpu().numpy()
    numbers.update(chi_square_ratio=float(ratio.mean()), chi_square_p=float(np.min(p_value)))
    text = f"data misfit chi-square/m = {ratio.mean():.2f} (m = {count})"
    if posterior.num_problems is not None:
        low = int((p_value < 0.01).sum())
        text += f"; {low} of {len(p_value)} problems misfit (p < 0.01)"
        bad = low > 0.05 * len(p_value)
    else:
        text += f", p = {p_value:.2g}"
        bad = bool(p_value < 0.01)
    if bad:
        yield Finding(
            1,
            f"{text}: the model does not explain the data to within its noise",
            "the image may lie outside the generator's range (then intervals are too narrow), or "
            "sigma is too small",
        )
    elif ratio.mean() < 0.5:
        yield Finding(1, f"{text}: closer than the noise allows", "sigma may be too large")
    else:
        yield Finding(0, f"the model explains the data: {text}")


def _extreme(dataset: xarray.Dataset, which: object) -> tuple[float, str]:
    values = {
        str(name): float(variable.max() if which is max else variable.min())
        for name, variable in dataset.data_vars.items()
    }
    # A coordinate that never moved gives NaN, which must not pass as good.
    for name, value in values.items():
        if math.isnan(value):
            return value, name
    name = (max if which is max else min)(values, key=lambda key: values[key])
    return values[name], name
