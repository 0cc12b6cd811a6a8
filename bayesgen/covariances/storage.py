"""Covariances on disk: safetensors, nothing executed on loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bayesgen.distributions.covariance import Covariance, Diagonal, Isotropic
from bayesgen.distributions.dense_covariance import Dense, LowRank
from bayesgen.distributions.stationary import Stationary
from bayesgen.errors import DtypeError, FileFormatError
from bayesgen.models.files import read_tensors, write_tensors

_STORED = {kind.__name__: kind for kind in (Isotropic, Diagonal, Dense, LowRank, Stationary)}


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


def load_covariance(path: str | Path) -> Covariance:
    """Load a covariance that `save_covariance` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
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
    """
    tensors, header = read_tensors(Path(path), "covariance")
    settings: dict[str, Any] = {"log_scale": header.get("log_scale"), **tensors}
    kind = str(header.get("class"))
    if kind in ("Isotropic", "Dense", "Stationary"):
        settings["image_shape"] = header.get("image_shape")
    try:
        return _STORED[kind](**settings)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: holds no {kind} that makes sense ({error})") from error
