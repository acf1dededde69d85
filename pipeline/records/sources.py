"""Locates the rows of a data source: files of a path, files of an artifact, or a data set of the Hugging Face hub.

Owns the lookup of files and the call to `datasets`. Knows nothing of what is in a row. Code of a data set is never
executed: `trust_remote_code` is not passed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

from pipeline.errors import PipelineError, Problem, listed
from pipeline.recipe.paths import is_data_file, suffix_of
from pipeline.records.files.opening import RawRow

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Source(Protocol):
    """The fields of a recipe's data source that this package reads; exactly one of files, hub and artifact is set.

    Attributes:
        hub: id of a data set on the hub, ``owner/name``.
        revision: commit, tag or branch of the hub's data set.
        subset: configuration of the hub's data set.
        hub_split: split of the hub's data set.
        artifact: name or ref of the artifact whose files hold the rows.
        file: file of the artifact, relative to its folder.
        format: row format, or ``auto``.
        columns: the file's column names to the names that formats read.
        on_bad_row: ``stop`` or ``skip``.
        held_out: share of prompts split off.
        part: shares between which the positions of the prompts used lie; None for all prompts.
        limit: number of first rows to use.
        system: system message for rows that have none.
        files: absolute paths of the files of a path.
    """

    @property
    def hub(self) -> str | None: ...  # noqa: D102
    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def subset(self) -> str | None: ...  # noqa: D102
    @property
    def hub_split(self) -> str: ...  # noqa: D102
    @property
    def artifact(self) -> str | None: ...  # noqa: D102
    @property
    def file(self) -> str | None: ...  # noqa: D102
    @property
    def format(self) -> str: ...  # noqa: D102
    @property
    def columns(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def on_bad_row(self) -> Literal["stop", "skip"]: ...  # noqa: D102
    @property
    def held_out(self) -> float: ...  # noqa: D102
    @property
    def part(self) -> tuple[float, float] | None: ...  # noqa: D102
    @property
    def limit(self) -> int | None: ...  # noqa: D102
    @property
    def system(self) -> str | None: ...  # noqa: D102
    @property
    def files(self) -> tuple[Path, ...]: ...  # noqa: D102


def files_of(source: Source, artifact: Path | None) -> tuple[Path, ...]:
    """Return the files that hold the rows of a path or of an artifact.

    Args:
        source: a source that is not on the hub.
        artifact: payload folder of the artifact the source names, None when it names none.

    Raises:
        PipelineError: there is no file, or the artifact's file is ambiguous or outside of the artifact.
    """
    if source.artifact is not None:
        return (_artifact_file(source, artifact),)
    if not source.files:
        raise PipelineError(Problem("no file matches the path of the data source", "at least one file", "check `path`"))
    return tuple(source.files)


def _artifact_file(source: Source, folder: Path | None) -> Path:
    if folder is None:
        raise PipelineError(Problem(f"artifact `{source.artifact}` is not made yet", "", "run its stage first"))
    root = folder.resolve()
    if source.file is not None:
        path = (root / source.file).resolve()
        if not path.is_relative_to(root):
            statement = f"file `{source.file}` lies outside of artifact `{source.artifact}`"
            raise PipelineError(Problem(statement, "a path inside of it", "correct `file`"))
        if path.is_file():
            return path
    candidates = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if _is_data_file(path)]
    if source.file is None and len(candidates) == 1:
        return root / candidates[0]
    has = f"has {listed(candidates) or 'no data file'}"
    if source.file is None:
        raise PipelineError(Problem(f"artifact `{source.artifact}` {has}", "one file", "name it with `file:`"))
    statement = f"artifact `{source.artifact}` has no file `{source.file}`"
    raise PipelineError(Problem(statement, f"it {has}", "correct `file`"))


def _is_data_file(path: Path) -> bool:
    # JSON and text files in an artifact are manifests, configurations and BPE merges, not rows.
    return path.is_file() and is_data_file(path) and suffix_of(path.name) not in (".json", ".txt")


def hub_place(source: Source) -> str:
    """Return ``hub:owner/name@revision (subset, split)``, which is also the hashed content of a hub source's digest."""
    revision = f"@{source.revision}" if source.revision else ""
    return f"hub:{source.hub}{revision} ({', '.join(filter(None, (source.subset, source.hub_split)))})"


def hub_rows(source: Source) -> Iterator[RawRow]:
    """Yield the rows of a data set on the hub, downloaded or from the local cache.

    Raises:
        PipelineError: it cannot be loaded: no such data set, subset or split, or no connection.
    """
    hub_id = source.hub or ""
    if not HUB_ID.fullmatch(hub_id) or Path(hub_id).exists():
        statement = f"hub id `{hub_id}` is {'a local path' if Path(hub_id).exists() else 'not an id'}"
        raise PipelineError(Problem(statement, "`owner/name`", "use `path:` for files"))
    import datasets  # slow to load; only hub data sets need it

    try:
        rows = datasets.load_dataset(hub_id, source.subset, split=source.hub_split, revision=source.revision)
    except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise their own
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        statement = f"cannot load data set: {type(error).__name__}: {reason}"
        expected = "a data set of the hub, and a connection or a cached copy"
        raise PipelineError(
            Problem(statement, expected, "check id, subset, split, network", hub_place(source))
        ) from error
    _check_revision(source, [file["filename"] for file in rows.cache_files])
    for number, row in enumerate(rows, start=1):
        yield RawRow(number, dict(row))


def _check_revision(source: Source, cached: list[str]) -> None:
    """Check that cached rows are of the requested commit; offline, `datasets` takes any commit in its cache."""
    if not COMMIT.fullmatch(source.revision or ""):
        return
    commits = {part for file in cached for part in Path(file).parts if COMMIT.fullmatch(part)}
    if commits - {source.revision}:
        statement = f"the local copy is of commit {', '.join(sorted(commits))}"
        remedy = "connect to fetch it, or name the commit there is"
        raise PipelineError(Problem(statement, f"commit {source.revision}", remedy, hub_place(source)))
