"""What training needs to know of a generator: who learns what, from which loss, in which order."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesgen.errors import OptionError, unknown_option
from bayesgen.models.base import Generator
from bayesgen.models.settings import TrainingSettings, check_seed
from bayesgen.types import check_count, check_positive

_IMAGES = ("training", "reserved")
_without_memory: ContextVar[bool] = ContextVar("bayesgen_without_memory", default=False)
Loss = Callable[[Tensor, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Player:
    """Some of a generator's weights, and the loss that they descend.

    Parameters
    ----------
    modules
        The parts of the generator that learn; all others are held fixed meanwhile.
    loss
        Takes a batch of images and a source of random numbers; returns the scalar ``"loss"`` and
        what else is worth reporting. In a stage with several players, each needs names of its own
        for the latter.
    every
        Steps between two updates: the critic of a Wasserstein GAN learns at every step, the
        generator at every fifth.
    learning_rate
        Relative to that of the settings.
    betas
        Decay of Adam's moments. Adversarial players forget the first at once.
    """

    modules: tuple[nn.Module, ...]
    loss: Loss
    every: int = 1
    learning_rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        check_count("every", self.every)
        check_positive("learning_rate", self.learning_rate)
        if not self.parameters:
            raise OptionError("modules: expected modules with weights that learn, found none")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights that learn."""
        return [parameter for module in self.modules for parameter in module.parameters()]


@dataclass(frozen=True)
class Stage:
    """A part of the training: its players learn in turn, step by step.

    Parameters
    ----------
    name
        For reports.
    players
        Who learns.
    share
        Part of all epochs, relative to the shares of the other stages.
    images
        Learn from the ``"training"`` images, or from those that were ``"reserved"`` for a stage
        that has to see how the earlier ones do on images they do not know.
    monitored
        Whether the first player's loss on held-out images tells how good the generator is, so that
        early stopping can watch it. In adversarial games it only measures the opponent.

    Raises
    ------
    OptionError
        If there are no players, or a setting is out of its range.
    """

    name: str
    players: tuple[Player, ...]
    share: float = 1.0
    images: Literal["training", "reserved"] = "training"
    monitored: bool = True

    def __post_init__(self) -> None:
        check_positive("share", self.share)
        if self.images not in _IMAGES:
            raise OptionError(unknown_option("images", self.images, _IMAGES))
        if not self.players:
            raise OptionError(f"players: nobody learns in the stage {self.name!r}")


class Trainable(Generator):
    """A generator that can be trained, saved and loaded.

    To write one:

    - call ``super().__init__(config, seed)`` with a frozen dataclass that fixes the architecture
      and has ``image_shape`` and ``latent_dim``; all its fields are keywords of the constructor,
      which is how files are loaded;
    - define `build`, which makes the networks; weights are drawn afterwards, so values of its
      buffers are set in the constructor;
    - set ``default_settings`` if those of `TrainingSettings` do not suit;
    - define `stages`; for a single loss, return ``(Stage("...", (Player(...),)),)``;
    - override `prepare` for what needs data before training, `finish` for what is fitted after it;
    - load it with ``bayesgen.models.load(file, kinds=[...])``.

    Parameters
    ----------
    config
        The architecture.
    seed
        Seed of the initial weights.
    """

    default_settings = TrainingSettings()

    def __init__(self, config: Any, seed: int) -> None:
        super().__init__(config.image_shape, config.latent_dim)
        check_seed(seed)
        self.config = config
        # The model card: data, recipe, evaluation; see `bayesgen.models.load`.
        self.card: dict[str, Any] = {}
        # Built without storage, hence without random numbers: weights come from our own generator.
        with torch.device("meta"):
            self.build()
        if not _without_memory.get():
            self.to_empty(device="cpu")
            initialise(self, torch.Generator().manual_seed(seed))

    @abstractmethod
    def build(self) -> None:
        """Make the networks that ``config`` describes; called once, without storage."""
        raise NotImplementedError(f"{type(self).__name__} does not define build")

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Return the stages of the training, in order."""
        raise NotImplementedError(f"{type(self).__name__} does not define stages")

    def prepare(self, images: Tensor) -> None:
        """Set what depends on data, before the first step; nothing by default.

        Parameters
        ----------
        images
            A batch of training images.
        """

    def require_images(self, num: int) -> None:
        """Refuse a number of training images, held out ones apart, that `finish` cannot use.

        Raises
        ------
        OptionError
            If a setting needs more of them.
        """

    def finish(self, images: Tensor, held_out: Tensor) -> None:
        """Fit what follows from the trained weights; nothing by default.

        Parameters
        ----------
        images
            Training images, many of them.
        held_out
            Images that no stage, or only those for reserved images, was trained on.
        """


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Make generators whose tensors have names and shapes, but neither memory nor values."""
    token = _without_memory.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _without_memory.reset(token)


class Initialised(nn.Module):
    """A layer with a rule of its own for initial weights."""

    def initialise(self, rng: torch.Generator) -> None:
        """Set every parameter and buffer of this layer."""
        raise NotImplementedError(f"{type(self).__name__} does not define initialise")


@torch.no_grad()
def initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Draw weights with variance 1 / fan-in; biases start at zero.

    Layers that are `Initialised` follow their own rule.
    """
    if isinstance(module, Initialised):
        module.initialise(rng)
        return
    for parameter in module.parameters(recurse=False):
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=rng)
        else:
            nn.init.zeros_(parameter)
    for child in module.children():
        initialise(child, rng)
