r"""Importance weighting: draws from one posterior, resampled to be draws from another.

With draws from :math:`p(z | y)` and a log weight :math:`\ell`, `reweight` returns draws from
:math:`p(z | y)\, e^{\ell(x(z))}` up to normalisation, and says how far they can be trusted. It
needs no gradients and no new chains, but only draws that are already there can gain weight: where
weights differ much, sample with the weight in the model instead (`bayesgen.inference.DWLS`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, OptionError, ResultError, ShapeError
from bayesgen.inference.dwls import as_discriminator, refuse_probabilities, trial_images
from bayesgen.inference.pareto import pareto_smoothed
from bayesgen.inference.tempering import effective_fraction, systematic
from bayesgen.models.base import Generator
from bayesgen.models.density_ratio import DensityRatio
from bayesgen.models.settings import check_seed
from bayesgen.posterior import Posterior
from bayesgen.types import strict_options

# Beyond this the tail is too heavy for practical numbers of draws (Vehtari et al. 2024).
K_USABLE = 0.7
# Effective draws below which means are guesses, and below which one draw stands for all.
ESS_USABLE, ESS_HOPELESS = 10.0, 2.0
# Fewer draws have no tail to smooth.
FEWEST = 25

# What compares a step with the one before it, which resampled draws do not have.
OF_STEPS = ("energy",)


@strict_options
def reweight(
    posterior: Posterior,
    log_weight: Callable[[Tensor], Tensor] | Generator,
    *,
    site: str = "x",
    are_logits: bool = False,
    seed: int = 0,
) -> Posterior:
    r"""Resample draws with Pareto-smoothed importance weights :math:`e^{\ell(x)}`.

    Parameters
    ----------
    posterior
        The draws.
    log_weight
        From values ``(N, *site_shape)`` of the site to log weights ``(N,)``, known up to a
        constant, such as a `bayesgen.models.DensityRatio`; or a generator, for the log odds of its
        discriminator. Minus infinity takes a draw out.
    site
        Of which site the weight is a function: latent, or computed from latent ones.
    are_logits
        What to do about a function whose values on noise and on flat images, too, all lie between 0
        and 1. By default it is refused, because they are most likely probabilities.
    seed
        Of the resampling. The global random state is neither read nor changed.

    Returns
    -------
    Posterior
        As many draws, some of them several times, in their order. ``stats`` have ``pareto_k``, the
        shape of the weights' tail (below 0.5 good, below 0.7 usable), and ``importance_ess``, the
        number of equally weighted draws that are worth as much, before or after smoothing,
        whichever is less: both for each problem, repeated over draws. ``attributes`` have the worst
        of each. ``log_prob`` is that of the new posterior, and a log evidence, where there is one,
        that of the weighted model.

    Raises
    ------
    ResultError
        If the result holds optima or too few draws, or one draw carries nearly all of the weight.
    OptionError
        If the site does not exist, or is drawn anew after resampling.
    ShapeError, DataError
        If there is not one log weight a draw, or one is NaN or plus infinity.

    Warns
    -----
    RuntimeWarning
        If k is above 0.7, or above 1 - 1 / log10(S) for S draws, or if fewer than ten effective
        draws are left.

    Notes
    -----
    The S draws of all chains are resampled together, systematically: a draw of weight w comes
    :math:`\lfloor S w \rfloor` or one more times. Copies lie next to each other, so that the usual
    effective sample sizes of the result count them as what they are.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling; Kong
    (1992), for the effective sample size; Kitagawa (1996), for the resampling.

    Examples
    --------
    >>> import pyro, torch, bayesgen as bg
    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
    >>> posterior = bg.infer(model, torch.tensor(0.0), method="mala", progress=False)
    >>> weighted = reweight(posterior, lambda x: x)
    >>> abs(float(weighted.mean("x")) - 0.5) < 0.1, weighted.attributes["pareto_k"] < 0.5
    (True, True)
    """
    check_seed(seed)
    _check(posterior, site)
    judge = as_discriminator(log_weight, "log_weight")
    raw = _log_weights(posterior, judge, site)
    shape = posterior.site_shape(site)
    # Of numbers that are no images there is no telling what else they could have been.
    if len(shape) >= 2 and not isinstance(log_weight, Generator | DensityRatio):
        x = posterior.draw(site, 0).reshape(-1, *shape)[0]
        with torch.no_grad():
            tried = judge(trial_images(x))
        refuse_probabilities(tried, are_logits=are_logits, argument="log_weight")
    _refuse_hopeless(raw)
    smoothed, k = pareto_smoothed(raw)
    # Smoothing shares out the weight of the largest, whether or not there is reason to.
    k, ess = _tail(raw, k), torch.minimum(_kish(raw), _kish(smoothed))
    _warn(k, ess, raw.shape[-1])
    index = systematic(smoothed, torch.Generator().manual_seed(seed))
    facts = {"pareto_k": k, "importance_ess": ess}
    attributes = posterior.attributes | {
        "method": "importance",
        "settings": f"draws of {posterior.attributes.get('settings')}, weighted by site {site!r}",
        "reference": "Vehtari et al. (2024), Pareto smoothed importance sampling",
        "seed": seed,
        "pareto_k": float(k.max()),
        "importance_ess": float(ess.min()),
    }
    return _resampled(posterior, raw, index, facts, attributes)


def _check(posterior: Posterior, site: str) -> None:
    if not isinstance(posterior, Posterior):
        raise DtypeError(f"posterior: expected a Posterior, got {type(posterior).__name__}")
    if posterior.is_point_estimate:
        raise ResultError("reweight: this result holds optima, not draws; infer with a sampler")
    if posterior.num_chains * posterior.num_draws < FEWEST:
        raise ResultError(
            f"reweight: {posterior.num_chains} chains x {posterior.num_draws} draws; expected at "
            f"least {FEWEST} draws, whose weights show how heavy their tail is"
        )
    posterior.site_shape(site)
    if posterior.has_model and site in posterior.model.sites.generated:
        raise OptionError(
            f"site: {site!r} is drawn once the latent sites are known, and anew after resampling; "
            "expected a site that they determine, such as G(z) before any deviation"
        )


def _log_weights(posterior: Posterior, log_weight: Callable[[Tensor], Tensor], site: str) -> Tensor:
    """Of all draws, chain after chain, ``(*problems, S)`` in double precision on the CPU."""
    shape, parts = posterior.site_shape(site), []
    with torch.no_grad():
        for chunk in posterior.chunks(site):
            lead = chunk.shape[: chunk.ndim - len(shape)]
            values = chunk.reshape(-1, *shape)
            found = log_weight(values)
            if not isinstance(found, Tensor) or found.shape != values.shape[:1]:
                kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ShapeError(
                    f"log_weight: returned {kind} for values {tuple(values.shape)} of {site!r}; "
                    f"expected {tuple(values.shape[:1])}"
                )
            parts.append(found.double().cpu().reshape(lead))
    weights = torch.cat(parts).movedim(0, -1)
    if bool((weights.isnan() | (weights == math.inf)).any()):
        raise DataError("log_weight: some log weights are NaN or plus infinity")
    return weights


def _refuse_hopeless(raw: Tensor) -> None:
    # NaN where all weights are zero.
    hopeless = ~(_kish(raw) >= ESS_HOPELESS)
    if bool(hopeless.any()):
        which = "" if raw.ndim == 1 else f" of problems {hopeless.nonzero()[:, 0].tolist()}"
        raise ResultError(
            f"reweight: one draw{which} carries nearly all of the weight, so that nothing is known "
            "of the weighted posterior. Sample it instead, with the weight in the model: "
            "method=DWLS(discriminator=...), or a pyro.factor; or draw many more"
        )


def _kish(log_weights: Tensor) -> Tensor:
    """Effective number of draws, ``(*problems,)``."""
    return effective_fraction(log_weights) * log_weights.shape[-1]


def _tail(raw: Tensor, k: Tensor) -> Tensor:
    """Shape of the tail, which is no tail where many draws share the largest weight."""
    num = raw.shape[-1]
    shared = (raw == raw.amax(-1, keepdim=True)).sum(-1)
    return torch.where(shared > min(num / 5, 3 * num**0.5), 0.0, k)


def _warn(k: Tensor, ess: Tensor, num: int) -> None:
    limit = min(K_USABLE, 1.0 - 1.0 / math.log10(num))
    for bad, what in (
        (
            ~(k <= limit),
            f"the weights' tail is too heavy: k is {float(k.max()):.2f}, not {limit:.2f}",
        ),
        (ess < ESS_USABLE, f"only {float(ess.min()):.1f} effective draws of {num} are left"),
    ):
        if bool(bad.any()):
            count = "" if k.ndim == 0 else f" ({int(bad.sum())} of {bad.numel()} problems)"
            warnings.warn(
                f"reweight: {what}{count}. Draw more, lessen the weight, or sample with the weight "
                "in the model: method=DWLS(discriminator=...)",
                RuntimeWarning,
                stacklevel=4,
            )


def _resampled(
    posterior: Posterior,
    raw: Tensor,
    index: Tensor,
    facts: dict[str, Tensor],
    attributes: dict[str, Any],
) -> Posterior:
    lead = posterior.log_prob.shape
    axis = len(lead) - 2

    def pick(value: Tensor) -> Tensor:
        flat = value.flatten(axis, axis + 1)
        where = index.to(value.device).reshape(*index.shape, *(1 for _ in value.shape[axis + 2 :]))
        return torch.take_along_dim(flat, where, axis).reshape(value.shape)

    log_prob = posterior.log_prob
    stats = {n: pick(value) for n, value in posterior.stats.items() if n not in OF_STEPS}
    if "log_evidence" in stats:
        gained = (raw.logsumexp(-1) - math.log(raw.shape[-1]))[..., None, None]
        stats["log_evidence"] = stats["log_evidence"] + gained.to(stats["log_evidence"])
    for name, value in facts.items():
        stats[name] = value[..., None, None].expand(lead).to(log_prob)
    return Posterior(
        latent={name: pick(posterior.draws(name)) for name in posterior.latent_sites},
        log_prob=pick(log_prob + raw.reshape(lead).to(log_prob)),
        stats=stats,
        attributes=attributes,
        log_density=posterior.model if posterior.has_model else None,
    )
