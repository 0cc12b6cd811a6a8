r"""Discriminator-weighted latent sampling: a discriminator corrects the latent prior."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from bayesgen._batching import native_batch
from bayesgen.errors import DataError, DtypeError, ModelError, OptionError, ShapeError
from bayesgen.inference.base import Sampler
from bayesgen.inference.hmc import HMC
from bayesgen.models.base import Generator
from bayesgen.models.density_ratio import DensityRatio
from bayesgen.types import Density, check_positive

Discriminator = Callable[[Tensor], Tensor]
Model = Callable[..., Any]

# Name of the factor that is added to the model.
FACTOR = "discriminator"
# Images on which a discriminator is tried before it is used, of each kind.
_TRIALS = 8


@dataclass(frozen=True, repr=False)
class DWLS(Sampler):
    r"""Sample under the latent prior :math:`p(z)\, e^{w\, d(G(z))}`, d the log odds of "real".

    If d is the logarithm of :math:`p_{data}(x) / p_G(x)`, this is, with :math:`w = 1`, the prior
    under which images G(z) are distributed like the data: latent vectors whose images look wrong
    lose their weight. Everything else, the likelihood and the chains, is as without it.

    Parameters
    ----------
    discriminator
        From images ``(N, *site_shape)`` to log odds ``(N,)``: ``D.discriminate`` of a
        `bayesgen.models.GAN` (or the GAN itself), for other generators what
        `bayesgen.models.train_density_ratio` or `bayesgen.models.fine_tune` returns, or any
        differentiable function.
    sampler
        The method that makes the chains.
    weight
        w. 1 for log odds that are right; less trusts them less.
    site
        The model's site with the image to judge. Where x = G(z) + u deviates from the generator's
        range it makes a difference which: ``"x"`` weights the image, deviation included; to weight
        the latent prior itself, give G(z) a site, ``pyro.deterministic("range", G(z))``, and name
        it here.
    are_logits
        What to do about a function all of whose values lie between 0 and 1. By default it is
        refused, because they are most likely probabilities; set this if they are log odds all the
        same.

    Raises
    ------
    OptionError
        If a setting is out of its range; when inference begins, if the model has no such site or
        the values are probabilities.
    DtypeError, ShapeError, DataError, ModelError
        When inference begins, if the discriminator cannot be called, or its values are of another
        shape, not finite, or without a gradient.

    Notes
    -----
    The factor that it adds to the model is there for any method: `discriminator_weighted` returns
    that model, to be sampled by a population such as SMC, or optimised. The log evidence is then
    that of the weighted prior times :math:`E_{p(z)} e^{w\, d(G(z))}`.

    References
    ----------
    Che, Zhang, Sohl-Dickstein, Larochelle, Paull, Cao and Bengio (2020), Your GAN is secretly an
    energy-based model and you should use discriminator driven latent sampling; Ang (2021), for
    inverse problems.

    Examples
    --------
    >>> import bayesgen as bg
    >>> G, A = bg.models.load("mnist-gan-16"), bg.operators.GaussianMatrix((28, 28), 50, seed=0)
    >>> model, y = bg.regularisers.hard(G, A, sigma=0.1), A(G(torch.zeros(16)))
    >>> method = DWLS(discriminator=G.discriminate, sampler=bg.inference.MALA())
    >>> posterior = bg.infer(model, y, method=method, draws=20, warmup=20, progress=False)
    >>> posterior.mean("x").shape
    torch.Size([28, 28])
    """

    name = "dwls"
    reference = "Che et al. (2020), Your GAN is secretly an energy-based model"

    discriminator: Discriminator | Generator | None = None
    sampler: Sampler = field(default_factory=HMC)
    weight: float = 1.0
    site: str = "x"
    are_logits: bool = False

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)
        if not isinstance(self.sampler, Sampler):
            found = getattr(self.sampler, "name", type(self.sampler).__name__)
            raise OptionError(
                f"sampler: got {found!r}; expected a method that makes chains, such as HMC() or "
                "MALA(). For any other method, weight the model instead: infer("
                "discriminator_weighted(model, D), y, method=...)"
            )
        if self.discriminator is not None:
            as_discriminator(self.discriminator)

    def __repr__(self) -> str:
        # A network would be printed layer by layer.
        owner = getattr(self.discriminator, "__self__", self.discriminator)
        known = getattr(self.discriminator, "__qualname__", type(owner).__name__)
        return (
            f"DWLS(discriminator={known}, sampler={self.sampler!r}, weight={self.weight!r}, "
            f"site={self.site!r})"
        )

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether the sampler's chains have the weighted posterior as stationary distribution."""
        return self.sampler.exact

    @property
    def uses_gradient(self) -> bool:
        """Whether the sampler does."""
        return self.sampler.uses_gradient

    def extend(self, model: Model) -> Model:
        """The model with the factor."""
        if self.discriminator is None:
            raise OptionError(
                "discriminator: none was given; expected a function from images to log odds, as in "
                "method=DWLS(discriminator=D.discriminate)"
            )
        return discriminator_weighted(
            self.sampler.extend(model),
            self.discriminator,
            weight=self.weight,
            site=self.site,
            are_logits=self.are_logits,
        )

    def init(self, log_density: Density, position: Tensor) -> Any:
        """First state of the sampler."""
        return self.sampler.init(log_density, position)

    def step(self, log_density: Density, state: Any, rng: torch.Generator) -> tuple[Any, Any]:
        """One transition of the sampler."""
        return self.sampler.step(log_density, state, rng)

    def adapt(self, state: Any, info: Any, iteration: int, warmup: int) -> Any:
        """What the sampler learns during warm-up."""
        return self.sampler.adapt(state, info, iteration, warmup)

    def combine(self, earlier: Any, later: Any) -> Any:
        """What the sampler keeps of steps that thinning drops."""
        return self.sampler.combine(earlier, later)


