"""Sampling in coordinates in which the posterior is nearly normal: neural transport."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from bayesgen.errors import OptionError
from bayesgen.inference.base import Sampler
from bayesgen.inference.chees import ChEES
from bayesgen.inference.guides import Guide, Guides, Parameters, check_guide
from bayesgen.inference.hmc import HMC
from bayesgen.inference.mala import MALA
from bayesgen.inference.nuts import NUTS
from bayesgen.inference.variational import Variational, VariationalState
from bayesgen.model_sites import isolated
from bayesgen.recording import record
from bayesgen.types import Density, check_count


class Transport:
    """The maps :math:`v = T(w)` of fitted guides, one for each problem.

    Parameters
    ----------
    guides, parameters
        The family, and what was fitted, with a leading axis of problems (of length one without).
    """

    def __init__(self, guides: Guides, parameters: Parameters) -> None:
        self._guide = _Reparameterised(guides.module)
        self._parameters = {f"guide.{name}": value for name, value in parameters.items()}
        self._rows = len(next(iter(parameters.values())))
        self._graphs: dict[torch.Size, Any] = {}

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Points ``(*problems, *batch, n)`` and log determinants ``(*problems, *batch)``."""
        rows = w.reshape(self._rows, -1, w.shape[-1])
        if rows.shape not in self._graphs:
            with isolated(0), pyro.validation_enabled(False):
                self._graphs[rows.shape] = record(lambda w: self._map(w), rows.detach())
        v, log_det = self._graphs[rows.shape](rows)
        return v.reshape(w.shape), log_det.reshape(w.shape[:-1])

    def _map(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        def one(parameters: Parameters, w: Tensor) -> Any:
            return torch.func.functional_call(self._guide, parameters, (w,))

        v, log_det = torch.vmap(one)(self._parameters, rows)
        return v, log_det


class _Reparameterised(torch.nn.Module):
    """The site v under Pyro's reparameterisation, at given values of the shared latent w."""

    def __init__(self, guide: AutoContinuous) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        def site() -> None:
            pyro.sample("v", dist.ImproperUniform(constraints.real_vector, (), w.shape[-1:]))

        reparam = NeuTraReparam(self.guide)
        model = poutine.condition(
            poutine.reparam(site, config=lambda _: reparam), data={"v_shared_latent": w}
        )
        node: Any = poutine.trace(model).get_trace().nodes["v"]
        return node["value"], node["fn"].log_density


class Warped:
    """A log density of w under ``v = T(w)``: the true one times the volume of the map."""

    proximal: ClassVar[dict[str, Any]] = {}
    takes_where = False

    def __init__(self, log_density: Density, transport: Transport) -> None:
        self.log_density, self.transport = log_density, transport
        self.num_dims = log_density.num_dims

    @property
    def normal_prior(self) -> tuple[Tensor, Tensor]:
        """Mean and precision of normal priors, of which none is left in these coordinates."""
        zero = torch.zeros(self.num_dims)
        return zero, zero

    def value_and_grad(self, v: Tensor, *, jacobian: bool = True) -> tuple[Tensor, Tensor]:
        """Log density and its gradient at points ``(*problems, *batch, n)`` of the base space."""
        with torch.enable_grad():
            w = v.detach().requires_grad_()
            there, log_det = self.transport(w)
            value, gradient = self.log_density.value_and_grad(there.detach())
            pulled = torch.autograd.grad((there * gradient).sum() + log_det.sum(), w)[0]
        return value + log_det.detach(), pulled


class NeuTraState(NamedTuple):
    """Where the chains are.

    Attributes
    ----------
    position, log_prob
        Points ``(*problems, chains, n)`` in the original coordinates, and their log density there.
    inner
        State of the sampler, in those of the base space; None before the first step.
    transport
        The maps between them, likewise.
    guides
        The guides before they are fitted, by the first step; None from then on.
    """

    position: Tensor
    log_prob: Tensor
    inner: Any
    transport: Transport | None
    guides: VariationalState | None


@dataclass(frozen=True)
class NeuTra(Sampler):
    """Neural transport: a guide is fitted, and a sampler runs where the guide is standard normal.

    Each problem's guide is fitted by `Variational` in the first step. The sampler's Metropolis test
    is on the true density in the guide's coordinates (Pyro's `NeuTraReparam` gives the map and its
    volume), so draws are exact however poor the guide; what a poor one costs is mixing. A guide
    settles on one mode, and warped chains seldom find another: for several modes take ``"smc"``.

    Chains begin at draws of the guide, not where other methods do: far from them flows stretch
    space so much that no step size suits. The first start says where guides with a location begin
    to be fitted.

    Parameters
    ----------
    guide
        ``"iaf"`` (two autoregressive transforms), ``"multivariate"``, or a class of
        `pyro.infer.autoguide` with a transform from standard normal noise.
    sampler
        The exact sampler that runs in the base space.
    steps
        Most steps the guide is fitted for; a bound that still rises then is told in a warning.

    References
    ----------
    Hoffman, Sountsov, Dillon, Langmore, Tran and Vasudevan (2019), NeuTra-lizing bad geometry in
    Hamiltonian Monte Carlo using neural transport.

    Examples
    --------
    >>> NeuTra(guide="multivariate").sampler.name
    'hmc'
    """

    name: ClassVar[str] = "neutra"
    reference: ClassVar[str] = "Hoffman et al. (2019), NeuTra-lizing bad geometry in HMC"

    guide: Guide = "iaf"
    sampler: Sampler = field(default_factory=HMC)
    steps: int = 2000

    def __post_init__(self) -> None:
        check_guide(self.guide, ("iaf", "multivariate"))
        check_count("steps", self.steps)
        if not isinstance(self.sampler, HMC | NUTS | MALA | ChEES):
            raise OptionError(
                f"sampler: got {self.sampler!r}; expected HMC(), NUTS(), ChEES() or MALA(), which "
                "are exact and know nothing of the prior"
            )

    def init(self, log_density: Density, position: Tensor) -> NeuTraState:
        """A guide for each problem, to be fitted by the first step.

        Raises
        ------
        OptionError
            If the guide has no transform.
        """
        guides = self._training.init(log_density, position[..., :1, None, :])
        if not guides.guides.has_transform:
            raise OptionError(
                f"guide: {type(guides.guides.module).__name__} has no get_transform; expected a "
                "guide that transforms noise, such as 'iaf'"
            )
        log_prob, _ = log_density.value_and_grad(position)
        return NeuTraState(position, log_prob, None, None, guides)

    def step(
        self, log_density: Density, state: NeuTraState, rng: torch.Generator
    ) -> tuple[NeuTraState, Any]:
        """One step of the sampler; the first one fits the guides before."""
        if state.guides is not None:
            state = self._fitted(log_density, state.guides, state.position, rng)
        assert state.transport is not None
        warped = Warped(log_density, state.transport)
        inner, info = self.sampler.step(warped, state.inner, rng)
        state = _state(inner, state.transport)
        known = {"log_prob": state.log_prob} if "log_prob" in info._fields else {}
        return state, info._replace(**known)

    def combine(self, earlier: Any, later: Any) -> Any:
        """As the sampler does."""
        return self.sampler.combine(earlier, later)

    def adapt(self, state: NeuTraState, info: Any, iteration: int, warmup: int) -> NeuTraState:
        """Tune the sampler; the map stays."""
        return state._replace(inner=self.sampler.adapt(state.inner, info, iteration, warmup))

    @property
    def _training(self) -> Variational:
        return Variational(self.guide, max_iterations=self.steps)

    def _fitted(
        self, log_density: Density, guides: VariationalState, position: Tensor, rng: torch.Generator
    ) -> NeuTraState:
        """The sampler at draws of the fitted guides, as many as positions, in their coordinates."""
        for _ in range(self.steps):
            if self._training.finished(guides):
                break
            guides, _ = self._training.step(log_density, guides, rng)
        # From the first reduction of the learning rate on a map is refined, no longer found.
        rising = ~guides.progress.stalled
        if guides.reductions == 0 and bool(rising.any()):
            warnings.warn(
                f"neutra: the evidence bounds of {int(rising.sum())} of {rising.numel()} guides "
                f"still rose after {self.steps} steps; draws are exact all the same, but may mix "
                "slowly. Raise steps, or begin nearer to the posterior with start='map'",
                RuntimeWarning,
                stacklevel=4,
            )
        transport = Transport(guides.guides, guides.average)
        warped = Warped(log_density, transport)
        w = torch.randn(position.shape, generator=rng, dtype=position.dtype, device=rng.device)
        # Where the map leaves the domain of the model, its centre is a start.
        inside = torch.isfinite(warped.value_and_grad(w)[0])
        inner = self.sampler.init(warped, torch.where(inside.unsqueeze(-1), w, 0.0))
        return _state(inner, transport)


def _state(inner: Any, transport: Transport) -> NeuTraState:
    with torch.no_grad():
        position, log_det = transport(inner.position)
    return NeuTraState(position, inner.log_prob - log_det, inner, transport, None)
