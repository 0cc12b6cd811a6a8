"""The one call that turns a model and data into a posterior."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor

from bayesgen.errors import (
    DtypeError,
    ModelError,
    OptionError,
    ResultError,
    SamplingError,
    ShapeError,
    unknown_option,
)
from bayesgen.inference import (
    Method,
    Optimiser,
    Population,
    Run,
    Sampler,
    as_method,
    choose_method,
    run_optimiser,
    run_population,
    run_sampler,
)
from bayesgen.inference.bridge import Bridge
from bayesgen.inference.map import OUTCOMES
from bayesgen.inference.tempering import systematic
from bayesgen.log_density import LogDensity
from bayesgen.model_sites import Model
from bayesgen.posterior import Posterior
from bayesgen.progress import progress_monitor
from bayesgen.provenance import provenance
from bayesgen.types import check_count, strict_options

Start = str | Method | dict[str, Tensor] | Posterior


@strict_options
def infer(
    model: Model,
    *args: Any,
    method: str | Method = "hmc",
    chains: int = 4,
    draws: int | None = None,
    warmup: int | None = None,
    thin: int = 1,
    start: Start = "prior",
    seed: int = 0,
    batched: bool = False,
    progress: bool = True,
) -> Posterior:
    """Posterior of a Pyro model's latent sites given its observed ones.

    Parameters
    ----------
    model
        A Python function with ``pyro.sample`` statements. Sites with ``obs=`` are data.
    *args
        Arguments of the model, the data among them.
    method
        ``"auto"``, which picks one by the structure of the model and says why in the summary; the
        name of one of `bayesgen.inference`, such as ``"hmc"`` or ``"smc"``; or an instance with
        settings such as ``bayesgen.inference.HMC(target_acceptance=0.9)``.
    chains
        Markov chains, populations of particles, or restarts of an optimiser; all run as one batch.
        Four (the default) are the fewest from which R-hat can be judged; more cost less than
        proportionally.
    draws, warmup
        Draws kept from each chain, and iterations spent on adaptation before them (500 each by
        default). An optimiser returns one draw a restart and takes neither; a population takes no
        warm-up.
    thin
        Keep every ``thin``-th step.
    start
        Where chains begin: ``"prior"`` (draws from the prior), ``"map"`` or a ``MAP(...)``
        instance (optima found from at least eight prior draws, one drawn for each chain with
        probability proportional to its density), a dictionary from latent site to value
        (``site.shape``, or with a leading axis of chains; sites left out begin at prior draws), or
        a `Posterior`: chains begin at its last draws, and the particles of ``"smc"`` are led from
        it to the posterior given the new data, which need not begin at the prior again.
    seed
        Seed of all randomness. The global random state is neither read nor changed.
    batched
        If true, the leading axis of every tensor in ``args`` counts independent problems, which
        run together; results get a leading axis of problems. What all problems share belongs in
        the model's closure.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Posterior
        Draws, image statistics, diagnostics and provenance. After Ctrl-C it holds what was drawn
        until then, and says so; during warm-up, when nothing has been drawn, KeyboardInterrupt
        passes through.

    Raises
    ------
    ModelError, ShapeError, DtypeError, DataError
        If the model or its data cannot be used; the message names the argument or the line.
    OptionError, UnknownOptionError
        If a setting has a value that is not allowed, or does not exist.
    SamplingError
        If no chain moved, or every step diverged; its attribute ``posterior`` holds the draws.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(z, 0.5), obs=y)
    >>> posterior = infer(model, torch.tensor(1.0), draws=2000, progress=False)
    >>> abs(float(posterior.mean("z")) - 0.8) < 0.05  # exact: 1 / (1 + 0.25)
    True
    """
    rng = generator_of(seed)
    if isinstance(method, str) and method == "auto":
        log_density = LogDensity(model, *args, batched=batched)
        temper = isinstance(start, str) and start == "prior" and warmup is None and thin == 1
        method, reason = choose_method(log_density, temper=temper)
    else:
        method, reason = as_method(method), ""
        log_density = LogDensity(method.extend(model), *args, batched=batched)
    draws, warmup = check_budget(method, chains, draws, warmup, thin)
    _check_gradients(method, log_density)
    starts = method.num_starts(draws) if isinstance(method, Population) else 1
    target: LogDensity | Bridge = log_density
    if isinstance(method, Population) and method.starts_at_prior and start != "prior":
        target, position = _carried(method, start, log_density, chains, starts, rng)
    else:
        position = _start(start, log_density, chains * starts, rng)
    method = method.suited(log_density) if isinstance(method, Optimiser) else method
    with progress_monitor(method, chains, log_density.num_problems, show=progress) as monitor:
        if isinstance(method, Optimiser):
            run = run_optimiser(method, log_density, position, rng, monitor=monitor)
            _check_bounded(run)
        elif isinstance(method, Population):
            position = position.unflatten(-2, (chains, starts))
            run = run_population(method, target, position, rng, draws=draws, monitor=monitor)
            if isinstance(target, Bridge):
                target.release()
                if target.evidence_before is None:
                    # Of the new data given the old it would be something else.
                    run.stats.pop("log_evidence", None)
        else:
            assert isinstance(method, Sampler)
            run = run_sampler(
                method,
                log_density,
                position,
                rng,
                draws=draws,
                warmup=warmup,
                thin=thin,
                monitor=monitor,
            )
    posterior = _posterior(method, log_density, run, seed=seed, start=start, thin=thin)
    if reason:
        posterior.attributes["chosen_because"] = reason
    _check_moved(posterior)
    return posterior


def _check_gradients(method: Method, log_density: LogDensity) -> None:
    if method.uses_gradient and log_density.sites_without_gradient:
        raise ModelError(
            f"model: its likelihood depends on {log_density.sites_without_gradient}, but has no "
            f"gradient there (is something rounded, compared or detached?), which method "
            f"{method.name!r} needs; use one that does not: method='pcn', or SMC(kernel='pcn')"
        )


def _check_moved(posterior: Posterior) -> None:
    """Refuse chains none of which moved; what was drawn goes along with the error."""
    stats = posterior.stats
    # Of a handful of steps all may be refused by chance.
    if posterior.is_point_estimate or posterior.num_draws < 2 or posterior.log_prob.numel() < 100:
        return
    axis = posterior.log_prob.ndim - 1
    draws = [posterior.draws(name) for name in posterior.latent_sites]
    still = [
        (value == value.narrow(axis, 0, 1)).reshape(*posterior.log_prob.shape, -1).all(-1)
        for value in draws
    ]
    of_chains = torch.stack(still).all(0).all(-1)
    stuck = bool(of_chains.all())
    lost = of_chains.all(-1)
    if lost.ndim and bool(lost.any()) and not stuck:
        warnings.warn(
            f"no chain moved in problems {lost.nonzero().flatten().tolist()}: start them elsewhere",
            RuntimeWarning,
            stacklevel=3,
        )
    diverged = "diverging" in stats and bool(stats["diverging"].all())
    if stuck or diverged:
        what = "every step diverged" if diverged else "no chain moved"
        raise SamplingError(
            f"method {posterior.attributes['method']!r}: {what}. Start at optima (start='map') or "
            "encodings (bayesgen.starts), warm up longer, or check the scales of the model; the "
            "draws so far are this error's attribute posterior",
            posterior,
        )


def _check_bounded(run: Run) -> None:
    if "outcome" not in run.stats:
        return
    lost = run.stats["outcome"] == len(OUTCOMES) - 1
    if bool(lost.all()):
        raise ModelError(
            "model: its log density grows without bound, so that it has no maximum; look for a "
            "prior that is missing, or a scale that can shrink to zero"
        )
    if bool(lost.any()):
        warnings.warn(
            f"the log density grew without bound from {int(lost.sum())} of {lost.numel()} starts",
            RuntimeWarning,
            stacklevel=3,
        )


def check_budget(
    method: Method, chains: int, draws: int | None, warmup: int | None, thin: int = 1
) -> tuple[int, int]:
    """Draws and warm-up of a method, with their defaults.

    Raises
    ------
    OptionError
        If one is out of range, or the method takes none.
    """
    check_count("chains", chains)
    check_count("thin", thin)
    if isinstance(method, Optimiser):
        for name, value in (("draws", draws), ("warmup", warmup)):
            if value is not None:
                raise OptionError(
                    f"{name}: got {value} for method {method.name!r}, which returns one draw a "
                    "restart; leave it out, and set the number of restarts by chains"
                )
        return 1, 0
    draws = 500 if draws is None else draws
    if isinstance(method, Population):
        if warmup is not None or thin != 1:
            name, value = ("warmup", warmup) if warmup is not None else ("thin", thin)
            raise OptionError(
                f"{name}: got {value} for method {method.name!r}, which makes all draws of a chain "
                "at once; leave it out"
            )
        warmup = 0
    warmup = 500 if warmup is None else warmup
    check_count("draws", draws)
    check_count("warmup", warmup, minimum=0)
    return draws, warmup


def generator_of(seed: int) -> torch.Generator:
    """Randomness of its own, or an OptionError if the seed is none."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise OptionError(f"seed: got {seed!r}; expected an integer from 0 to 2**63 - 1")
    return torch.Generator().manual_seed(seed)


