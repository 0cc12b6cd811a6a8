from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bayesgen.models
from bayesgen.errors import (
    DataError,
    DtypeError,
    ModelError,
    OptionError,
    ShapeError,
)
from bayesgen.models import (
    AE,
    GAN,
    VAE,
    WGAN,
    Flow,
    Glow,
    LinearGenerator,
    Player,
    RealNVP,
    Stage,
    StructuredVAE,
    Trainable,
    TrainingSettings,
    train,
)
from bayesgen.models.checkpoints import start
from bayesgen.models.published import BatchNorm, Dropout
from bayesgen.models.trainable import Loss

# Fifty training images: three steps an epoch, the last one of two images.
SETTINGS = TrainingSettings(
    epochs=3, batch_size=24, learning_rate=3e-3, validation=10, average=0.9, seed=3
)
STEPS_PER_EPOCH = 3


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Discs at random places."""
    rng = torch.Generator().manual_seed(0)
    centre = 2 + 4 * torch.rand(60, 2, 1, 1, generator=rng)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
    return ((grid - centre).square().sum(1) < 6).float()


# A small generator whose training can be written down by hand.


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    image_shape: tuple[int, ...] = (2, 2)
    latent_dim: int = 1


class Toy(Trainable):
    """Three numbers that start at zero; tests give each its loss."""

    def __init__(self) -> None:
        super().__init__(ToyConfig(), 0)
        for part in (self.one, self.two, self.three):
            nn.init.zeros_(part.weight)

    def build(self) -> None:
        self.one, self.two, self.three = (nn.Linear(1, 1) for _ in range(3))

    def decode(self, z: Tensor) -> Tensor:
        return (self.one.weight * z).unsqueeze(-1).expand(*z.shape[:-1], 2, 2)

    def weights(self) -> list[float]:
        return [part.weight.item() for part in (self.one, self.two, self.three)]


def falling(part: nn.Linear, name: str = "fall") -> Loss:
    """A loss of slope one: every step of Adam makes the weight smaller by the step size."""
    return lambda x, rng: {"loss": part.weight.sum() + 0 * x.sum(), name: part.weight.sum()}


def toy_images(num: int = 20) -> Tensor:
    """Images that can be told apart: the i-th has the value i / num."""
    return (torch.arange(float(num)) / num).reshape(-1, 1, 1).expand(num, 2, 2).contiguous()


ONE_STEP = TrainingSettings(
    epochs=6, batch_size=100, learning_rate=0.1, schedule="constant", average=0.0, validation=5
)


def one_stage(*players: Player, monitored: bool = True) -> tuple[Stage, ...]:
    return (Stage("only", players, monitored=monitored),)


# Every kind of generator, through the same checks.


class Noisy(Trainable):
    """What networks may have beside weights: running averages, random numbers of their own."""

    def __init__(self) -> None:
        super().__init__(ToyConfig((8, 8), 2), 0)

    def build(self) -> None:
        self.network = nn.Sequential(
            nn.Linear(64, 4), BatchNorm(4), nn.Tanh(), Dropout(0.3), nn.Linear(4, 64)
        )

    def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        return {"loss": (self.network(x.flatten(1)) - x.flatten(1)).square().mean()}

    def stages(self) -> tuple[Stage, ...]:
        return one_stage(Player((self.network,), self.loss))


SMALL: dict[str, Any] = {"width": 8, "channels": 2}
KINDS: dict[str, tuple[Callable[[], Trainable], dict[str, Any]]] = {
    "ae": (lambda: AE((8, 8), 2, **SMALL), {}),
    "ae with a mixture": (lambda: AE((8, 8), 2, components=2, **SMALL), {}),
    "vae": (lambda: VAE((8, 8), 2, **SMALL), {"weight_decay": 0.1}),
    "vae with learnt noise": (lambda: VAE((8, 8), 2, learn_noise=True, **SMALL), {"patience": 1}),
    "convolutional vae": (lambda: VAE((8, 8), 2, layout="convolution", **SMALL), {}),
    "gan": (lambda: GAN((8, 8), 2, **SMALL), {}),
    "wgan": (lambda: WGAN((8, 8), 2, critic_steps=2, **SMALL), {"schedule": "constant"}),
    "structured vae": (lambda: StructuredVAE((8, 8), 2, radius=1, **SMALL), {"patience": 1}),
    "joint structured vae": (
        lambda: StructuredVAE((8, 8), 2, radius=1, joint=True, **SMALL),
        {"epochs": 5},
    ),
    "glow": (lambda: Glow((8, 8), levels=1, steps=1, width=4), {}),
    "real nvp": (lambda: RealNVP(64, layers=2, width=4), {}),
    "batch normalisation": (Noisy, {}),
}
# Bases that make no generator by themselves.
ABSTRACT = {Flow}


def of_kind(name: str, images: Tensor) -> tuple[Trainable, Tensor, TrainingSettings]:
    make, changes = KINDS[name]
    model = make()
    data = images.reshape(len(images), *model.image_shape)
    return model, data, dataclasses.replace(SETTINGS, **changes)


def identical(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_parts_without_a_player_are_in_evaluation_mode() -> None:
    seen: list[tuple[bool, bool, bool]] = []

    class Staged(Toy):
        def stages(self) -> tuple[Stage, ...]:
            def loss(part: nn.Linear) -> Loss:
                def watched(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                    if part.weight.requires_grad:  # not the average
                        modes = (self.one.training, self.two.training, self.three.training)
                        seen.append(modes)
                    return {"loss": part.weight.sum()}

                return watched

            parts = (self.one, self.two)
            return tuple(Stage("fall", (Player((part,), loss(part)),)) for part in parts)

    train(Staged(), toy_images(), dataclasses.replace(ONE_STEP, epochs=2), progress=False)
    assert seen == [(True, False, False), (False, True, False)]


def test_gradient_clip_forgives_an_outlier() -> None:
    """All gradients have norm one but the third, of a thousand, which Adam would remember."""

    class Outlier(Toy):
        def stages(self) -> tuple[Stage, ...]:
            def loss(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                weight = self.one.weight.sum()
                slope = 1000.0 if -0.25 < weight.item() < -0.15 else 1.0
                return {"loss": slope * weight}

            return one_stage(Player((self.one,), loss))

    def trained(clip: float | None) -> float:
        settings = dataclasses.replace(ONE_STEP, gradient_clip=clip)
        return train(Outlier(), toy_images(), settings, progress=False)[0].weights()[0]

    assert trained(1.0) == pytest.approx(-6 * ONE_STEP.learning_rate, rel=1e-5)
    assert abs(trained(None) - trained(1.0)) > 0.01
    assert trained(1e4) == trained(None)


def test_no_kind_is_missing_from_the_table() -> None:
    public = {getattr(bayesgen.models, name) for name in bayesgen.models.__all__}
    kinds = {k for k in public if isinstance(k, type) and issubclass(k, Trainable)}
    listed = {type(make()) for make, _ in KINDS.values()}
    assert kinds - ABSTRACT - {Trainable} <= listed


@pytest.mark.parametrize("name", KINDS)
def test_training_follows_the_seed_and_resumes_to_the_bit(
    name: str, images: Tensor, tmp_path: Path
) -> None:
    model, data, settings = of_kind(name, images)
    untouched = KINDS[name][0]()
    checkpoint, kept = tmp_path / "state", tmp_path / "kept"
    kept.mkdir()

    def keep(step: int, losses: dict[str, float]) -> None:
        """Copy what an interruption here would leave behind."""
        shutil.copy(checkpoint, kept / f"{step:02}")

    whole, history = train(
        model, data, settings, checkpoint=checkpoint, progress=False, each_step=keep
    )
    assert identical(model, untouched), "the model that was given has changed"
    assert not identical(whole, model)
    assert all(math.isfinite(value) for epoch in history for value in epoch.values())
    shutil.copy(checkpoint, kept / "end")
    # Interruptions in the middle of an epoch leave the same file as those at its start.
    contents = {file.read_bytes(): file for file in sorted(kept.iterdir(), reverse=True)}
    assert len(contents) == 1 + len(history)
    for file in contents.values():
        resumed, again = train(model, data, settings, checkpoint=file, resume=True, progress=False)
        assert identical(whole, resumed) and history == again, f"resumed from {file.name}"
    other = dataclasses.replace(settings, seed=4, epochs=1)
    assert not identical(whole, train(model, data, other, progress=False)[0])


@pytest.mark.parametrize("name", KINDS)
def test_double_precision(name: str, images: Tensor) -> None:
    model, data, settings = of_kind(name, images)
    settings = dataclasses.replace(settings, epochs=1, batch_size=60)
    trained, history = train(model.double(), data, settings, progress=False)
    floating = [t for t in trained.state_dict().values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float64}
    # The same numbers, more precisely: also the random ones, which are drawn differently.
    assert all(math.isfinite(value) for value in history[0].values())


@pytest.mark.parametrize("name", KINDS)
def test_mixed_precision_also_works_on_a_cpu(name: str, images: Tensor) -> None:
    model, data, settings = of_kind(name, images)
    settings = dataclasses.replace(settings, epochs=1, schedule="constant")
    exact, exact_history = train(model, data, settings, progress=False)
    mixed = dataclasses.replace(settings, mixed_precision=True)
    rounded, history = train(model, data, mixed, progress=False)
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert not identical(exact, rounded), "nothing was rounded"
    last = exact_history[-1]
    assert history[-1].keys() == last.keys()
    # Eight bits; differences of the critic's values cancel.
    for key, value in history[-1].items():
        assert value == pytest.approx(last[key], rel=0.1, abs=0.1), key


def test_mixed_precision_is_for_single_precision(images: Tensor) -> None:
    settings = dataclasses.replace(SETTINGS, mixed_precision=True)
    with pytest.raises(OptionError, match=r"mixed_precision: .* single precision, got torch.float"):
        train(VAE((8, 8), 2, **SMALL).double(), images, settings, progress=False)


def test_training_learns_and_reports_what_it_does(images: Tensor) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=40, learning_rate=0.03)
    data = images.clone()
    model = VAE((8, 8), 2, width=16, channels=4, noise_level=0.1)
    trained, history = train(model, data, settings, progress=False)
    assert torch.equal(images, data)
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert len(history) == 40
    assert history[-1]["validation_loss"] < 0.5 * history[0]["validation_loss"]
    parts = history[-1]["validation_mse"] * 64 / (2 * 0.1**2) + history[-1]["validation_kl"]
    assert math.isclose(history[-1]["validation_loss"], parts, rel_tol=1e-5)


@pytest.mark.parametrize("step", [1, 2, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 8, 10])
def test_an_interruption_repeats_only_its_epoch(images: Tensor, tmp_path: Path, step: int) -> None:
    """Two stages: three steps an epoch in the first, one in the second."""
    model = StructuredVAE((8, 8), 2, radius=1, **SMALL)
    settings = dataclasses.replace(SETTINGS, epochs=6, batch_size=16)
    whole, history = train(model, images, settings, progress=False)
    checkpoint = tmp_path / "state"

    def interrupt(now: int, losses: dict[str, float]) -> None:
        if now == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, images, settings, checkpoint=checkpoint, progress=False, each_step=interrupt)
    steps: list[int] = []
    resumed, again = train(
        model,
        images,
        settings,
        checkpoint=checkpoint,
        resume=True,
        progress=False,
        each_step=lambda now, losses: steps.append(now),
    )
    assert identical(whole, resumed) and history == again
    # A step is seen before its epoch is saved.
    first = 1 + (step - 1) // 3 * 3 if step <= 9 else step
    assert steps == list(range(first, 13))
    assert list(tmp_path.iterdir()) == [checkpoint], "temporary files were left"


@pytest.mark.parametrize("lost", ["moments", "average", "noise", "order", "best"])
def test_resuming_needs_every_part_of_the_state(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Mutants: a part of the state is lost on the way; the checks above must notice."""
    from bayesgen.models import training

    model: Trainable = VAE((8, 8), 2, **SMALL)
    settings = dataclasses.replace(SETTINGS, schedule="constant")
    if lost == "best":
        model, images = Turning(), toy_images()
        settings = dataclasses.replace(ONE_STEP, patience=1)
    checkpoint = tmp_path / "state"
    whole, _ = train(model, images, settings, progress=False)

    def interrupt(now: int, losses: dict[str, float]) -> None:
        if now == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, images, settings, checkpoint=checkpoint, progress=False, each_step=interrupt)
    restore = training.restore

    def forgetful(state: Any, *arguments: Any) -> dict[str, Tensor]:
        before = [g.get_state() for g in (state.order, state.noise)]
        average = {name: t.clone() for name, t in state.average.state_dict().items()}
        moments = restore(state, *arguments)
        if lost == "noise":
            state.noise.set_state(before[1])
        if lost == "order":
            state.order.set_state(before[0])
        if lost == "average":
            state.average.load_state_dict(average)
        if lost == "best":
            state.best = {}
        if lost == "moments":
            return {name: torch.zeros_like(tensor) for name, tensor in moments.items()}
        return moments

    monkeypatch.setattr(training, "restore", forgetful)
    resumed, _ = train(model, images, settings, checkpoint=checkpoint, resume=True, progress=False)
    assert not identical(whole, resumed)


