"""Configurations of published models, shipped with trueup so that they can be sized offline.

`published.json` holds the size fields of each model's `config.json` on the hub. A test compares the parameters computed
from it with the number the publisher states. The sizes of a released model do not change.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from pipeline.plain_data import JsonObject

FILE = Path(__file__).with_name("published.json")


def published_config(name: str) -> JsonObject | None:
    """Return the shipped configuration of a hub model, by its id in any case; None if it is not shipped."""
    return _configs().get(name.lower())


@functools.cache
def _configs() -> dict[str, JsonObject]:
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    return {name.lower(): entry["config"] for entry in entries for name in entry["names"]}