def _start(start: Start, log_density: LogDensity, chains: int, rng: torch.Generator) -> Tensor:
    """Starting points ``(*problems, chains, num_dims)``."""
    if isinstance(start, Posterior):
        _check_chains(start, chains)
        start = start.last_draws()
    if isinstance(start, dict):
        return _user_start(start, log_density, chains, rng)
    if start == "prior":
        return log_density.prior_draws(chains, rng)
    if isinstance(start, str) and start != "map":
        raise OptionError(unknown_option("start", start, ["prior", "map"]))
    if not isinstance(start, str | Method):
        raise OptionError(
            f"start: got {type(start).__name__}; expected 'prior', 'map', an optimiser, a "
            "dictionary from latent site to value, or a Posterior"
        )
    method = as_method(start, "start")
    if not isinstance(method, Optimiser):
        raise OptionError(f"start: got {method!r}; expected an optimiser such as MAP()")
    return _optimal_start(method, log_density, chains, rng)


def _carried(
    method: Method,
    start: Start,
    log_density: LogDensity,
    chains: int,
    starts: int,
    rng: torch.Generator,
) -> tuple[Bridge, Tensor]:
    """What leads from an earlier posterior to this one, and its draws ``(.., chains * starts, n)``.

    Populations stay apart, so that their agreement still says how far to trust them.
    """
    if not isinstance(start, Posterior):
        raise OptionError(
            f"start: got {start!r} for method {method.name!r}, which tempers from the prior, or "
            "from an earlier posterior; leave it out, or give a Posterior"
        )
    if start.is_point_estimate or not start.has_model:
        what = "optima" if start.is_point_estimate else "draws without their model"
        raise OptionError(f"start: got {what}; expected a posterior with its model")
    shapes = [
        [(name, tuple(site.shape)) for name, site in density.sites.latent.items()]
        for density in (start.model, log_density)
    ]
    if shapes[0] != shapes[1] or start.num_problems != log_density.num_problems:
        raise OptionError(
            f"start: a posterior of sites {shapes[0]}, problems {start.num_problems}; expected "
            f"{shapes[1]}, problems {log_density.num_problems}"
        )
    kinds = [f"{density.dtype} on {density.device}" for density in (start.model, log_density)]
    if kinds[0] != kinds[1]:
        raise DtypeError(f"start: a posterior in {kinds[0]}; expected {kinds[1]}, as the model's")
    _check_chains(start, chains)
    _check_exact(start)
    values = {name: start.draws(name) for name in start.latent_sites}
    draws, old = log_density.unconstrain(values), start.model.unconstrain(values)
    if not torch.allclose(draws, old, equal_nan=True):
        raise OptionError(
            "start: a posterior whose sites have other supports; expected the same, for particles "
            "to go from one to the other"
        )
    weights = torch.zeros(draws.shape[:-1], dtype=torch.float64, device=draws.device)
    order = systematic(weights, rng, starts)
    draws = draws.gather(-2, order[..., None].expand(*order.shape, draws.shape[-1]))
    known = None
    if "log_evidence" in start.stats:
        with contextlib.suppress(ResultError):  # Of laws known up to a constant there is none.
            known = start.log_evidence
    return Bridge(start.model, log_density, known), draws.flatten(-3, -2)


