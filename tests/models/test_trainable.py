from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from bayesgen.errors import OptionError
from bayesgen.models import Player, Stage, Trainable, check_generator
from bayesgen.models.trainable import Initialised, initialise


@dataclass(frozen=True)
class Config:
    image_shape: tuple[int, ...] = (4, 4)
    latent_dim: int = 2


class Rule(Initialised):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 3))
        self.register_buffer("buffer", torch.empty(3))

    def initialise(self, rng: torch.Generator) -> None:
        nn.init.eye_(self.weight)
        nn.init.ones_(self.buffer)


class Mine(Trainable):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(Config(), seed)

    def build(self) -> None:
        assert torch.empty(1).is_meta, "built with storage"
        self.network = nn.Sequential(nn.Linear(2, 100), nn.Tanh(), nn.Linear(100, 16))
        self.rule = Rule()

    def decode(self, z: Tensor) -> Tensor:
        return self.network(z).reshape(*z.shape[:-1], 4, 4)


def test_a_minimal_generator() -> None:
    G = Mine()
    assert (G.image_shape, G.latent_dim, G.card) == ((4, 4), 2, {})
    assert check_generator(G).passed
    with pytest.raises(NotImplementedError, match="Mine does not define stages"):
        G.stages()
    G.prepare(torch.zeros(1, 4, 4))
    G.finish(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))


def test_initial_weights_have_variance_one_over_fan_in_and_biases_are_zero() -> None:
    linear, convolution = skip_init(nn.Linear, 500, 400), skip_init(nn.Conv2d, 20, 50, 5)
    initialise(nn.Sequential(linear, convolution), torch.Generator().manual_seed(0))
    for layer, fan_in in ((linear, 500), (convolution, 500)):
        number = layer.weight.numel()
        # Six standard errors of a variance: 2e-9 for each of two layers.
        assert layer.weight.var().item() * fan_in == pytest.approx(1, abs=6 * math.sqrt(2 / number))
        assert abs(layer.weight.mean().item()) * math.sqrt(fan_in * number) < 6
        assert layer.bias is not None and not layer.bias.any()


def test_weights_follow_the_seed_and_layers_their_own_rule() -> None:
    one, same, other = Mine(1), Mine(1), Mine(2)
    for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.network[0].weight, other.network[0].weight)  # type: ignore[arg-type]
    assert torch.equal(other.rule.weight, torch.eye(3)) and other.rule.buffer.tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", [-1, 1.5, "0", 2**64])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(OptionError, match="seed: got"):
        Mine(seed)


def test_missing_methods_are_named() -> None:
    class Nothing(Trainable):
        pass

    with pytest.raises(NotImplementedError, match="Nothing does not define build"):
        Nothing(Config(), 0)
    with pytest.raises(NotImplementedError, match="Initialised does not define initialise"):
        initialise(Initialised(), torch.Generator())


def no_loss(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    return {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"modules": ()}, "modules: expected modules with weights that learn, found none"),
        ({"modules": (nn.Tanh(),)}, "modules: expected modules with weights"),
        ({"every": 0}, "every: got 0"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0"),
    ],
)
def test_bad_players(words: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Player(**{"modules": (skip_init(nn.Linear, 1, 1),), "loss": no_loss, **words})


def test_a_player_has_the_weights_of_all_its_modules() -> None:
    one, two = skip_init(nn.Linear, 1, 2), skip_init(nn.Linear, 2, 1)
    player = Player((one, two), no_loss)
    assert [id(p) for p in player.parameters] == [
        id(p) for p in (*one.parameters(), *two.parameters())
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"players": ()}, "players: nobody learns in the stage 'first'"),
        ({"share": 0.0}, "share: got 0.0"),
        ({"images": "reserve"}, r"images: unknown value 'reserve'.*did you mean 'reserved'"),
    ],
)
def test_bad_stages(words: dict[str, Any], message: str) -> None:
    player = Player((skip_init(nn.Linear, 1, 1),), no_loss)
    with pytest.raises(OptionError, match=message):
        Stage(**{"name": "first", "players": (player,), **words})
