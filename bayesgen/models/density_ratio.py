r"""How much more likely is an image than a generator makes it? A classifier that can tell.

A classifier of real and generated images that is as good as can be returns the log odds
:math:`\log p_{data}(x) / p_G(x)`: the weight that turns samples of the generator into samples of
the data. GANs come with one (`Generator.discriminate`); for other generators `train_density_ratio`
trains it, or `fine_tune` starts from that of a GAN.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bayesgen.errors import DtypeError, ModelError, OptionError, ShapeError
from bayesgen.model_sites import isolated
from bayesgen.models.autoencoding import run_encoder
from bayesgen.models.base import Generator
from bayesgen.models.calibration import fit_log_odds
from bayesgen.models.gan import GAN
from bayesgen.models.layers import Affine
from bayesgen.models.networks import NetworkConfig, critic, encoder
from bayesgen.models.settings import TrainingSettings, check_seed
from bayesgen.models.trainable import Player, Stage, Trainable, initialise
from bayesgen.models.training import train
from bayesgen.models.training_images import as_tensor, check_images
from bayesgen.types import check_count, check_positive, strict_options

# Early stopping watches the held-out cross entropy; the rates suit networks of this size.
_TRAINING = TrainingSettings(epochs=30, batch_size=128, learning_rate=1e-3, patience=4)
_FINE_TUNING = replace(_TRAINING, epochs=10, learning_rate=1e-4)
# Images put aside to judge the result: fewer say nothing, more say nothing new.
_FEWEST, _MOST = 100, 1000
# Below this cross entropy hardly any generated image could be a real one, nor the reverse.
_DISJOINT = 0.05

Sample = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class DensityRatioConfig:
    """Everything that fixes the network of a `DensityRatio`.

    Parameters
    ----------
    image_shape
        ``(y, x)`` or ``(channel, y, x)``; images of less than 4 by 4 pixels, and other shapes, are
        taken for vectors.
    width
        Units of the hidden layers.
    channels
        Channels of the convolution that sees images.
    bound
        Largest magnitude of the log odds before calibration.
    critic
        The networks whose critic was fine-tuned, instead of a network of this class's own.
    units
        Scale and offset that turn that critic's values into log odds.
    """

    image_shape: tuple[int, ...]
    width: int = 128
    channels: int = 32
    bound: float = 10.0
    critic: NetworkConfig | None = None
    units: tuple[float, float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        check_count("width", self.width, minimum=2)
        check_count("channels", self.channels, minimum=2)
        check_positive("bound", self.bound)

    def network(self) -> nn.Sequential:
        """From images ``(N, channel, y, x)``, or vectors ``(N, 1, 1, n)``, to ``(N, 1)``."""
        if self.critic is not None:
            return critic(self.critic).append(Affine(*self.units))
        if len(self.image_shape) not in (2, 3) or min(self.image_shape[-2:]) < 4:
            # Smooth activations suit the samplers that follow the gradient.
            return nn.Sequential(
                nn.Flatten(),
                *(nn.Linear(math.prod(self.image_shape), self.width), nn.SiLU()),
                *(nn.Linear(self.width, self.width), nn.SiLU()),
                nn.Linear(self.width, 1),
            )
        sizes = NetworkConfig(self.image_shape, 1, width=2 * self.width, channels=self.channels)
        return encoder(sizes, 1)


class DensityRatio(nn.Module):
    r"""Log odds that an image is real, not generated: an estimate of the log density ratio.

    .. math:: d(x) = a\, B \tanh(s(x) / B) + b \approx \log \frac{p_{data}(x)}{p_G(x)}

    with the network's score :math:`s`. The scale :math:`a` and the offset :math:`b` are fitted to
    held-out images, and :math:`|d| \le |a| B + |b|` everywhere, also where no image has ever been.
    Made by `train_density_ratio` and `fine_tune`; for `bayesgen.inference.DWLS` and
    `bayesgen.importance.reweight`, or a line ``pyro.factor("ratio", ratio(x))`` in a model.

    Parameters
    ----------
    config
        The network.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    config : DensityRatioConfig
        The network.
    card : dict
        What is known of it: ``"held_out"``, measured on images and samples that training has not
        seen (``cross_entropy`` in nats with its ``standard_error``, to be compared with log 2 =
        0.693 of a classifier that knows nothing; ``accuracy``; ``slope`` and ``offset`` of a new
        calibration, 1 and 0 if the log odds are right; ``effective_share`` of the samples once they
        are weighted; ``images``), ``"before"``, the same before
        training, ``"history"`` with the losses of every epoch, ``"generator"``, ``"settings"`` and
        ``"bound"``.

    References
    ----------
    Sugiyama, Suzuki and Kanamori (2012), Density ratio estimation in machine learning, chapter 4.

    Examples
    --------
    >>> ratio = DensityRatio(DensityRatioConfig((28, 28)))
    >>> ratio(torch.zeros(5, 28, 28)).shape
    torch.Size([5])
    """

    calibration: Tensor

    def __init__(self, config: DensityRatioConfig, seed: int = 0) -> None:
        super().__init__()
        check_seed(seed)
        self.config = config
        self.card: dict[str, Any] = {}
        # Built without storage, hence without random numbers: weights come from our own generator.
        with torch.device("meta"):
            self.network = config.network()
        self.network.to_empty(device="cpu")
        initialise(self.network, torch.Generator().manual_seed(seed))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.config.image_shape

    @property
    def bound(self) -> float:
        """No log odds are larger in magnitude."""
        scale, offset = self.calibration.tolist()
        return abs(scale) * self.config.bound + abs(offset)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log odds ``(*batch,)`` of images ``(*batch, *image_shape)``.

        Raises
        ------
        ShapeError, DtypeError
            If the images are not of the shape, precision or device of the network.
        """
        shape, like = self.image_shape, self.calibration
        if not isinstance(x, Tensor) or x.shape[x.ndim - len(shape) :] != shape:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"x: expected images (*batch, {', '.join(map(str, shape))}), got {found}"
            )
        if (x.dtype, x.device) != (like.dtype, like.device):
            raise DtypeError(
                f"x: is {x.dtype} on {x.device}, but the network's weights are {like.dtype} on "
                f"{like.device}; convert one of them with .to(...)"
            )
        scale, offset = self.calibration
        score = run_encoder(self.network, x, shape).squeeze(-1)
        return scale * bounded(score, self.config.bound) + offset