def _check_chains(start: Posterior, chains: int) -> None:
    if start.num_chains != chains:
        raise OptionError(
            f"start: a posterior of {start.num_chains} chains; expected chains={chains}"
        )


def _check_exact(start: Posterior) -> None:
    """Refuse draws that do not follow their model, whose error would be carried on unseen."""
    attributes, tempered = start.attributes, start.stats.get("tempered")
    short = tempered is not None and bool((tempered < 1).any())
    if short or not attributes.get("exact", False) or "pareto_k" in start.stats:
        raise OptionError(
            f"start: draws by {attributes.get('method')!r} that do not follow the posterior of "
            "their model exactly; expected those of an exact method, for particles to go on from"
        )


def _optimal_start(
    method: Optimiser, log_density: LogDensity, chains: int, rng: torch.Generator
) -> Tensor:
    restarts = log_density.prior_draws(max(chains, 8), rng)
    run = run_optimiser(method, log_density, restarts, rng)
    if run.interrupted:
        raise KeyboardInterrupt
    optima = run.position[..., 0, :]
    weights = torch.softmax(run.log_prob[..., 0].double(), dim=-1)
    flat = weights.reshape(-1, weights.shape[-1]).cpu()
    chosen = torch.multinomial(flat, chains, replacement=True, generator=rng)
    chosen = chosen.reshape(*weights.shape[:-1], chains).to(optima.device)
    return torch.take_along_dim(optima, chosen[..., None], dim=-2)


