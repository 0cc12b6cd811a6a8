"""Results as ArviZ data and as netCDF files; nothing stored is ever executed on reading."""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from bayesgen._arviz import import_arviz, major_version
from bayesgen.errors import FileFormatError, ModelError
from bayesgen.log_density import LogDensity
from bayesgen.posterior import Posterior
from bayesgen.traces import elementwise_log_prob

if TYPE_CHECKING:
    import xarray

# Draws of a deterministic site enter ArviZ data only if they take no more than this.
MAX_DETERMINISTIC_BYTES = 64 * 2**20
IMAGE_DIMS = ("channel", "row", "col")
# Variables of these names would be taken for coordinates.
RESERVED = ("chain", "draw", "problem", "statistic")
FORMAT = "bayesgen-posterior-1"


def to_datatree(
    posterior: Posterior, *, deterministic: bool = True, log_likelihood: bool = False
) -> xarray.DataTree:
    """The result as an xarray tree in the ArviZ schema.

    Parameters
    ----------
    posterior
        A result of `bayesgen.infer`.
    deterministic
        Whether to include the draws of deterministic sites that take no more than 64 MiB.
    log_likelihood
        Whether to add the log density of every single measurement at every draw.

    Returns
    -------
    xarray.DataTree
        Groups ``posterior`` (``optima`` for a point estimate, so that nothing mistakes optima for
        draws), ``sample_stats``, ``observed_data``, ``statistics`` (mean and standard deviation,
        or mode, of every deterministic site) and ``log_likelihood``. Images have dimensions
        ``row`` and ``col``. A site whose name cannot be a variable's (``draw``, ``net/x``) gets a
        similar one (``draw_``, ``net.x``) and keeps its own as the attribute ``site``.
    """
    import xarray

    sites = list(posterior.latent_sites)
    if deterministic and posterior.has_model:
        sites += [
            site
            for site in posterior.deterministic_sites
            if posterior.num_bytes(site) <= MAX_DETERMINISTIC_BYTES
        ]
    draws_group = "optima" if posterior.is_point_estimate else "posterior"
    draws = ("chain", "draw")
    problems = () if posterior.num_problems is None else ("problem",)
    groups = {
        draws_group: _dataset({s: posterior.draws(s) for s in sites}, problems, draws),
        "sample_stats": _dataset({"lp": posterior.log_prob, **posterior.stats}, problems, draws),
    }
    if posterior.observed:
        groups["observed_data"] = _dataset(posterior.observed, problems)
    names = ("mode",) if posterior.is_point_estimate else ("mean", "std")
    statistics = {
        site: torch.stack([getattr(posterior, name)(site) for name in names], len(problems))
        for site in posterior.deterministic_sites
    }
    if statistics:
        group = _dataset(statistics, problems, ("statistic",))
        groups["statistics"] = group.assign_coords(statistic=list(names))
    if log_likelihood:
        groups["log_likelihood"] = _dataset(_log_likelihood(posterior), problems, draws)
    tree = xarray.DataTree.from_dict(groups)
    tree.attrs = {"bayesgen": json.dumps(posterior.attributes, sort_keys=True)}
    for key in ("created_at", "inference_library", "inference_library_version"):
        if key in posterior.attributes:
            tree.attrs[key] = str(posterior.attributes[key])
    return tree


def to_arviz(posterior: Posterior, *, log_likelihood: bool = False) -> Any:
    """``arviz.InferenceData`` (ArviZ < 1) or ``xarray.DataTree`` (ArviZ >= 1).

    Parameters
    ----------
    posterior
        A result of `bayesgen.infer`.
    log_likelihood
        Whether to add the log density of every single measurement at every draw, which
        ``arviz.loo`` needs.
    """
    tree = to_datatree(posterior, log_likelihood=log_likelihood)
    if major_version() >= 1:
        return tree
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    with warnings.catch_warnings():
        # ArviZ does not know the group of image statistics.
        warnings.simplefilter("ignore", UserWarning)
        return import_arviz().InferenceData(attrs=tree.attrs, **groups)


