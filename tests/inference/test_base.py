"""Methods are settings: frozen, comparable, strict about what they are given."""

from __future__ import annotations

import dataclasses

import pytest

from bayesgen.errors import OptionError, UnknownOptionError
from bayesgen.inference import HMC, METHODS, as_method
from bayesgen.types import check_count, check_positive


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_frozen_dataclasses_with_defaults(name: str) -> None:
    method = METHODS[name]()
    assert dataclasses.is_dataclass(method) and method == METHODS[name]()
    assert method.name == name and method.reference and METHODS[name].__doc__
    first = dataclasses.fields(method)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, first, None)


@pytest.mark.parametrize("name", METHODS)
def test_unknown_settings_are_refused(name: str) -> None:
    known = METHODS[name].__name__
    with pytest.raises(
        UnknownOptionError, match=f"{known}: unknown option 'no_such'; expected one of"
    ):
        METHODS[name](no_such=1)


def test_methods_by_name_class_or_instance() -> None:
    assert as_method("hmc") == as_method(HMC) == as_method(HMC()) == HMC()
    with pytest.raises(OptionError, match="did you mean 'mala'"):
        as_method("mla")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", None])
def test_what_must_be_positive(value: object) -> None:
    with pytest.raises(OptionError, match="step: got"):
        check_positive("step", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, True, 1.0, "2"])
def test_what_must_be_a_count(value: object) -> None:
    with pytest.raises(OptionError, match="chains: got"):
        check_count("chains", value)  # type: ignore[arg-type]