def _user_start(
    start: dict[str, Tensor], log_density: LogDensity, chains: int, rng: torch.Generator
) -> Tensor:
    """Values given by site; the other sites begin at draws from the prior."""
    problems = () if log_density.num_problems is None else (log_density.num_problems,)
    lead = (*problems, chains)
    known = sorted(log_density.sites.latent)
    if not start or set(start) - set(known):
        raise OptionError(f"start: has sites {sorted(start)}; expected some of {known}")
    values = {}
    if set(known) - set(start):
        values = log_density.constrain(log_density.prior_draws(chains, rng))
    for name, site in log_density.sites.latent.items():
        if name not in start:
            continue
        value = torch.as_tensor(start[name], dtype=log_density.dtype, device=log_density.device)
        if value.shape not in (site.shape, (*lead, *site.shape)):
            raise ShapeError(
                f"start[{name!r}]: has shape {tuple(value.shape)}; expected {tuple(site.shape)} "
                f"or {(*lead, *site.shape)} (leading axes: {'problems, ' if problems else ''}"
                "chains)"
            )
        values[name] = value.expand(*lead, *site.shape)
    return log_density.unconstrain(values)


def _posterior(
    method: Method, log_density: LogDensity, run: Run, *, seed: int, start: Start, thin: int
) -> Posterior:
    how = start if isinstance(start, str) else type(start).__name__
    return Posterior(
        latent=log_density.constrain(run.position),
        log_prob=run.log_prob,
        stats=run.stats,
        log_density=log_density,
        attributes=provenance(method, log_density, run, seed=seed, start=how, thin=thin),
    )
