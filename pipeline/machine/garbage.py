"""Python's search for reference cycles, which a program that makes many objects and no cycles can do without."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Keep Python from searching for reference cycles.

    Rows, events and labels have none. The search looks at all objects again and again as they become more, which takes
    a third of the time of a report.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
