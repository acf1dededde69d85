"""How far a push or a pull is, and what it did: counts only, shared by the threads that move files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.artifacts.manifest import Manifest


@dataclass(frozen=True)
class Progress:
    """How far a transfer is.

    Attributes:
        ref: artifact now moving.
        path: file of it.
        done_bytes: moved or found in place, of all artifacts.
        total_bytes: of all artifacts.
    """

    ref: str
    path: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Transfer:
    """What a push or a pull did.

    Attributes:
        moved: refs of artifacts that are now at the destination and were not before.
        present: refs of artifacts that were there already.
        different: refs of those among `present` whose payload there has other bytes; it was left as it is.
        missing: ancestors the source does not have, ``name@fingerprint12``.
        files: files moved.
        files_kept: files found in place from an earlier, cut-off transfer.
        bytes: bytes moved.
    """

    moved: tuple[str, ...]
    present: tuple[str, ...]
    different: tuple[str, ...]
    missing: tuple[str, ...]
    files: int
    files_kept: int
    bytes: int


@dataclass
class Tally:
    """Counts of a transfer in progress, shared by its threads."""

    total_bytes: int
    progress: Callable[[Progress], None] | None
    missing: tuple[str, ...]
    done_bytes: int = 0
    moved_bytes: int = 0
    files: int = 0
    files_kept: int = 0
    moved: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, ref: str, path: str, *, moved: int = 0, kept: int = 0) -> None:
        """Count bytes and report progress."""
        with self.lock:
            self.moved_bytes += moved
            self.done_bytes += moved + kept
            if self.progress is not None:
                self.progress(Progress(ref, path, self.done_bytes, self.total_bytes))

    def file(self, *, kept: bool) -> None:
        """Count a file."""
        with self.lock:
            self.files_kept += kept
            self.files += not kept

    def was_present(self, manifest: Manifest, there: Manifest) -> None:
        """Count an artifact the destination already had, as ``there``."""
        self.present.append(there.ref)
        if there.digest != manifest.digest:
            self.different.append(there.ref)
        self.add(manifest.ref, "", kept=manifest.payload_bytes)

    def result(self) -> Transfer:
        """Return what was done."""
        return Transfer(
            moved=tuple(self.moved),
            present=tuple(self.present),
            different=tuple(self.different),
            missing=self.missing,
            files=self.files,
            files_kept=self.files_kept,
            bytes=self.moved_bytes,
        )
