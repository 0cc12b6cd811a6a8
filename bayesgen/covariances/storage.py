"""Covariances on disk: safetensors, nothing executed on loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bayesgen.distributions.covariance import Covariance, Diagonal, Isotropic
from bayesgen.distributions.dense_covariance import Dense, LowRank
from bayesgen.distributions.stationary import Stationary
from bayesgen.errors import DtypeError, FileFormatError, OptionError, unknown_option
from bayesgen.models.files import read_tensors, write_tensors

_SHIPPED = Path(__file__).parent / "fitted"
_STORED = {kind.__name__: kind for kind in (Isotropic, Diagonal, Dense, LowRank, Stationary)}


def names() -> list[str]:
    """Names of the shipped covariances, those of the generators they belong to.

    Examples
    --------
    >>> names()
    ['mnist-vae']
    """
    return sorted(path.stem for path in _SHIPPED.glob("*.safetensors"))


def save_covariance(C: Covariance, path: str | Path) -> None:
    """Save a covariance as safetensors.

    Parameters
    ----------
    C
        One of this module's.
    path
        The file to write, customarily ``*.safetensors``; what was there is replaced.

    Raises
    ------
    DtypeError
        If it is none of these.
    """
    if type(C).__name__ not in _STORED:
        raise DtypeError(f"C: expected one of {', '.join(_STORED)}, got {type(C).__name__}")
    header = {
        "kind": "covariance",
        "class": type(C).__name__,
        "image_shape": C.image_shape,
        "log_scale": C.log_scale,
    }
    write_tensors(Path(path), C.state_dict(), header)


def load_covariance(name_or_path: str | Path) -> Covariance:
    """Load a covariance that `save_covariance` wrote, or one that is shipped.

    Parameters
    ----------
    name_or_path
        The path of a file; or ``"mnist-vae"``, for what that generator leaves out of digits:
        `LowRank` with 100 modes, found from test images 1000 to 4999 of MNIST.

    Raises
    ------
    OptionError
        If there is neither a covariance nor a file of that name.
    FileFormatError
        If the file is damaged, or holds no covariance.

    Examples
    --------
    >>> import tempfile
    >>> from bayesgen.covariances import Isotropic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_covariance(Isotropic((2, 2), 0.5), folder + "/mine.safetensors")
    ...     same = load_covariance(folder + "/mine.safetensors")
    >>> same.variance
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]])
    >>> load_covariance("mnist-vae").image_shape
    (28, 28)
    """
    path = Path(name_or_path)
    if str(name_or_path) in names():
        path = _SHIPPED / f"{name_or_path}.safetensors"
    elif not path.is_file():
        problem = unknown_option("name_or_path", str(name_or_path), names())
        raise OptionError(f"{problem}, and there is no file of that name")
    tensors, header = read_tensors(path, "covariance")
    settings: dict[str, Any] = {"log_scale": header.get("log_scale"), **tensors}
    kind = str(header.get("class"))
    if kind in ("Isotropic", "Dense", "Stationary"):
        settings["image_shape"] = header.get("image_shape")
    try:
        return _STORED[kind](**settings)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: holds no {kind} that makes sense ({error})") from error
