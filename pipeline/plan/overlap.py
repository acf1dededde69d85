"""Whether a stage is evaluated on prompts that one of its models has learnt from.

Owns the walk over what its inputs were made from, in the plan and in the store, and the index of the prompts of a
source. Two sources share prompts when their content is the same, whatever they are called, or when the first user turn
of a row is: what also decides the side of a held-out split. Pure but for reading files.

Left out: texts that quote a prompt somewhere in the middle; sources whose rows are neither here nor were read into this
store before, beyond their digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Store
from pipeline.disk import keep_if_possible
from pipeline.errors import PipelineError, listed
from pipeline.plan.fingerprint import source_options
from pipeline.plan.model import Plan, PlannedInput, PlannedStage
from pipeline.recipe import DataSource
from pipeline.records import LoadedRows, load
from pipeline.records.split import key
from pipeline.stage import KINDS, Data, Shapes

HELD_OUT_FIELDS = frozenset({"test"})
"""Fields of data that a stage measures itself by and does not learn from."""


@dataclass(frozen=True)
class _Source:
    """Rows as a stage takes them.

    Attributes:
        stage: that takes them.
        name: of the source in its recipe.
        digest: of their content.
        options: settings that change what the rows become.
        shape: they are taken in.
        source: where they are, if this recipe says so.
    """

    stage: str
    name: str
    digest: str
    options: Mapping[str, Any] = field(hash=False)
    shape: Shapes
    source: DataSource | None = field(default=None, compare=False)

    @property
    def held_out(self) -> float:
        """Share of the prompts that is split off."""
        return float(self.options.get("held_out", 0.0))


def overlap_warnings(plan: Plan, planned: PlannedStage, store: Store) -> tuple[str, ...]:
    """Return a sentence for each source that an input of an evaluation, or what it stands on, learnt the prompts of."""
    asked = _planned_source(plan, planned, "data")
    if asked is None or KINDS[planned.spec.kind].makes != "report":
        return ()
    users: dict[_Source, list[str]] = {}
    for item in (item for items in planned.inputs.values() for item in items):
        for learnt in dict.fromkeys(_learnt(plan, store, item, set())):
            users.setdefault(learnt, [])
            users[learnt] += [item.ref] if item.ref not in users[learnt] else []
    index = PromptIndex(store)
    shared = {learnt: _shared(asked, learnt, index) for learnt in users}
    return tuple(_sentence(asked, learnt, overlap, users[learnt]) for learnt, overlap in shared.items() if overlap)


def remember_prompts(store: Store, digest: str, source: DataSource, rows: LoadedRows) -> None:
    """Keep the prompts of rows that were read, for evaluations to come; a lost write only costs a warning."""
    if rows.shape != "text":
        PromptIndex(store).keep(digest, source_options(source), rows)


class PromptIndex:
    """The prompts of sources as hashes of 8 bytes, in files of the store's cache named by content."""

    def __init__(self, store: Store) -> None:
        self._folder = store.root / ".cache" / "prompts"

    def prompts(self, asked: _Source) -> tuple[Sequence[int], Sequence[int]] | None:
        """Return the prompts learnt from and those held out, one per row; None when nobody here has read them."""
        for shape in [asked.shape] if isinstance(asked.shape, str) else asked.shape:
            with contextlib.suppress(OSError, EOFError, ValueError, IndexError):
                content = array("Q", self._file(asked.digest, asked.options, shape).read_bytes())
                return content[1 : 1 + content[0]], content[1 + content[0] :]
        if asked.source is None or asked.source.path is None or asked.shape == "text":
            return None
        try:
            rows = load(asked.source, asked.shape, seed=0, name=asked.name)
        except PipelineError:
            return None  # the check of the rows says why
        return self.keep(asked.digest, asked.options, rows) if rows.shape != "text" else None

    def keep(self, digest: str, options: Mapping[str, Any], rows: LoadedRows) -> tuple[Sequence[int], Sequence[int]]:
        """Write the prompts of rows and return them."""
        train, held_out = ([_number(key(row, rows.shape)) for row in side] for side in (rows.train, rows.held_out))
        file = self._file(digest, options, rows.shape)
        keep_if_possible(file, array("Q", [len(train), *train, *held_out]).tobytes())
        return train, held_out

    def _file(self, digest: str, options: Mapping[str, Any], shape: str) -> Path:
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
    """Yield the sources that an input, and what it was made from, learnt from."""
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
    """Whether a stage of a kind learns from the rows of a field; a tokenizer remembers no prompt."""
    return kind in KINDS and KINDS[kind].makes != "tokenizer" and name not in HELD_OUT_FIELDS


def _learnt_by_artifact(store: Store, artifact: Artifact | None, seen: set[str]) -> Iterator[_Source]:
    """Yield the same for what is only in the store, by its manifest."""
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
    """Return how many of the prompts asked were learnt from, and of how many; (0, 0) when only that some were."""
    asked_prompts, learnt_prompts = index.prompts(asked), index.prompts(learnt)
    if asked_prompts is not None and learnt_prompts is not None:
        prompts, known = asked_prompts[1] or asked_prompts[0], set(learnt_prompts[0])
        count = sum(prompt in known for prompt in prompts)
        return (count, len(prompts)) if count else None
    is_held_out = 0 < asked.held_out <= learnt.held_out
    return (0, 0) if asked.digest == learnt.digest and not is_held_out else None


def _sentence(asked: _Source, learnt: _Source, shared: tuple[int, int], users: Sequence[str]) -> str:
    count, of = shared
    what = f"{count:,} of {of:,} prompts" if of else "the prompts"
    others = [user for user in users if user.partition("@")[0] != learnt.stage]
    whose = f"; {listed(others)} {'stands' if len(others) == 1 else 'stand'} on it" if others else ""
    named = "the same source" if asked.name == learnt.name else f"its source {learnt.name}"
    return (
        f"{what} of {asked.name} are ones that {learnt.stage} learnt from ({named}){whose}. Figures on them say what "
        f"was remembered. Ask prompts held out from training: `held_out` in both, or another file."
    )