def discriminator_weighted(
    model: Model,
    discriminator: Discriminator | Generator,
    *,
    weight: float = 1.0,
    site: str = "x",
    are_logits: bool = False,
) -> Model:
    """Add ``pyro.factor("discriminator", weight * discriminator(x))`` to a model.

    Parameters
    ----------
    model
        A Pyro model; it may be anybody's, and is not changed.
    discriminator, weight, site, are_logits
        As for `DWLS`.

    Returns
    -------
    callable
        The model with the factor after its last statement, and the same arguments.

    Raises
    ------
    OptionError, DtypeError, ShapeError, DataError, ModelError
        As `DWLS`: what the images decide, when the model is first run.

    Examples
    --------
    >>> import pyro, bayesgen as bg
    >>> import pyro.distributions as dist
    >>> def model(y):
    ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...     x = pyro.deterministic("x", 2 * z)
    ...     pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> weighted = discriminator_weighted(model, lambda x: -x.square().sum(-1))
    >>> point = bg.infer(weighted, torch.ones(2), method="map", progress=False)
    >>> point.mode("x")  # exact: 1 / (1 + 1 / 4 + 2)
    tensor([0.3077, 0.3077])
    """
    check_positive("weight", weight)
    judge = as_discriminator(discriminator)
    if not isinstance(site, str):
        raise DtypeError(f"site: expected the name of a site, got {type(site).__name__}")
    # Those of our own promise log odds.
    owner = getattr(judge, "__self__", judge)
    are_logits = are_logits or isinstance(owner, Generator | DensityRatio)
    tried = False

    @functools.wraps(model)
    def weighted(*args: Any, **kwargs: Any) -> Any:
        nonlocal tried
        with _Values() as found:
            result = model(*args, **kwargs)
        x = found.image(site)
        if not tried:
            try_discriminator(judge, x, are_logits=are_logits)
            tried = True
        pyro.factor(FACTOR, weight * native_batch(_one_batch(judge, x.shape), x))
        return result

    return weighted


def _one_batch(judge: Discriminator, shape: torch.Size) -> Discriminator:
    """The function for images ``(*batch, *shape)``, of one that takes ``(N, *shape)``."""

    def judge_all(x: Tensor) -> Tensor:
        return judge(x.reshape(-1, *shape)).reshape(x.shape[: x.ndim - len(shape)])

    return judge_all


def as_discriminator(discriminator: Any, argument: str = "discriminator") -> Discriminator:
    """The function from images to log odds.

    Raises
    ------
    DtypeError
        If it is no function, or a generator without a discriminator.
    """
    if isinstance(discriminator, Generator):
        if not discriminator.can("discriminate"):
            raise DtypeError(
                f"{argument}: {type(discriminator).__name__} has no discriminator whose values are "
                "log odds; train one with bayesgen.models.train_density_ratio(G, images)"
            )
        return discriminator.discriminate
    if not callable(discriminator):
        raise DtypeError(
            f"{argument}: expected a function from images to log odds, got "
            f"{type(discriminator).__name__}"
        )
    return cast(Discriminator, discriminator)


