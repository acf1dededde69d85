"""Configurations of published models that come with trueup, so that they are sized without a connection.

`published.json` holds what decides a model's size, as the `config.json` of its hub repository has it; a test compares
the parameters it gives with the number the publisher names. The sizes of a released model do not change.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.json")


def published_config(name: str) -> dict[str, Any] | None:
    """Return the configuration of a hub model, whatever the case of its letters; None for one that is not known."""
    return _configs().get(name.lower())


@functools.cache
def _configs() -> dict[str, dict[str, Any]]:
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    return {name.lower(): entry["config"] for entry in entries for name in entry["names"]}
