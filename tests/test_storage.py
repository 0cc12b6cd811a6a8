from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from torch import Tensor

import bayesgen as bg
from bayesgen import Posterior, storage
from bayesgen._arviz import import_arviz, major_version
from bayesgen.errors import FileFormatError, ModelError, OptionError, ResultError

F64 = torch.float64
W = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def model(y: Tensor, noise: float = 0.5) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=F64), 0.1))
    x = pyro.deterministic("x", (W @ z).reshape(4, 5))
    pyro.deterministic("colour", x.expand(3, 4, 5))
    pyro.sample("y", dist.Normal(scale * x.flatten(), noise).to_event(1), obs=y)


def data(*problems: int) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.randn((*problems, 20), generator=rng, dtype=F64)


def infer(*problems: int, **options: Any) -> Posterior:
    sizes = {} if options.get("method") == "map" else {"draws": 20, "warmup": 50}
    return bg.infer(
        model, data(*problems), batched=bool(problems), chains=2, progress=False, **sizes, **options
    )


@pytest.fixture(scope="module")
def sampled() -> Posterior:
    return infer()


@pytest.fixture(scope="module")
def batched() -> Posterior:
    return infer(3)


@pytest.fixture(scope="module")
def optima() -> Posterior:
    return infer(method="map")


@pytest.fixture(params=["sampled", "batched", "optima"])
def posterior(request: pytest.FixtureRequest) -> Posterior:
    found: Posterior = request.getfixturevalue(request.param)
    return found


def of_prior(model: Any, *args: Any) -> Posterior:
    """Draws from the prior: enough to try names and shapes."""
    log_density = bg.LogDensity(model, *args)
    v = log_density.prior_draws(12, torch.Generator().manual_seed(0)).reshape(3, 4, -1)
    log_prob = log_density.log_prob(v)
    return Posterior(log_density.constrain(v), log_prob, {}, {"kind": "draws"}, log_density)


# ---------------------------------------------------------------------- files


def assert_same(a: Posterior, b: Posterior) -> None:
    assert a.attributes == b.attributes
    assert torch.equal(a.log_prob, b.log_prob)
    assert a.latent_sites == b.latent_sites
    for site in a.latent_sites:
        assert torch.equal(a.draws(site), b.draws(site))
        assert a.draws(site).dtype is b.draws(site).dtype
    assert list(a.stats) == list(b.stats)
    for name, value in a.stats.items():
        assert torch.equal(value, b.stats[name])
        assert value.dtype is b.stats[name].dtype
    for question in ("mode",) if a.is_point_estimate else ("mean", "std"):
        for site in a.deterministic_sites:
            assert torch.equal(getattr(a, question)(site), getattr(b, question)(site))


def test_what_is_saved_is_loaded_bit_for_bit(posterior: Posterior, tmp_path: Path) -> None:
    path = tmp_path / "result.nc"
    posterior.save(path)
    loaded = Posterior.load(path)
    assert_same(posterior, loaded)
    assert repr(loaded) == repr(posterior)
    for site in posterior.deterministic_sites:
        assert loaded.site_shape(site) == posterior.site_shape(site)
    with pytest.raises(ResultError, match="passing the model"):
        loaded.draws("x")
    loaded.save(path)  # a result without its model can be saved again
    assert_same(posterior, Posterior.load(path))


def test_with_its_model_a_loaded_result_is_whole(posterior: Posterior, tmp_path: Path) -> None:
    path = tmp_path / "result.nc"
    posterior.save(str(path))
    problems = () if posterior.num_problems is None else (3,)
    loaded = Posterior.load(str(path), model, data(*problems))
    assert_same(posterior, loaded)
    assert torch.equal(loaded.draws("x"), posterior.draws("x"))
    assert torch.equal(loaded.observed["y"], data(*problems))
    if problems:
        assert torch.equal(Posterior.load(path)[1].mean("x"), posterior.mean("x")[1])
        assert torch.equal(loaded[1].draws("z"), posterior.draws("z")[1])


def renamed(y: Tensor) -> None:
    z = pyro.sample("latent", dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(W @ z, 0.5).to_event(1), obs=y)


def resized(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=F64), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=F64), 0.1))
    pyro.sample("y", dist.Normal(scale * (W @ z[:3]), 0.5).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("other", "args", "message"),
    [
        (renamed, (data(),), r"latent sites of shapes \{'latent': \(3,\)\}; the file holds"),
        (resized, (data(),), r"'z': \(4,\).*the file holds \{'z': \(3,\)"),
        (model, (data() + 1.0,), "gives log density .* for which the file says"),
        (model, (data(), 0.4), "gives log density .* for which the file says"),
    ],
)
def test_another_model_or_other_data_are_refused(
    sampled: Posterior, tmp_path: Path, other: Any, args: tuple[Any, ...], message: str
) -> None:
    sampled.save(tmp_path / "result.nc")
    with pytest.raises(ModelError, match=message):
        Posterior.load(tmp_path / "result.nc", other, *args)


