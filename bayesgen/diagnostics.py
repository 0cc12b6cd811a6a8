"""Whether to trust a posterior: the usual diagnostics, and what they mean in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from bayesgen._arviz import import_arviz
from bayesgen.distributions.integrated import Integrated
from bayesgen.inference import Method
from bayesgen.inference.map import OUTCOMES
from bayesgen.traces import base_law, chi_square

if TYPE_CHECKING:
    import xarray

    from bayesgen.basins import Basin
    from bayesgen.model_sites import Site
    from bayesgen.posterior import Posterior

# R-hat and effective sample size as recommended by Vehtari et al. (2021).
RHAT_GOOD, RHAT_USABLE = 1.01, 1.05
ESS_GOOD, ESS_USABLE = 400, 100
# Beyond it the tail of importance weights is too heavy for any number of draws (Vehtari 2024).
PARETO_USABLE = 0.7
# Diagnostics look at no more coordinates of a site than this, evenly spread, over all problems
# together (ArviZ takes a millisecond for each).
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
    checked
        False for what could not be looked at.
    """

    severity: int
    text: str
    advice: str = ""
    checked: bool = True


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
            mark = marks[finding.severity] if finding.checked else "?   "
            lines.append(f"  [{mark}] {finding.text}")
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
    seconds = posterior.attributes.get("seconds")
    return Summary(
        verdict=(TRUST, CARE, DISTRUST)[worst],
        findings=tuple(findings),
        numbers=numbers,
        title=repr(posterior) + (f", {seconds:.1f} s" if seconds is not None else ""),
    )


def rhat(posterior: Posterior) -> xarray.Dataset:
    """Rank-normalised split R-hat of the latent sites and of the log density (``lp``).

    The two halves of a single chain are compared as if they were two chains.
    """
    import xarray

    scalars = _coordinates(posterior)
    if posterior.num_chains == 1:
        half = posterior.num_draws // 2
        halves = [scalars.isel(draw=slice(k * half, (k + 1) * half)) for k in (0, 1)]
        scalars = xarray.concat(halves, "chain")
    with np.errstate(all="ignore"):
        found: xarray.Dataset = import_arviz().rhat(scalars)
    return found


def ess(posterior: Posterior, method: str = "bulk") -> xarray.Dataset:
    """Effective sample size (``"bulk"`` or ``"tail"``) of the latent sites and of ``lp``."""
    with np.errstate(all="ignore"):
        found: xarray.Dataset = import_arviz().ess(_coordinates(posterior), method=method)
    return found


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
    """Chi-square of the data at draws of the posterior.

    The squared length of the whitened residual where noise is normal, correlated or not, also that
    of a deviation integrated out; else the sum of ((y - mean)/std)^2.

    Returns
    -------
    misfit, count
        Values ``(*problems, draws)`` at evenly spread draws (the mode, for a point estimate),
        and the number of data, which is what to expect of a model that is right.

    Raises
    ------
    NotImplementedError
        If a likelihood has no mean or variance.
    """
    if posterior.is_point_estimate:
        index = posterior.log_prob.nan_to_num(-torch.inf).flatten(-2).argmax(-1, keepdim=True)
    else:
        total = posterior.num_chains * posterior.num_draws
        index = torch.linspace(0, total - 1, min(max_draws, total)).long()
    sites = posterior.model.sites.observed

    def misfit(trace: poutine.Trace) -> dict[str, Tensor]:
        terms = [_misfit(trace.nodes[name]) for name in sites]
        return {"misfit": torch.stack(terms).sum()}

    count = sum(value.numel() for value in sites.values())
    return posterior.evaluate(misfit, index)["misfit"], count


def _misfit(node: Any) -> Tensor:
    normal = chi_square(node)
    if normal is not None:
        return normal
    return ((node["value"] - node["fn"].mean).square() / node["fn"].variance).sum()


