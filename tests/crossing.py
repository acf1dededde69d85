"""Pairs of settings as cases of a test: a cut through them for the suite, all of them for `make test-matrix`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def crossed(
    names: str,
    ones: Iterable[str],
    others: Iterable[str],
    suite: Iterable[tuple[str, str]],
    *,
    indirect: bool | Sequence[str] = False,
) -> Any:
    """Parametrize a test by two names, comma-separated; pairs that are not of the ``suite`` are marked `whole`.

    Each test sets up a fixture named ``indirect`` anew: it keeps what it makes on disk.
    """
    chosen, others = set(suite), list(others)
    cases = [
        pytest.param(one, other, marks=() if (one, other) in chosen else pytest.mark.whole)
        for one in ones
        for other in others
    ]
    return pytest.mark.parametrize(names, cases, indirect=indirect)


def selected(request: pytest.FixtureRequest, name: str) -> tuple[str, ...]:
    """Return the values, sorted, of a parameter in the selected tests of a module, so that its fixture trains no more.

    Only those tests count that ask a parametrized fixture for what it is making.
    """
    wanted = {request.fixturename: request.param} if hasattr(request, "param") else {}
    values = set()
    for item in request.session.items:
        params = item.callspec.params if item.path == request.path and hasattr(item, "callspec") else {}
        if name in params and params | wanted == params:
            values.add(params[name])
    return tuple(sorted(values))