@torch.enable_grad()
def try_discriminator(judge: Discriminator, x: Tensor, *, are_logits: bool = False) -> None:
    """Try a discriminator on the image ``x``, on its pixels shuffled, on flat images and on noise.

    Raises
    ------
    ShapeError
        If there is not one number an image.
    DataError
        If one is not finite.
    ModelError
        If there is no gradient.
    OptionError
        If all are between 0 and 1, as probabilities are, unless ``are_logits``.
    """
    images = trial_images(x.detach()).requires_grad_()
    values = judge(images)
    if not isinstance(values, Tensor) or values.shape != images.shape[:1]:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ShapeError(
            f"discriminator: returned {found} for images {tuple(images.shape)}; expected one "
            f"number an image, {tuple(images.shape[:1])}"
        )
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise DataError(
            f"discriminator: {bad} of {len(values)} values are NaN or infinite, on images of the "
            "model's intensities; expected finite log odds, as they are before a sigmoid"
        )
    if not values.requires_grad:
        raise ModelError(
            "discriminator: its values have no gradient with respect to the image; look for "
            "torch.no_grad(), detach() or NumPy in it"
        )
    refuse_probabilities(values, are_logits=are_logits)


def refuse_probabilities(
    values: Tensor, *, are_logits: bool, argument: str = "discriminator"
) -> None:
    """Refuse values on very different images, all of which lie between 0 and 1.

    Raises
    ------
    OptionError
        If they do, unless ``are_logits``.
    """
    low, high = values.detach().min().item(), values.detach().max().item()
    # A sigmoid may be saturated, and its values all alike; zeros alone are odds of one to one.
    if low >= 0 and 0 < high <= 1 and not are_logits:
        raise OptionError(
            f"{argument}: all of its values, on noise and flat images too, lie between "
            f"{low:.3g} and {high:.3g}, as probabilities do; expected log odds. Leave out its last "
            "sigmoid, or take torch.logit of it. If these are log odds, set are_logits=True"
        )


def trial_images(x: Tensor) -> Tensor:
    """``(num, *x.shape)``: images unlike each other, none of intensities that x does not have."""
    rng = torch.Generator().manual_seed(0)
    low, high = x.min(), x.max()
    # An image that is flat by itself still needs noise about it.
    width = torch.where(high > low, high - low, 1.0)

    def uniform(*shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=rng, dtype=x.dtype).to(x.device)
        return low + width * drawn

    shuffled = [x.flatten()[torch.randperm(x.numel(), generator=rng)] for _ in range(_TRIALS)]
    levels = uniform(_TRIALS).reshape(-1, *(1 for _ in x.shape)).expand(-1, *x.shape)
    kinds = [x[None], torch.stack(shuffled).reshape(-1, *x.shape), levels]
    return torch.cat([*kinds, uniform(_TRIALS, *x.shape)]).contiguous()


class _Values(Messenger):
    """Remembers the values of a model's sites, but for data."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.generated: set[str] = set()
        self._data: set[str] = set()

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        # Here, not afterwards: handlers outside of the model give latent sites their values too.
        infer = message["infer"] or {}
        if message["is_observed"] and not infer.get("_deterministic"):
            self._data.add(message["name"])
        if infer.get("generated"):
            self.generated.add(message["name"])

    def _pyro_post_sample(self, message: dict[str, Any]) -> None:
        if message["name"] not in self._data and not isinstance(message["fn"], _Subsample):
            self.values[message["name"]] = message["value"]

    def image(self, site: str) -> Tensor:
        """The value of a site on which a factor may depend."""
        known = [name for name in self.values if name not in self.generated]
        if site in self.generated:
            raise OptionError(
                f"site: {site!r} is drawn once the latent sites are known, so that no factor can "
                f"depend on it; expected one of {known}. For the image before any deviation add "
                'pyro.deterministic("range", G(z)) to the model'
            )
        if site not in known:
            raise OptionError(f"site: the model has no site {site!r}; expected one of {known}")
        return self.values[site]
