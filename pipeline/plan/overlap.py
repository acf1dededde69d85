"""Finds prompts of an evaluation, or of a report on pairs, that one of the models was trained on.

Owns the walk over the ancestors of an evaluation's inputs, in the plan and in the store, and the index of a source's
prompts. Two sources share prompts if they have the same digest, or rows with the same first user turn, which is also
the key of the held-out split. Has no side effects except reading files and writing the index.

Not covered: texts that quote a prompt in the middle. Sources whose rows are not on this machine and were never read
into this store are compared by digest only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.artifacts import Artifact, Store
from pipeline.errors import PipelineError, counted, listed
from pipeline.machine.disk import keep_if_possible
from pipeline.plain_data import JsonView
from pipeline.plan.fingerprint import source_options
from pipeline.plan.model import Plan, PlannedInput, PlannedStage
from pipeline.recipe import DataSource
from pipeline.records import LoadedRows, load
from pipeline.records.split import key
from pipeline.stage import KINDS, Data, Shapes


@dataclass(frozen=True)
class _Source:
    """A data source as one stage reads it.

    Attributes:
        stage: name of the stage.
        name: name of the source in the stage's recipe.
        digest: digest of the source's content.
        options: settings of the source that change its rows.
        shape: shape the stage reads.
        source: the data source, if it is one of this recipe.
    """

    stage: str
    name: str
    digest: str
    options: JsonView = field(hash=False)
    shape: Shapes
    source: DataSource | None = field(default=None, compare=False)

    @property
    def held_out(self) -> float:
        """Share of the prompts that is held out."""
        return float(self.options.get("held_out", 0.0))

    def bounds(self, *, is_asked: bool) -> tuple[float, float]:
        """Return the shares between which the prompts lie that an evaluation asks, or else those of training."""
        low, high = map(float, self.options.get("part") or (0.0, 1.0))
        if not self.held_out:
            return low, high
        return (low, self.held_out) if is_asked else (self.held_out, high)


def overlap_warnings(plan: Plan, planned: PlannedStage, store: Store) -> tuple[str, ...]:
    """Return a sentence for each training source, of an evaluation's inputs or their ancestors, that shares prompts.

    A stage that compares a policy with its reference is told only of what the policy learnt and the reference did not.
    """
    kind = KINDS[planned.spec.kind]
    tested = [name for name in planned.data if kind.traits.holds and kind.traits.reading(name).is_test]
    asked = _planned_source(plan, planned, tested[0] if tested else "data")
    if asked is None or not (tested or kind.makes == "report"):
        return ()
    fields, references = (kind.traits.holds[:1], kind.traits.holds[1:]) if tested else (tuple(planned.inputs), ())
    common = {
        learnt for name in references for item in planned.inputs[name] for learnt in _learnt(plan, store, item, set())
    }
    users: dict[_Source, list[str]] = {}
    for item in (item for name in fields for item in planned.inputs[name]):
        for learnt in dict.fromkeys(one for one in _learnt(plan, store, item, set()) if one not in common):
            users.setdefault(learnt, [])
            users[learnt] += [item.ref] if item.ref not in users[learnt] else []
    index = PromptIndex(store)
    shared = {learnt: _shared(asked, learnt, index) for learnt in users}
    return tuple(_sentence(asked, learnt, overlap, users[learnt]) for learnt, overlap in shared.items() if overlap)


def remember_prompts(store: Store, digest: str, source: DataSource, rows: LoadedRows) -> None:
    """Store the prompts of rows for the overlap checks of later evaluations; a lost write only loses a warning."""
    if rows.shape != "text":
        PromptIndex(store).keep(digest, source_options(source), rows)


class PromptIndex:
    """Index of the prompts of sources as 8-byte hashes, in cache files named by the source's content."""

    def __init__(self, store: Store) -> None:
        self._folder = store.root / ".cache" / "prompts"

    def prompts(self, asked: _Source) -> tuple[Sequence[int], Sequence[int]] | None:
        """Return the hashes of training and of held-out prompts, one per row; None when the rows cannot be read."""
        for shape in [asked.shape] if isinstance(asked.shape, str) else asked.shape:
            with contextlib.suppress(OSError, EOFError, ValueError, IndexError):
                content = array("Q", self._file(asked.digest, asked.options, shape).read_bytes())
                return content[1 : 1 + content[0]], content[1 + content[0] :]
        if asked.source is None or asked.source.path is None or asked.shape == "text":
            return None
        try:
            rows = load(asked.source, asked.shape, seed=0, name=asked.name)
        except PipelineError:
            return None  # preflight reports the reason
        return self.keep(asked.digest, asked.options, rows) if rows.shape != "text" else None

    def keep(self, digest: str, options: JsonView, rows: LoadedRows) -> tuple[Sequence[int], Sequence[int]]:
        """Write the hashes of the rows' prompts; return those of training and of held-out rows."""
        train, held_out = ([_number(key(row, rows.shape)) for row in side] for side in (rows.train, rows.held_out))
        file = self._file(digest, options, rows.shape)
        keep_if_possible(file, array("Q", [len(train), *train, *held_out]).tobytes())
        return train, held_out

    def _file(self, digest: str, options: JsonView, shape: str) -> Path:
        text = json.dumps([digest, dict(options), shape], sort_keys=True)
        return self._folder / hashlib.sha256(text.encode()).hexdigest()[:32]


