"""Read a Pyro model once: which sites it has, and whether it and its data fit together.

Everything a user can get wrong in a model or its arguments is found here, before any sampling, and
reported with the argument or the line of the model that is at fault.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import linecache
import math
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.utils import _pytree as pytree

from bayesgen.errors import BayesgenError, DataError, DtypeError, ModelError, ShapeError
from bayesgen.traces import is_generated, log_prob_of_sites, sample_nodes

Model = Callable[..., Any]


@dataclass(frozen=True)
class Site:
    """One latent site of a model and its place in the unconstrained vector.

    Attributes
    ----------
    name
        Name of the ``pyro.sample`` statement.
    shape
        Shape of its value, plates included.
    unconstrained_shape
        Shape after the map to the whole of R^k (a simplex of K weights has K - 1 coordinates).
    start, stop
        Its block of the flat vector is ``v[..., start:stop]``.
    transform
        Map from the unconstrained space to the site's support.
    prior
        The site's distribution, as seen in one run of the model.
    """

    name: str
    shape: torch.Size
    unconstrained_shape: torch.Size
    start: int
    stop: int
    transform: Transform
    prior: Any

    def take(self, v: Tensor) -> Tensor:
        """The site's block of ``v`` with shape ``(*batch, *unconstrained_shape)``."""
        return v[..., self.start : self.stop].reshape(v.shape[:-1] + self.unconstrained_shape)


@dataclass(frozen=True)
class ModelSites:
    """What one run of a model reveals.

    Attributes
    ----------
    latent
        Latent sites in the order of the model.
    observed
        Values of the observed sites.
    deterministic
        Shapes of the ``pyro.deterministic`` sites.
    static_priors
        Latent sites whose prior depends neither on another latent site nor on the data.
    generated
        Shapes of the noise from which sites are drawn that are marked ``infer={"generated":
        True}``. Nothing depends on them, so that they are drawn once the latent sites are known,
        and are no coordinates of the density.
    """

    latent: dict[str, Site]
    observed: dict[str, Tensor]
    deterministic: dict[str, torch.Size]
    static_priors: frozenset[str]
    generated: dict[str, torch.Size]

    @property
    def prior_is_static(self) -> bool:
        """Whether no latent site's prior depends on another latent site or on the data."""
        return set(self.static_priors) == set(self.latent)

    @property
    def num_dims(self) -> int:
        """Length of the unconstrained vector."""
        return sum(site.stop - site.start for site in self.latent.values())


def read_model(
    model: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    others: Sequence[tuple[tuple[Any, ...], dict[str, Any]]] = (),
) -> ModelSites:
    """Run ``model`` on prior draws, at least twice, and describe its sites.

    Parameters
    ----------
    model, args, kwargs
        The model and its arguments.
    others
        Arguments of the other problems of a batch, for a run each.

    Raises
    ------
    ModelError
        If the model fails, has no latent or no observed site, or has a latent site that no
        gradient-based method can move (discrete, subsampled, or with a support that depends on
        other latent sites).
    ShapeError, DtypeError, DataError
        If an argument or an observed value does not fit the model.
    """
    _check_arguments(model, args, kwargs)
    runs = [(args, kwargs), (args, kwargs), *others]
    traces = [_prior_trace(model, *run, seed=seed) for seed, run in enumerate(runs)]
    nodes = [dict(sample_nodes(trace)) for trace in traces]
    for other in nodes[1:]:
        if list(nodes[0]) == list(other):
            continue
        changed = sorted(set(nodes[0]) ^ set(other))
        raise ModelError(
            f"model: sites {changed} appear in some runs only; bayesgen needs the same sites in "
            "every run. Remove the control flow that depends on sampled values."
        )
    latent = _latent_sites(nodes[0])
    observed = {n: s["value"] for n, s in nodes[0].items() if _is_data(s)}
    has_factor = any(isinstance(site["fn"], dist.Unit) for site in nodes[0].values())
    if not latent:
        raise ModelError(
            "model: no latent site found. Expected at least one pyro.sample statement without "
            '`obs`, such as `z = pyro.sample("z", generator.prior())`.'
        )
    if not observed and not has_factor:
        raise ModelError(
            "model: no observed site found, so there is nothing to infer from. Expected a "
            "pyro.sample statement with `obs=` (was the data passed on to infer?) or a "
            f"pyro.factor. Latent sites: {list(latent)}."
        )
    names = argument_names(model, args, kwargs)
    for name in observed:
        for run in [nodes[0], *nodes[2:]]:
            _check_observed(name, run[name], names)
    _check_supports(latent, nodes)
    return ModelSites(
        latent=latent,
        observed=observed,
        deterministic={
            n: s["value"].shape
            for n, s in nodes[0].items()
            if s["infer"].get("_deterministic") or is_generated(s)
        },
        static_priors=frozenset(
            name for name in latent if all(_same_prior(name, nodes[0], other) for other in nodes)
        ),
        generated=_generated_sites(model, nodes[0], *runs[0]),
    )


