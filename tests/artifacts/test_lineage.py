"""Ancestors and descendants, the difference of two artifacts, and what gc may remove."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import Store
from pipeline.artifacts.lineage import Change, Node, ancestors, descendants, diff, gc, needed
from pipeline.artifacts.manifest import DataRecord, InputRecord, Manifest, payload_digest
from pipeline.artifacts.refs import tag
from pipeline.errors import PipelineError


def shape(node: Node) -> object:
    """A tree as nested lists of names."""
    return [node.name, *map(shape, node.children)]


@pytest.fixture
def chain(store, make):
    base = make(store, "base")
    sft = make(store, "sft", parents=(base,))
    rm = make(store, "rm", parents=(sft,))
    ppo = make(store, "ppo", parents=(sft, rm))
    return {"base": base, "sft": sft, "rm": rm, "ppo": ppo}


def test_ancestors_are_a_tree_whose_repeated_branches_are_cut(store, chain):
    tree = ancestors(store, chain["ppo"])
    assert shape(tree) == ["ppo", ["sft", ["base"]], ["rm", ["sft"]]]
    again = tree.children[1].children[0]
    assert again.repeated
    assert again.artifact == chain["sft"]
    assert not tree.children[0].repeated


def test_descendants_are_a_tree(store, chain):
    assert shape(descendants(store, chain["base"])) == ["base", ["sft", ["ppo"], ["rm", ["ppo"]]]]
    assert shape(descendants(store, chain["ppo"])) == ["ppo"]


def test_an_ancestor_that_is_gone_is_missing_and_an_external_one_is_not(store, make):
    hub = InputRecord(field="model", ref="org/model", name="org/model", kind="external", fingerprint="hub:org/model@1")
    base = make(store, "base", inputs=[hub])
    sft = make(store, "sft", parents=(base,))
    store.remove(base)
    (parent,) = ancestors(store, sft).children
    assert (parent.name, parent.is_missing) == ("base", True)
    base = make(store, "base", inputs=[hub])
    (parent,) = ancestors(store, base).children
    assert (parent.name, parent.is_missing, parent.fingerprint) == ("org/model", False, "hub:org/model@1")


def test_the_artifact_that_held_the_data_is_an_ancestor(store, make):
    collected = make(store, "collected")
    record = InputRecord(
        field="data", ref="collected", name="collected", kind="collect", fingerprint=collected.manifest.fingerprint
    )
    data = {"data": DataRecord(source="pairs", digest="d", artifact=record)}
    make(store, "dpo", data=data)
    newer = make(store, "collected", "2")
    assert shape(ancestors(store, store.artifacts("dpo")[0])) == ["dpo", ["collected"]]
    assert gc(store).removed == ()  # the older one is what dpo learned from
    assert store.artifacts("collected") == [collected, newer]


def test_diff_names_what_changed_by_section(store, make):
    base, other = make(store, "base", "1"), make(store, "base", "2")
    common = {"environment": {"packages": {"torch": "2.13"}}, "metrics": {"loss": 0.5, "odd": float("nan")}}
    one = make(store, "dpo", "1", parents=(base,), config={"train": {"beta": 0.1, "lr": 1}, "max": 5}, **common)
    common["metrics"] = {"loss": 0.25, "odd": float("nan")}
    two = make(store, "dpo", "2", parents=(other,), config={"train": {"beta": 0.05, "lr": 1}, "new": True}, **common)
    difference = diff(one.manifest, two.manifest)
    assert difference.section("config") == [
        Change("config", "max", 5, None),
        Change("config", "new", None, True),
        Change("config", "train.beta", 0.1, 0.05),
    ]
    assert difference.section("inputs") == [
        Change("inputs", "model", f"base@{base.manifest.short}", f"base@{other.manifest.short}")
    ]
    assert difference.section("metrics") == [Change("metrics", "loss", 0.5, 0.25)]
    assert difference.section("environment") == []
    assert not difference.same_payload
    assert diff(one.manifest, one.manifest).changes == ()


def test_diff_shows_changed_data(store, make):
    def data(digest: str, rows: int) -> dict[str, DataRecord]:
        return {"data": DataRecord(source="pairs", digest=digest, rows=rows)}

    one, two = make(store, "dpo", "1", data=data("aa", 1200)), make(store, "dpo", "2", data=data("bb", 1300))
    assert diff(one.manifest, two.manifest).section("data") == [
        Change("data", "data.digest", "aa", "bb"),
        Change("data", "data.rows", 1200, 1300),
    ]


def test_gc_keeps_the_newest_the_tagged_and_what_they_were_made_from(store, make):
    base = make(store, "base", "1")
    champion = make(store, "sft", "1", parents=(base,))
    unused = make(store, "sft", "2", parents=(base,))
    newer_base = make(store, "base", "2")
    newest = make(store, "sft", "3", parents=(newer_base,))
    tag(store, "sft@v1", "champion")
    dry = gc(store, dry_run=True)
    assert dry.removed == (unused,)
    assert dry.bytes >= unused.manifest.payload_bytes
    assert len(store.artifacts()) == 5
    assert gc(store) == dry
    assert store.artifacts() == [base, newer_base, champion, newest]
    assert gc(store, keep_last=0).removed == (newest, newer_base)


def test_gc_clears_the_work_of_finished_stages_and_keeps_that_of_others(store, make):
    done = make(store).manifest
    for name, fingerprint in ((done.name, done.fingerprint), ("dpo", "b" * 64)):
        folder = store.work_folder(name, fingerprint) / "work"
        folder.mkdir(parents=True)
        (folder / "checkpoint").write_bytes(b"x" * 1000)
    result = gc(store)
    assert result.leftovers == (f"sft-{done.short}",)
    assert result.bytes == 1000
    assert not store.resumable("sft", done.fingerprint)
    assert store.resumable("dpo", "b" * 64)


def test_gc_waits_for_nobody_and_refuses_while_a_stage_runs(store, make):
    make(store, "sft", "1")
    make(store, "sft", "2")
    with store.work("dpo", "b" * 64):
        with pytest.raises(PipelineError, match="stages are running: dpo-bbbbbbbbbbbb"):
            gc(store)
        assert len(gc(store, dry_run=True).removed) == 1
    assert len(gc(store).removed) == 1


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[Manifest], list[tuple[str, str]]]:
    """Manifests of which each is made from some of those before it, and the keys that are tagged."""
    manifests: list[Manifest] = []
    for n in range(draw(st.integers(1, 12))):
        parents = draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set()
        name = draw(st.sampled_from(["base", "sft", "dpo"]))
        inputs = [
            InputRecord(field="model", ref="x", name=p.name, kind="sft", fingerprint=p.fingerprint)
            for p in (manifests[i] for i in sorted(parents))
        ]
        manifests.append(
            Manifest(
                name=name,
                kind="sft",
                makes="model",
                version=1 + sum(m.name == name for m in manifests),
                fingerprint=f"{n:064x}"[::-1],
                digest=payload_digest({}),
                created="2026-01-01T00:00:00+00:00",
                inputs=inputs,
            )
        )
    tagged = draw(st.sets(st.sampled_from(range(len(manifests)))))
    return manifests, [manifests[i].key for i in sorted(tagged)]


def closure(manifests: list[Manifest], roots: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """All ancestors of ``roots`` and these, by repeated passes: a second way to the same answer."""
    reached = set(roots)
    for manifest in reversed(manifests):  # users come after what they were made from
        if manifest.key in reached:
            reached |= {(record.name, record.fingerprint) for record in manifest.inputs}
    return reached


@given(dags(), st.integers(0, 3))
def test_needed_is_closed_under_ancestors_and_no_larger_than_it_must_be(dag, keep_last):
    manifests, tagged = dag
    newest = {
        m.key
        for m in manifests
        if sum(other.name == m.name and other.version > m.version for other in manifests) < keep_last
    }
    assert needed(manifests, tagged, keep_last) == closure(manifests, newest | set(tagged))


@settings(max_examples=40)
@given(dags(), st.integers(0, 2))
def test_gc_of_a_real_store_never_removes_an_ancestor_of_a_tagged_artifact(dag, keep_last):
    manifests, tagged = dag
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for manifest in manifests:
            path = store.folder(*manifest.key)
            path.mkdir(parents=True)
            (path / "manifest.json").write_bytes(manifest.to_json())
        for n, (name, fingerprint) in enumerate(tagged):
            tag(store, f"{name}@{fingerprint}", f"tag{n}")
        removed = {artifact.manifest.key for artifact in gc(store, keep_last=keep_last).removed}
        assert not removed & closure(manifests, set(tagged))
        left = {artifact.manifest.key for artifact in store.artifacts()}
        assert left == {m.key for m in manifests} - removed
        for artifact in store.artifacts():  # nothing that stays has lost what it was made from
            assert all(record.key in left for record in artifact.manifest.inputs)
        assert not list(Path(folder).glob(".work/.removed/*"))