def bounded(score: Tensor, bound: float) -> Tensor:
    """The score, but smoothly kept between ``-bound`` and ``bound``.

    Examples
    --------
    >>> bounded(torch.tensor([0.1, 1000.0]), 10.0).round(decimals=3)
    tensor([ 0.1000, 10.0000])
    """
    return bound * torch.tanh(score / bound)


@strict_options
def train_density_ratio(
    G: Generator,
    images: Tensor | Dataset[Any],
    settings: TrainingSettings | None = None,
    *,
    width: int = DensityRatioConfig.width,
    channels: int = DensityRatioConfig.channels,
    bound: float = DensityRatioConfig.bound,
    seed: int = 0,
    progress: bool = False,
) -> DensityRatio:
    r"""Train a small network to tell images from a generator's samples.

    .. math:: \min_d \tfrac12 E_{data} \operatorname{softplus}(-d(x))
        + \tfrac12 E_{z} \operatorname{softplus}(d(G(z)))

    whose minimum is :math:`\log p_{data} / p_G`. Every step draws fresh samples. A tenth of the
    images (at most 1000) are put aside to judge the result, another tenth stop the training when
    the cross entropy on them no longer falls, and calibrate the log odds.

    Parameters
    ----------
    G
        The generator, which is not changed. Its samples are G(z) with z from ``G.prior()``.
    images
        Real images, as for `bayesgen.models.train`. Best are images that the generator was not
        trained on: with those it was, the ratio also tells what it has learned by heart.
    settings
        How to train, but for the seed. By default up to 30 epochs, stopped after 4 without gain.
    width, channels, bound
        The network; see `DensityRatioConfig`. The default bound, odds of 22,000 to 1, is beyond
        what any held-out set of usual size can confirm.
    seed
        Of initial weights, splits, order and samples. The same seed gives the same network.
    progress
        Show a progress bar.

    Returns
    -------
    DensityRatio
        In evaluation mode, with frozen weights, in the dtype and on the device of the generator.

    Raises
    ------
    DtypeError, ShapeError, DataError
        If there is no generator, or the images do not fit it.
    OptionError
        If a setting is out of its range, or there are too few images.
    ModelError
        If training diverges or a sample is not finite.

    Warns
    -----
    RuntimeWarning
        If the classifier tells nearly all images apart, so that the two laws hardly overlap and no
        weight turns samples of the one into samples of the other; or next to none.

    References
    ----------
    Goodfellow et al. (2014), Generative adversarial nets, proposition 1; Sugiyama, Suzuki and
    Kanamori (2012), Density ratio estimation in machine learning, chapter 4; Platt (1999), for the
    calibration.

    Examples
    --------
    >>> from bayesgen.models import LinearGenerator
    >>> G = LinearGenerator.from_tensors(torch.eye(2), torch.zeros(2), noise_level=0.0)
    >>> rng = torch.Generator().manual_seed(0)
    >>> images = torch.randn(4000, 2, generator=rng) + torch.tensor([1.0, 0.0])
    >>> ratio = train_density_ratio(G, images, TrainingSettings(epochs=3), width=32)
    >>> x = torch.tensor([1.5, 0.0])
    >>> abs(float(ratio(x)) - 1.0) < 0.3  # exact: x_1 - 1/2
    True
    """
    G = _check_generator(G)
    config = DensityRatioConfig(G.image_shape, width, channels, bound)
    return _train(DensityRatio(config, seed), G, images, settings or _TRAINING, seed, progress)


