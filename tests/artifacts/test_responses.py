"""What checkpoints said: whole or not there, whoever writes and is killed, and removed with the last artifact."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.artifacts import Store
from pipeline.artifacts.lineage import gc
from pipeline.artifacts.manifest import InputRecord
from pipeline.artifacts.responses import ResponseCache, responses_folder

FACTS = {"seed": 1, "prompts": [[1, 2], [3]]}


def test_a_value_is_known_by_its_model_and_all_its_facts(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path / "kept")
    assert cache.read("a", FACTS) is None
    assert cache.keep("a", FACTS, [[5, 0.1]]) is None
    assert cache.read("a", dict(reversed(FACTS.items()))) == [[5, 0.1]]
    assert [cache.read("b", FACTS), cache.read("a", {**FACTS, "seed": 2})] == [None, None]


def test_a_writer_killed_at_any_instant_leaves_all_or_nothing(
    tmp_path: Path, killed_at: Callable[[int, Path, Callable[[], object]], bool]
) -> None:
    instant = 0
    while True:
        instant += 1
        folder = tmp_path / str(instant)
        cache = ResponseCache(folder)
        is_killed = killed_at(instant, folder, lambda cache=cache: cache.keep("a", FACTS, [1] * 5000))
        assert cache.read("a", FACTS) in (None, [1] * 5000)
        if not is_killed:
            break
    assert instant > 3 and cache.read("a", FACTS) == [1] * 5000


def test_concurrent_writers_leave_one_whole_value(tmp_path: Path) -> None:
    cache, values = ResponseCache(tmp_path / "kept"), [[number] * 20_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda value: cache.keep("a", FACTS, value), values * 4)) == [None] * 32
    assert cache.read("a", FACTS) in values
    assert len(list(cache.folder.rglob("*.json*"))) == 1


def test_what_cannot_be_kept_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    problem = ResponseCache(tmp_path / "file" / "kept").keep("a", FACTS, [1])
    assert problem is not None and "is a file" in problem.found


def test_gc_removes_the_responses_of_models_that_no_artifact_is_or_was_made_from(
    store: Store, make: Callable[..., Any]
) -> None:
    old, new = make(store, "sft", "1").manifest.fingerprint, make(store, "sft", "2").manifest.fingerprint
    used, unused = "hub:org/model@1", "hub:org/model@2"
    hub = InputRecord(field="models", ref="org/model", name="model", kind="external", version=None, fingerprint=used)
    make(store, "report", "3", inputs=[hub])
    cache = ResponseCache(responses_folder(store.root))
    for fingerprint in (old, new, used, unused):
        assert cache.keep(fingerprint, FACTS, [fingerprint]) is None
    (entry,) = (file for file in cache.folder.glob("*/*.json") if new in file.read_text(encoding="utf-8"))
    cut = entry.with_name(f".{entry.name}.killed")
    cut.write_bytes(b"half of it")
    dry = gc(store, dry_run=True)
    assert dry.responses == 3 and cut.is_file()  # two models, and what a killed writer left
    assert gc(store) == dry
    assert [cache.read(one, FACTS) for one in (old, new, used, unused)] == [None, [new], [used], None]
    assert not cut.exists() and not list(store.graveyard.glob("*"))