# Early stopping.


class Turning(Toy):
    """The weight falls by 0.1 an epoch; on held-out images the loss is least at -0.3."""

    def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        weight = self.one.weight.sum()
        return {"loss": weight if self.training else (weight + 0.3).square()}

    def stages(self) -> tuple[Stage, ...]:
        return one_stage(Player((self.one,), self.loss))


@pytest.mark.parametrize(
    ("patience", "epochs", "weight"), [(1, 4, -0.3), (2, 5, -0.3), (9, 6, -0.3), (None, 6, -0.6)]
)
def test_early_stopping_returns_the_best_weights(
    patience: int | None, epochs: int, weight: float, tmp_path: Path
) -> None:
    settings = dataclasses.replace(ONE_STEP, patience=patience)
    trained, history = train(Turning(), toy_images(), settings, progress=False)
    assert len(history) == epochs
    assert trained.weights()[0] == pytest.approx(weight, abs=1e-6)
    assert [epoch["validation_loss"] for epoch in history] == pytest.approx(
        [(0.3 - 0.1 * epoch) ** 2 for epoch in range(1, epochs + 1)], abs=1e-6
    )
    # Interrupted just before it would have stopped.
    checkpoint = tmp_path / "state"

    def interrupt(now: int, losses: dict[str, float]) -> None:
        if now == epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            Turning(),
            toy_images(),
            settings,
            checkpoint=checkpoint,
            progress=False,
            each_step=interrupt,
        )
    resumed, again = train(
        Turning(), toy_images(), settings, checkpoint=checkpoint, resume=True, progress=False
    )
    assert identical(trained, resumed) and history == again


