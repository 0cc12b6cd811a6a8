"""Generators and training states on disk: safetensors, nothing executed on loading.

Safetensors allows several text entries beside the tensors but writes them in random order. One
entry with sorted JSON keeps files byte-for-byte reproducible.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bayesgen.errors import DataError, DtypeError, FileFormatError
from bayesgen.models.autoencoder import AE
from bayesgen.models.gan import GAN, WGAN
from bayesgen.models.glow import Glow
from bayesgen.models.linear import LinearGenerator
from bayesgen.models.real_nvp import RealNVP
from bayesgen.models.structured_vae import StructuredVAE
from bayesgen.models.trainable import Trainable, without_memory
from bayesgen.models.vae import VAE

Stored: TypeAlias = Trainable | LinearGenerator
Kind: TypeAlias = type[Trainable] | type[LinearGenerator]

_KEY = "bayesgen"
_KINDS: tuple[Kind, ...] = (AE, GAN, Glow, LinearGenerator, RealNVP, StructuredVAE, VAE, WGAN)
# What files hold beside integers; half precision is for small files.
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON header; the file appears whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(plain, {_KEY: json.dumps(header, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, if its header says it is of the given kind.

    Raises
    ------
    FileFormatError
        If the file is damaged, was not written by bayesgen, or holds something else.
    """
    if path.is_dir():
        raise FileFormatError(f"{path}: expected a file, but this is a folder")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FileFormatError(
            f"{path}: not a safetensors file, or truncated ({path.stat().st_size} bytes; {error})"
        ) from error
    try:
        header = json.loads(metadata[_KEY])
        found = header["kind"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: a safetensors file, but not from bayesgen") from error
    if found != kind:
        raise FileFormatError(f"{path}: expected a {kind}, found a {found}")
    return tensors, header


def save_generator(
    generator: Stored,
    path: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Save a generator with its model card.

    Parameters
    ----------
    generator
        The generator; its architecture and its weights are saved.
    path
        The file to write, customarily ``*.safetensors``; what was there is replaced.
    card
        The model card: anything JSON can hold (data, recipe, evaluation, licence).
    half
        Round weights to half precision, which halves the file. The rounding, one part in 2000,
        is far below what training leaves undetermined.

    Raises
    ------
    DtypeError
        If the generator is not one that can be saved.
    DataError
        If a weight is infinite or NaN, or too large for half precision.

    Examples
    --------
    >>> import tempfile
    >>> from bayesgen.models import VAE, load
    >>> G = VAE((28, 28), latent_dim=8, width=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_generator(G, folder + "/mine.safetensors", card={"data": "none"})
    ...     same = load(folder + "/mine.safetensors")
    >>> same.config == G.config, same.card
    (True, {'data': 'none'})
    """
    if not isinstance(generator, Trainable | LinearGenerator):
        raise DtypeError(
            f"generator: expected a Trainable or a LinearGenerator, got {type(generator).__name__}"
        )
    weights = generator.state_dict()
    if half:
        weights = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise DataError(
                f"generator: weight {name} is infinite or NaN{' in half precision' * half}"
            )
    header = {
        "kind": "generator",
        "architecture": type(generator).__name__,
        "config": asdict(generator.config),
        "card": dict(card or {}),
    }
    write_tensors(Path(path), weights, header)


def load_generator(path: str | Path, *, kinds: Sequence[Kind] = ()) -> Stored:
    """Load a generator that `save_generator` wrote, in evaluation mode and with frozen weights.

    Weights come back in single precision; convert with ``G.to(torch.float64)``. The model card is
    the attribute ``card``.

    Parameters
    ----------
    path
        The file.
    kinds
        Classes that the generator may have, beside those of bayesgen.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is damaged, of an unknown architecture, or its weights do not fit it. For the
        classes of bayesgen that is found before memory is taken for what the header promises.
    """
    path = Path(path)
    weights, header = read_tensors(path, "generator")
    card = header.get("card", {})
    if not isinstance(card, dict):
        raise FileFormatError(
            f"{path}: the model card should be a JSON object, found a {type(card).__name__}"
        )
    generator = _build(header, weights, path, {kind.__name__: kind for kind in (*_KINDS, *kinds)})
    generator.card = card
    return generator.eval().requires_grad_(False)


def _build(
    header: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path, kinds: Mapping[str, Kind]
) -> Stored:
    """Make the generator that a header describes, once it is clear that the weights fit it."""
    name, config = header.get("architecture"), header.get("config", {})
    if not isinstance(name, str) or name not in kinds:
        raise FileFormatError(
            f"{path}: unknown architecture {name!r}; expected one of {', '.join(kinds)}, or give "
            "the class: load(path, kinds=[...])"
        )
    kind = kinds[name]
    try:
        if kind not in _KINDS:
            generator = kind(**config)
            fill(generator, weights, path)
            return generator
        # Ours have no memory before it is known that the weights fit.
        with without_memory():
            generator = kind(**config)
    except FileFormatError:
        raise
    # Sizes beyond all memory are RuntimeErrors.
    except (TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        raise FileFormatError(f"{path}: {name} cannot have the settings {config}") from error
    check_weights(generator.state_dict(), weights, path)
    _adopt(generator, weights)
    return generator


def _adopt(sketch: Stored, weights: Mapping[str, Tensor]) -> None:
    """Give a generator without memory the weights of a file."""
    wanted = sketch.state_dict()
    # Copies: what was read may be the file itself, which somebody may change.
    own = {name: tensor.to(wanted[name].dtype, copy=True) for name, tensor in weights.items()}
    sketch.load_state_dict(own, assign=True)


def fill(
    generator: torch.nn.Module, weights: Mapping[str, Tensor], path: Path, part: str = ""
) -> None:
    """Copy weights into a generator after checking that every one is there and fits."""
    check_weights(generator.state_dict(), weights, path, part)
    generator.load_state_dict(dict(weights))


def check_weights(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, part: str = ""
) -> None:
    """Refuse tensors of other names, shapes or types than wanted, or with NaN or infinity.

    Parameters
    ----------
    wanted
        Tensors like those that are expected; their values do not matter.
    found
        What was read.
    path
        From where.
    part
        What the names begin with in the file.

    Raises
    ------
    FileFormatError
        That names the first tensor that is wrong.
    """
    for name in sorted(wanted.keys() | found.keys()):
        here = tuple(found[name].shape) if name in found else "nothing"
        there = tuple(wanted[name].shape) if name in wanted else "nothing"
        if here != there:
            raise FileFormatError(
                f"{path}: weights of another architecture: {part}{name} should be {there}, found "
                f"{here}"
            )
    for name, tensor in found.items():
        dtype = wanted[name].dtype
        if tensor.dtype not in (_FLOATING if dtype.is_floating_point else (dtype,)):
            raise FileFormatError(
                f"{path}: {part}{name} should hold numbers like {dtype}, found {tensor.dtype}"
            )
        if not tensor.isfinite().all():
            raise FileFormatError(f"{path}: weight {part}{name} holds NaN or infinity")
