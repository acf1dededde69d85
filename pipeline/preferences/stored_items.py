"""The items of a batch in a file, of which only those that are looked at are parsed.

To read a data source and to hash its rows takes seconds for a hundred thousand pairs. The result is therefore kept in
the store's cache, under a name that covers the source's content and settings. The first line lists what is asked of
all items: their ids, their numbers of characters, and where each ends; then follows one line for each item.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import overload

from pydantic_core import from_json, to_json

from pipeline import __version__
from pipeline.machine.disk import keep_if_possible
from pipeline.preferences.items import Item, text_of

_LAYOUT = 2
"""Version of the file's layout: a file of another layout is made anew."""

_FIELDS = tuple(field.name for field in fields(Item))

_BLOCK = 4 << 20
"""Bytes that are read at a time when many items are asked for, at most, unless one item has more."""


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
        content = from_json(header)
        self.ids: list[str] = content["ids"]
        self.chars: list[int] = content["chars"]
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
            return list(self.at(range(*index.indices(len(self)))))
        return next(self.at([range(len(self))[index]]))

    def __iter__(self) -> Iterator[Item]:
        """Yield all items."""
        return self.at(range(len(self)))

    def at(self, places: Sequence[int]) -> Iterator[Item]:
        """Yield the items at some places, in the order of these; quickest for ascending ones."""
        block, block_begin = b"", 0
        for number, place in enumerate(places):
            begin, end = self._begin(place), self._ends[place]
            if not block_begin <= begin <= end <= block_begin + len(block):
                last = len(places) - 1 - number  # the most that is needed of what follows
                wanted = self._ends[min(place + last, len(self) - 1)] - begin
                block_begin, size = begin, max(end - begin, min(wanted, _BLOCK))
                block = os.pread(self._file.fileno(), size, self._start + begin)
            line = block[begin - block_begin : end - block_begin]
            item_id, prompt, responses, propensity, tools = from_json(line, cache_strings="keys")
            yield Item(item_id, tuple(prompt), tuple(map(tuple, responses)), propensity, tuple(tools))

    def _begin(self, place: int) -> int:
        return self._ends[place - 1] if place else 0


def stored_items(cache: Path, content: object, read: Callable[[], Sequence[Item]]) -> Sequence[Item]:
    """Return the items of a content, from the cache if they are there; else read them and keep them there.

    Args:
        cache: folder of the cached files.
        content: plain data that covers everything on which the items depend.
        read: returns the items.
    """
    covered = json.dumps([__version__, _LAYOUT, _FIELDS, content], sort_keys=True)
    file = cache / f"{hashlib.sha256(covered.encode()).hexdigest()[:32]}.jsonl"
    try:
        return StoredItems(file)
    except (OSError, ValueError, KeyError, TypeError):
        items = read()
        keep(file, items)
    try:
        return StoredItems(file)  # which takes less memory
    except (OSError, ValueError):
        return items


def ids_of(items: Sequence[Item]) -> Sequence[str]:
    """Return the ids of items, in their order; items in a file are not parsed for it."""
    return items.ids if isinstance(items, StoredItems) else [item.id for item in items]


def chars_of(items: Sequence[Item]) -> Sequence[int]:
    """Return the number of characters of the responses of each item; items in a file are not parsed for it."""
    if isinstance(items, StoredItems):
        return items.chars
    return [sum(len(text_of(turns)) for turns in item.responses) for item in items]


class _StoredById(Mapping[str, Item]):
    """The items of a file by id."""

    def __init__(self, items: StoredItems) -> None:
        self._items = items
        self._places = {item: place for place, item in enumerate(items.ids)}

    def __getitem__(self, item: str) -> Item:
        return self._items[self._places[item]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def by_id(items: Sequence[Item]) -> Mapping[str, Item]:
    """Return items by id; those of a file are parsed whenever they are asked for."""
    return _StoredById(items) if isinstance(items, StoredItems) else {item.id: item for item in items}


def items_at(items: Sequence[Item], places: Sequence[int]) -> Iterator[Item]:
    """Yield the items at some places, in the order of these."""
    return items.at(places) if isinstance(items, StoredItems) else (items[place] for place in places)


def keep(file: Path, items: Sequence[Item]) -> None:
    """Write items to a file, if the disk allows it."""
    lines = [to_json([getattr(item, name) for name in _FIELDS]) + b"\n" for item in items]
    ends, end = [], 0
    for line in lines:
        end += len(line)
        ends.append(end)
    content = {"ids": [item.id for item in items], "chars": list(chars_of(items)), "ends": ends}
    keep_if_possible(file, to_json(content) + b"\n" + b"".join(lines))