def save(posterior: Posterior, path: str | os.PathLike[str]) -> None:
    """Write a netCDF-4 file that ``arviz.from_netcdf`` and `load` read.

    It holds the latent draws, and mean and standard deviation of deterministic sites. The file
    appears under its name only when it is complete.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: folder {str(target.parent)!r} does not exist")
    if target.is_dir():
        raise IsADirectoryError(f"path: {str(target)!r} is a folder; expected a file to write")
    tree = to_datatree(posterior, deterministic=False)
    tree.attrs["format"] = FORMAT
    # In a folder of its own the file gets the permissions of any other new file.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        temporary = Path(folder) / "posterior.nc"
        tree.to_netcdf(temporary, engine="h5netcdf")
        os.replace(temporary, target)


def load(path: str | os.PathLike[str], model: Any = None, *args: Any) -> Posterior:
    """Read a file written by `save`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is damaged or is not a bayesgen posterior.
    ModelError
        If ``model`` with ``args`` is not what the result was computed from.
    """
    tree = _read(path)
    draws = tree["optima"] if "optima" in tree else tree["posterior"]
    latent = _tensors(draws.to_dataset())
    stats = _tensors(tree["sample_stats"].to_dataset())
    log_prob = stats.pop("lp")
    attributes = json.loads(tree.attrs["bayesgen"])
    statistics: dict[str, dict[str, Tensor]] = {}
    if "statistics" in tree:
        group = tree["statistics"].to_dataset()
        for name in map(str, group["statistic"].values):
            for site, value in _tensors(group.sel(statistic=name)).items():
                statistics.setdefault(site, {})[name] = value
    if model is None:
        return Posterior(latent, log_prob, stats, attributes, None, statistics)
    log_density = LogDensity(model, *args, batched=log_prob.ndim == 3)
    latent = {site: draws.to(log_density.device) for site, draws in latent.items()}
    log_prob = log_prob.to(log_density.device)
    stats = {name: value.to(log_density.device) for name, value in stats.items()}
    posterior = Posterior(latent, log_prob, stats, attributes, log_density)
    _check_model(posterior, log_density)
    return posterior


def _read(path: str | os.PathLike[str]) -> xarray.DataTree:
    import xarray

    if not Path(path).is_file():
        raise FileNotFoundError(f"path: no file {str(path)!r}")
    try:
        with xarray.open_datatree(path, engine="h5netcdf") as tree:
            tree = tree.load()
    except Exception as error:
        raise FileFormatError(
            f"path: {str(path)!r} ({Path(path).stat().st_size} bytes) is not a netCDF-4 file, or "
            f"is damaged: {error}"
        ) from error
    if tree.attrs.get("format") != FORMAT:
        raise FileFormatError(
            f"path: {str(path)!r} has format {tree.attrs.get('format')!r}; expected {FORMAT!r}, "
            "as written by Posterior.save"
        )
    return tree


def _check_model(posterior: Posterior, log_density: LogDensity) -> None:
    """The model must have the sites of the file and give the densities that are in it."""
    remedy = "Pass the model and the arguments that the result was computed with."
    expected = {name: tuple(site.shape) for name, site in log_density.sites.latent.items()}
    found = {name: tuple(posterior.site_shape(name)) for name in posterior.latent_sites}
    if expected != found:
        raise ModelError(
            f"model: has latent sites of shapes {expected}; the file holds {found}. {remedy}"
        )
    if log_density.num_problems != posterior.num_problems:
        raise ModelError(
            f"model: its arguments hold {log_density.num_problems} problems; the file holds "
            f"{posterior.num_problems}. {remedy}"
        )
    v = log_density.unconstrain(posterior.last_draws())
    with torch.no_grad():
        now = log_density.log_prob(v, jacobian=not posterior.is_point_estimate)
    stored = posterior.log_prob[..., -1]
    tolerance = (1e-3 if stored.dtype == torch.float32 else 1e-6) * (1.0 + stored.abs())
    # At the edge of a support the way to the unconstrained space and back loses all digits.
    wrong = ((now - stored).abs() > tolerance) & now.isfinite()
    if wrong.any():
        raise ModelError(
            f"model: gives log density {float(now[wrong][0]):.6g} to a draw for which the file "
            f"says {float(stored[wrong][0]):.6g}. {remedy}"
        )


def _dataset(
    values: Mapping[str, Tensor], problems: tuple[str, ...], leading: Sequence[str] = ()
) -> xarray.Dataset:
    """Variables ``(*leading, *problems, *site_dims)`` from tensors ``(*problems, *leading, ...)``.

    ArviZ expects chain and draw to come first.
    """
    import xarray

    dims = (*leading, *problems)
    arrays = {
        site: np.moveaxis(value.detach().cpu().numpy(), 0, len(leading))
        if problems
        else value.detach().cpu().numpy()
        for site, value in values.items()
    }
    sizes = dict(zip(dims, next(iter(arrays.values())).shape, strict=False))
    names = _variable_names(list(arrays))
    shapes = {names[site]: array.shape[len(dims) :] for site, array in arrays.items()}
    site_dims = _dimension_names(shapes, sizes)
    variables = {
        name: xarray.Variable(
            (*dims, *site_dims[name]), arrays[site], {} if name == site else {"site": site}
        )
        for site, name in names.items()
    }
    return xarray.Dataset(variables, coords={dim: np.arange(size) for dim, size in sizes.items()})


def _variable_names(sites: Sequence[str]) -> dict[str, str]:
    """A name for each site's variable: its own, unless netCDF or xarray cannot have it."""
    names: dict[str, str] = {}
    for site in sites:
        name = site.replace("/", ".")
        while name in RESERVED or (name != site and name in sites) or name in names.values():
            name += "_"
        names[site] = name
    return names


