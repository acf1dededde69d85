"""The records of a plan: stages, their inputs and their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from pipeline.artifacts import Artifact
from pipeline.plain_data import JsonObject
from pipeline.recipe import Recipe, StageSpec

FORCED = "forced"


class Payload(TypedDict, total=False):
    """The plain data whose hash is a stage's fingerprint; empty for a stage that cannot be planned.

    Attributes:
        kind: the stage's kind.
        kind_version: version of the kind.
        config: fields of the configuration that can change a result.
        seed: seed of the stage.
        inputs: field to the fingerprints of its inputs.
        data: field to the digest of the source's content, under ``digest``, and the options that change its rows.
        code: field to the fingerprints of its user functions.
        precision: number format of the computation, if the recipe names one.
        trust_remote_code: true if the recipe trusts code of repositories.
    """

    kind: str
    kind_version: int
    config: JsonObject
    seed: int
    inputs: dict[str, list[str]]
    data: dict[str, JsonObject]
    code: dict[str, list[str]]
    precision: str
    trust_remote_code: bool


@dataclass(frozen=True)
class PlannedInput:
    """An artifact, folder or hub model that a stage reads.

    Attributes:
        field: configuration field that names it.
        ref: as the recipe writes it.
        name: name of the stage that makes it, of the folder, or of the hub repository.
        kind: kind of that stage, or ``external``.
        fingerprint: fingerprint of the artifact, hash of the folder's content, or ``hub:ID@REVISION``.
        artifact: payload directory or local folder; None for a pending stage and for the hub.
        external: whether it is a folder or a hub id.
    """

    field: str
    ref: str
    name: str
    kind: str
    fingerprint: str
    artifact: Path | None
    external: bool = False


@dataclass(frozen=True)
class PlannedData:
    """A data source that a stage reads.

    Attributes:
        field: configuration field that names the source.
        source_name: name of the source in the recipe.
        digest: digest of its content; for an artifact, its fingerprint and file.
        rows: number of rows; 0 when not known before they are read.
        input: the artifact, if the source is one.
    """

    field: str
    source_name: str
    digest: str
    rows: int
    input: PlannedInput | None = None


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its inputs and whether it must run.

    Attributes:
        spec: the stage as the recipe has it.
        fingerprint: hash of everything that can change its result.
        status: ``cached`` if the store has its artifact.
        why: reasons to run it, one line each; empty when cached.
        inputs: inputs by field, in the order of the field's names.
        data: data sources by field.
        artifact: the cached artifact.
        resumable: whether an earlier attempt left checkpoints.
        payload: the data whose hash is the fingerprint; the manifest stores it as `config`.
    """

    spec: StageSpec
    fingerprint: str
    status: Literal["cached", "pending"]
    why: tuple[str, ...]
    inputs: dict[str, list[PlannedInput]]
    data: dict[str, PlannedData]
    artifact: Artifact | None
    resumable: bool
    payload: Payload


@dataclass(frozen=True)
class Plan:
    """The requested stages of a recipe in the order they run.

    Attributes:
        recipe: the recipe.
        stages: the requested stages in topological order, otherwise in the recipe's order.
        notes: notes for the user before running it.
        data_artifacts: name of an artifact used as a data source to its payload directory, if the store has it.
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
        """Return the payload directory of an artifact that a data source names; None if the store does not have it."""
        return self.data_artifacts.get(ref)
