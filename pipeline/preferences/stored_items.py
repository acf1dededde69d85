"""The items of a batch in a file, of which only those that are looked at are parsed.

To read a data source and to hash its rows takes seconds for a hundred thousand pairs. The result is therefore kept in
the store's cache, under a name that covers the source's content and settings. The first line lists the ids and where
each item ends; then follows one line for each item.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

from pipeline import __version__
from pipeline.machine.disk import keep_if_possible
from pipeline.preferences.items import Item

_decode = json.JSONDecoder().raw_decode
_FIELDS = tuple(field.name for field in fields(Item))


class StoredItems(Sequence[Item]):
    """The items of a file of `keep`; each is parsed whenever it is asked for.

    Args:
        file: the file; it may be replaced or removed afterwards.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not complete.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        header = self._file.readline()
        content = json.loads(header)
        self.ids: list[str] = content["ids"]
        self._ends: list[int] = content["ends"]
        self._start = len(header)
        size = os.fstat(self._file.fileno()).st_size
        if size != self._start + (self._ends[-1] if self._ends else 0):
            raise ValueError(f"{file} is not complete")

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """Return an item, or a list of several; may be called from several threads."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        begin = self._ends[place - 1] if place else 0
        line = os.pread(self._file.fileno(), self._ends[place] - begin, self._start + begin)
        fields, _ = _decode(line.decode())
        return Item(*map(_frozen, fields))


def stored_items(cache: Path, content: object, read: Callable[[], Sequence[Item]]) -> Sequence[Item]:
    """Return the items of a content, from the cache if they are there; else read them and keep them there.

    Args:
        cache: folder of the cached files.
        content: plain data that covers everything on which the items depend.
        read: returns the items.
    """
    covered = json.dumps([__version__, _FIELDS, content], sort_keys=True)
    file = cache / f"{hashlib.sha256(covered.encode()).hexdigest()[:32]}.jsonl"
    try:
        return StoredItems(file)
    except (OSError, ValueError, KeyError, TypeError):
        items = read()
        keep(file, items)
        return items


def ids_of(items: Sequence[Item]) -> Sequence[str]:
    """Return the ids of items, in their order; items in a file are not parsed for it."""
    return items.ids if isinstance(items, StoredItems) else [item.id for item in items]


def keep(file: Path, items: Sequence[Item]) -> None:
    """Write items to a file, if the disk allows it."""
    lines = [
        json.dumps([getattr(item, name) for name in _FIELDS], ensure_ascii=False).encode() + b"\n" for item in items
    ]
    ends, end = [], 0
    for line in lines:
        end += len(line)
        ends.append(end)
    header = json.dumps({"ids": [item.id for item in items], "ends": ends}).encode() + b"\n"
    keep_if_possible(file, header + b"".join(lines))


def _frozen(value: Any) -> Any:
    """Return a value of an item, with tuples in place of the lists that JSON has."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
