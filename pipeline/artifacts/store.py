"""The store: a folder of immutable artifacts, shared safely by any number of processes.

    <store>/<name>/<fingerprint12>/         an artifact: payload and manifest.json
    <store>/.work/<name>-<fingerprint12>/   a stage in progress: payload/  work/  lock
    <store>/.responses/                     what checkpoints said (`responses.py`)
    <store>/.lock, .tags.json, .versions.json

An artifact appears by one rename, after all of its bytes were flushed to disk, so every visible artifact is complete.
Knows nothing of recipes and stages, nor of the meaning of a payload.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

from pydantic import ValidationError

from pipeline.artifacts.card import card
from pipeline.artifacts.files import (
    bury,
    flush,
    flush_tree,
    has_files,
    is_locked,
    locked,
    move,
    open_as_usual,
    payload_files,
    write_durably,
)
from pipeline.artifacts.manifest import (
    MANIFEST_FILE,
    SHORT,
    Manifest,
    ManifestFields,
    check_fingerprint,
    check_name,
    parse_manifest,
    payload_digest,
    problems_of,
)
from pipeline.artifacts.payload import payload_problems, payload_records
from pipeline.errors import Interrupted, PipelineError, Problem
from pipeline.plain_data import JsonObject

CARD_FILE = "README.md"
_FOLDER = re.compile(rf"[0-9a-f]{{{SHORT}}}")


@dataclass(frozen=True)
class Artifact:
    """The committed output of a stage.

    Attributes:
        path: folder with the payload and the manifest.
        manifest: its metadata.
    """

    path: Path
    manifest: Manifest

    @property
    def ref(self) -> str:
        """``name@vN``."""
        return self.manifest.ref


class WorkArea:
    """The folder of a stage in progress; `Store.work` holds its lock while it is in use.

    Attributes:
        payload: folder that becomes the artifact; empty at first.
        scratch: folder of checkpoints, including those of an earlier, killed attempt.
        arriving: folder of a transfer's files; survives a kill like `scratch`.
        finished: whether the area was committed or discarded.
    """

    def __init__(self, store: Store, name: str, fingerprint: str) -> None:
        self._store = store
        self.name = name
        self.fingerprint = fingerprint
        self.folder = store.work_folder(name, fingerprint)
        self.payload = self.folder / "payload"
        self.scratch = self.folder / "work"
        self.arriving = self.folder / "arriving"
        self._replaced = self.folder / "replaced"
        self.finished = False

    def open(self) -> None:
        """Repair the state that a killed attempt left, and empty the payload."""
        self.restore()
        shutil.rmtree(self.payload, ignore_errors=True)
        self.payload.mkdir(parents=True)
        self.scratch.mkdir(exist_ok=True)

    def restore(self) -> None:
        """Restore an artifact whose replacement was interrupted between its two renames."""
        if (self._replaced / MANIFEST_FILE).is_file():
            final = self._store.folder(self.name, self.fingerprint)
            with self._store.lock():
                if not final.exists():
                    move(self._replaced, final)

    def commit(self, *, replace: bool = False, **fields: Unpack[ManifestFields]) -> Artifact:
        """Commit the payload as an artifact.

        If another process committed the same fingerprint first, its artifact is kept and returned.

        Args:
            replace: whether to replace an artifact with the same fingerprint, under a new version.
            **fields: what the run knows; the store sets name, version, fingerprint, digest, created and files.

        Raises:
            PipelineError: the payload has pickles, links or unsafe names, or a field is invalid.
        """
        known = {"name": self.name, "fingerprint": self.fingerprint, "created": _now()}
        if fields.get("makes") in ("model", "reward"):
            self._write_card({**fields, **known})
        files = payload_records(self.payload)
        manifest = self._manifest({**fields, **known, "files": files, "digest": payload_digest(files), "version": 1})
        return self.publish(self.payload, manifest, replace=replace)

    def publish(self, payload: Path, manifest: Manifest, *, replace: bool = False, renumber: bool = True) -> Artifact:
        """Move ``payload`` to its final name; the hashes of ``manifest`` must already match it.

        Args:
            payload: folder on the store's file system.
            manifest: manifest of that payload; its version is set here.
            replace: see `commit`.
            renumber: false keeps the manifest's version unless another artifact of that name has it.
        """
        store = self._store
        final = store.folder(self.name, self.fingerprint)
        flush_tree(payload)
        with store.lock():
            if final.exists() and not replace:
                self.finished = True
                return store.read(final)
            taken = {artifact.manifest.version for artifact in store.artifacts(self.name)}
            if renumber or manifest.version in taken:
                manifest = manifest.model_copy(update={"version": store.next_version(self.name, taken)})
            text = manifest.to_json()
            write_durably(payload / MANIFEST_FILE, text)
            open_as_usual(payload, payload / MANIFEST_FILE)
            if not final.parent.exists():
                final.parent.mkdir()
                flush(store.root)
            if final.exists():
                shutil.rmtree(self._replaced, ignore_errors=True)
                move(final, self._replaced)
            move(payload, final)
        self.finished = True
        return Artifact(final, parse_manifest(text, str(final)))

    def discard(self) -> None:
        """Discard the attempt: `close` removes its payload and checkpoints."""
        self.finished = True

    def close(self) -> None:
        """Remove the area if it was committed or discarded, or has nothing to resume from."""
        if self.finished or not (has_files(self.scratch) or has_files(self.arriving)):
            bury(self.folder, self._store.graveyard)
            self._store.sweep()

    def _write_card(self, fields: JsonObject) -> None:
        draft = self._manifest({**fields, "files": {}, "digest": payload_digest({}), "version": 1})
        chain = self._store.ancestry(draft)
        (self.payload / CARD_FILE).write_text(card(draft, chain, payload_files(self.payload)), encoding="utf-8")

    def _manifest(self, fields: JsonObject) -> Manifest:
        try:
            return Manifest.model_validate(fields)
        except ValidationError as error:
            raise PipelineError(*problems_of(error, str(self.payload))) from None


class Store:
    """A folder of artifacts.

    Attributes:
        root: the folder; created by the first write.
        graveyard: folder of removed artifacts and work areas, emptied by `sweep`.
    """

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            raise PipelineError(
                Problem(
                    found=f"store `{root}` is a URL",
                    expected="a local folder",
                    remedy="work in a local store and move artifacts with `trueup push` and `trueup pull`",
                )
            )
        try:
            self.root = Path(root).expanduser().resolve()
        except RuntimeError as error:  # a cycle of links, or a user without a home
            raise PipelineError(Problem(f"store `{root}` is nowhere: {error}", "a folder")) from None
        self.graveyard = self.root / ".work" / ".removed"

    def folder(self, name: str, fingerprint: str) -> Path:
        """Return the folder of an artifact, which need not exist."""
        return self.root / check_name(name) / check_fingerprint(fingerprint)[:SHORT]

    def work_folder(self, name: str, fingerprint: str) -> Path:
        """Return the work folder of a stage, which need not exist."""
        return self.root / ".work" / f"{check_name(name)}-{check_fingerprint(fingerprint)[:SHORT]}"

    def find(self, name: str, fingerprint: str) -> Artifact | None:
        """Return the artifact with this name and fingerprint; None when there is none.

        Raises:
            PipelineError: its manifest cannot be read, or is that of another name or fingerprint.
        """
        path = self.folder(name, fingerprint)
        if not (path / MANIFEST_FILE).is_file():
            return None
        artifact = self.read(path)
        if artifact.manifest.key != (name, fingerprint):
            raise PipelineError(
                Problem(
                    found=f"folder holds {artifact.manifest.name} {artifact.manifest.fingerprint}",
                    expected=f"{name} {fingerprint}",
                    remedy="move that folder away",
                    where=str(path),
                )
            )
        return artifact

    def read(self, path: Path) -> Artifact:
        """Return the artifact in a folder."""
        file = path / MANIFEST_FILE
        try:
            return Artifact(path, parse_manifest(file.read_bytes(), str(file)))
        except OSError as error:
            raise PipelineError(Problem(found=f"cannot read the manifest: {error.strerror}", where=str(file))) from None

    def names(self) -> list[str]:
        """Return the names that have at least one artifact, sorted."""
        return sorted({path.parent.name for path in self._folders("*")})

    def artifacts(self, name: str | None = None) -> list[Artifact]:
        """Return the artifacts of one name, or all, sorted by name and version; reads only manifests."""
        pattern = "*" if name is None else check_name(name)
        artifacts = [self.read(path) for path in self._folders(pattern)]
        return sorted(artifacts, key=lambda artifact: (artifact.manifest.name, artifact.manifest.version))

    def _folders(self, pattern: str) -> list[Path]:
        candidates = self.root.glob(f"{pattern}/*/{MANIFEST_FILE}")
        paths = (file.parent for file in candidates)
        return [path for path in paths if _FOLDER.fullmatch(path.name) and not path.parent.name.startswith(".")]

    def ancestry(self, manifest: Manifest) -> list[Manifest]:
        """Return the manifests of the ancestors of ``manifest`` that are in this store, nearest first."""
        ancestors: dict[tuple[str, str], Manifest] = {}
        queue = [manifest]
        while queue:
            for record in queue.pop(0).parents:
                if record.key is None or record.key in ancestors:
                    continue
                artifact = self.find(*record.key)
                if artifact is not None:
                    ancestors[record.key] = artifact.manifest
                    queue.append(artifact.manifest)
        return list(ancestors.values())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the whole store, during a change of its visible content."""
        with locked(self.root / ".lock"):
            yield

    @contextlib.contextmanager
    def work(
        self,
        name: str,
        fingerprint: str,
        *,
        waiting: Callable[[], None] | None = None,
        stopping: Callable[[], bool] | None = None,
    ) -> Iterator[WorkArea]:
        """Hold the work area of a stage, so that no other process makes the same artifact concurrently.

        Args:
            name: name of the stage.
            fingerprint: fingerprint of the stage.
            waiting: called once if another process holds the area; call `find` again after the wait.
            stopping: called while waiting; true ends the wait.

        Raises:
            Interrupted: ``stopping`` returned true.
        """
        area = WorkArea(self, name, fingerprint)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(area.folder / "lock", waiting=waiting, stopping=stopping))
            except InterruptedError:
                raise Interrupted(Problem("stopped while waiting for another run of this stage", stage=name)) from None
            area.open()
            try:
                yield area
            finally:
                area.close()

    def resumable(self, name: str, fingerprint: str) -> bool:
        """Return whether an earlier attempt left checkpoints."""
        return has_files(self.work_folder(name, fingerprint) / "work")

    def running(self) -> list[str]:
        """Return the stages that a process is running, as ``name-fingerprint12``."""
        return sorted(lock.parent.name for lock in self.root.glob(".work/*/lock") if is_locked(lock))

    def is_finished(self, area: Path) -> bool:
        """Return whether a work area's artifact exists, so that no run will resume from the area."""
        name, _, short = area.name.rpartition("-")
        return (self.root / name / short / MANIFEST_FILE).is_file()

    def verify(self, artifact: Artifact) -> list[Problem]:
        """Hash every file of an artifact again and return the differences from its manifest."""
        return payload_problems(artifact.path, artifact.manifest.files)

    def remove(self, artifact: Artifact) -> None:
        """Remove an artifact; the caller checks whether another artifact still needs it (see `lineage.gc`)."""
        with self.lock():
            self.forget(artifact)
        self.sweep()

    def forget(self, artifact: Artifact) -> None:
        """Move an artifact to the graveyard; the caller holds the store's lock and calls `sweep` later.

        Its version number is never used again.
        """
        name, version = artifact.manifest.name, artifact.manifest.version
        highest = self._highest_versions()
        if version > highest.get(name, 0):
            highest[name] = version
            write_durably(self.root / ".versions.json", json.dumps(highest, indent=1, sort_keys=True).encode())
        bury(self.folder(*artifact.manifest.key), self.graveyard)
        with contextlib.suppress(OSError):
            self.folder(*artifact.manifest.key).parent.rmdir()

    def sweep(self) -> None:
        """Delete the content of the graveyard, including what a killed process left in it."""
        for grave in self.graveyard.glob("*"):
            if grave.is_dir():
                shutil.rmtree(grave, ignore_errors=True)
            else:
                grave.unlink(missing_ok=True)

    def next_version(self, name: str, taken: set[int]) -> int:
        """Return the version number of the next artifact of a name."""
        return max(self._highest_versions().get(name, 0), *taken, 0) + 1

    def _highest_versions(self) -> dict[str, int]:
        file = self.root / ".versions.json"
        if not file.is_file():
            return {}
        versions: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
        return versions


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
