from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

import bayesgen.models
from bayesgen.errors import DataError, DtypeError, FileFormatError
from bayesgen.models import (
    AE,
    GAN,
    VAE,
    WGAN,
    Flow,
    Generator,
    Glow,
    LinearGenerator,
    RealNVP,
    StructuredVAE,
    Trainable,
    save_generator,
)
from bayesgen.models.files import Stored, load_generator, read_tensors, write_tensors

SMALL: dict[str, Any] = {"width": 8, "channels": 2}
# Settings that are not the defaults, which a file might otherwise have lost unnoticed.
KINDS: dict[str, Callable[[], Stored]] = {
    "AE": lambda: AE((8, 8), 2, **SMALL, seed=5),
    "AE with a mixture": lambda: AE((8, 8), 2, components=3, **SMALL, seed=5),
    "VAE": lambda: VAE((3, 8, 8), 2, noise_level=0.2, layout="convolution", **SMALL, seed=5),
    "VAE with learnt noise": lambda: VAE((8, 8), 2, learn_noise=True, **SMALL, seed=5),
    "GAN": lambda: GAN((8, 8), 2, penalty=0.5, **SMALL, seed=5),
    "WGAN": lambda: WGAN((8, 8), 2, critic_steps=2, **SMALL, seed=5),
    "StructuredVAE": lambda: StructuredVAE((8, 8), 2, radius=1, joint=True, **SMALL, seed=5),
    "Glow": lambda: Glow((8, 8), levels=2, steps=(2, 1), width=4, seed=5),
    "RealNVP": lambda: RealNVP(6, layers=2, width=4, seed=5),
    "LinearGenerator": lambda: LinearGenerator.from_tensors(
        torch.linspace(-1, 2, 32).reshape(4, 4, 2).square(), torch.full((4, 4), 0.2), 0.3
    ),
}


@pytest.fixture
def model() -> VAE:
    return VAE((8, 8), 2, width=16, channels=4, noise_level=0.1, seed=5)


@pytest.fixture
def path(model: VAE, tmp_path: Path) -> Path:
    save_generator(model, tmp_path / "model.safetensors", card={"data": "none", "seed": 5})
    return tmp_path / "model.safetensors"


def test_no_kind_is_missing_from_the_table() -> None:
    public = {getattr(bayesgen.models, name) for name in bayesgen.models.__all__}
    kinds = {k for k in public if isinstance(k, type) and issubclass(k, Generator)}
    listed = {type(make()) for make in KINDS.values()}
    assert kinds - {Generator, Trainable, Flow} == listed


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_round_trip(name: str, half: bool, tmp_path: Path) -> None:
    model, card = KINDS[name](), {"data": "none", "losses": {"mse": 0.25}}
    save_generator(model, tmp_path / "file", card=card, half=half)
    loaded = load_generator(tmp_path / "file")
    assert type(loaded) is type(model) and loaded.config == model.config
    assert loaded.card == card
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    z = torch.linspace(-1, 1, model.latent_dim)
    assert loaded(z).dtype == torch.float32
    if not half:
        assert torch.equal(loaded(z), model(z))
    torch.testing.assert_close(loaded(z), model(z), rtol=0.01, atol=0.01)
    if isinstance(model, LinearGenerator):
        # What is computed from the weights, and not saved.
        torch.testing.assert_close(
            loaded.encode(model(z)), model.encode(model(z)), atol=0.02, rtol=0
        )


def test_files_are_reproducible_and_alone(model: VAE, path: Path) -> None:
    again = path.with_name("again")
    save_generator(model, again, card={"seed": 5, "data": "none"})
    assert again.read_bytes() == path.read_bytes()
    assert {file.name for file in path.parent.iterdir()} == {"again", path.name}


def test_half_precision_halves_the_file_and_keeps_integers(tmp_path: Path) -> None:
    model = Glow((8, 8), levels=1, steps=1, width=16)
    sizes = {}
    for half in (False, True):
        save_generator(model, tmp_path / "file", half=half)
        sizes[half] = (tmp_path / "file").stat().st_size
        stored = load((tmp_path / "file").read_bytes())
        whole = {n for n, t in model.state_dict().items() if not t.is_floating_point()}
        assert whole, "no integers to test with"
        for name, tensor in stored.items():
            expected = model.state_dict()[name].dtype if name in whole or not half else torch.half
            assert tensor.dtype == expected
    assert sizes[True] < 0.75 * sizes[False]


