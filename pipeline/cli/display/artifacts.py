"""Shows artifacts: as rows of a listing, and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.artifacts import Artifact, Manifest
from pipeline.artifacts.manifest import DataRecord
from pipeline.cli.terminal import Column, age, print_table, size
from pipeline.errors import counted
from pipeline.plain_data import JsonObject

_COLUMNS = (
    Column("artifact", style="bold"),
    Column("kind"),
    Column("fingerprint", style="dim"),
    Column("created"),
    Column("size", right=True),
    Column("tags", style="cyan"),
    Column("summary", fold=True, style="dim"),
)


def artifact_row(artifact: Artifact, tags: Mapping[str, str]) -> list[str]:
    """Return the cells of an artifact's row in a listing."""
    manifest = artifact.manifest
    return [
        artifact.ref,
        manifest.kind,
        manifest.short,
        age(manifest.created),
        size(manifest.payload_bytes),
        " ".join(labels_of(manifest, tags)),
        manifest.summary,
    ]


def artifact_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a listing, without the columns that are empty in every row."""
    shown = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
    print_table([_COLUMNS[index] for index in shown], [[row[index] for index in shown] for row in rows])


def labels_of(manifest: Manifest, tags: Mapping[str, str]) -> list[str]:
    """Return the tags of an artifact, without the name before the colon."""
    return sorted(
        label
        for name, _, label in (full.partition(":") for full in tags)
        if name == manifest.name and tags[f"{name}:{label}"] == manifest.fingerprint
    )


def rows_text(manifest: Manifest, record: DataRecord) -> str:
    """Return ``1,200 rows``, or ``5 of 1,200 rows`` where the stage used a part of the source only."""
    used = manifest.rows_used(record)
    total = counted(record.rows, "row")
    return total if used == record.rows else f"{used:,} of {total}"


def artifact_data(artifact: Artifact, tags: Mapping[str, str]) -> JsonObject:
    """Return an artifact as plain data for `--json`."""
    manifest = artifact.manifest
    return {
        "ref": artifact.ref,
        "name": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind,
        "makes": manifest.makes,
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
        "bytes": manifest.payload_bytes,
        "files": len(manifest.files),
        "seconds": manifest.seconds,
        "tokens": manifest.tokens,
        "metrics": manifest.metrics,
        "tags": labels_of(manifest, tags),
        "summary": manifest.summary,
        "path": str(artifact.path),
    }