def test_the_next_stage_starts_from_the_best_weights_with_patience_anew() -> None:
    class Staged(Turning):
        def stages(self) -> tuple[Stage, ...]:
            def later(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                # Never as low as the first stage's lowest, which does not count here.
                return {"loss": self.two.weight.sum() + 2}

            return (*super().stages(), Stage("again", (Player((self.two,), later),)))

    settings = dataclasses.replace(ONE_STEP, epochs=10, patience=1)
    trained, history = train(Staged(), toy_images(), settings, progress=False)
    # Of five epochs each, the first stage makes four; the second one's loss always falls.
    assert len(history) == 9
    assert trained.weights() == pytest.approx([-0.3, -0.5, 0.0], abs=1e-6)


def test_adversarial_stages_cannot_stop_early(images: Tensor) -> None:
    settings = dataclasses.replace(SETTINGS, patience=1)
    with pytest.raises(OptionError, match=r"patience: the losses of a GAN do not tell how good"):
        train(GAN((8, 8), 2, **SMALL), images, settings, progress=False)


def test_the_first_players_loss_is_watched_where_it_tells() -> None:
    class Watched(Turning):
        def stages(self) -> tuple[Stage, ...]:
            other = Player((self.two,), falling(self.two))
            return one_stage(Player((self.one,), self.loss), other)

    settings = dataclasses.replace(ONE_STEP, patience=1)
    trained, history = train(Watched(), toy_images(), settings, progress=False)
    assert len(history) == 4 and trained.weights()[0] == pytest.approx(-0.3, abs=1e-6)
    assert set(history[0]) == {"loss", "fall", "validation_loss", "validation_fall"}


# Players.


def players_of(*players: tuple[str, dict[str, Any]]) -> type[Toy]:
    class Playing(Toy):
        def stages(self) -> tuple[Stage, ...]:
            made = [
                Player((getattr(self, name),), falling(getattr(self, name), name), **words)
                for name, words in players
            ]
            return one_stage(*made, monitored=False)

    return Playing


def test_players_change_their_own_weights_when_it_is_their_turn() -> None:
    kind = players_of(("one", {}), ("two", {"every": 3, "learning_rate": 0.5}))
    steps: list[set[str]] = []
    settings = dataclasses.replace(ONE_STEP, epochs=4)
    trained, history = train(
        kind(),
        toy_images(),
        settings,
        progress=False,
        each_step=lambda step, losses: steps.append(set(losses)),
    )
    assert trained.weights() == pytest.approx([-0.4, -0.1, 0.0], abs=1e-6)
    assert torch.equal(trained.three.weight, torch.zeros(1, 1))
    assert steps == [{"one", "two"}, {"one"}, {"one"}, {"one", "two"}]
    # What each reports is its own, before its step; the second one's first step came first.
    assert [epoch["one"] for epoch in history] == pytest.approx([0.0, -0.1, -0.2, -0.3], abs=1e-6)
    assert [epoch["validation_two"] for epoch in history] == pytest.approx(
        [-0.05, -0.05, -0.05, -0.1], abs=1e-6
    )
    assert not any("loss" in name for name in history[0])


def test_players_that_report_the_same_name_are_refused() -> None:
    class Both(Toy):
        def stages(self) -> tuple[Stage, ...]:
            players = [Player((part,), falling(part)) for part in (self.one, self.two)]
            return one_stage(*players, monitored=False)

    with pytest.raises(ModelError, match=r"two players of the stage 'only' report fall"):
        train(Both(), toy_images(), ONE_STEP, progress=False)


def test_players_have_their_own_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    adam = torch.optim.AdamW

    def spy(groups: Any, **words: Any) -> torch.optim.AdamW:
        made.append(words)
        return adam(groups, **words)

    monkeypatch.setattr(torch.optim, "AdamW", spy)
    kind = players_of(("one", {"betas": (0.5, 0.9)}), ("two", {}))
    train(kind(), toy_images(), ONE_STEP, progress=False)
    assert [words["betas"] for words in made] == [(0.5, 0.9), (0.9, 0.999)]


def test_weights_without_gradient_stay() -> None:
    class Unused(Toy):
        def stages(self) -> tuple[Stage, ...]:
            return one_stage(Player((self.one, self.two), falling(self.one)))

    trained, _ = train(Unused(), toy_images(), ONE_STEP, progress=False)
    assert trained.weights() == pytest.approx([-0.6, 0.0, 0.0], abs=1e-6)


def test_weight_decay_exempts_biases() -> None:
    class Flat(Toy):
        def __init__(self) -> None:
            super().__init__()
            nn.init.ones_(self.one.weight)
            nn.init.ones_(self.one.bias)

        def stages(self) -> tuple[Stage, ...]:
            def flat(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                return {"loss": 0 * (self.one.weight.sum() + self.one.bias.sum())}

            return one_stage(Player((self.one,), flat))

    settings = dataclasses.replace(ONE_STEP, epochs=3, weight_decay=0.5)
    trained, _ = train(Flat(), toy_images(), settings, progress=False)
    assert trained.one.weight.item() == pytest.approx(0.95**3)
    assert trained.one.bias.item() == 1.0


def test_the_step_size_follows_the_schedule_in_every_stage() -> None:
    class Staged(Toy):
        def stages(self) -> tuple[Stage, ...]:
            parts = (self.one, self.two)
            return tuple(Stage("fall", (Player((part,), falling(part)),)) for part in parts)

    settings = dataclasses.replace(ONE_STEP, epochs=80, schedule="cosine")
    found: list[float] = []
    train(
        Staged(),
        toy_images(),
        settings,
        progress=False,
        each_epoch=lambda model, history: found.append(sum(model.weights())),  # type: ignore[attr-defined]
    )
    rates = [-(b - a) / 0.1 for a, b in zip([0.0, *found], found, strict=False)]
    # Forty steps a stage, each taken at its middle: two of warm-up, then half a period.
    wave = [0.5 * (1 + math.cos(math.pi * (step - 1.5) / 38)) for step in range(2, 40)]
    assert rates == pytest.approx(2 * [0.25, 0.75, *wave], abs=1e-4)
    assert min(rates) > 0


@pytest.mark.parametrize("limit", [0.0, 0.15, 0.999])
def test_the_average_follows_its_formula_and_buffers_are_copied(limit: float) -> None:
    class Counting(Toy):
        def build(self) -> None:
            super().build()
            self.register_buffer("count", torch.empty(()))

        def __init__(self) -> None:
            super().__init__()
            self.count = torch.zeros(())

        def stages(self) -> tuple[Stage, ...]:
            def loss(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                if self.training:
                    self.count += 1
                return falling(self.one)(x, rng)

            return one_stage(Player((self.one,), loss))

    found: list[float] = []
    settings = dataclasses.replace(ONE_STEP, average=limit)
    trained, _ = train(
        Counting(),
        toy_images(),
        settings,
        progress=False,
        each_epoch=lambda model, history: found.append(model.weights()[0]),  # type: ignore[attr-defined]
    )
    average, expected = 0.0, []
    for step in range(1, 7):
        decay = min(limit, step / (step + 10))
        average = decay * average + (1 - decay) * (-0.1 * step)
        expected.append(average)
    assert found == pytest.approx(expected, abs=1e-6)
    assert trained.count == 6


def test_the_average_starts_where_the_data_put_the_weights() -> None:
    class Prepared(Turning):
        @torch.no_grad()
        def prepare(self, images: Tensor) -> None:
            self.one.weight.fill_(5.0)

    settings = dataclasses.replace(ONE_STEP, epochs=1, average=0.999)
    trained, _ = train(Prepared(), toy_images(), settings, progress=False)
    assert trained.weights()[0] == pytest.approx(5 - 0.1 * 10 / 11, abs=1e-5)


def test_validation_uses_the_same_random_numbers_after_every_epoch() -> None:
    class Random(Toy):
        def stages(self) -> tuple[Stage, ...]:
            def loss(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                noise = torch.rand(1, generator=rng)
                return {"loss": 0 * self.one.weight.sum() + noise.sum()}

            return one_stage(Player((self.one,), loss))

    def losses(seed: int) -> tuple[set[float], set[float]]:
        settings = dataclasses.replace(ONE_STEP, seed=seed)
        history = train(Random(), toy_images(), settings, progress=False)[1]
        return {epoch["loss"] for epoch in history}, {e["validation_loss"] for e in history}

    (training, validation), (_, other) = losses(0), losses(1)
    assert len(training) == 6 and len(validation) == 1 and other != validation


def test_validation_averages_over_images_not_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from bayesgen.models import training

    class Bright(Toy):
        def stages(self) -> tuple[Stage, ...]:
            def loss(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                return {"loss": 0 * self.one.weight.sum() + x.mean()}

            return one_stage(Player((self.one,), loss))

    settings = dataclasses.replace(ONE_STEP, epochs=1)
    whole = train(Bright(), toy_images(), settings, progress=False)[1]
    monkeypatch.setattr(training, "_VALIDATING", 2)
    in_parts = train(Bright(), toy_images(), settings, progress=False)[1]
    assert in_parts[0] == pytest.approx(whole[0], abs=1e-6)


# Who sees which images.


class Spy(Toy):
    """Remembers what it was shown; classes are not copied, instances are."""

    shown: ClassVar[dict[str, list[int]]]

    def note(self, where: str, x: Tensor) -> None:
        numbers = (20 * x[:, 0, 0]).round().int().tolist()
        self.shown.setdefault(where, []).extend(numbers)

    def stages(self) -> tuple[Stage, ...]:
        def loss(name: str, part: nn.Linear) -> Loss:
            def noting(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                self.note(name if self.training else "validation", x)
                return falling(part)(x, rng)

            return noting

        return (
            Stage("first", (Player((self.one,), loss("first", self.one)),)),
            Stage("second", (Player((self.two,), loss("second", self.two)),), images="reserved"),
        )

    def prepare(self, images: Tensor) -> None:
        self.note("prepare", images)

    def finish(self, images: Tensor, held_out: Tensor) -> None:
        self.note("finish", images)
        self.note("held out", held_out)


@pytest.mark.parametrize("batch_size", [4, 100])
def test_every_image_has_its_place(batch_size: int) -> None:
    class Fresh(Spy):
        shown: ClassVar[dict[str, list[int]]] = {}

    settings = dataclasses.replace(ONE_STEP, epochs=4, batch_size=batch_size, reserved=0.4)
    train(Fresh(), toy_images(), settings, progress=False)
    shown = {name: sorted(numbers) for name, numbers in Fresh.shown.items()}
    first, second, validation = (set(shown[name]) for name in ("first", "second", "validation"))
    assert (len(first), len(second), len(validation)) == (9, 6, 5)
    assert first | second | validation == set(range(20))
    # Two epochs each, every image once an epoch; validation after all four.
    assert shown["first"] == sorted(2 * [*first])
    assert shown["second"] == sorted(2 * [*second])
    assert shown["validation"] == sorted(4 * [*validation])
    assert shown["prepare"] == shown["finish"] == sorted(first)
    assert set(shown["held out"]) == validation | second and len(shown["held out"]) == 11
    orders = [Fresh.shown["first"][:9], Fresh.shown["first"][9:]]
    assert orders[0] != orders[1], "every epoch has an order of its own"


def test_a_data_set_is_as_good_as_its_tensor(images: Tensor) -> None:
    model = VAE((8, 8), 2, **SMALL)
    expected, _ = train(model, images, SETTINGS, progress=False)
    labelled = TensorDataset((255 * images).byte(), torch.zeros(60))
    for same in (labelled, images.half(), images.bfloat16(), images.double().requires_grad_()):
        assert identical(expected, train(model, same, SETTINGS, progress=False)[0])


def test_every_kind_has_settings_of_its_own(images: Tensor) -> None:
    """Without settings those of the class are taken: GANs learn in smaller steps."""
    assert GAN.default_settings != VAE.default_settings
    seen: list[TrainingSettings] = []

    class Asking(Toy):
        default_settings = dataclasses.replace(ONE_STEP, epochs=2)

        def stages(self) -> tuple[Stage, ...]:
            seen.append(self.default_settings)
            return one_stage(Player((self.one,), falling(self.one)))

    _, history = train(Asking(), toy_images(), progress=False)
    assert len(history) == 2 and seen


# When things go wrong.


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_divergence_stops_and_keeps_the_last_good_state(how: str, tmp_path: Path) -> None:
    class Explodes(Toy):
        dangerous: ClassVar[bool] = True

        def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
            weight = self.one.weight.sum()
            if self.training and self.dangerous and weight < -0.25:
                if how == "loss":
                    return {"loss": weight * math.nan}
                # A root at zero: the value is finite, its slope is not.
                return {"loss": weight + (weight - weight.detach()).abs().sqrt()}
            return {"loss": weight}

        def stages(self) -> tuple[Stage, ...]:
            return one_stage(Player((self.one,), self.loss))

    checkpoint = tmp_path / "state"
    what = "at step 3: the loss is nan" if how == "loss" else "at step 4: a weight is infinite or N"
    with pytest.raises(ModelError, match=rf"diverged {what}.* below 0\.1"):
        train(Explodes(), toy_images(), ONE_STEP, checkpoint=checkpoint, progress=False)
    assert list(tmp_path.iterdir()) == [checkpoint]
    Explodes.dangerous = False
    trained, history = train(
        Explodes(), toy_images(), ONE_STEP, checkpoint=checkpoint, resume=True, progress=False
    )
    assert len(history) == 6 and trained.weights()[0] == pytest.approx(-0.6, abs=1e-6)


def test_a_smaller_step_leads_past_a_divergence(tmp_path: Path) -> None:
    class Cliff(Toy):
        """Only steps of at most a twentieth get past the cliff at -0.25."""

        last: ClassVar[float] = 0.0

        def loss(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
            weight = self.one.weight.sum()
            if self.training:
                length = Cliff.last - weight.item()
                Cliff.last = weight.item()
                if weight < -0.25 and length > 0.06:
                    return {"loss": weight * math.nan}
            return {"loss": weight}

        def stages(self) -> tuple[Stage, ...]:
            return one_stage(Player((self.one,), self.loss))

    checkpoint = tmp_path / "state"

    def run(**changes: Any) -> float:
        settings = dataclasses.replace(ONE_STEP, **changes)
        resume = checkpoint.exists()
        model = train(
            Cliff(), toy_images(), settings, checkpoint=checkpoint, resume=resume, progress=False
        )[0]
        return model.weights()[0]

    with pytest.raises(ModelError, match="resume from the checkpoint"):
        run()
    Cliff.last = -0.27  # the step that failed is not made again
    with pytest.raises(OptionError, match="was started with settings batch_size=100"):
        run(batch_size=50)
    # Three steps of a tenth were made and kept, then three smaller ones.
    assert run(learning_rate=0.05) == pytest.approx(-0.3 - 3 * 0.05, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: 255 * x, DataError, r"found 0 to 255; scale them, for example images / 255"),
        (lambda x: x - 0.5, DataError, r"found -0.5 to 0.5"),
        (lambda x: x / 0, DataError, "NaN or infinity"),
        (lambda x: x.byte(), DtypeError, r"got torch.uint8; scale them, for example images / 255"),
        (lambda x: x[:, :-1], ShapeError, r"expected shape \(N, 8, 8\), got \(60, 7, 8\)"),
        (lambda x: x[0], ShapeError, r"expected shape \(N, 8, 8\), got \(8, 8\)"),
        (lambda x: x[:0], ShapeError, r"got \(0, 8, 8\)"),
        (lambda x: x[:10], OptionError, "holds out 10 images, but there are 10"),
        (lambda x: [x[0], x[1][1:]], ShapeError, "7"),
        (lambda x: 3, DtypeError, "map-style data set"),
    ],
)
def test_bad_images(
    images: Tensor,
    tmp_path: Path,
    change: Callable[[Tensor], Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        train(
            VAE((8, 8), 2, **SMALL),
            change(images),
            SETTINGS,
            checkpoint=tmp_path / "state",
            progress=False,
        )
    assert list(tmp_path.iterdir()) == []


def test_vectors_may_have_any_values(images: Tensor) -> None:
    """Such as the latent vectors of another generator."""
    vectors = 3 * images.flatten(1)[:, :4] - 1
    settings = dataclasses.replace(SETTINGS, epochs=1)
    train(RealNVP(4, layers=1, width=2), vectors, settings, progress=False)


def test_a_data_set_of_vectors_is_as_good_as_its_tensor(images: Tensor) -> None:
    vectors = 3 * images.flatten(1)[:, :4] - 1
    settings = dataclasses.replace(SETTINGS, epochs=1)
    make = RealNVP(4, layers=1, width=2)
    expected, _ = train(make, vectors, settings, progress=False)
    same: list[Any] = [
        TensorDataset(vectors),
        TensorDataset(vectors, torch.zeros(60)),
        list(vectors),
        [(vector.numpy(), 3) for vector in vectors],
    ]
    for dataset in same:
        assert identical(expected, train(make, dataset, settings, progress=False)[0])


def test_streams_of_random_numbers_are_unrelated() -> None:
    """Those of a seed and of the next one too."""
    drawn: dict[tuple[int, str], list[float]] = {}

    class Random(Toy):
        def stages(self) -> tuple[Stage, ...]:
            def loss(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
                state = rng.clone_state()
                stream = "noise" if self.training else "validation"
                drawn.setdefault((seed, stream), torch.rand(8, generator=state).tolist())
                return {"loss": self.one.weight.sum()}

            return one_stage(Player((self.one,), loss))

    for seed in range(4):
        settings = dataclasses.replace(ONE_STEP, seed=seed, epochs=1)
        train(Random(), toy_images(), settings, progress=False)
        drawn[seed, "order"] = torch.rand(8, generator=start(Random(), seed).order).tolist()
        drawn[seed, "weights"] = torch.rand(
            8, generator=torch.Generator().manual_seed(seed)
        ).tolist()
    assert len({tuple(numbers) for numbers in drawn.values()}) == len(drawn) == 16


def test_arguments_of_other_types_are_refused(images: Tensor) -> None:
    model = VAE((8, 8), 2, **SMALL)
    with pytest.raises(DtypeError, match=r"settings: expected TrainingSettings, got dict"):
        train(model, images, {"epochs": 3}, progress=False)  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match=r"model: expected a Trainable generator, got LinearGen"):
        train(LinearGenerator((8, 8), 2), images, SETTINGS)  # type: ignore[type-var]
    with pytest.raises(DtypeError, match=r"weights in single or double precision, got torch.float"):
        train(model.half(), images, SETTINGS, progress=False)


def test_progress_is_shown_epoch_by_epoch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqdm import tqdm

    totals: list[int | None] = []
    monkeypatch.setattr(tqdm, "close", lambda bar: totals.append(bar.total))
    settings = dataclasses.replace(ONE_STEP, patience=1)
    train(Turning(), toy_images(), settings)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line] == [f"only {n}/6" for n in range(1, 5)]
    assert "validation_loss 0.04" in lines[0]
    assert set(totals) == {4}, "steps that early stopping spared are still waited for"
    train(Turning(), toy_images(), settings, progress=False)
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
def test_training_on_a_gpu(images: Tensor) -> None:
    for name in KINDS:
        model, data, settings = of_kind(name, images)
        for mixed in (False, True):
            settings = dataclasses.replace(settings, mixed_precision=mixed)
            trained, history = train(model.to("cuda"), data, settings, progress=False)
            assert next(trained.parameters()).device.type == "cuda"
            assert all(math.isfinite(value) for value in history[-1].values())


def test_epochs_are_divided_between_stages(capsys: pytest.CaptureFixture[str]) -> None:
    class Shares(Toy):
        def stages(self) -> tuple[Stage, ...]:
            player = Player((self.one,), falling(self.one))
            return tuple(Stage(str(share), (player,), share=share) for share in (1.0, 2.0, 0.01))

    train(Shares(), toy_images(), ONE_STEP)
    ends = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if line]
    assert ends == ["1.0 1/2", "1.0 2/2", "2.0 1/4", "2.0 2/4", "2.0 3/4", "2.0 4/4", "0.01 1/1"]