@strict_options
def fine_tune(
    D: GAN | DensityRatio,
    G: Generator,
    images: Tensor | Dataset[Any],
    settings: TrainingSettings | None = None,
    *,
    bound: float = DensityRatioConfig.bound,
    seed: int = 0,
    progress: bool = False,
) -> DensityRatio:
    """Train the discriminator of one generator further, on the samples of another.

    By the objective of `train_density_ratio`, which has a minimum, with bounded log odds, early
    stopping and a new calibration.

    Parameters
    ----------
    D
        A GAN, whose discriminator is copied, or a `DensityRatio`; not changed.
    G
        The generator whose samples are to be told from images.
    images, settings, seed, progress
        As for `train_density_ratio`; by default up to 10 epochs at a tenth of its step size.
    bound
        Largest magnitude of the log odds of a GAN's discriminator, before calibration. A
        `DensityRatio` keeps its own.

    Returns
    -------
    DensityRatio
        ``card["before"]`` tells what D knew of G's samples.

    Raises
    ------
    DtypeError, ShapeError
        If D has no discriminator that can be copied, or is for images of another shape; and, as
        well as other errors and warnings, as `train_density_ratio`.

    Notes
    -----
    The published rule (Ang 2021) descends the mean log odds of the generator's samples alone, which
    has no minimum: it ends when one stops.

    References
    ----------
    As of `train_density_ratio`.

    Examples
    --------
    >>> from bayesgen.datasets import shapes
    >>> from bayesgen.models import VAE
    >>> D, G = GAN((56, 56), 4, width=16, channels=4), VAE((56, 56), 4, width=16, channels=4)
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # an untrained generator is told apart at once
    ...     ratio = fine_tune(D, G, shapes(1000), TrainingSettings(epochs=1))
    >>> ratio.card["held_out"]["cross_entropy"] < ratio.card["before"]["cross_entropy"]
    True
    """
    G = _check_generator(G)
    ratio = _copy_of(D, bound)
    if ratio.image_shape != G.image_shape:
        raise ShapeError(
            f"D: is for images of shape {ratio.image_shape}, but those of G have {G.image_shape}"
        )
    return _train(ratio, G, images, settings or _FINE_TUNING, seed, progress)


@dataclass(frozen=True)
class _GameConfig:
    image_shape: tuple[int, ...]
    latent_dim: int
    ratio: DensityRatioConfig