def _coordinates(posterior: Posterior) -> xarray.Dataset:
    """Scalars to diagnose: (thinned) coordinates of the latent sites, and the log density."""
    import xarray

    lead = ("chain", "draw") if posterior.num_problems is None else ("problem", "chain", "draw")
    variables = {"lp": xarray.Variable(lead, posterior.log_prob.cpu().double().numpy())}
    for name in posterior.latent_sites:
        value = posterior.draws(name).reshape(*posterior.log_prob.shape, -1)
        count = value.shape[-1] * (posterior.num_problems or 1)
        value = value[..., :: max(1, math.ceil(count / MAX_COORDINATES))]
        if posterior.has_model and _is_redundant(posterior.model.sites.latent[name]):
            # Some elements are constants by construction: zeros of a triangular matrix.
            flat = value.flatten(0, -2)
            value = value[..., (flat != flat[0]).any(0)]
        array = value.cpu().double().numpy()
        variables[f"site {name}"] = xarray.Variable((*lead, f"coordinate of {name}"), array)
    return xarray.Dataset(variables)


def _is_redundant(site: Site) -> bool:
    return site.unconstrained_shape.numel() < site.shape.numel()


def _judge_draws(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    if posterior.num_draws >= 4:
        yield from _judge_mixing(posterior, numbers)
    else:
        yield Finding(2, f"{posterior.num_draws} draws a chain say nothing", "set draws >= 100")
    if posterior.attributes.get("method") == "laplace":
        yield Finding(
            1,
            "a Laplace approximation: normal around one optimum, blind to other modes and skewness",
            "compare with an exact method such as 'hmc'",
        )
    elif not posterior.attributes.get("exact", True):
        yield Finding(
            1,
            f"{posterior.attributes.get('method')} is "
            f"{posterior.attributes.get('caveat', Method.caveat)}",
            "compare with an exact method such as 'hmc'",
        )
    if "chosen_because" in posterior.attributes:
        yield Finding(0, f"method chosen because {posterior.attributes['chosen_because']}")
    yield from _judge_weights(posterior, numbers)
    yield from _judge_drift(posterior)
    stats = posterior.stats
    if "diverging" in stats:
        yield _judge_divergences(int(stats["diverging"].sum()), stats["diverging"].numel(), numbers)
    # E-BFMI compares successive steps, which thinning drops.
    thinned = posterior.attributes.get("thin", 1) > 1
    if "energy" in stats and posterior.num_draws >= 4 and not thinned:
        numbers["bfmi_min"] = float(bfmi(stats["energy"].double()).min())
        if numbers["bfmi_min"] < 0.3:
            yield Finding(
                1,
                f"E-BFMI is {numbers['bfmi_min']:.2f} (< 0.3): momenta explore the energy slowly",
                "reparametrise heavy tails or scales of scales; draw more",
            )
    # Particles that did not need to move have none.
    if "acceptance_rate" in stats and not bool(stats["acceptance_rate"].isnan().all()):
        numbers["acceptance_rate"] = float(stats["acceptance_rate"].nanmean())


def _judge_mixing(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    worst_rhat, at = _largest(rhat(posterior))
    bulk, tail = (_smallest(ess(posterior, method)) for method in ("bulk", "tail"))
    numbers.update(rhat_max=worst_rhat, ess_bulk_min=bulk, ess_tail_min=tail)
    started = posterior.attributes.get("start")
    more = "draw or warm up longer"
    more += ", or start at optima (start='map')" if started == "prior" else ""
    if posterior.num_chains < 4:
        yield Finding(
            1, f"{posterior.num_chains} chain(s) cannot show that chains agree", "set chains >= 4"
        )
    if math.isnan(worst_rhat):
        yield Finding(
            2,
            f"the sampler is stuck: a coordinate of {at} is the same in all draws",
            "start elsewhere, or check the scales of the model",
        )
    elif not worst_rhat <= RHAT_USABLE:
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


def _judge_weights(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    """Importance weights, and whether tempering arrived."""
    stats = posterior.stats
    if "pareto_k" in stats:
        worst = float(stats["pareto_k"].max())
        numbers["pareto_k"] = worst
        if not worst <= PARETO_USABLE:
            yield Finding(
                2,
                f"importance weights have too heavy a tail: Pareto k is {worst:.2f} (should be <= "
                f"{PARETO_USABLE})",
                "the approximation misses part of the posterior; sample, with 'smc' or 'hmc'",
            )
        else:
            yield Finding(0, f"importance weights are well behaved: Pareto k {worst:.2f}")
    if "tempered" in stats and not bool((stats["tempered"] >= 1).all()):
        yield Finding(
            2,
            f"tempering ended at {float(stats['tempered'].min()):.2g} of the likelihood",
            "raise max_iterations, or the number of particles",
        )


def _judge_drift(posterior: Posterior) -> Iterator[Finding]:
    """Whether sites without a proper prior spread ever further: the posterior may be improper."""
    if not posterior.has_model or posterior.num_draws < 20:
        return
    for name in posterior.model.improper_priors:
        site = posterior.model.sites.latent[name]
        v = site.transform.inv(posterior.draws(name)).double()
        axis = posterior.log_prob.ndim - 1
        # How far chains come from where they were: random walks on average 2.3 times as far,
        # squared, in the last quarter as in the second; chains that have settled no further.
        squares = (v - v.narrow(axis, 0, 1)).square().mean(axis - 1)
        quarters = squares.tensor_split(4, dim=axis - 1)
        growth = quarters[3].mean(axis - 1) / quarters[1].mean(axis - 1)
        if bool((growth > 1.8).any()):
            yield Finding(
                2,
                f"site {name!r} drifts ever further out: the posterior may be improper",
                "give the site a proper prior",
            )


def _judge_optima(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    converged = posterior.stats["converged"]
    numbers["converged"] = float(converged.double().mean())
    yield Finding(1, "a point estimate: it carries no uncertainty", "infer with method='hmc'")
    if not bool(converged.all()):
        outcomes = posterior.stats["outcome"][~converged]
        why = "; ".join(
            f"{int((outcomes == k).sum())} because {OUTCOMES[k]}"
            for k in outcomes.unique().tolist()
        )
        yield Finding(
            1,
            f"{int(converged.sum())} of {converged.numel()} restarts converged; {why}",
            "raise max_iterations" if bool((outcomes == 3).any()) else "start elsewhere",
        )
    found: Any = posterior.basins()
    problems: list[list[Basin]] = [found] if posterior.num_problems is None else found
    at_best = [len(basins[0].restarts) for basins in problems]
    numbers["minima"] = sum(map(len, problems)) / len(problems)
    numbers["restarts_at_best"] = min(at_best)
    text = (
        _told(problems[0])
        if posterior.num_problems is None
        else f"{posterior.num_chains} restarts ended in {numbers['minima']:.1f} optima on average; "
        f"the best was reached once only in {at_best.count(1)} of {len(problems)} problems"
    )
    sure = posterior.num_chains == 1 or numbers["restarts_at_best"] > 1
    yield Finding(0 if sure else 1, text, "" if sure else "use more restarts (chains=)")


def _told(basins: list[Basin]) -> str:
    count = sum(len(basin.restarts) for basin in basins)
    parts = [f"{basin.log_prob:.1f} ({len(basin.restarts)})" for basin in basins[:3]]
    more = ", ..." if len(basins) > 3 else ""
    optima = "optimum" if len(basins) == 1 else "optima"
    return (
        f"{count} restarts ended in {len(basins)} {optima}, log density (restarts): "
        f"{', '.join(parts)}{more}"
    )


def _judge_fit(posterior: Posterior, numbers: dict[str, float]) -> Iterator[Finding]:
    if not posterior.has_model:
        yield Finding(0, "fit to the data not checked: loaded without the model", checked=False)
        return
    if not posterior.model.sites.observed:
        return
    drawn_exactly = bool(posterior.model.sites.generated)
    if not posterior.is_point_estimate and not drawn_exactly and _is_integrated(posterior):
        yield Finding(
            1,
            "a deviation was integrated out: images are its mean given z and the data, so that "
            "their intervals are too narrow",
            "draw the image from its law given the data, as bayesgen.regularisers.soft_range does",
        )
    if not _has_gaussian_noise(posterior):
        yield Finding(
            0, "fit to the data not checked: the noise is not Gaussian, or masked", checked=False
        )
        return
    from scipy.stats import chi2

    misfit, count = data_misfit(posterior)
    p_value = chi2.sf(misfit.double().cpu().numpy(), count).mean(-1)
    ratio = float(misfit.double().mean() / count)
    numbers.update(chi_square_ratio=ratio, chi_square_p=float(np.min(p_value)))
    text = f"data misfit chi-square/m = {ratio:.2f} (m = {count})"
    if posterior.num_problems is not None:
        low = int((p_value < 0.01).sum())
        text += f"; {low} of {len(p_value)} problems misfit (p < 0.01)"
        bad = low > 0.05 * len(p_value)
    else:
        text += f", p = {p_value:.2g}"
        bad = bool(p_value < 0.01)
    # An optimum may fit more closely than the truth; draws from the posterior do not.
    close = ratio < 0.5 and bool(np.all(p_value > 0.99)) and not posterior.is_point_estimate
    if bad:
        yield Finding(
            1,
            f"{text}: the model does not explain the data to within its noise",
            "the image may lie outside the generator's range (then intervals are too narrow), or "
            "sigma is too small",
        )
    elif _spread_is_inferred(posterior):
        yield Finding(
            0,
            "fit to the data not checked: the level of the noise, or of a deviation, was inferred, "
            f"and grows with any misfit ({text}); compare it with what you know of it",
            checked=False,
        )
    elif close:
        yield Finding(1, f"{text}: closer than the noise allows", "sigma may be too large")
    else:
        yield Finding(0, f"the model explains the data: {text}")


def _spread_is_inferred(posterior: Posterior) -> bool:
    """Whether the spread of the data depends on latent sites, so that it differs between draws."""
    sites = list(posterior.model.sites.observed)
    last = posterior.num_chains * posterior.num_draws - 1
    axis = 0 if posterior.num_problems is None else 1

    def spread(trace: poutine.Trace) -> dict[str, Tensor]:
        laws: list[Any] = [trace.nodes[name]["fn"] for name in sites]
        return {"": torch.stack([_log_spread(law).sum() for law in laws]).sum()}

    found = posterior.evaluate(spread, torch.tensor([0, last]))[""]
    return not torch.equal(*found.unbind(axis))


def _log_spread(law: Any) -> Tensor:
    """A number that changes with the levels of a normal law."""
    fn = base_law(law)
    if isinstance(fn, Integrated):
        return fn.std.log() + fn.scale.log()
    peak: Tensor = law.log_prob(law.mean)
    return peak


def _has_gaussian_noise(posterior: Posterior) -> bool:
    """Whether chi-square has its usual distribution: normal data, none masked."""
    found: list[bool] = []

    def look(trace: poutine.Trace) -> dict[str, Tensor]:
        nodes: Any = trace.nodes
        found.extend(chi_square(nodes[n]) is not None for n in posterior.model.sites.observed)
        return {}

    posterior.evaluate(look, torch.zeros(1, dtype=torch.int64))
    return all(found)


def _is_integrated(posterior: Posterior) -> bool:
    return any(isinstance(fn, Integrated) for fn, _ in likelihoods(posterior))


def likelihoods(posterior: Posterior) -> list[tuple[Any, Any]]:
    """Distribution of each observed site, without what makes events of it, and its node."""
    found: list[tuple[Any, Any]] = []

    def look(trace: poutine.Trace) -> dict[str, Tensor]:
        for name in posterior.model.sites.observed:
            node: Any = trace.nodes[name]
            found.append((base_law(node["fn"]), node))
        return {}

    posterior.evaluate(look, torch.zeros(1, dtype=torch.int64))
    return found


def _largest(dataset: xarray.Dataset) -> tuple[float, str]:
    """The largest value and where it is; NaN, if there is one."""
    # A coordinate that never moved has NaN for its R-hat, which must not pass as good.
    values = {
        str(name): float(variable.max(skipna=False)) for name, variable in dataset.data_vars.items()
    }
    name = max(values, key=lambda key: (math.isnan(values[key]), values[key]))
    return values[name], name


def _smallest(dataset: xarray.Dataset) -> float:
    return -_largest(-dataset)[0]
