"""Progress and result of a push or a pull: counters, shared by the threads that transfer files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.artifacts.manifest import Manifest


@dataclass(frozen=True)
class Progress:
    """Progress of a transfer.

    Attributes:
        ref: artifact being transferred.
        path: its file being transferred.
        done_bytes: bytes transferred or already at the destination, of all artifacts.
        total_bytes: payload bytes of all artifacts.
    """

    ref: str
    path: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Transfer:
    """Result of a push or a pull.

    Attributes:
        moved: refs of the artifacts that were transferred.
        present: refs of the artifacts that the destination already had.
        different: refs of those among `present` whose payload at the destination differs; it was left unchanged.
        missing: ancestors the source does not have, ``name@fingerprint12``.
        files: number of files transferred.
        files_kept: number of files that an earlier, interrupted transfer had left at the destination.
        bytes: bytes transferred.
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
    """Counters of a transfer in progress, shared by its threads."""

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
        """Count an artifact that the destination already has with the manifest ``there``."""
        self.present.append(there.ref)
        if there.digest != manifest.digest:
            self.different.append(there.ref)
        self.add(manifest.ref, "", kept=manifest.payload_bytes)

    def result(self) -> Transfer:
        """Return the counters as the result of the transfer."""
        return Transfer(
            moved=tuple(self.moved),
            present=tuple(self.present),
            different=tuple(self.different),
            missing=self.missing,
            files=self.files,
            files_kept=self.files_kept,
            bytes=self.moved_bytes,
        )
