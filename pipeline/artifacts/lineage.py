"""Lineage of artifacts, the difference of two artifacts, and garbage collection.

Reads manifests; removes artifacts only in `gc`. Knows nothing of payloads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.artifacts.files import bury, is_locked, payload_bytes
from pipeline.artifacts.manifest import SHORT, InputRecord, Manifest
from pipeline.artifacts.refs import tags
from pipeline.artifacts.responses import unneeded_responses
from pipeline.artifacts.store import Artifact, Store
from pipeline.errors import PipelineError, Problem, listed
from pipeline.plain_data import JsonObject, JsonView

Key = tuple[str, str]
"""``(name, fingerprint)``."""


@dataclass(frozen=True)
class Node:
    """One artifact in a tree of ancestors or descendants.

    Attributes:
        name: name of the artifact, folder or hub repository.
        kind: kind of the stage that made it, or ``external``.
        fingerprint: fingerprint of the artifact.
        field: the configuration field through which it is an input; empty at the root.
        artifact: the artifact; None when it is not in this store.
        children: its inputs, or the artifacts made from it; empty when ``repeated``.
        repeated: whether an earlier node of the tree already has its children.
    """

    name: str
    kind: str
    fingerprint: str
    field: str = ""
    artifact: Artifact | None = None
    children: tuple[Node, ...] = ()
    repeated: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether it is an artifact that this store does not have."""
        return self.artifact is None and self.kind != "external"


def ancestors(store: Store, artifact: Artifact) -> Node:
    """Return the tree of the inputs from which ``artifact`` was made, directly and indirectly."""

    def inputs(manifest: Manifest) -> list[tuple[InputRecord, Artifact | None]]:
        return [(record, store.find(*record.key) if record.key else None) for record in manifest.parents]

    return _grow(_as_record(artifact, ""), artifact, inputs, set())


def descendants(store: Store, artifact: Artifact) -> Node:
    """Return the tree of the artifacts that were made from ``artifact``, directly and indirectly."""
    users: dict[Key, list[tuple[InputRecord, Artifact | None]]] = {}
    for user in store.artifacts():
        for record in user.manifest.parents:
            if record.key:
                users.setdefault(record.key, []).append((_as_record(user, record.field), user))
    return _grow(_as_record(artifact, ""), artifact, lambda manifest: users.get(manifest.key, []), set())


def _as_record(artifact: Artifact, field_name: str) -> InputRecord:
    manifest = artifact.manifest
    return InputRecord(
        field=field_name,
        ref=manifest.ref,
        name=manifest.name,
        kind=manifest.kind,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
    )


def _grow(
    record: InputRecord,
    artifact: Artifact | None,
    neighbours: Callable[[Manifest], list[tuple[InputRecord, Artifact | None]]],
    seen: set[Key],
) -> Node:
    following = neighbours(artifact.manifest) if artifact is not None else []
    repeated = bool(following) and (record.name, record.fingerprint) in seen
    seen.add((record.name, record.fingerprint))
    children = () if repeated else tuple(_grow(item, neighbour, neighbours, seen) for item, neighbour in following)
    return Node(record.name, record.kind, record.fingerprint, record.field, artifact, children, repeated)


@dataclass(frozen=True)
class Change:
    """One value in which two artifacts differ.

    Attributes:
        section: ``stage``, ``config``, ``inputs``, ``data``, ``metrics``, ``runtime``, ``environment`` or ``files``.
        key: dotted key, e.g. ``train.beta``.
        before: value in the first artifact; None when it has no such key.
        after: value in the second artifact; None when it has no such key.
    """

    section: str
    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Difference:
    """The difference of two artifacts.

    Attributes:
        changes: changes in the order of the sections of `Change`, keys sorted.
        same_payload: whether both payloads have the same bytes.
    """

    changes: tuple[Change, ...]
    same_payload: bool

    def section(self, name: str) -> list[Change]:
        """Return the changes of one section."""
        return [change for change in self.changes if change.section == name]


def diff(before: Manifest, after: Manifest) -> Difference:
    """Compare two artifacts, of the same name or of different names."""
    changes: list[Change] = []
    for section, facts in _FACTS.items():
        left, right = flatten(facts(before)), flatten(facts(after))
        changes += [
            Change(section, key, left.get(key), right.get(key))
            for key in sorted({*left, *right})
            if not _equal(left.get(key), right.get(key))
        ]
    return Difference(tuple(changes), before.digest == after.digest)


def flatten(data: JsonView, prefix: str = "") -> JsonObject:
    """Flatten nested mappings to one with dotted keys; lists are values."""
    flat: JsonObject = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _equal(left: object, right: object) -> bool:
    return bool(left == right) or (left != left and right != right)  # NaN metrics are equal