def _dimension_names(
    shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """Names of each variable's own dimensions: row and col for images.

    A dimension never has the name of a variable (ArviZ would drop that variable without a word),
    and never two sizes: the largest image has the plain names, others carry their site's.
    """
    taken, names = dict(sizes), {}
    for name, shape in sorted(shapes.items(), key=lambda item: -math.prod(item[1])):
        if len(shape) in (2, 3):
            dims = IMAGE_DIMS[-len(shape) :]
        else:
            dims = tuple(f"{name}_dim_{i}" for i in range(len(shape)))
        while any(
            dim in shapes or taken.get(dim, size) != size
            for dim, size in zip(dims, shape, strict=True)
        ):
            dims = tuple(f"{name}_{dim}" for dim in dims)
        taken.update(zip(dims, shape, strict=True))
        names[name] = dims
    return names


def _tensors(dataset: xarray.Dataset) -> dict[str, Tensor]:
    """Tensors ``(*problems, ...)`` by site."""
    tensors = {}
    for name, variable in dataset.data_vars.items():
        if "problem" in variable.dims:
            variable = variable.transpose("problem", ...)
        site = str(variable.attrs.get("site", name))
        tensors[site] = torch.from_numpy(np.array(variable.values, order="C"))
    return tensors


def _log_likelihood(posterior: Posterior) -> dict[str, Tensor]:
    sites = list(posterior.model.sites.observed)

    def extract(trace: poutine.Trace) -> dict[str, Tensor]:
        nodes: Mapping[str, Any] = trace.nodes
        return {name: elementwise_log_prob(nodes[name]) for name in sites}

    lead = posterior.log_prob.shape
    found = posterior.evaluate(extract)
    return {n: v.reshape(lead + v.shape[len(lead) - 1 :]) for n, v in found.items()}
