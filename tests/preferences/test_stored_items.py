"""Items kept in a file are the items that were read; the file of other data, or of a broken write, is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences.items import Item, groups_of, items_of
from pipeline.preferences.labels import Batch
from pipeline.preferences.stored_items import StoredItems, ids_of, keep, stored_items


def _turns(role: str, text: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


def _groups() -> list[Item]:
    answers = [_turns("assistant", f"answer {n}") for n in range(4)]
    return groups_of({"prompt": _turns("user", f"question {n}"), "answers": answers} for n in range(5))[0]


def _items(word: str = "answer") -> list[Item]:
    rows = [
        {
            "prompt": [*_turns("system", "Be brief."), *_turns("user", f"déjà vu {n}\n\u2028 '\"")],
            "chosen": _turns("assistant", f"one {word} {n}"),
            "rejected": _turns("assistant", f"another {word} {n}"),
        }
        for n in range(5)
    ]
    return items_of(rows)[0]


@pytest.mark.parametrize("make", [_items, _groups])
def test_stored_items_are_what_was_kept(tmp_path: Path, make: Callable[[], list[Item]]) -> None:
    items = make()
    keep(tmp_path / "kept", items)
    stored = StoredItems(tmp_path / "kept")
    (tmp_path / "kept").unlink()
    assert list(stored) == items and stored[-1] == items[-1] and stored[1:3] == items[1:3] and len(stored) == 5
    assert ids_of(stored) == Batch(stored).ids == [item.id for item in items]
    with pytest.raises(IndexError):
        stored[5]


def test_items_are_read_once_for_a_content(tmp_path: Path) -> None:
    reads = []

    def read() -> list[Item]:
        reads.append(1)
        return _items()

    assert list(stored_items(tmp_path, {"digest": "1"}, read)) == list(stored_items(tmp_path, {"digest": "1"}, read))
    assert len(reads) == 1
    stored_items(tmp_path, {"digest": "2"}, read)
    assert len(reads) == 2
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-9])  # cut off
    assert list(stored_items(tmp_path, {"digest": "1"}, read)) == _items() and len(reads) == 3


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert list(stored_items(tmp_path / "file", 1, _items)) == _items()