def test_another_number_of_problems_is_refused(batched: Posterior, tmp_path: Path) -> None:
    batched.save(tmp_path / "result.nc")
    with pytest.raises(ModelError, match="hold 2 problems; the file holds 3"):
        Posterior.load(tmp_path / "result.nc", model, data(2))


@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.99])
def test_truncated_files_are_refused(sampled: Posterior, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "result.nc"
    sampled.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(FileFormatError, match=r"result.nc' \(\d+ bytes\) is not a netCDF-4 file"):
        Posterior.load(path)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text("not a result")
    with pytest.raises(FileFormatError, match="not a netCDF-4 file"):
        Posterior.load(path)
    xarray.Dataset({"x": ("t", np.arange(3))}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(FileFormatError, match="has format None; expected 'bayesgen-posterior-1'"):
        Posterior.load(path)
    with pytest.raises(FileNotFoundError, match="path: no file"):
        Posterior.load(tmp_path / "absent.nc")
    with pytest.raises(FileNotFoundError, match="path: no file"):
        Posterior.load(tmp_path)


def test_a_missing_folder_is_named_before_any_work(sampled: Posterior, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: folder .*absent' does not exist"):
        sampled.save(tmp_path / "absent" / "result.nc")


def test_a_failure_while_writing_leaves_nothing_behind(
    sampled: Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.nc"
    sampled.save(path)
    before = path.read_bytes()

    def write_half(tree: xarray.DataTree, target: Path, **_: Any) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(xarray.DataTree, "to_netcdf", write_half)
    with pytest.raises(KeyboardInterrupt):
        sampled.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]
    assert path.read_bytes() == before


def test_files_have_the_permissions_of_other_new_files(sampled: Posterior, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    sampled.save(tmp_path / "result.nc")
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("other", "result.nc")]
    assert modes[0] == modes[1]


def test_long_sources_and_odd_numbers_fit_into_the_attributes(tmp_path: Path) -> None:
    posterior = of_prior(model, data())
    posterior.attributes |= {"model_source": "σ = 1\n" * 40_000, "loss": float("inf")}
    posterior.stats["energy"] = posterior.log_prob.clone().fill_(torch.nan)
    posterior.save(tmp_path / "result.nc")
    loaded = Posterior.load(tmp_path / "result.nc")
    assert loaded.attributes == posterior.attributes
    assert loaded.stats["energy"].isnan().all()


def test_nothing_is_pickled() -> None:
    root = Path(storage.__file__).parent
    for path in root.rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"^\s*(import|from)\s+(pickle|dill|joblib)", source, re.M), path
        assert "torch.save(" not in source, path
        assert "torch.load(" not in source or "weights_only=True" in source, path


# ---------------------------------------------------------------------- ArviZ


def test_arviz_reads_the_file(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path / "result.nc")
    read = import_arviz().from_netcdf(tmp_path / "result.nc")
    group = read["optima" if posterior.is_point_estimate else "posterior"]
    assert group["z"].dims[:2] == ("chain", "draw")
    value = group["z"].values
    np.testing.assert_array_equal(
        np.moveaxis(value, 2, 0) if posterior.num_problems else value, posterior.draws("z").numpy()
    )
    assert json.loads(read.attrs["bayesgen"]) == posterior.attributes
    assert read.attrs["inference_library"] == "bayesgen"


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_arviz_functions_work(sampled: Posterior) -> None:
    az = import_arviz()
    idata = sampled.to_arviz(log_likelihood=True)
    assert idata.posterior["x"].dims == ("chain", "draw", "row", "col")
    assert idata.posterior["colour"].dims == ("chain", "draw", "channel", "row", "col")
    assert idata.statistics["x"].sel(statistic="mean").shape == (4, 5)
    table = az.summary(idata, var_names=["z", "scale"])
    expected = sampled.mean("z").tolist()
    np.testing.assert_allclose(table["mean"].iloc[:3], expected, atol=1e-3)
    assert az.ess(idata)["z"].shape == (3,)
    assert az.rhat(idata)["x"].shape == (4, 5)
    log_likelihood = idata.log_likelihood["y"]
    assert log_likelihood.shape == (2, 20, 20)
    predicted = sampled.draws("scale")[..., None] * sampled.draws("x").flatten(-2)
    exact = torch.distributions.Normal(predicted, 0.5).log_prob(data())
    np.testing.assert_allclose(log_likelihood, exact.numpy())
    loo = az.loo(idata)
    assert np.isfinite(loo.elpd if major_version() >= 1 else loo.elpd_loo)


def test_batched_results_have_a_dimension_of_problems(batched: Posterior) -> None:
    idata = batched.to_arviz(log_likelihood=True)
    assert idata.posterior["x"].dims == ("chain", "draw", "problem", "row", "col")
    assert idata.sample_stats["lp"].dims == ("chain", "draw", "problem")
    assert idata.statistics["x"].dims == ("statistic", "problem", "row", "col")
    assert idata.observed_data["y"].dims == ("problem", "y_dim_0")
    np.testing.assert_array_equal(idata.observed_data["y"], data(3).numpy())
    one = batched[1].to_arviz(log_likelihood=True)
    for group, site in (("posterior", "x"), ("log_likelihood", "y")):
        np.testing.assert_allclose(idata[group][site].sel(problem=1), one[group][site])
    assert import_arviz().rhat(idata)["z"].shape == (3, 3)


def test_optima_are_no_posterior_group(optima: Posterior) -> None:
    idata = optima.to_arviz()
    groups = [name.strip("/") for name in idata.groups] if major_version() >= 1 else idata.groups()
    assert "posterior" not in groups
    assert idata.optima["z"].shape == (2, 1, 3)


def test_from_version_1_on_arviz_gets_a_tree(
    sampled: Posterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = sampled.to_arviz()
    monkeypatch.setattr(import_arviz(), "__version__", "1.3.0")
    tree = sampled.to_arviz()
    assert isinstance(tree, xarray.DataTree)
    groups = ["posterior", "sample_stats", "observed_data", "statistics"]
    assert list(tree.children) == groups
    for name in groups:
        xarray.testing.assert_identical(tree[name].to_dataset(), old[name])


def test_large_deterministic_sites_stay_out(
    sampled: Posterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAX_DETERMINISTIC_BYTES", sampled.num_bytes("x"))
    assert set(sampled.to_arviz().posterior.data_vars) == {"z", "scale", "x"}


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "row",
        "col",
        "channel",
        "chain",
        "draw",
        "problem",
        "statistic",
        "net/x",
        "x",
        "y",
        "x_row",
        "z_dim_0",
        "σ",
    ],
)
def test_no_site_is_lost_whatever_its_name(name: str, tmp_path: Path) -> None:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample(name, dist.Normal(torch.zeros(4, 5), 1.0).to_event(2))
        pyro.deterministic(f"{name}2", z[:1].expand(6, 7))
        pyro.deterministic(f"{name}_mean", z.sum())
        pyro.sample("observed", dist.Normal(z, 1.0).to_event(1), obs=data)

    posterior = of_prior(model, torch.zeros(2))
    posterior.save(tmp_path / "result.nc")
    assert_same(posterior, Posterior.load(tmp_path / "result.nc"))
    idata = posterior.to_arviz()
    shapes = sorted(v.shape[2:] for v in idata.posterior.data_vars.values())
    assert shapes == [(), (2,), (4, 5), (6, 7)]
    found = {v.attrs.get("site", str(k)) for k, v in idata.posterior.data_vars.items()}
    assert found == {"z", name, f"{name}2", f"{name}_mean"}
    assert len(import_arviz().summary(idata, kind="stats")) == 1 + 2 + 20 + 42


def test_images_of_different_sizes_and_channels(tmp_path: Path) -> None:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        for name, shape in {"a": (2, 3), "b": (4, 5), "c": (3, 4, 5), "d": (1, 4, 5)}.items():
            pyro.deterministic(name, z[0].expand(shape))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=data)

    posterior = of_prior(model, torch.zeros(2))
    found = posterior.to_arviz().posterior
    dims = {name: found[name].dims[2:] for name in "abcd"}
    assert dims == {
        "a": ("a_row", "a_col"),
        "b": ("row", "col"),
        "c": ("channel", "row", "col"),
        "d": ("d_channel", "d_row", "d_col"),
    }
    posterior.save(tmp_path / "result.nc")
    assert_same(posterior, Posterior.load(tmp_path / "result.nc"))


def test_misspelt_sites_of_loaded_results(sampled: Posterior, tmp_path: Path) -> None:
    sampled.save(tmp_path / "result.nc")
    with pytest.raises(OptionError, match="expected one of 'z', 'scale', 'x', 'colour'"):
        Posterior.load(tmp_path / "result.nc").mean("X1")
