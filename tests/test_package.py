"""What holds for the package as a whole, however it is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import bayesgen as bg

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(bg.__file__).resolve().parent

# Slow to import or with side effects on import: only the functions that need them import them.
HEAVY = ("arviz", "h5netcdf", "matplotlib", "odl", "ot", "pandas", "scipy", "xarray")


def run_python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a line of Python in a process of its own that imports the same bayesgen as this one."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )


def modules_after(statement: str, tmp_path: Path) -> set[str]:
    """Names of the top-level modules that are loaded after a statement."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = run_python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def public_modules() -> list[ModuleType]:
    """The package and its subpackages: the places that users import from."""
    names = [info.name for info in pkgutil.iter_modules(bg.__path__, "bayesgen.") if info.ispkg]
    return [bg, *map(importlib.import_module, sorted(names))]


def test_version_is_that_of_the_distribution() -> None:
    try:
        installed = importlib.metadata.version("bayesgen")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("bayesgen is imported from a checkout without being installed")
    assert bg.__version__ == installed


def test_version_is_written_once() -> None:
    source = (PACKAGE / "_version.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE) == [bg.__version__]
    assert re.search(r"^version\s*=\s*\"", (ROOT / "pyproject.toml").read_text(), re.M) is None


def test_type_information_is_shipped() -> None:
    assert (importlib.resources.files("bayesgen") / "py.typed").is_file()


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_public_names_are_listed_and_exist(module: ModuleType) -> None:
    assert isinstance(getattr(module, "__all__", None), list), f"{module.__name__} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing, f"{module.__name__}.__all__ lists names that do not exist: {missing}"


def test_importing_needs_no_heavy_package(tmp_path: Path) -> None:
    loaded = modules_after("import bayesgen", tmp_path)
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


def test_the_import_check_sees_a_heavy_package(tmp_path: Path) -> None:
    assert "scipy" in modules_after("import bayesgen, scipy", tmp_path)


def test_importing_changes_no_global_setting(tmp_path: Path) -> None:
    code = """
import numpy, torch
def settings():
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed(),
            torch.get_rng_state().tolist(), torch.is_grad_enabled(), numpy.get_printoptions())
import pyro
before = settings(), pyro.settings.get()
import bayesgen
assert (settings(), pyro.settings.get()) == before
"""
    result = run_python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["models", "inference"])
def test_top_level_link_shows_the_package_and_refuses_import(name: str) -> None:
    link = ROOT / name
    if not link.is_symlink() or not link.exists():
        pytest.skip("no links here: not a checkout")
    assert link.resolve() == ROOT / "bayesgen" / name
    result = run_python(f"import {name}")
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert f"bayesgen.{name}" in result.stderr.splitlines()[-1]
