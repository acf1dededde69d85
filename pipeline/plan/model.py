"""What a plan is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts import Artifact
from pipeline.recipe import Recipe, StageSpec

FORCED = "forced"


@dataclass(frozen=True)
class PlannedInput:
    """An artifact, folder or hub model that a stage reads.

    Attributes:
        field: configuration field that names it.
        ref: as the recipe writes it.
        name: of the stage that makes or made it; the folder's or the hub repository's name.
        kind: of that stage, or ``external``.
        fingerprint: of the artifact; of the folder's content; ``hub:ID@REVISION``.
        artifact: payload directory or local folder; None while pending and for the hub.
        external: a folder or a hub id.
    """

    field: str
    ref: str
    name: str
    kind: str
    fingerprint: str
    artifact: Path | None
    external: bool


@dataclass(frozen=True)
class PlannedData:
    """Rows a stage reads.

    Attributes:
        field: configuration field that names the source.
        source_name: name of the source in the recipe.
        digest: of its content; of the artifact and file it is, when it is one.
        rows: rows in it; 0 when not known before it is read.
        input: the artifact it is, if it is one.
    """

    field: str
    source_name: str
    digest: str
    rows: int
    input: PlannedInput | None = None


@dataclass(frozen=True)
class PlannedStage:
    """A stage with what it reads and whether it must run.

    Attributes:
        spec: the stage as the recipe has it.
        fingerprint: of everything that can change its result.
        status: ``cached`` when the store has it.
        why: reasons it must run, one line each; empty when cached.
        inputs: by field, in the order the field names them.
        data: by field.
        artifact: the cached artifact.
        resumable: an earlier attempt left checkpoints.
        payload: what the fingerprint is the hash of; the manifest keeps it as `config`.
    """

    spec: StageSpec
    fingerprint: str
    status: Literal["cached", "pending"]
    why: tuple[str, ...]
    inputs: dict[str, list[PlannedInput]]
    data: dict[str, PlannedData]
    artifact: Artifact | None
    resumable: bool
    payload: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A recipe resolved to what has to be done.

    Attributes:
        recipe: the recipe.
        stages: what was asked for, each after what it needs, otherwise in the recipe's order.
        notes: what a person should know before running it.
        data_artifacts: payload directories of the artifacts that data sources name and the store has.
        unplanned: names of stages that cannot be planned because of problems (empty in a plan that runs).
    """

    recipe: Recipe
    stages: tuple[PlannedStage, ...]
    notes: tuple[str, ...] = ()
    data_artifacts: Mapping[str, Path] = field(default_factory=dict)
    unplanned: tuple[str, ...] = ()

    @property
    def pending(self) -> tuple[PlannedStage, ...]:
        """The stages that must run."""
        return tuple(stage for stage in self.stages if stage.status == "pending")

    def data_artifact(self, ref: str) -> Path | None:
        """Return the payload directory of an artifact that a data source names, if the store has it."""
        return self.data_artifacts.get(ref)
