"""Generators by name: those shipped with bayesgen, and those a user has trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bayesgen.errors import OptionError, unknown_option
from bayesgen.models.files import Kind, Stored, load_generator

_WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """Names of the shipped generators.

    Examples
    --------
    >>> [name for name in names() if name.startswith("mnist-vae")]
    ['mnist-vae', 'mnist-vae-32', 'mnist-vae-8']
    """
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))


def load(name_or_path: str | Path, *, kinds: Sequence[Kind] = ()) -> Stored:
    """Load a generator, in evaluation mode and with frozen weights.

    Parameters
    ----------
    name_or_path
        The name of a shipped generator or the path of a file written by `save_generator` or by
        ``bayesgen train``.
    kinds
        Classes of your own that the file may hold a generator of.

    Returns
    -------
    Trainable or LinearGenerator
        The generator, of the class it was saved from, in single precision on the CPU; move it with
        ``G.to(...)``. Its attribute ``card`` says on what and how it was trained and how good it
        is.

    Raises
    ------
    OptionError
        If there is neither a generator nor a file of that name.
    FileFormatError
        If the file is damaged or of another kind or architecture.

    Examples
    --------
    >>> G = load("mnist-vae")
    >>> G.image_shape, G.latent_dim
    ((28, 28), 16)
    """
    if str(name_or_path) in names():
        return load_generator(_WEIGHTS / f"{name_or_path}.safetensors")
    if not Path(name_or_path).is_file():
        problem = unknown_option("name_or_path", str(name_or_path), names())
        raise OptionError(f"{problem}, and there is no file of that name")
    return load_generator(name_or_path, kinds=kinds)