class _Game(Trainable):
    """A classifier as `train` wants it: a generator of which the classifier is what learns."""

    config: _GameConfig
    calibration: Tensor

    def __init__(self, ratio: DensityRatio, sample: Sample) -> None:
        # Nothing is generated by it: the length of its latent vectors does not matter.
        super().__init__(_GameConfig(ratio.image_shape, 1, ratio.config), seed=0)
        self.load_state_dict(ratio.state_dict())
        self.sample = sample

    def build(self) -> None:
        self.network = self.config.ratio.network()
        self.register_buffer("calibration", torch.empty(2))

    def score(self, x: Tensor) -> Tensor:
        found = run_encoder(self.network, x, self.image_shape).squeeze(-1)
        return bounded(found, self.config.ratio.bound)

    def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross entropy in nats, of as many generated as real images."""
        return {"loss": cross_entropies(self.score(x), self.score(self.sample(len(x), rng))).mean()}

    def stages(self) -> Sequence[Stage]:
        return (Stage("classifier", (Player((self.network,), self.loss),)),)

    def finish(self, images: Tensor, held_out: Tensor) -> None:
        rng = torch.Generator(held_out.device).manual_seed(0)
        fake = self.sample(len(held_out), rng)
        self.calibration.copy_(torch.tensor(fit_log_odds(self.score(held_out), self.score(fake))))


def _train(
    ratio: DensityRatio,
    G: Generator,
    images: Tensor | Dataset[Any],
    settings: TrainingSettings,
    seed: int,
    progress: bool,
) -> DensityRatio:
    """Train, calibrate and judge, each on images of its own."""
    check_seed(seed)
    settings, rng = replace(settings, seed=seed), torch.Generator().manual_seed(seed)
    like = G._weight()
    ratio = (ratio if like is None else ratio.to(like)).eval().requires_grad_(False)
    images = as_tensor(images, G.image_shape)
    check_images(images, G.image_shape)
    order = torch.randperm(len(images), generator=rng)
    num = min(_MOST, len(images) // 10)
    if num < _FEWEST:
        raise OptionError(
            f"images: got {len(images)}; expected at least {10 * _FEWEST}, a tenth of which are "
            "put aside to judge the classifier"
        )
    sample = _sampler(G)
    real, fake = images[order[:num]].to(ratio.calibration), sample(num, rng)
    before = judge(ratio, real, fake)
    game = _Game(ratio, sample).to(ratio.calibration)
    trained, history = train(game, images[order[num:]], settings, progress=progress)
    ratio.load_state_dict(trained.state_dict())
    ratio.card = {
        "held_out": judge(ratio, real, fake),
        "before": before,
        "bound": ratio.bound,
        "generator": type(G).__name__,
        "settings": asdict(settings),
        "history": history,
    }
    _warn(ratio.card["held_out"])
    return ratio


def _sampler(G: Generator) -> Sample:
    """Images of prior draws, ``(num, *image_shape)``, by a copy of the generator."""
    G = copy.deepcopy(G).eval()

    def sample(num: int, rng: torch.Generator) -> Tensor:
        # Pyro's distributions draw from the global state only, which is put aside and back again.
        seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        with isolated(seed), torch.no_grad():
            x: Tensor = G(G.prior().sample((num,)))
        if not x.isfinite().all():
            raise ModelError("G: some of its samples are not finite")
        return x

    return sample


@torch.no_grad()
def judge(ratio: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> dict[str, float]:
    """What log odds are worth on images that nothing was fitted to; see `DensityRatio`.

    Parameters
    ----------
    ratio
        From images ``(N, *image_shape)`` to log odds ``(N,)``.
    real, fake
        As many real as generated images.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> real, fake = torch.randn(2, 1000, generator=rng)
    >>> found = judge(lambda x: 2 * x, real + 1, fake - 1)
    >>> round(found["accuracy"], 1), abs(found["slope"] - 1) < 0.2
    (0.8, True)
    """
    odds = ratio(real), ratio(fake)
    entropies = cross_entropies(*odds).double()
    slope, offset = fit_log_odds(*odds)
    weights = odds[1].double().softmax(0)
    right = 0.5 * ((odds[0] > 0).double().mean() + (odds[1] < 0).double().mean())
    return {
        "cross_entropy": entropies.mean().item(),
        "standard_error": entropies.std().item() / len(real) ** 0.5,
        "accuracy": right.item(),
        "slope": slope,
        "offset": offset,
        "effective_share": 1.0 / (len(weights) * weights.square().sum().item()),
        "images": len(real),
    }


def cross_entropies(real: Tensor, fake: Tensor) -> Tensor:
    """Minus the log probability of the right answer, in nats: means of pairs of log odds."""
    return 0.5 * (nn.functional.softplus(-real) + nn.functional.softplus(fake))


def _copy_of(D: GAN | DensityRatio, bound: float) -> DensityRatio:
    """The discriminator by itself."""
    if isinstance(D, DensityRatio):
        return copy.deepcopy(D)
    if not isinstance(D, GAN):
        raise DtypeError(
            f"D: expected a GAN or a DensityRatio, whose discriminator can be copied, got "
            f"{type(D).__name__}; train one for G with train_density_ratio"
        )
    scale, offset = D.calibration.tolist()
    config = DensityRatioConfig(D.image_shape, bound=bound, critic=D.config, units=(scale, offset))
    ratio = DensityRatio(config).to(D.calibration)
    ratio.network.load_state_dict(D.discriminator.state_dict())
    return ratio


def _check_generator(G: Any) -> Generator:
    if not isinstance(G, Generator):
        raise DtypeError(f"G: expected a Generator, got {type(G).__name__}")
    return G


def _warn(held_out: dict[str, float]) -> None:
    found, slack = held_out["cross_entropy"], 2 * held_out["standard_error"]
    if found < _DISJOINT:
        problem = (
            f"tells real from generated images almost without error (held-out cross entropy "
            f"{found:.3f}; log 2 = 0.693 if they were alike): no weights turn samples of this "
            "generator into samples of the data, and log odds near their bound hardly differ"
        )
    elif found > math.log(2) - slack:
        problem = (
            f"has learned nothing that holds for other images (held-out cross entropy {found:.3f}, "
            "not clearly below log 2 = 0.693): there is nothing to learn, or there were too few "
            "images or epochs"
        )
    else:
        return
    warnings.warn(f"density ratio: the classifier {problem}", RuntimeWarning, stacklevel=5)
