"""The manifest of an artifact, `manifest.json`, and the rules for names and paths in it.

Owns the schema and its checks: a manifest with a path outside the artifact, or with pickle files, cannot be loaded.
Knows nothing of folders, locks or remotes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Self, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject, JsonView

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
SHORT = 12
"""Hex digits of a fingerprint that name an artifact's folder."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"})
NAME_RULE = "letters, digits, `_`, `.` and `-`, beginning with a letter or digit"


def _safe_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"`{name}` is not a name: {NAME_RULE}")
    return name


def _fingerprint(text: str) -> str:
    if not FINGERPRINT.fullmatch(text):
        raise ValueError(f"`{text[:80]}` is not a sha256 in 64 lower-case hex digits")
    return text


def _safe_path(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or not path.isprintable():
        raise ValueError(f"`{path}` is not a path inside the artifact")
    if path == MANIFEST_FILE:
        raise ValueError(f"`{MANIFEST_FILE}` may not be part of the payload")
    if PurePosixPath(path).suffix.lower() in PICKLE_SUFFIXES:
        raise ValueError(f"`{path}` may hold pickled code; only safetensors and plain data are stored")
    return path


Name = Annotated[str, AfterValidator(_safe_name)]
Sha256 = Annotated[str, AfterValidator(_fingerprint)]
PayloadPath = Annotated[str, AfterValidator(_safe_path)]


class Record(BaseModel):
    """Base of the parts of a manifest: frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class InputRecord(Record):
    """An input of the stage that made the artifact, as it was then.

    Attributes:
        field: configuration field that named the input.
        ref: the ref in the recipe.
        name: stage name of the artifact, or the name of the folder or hub repository.
        kind: kind of the stage that made it, or ``external``.
        version: version number in the store it was read from; None when external.
        fingerprint: identifies the input in every store.
    """

    field: str
    ref: str
    name: str
    kind: str
    version: int | None = None
    fingerprint: str

    @property
    def key(self) -> tuple[str, str] | None:
        """``(name, fingerprint)`` of the artifact; None when the input cannot be an artifact of a store."""
        if NAME.fullmatch(self.name) and FINGERPRINT.fullmatch(self.fingerprint) and self.kind != "external":
            return self.name, self.fingerprint
        return None


class DataRecord(Record):
    """A data source the artifact was made from.

    Attributes:
        source: name of the data source in the recipe.
        digest: SHA-256 of the canonical rows.
        rows: number of rows read.
        rejected: number of bad rows skipped, as the recipe allows.
        outside: number of rows whose prompt is not in the source's part.
        where: files, hub id or artifact the rows came from.
        artifact: the artifact that contained the rows, if one did; it counts as an ancestor.
    """

    source: str
    digest: str
    rows: int = 0
    rejected: int = 0
    outside: int = 0
    where: list[str] = []
    artifact: InputRecord | None = None


class FileRecord(Record):
    """One file of the payload."""

    sha256: Sha256
    bytes: int = Field(ge=0)


def payload_digest(files: Mapping[str, FileRecord]) -> str:
    """Return the SHA-256 over the sorted lines ``path sha256`` of a payload."""
    lines = sorted(f"{path} {record.sha256}\n" for path, record in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Manifest(Record):
    """Metadata of an artifact.

    Attributes:
        schema_version: version of this schema.
        name: name of the stage.
        kind: kind of the stage.
        kind_version: version of that kind.
        makes: how the artifact can be used: ``model``, ``tokenizer``, ``reward``, ``report``.
        version: 1, 2, 3, … per name, in the order of commits to this store.
        fingerprint: SHA-256 of everything that can change the result.
        digest: SHA-256 of the payload, see `payload_digest`.
        created: ISO time, UTC.
        recipe: the resolved recipe.
        config: the resolved configuration of the stage.
        seed: seed of every random generator.
        runtime: compute settings, which cannot change the result; `ran` records how the stage used them.
        inputs: artifacts, folders and hub models it was made from.
        data: rows it was made from, by configuration field.
        files: hash and size of each payload file, by path.
        metrics: final values.
        best: best values, with the step at which they were measured.
        rows: counts such as ``train`` and ``held_out``.
        tokens: number of tokens trained on or generated.
        seconds: wall time of the stage.
        trainer_seconds: seconds inside the trainer; for an `evaluate` stage, inside the evaluation.
        scoring_seconds: seconds of scoring beside the training: a reference model, held-out pairs.
        tokens_per_s: tokens per trainer second.
        peak_memory_mib: peak resident memory of a process.
        lineage: provenance of the weights, see `provenance.py`.
        environment: package versions, commit, device.
        summary: short sentences for people.
    """

    schema_version: int = SCHEMA_VERSION
    name: Name
    kind: str
    kind_version: int = 1
    makes: str
    version: int = Field(ge=1)
    fingerprint: Sha256
    digest: Sha256
    created: str
    recipe: JsonObject = {}
    config: JsonObject = {}
    seed: int = 0
    runtime: JsonObject = {}
    inputs: list[InputRecord] = []
    data: dict[str, DataRecord] = {}
    files: dict[PayloadPath, FileRecord] = {}
    metrics: dict[str, float] = {}
    best: dict[str, float] = {}
    rows: dict[str, int] = {}
    tokens: int = 0
    seconds: float = 0.0
    trainer_seconds: float = 0.0
    scoring_seconds: float = 0.0
    tokens_per_s: float = 0.0
    peak_memory_mib: float = 0.0
    lineage: JsonObject = {}
    environment: JsonObject = {}
    summary: str = ""

    @model_validator(mode="after")
    def _digest_fits_files(self) -> Self:
        if payload_digest(self.files) != self.digest:
            raise ValueError("the digest is not that of the files listed")
        return self

    @property
    def key(self) -> tuple[str, str]:
        """``(name, fingerprint)``, which identifies the artifact in every store."""
        return self.name, self.fingerprint

    @property
    def ref(self) -> str:
        """``name@vN``, which identifies the artifact in its own store."""
        return f"{self.name}@v{self.version}"

    def rows_used(self, record: DataRecord) -> int:
        """Return how many rows of a data source the stage was given: those of its `part`, and at most its `limit`.

        `DataRecord.rows` counts all rows of the source, because its digest is over all of them.
        """
        limit: Any = self.recipe
        for key in ("resolved", "data", record.source, "limit"):
            limit = limit.get(key) if isinstance(limit, Mapping) else None
        rows = record.rows - record.outside
        return min(rows - record.rejected, limit) if isinstance(limit, int) else rows

    @property
    def short(self) -> str:
        """First hex digits of the fingerprint, the name of the artifact's folder."""
        return self.fingerprint[:SHORT]

    @property
    def payload_bytes(self) -> int:
        """Size of the payload in bytes."""
        return sum(record.bytes for record in self.files.values())

    @property
    def parents(self) -> list[InputRecord]:
        """Records of the direct ancestors: the inputs, then the artifacts that contained its data."""
        return [*self.inputs, *(record.artifact for record in self.data.values() if record.artifact is not None)]

    def to_json(self) -> bytes:
        """Return the bytes of `manifest.json`."""
        return (self.model_dump_json(indent=1) + "\n").encode()


class ManifestFields(TypedDict, total=False):
    """The fields of a `Manifest` that a run fills; the store sets the others.

    Attributes: see `Manifest`.
    """

    kind: str
    kind_version: int
    makes: str
    recipe: JsonView
    config: JsonView
    seed: int
    runtime: JsonView
    inputs: list[InputRecord]
    data: dict[str, DataRecord]
    metrics: dict[str, float]
    best: dict[str, float]
    rows: dict[str, int]
    tokens: int
    seconds: float
    trainer_seconds: float
    scoring_seconds: float
    tokens_per_s: float
    peak_memory_mib: float
    lineage: JsonView
    environment: JsonView
    summary: str


def parse_manifest(text: bytes | str, where: str) -> Manifest:
    """Parse and validate a manifest.

    Args:
        text: content of a `manifest.json`.
        where: path or URL of the file, for the error.

    Raises:
        PipelineError: not JSON, a newer schema, an unknown key, an unsafe name or path, a wrong digest.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        newer = _schema_version(text)
        if newer > SCHEMA_VERSION:
            raise PipelineError(
                Problem(
                    found=f"manifest has schema version {newer}",
                    expected=f"this trueup reads up to {SCHEMA_VERSION}",
                    remedy="upgrade trueup",
                    where=where,
                )
            ) from None
        raise PipelineError(*problems_of(error, where)) from None


def problems_of(error: ValidationError, where: str) -> list[Problem]:
    """Convert the validation errors of a manifest to problems, one each."""
    problems = []
    for item in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"] if part != "[key]")
        message = item["msg"].removeprefix("Value error, ")
        problems.append(Problem(found=f"manifest {key}: {message}" if key else f"manifest: {message}", where=where))
    return problems


def _schema_version(text: bytes | str) -> int:
    try:
        data = json.loads(text)
    except ValueError:
        return 0
    version = data.get("schema_version") if isinstance(data, dict) else None
    return version if isinstance(version, int) else 0


def check_name(name: str, what: str = "name") -> str:
    """Return ``name`` if it is valid as the name of a store's folder.

    Raises:
        PipelineError: it is not.
    """
    if not NAME.fullmatch(name):
        raise PipelineError(Problem(found=f"{what} `{name}`", expected=NAME_RULE))
    return name


def check_fingerprint(fingerprint: str) -> str:
    """Return ``fingerprint`` if it is complete.

    Raises:
        PipelineError: it is not 64 hex digits.
    """
    if not FINGERPRINT.fullmatch(fingerprint):
        raise PipelineError(Problem(found=f"fingerprint `{fingerprint[:80]}`", expected="64 lower-case hex digits"))
    return fingerprint