def _number(prompt: str) -> int:
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")


def _planned_source(plan: Plan, planned: PlannedStage, name: str) -> _Source | None:
    item = planned.data.get(name)
    if item is None:
        return None
    marker: Data = type(planned.spec.config).markers(Data)[name]
    source = plan.recipe.data[item.source_name]
    return _Source(planned.spec.name, item.source_name, item.digest, source_options(source), marker.shape, source)


def _learnt(plan: Plan, store: Store, item: PlannedInput, seen: set[str]) -> Iterator[_Source]:
    """Yield the sources that an input and its ancestors were trained on."""
    if item.fingerprint in seen:
        return
    seen.add(item.fingerprint)
    planned = next((stage for stage in plan.stages if stage.fingerprint == item.fingerprint), None)
    if planned is None:
        artifact = store.find(item.name, item.fingerprint) if not item.external else None
        yield from _learnt_by_artifact(store, artifact, seen)
        return
    for name, data in planned.data.items():
        source = _planned_source(plan, planned, name)
        if source is not None and _learns(planned.spec.kind, name):
            yield source
        if data.input is not None:
            yield from _learnt(plan, store, data.input, seen)
    for items in planned.inputs.values():
        for parent in items:
            yield from _learnt(plan, store, parent, seen)


def _learns(kind: str, name: str) -> bool:
    """Return whether a stage of a kind trains on the rows of a field; tokenizers do not count."""
    return kind in KINDS and KINDS[kind].makes != "tokenizer" and not KINDS[kind].traits.reading(name).is_test


def _learnt_by_artifact(store: Store, artifact: Artifact | None, seen: set[str]) -> Iterator[_Source]:
    """Yield the sources that an artifact in the store and its ancestors were trained on, from the manifests."""
    if artifact is None:
        return
    manifest = artifact.manifest
    markers: dict[str, Data] = KINDS[manifest.kind].config.markers(Data) if manifest.kind in KINDS else {}
    for name, record in manifest.data.items():
        recorded = manifest.config.get("data", {}).get(name, {})
        options = {word: value for word, value in recorded.items() if word != "digest"}
        if name in markers and _learns(manifest.kind, name):
            yield _Source(manifest.name, record.source, record.digest, options, markers[name].shape)
    for parent in manifest.parents:
        if parent.key is not None and parent.fingerprint not in seen:
            seen.add(parent.fingerprint)
            yield from _learnt_by_artifact(store, store.find(*parent.key), seen)


def _shared(asked: _Source, learnt: _Source, index: PromptIndex) -> tuple[int, int] | None:
    """Return how many evaluated prompts were trained on, and of how many; (0, 0) if only the digests are known."""
    asked_prompts, learnt_prompts = index.prompts(asked), index.prompts(learnt)
    if asked_prompts is not None and learnt_prompts is not None:
        prompts, known = asked_prompts[1] or asked_prompts[0], set(learnt_prompts[0])
        count = sum(prompt in known for prompt in prompts)
        return (count, len(prompts)) if count else None
    low, high = asked.bounds(is_asked=True)
    learnt_low, learnt_high = learnt.bounds(is_asked=False)
    return (0, 0) if asked.digest == learnt.digest and low < learnt_high and learnt_low < high else None


def _sentence(asked: _Source, learnt: _Source, shared: tuple[int, int], users: Sequence[str]) -> str:
    count, of = shared
    what = f"{count:,} of {counted(of, 'prompt')}" if of else "the prompts"
    are = "is one that" if count == 1 and of else "are ones that"
    others = [user for user in users if user.partition("@")[0] != learnt.stage]
    whose = f"; {listed(others)} {'stands' if len(others) == 1 else 'stand'} on it" if others else ""
    named = "the same source" if asked.name == learnt.name else f"its source {learnt.name}"
    return (
        f"{what} of {asked.name} {are} {learnt.stage} learnt from ({named}){whose}. Figures on them say what "
        "was remembered. Ask prompts held out from training: `held_out` in both, parts that do not meet, or another "
        "file."
    )
