"""Train a generator: deterministic for a seed, resumable to the bit, safe to interrupt.

The loop knows nothing about a generator but its stages: who learns, from which loss, on which
images. Its whole state (weights, their moving average, Adam's moments, random generators, history)
is written to a checkpoint before the first and after every epoch. An interrupted run resumes from
the last epoch and arrives at the same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bayesgen.errors import DtypeError, ModelError, OptionError
from bayesgen.models.checkpoints import (
    Losses,
    check_progress,
    follow,
    identify,
    restore,
    restore_optimisers,
    start,
    store,
)
from bayesgen.models.settings import SCHEDULES, TrainingSettings, stream_seed
from bayesgen.models.trainable import Player, Stage, Trainable
from bayesgen.models.training_images import TrainingImages, as_tensor, check_images

G = TypeVar("G", bound=Trainable)
EachStep = Callable[[int, Losses], None]
EachEpoch = Callable[[Trainable, list[Losses]], None]

# Enough for the statistics that `Trainable.finish` and `Trainable.prepare` take.
_FINISHING, _PREPARING = 20_000, 512
# Held-out images at a time.
_VALIDATING = 1000


def train(
    model: G,
    images: Tensor | Dataset[Any],
    settings: TrainingSettings | None = None,
    *,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    each_step: EachStep | None = None,
    each_epoch: EachEpoch | None = None,
) -> tuple[G, list[Losses]]:
    """Train a generator on images and return the moving average of its weights.

    Parameters
    ----------
    model
        The generator with its initial weights, on the device to train on and in the precision to
        train in, single or double; it is left as it is.
    images
        ``(N, *image_shape)``, intensities in [0, 1], or a torch ``Dataset`` of such images, which
        is read into memory; its items are images or tuples that begin with one. For generators of
        vectors, ``(N, length)`` or a ``Dataset`` of vectors, with any values. Batches are moved to
        the model's device and precision.
    settings
        How to train; by default what suits the kind of generator, ``model.default_settings``.
    checkpoint
        File for the state of the training. It must not exist unless ``resume`` is set, and is
        left for the caller to delete.
    resume
        Continue from ``checkpoint`` instead of starting anew, with the same model, images and
        settings; only ``learning_rate`` and ``gradient_clip`` may be others, to get past a
        divergence. Resuming a training that had come to its end returns its result.
    progress
        Show a progress bar.
    each_step
        Called after every step with its number and losses.
    each_epoch
        Called after every epoch with the averaged generator and the history, to look at.

    Returns
    -------
    model
        The trained generator, in evaluation mode and with frozen weights.
    history
        For each epoch the mean losses, and those on the validation images as ``"validation_*"``.

    Raises
    ------
    DtypeError
        If model, images or settings are of another type, or weights in half precision.
    ShapeError, DataError
        If images have another shape than the model's, are not finite or not in [0, 1].
    ModelError
        If a loss or a weight becomes infinite or NaN. The checkpoint still holds the last good
        state.
    OptionError
        If there are too few images, or the checkpoint belongs to another training.
    FileNotFoundError, FileFormatError
        If there is no checkpoint to resume from, or it is damaged.

    Examples
    --------
    >>> from bayesgen.datasets import shapes
    >>> from bayesgen.models import VAE
    >>> model = VAE((56, 56), latent_dim=10, width=32, channels=4)
    >>> settings = TrainingSettings(epochs=1, validation=50)
    >>> trained, history = train(model, shapes(200), settings, progress=False)
    >>> sorted(history[0])[:3]
    ['kl', 'loss', 'mse']
    """
    settings = _settings(model, settings)
    images = as_tensor(images, model.image_shape)
    check_images(images, model.image_shape)
    path = Path(checkpoint) if checkpoint is not None else None
    run = _Run(model, images, settings)
    if resume:
        if path is None:
            raise OptionError("resume: give the checkpoint to resume from")
        run.resume(path)
    elif path is not None:
        if path.exists():
            raise OptionError(
                f"checkpoint: {path} holds an unfinished training; resume it or delete the file"
            )
        store(run.state, path, run.identity)
    with _progress_bar(run.remaining_steps, run.state.step, progress) as bar:
        while run.running:
            run.epoch(bar, each_step)
            if progress:
                bar.write(run.describe())
            if each_epoch is not None:
                each_epoch(run.state.average, run.state.history)
            run.end_epoch()
            bar.total = run.state.step + run.remaining_steps
            if path is not None:
                store(run.state, path, run.identity)
    return cast(G, run.result()), run.state.history


def _settings(model: Trainable, settings: TrainingSettings | None) -> TrainingSettings:
    """Check model and settings, and return those that hold."""
    if not isinstance(model, Trainable):
        raise DtypeError(f"model: expected a Trainable generator, got {type(model).__name__}")
    settings = model.default_settings if settings is None else settings
    if not isinstance(settings, TrainingSettings):
        raise DtypeError(f"settings: expected TrainingSettings, got {type(settings).__name__}")
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise DtypeError(
            f"model: expected weights in single or double precision, got {dtype}; train in single "
            "precision, with mixed_precision to be faster on a GPU"
        )
    if settings.mixed_precision and dtype is not torch.float32:
        raise OptionError(f"mixed_precision: is for weights in single precision, got {dtype}")
    return settings


class _Run:
    """One training: the state, and everything it does not change."""

    def __init__(self, model: Trainable, images: Tensor, settings: TrainingSettings) -> None:
        self.settings = settings
        self.identity = identify(model, images, settings)
        self.state = start(model, settings.seed)
        if settings.mixed_precision:
            _compute_in_bfloat16(self.state.model)
        weight = next(model.parameters())
        self.device = weight.device
        self.stages = tuple(self.state.model.stages())
        if settings.patience is not None and not any(stage.monitored for stage in self.stages):
            raise OptionError(
                f"patience: the losses of a {type(model).__name__} do not tell how good it is, so "
                "none can be waited for; leave it out"
            )
        self.images = TrainingImages(images, self.stages, settings, self.state.order, weight)
        model.require_images(min(self.images.count("training"), _FINISHING))
        self.epochs = _share(settings.epochs, [stage.share for stage in self.stages])
        self._prepare()

    def _prepare(self) -> None:
        """Set weights that depend on data; a resumed run overwrites them."""
        self.state.model.prepare(self.images.first("training", _PREPARING))
        self.state.average.load_state_dict(self.state.model.state_dict())
        self._start_stage()

    def _start_stage(self) -> None:
        players = self.stages[self.state.stage].players if self.running else ()
        self.state.optimisers = [_optimiser(player, self.settings) for player in players]
        # What no player owns is held fixed, its running averages and dropout included.
        owned = {
            part for player in players for module in player.modules for part in module.modules()
        }
        for child in self.state.model.children():
            child.train(not owned.isdisjoint(child.modules()))

    @property
    def running(self) -> bool:
        """Whether there are epochs left."""
        return self.state.stage < len(self.stages)

    @property
    def remaining_steps(self) -> int:
        """Steps to come, if no stage stops early."""
        left = sum(self._steps(stage) for stage in range(self.state.stage, len(self.stages)))
        return left - self.state.stage_step

    def _steps(self, stage: int) -> int:
        num_images = self.images.count(self.stages[stage].images)
        return self.epochs[stage] * math.ceil(num_images / self.settings.batch_size)

    def resume(self, path: Path) -> None:
        """Take the state from a checkpoint."""
        moments = restore(self.state, path, self.identity)
        steps = [self._steps(stage) for stage in range(len(self.stages))]
        check_progress(self.state, path, self.epochs, steps)
        self._start_stage()
        begun = self.state.stage_step > 0
        restore_optimisers(self.state.optimisers, moments, path, begun=begun)

    def epoch(self, bar: Any, each_step: EachStep | None) -> None:
        """Use every image of the stage once."""
        state, stage = self.state, self.stages[self.state.stage]
        sums: dict[str, list[float]] = {}
        for batch in self.images.batches(stage.images, self.settings.batch_size, state.order):
            losses = self._step(stage, batch)
            for name, value in losses.items():
                sums.setdefault(name, []).append(value)
            bar.update()
            if state.step % 20 == 0:
                bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()})
            if each_step is not None:
                each_step(state.step, losses)
        # A finite loss may have gradients that are not, and the checkpoint must stay usable.
        if not all(tensor.isfinite().all() for tensor in state.model.state_dict().values()):
            raise self._diverged("a weight is infinite or NaN")
        means = {name: sum(values) / len(values) for name, values in sums.items()}
        validation = {f"validation_{k}": v for k, v in self._validate(state.average).items()}
        state.history.append(means | validation)

    def _step(self, stage: Stage, batch: Tensor) -> Losses:
        """Let every player whose turn it is learn from the batch."""
        state, values = self.state, Losses()
        # Of the middle of the step: at its ends the first and the last one would have rate zero.
        time = (state.stage_step + 0.5) / self._steps(state.stage)
        rate = SCHEDULES[self.settings.schedule](time)
        for number, player in enumerate(stage.players):
            if state.stage_step % player.every == 0:
                optimiser = state.optimisers[number]
                for group in optimiser.param_groups:
                    group["lr"] = self.settings.learning_rate * player.learning_rate * rate
                values = _joined(values, stage, number, self._learn(player, optimiser, batch))
        state.step, state.stage_step = state.step + 1, state.stage_step + 1
        # Early on the average must forget faster, or the initial weights stay in it for long.
        decay = min(self.settings.average, state.stage_step / (state.stage_step + 10))
        follow(state.average, state.model, decay)
        return values

    def _learn(self, player: Player, optimiser: torch.optim.Optimizer, batch: Tensor) -> Losses:
        losses = player.loss(batch, self.state.noise)
        values = {name: loss.item() for name, loss in losses.items()}
        if not math.isfinite(values["loss"]):
            raise self._diverged(f"the loss is {values['loss']}")
        parameters = player.parameters
        gradients = torch.autograd.grad(losses["loss"], parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.settings.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
        optimiser.step()
        return values

    def _diverged(self, what: str) -> ModelError:
        return ModelError(
            f"training diverged at step {self.state.step}: {what}; resume from the checkpoint, "
            "which holds the last good state, or start anew, with a gradient_clip or a learning "
            f"rate below {self.settings.learning_rate:g}"
        )

    def _validate(self, model: Trainable) -> Losses:
        """Mean losses on held-out images, under the same random numbers every time."""
        stage = model.stages()[self.state.stage]
        seed = stream_seed(self.settings.seed, "validation")
        noise = torch.Generator(self.device).manual_seed(seed)
        means = Losses()
        for batch in self.images.batches("validation", _VALIDATING):
            weight, values = len(batch) / self.images.count("validation"), Losses()
            for number, player in enumerate(stage.players):
                # Gradient penalties differentiate also here.
                losses = {name: loss.item() for name, loss in player.loss(batch, noise).items()}
                values = _joined(values, stage, number, losses)
            for name, value in values.items():
                means[name] = means.get(name, 0.0) + weight * value
        return means

    def end_epoch(self) -> None:
        """Keep the best weights; go to the next stage if this one has ended."""
        state, stage = self.state, self.stages[self.state.stage]
        state.epoch += 1
        watching = self.settings.patience is not None and stage.monitored
        if watching:
            loss = state.history[-1]["validation_loss"]
            state.waited += 1
            if loss < state.best_loss:
                weights = state.average.state_dict()
                state.best = {name: tensor.clone() for name, tensor in weights.items()}
                state.best_loss, state.waited = loss, 0
        out_of_patience = watching and state.waited >= (self.settings.patience or 0)
        if state.epoch == self.epochs[state.stage] or out_of_patience:
            self._end_stage()

    def _end_stage(self) -> None:
        """Go on from the averaged weights, or from the best of them."""
        state = self.state
        if state.best:
            state.average.load_state_dict(state.best)
        state.model.load_state_dict(state.average.state_dict())
        state.best, state.best_loss, state.waited = {}, math.inf, 0
        state.stage, state.epoch, state.stage_step = state.stage + 1, 0, 0
        self._start_stage()

    def describe(self) -> str:
        """One line on the last epoch."""
        losses = "  ".join(f"{name} {value:.5g}" for name, value in self.state.history[-1].items())
        stage = self.stages[self.state.stage].name
        return f"{stage} {self.state.epoch + 1}/{self.epochs[self.state.stage]}  {losses}"

    def result(self) -> Trainable:
        """Return the averaged generator with what is fitted after training."""
        held_out = torch.cat([self.images.first("validation"), self.images.first("reserved")])
        with torch.no_grad():
            self.state.average.finish(self.images.first("training", _FINISHING), held_out)
        return self.state.average


def _joined(values: Losses, stage: Stage, number: int, losses: Losses) -> Losses:
    """Add what a player reports to what those before it did.

    Several players' totals go by the names that each gives to its own, but for the first one's
    where it tells how good the generator is.
    """
    keeps_total = len(stage.players) == 1 or (stage.monitored and number == 0)
    reported = {name: value for name, value in losses.items() if name != "loss" or keeps_total}
    twice = sorted(values.keys() & reported.keys())
    if twice:
        raise ModelError(
            f"two players of the stage {stage.name!r} report {', '.join(twice)}; each needs names "
            "of its own"
        )
    return values | reported


def _share(total: int, shares: list[float]) -> list[int]:
    """Divide epochs in proportion, at least one each."""
    return [max(round(total * share / sum(shares)), 1) for share in shares]


def _optimiser(player: Player, settings: TrainingSettings) -> torch.optim.Optimizer:
    parameters = player.parameters
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=player.betas)


def _compute_in_bfloat16(model: torch.nn.Module) -> None:
    """Let a generator's networks compute in bfloat16; losses stay in single precision."""

    def mixed(forward: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def run(*inputs: Tensor) -> Any:
            with torch.autocast(kind, torch.bfloat16):
                outputs = forward(*inputs)
            single = isinstance(outputs, Tensor)
            return outputs.float() if single else tuple(output.float() for output in outputs)

        return run

    kind = next(model.parameters()).device.type
    for network in model.children():
        network.forward = mixed(network.forward, kind)


def _progress_bar(remaining: int, done: int, show: bool) -> Any:
    from tqdm import tqdm

    total = done + remaining
    return tqdm(total=total, initial=done, disable=not show, unit="step", smoothing=0.05)
