from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save, save_file

from bayesgen.errors import FileFormatError
from bayesgen.models import VAE, save_generator
from bayesgen.models.files import load_generator


@pytest.fixture
def model() -> VAE:
    return VAE((8, 8), 2, width=16, channels=4, noise_level=0.1, seed=5)


@pytest.fixture
def path(model: VAE, tmp_path: Path) -> Path:
    save_generator(model, tmp_path / "model.safetensors", card={"data": "none", "seed": 5})
    return tmp_path / "model.safetensors"


def test_round_trip(model: VAE, path: Path) -> None:
    loaded = load_generator(path)
    assert loaded.config == model.config
    assert loaded.card == {"data": "none", "seed": 5}
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    z = torch.ones(2)
    assert torch.equal(loaded(z), model(z))


def test_files_are_reproducible_and_alone(model: VAE, path: Path) -> None:
    again = path.with_name("again")
    save_generator(model, again, card={"seed": 5, "data": "none"})
    assert again.read_bytes() == path.read_bytes()
    assert {file.name for file in path.parent.iterdir()} == {"again", path.name}


def test_half_precision_halves_the_file_and_loads_in_single(model: VAE, path: Path) -> None:
    half = path.with_name("half")
    save_generator(model, half, half=True)
    assert half.stat().st_size < 0.75 * path.stat().st_size
    loaded, z = load_generator(half), torch.ones(2)
    assert loaded(z).dtype == torch.float32
    torch.testing.assert_close(loaded(z), model(z), rtol=0, atol=2e-3)


def rewrite(path: Path, **changes: Any) -> None:
    """Change entries of the header, as a file of another kind would have them."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    outer = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["bayesgen"]
    header = json.loads(outer) | changes
    path.write_bytes(save(load(path.read_bytes()), {"bayesgen": json.dumps(header)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "GAN"}, "unknown architecture 'GAN'; expected one of VAE"),
        ({"architecture": ["VAE"]}, "unknown architecture"),
        ({"architecture": None}, "unknown architecture None"),
        ({"kind": "checkpoint"}, "expected a generator, found a checkpoint"),
        ({"config": {"latent_dim": 2}}, "cannot have the settings"),
        ({"config": {"image_shape": [8, 8], "latent_dim": -1}}, "cannot have the settings"),
        ({"config": None}, "cannot have the settings"),
        ({"config": {"image_shape": [8, 8], "latent_dim": 3}}, "weights of another architecture"),
    ],
)
def test_other_architectures_are_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(path, **changes)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_generator(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_files_are_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match="not a safetensors file, or truncated"):
        load_generator(path)


def test_foreign_files_are_refused(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(FileFormatError, match="not from bayesgen"):
        load_generator(path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        load_generator(path)


def test_weights_that_are_not_finite_are_refused(model: VAE, path: Path) -> None:
    model.decoder[0].weight.data[0, 0] = torch.nan  # type: ignore[index, union-attr]
    save_generator(model, path)
    with pytest.raises(FileFormatError, match=r"decoder.0.weight holds NaN or infinity"):
        load_generator(path)


def test_a_failed_save_leaves_the_old_file(model: VAE, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_generator(model, path, card={"set": {1}})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
