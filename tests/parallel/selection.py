"""What a module's fixtures train: only what the selected tests look at."""

from __future__ import annotations

from collections.abc import Sequence

import pytest


def selected(request: pytest.FixtureRequest, trained: Sequence[str], together: str | None = None) -> tuple[str, ...]:
    """Return those of the stages that selected tests of the module name, ``together`` in one layout or in any."""
    asked = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec") and "together" in item.callspec.params
    ]
    names = {one["name"] for one in asked if together in (None, one["together"])}
    return tuple(name for name in trained if name in names)
