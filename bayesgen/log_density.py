"""A Pyro model and its data as a batched, differentiable function on R^n.

The posterior density of a model's latent sites, moved to an unconstrained space by Pyro's
transforms, is the one thing samplers and optimisers need to know about a model. `LogDensity`
evaluates it for all chains (and all problems) at once.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import ComposeTransform, IndependentTransform, Transform
from torch.utils import _pytree as pytree

from bayesgen._batching import native_batching
from bayesgen.errors import ModelError, OptionError, ShapeError
from bayesgen.gaussian_blocks import GaussianBlocks, find_gaussian_blocks
from bayesgen.model_sites import (
    FixedParameters,
    Generated,
    Model,
    Site,
    Startable,
    argument_names,
    blame,
    can_be_drawn,
    draw_or_zero,
    isolated,
    read_model,
)
from bayesgen.proximal import ProximalMap
from bayesgen.recording import record
from bayesgen.structure import (
    LeastSquares,
    find_least_squares,
    find_normal_priors,
    find_proximal_maps,
)
from bayesgen.traces import log_prob_of_trace, prior_and_likelihood
from bayesgen.types import Split

# Recording takes as long as some fifty evaluations through Pyro; fewer are not worth it.
RECORD_AFTER = 30


class LogDensity:
    """Unnormalised log posterior density of a conditioned Pyro model.

    Parameters
    ----------
    model
        A Python function with ``pyro.sample`` statements. Sites with ``obs`` are data, the others
        are latent and become coordinates of ``v``.
    args, kwargs
        Arguments of the model, the data among them.
    batched
        If true, the leading axis of every tensor in ``args`` and ``kwargs`` counts independent
        problems of the same model, which are evaluated together.
    compile
        Record the evaluation as a graph of tensor operations once it has been asked for thirty
        times (default: it saves the cost of Pyro's handlers, which exceeds that of a small
        generator). ``False`` is for debugging.

    Attributes
    ----------
    num_dims : int
        Dimension n of the unconstrained space.
    num_problems : int or None
        Number of problems if ``batched``, else None.
    data : list of Tensor
        The tensors among the model's arguments.
    has_jacobian : bool
        Whether some site is mapped from the unconstrained space by more than the identity.
    vectorised : bool
        False if the model had to be evaluated in a loop over chains.

    Raises
    ------
    ModelError, ShapeError, DtypeError, DataError
        If the model or its arguments cannot be used; see `bayesgen.model_sites`.

    Notes
    -----
    With latent sites :math:`\\theta = T(v)` the value is
    :math:`\\log p(\\theta, y) + \\log |\\det T'(v)|`.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> log_density = LogDensity(model, torch.tensor(2.0))
    >>> value, gradient = log_density.value_and_grad(torch.tensor([[0.0], [1.0]]))
    >>> gradient
    tensor([[2.],
            [0.]])
    """

    def __init__(
        self, model: Model, *args: Any, batched: bool = False, compile: bool = True, **kwargs: Any
    ) -> None:
        self.model = model
        self.compile = compile
        leaves, self._tree = pytree.tree_flatten((args, kwargs))
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self._constants = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        self.data = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        self.num_problems = _count_problems(model, args, kwargs) if batched else None
        each = range(self.num_problems) if self.num_problems is not None else [None]
        arguments = [self._arguments(self._data_of(problem)) for problem in each]
        self.sites = read_model(model, *arguments[0], others=arguments[1:])
        self.num_dims = self.sites.num_dims
        with isolated(0), torch.no_grad():
            value = draw_or_zero(next(iter(self.sites.latent.values())).prior)
        self.dtype, self.device = value.dtype, value.device
        self.has_jacobian = not all(
            is_identity(site.transform) for site in self.sites.latent.values()
        )
        # None where recording has failed.
        self._graphs: dict[tuple[Any, ...], Callable[..., Any] | None] = {}
        self._calls: Counter[tuple[Any, ...]] = Counter()
        self.vectorised = True
        self._choose_evaluation()

    def __repr__(self) -> str:
        name = getattr(self.model, "__name__", type(self.model).__name__)
        problems = f", {self.num_problems} problems" if self.num_problems is not None else ""
        sites = ", ".join(f"{s.name}{tuple(s.shape)}" for s in self.sites.latent.values())
        return f"LogDensity({name}: R^{self.num_dims} [{sites}]{problems})"

    # ------------------------------------------------------------------ evaluation

    def value_and_grad(
        self,
        v: Tensor,
        *,
        jacobian: bool = True,
        smooth: bool = False,
        where: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log density and its gradient.

        Parameters
        ----------
        v
            Points of shape ``(*batch, num_dims)``; with ``batched`` ``(num_problems, *batch,
            num_dims)``.
        jacobian
            Whether to include :math:`\\log |\\det T'(v)|`. Samplers need it; the mode of the
            density of :math:`\\theta` itself, which MAP reports, is found without.
        smooth
            Whether to leave out the priors of the sites in `proximal`.
        where
            See `evaluate`.

        Returns
        -------
        value, gradient
            Shapes ``v.shape[:-1]`` and ``v.shape``. Outside the model's domain the value may be
            NaN or minus infinity.
        """
        jacobian = jacobian or not self.has_jacobian
        without = frozenset(self.proximal) if smooth else frozenset()
        gradient_of = functools.partial(self._value_and_grad, jacobian=jacobian, without=without)
        name = f"gradient {jacobian} {sorted(without)}"
        value, gradient = self.evaluate(name, gradient_of, v, where)
        return value, gradient

    def split(self, v: Tensor, *, where: Tensor | None = None) -> Split:
        """Log prior and log likelihood, which tempering weighs differently.

        Parameters
        ----------
        v, where
            As for `value_and_grad`.

        Returns
        -------
        Split
            The prior is the law of the latent sites, in the unconstrained space; the likelihood is
            everything else: observed sites, ``pyro.factor`` statements, and what a weight (a scale
            or mask) adds to a prior.

        Raises
        ------
        ModelError
            If a prior is improper, so that no draws of it can begin.
        """
        self._check_proper()
        prior, likelihood, prior_gradient, likelihood_gradient = self.evaluate(
            "split", self._split, v, where
        )
        return Split(prior, likelihood, prior_gradient, likelihood_gradient)

    def _split(self, rows: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
        def parts(trace: poutine.Trace) -> tuple[Tensor, Tensor]:
            return prior_and_likelihood(trace, self.sites.latent)

        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            prior, likelihood = self.map_traces(parts, rows, data)
            prior = prior + self.log_abs_det(rows) if self.has_jacobian else prior
            gradients = [
                torch.autograd.grad(value.sum(), rows, retain_graph=True, materialize_grads=True)[0]
                if value.requires_grad
                else torch.zeros_like(rows)
                for value in (prior, likelihood)
            ]
        return prior.detach(), likelihood.detach(), *gradients

    @cached_property
    def sites_without_gradient(self) -> list[str]:
        """Latent sites that the likelihood depends on, but not smoothly: its gradient is zero."""
        v, found = self.prior_draws(4, torch.Generator().manual_seed(0)), []
        with isolated(0):
            value, gradient = self._split(v, *self.data)[1::2]
        for name, site in self.sites.latent.items():
            block = slice(site.start, site.stop)
            if bool((gradient[..., block] != 0).any()):
                continue
            moved = v.clone()
            moved[..., block] = v[..., block].roll(1, -2)
            with isolated(0):
                changed = self._split(moved, *self.data)[1]
            if bool((changed != value).any()):
                found.append(name)
        return found

    @cached_property
    def improper_priors(self) -> list[str]:
        """Latent sites whose prior has no draws."""
        return [name for name, site in self.sites.latent.items() if not can_be_drawn(site.prior)]

    def _check_proper(self) -> None:
        if self.improper_priors:
            raise ModelError(
                f"model: the priors of {self.improper_priors} are improper, so that there is no "
                "law to temper from; give them proper priors, or use a method that begins at a "
                "point, such as 'hmc'"
            )

    def evaluate(
        self,
        name: Hashable,
        fn: Callable[..., Any],
        v: Tensor,
        where: Tensor | None = None,
        *,
        extra: int = 0,
        more: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """Tensors that a function computes from points and data, recorded as a graph.

        Parameters
        ----------
        name
            Of the function, under which its graphs are kept.
        fn
            From ``(rows, *data)``, rows being ``(N, n + extra)`` or ``(num_problems, N, n +
            extra)``, to tensors with the same leading axes.
        v
            Points ``(*batch, n + extra)``, after an axis of problems if there are several.
        where
            Which points are wanted, ``(*batch,)``; all by default. The others cost little, and
            their results are NaN.
        extra
            Numbers that each row has after its coordinates.
        more
            Further data of the function, of as many problems.
        """
        rows, lead = self._rows(v, extra), 1 if self.num_problems is None else 2
        data = [*self.data, *more]
        if rows.numel() == 0:
            with torch.no_grad():
                like = fn(rows.new_zeros(*rows.shape[:-2], 1, rows.shape[-1]), *data)
            return tuple(part.new_zeros(v.shape[:-1] + part.shape[lead:]) for part in like)
        wanted = None if where is None else _few(where.reshape(-1))
        with torch.no_grad():
            if wanted is None:
                found = self._recorded(name, fn, rows, data)(rows, *data)
            else:
                found = self._evaluate_few(name, fn, rows, wanted, data)
        return tuple(part.reshape(v.shape[:-1] + part.shape[lead:]) for part in found)

    def _evaluate_few(
        self,
        name: Hashable,
        fn: Callable[..., Any],
        rows: Tensor,
        wanted: Tensor,
        data: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Like the function itself, with NaN at rows that are not ``wanted``, by number."""
        few = rows.flatten(0, -2)[wanted]
        if self.num_problems is not None:
            # Every row becomes a problem, with its problem's data.
            few, data = few.unsqueeze(1), [d[wanted // rows.shape[1]] for d in data]
        found = self._recorded(name, fn, few, data)(few, *data)
        every = []
        for part in found:
            shape = part.shape[few.ndim - 1 :]
            filled = part.new_full((math.prod(rows.shape[:-1]), *shape), math.nan)
            filled[wanted] = part.reshape(len(wanted), *shape)
            every.append(filled.reshape(*rows.shape[:-1], *shape))
        return tuple(every)

    def log_prob(self, v: Tensor, *, jacobian: bool = True) -> Tensor:
        """Log density of shape ``v.shape[:-1]``; differentiable, not recorded."""
        rows = self._rows(v)
        return self._log_prob(rows, *self.data, jacobian=jacobian).reshape(v.shape[:-1])

    def _rows(self, v: Tensor, extra: int = 0) -> Tensor:
        lead = () if self.num_problems is None else (self.num_problems,)
        width = self.num_dims + extra
        if v.shape[-1:] != (width,) or v.shape[: len(lead)] != lead or v.ndim <= len(lead):
            expected = ", ".join(map(str, (*lead, "*batch", width)))
            raise ShapeError(f"v: has shape {tuple(v.shape)}; expected ({expected})")
        return v.reshape(*lead, math.prod(v.shape[len(lead) : -1]), width).contiguous()

    def _recorded(
        self, name: Hashable, fn: Callable[..., Any], rows: Tensor, data: Sequence[Tensor]
    ) -> Callable[..., Any]:
        if not (self.compile and self.vectorised):
            return fn
        key = (name, *rows.shape)
        self._calls[key] += 1
        if self._calls[key] <= RECORD_AFTER:
            return fn
        if key not in self._graphs:
            try:
                with isolated():
                    self._graphs[key] = record(fn, rows, *data)
            except Exception as error:
                # Python that looks into the data, such as `if y.mean() > 0`, works under vmap but
                # cannot be recorded.
                self._graphs[key] = None
                warnings.warn(
                    "the model cannot be recorded as a graph and runs through Pyro each time, "
                    f"which is slower: {blame(self.model, error)}: {_first_line(error)}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return self._graphs[key] or fn

    def forget(self, name: Hashable) -> None:
        """Drop what was recorded of a function that will not be asked for again."""
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] != name}

    def _value_and_grad(
        self,
        rows: Tensor,
        *data: Tensor,
        jacobian: bool = True,
        without: frozenset[str] = frozenset(),
    ) -> tuple[Tensor, Tensor]:
        # One ordinary gradient of the sum, outside the vmap: chains do not interact, and it is
        # cheaper than vmap(grad).
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            value = self._log_prob(rows, *data, jacobian=jacobian, without=without)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), rows)
            else:
                gradient = torch.zeros_like(rows)
        return value.detach(), gradient

    def _log_prob(
        self,
        rows: Tensor,
        *data: Tensor,
        jacobian: bool = True,
        without: frozenset[str] = frozenset(),
    ) -> Tensor:
        total = functools.partial(log_prob_of_trace, without=without)
        value: Tensor = self.map_traces(total, rows, data)
        return value + self.log_abs_det(rows) if jacobian and self.has_jacobian else value

    def log_abs_det(self, rows: Tensor) -> Tensor:
        """Of the map from unconstrained points to the values of the sites."""
        total = rows.new_zeros(rows.shape[:-1])
        for site in self.sites.latent.values():
            if not is_identity(site.transform):
                u = site.take(rows)
                log_det = site.transform.log_abs_det_jacobian(u, site.transform(u))
                total = total + log_det.reshape(*rows.shape[:-1], -1).sum(-1)
        return total

    def map_traces(
        self, fn: Callable[[poutine.Trace], Any], rows: Tensor, data: Sequence[Tensor]
    ) -> Any:
        """What ``fn`` finds in the model's trace at every row, differentiable; see `evaluate`."""

        def of_one(v: Tensor, *data: Tensor) -> Any:
            return fn(self.trace(self.constrain(v), data))

        return self.map_rows(of_one, rows, data)

    def map_rows(self, fn: Callable[..., Any], rows: Any, data: Sequence[Tensor]) -> Any:
        """``fn`` of every row and its problem's data, vectorised as the model itself is."""
        with pyro.validation_enabled(False):
            return self._map(fn, rows, data)

    def trace(
        self,
        values: Mapping[str, Tensor],
        data: Sequence[Tensor] | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> poutine.Trace:
        """Pyro's record of one run with the latent sites fixed to ``values`` (no leading axes).

        Generated sites take the value that ``noise`` makes, or their mean without it.
        """
        args, kwargs = self._arguments(data)
        model = Generated(noise)(FixedParameters()(self.model))
        conditioned = poutine.condition(model, data=dict(values))
        return poutine.trace(conditioned).get_trace(*args, **kwargs)

    def data_of_one(self) -> list[Tensor]:
        """The data of the only problem, or of the first."""
        return self._data_of(None if self.num_problems is None else 0)

    def _data_of(self, problem: int | None) -> list[Tensor]:
        return self.data if problem is None else [d[problem] for d in self.data]

    def _arguments(self, data: Sequence[Tensor] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors = iter(self.data if data is None else data)
        constants = iter(self._constants)
        leaves = [next(tensors) if tensor else next(constants) for tensor in self._is_tensor]
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return args, kwargs

    def _map(self, fn: Callable[..., Any], rows: Any, data: Sequence[Tensor]) -> Any:
        """``fn`` of every row (a tensor, or a dictionary of tensors, with leading axes)."""
        no_data = (None,) * len(data)
        if not self.vectorised:
            return _loop(fn, rows, data, problems=self.num_problems is not None)
        mapped = torch.func.vmap(fn, in_dims=(0, *no_data))
        if self.num_problems is None:
            with native_batching(1):
                return mapped(rows, *data)
        with native_batching(2):
            return torch.func.vmap(mapped, in_dims=(0,) * (1 + len(data)))(rows, *data)

    # ------------------------------------------------------------------ structure

    @cached_property
    def proximal(self) -> dict[str, ProximalMap]:
        """Proximal maps of the latent sites whose prior has one, by name; see `structure`."""
        return find_proximal_maps(self)

    @cached_property
    def least_squares(self) -> LeastSquares | None:
        """The residuals of the model, if all of its sites are normal; see `structure`."""
        return find_least_squares(self)

    @cached_property
    def normal_prior(self) -> tuple[Tensor, Tensor]:
        """Mean and precision ``(n,)`` of coordinates with a normal prior of their own, else 0."""
        return find_normal_priors(self)

    @cached_property
    def gaussian_blocks(self) -> GaussianBlocks:
        """Latent sites that are Gaussian given the others, by name; see `gaussian_blocks`."""
        return find_gaussian_blocks(self)

    # ------------------------------------------------------------------ trust, but verify

    def _choose_evaluation(self) -> None:
        """Use the vectorised evaluation if it works and agrees with one chain at a time."""
        problems = slice(None, 2)
        v = self.prior_draws(2, torch.Generator().manual_seed(0))
        data = self.data
        if self.num_problems is not None:
            v, data = v[problems], [d[problems] for d in data]
        self.vectorised = False
        with isolated(0):
            single = self._value_and_grad(v, *data)
            again = self._value_and_grad(v, *data)
        if not all(torch.equal(a, b) for a, b in zip(single, again, strict=True)) and all(
            bool(torch.isfinite(part).all()) for part in single
        ):
            raise ModelError(
                "model: two evaluations at the same point differ, so its density is random. Put "
                "networks with dropout or batch statistics in eval mode; draw no random numbers "
                "in the model except in pyro.sample statements."
            )
        self.vectorised = True
        try:
            with isolated(0):
                batch = self._value_and_grad(v, *data)
        except Exception as error:
            reason = f"{blame(self.model, error)}: {type(error).__name__}: {_first_line(error)}"
        else:
            if all(_agree(a, b) for a, b in zip(batch, single, strict=True)):
                return
            reason = (
                "its values for a batch of chains differ from those for one chain; an operator or "
                "generator in it does not treat leading batch dimensions as such (see "
                "check_operator, check_generator)"
            )
        self.vectorised = False
        warnings.warn(
            f"the model cannot be vectorised over chains and runs in a loop, which is slower: "
            f"{reason}",
            RuntimeWarning,
            stacklevel=4,
        )

    # ------------------------------------------------------------------ sites and vectors

    def constrain(self, v: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites at ``v``: name -> ``(*v.shape[:-1], *site.shape)``."""
        return {s.name: s.transform(s.take(v)) for s in self.sites.latent.values()}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Inverse of `constrain`.

        Raises
        ------
        OptionError
            If a site is missing or unknown.
        ShapeError
            If a value's trailing shape is not its site's, or the batch shapes differ.
        """
        if set(values) != set(self.sites.latent):
            raise OptionError(
                f"values: has sites {sorted(values)}; expected {sorted(self.sites.latent)}"
            )
        blocks = []
        for site in self.sites.latent.values():
            value = torch.as_tensor(values[site.name], dtype=self.dtype, device=self.device)
            lead = value.shape[: value.ndim - len(site.shape)]
            if value.shape[len(lead) :] != site.shape or value.ndim < len(site.shape):
                raise ShapeError(
                    f"values[{site.name!r}]: has shape {tuple(value.shape)}; expected "
                    f"(*batch, {', '.join(map(str, site.shape))})"
                )
            blocks.append(site.transform.inv(value).reshape(*lead, site.stop - site.start))
        if len({block.shape[:-1] for block in blocks}) > 1:
            raise ShapeError("values: the sites have different batch shapes")
        return torch.cat(blocks, dim=-1)

    def prior_draws(self, num: int, rng: torch.Generator) -> Tensor:
        """Unconstrained draws from the prior, ``(num, num_dims)``.

        With ``batched`` the shape is ``(num_problems, num, num_dims)``.
        """
        seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        lead = (num,) if self.num_problems is None else (self.num_problems, num)
        sites = self.sites.latent.values()
        with isolated(seed), torch.no_grad():
            if self.sites.prior_is_static:
                values = {site.name: draw_or_zero(site.prior, lead) for site in sites}
                return self.unconstrain(values)
            draws = [self._prior_draw(i // num) for i in range(math.prod(lead))]
        return torch.stack(draws).reshape(*lead, self.num_dims)

    def _prior_draw(self, problem: int) -> Tensor:
        args, kwargs = self._arguments(
            None if self.num_problems is None else self._data_of(problem)
        )
        model = Generated()(Startable()(FixedParameters()(self.model)))
        trace = poutine.trace(model).get_trace(*args, **kwargs)
        nodes: Mapping[str, Any] = trace.nodes
        return self.unconstrain({name: nodes[name]["value"] for name in self.sites.latent})

    def problem(self, index: int) -> LogDensity:
        """The log density of one problem of a batch."""
        args, kwargs = self._arguments(self._data_of(index))
        return LogDensity(self.model, *args, compile=self.compile, **kwargs)

    @cached_property
    def scale(self) -> Tensor:
        """How far each coordinate ranges under the prior; broadcasts against points.

        The prior's standard deviation where it has one in closed form, else half the distance
        between the 16 % and 84 % quantiles of a few draws.
        """
        draws = self.prior_draws(100, torch.Generator().manual_seed(0))
        low, high = torch.quantile(
            draws.double(), torch.tensor([0.16, 0.84], dtype=torch.float64).to(draws.device), dim=-2
        )
        scale = (0.5 * (high - low)).to(draws)
        for site in self.sites.latent.values():
            if self.sites.prior_is_static and is_identity(site.transform):
                block = scale[..., site.start : site.stop]
                stddev = _stddev(site, draws)
                block.copy_(torch.where(torch.isfinite(stddev), stddev, block))
        scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
        return scale if self.num_problems is None else scale.unsqueeze(-2)

    def map_draws(
        self,
        extract: Callable[[poutine.Trace], dict[str, Tensor]],
        values: Mapping[str, Tensor],
        noise: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Run the conditioned model on latent draws and collect what ``extract`` returns.

        Parameters
        ----------
        extract
            Function of one conditioned trace that returns a dictionary of tensors.
        values
            Latent sites with leading axes ``(draws,)``, or ``(num_problems, draws)``.
        noise
            Standard normal numbers for the generated sites with the same leading axes; without,
            these sites take their means.

        Returns
        -------
        dict
            The tensors of ``extract`` with the same leading axes.
        """

        def of_one(
            given: tuple[dict[str, Tensor], dict[str, Tensor]], *data: Tensor
        ) -> dict[str, Tensor]:
            latent, noise = given
            return extract(self.trace(latent, data, noise or None))

        with isolated(0), torch.no_grad():
            return dict(self.map_rows(of_one, (dict(values), dict(noise or {})), self.data))


def _few(where: Tensor) -> Tensor | None:
    """Numbers of the true entries, filled up to one of a few lengths; None if many are.

    Graphs are recorded for a length, which takes as long as some hundred evaluations of a row.
    """
    wanted, length = where.nonzero()[:, 0], len(where)
    while length > 4 and -(-length // 4) >= len(wanted):
        length = -(-length // 4)
    if length == len(where):
        return None
    unwanted = (~where).nonzero()[: length - len(wanted), 0]
    return torch.cat([wanted, unwanted])


def _stddev(site: Site, like: Tensor) -> Tensor:
    """Standard deviation of a site's prior; NaN where it has none."""
    try:
        stddev: Tensor = site.prior.stddev
    except NotImplementedError:
        stddev = like.new_tensor(math.nan)
    return stddev.expand(site.shape).reshape(-1).to(like)


def is_identity(transform: Transform) -> bool:
    """Whether it leaves unconstrained points as they are."""
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, ComposeTransform) and not transform.parts


def _loop(fn: Callable[..., Any], rows: Any, data: Sequence[Tensor], *, problems: bool) -> Any:
    """What nested vmaps would return, one row at a time."""
    count = len(pytree.tree_leaves(rows)[0])
    results = []
    for i in range(count):
        row = pytree.tree_map(lambda leaf: leaf[i], rows)  # noqa: B023
        if problems:
            results.append(_loop(fn, row, [d[i] for d in data], problems=False))
        else:
            results.append(fn(row, *data))
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def _agree(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, relative to the largest magnitude; NaN equals NaN."""
    if a.shape != b.shape or not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return False
    a, b = (torch.where(torch.isfinite(t), t, 0.0) for t in (a, b))
    tolerance = 1e-3 if a.dtype == torch.float32 else 1e-8
    return bool((a - b).abs().max() <= tolerance * (1.0 + b.abs().max()))


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return line if len(line) <= 160 else line[:157] + "..."


def _count_problems(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    named = argument_names(model, args, kwargs)
    if not named:
        raise OptionError("batched: expected tensors among the model's arguments, got none")
    scalars = [name for name, tensor in named if tensor.ndim == 0]
    if scalars:
        raise ShapeError(
            f"batched: argument {scalars[0]!r} has no leading axis that could count problems; "
            "keep what all problems share out of the arguments (close over it)"
        )
    sizes = {name: len(tensor) for name, tensor in named}
    if len(set(sizes.values())) > 1:
        raise ShapeError(f"batched: the arguments have different leading axes: {sizes}")
    num = next(iter(sizes.values()))
    if num == 0:
        raise ShapeError("batched: the arguments hold zero problems; expected at least one")
    return num


__all__ = ["LogDensity", "Site"]
