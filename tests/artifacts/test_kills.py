"""SIGKILL at every instant: nothing half done is ever visible, and doing it again ends where it should."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.artifacts import Store
from pipeline.artifacts.lineage import gc
from pipeline.artifacts.refs import resolve, tag, tags

A = "a" * 64
FIELDS = {"kind": "sft", "makes": "model", "config": {"train": {"beta": 0.1}}}
PAYLOAD = {"model.safetensors": b"w" * 5000, "config.json": b"{}", "adapter/adapter_config.json": b"{}"}


def commit(store: Store, payload: dict[str, bytes] = PAYLOAD, *, replace: bool = False) -> None:
    with store.work("sft", A) as area:
        if store.find("sft", A) is not None and not replace:
            return
        (area.scratch / "checkpoint").write_text("step 10")
        for path, content in payload.items():
            (area.payload / path).parent.mkdir(exist_ok=True)
            (area.payload / path).write_bytes(content)
        area.commit(replace=replace, **FIELDS)


def copy_of(template: Store, instant: int) -> Store:
    return Store(shutil.copytree(template.root, template.root.with_name(str(instant))))


def assert_whole(store: Store) -> None:
    """Whatever can be seen is complete."""
    for artifact in store.artifacts():
        assert store.verify(artifact) == []
    assert all((folder / "manifest.json").is_file() for folder in store.root.glob("sft/*"))


def test_commit_killed_at_every_instant(tmp_path, killed_at):
    reference = Store(tmp_path / "reference")
    commit(reference)
    expected = reference.find("sft", A).manifest
    states = set()
    for instant in itertools.count(1):
        store = Store(tmp_path / str(instant))
        killed = killed_at(instant, store.root, lambda store=store: commit(store))
        assert_whole(store)
        seen = store.find("sft", A)
        states.add(seen is not None)
        assert seen is None or seen.manifest.digest == expected.digest
        commit(store)
        artifact = store.find("sft", A)
        assert (artifact.manifest.digest, artifact.manifest.version) == (expected.digest, 1)
        assert_whole(store)
        if not killed:
            break
    assert instant > 30  # a commit of three files does more than thirty things that can be cut off
    assert states == {False, True}  # both sides of the rename were met


def test_replacement_killed_at_every_instant_leaves_the_old_or_the_new(tmp_path, killed_at):
    new = {**PAYLOAD, "model.safetensors": b"n" * 5000}
    template = Store(tmp_path / "template")
    commit(template)
    between = 0
    for instant in itertools.count(1):
        store = copy_of(template, instant)
        killed = killed_at(instant, store.root, lambda store=store: commit(store, new, replace=True))
        assert_whole(store)
        between += store.find("sft", A) is None  # between the two renames: put back as soon as anyone comes to work
        with store.work("sft", A):
            artifact = store.find("sft", A)
        assert (artifact.path / "model.safetensors").read_bytes() in (PAYLOAD["model.safetensors"], b"n" * 5000)
        assert store.verify(artifact) == []
        commit(store, new, replace=True)
        artifact = store.find("sft", A)
        assert (artifact.path / "model.safetensors").read_bytes() == b"n" * 5000
        assert_whole(store)
        if not killed:
            break
    assert between > 0


def test_checkpoints_survive_a_kill_before_the_commit_is_done(tmp_path, killed_at):
    """Resuming needs them for as long as the artifact is not there."""
    for instant in itertools.count(1):
        store = Store(tmp_path / str(instant))
        with pytest.raises(RuntimeError, match="stop"), store.work("sft", A) as area:
            (area.scratch / "checkpoint").write_text("step 10")
            raise RuntimeError("stop")
        killed = killed_at(instant, store.root, lambda store=store: commit(store))
        assert store.find("sft", A) is not None or store.resumable("sft", A)
        if not killed:
            break


def test_gc_killed_at_every_instant_removes_users_before_what_they_were_made_from(tmp_path, make, killed_at):
    template = Store(tmp_path / "template")
    old = make(template, "base", "old")
    for name in ("sft", "dpo"):
        old = make(template, name, "old", parents=(old,))
    for name in ("base", "sft", "dpo"):
        make(template, name, "new")
    for instant in itertools.count(1):
        store = copy_of(template, instant)
        killed = killed_at(instant, store.root, lambda store=store: gc(store))
        assert_whole(store)
        present = {artifact.manifest.key for artifact in store.artifacts()}
        for artifact in store.artifacts():
            assert all(record.key in present for record in artifact.manifest.inputs)
        gc(store)
        assert [a.ref for a in store.artifacts()] == ["base@v2", "dpo@v2", "sft@v2"]
        assert not list(store.root.glob(".work/.removed/*"))
        if not killed:
            break


def test_tagging_killed_at_every_instant_leaves_the_old_or_the_new_tag(tmp_path, make, killed_at):
    store = Store(tmp_path / "store")
    make(store, "sft", "1")
    make(store, "sft", "2")
    met = set()
    for instant in itertools.count(1):
        tag(store, "sft@v1", "champion")
        killed = killed_at(instant, store.root, lambda: tag(store, "sft@v2", "champion"))
        met.add(resolve(store, "sft:champion").ref)
        assert list(tags(store)) == ["sft:champion"]
        if not killed:
            break
    assert met == {"sft@v1", "sft@v2"}


BUSY = """
import sys
from pipeline.artifacts import Store
store, n = Store(sys.argv[1]), 0
print("ready", flush=True)
while True:
    n += 1
    with store.work("sft", f"{n % 7:064x}") as area:
        for part in range(4):
            (area.payload / f"part{part}.safetensors").write_bytes(bytes([n % 7]) * 300_000)
        area.commit(kind="sft", makes="report", replace=True)
"""


def test_killed_at_random_moments_from_outside(store, tmp_path):
    """No help from the victim: the kill falls where it falls, also inside a write or a flush."""
    chance = random.Random(11)
    for _ in range(6):
        victim = subprocess.Popen(
            [sys.executable, "-c", BUSY, str(store.root)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        victim.stdout.readline()
        time.sleep(chance.uniform(0.01, 0.25))
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        victim.stdout.close()
        assert_whole(store)
        assert store.running() == []  # the lock died with its holder
    versions = [artifact.manifest.version for artifact in store.artifacts()]
    assert len(versions) == len(set(versions)) >= 1
