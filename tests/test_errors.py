from __future__ import annotations

import inspect

import pytest

from bayesgen import errors
from bayesgen.errors import BayesgenError, unknown_option

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, BayesgenError) and cls is not BayesgenError
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_is_also_the_built_in_one_that_users_guess(name: str) -> None:
    assert name.endswith("Error")
    assert CLASSES[name].__doc__
    assert issubclass(CLASSES[name], ValueError | TypeError | ImportError | RuntimeError)
    with pytest.raises(BayesgenError, match="what, and what to do"):
        raise CLASSES[name]("what, and what to do")


def test_misspelt_choices_are_answered_with_the_likely_one() -> None:
    text = unknown_option("site", "imag", ["image", "z"])
    assert text == (
        "site: unknown value 'imag'; expected one of 'image', 'z' (did you mean 'image'?)"
    )
    assert "did you mean" not in unknown_option("site", "qqq", ["image", "z"])


def test_choices_may_be_any_iterable_and_values_of_any_type() -> None:
    assert "'a', 'b'" in unknown_option("start", 3, (c for c in "ab"))  # type: ignore[arg-type]
