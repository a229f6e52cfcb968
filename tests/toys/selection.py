"""Which members of a kind are always tested, and which where ``-m thorough`` asks for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thorough(case: Any) -> Any:
    """Mark a parameter, or a tuple of them, as one of a kind of which others are always tested."""
    if hasattr(case, "marks"):  # of pytest.param
        return pytest.param(*case.values, marks=(*case.marks, pytest.mark.thorough), id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough)


def some_of(cases: Iterable[Any], *, every: int, first: int = 0) -> list[Any]:
    """Return parameters of which every so many are always tested."""
    return [case if index % every == first else thorough(case) for index, case in enumerate(cases)]
