"""Results as ArviZ data and as netCDF files; nothing is ever pickled."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from bayesgen.errors import FileFormatError, ModelError
from bayesgen.log_density import LogDensity
from bayesgen.model_sites import elementwise_log_prob
from bayesgen.posterior import Posterior

if TYPE_CHECKING:
    import xarray

# Draws of a deterministic site enter ArviZ data only if they take no more than this.
MAX_DETERMINISTIC_BYTES = 64 * 2**20
IMAGE_DIMS = ("channel", "row", "col")
FORMAT = "bayesgen-posterior-1"


def to_datatree(
    posterior: Posterior, *, deterministic: bool = True, log_likelihood: bool = False
) -> xarray.DataTree:
    """The result as an xarray tree in the ArviZ schema.

    Groups: ``posterior`` (latent sites and, if asked for, deterministic ones of which all draws
    fit into 64 MiB), ``sample_stats``, ``observed_data``, ``statistics`` (mean and standard
    deviation of every deterministic site), and ``log_likelihood`` on request. Images have dimensions ``row``
    and ``col``; chains and draws come first, as ArviZ expects.
    """
    import xarray

    attributes = {"bayesgen": json.dumps(posterior.attributes, sort_keys=True)}
    attributes |= {
        key: str(posterior.attributes[key])
        for key in ("created_at", "inference_library", "inference_library_version")
        if key in posterior.attributes
    }
    sites = list(posterior.latent_sites)
    if deterministic and posterior._log_density is not None:
        small = MAX_DETERMINISTIC_BYTES
        sites += [s for s in posterior.deterministic_sites if posterior._num_bytes(s) <= small]
    groups = {
        "posterior": _draws_dataset({s: posterior.draws(s) for s in sites}, posterior),
        "sample_stats": _draws_dataset({"lp": posterior.log_prob, **posterior.stats}, posterior),
    }
    if posterior.observed:
        groups["observed_data"] = _dataset(_observed(posterior), {}, posterior)
    statistics = _statistics(posterior)
    if statistics:
        groups["statistics"] = _dataset(statistics, {}, posterior)
    if log_likelihood:
        groups["log_likelihood"] = _draws_dataset(_log_likelihood(posterior), posterior)
    tree = xarray.DataTree.from_dict(groups)
    tree.attrs = attributes
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz as az
    if int(az.__version__.split(".")[0]) >= 1:
        return tree
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    with warnings.catch_warnings():
        # ArviZ does not know the group of image statistics.
        warnings.simplefilter("ignore", UserWarning)
        return az.InferenceData(attrs=tree.attrs, **groups)


def save(posterior: Posterior, path: str | os.PathLike[str]) -> None:
    """Write a netCDF-4 file that ``arviz.from_netcdf`` and `load` read.

    It holds the latent draws, and mean and standard deviation of deterministic sites. The file
    appears under its name only when it is complete.
    """
    target = Path(path)
    tree = to_datatree(posterior, deterministic=False)
    tree.attrs["format"] = FORMAT
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: folder {str(target.parent)!r} does not exist")
    handle, name = tempfile.mkstemp(suffix=".tmp", prefix=target.name, dir=target.parent)
    os.close(handle)
    try:
        tree.to_netcdf(name, engine="h5netcdf")
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def load(path: str | os.PathLike[str], model: Any = None, *args: Any) -> Posterior:
    """Read a file written by `save`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is damaged or is not a bayesgen posterior.
    """
    import xarray

    if not Path(path).is_file():
        raise FileNotFoundError(f"path: no file {str(path)!r}")
    try:
        with xarray.open_datatree(path, engine="h5netcdf") as tree:
            tree = tree.load()
    except Exception as error:
        raise FileFormatError(f"path: {str(path)!r} is not a readable netCDF-4 file") from error
    if tree.attrs.get("format") != FORMAT:
        raise FileFormatError(
            f"path: {str(path)!r} has format {tree.attrs.get('format')!r}; expected {FORMAT!r}, "
            "as written by Posterior.save"
        )
    attributes = json.loads(tree.attrs["bayesgen"])
    stats = _tensors(tree["sample_stats"].to_dataset())
    latent = _tensors(tree["posterior"].to_dataset())
    log_density = None
    batched = "problem" in tree["sample_stats"]["lp"].dims
    if model is not None:
        log_density = LogDensity(model, *args, batched=batched)
        if set(latent) != set(log_density.sites.latent):
            raise ModelError(
                f"model: has latent sites {sorted(log_density.sites.latent)}; the file holds "
                f"{sorted(latent)}. Pass the model that the result was computed with."
            )
    statistics = _tensors(tree["statistics"].to_dataset()) if "statistics" in tree else {}
    moments = {
        name.removesuffix("_mean"): (value, statistics[f"{name.removesuffix('_mean')}_std"])
        for name, value in statistics.items()
        if name.endswith("_mean")
    }
    return Posterior(latent, stats.pop("lp"), stats, attributes, log_density, moments)


def _draws_dataset(values: dict[str, Tensor], posterior: Posterior) -> xarray.Dataset:
    """Variables with dimensions chain, draw, then problem if batched."""
    if posterior.num_problems is not None:
        values = {name: value.movedim(0, 2) for name, value in values.items()}
    sizes = {"chain": posterior.num_chains, "draw": posterior.num_draws}
    return _dataset(values, sizes, posterior)


def _dataset(
    values: dict[str, Tensor], leading: dict[str, int], posterior: Posterior
) -> xarray.Dataset:
    import xarray

    sizes = dict(leading)
    if posterior.num_problems is not None:
        sizes["problem"] = posterior.num_problems
    names = _dimension_names({n: v.shape[len(sizes) :] for n, v in values.items()})
    variables = {n: ((*sizes, *names[n]), v.detach().cpu().numpy()) for n, v in values.items()}
    coordinates = {name: np.arange(size) for name, size in sizes.items()}
    return xarray.Dataset(variables, coords=coordinates)


def _dimension_names(shapes: dict[str, torch.Size]) -> dict[str, tuple[str, ...]]:
    """Names of each variable's dimensions: row and col for images.

    A dimension never has the name of a variable (ArviZ would drop that variable without a word),
    and never two sizes.
    """
    images = [shape[-2:] for shape in shapes.values() if len(shape) in (2, 3)]
    shared = len(set(images)) == 1 and not set(IMAGE_DIMS) & set(shapes)
    names = {}
    for name, shape in shapes.items():
        if len(shape) in (2, 3):
            dims = IMAGE_DIMS[-len(shape) :]
            names[name] = dims if shared else tuple(f"{name}_{dim}" for dim in dims)
        else:
            names[name] = tuple(f"{name}_dim_{i}" for i in range(len(shape)))
    return names


def _tensors(dataset: xarray.Dataset) -> dict[str, Tensor]:
    tensors = {}
    for name, variable in dataset.data_vars.items():
        if "problem" in variable.dims:
            variable = variable.transpose("problem", ...)
        tensors[str(name)] = torch.from_numpy(np.ascontiguousarray(variable.values))
    return tensors


def _observed(posterior: Posterior) -> dict[str, Tensor]:
    """Observed values, with a leading axis of problems if batched."""
    if posterior.num_problems is None:
        return posterior.observed
    sites = list(posterior.observed)
    first = {name: posterior.draws(name)[:, 0, :1] for name in posterior.latent_sites}
    values = posterior.model.map_draws(lambda t: {n: t.nodes[n]["value"] for n in sites}, first)
    return {name: value[:, 0] for name, value in values.items()}


def _statistics(posterior: Posterior) -> dict[str, Tensor]:
    statistics: dict[str, Tensor] = {}
    for site in posterior.deterministic_sites:
        if posterior.is_point_estimate:
            statistics[f"{site}_mode"] = posterior.mode(site)
        else:
            statistics[f"{site}_mean"] = posterior.mean(site)
            statistics[f"{site}_std"] = posterior.std(site)
    return statistics


def _log_likelihood(posterior: Posterior) -> dict[str, Tensor]:
    sites = list(posterior.observed)

    def extract(trace: poutine.Trace) -> dict[str, Tensor]:
        return {name: elementwise_log_prob(trace.nodes[name]) for name in sites}

    flat = {name: posterior._flat(posterior.draws(name)) for name in posterior.latent_sites}
    found = posterior.model.map_draws(extract, flat)
    shape = posterior.log_prob.shape
    lead = len(shape) - 1
    return {name: value.reshape(*shape, *value.shape[lead:]) for name, value in found.items()}
