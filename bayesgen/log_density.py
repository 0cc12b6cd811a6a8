"""A Pyro model and its data as a batched, differentiable function on R^n.

The posterior density of a model's latent sites, moved to an unconstrained space by Pyro's
transforms, is the one thing samplers and optimisers need to know about a model. `LogDensity`
evaluates it for all chains (and all problems) at once.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from bayesgen.model_sites import (
    FixedParameters,
    Model,
    Site,
    argument_names,
    blame,
    isolated,
    log_prob_of_sites,
    read_model,
)
from bayesgen.recording import record


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
        Record the evaluation as a graph of tensor operations (default: it saves the cost of
        Pyro's handlers, which exceeds that of a small generator). ``False`` is for debugging.

    Attributes
    ----------
    num_dims : int
        Dimension n of the unconstrained space.
    num_problems : int or None
        Number of problems if ``batched``, else None.
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
        self._data = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        self.num_problems = _count_problems(model, args, kwargs) if batched else None
        each = range(self.num_problems) if self.num_problems is not None else [None]
        arguments = [self._arguments(self._data_of(problem)) for problem in each]
        self.sites = read_model(model, *arguments[0], others=arguments[1:])
        self.num_dims = self.sites.num_dims
        prototype = next(iter(self.sites.latent.values())).prior.sample
        with isolated(0), torch.no_grad():
            value = prototype()
        self.dtype, self.device = value.dtype, value.device
        self._has_jacobian = not all(
            _is_identity(site.transform) for site in self.sites.latent.values()
        )
        self._graphs: dict[tuple[int, ...], Callable[..., tuple[Tensor, Tensor]]] = {}
        self.vectorised = True
        self._choose_evaluation()

    def __repr__(self) -> str:
        name = getattr(self.model, "__name__", type(self.model).__name__)
        problems = f", {self.num_problems} problems" if self.num_problems is not None else ""
        sites = ", ".join(f"{s.name}{tuple(s.shape)}" for s in self.sites.latent.values())
        return f"LogDensity({name}: R^{self.num_dims} [{sites}]{problems})"

    # ------------------------------------------------------------------ evaluation

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Log density and its gradient.

        Parameters
        ----------
        v
            Points of shape ``(*batch, num_dims)``; with ``batched`` ``(num_problems, *batch,
            num_dims)``.
        jacobian
            Whether to include :math:`\\log |\\det T'(v)|`. Samplers need it; the mode of the
            density of :math:`\\theta` itself, which MAP reports, is found without.

        Returns
        -------
        value, gradient
            Shapes ``v.shape[:-1]`` and ``v.shape``. Outside the model's domain the value may be
            NaN or minus infinity.
        """
        rows = self._rows(v)
        if rows.numel() == 0:
            return v.new_zeros(v.shape[:-1]), torch.zeros_like(v)
        evaluate = self._evaluation(rows, jacobian or not self._has_jacobian)
        with torch.no_grad():
            value, gradient = evaluate(rows, *self._data)
        return value.reshape(v.shape[:-1]), gradient.reshape(v.shape)

    def log_prob(self, v: Tensor, *, jacobian: bool = True) -> Tensor:
        """Log density of shape ``v.shape[:-1]``; differentiable, not recorded."""
        rows = self._rows(v)
        return self._log_prob(rows, *self._data, jacobian=jacobian).reshape(v.shape[:-1])

    def _rows(self, v: Tensor) -> Tensor:
        lead = () if self.num_problems is None else (self.num_problems,)
        if v.shape[-1:] != (self.num_dims,) or v.shape[: len(lead)] != lead or v.ndim <= len(lead):
            expected = ", ".join(map(str, (*lead, "*batch", self.num_dims)))
            raise ShapeError(f"v: has shape {tuple(v.shape)}; expected ({expected})")
        return v.reshape(*lead, math.prod(v.shape[len(lead) : -1]), self.num_dims).contiguous()

    def _evaluation(self, rows: Tensor, jacobian: bool) -> Callable[..., tuple[Tensor, Tensor]]:
        direct = functools.partial(self._value_and_grad, jacobian=jacobian)
        if not (self.compile and self.vectorised):
            return direct
        key = (jacobian, *rows.shape)
        if key not in self._graphs:
            try:
                with isolated():
                    self._graphs[key] = record(direct, rows, *self._data)
            except Exception as error:
                # Python that looks into the data, such as `if y.mean() > 0`, works under vmap but
                # cannot be recorded.
                self._graphs[key] = direct
                warnings.warn(
                    "the model cannot be recorded as a graph and runs through Pyro each time, "
                    f"which is slower: {blame(self.model, error)}: {_first_line(error)}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return self._graphs[key]

    def _value_and_grad(
        self, rows: Tensor, *data: Tensor, jacobian: bool = True
    ) -> tuple[Tensor, Tensor]:
        # One ordinary gradient of the sum, outside the vmap: chains do not interact, and it is
        # cheaper than vmap(grad).
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            value = self._log_prob(rows, *data, jacobian=jacobian)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), rows)
            else:
                gradient = torch.zeros_like(rows)
        return value.detach(), gradient

    def _log_prob(self, rows: Tensor, *data: Tensor, jacobian: bool = True) -> Tensor:
        def of_one(v: Tensor, *data: Tensor) -> Tensor:
            terms: list[Tensor] = []
            values: dict[str, Tensor] = {}
            for site in self.sites.latent.values():
                u = site.take(v)
                values[site.name] = site.transform(u)
                if jacobian and not _is_identity(site.transform):
                    log_det = site.transform.log_abs_det_jacobian(u, values[site.name])
                    terms.append(log_det.sum())
            trace = self.trace(values, data)
            terms.extend(log_prob for _, log_prob in log_prob_of_sites(trace))
            return functools.reduce(torch.add, terms)

        with pyro.validation_enabled(False):
            value: Tensor = self._map(of_one, rows, data)
        return value

    def trace(
        self, values: Mapping[str, Tensor], data: Sequence[Tensor] | None = None
    ) -> poutine.Trace:
        """Pyro's record of one run with the latent sites fixed to ``values`` (no leading axes)."""
        args, kwargs = self._arguments(data)
        conditioned = poutine.condition(FixedParameters()(self.model), data=dict(values))
        return poutine.trace(conditioned).get_trace(*args, **kwargs)

    def _data_of(self, problem: int | None) -> list[Tensor]:
        return self._data if problem is None else [d[problem] for d in self._data]

    def _arguments(self, data: Sequence[Tensor] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors = iter(self._data if data is None else data)
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

    # ------------------------------------------------------------------ trust, but verify

    def _choose_evaluation(self) -> None:
        """Use the vectorised evaluation if it works and agrees with one chain at a time."""
        problems = slice(None, 2)
        v = self.prior_draws(2, torch.Generator().manual_seed(0))
        data = self._data
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
                values = {site.name: site.prior.sample(torch.Size(lead)) for site in sites}
                return self.unconstrain(values)
            draws = [self._prior_draw(i // num) for i in range(math.prod(lead))]
        return torch.stack(draws).reshape(*lead, self.num_dims)

    def _prior_draw(self, problem: int) -> Tensor:
        args, kwargs = self._arguments(
            None if self.num_problems is None else self._data_of(problem)
        )
        trace = poutine.trace(FixedParameters()(self.model)).get_trace(*args, **kwargs)
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
            if self.sites.prior_is_static and _is_identity(site.transform):
                block = scale[..., site.start : site.stop]
                stddev = _stddev(site, draws)
                block.copy_(torch.where(torch.isfinite(stddev), stddev, block))
        scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
        return scale if self.num_problems is None else scale.unsqueeze(-2)

    def map_draws(
        self,
        extract: Callable[[poutine.Trace], dict[str, Tensor]],
        values: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Run the conditioned model on latent draws and collect what ``extract`` returns.

        Parameters
        ----------
        extract
            Function of one conditioned trace that returns a dictionary of tensors.
        values
            Latent sites with leading axes ``(draws,)``, or ``(num_problems, draws)``.

        Returns
        -------
        dict
            The tensors of ``extract`` with the same leading axes.
        """

        def of_one(latent: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
            return extract(self.trace(latent, data))

        with isolated(0), torch.no_grad(), pyro.validation_enabled(False):
            return dict(self._map(of_one, dict(values), self._data))


def _stddev(site: Site, like: Tensor) -> Tensor:
    """Standard deviation of a site's prior; NaN where it has none."""
    try:
        stddev: Tensor = site.prior.stddev
    except NotImplementedError:
        stddev = like.new_tensor(math.nan)
    return stddev.expand(site.shape).reshape(-1).to(like)


def _is_identity(transform: Transform) -> bool:
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
