from __future__ import annotations

from typing import Any

import pytest

from bayesgen.errors import UnknownOptionError
from bayesgen.types import check_options, strict_options


@strict_options
def bake(flour: int, *, sugar: int = 1) -> int:
    """Mix."""
    return flour + sugar


def test_known_options_pass() -> None:
    assert bake(1, sugar=2) == 3
    assert bake(flour=1) == 2
    assert bake.__name__ == "bake"
    assert bake.__doc__ == "Mix."


def test_unknown_options_are_answered_with_those_that_exist() -> None:
    with pytest.raises(UnknownOptionError) as caught:
        bake(1, suger=2)  # type: ignore[call-arg]
    assert str(caught.value) == (
        "bake: unknown option 'suger'; expected one of 'flour', 'sugar' (did you mean 'sugar'?)"
    )
    with pytest.raises(UnknownOptionError, match="unknown option 'zzz'") as caught:
        bake(1, zzz=2)  # type: ignore[call-arg]
    assert "did you mean" not in str(caught.value)


def test_missing_arguments_keep_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'flour'"):
        bake()  # type: ignore[call-arg]


def test_self_is_no_option_and_any_keyword_may_be_allowed() -> None:
    class Oven:
        def __init__(self, heat: int) -> None:
            self.heat = heat

    with pytest.raises(UnknownOptionError, match="expected one of 'heat'"):
        check_options("Oven", Oven.__init__, {"hat": 1})

    def anything(**options: Any) -> None: ...

    check_options("anything", anything, {"x": 1})