def test_double_precision_comes_back_in_single(tmp_path: Path) -> None:
    model = VAE((8, 8), 2, **SMALL).double()
    save_generator(model, tmp_path / "file")
    loaded, z = load_generator(tmp_path / "file"), torch.ones(2)
    assert loaded(z).dtype == torch.float32
    torch.testing.assert_close(loaded(z), model(z.double()).float())


def rewrite(path: Path, **changes: Any) -> None:
    """Change entries of the header, as a file of another kind would have them."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    outer = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["bayesgen"]
    header = json.loads(outer) | changes
    path.write_bytes(save(load(path.read_bytes()), {"bayesgen": json.dumps(header)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "Diffusion"}, r"unknown architecture 'Diffusion'; expected one of AE, "),
        ({"architecture": ["VAE"]}, "unknown architecture"),
        ({"architecture": None}, "unknown architecture None"),
        ({"architecture": "GAN"}, "GAN cannot have the settings"),
        ({"kind": "checkpoint"}, "expected a generator, found a checkpoint"),
        ({"config": {"latent_dim": 2}}, "cannot have the settings"),
        ({"config": {"image_shape": [8, 8], "latent_dim": -1}}, "cannot have the settings"),
        ({"config": {"image_shape": [8, 8], "latent_dim": 2, "width": 10**15}}, "cannot have"),
        ({"config": None}, "cannot have the settings"),
        ({"config": {"image_shape": [8, 8], "latent_dim": 3}}, "weights of another architecture"),
    ],
    ids=str,
)
def test_other_architectures_are_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(path, **changes)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_generator(path)
    assert str(path) in str(caught.value)


def numbers(**changes: Any) -> dict[str, Any]:
    """A header's settings that promise far more numbers than the file holds."""
    return {"config": {"image_shape": [8, 8], "latent_dim": 2, **SMALL, **changes}}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("VAE", numbers(width=2_000_000), r"should be \(.*2000000.*\), found "),
        ("VAE", numbers(blocks=10**9), "VAE cannot have the settings"),
        ("VAE", numbers(channels=10**7), "weights of another architecture: decoder"),
        ("AE", numbers(components=10**8), r"log_weights should be \(100000000,\), found nothing"),
        ("GAN", numbers(width=2_000_000), "should be"),
        ("RealNVP", {"config": {"image_shape": [6], "layers": 10**9, "width": 4}}, "cannot have"),
        ("RealNVP", {"config": {"image_shape": [10**5], "layers": 1, "width": 4}}, "should be"),
        ("Glow", {"config": {"image_shape": [8, 8], "levels": 1, "steps": [10**9]}}, "cannot have"),
        (
            "LinearGenerator",
            {"config": {"image_shape": [1000, 1000], "latent_dim": 10**5}},
            r"mean should be \(1000, 1000\), found \(4, 4\)",
        ),
    ],
    ids=str,
)
def test_promises_of_a_header_cost_nothing(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Built before they are compared, these would take minutes and more memory than there is."""
    path = tmp_path / "file"
    save_generator(KINDS[kind](), path)
    rewrite(path, **changes)
    before = time.process_time()
    with pytest.raises(FileFormatError, match=message) as caught:
        load_generator(path)
    assert time.process_time() - before < 3
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_loaded_generators_have_all_that_made_ones_have(name: str, tmp_path: Path) -> None:
    """They come by their values in another way."""
    model = KINDS[name]().eval().requires_grad_(False)
    save_generator(model, tmp_path / "file")
    loaded = load_generator(tmp_path / "file")
    for ours, theirs in zip(loaded.modules(), model.modules(), strict=True):
        assert type(ours) is type(theirs) and vars(ours).keys() == vars(theirs).keys()
    made = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    read = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert list(read) == list(made)
    for part, tensor in read.items():
        assert type(tensor) is type(made[part]) and torch.equal(tensor, made[part]), part
        assert tensor.stride() == made[part].stride()


def test_a_loaded_generator_does_not_depend_on_its_file(path: Path, model: VAE) -> None:
    loaded = load_generator(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(loaded(torch.ones(2)), model(torch.ones(2)))


@pytest.mark.parametrize(("to", "found"), [(torch.int32, "int32"), (torch.complex64, "complex64")])
def test_weights_of_another_type_are_refused(path: Path, to: torch.dtype, found: str) -> None:
    tensors, header = read_tensors(path, "generator")
    name = "decoder.0.weight"
    write_tensors(path, tensors | {name: tensors[name].to(to)}, header)
    with pytest.raises(
        FileFormatError, match=rf"{name} should hold numbers like .*, found .*{found}"
    ):
        load_generator(path)


def test_integers_are_not_rounded_numbers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_generator(KINDS["RealNVP"](), path)
    tensors, header = read_tensors(path, "generator")
    whole = next(name for name, tensor in tensors.items() if not tensor.is_floating_point())
    write_tensors(path, tensors | {whole: tensors[whole].float()}, header)
    with pytest.raises(FileFormatError, match=rf"{whole} should hold numbers like torch.int64"):
        load_generator(path)


@pytest.mark.parametrize(
    ("card", "kind"), [([1], "list"), (3, "int"), ("a", "str"), (None, "None")]
)
def test_cards_are_objects(path: Path, card: Any, kind: str) -> None:
    rewrite(path, card=card)
    with pytest.raises(FileFormatError, match=f"card should be a JSON object, found a {kind}") as e:
        bayesgen.models.load(path)
    assert str(path) in str(e.value)


def test_a_header_of_endless_depth_is_refused(path: Path) -> None:
    path.write_bytes(save(load(path.read_bytes()), {"bayesgen": 10**5 * "["}))
    with pytest.raises(FileFormatError, match="not from bayesgen"):
        load_generator(path)


def test_classes_of_users_are_named_to_be_loaded(tmp_path: Path) -> None:
    class Mine(VAE):
        pass

    save_generator(Mine((8, 8), 2, **SMALL), tmp_path / "file")
    with pytest.raises(FileFormatError, match=r"unknown architecture 'Mine'.*kinds=\[...\]"):
        load_generator(tmp_path / "file")
    assert type(load_generator(tmp_path / "file", kinds=[Mine])) is Mine


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_files_are_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match="not a safetensors file, or truncated"):
        load_generator(path)


def test_foreign_files_are_refused(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(FileFormatError, match="not from bayesgen"):
        load_generator(path)
    with pytest.raises(FileFormatError, match="expected a file, but this is a folder"):
        load_generator(path.parent)
    with pytest.raises(FileNotFoundError):
        load_generator(path.with_name("none"))


def test_nothing_in_a_file_is_executed(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path.with_name("executed")),)

    torch.save(Evil(), path)
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        load_generator(path)
    assert list(path.parent.iterdir()) == [path]
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert path.with_name("executed").exists(), "the file was harmless"


def test_weights_that_are_not_finite_are_refused(model: VAE, path: Path) -> None:
    before = path.read_bytes()
    tensors, header = read_tensors(path, "generator")
    tensors["decoder.0.weight"][0, 0] = torch.nan
    write_tensors(path, tensors, header)
    with pytest.raises(FileFormatError, match=r"decoder.0.weight holds NaN or infinity"):
        load_generator(path)
    path.write_bytes(before)
    weight: Tensor = model.decoder[0].weight.data  # type: ignore[assignment, union-attr]
    weight[0, 0] = 1e5
    save_generator(model, path.with_name("large"))
    with pytest.raises(DataError, match=r"decoder.0.weight is infinite or NaN in half precision"):
        save_generator(model, path, half=True)
    weight[0, 0] = torch.nan
    with pytest.raises(DataError, match=r"weight decoder.0.weight is infinite or NaN$"):
        save_generator(model, path)
    assert path.read_bytes() == before


def test_other_generators_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(DtypeError, match="expected a Trainable or a LinearGenerator, got Gen"):
        save_generator(Generator((4,), 1), tmp_path / "file")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(model: VAE, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_generator(model, path, card={"set": {1}})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_folders_are_made_and_read_by_others(model: VAE, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    save_generator(model, path)
    assert path.stat().st_mode & 0o777 == 0o644