def _inputs(manifest: Manifest) -> JsonObject:
    named: dict[str, list[str]] = {}
    for record in manifest.inputs:
        named.setdefault(record.field, []).append(f"{record.name}@{record.fingerprint[:SHORT]}")
    return {key: value[0] if len(value) == 1 else value for key, value in named.items()}


_FACTS: dict[str, Callable[[Manifest], JsonObject]] = {
    "stage": lambda m: {"kind": m.kind, "kind_version": m.kind_version, "seed": m.seed},
    "config": lambda m: m.config,
    "inputs": _inputs,
    "data": lambda m: {key: {"digest": r.digest[:SHORT], "rows": r.rows} for key, r in m.data.items()},
    "metrics": lambda m: {**m.metrics, "tokens": m.tokens, "seconds": m.seconds},
    "runtime": lambda m: m.runtime,
    "environment": lambda m: m.environment,
    "files": lambda m: {f"`{path}`": record.sha256[:SHORT] for path, record in m.files.items()},
}


@dataclass(frozen=True)
class Collected:
    """Result of `gc`: what it removed, or would remove.

    Attributes:
        removed: removed artifacts, each before its inputs.
        kept: number of artifacts that stay.
        leftovers: names of the removed work areas of stages that were committed.
        bytes: space freed.
        responses: number of removed folders and files of sampled responses.
    """

    removed: tuple[Artifact, ...]
    kept: int
    leftovers: tuple[str, ...] = ()
    bytes: int = field(default=0)
    responses: int = 0


def needed(manifests: Iterable[Manifest], tagged: Iterable[Key], keep_last: int) -> set[Key]:
    """Return the keys of artifacts to keep: the newest of each name, the tagged ones, and the ancestors of both."""
    known = {manifest.key: manifest for manifest in manifests}
    by_name: dict[str, list[Manifest]] = {}
    for manifest in known.values():
        by_name.setdefault(manifest.name, []).append(manifest)
    queue: list[Key] = [key for key in tagged if key in known]
    for versions in by_name.values():
        newest_first = sorted(versions, key=lambda manifest: manifest.version, reverse=True)
        queue += [manifest.key for manifest in newest_first[:keep_last]]
    kept_keys: set[Key] = set()
    while queue:
        key = queue.pop()
        if key not in kept_keys:
            kept_keys.add(key)
            queue += [record.key for record in known[key].parents if record.key is not None and record.key in known]
    return kept_keys


def gc(store: Store, *, keep_last: int = 1, dry_run: bool = False) -> Collected:
    """Remove all artifacts but the tagged ones, the newest of each name, and the ancestors of both.

    The responses of models that no remaining artifact is or was made from go too.

    Args:
        store: the store.
        keep_last: number of newest versions of each name to keep; 0 keeps only tagged artifacts and their ancestors.
        dry_run: whether to only return what would be removed.

    Raises:
        PipelineError: a stage is running and may be reading artifacts.
    """
    if keep_last < 0:
        raise PipelineError(Problem(f"keep_last is {keep_last}", "must be 0 or more"))
    with store.lock():
        running = store.running()
        if running and not dry_run:
            raise PipelineError(
                Problem(
                    f"stages are running: {listed(running)}", "a store at rest", "wait until they end", str(store.root)
                )
            )
        artifacts = store.artifacts()
        tagged: list[Key] = []
        for ref, fingerprint in tags(store).items():
            tagged.append((ref.partition(":")[0], fingerprint))
        kept_keys = needed([artifact.manifest for artifact in artifacts], tagged, keep_last)
        removed = _users_first([artifact for artifact in artifacts if artifact.manifest.key not in kept_keys])
        leftovers = [
            area
            for area in sorted(store.root.glob(".work/*-*"))
            if store.is_finished(area) and not is_locked(area / "lock")
        ]
        stay = [artifact.manifest for artifact in artifacts if artifact.manifest.key in kept_keys]
        responses = unneeded_responses(store.root, stay)
        gone = [*(a.path for a in removed), *leftovers, *responses, store.graveyard]
        freed = sum(map(payload_bytes, gone))
        if not dry_run:
            for artifact in removed:
                store.forget(artifact)
            for path in (*leftovers, *responses):
                bury(path, store.graveyard)
    if not dry_run:
        store.sweep()
    areas = tuple(area.name for area in leftovers)
    return Collected(tuple(removed), len(stay), areas, freed, len(responses))


def _users_first(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Order artifacts for removal, each before its inputs: an interrupted removal leaves no artifact without them."""
    remaining = {artifact.manifest.key: artifact for artifact in artifacts}
    ordered: list[Artifact] = []

    def visit(key: Key) -> None:
        artifact = remaining.pop(key, None)
        if artifact is not None:
            for record in artifact.manifest.parents:
                if record.key is not None:
                    visit(record.key)
            ordered.append(artifact)

    for key in list(remaining):
        visit(key)
    return ordered[::-1]
