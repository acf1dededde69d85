"""Pairs of settings as cases of a test: a cut through them for the suite, all of them for `make test-matrix`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def crossed(names: str, ones: Iterable[str], others: Iterable[str], suite: Iterable[tuple[str, str]]) -> Any:
    """Parametrize a test by two names, comma-separated; pairs that are not of the ``suite`` are marked `whole`."""
    chosen, others = set(suite), list(others)
    pairs = [(one, other) for one in ones for other in others]
    assert chosen <= set(pairs)
    return pytest.mark.parametrize(
        names, [pytest.param(*pair, marks=() if pair in chosen else pytest.mark.whole) for pair in pairs]
    )