@contextlib.contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Run Pyro code without touching the global RNG or the parameter store."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    store = pyro.get_param_store()
    with torch.random.fork_rng(devices=devices), store.scope(store.get_state()):
        if seed is not None:
            torch.manual_seed(seed)
        yield


class FixedParameters(Messenger):
    """Gives ``pyro.param`` and ``pyro.module`` statements their current values, as constants.

    Left alone they would ask for gradients, which is not allowed under vmap, and would register
    themselves in the global parameter store.
    """

    def _pyro_param(self, message: dict[str, Any]) -> None:
        store, name = pyro.get_param_store(), message["name"]
        if name in store:
            message["value"] = store[name]
        else:
            initial = message["args"][1] if len(message["args"]) > 1 else None
            initial = message["kwargs"].get("init_tensor", initial)
            message["value"] = initial() if callable(initial) else initial
        message["done"] = message["value"] is not None


class Startable(Messenger):
    """Gives latent sites whose prior has no draws, an improper one, the value 0 instead.

    Zero of the unconstrained space: a place to start from, not a draw.
    """

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if not message["is_observed"] and message["value"] is None:
            message["value"] = draw_or_zero(message["fn"])


class Generated(Messenger):
    """Gives generated sites the value that noise makes, or their mean if there is no noise.

    Parameters
    ----------
    noise
        Standard normal numbers by site, of the shapes in `ModelSites.generated`.
    """

    def __init__(self, noise: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if is_generated(message) and message["value"] is None:
            name, law = message["name"], message["fn"]
            message["value"] = law.mean if self.noise is None else law.from_noise(self.noise[name])
            message["done"] = True


def draw_or_zero(prior: Any, sample_shape: Sequence[int] = ()) -> Tensor:
    """A draw from a distribution; the image of zero if it is improper and has none.

    Examples
    --------
    >>> from pyro.distributions import ImproperUniform, constraints
    >>> draw_or_zero(ImproperUniform(constraints.positive, (), (2,)))
    tensor([1., 1.])
    """
    try:
        return cast(Tensor, prior.sample(torch.Size(sample_shape)))
    except NotImplementedError:
        transform = biject_to(_support(prior.support))
        shape = transform.inverse_shape(prior.batch_shape + prior.event_shape)
        dtype = getattr(prior, "dtype", None)
        zero = torch.zeros(torch.Size(sample_shape) + shape, dtype=dtype)
        return cast(Tensor, transform(zero))


def can_be_drawn(prior: Any) -> bool:
    """Whether a distribution has draws; improper ones do not."""
    try:
        with isolated(0):
            prior.sample()
    except NotImplementedError:
        return False
    return True


def blame(model: Model, error: BaseException) -> str:
    """The statement of the user's code, closest to the failure, that led to ``error``."""
    libraries = tuple(
        os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep
        for module in (torch, pyro, inspect.getmodule(read_model))
        if module is not None
    )
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not os.path.abspath(frame.filename).startswith(libraries)
        and not frame.filename.startswith("<")
        and os.sep + "contextlib.py" not in frame.filename
    ]
    if not frames:
        return f"in {getattr(model, '__name__', type(model).__name__)}()"
    frame = frames[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"in {frame.name}(), line {frame.lineno}, `{line or '?'}`"


def argument_names(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[str, Tensor]]:
    """Every tensor among the model's arguments with the name of its parameter."""
    try:
        bound: dict[str, Any] = dict(inspect.signature(model).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise ModelError(
            f"model: its arguments do not fit its signature: {error}. "
            f"infer passed {len(args)} positional and {sorted(kwargs)} named arguments."
        ) from error
    return [
        (name, leaf)
        for name, value in bound.items()
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor)
    ]


def _is_data(site: dict[str, Any]) -> bool:
    return (
        site["is_observed"]
        and not site["infer"].get("_deterministic")
        and not isinstance(site["fn"], dist.Unit)
    )


def _generated_sites(
    model: Model, nodes: dict[str, dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, torch.Size]:
    """Shapes of the noise of the generated sites; refuses those on which others depend."""
    found = {}
    for name, node in nodes.items():
        if not is_generated(node):
            continue
        if not (hasattr(node["fn"], "from_noise") and hasattr(node["fn"], "noise_shape")):
            raise ModelError(
                f"site {name!r}: is marked as generated, but {type(node['fn']).__name__} cannot be "
                "drawn from noise; expected a distribution with noise_shape and from_noise(), or "
                'leave out infer={"generated": True}'
            )
        found[name] = torch.Size(node["fn"].noise_shape)
    if found:
        free = [n for n, s in nodes.items() if not s["is_observed"] and n not in found]
        others = {n: nodes[n]["value"] for n in free}
        noise = {
            n: torch.ones(k, dtype=nodes[n]["value"].dtype, device=nodes[n]["value"].device)
            for n, k in found.items()
        }
        values = []
        for handler in (Generated(), Generated(noise)):
            conditioned = poutine.condition(handler(FixedParameters()(model)), data=others)
            with isolated(0), torch.no_grad():
                trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
            values.append({n: float(value) for n, value in log_prob_of_sites(trace)})
        changed = [n for n in values[0] if values[0][n] != values[1][n]]
        if changed:
            raise ModelError(
                f"sites {changed}: depend on {sorted(found)}, which are marked as generated; only "
                'sites on which nothing depends may be. Leave out infer={"generated": True}.'
            )
    return found


def _check_arguments(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not callable(model):
        raise ModelError(f"model: expected a function with pyro.sample statements, got {model!r}")
    for name, tensor in argument_names(model, args, kwargs):
        check_finite(f"argument {name!r}", tensor)


def check_finite(what: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity, saying how many there are and where the first one is."""
    if tensor.is_meta:
        raise DataError(f"{what}: is on the meta device, which holds no values")
    bad = ~torch.isfinite(tensor)
    if bad.any():
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise DataError(
            f"{what}: {int(bad.sum())} of {tensor.numel()} values are NaN or infinite, the first "
            f"at index {where}. Expected finite values; leave missing measurements out of the "
            "operator's range instead of marking them."
        )


def _prior_trace(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int
) -> poutine.Trace:
    try:
        # Validation is on for this run only: it finds a scale <= 0 and its like.
        with isolated(seed), pyro.validation_enabled(True), torch.no_grad():
            started = Generated()(Startable()(FixedParameters()(model)))
            trace = poutine.trace(started).get_trace(*args, **kwargs)
    except BayesgenError as error:
        raise type(error)(f"{blame(model, error)}: {_own_words(error)}") from error
    except Exception as error:
        raise ModelError(
            f"model failed {blame(model, error)}: {type(error).__name__}: {_own_words(error)}"
        ) from error
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        fn = site["fn"]
        if isinstance(fn, _Subsample) and fn.subsample_size not in (None, fn.size):
            raise ModelError(
                f"plate {name!r}: takes {fn.subsample_size} of {fn.size} at random. A posterior "
                "needs all of the data: remove subsample_size."
            )
        site["value"] = detach_provenance(cast(Tensor, site["value"]))
    return trace


def _own_words(error: BaseException) -> str:
    """The message without the table of sites that Pyro appends to it."""
    return str(error).split("\nTrace Shapes:")[0].strip()


def _latent_sites(nodes: dict[str, dict[str, Any]]) -> dict[str, Site]:
    sites: dict[str, Site] = {}
    start = 0
    for name, node in nodes.items():
        if node["is_observed"] or is_generated(node):
            continue
        if node["fn"].support.is_discrete:
            raise ModelError(
                f"site {name!r}: {node['fn']} is discrete, and gradients cannot move it. Sum it "
                "out (pyro.distributions.MixtureSameFamily does for mixtures) or use a "
                "continuous relaxation."
            )
        transform = biject_to(_support(node["fn"].support))
        value: Tensor = node["value"]
        unconstrained = transform.inv(value)
        stop = start + unconstrained.numel()
        sites[name] = Site(
            name, value.shape, unconstrained.shape, start, stop, transform, _unvalidated(node["fn"])
        )
        start = stop
    kinds = {(n["value"].dtype, n["value"].device) for m, n in nodes.items() if m in sites}
    if len(kinds) > 1:
        raise DtypeError(
            f"model: latent sites of different dtypes or devices: {sorted(map(str, kinds))}. "
            "Expected one: make all priors with the same dtype and device."
        )
    return sites


def _unvalidated(fn: Any) -> Any:
    """A copy that does not look at values: methods try points that overflow, and step back."""
    fn = copy.copy(fn)
    fn._validate_args = False
    if hasattr(fn, "base_dist"):
        fn.base_dist = _unvalidated(fn.base_dist)
    return fn


def _support(support: constraints.Constraint) -> constraints.Constraint:
    """``support`` without the wrapper of a mixture, which `biject_to` does not know."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _support(support.base_constraint)
    if isinstance(support, constraints.independent):
        inner = _support(support.base_constraint)
        return constraints.independent(inner, support.reinterpreted_batch_ndims)
    return support


def _check_observed(name: str, site: dict[str, Any], arguments: list[tuple[str, Tensor]]) -> None:
    value, fn = site["value"], site["fn"]
    source = [n for n, tensor in arguments if tensor is value]
    what = f"argument {source[0]!r} (observed site {name!r})" if source else f"site {name!r}"
    if not isinstance(value, Tensor):
        raise DtypeError(
            f"{what}: is {type(value).__name__}; expected a torch.Tensor (see torch.as_tensor)"
        )
    expected = fn.batch_shape + fn.event_shape
    if value.shape != expected:
        hint = "; for several problems at once set batched=True"
        raise ShapeError(
            f"{what}: has shape {tuple(value.shape)}; the model predicts shape {tuple(expected)}"
            + (hint if value.shape[1:] == expected else "")
        )
    check_finite(what, value)
    _check_in_support(what, value, fn)
    with isolated(0), torch.no_grad():
        like = fn.sample()
    if value.device != like.device:
        raise DtypeError(
            f"{what}: is on {value.device}; the model predicts on {like.device}. Move one of them."
        )
    # Counts may be stored as integers; measurements of a continuous quantity may not.
    continuous = not fn.support.is_discrete
    if value.dtype != like.dtype and (continuous or value.is_floating_point()):
        raise DtypeError(
            f"{what}: is {value.dtype}; the model predicts {like.dtype}. "
            f"Convert with .to({like.dtype})."
        )


def _check_in_support(what: str, value: Tensor, fn: Any) -> None:
    """Refuse data that the likelihood cannot produce, counting entries where it can."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    outside = ~support.check(value)
    if bool(outside.any()):
        where = tuple(int(i) for i in outside.nonzero()[0])
        first = f"; the first is {value[where].tolist()} at index {where}" if where else ""
        raise DataError(
            f"{what}: {int(outside.sum())} of {outside.numel()} values are outside the support of "
            f"{type(fn).__name__}, {support}{first}"
        )


def _check_supports(latent: dict[str, Site], runs: list[dict[str, dict[str, Any]]]) -> None:
    """Refuse supports that differ between runs: the transform is fixed once."""
    for name, site in latent.items():
        like = runs[0][name]["value"]
        u = torch.linspace(-2.0, 1.5, max(1, site.unconstrained_shape.numel()))
        u = u[: site.unconstrained_shape.numel()].reshape(site.unconstrained_shape).to(like)
        for run in runs[1:]:
            other = biject_to(_support(run[name]["fn"].support))
            if not torch.equal(site.transform(u), other(u)):
                raise ModelError(
                    f"site {name!r}: its support depends on other latent sites or on the data. "
                    "Sample it on a fixed support and transform it in the model (for "
                    "Uniform(0, a): sample r from Uniform(0, 1) and use a * r)."
                )


def _same_prior(
    name: str, first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]
) -> bool:
    value = first[name]["value"]
    one, other = (float(run[name]["fn"].log_prob(value).sum()) for run in (first, second))
    return math.isclose(one, other, rel_tol=0.0)
