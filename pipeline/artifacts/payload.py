"""The payload of an artifact: hashes its files at commit, verifies them later, and refuses pickles.

Takes folders and records; knows nothing of the layout of a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.artifacts.files import is_pickle, payload_files, sha256_of
from pipeline.artifacts.manifest import MANIFEST_FILE, PICKLE_SUFFIXES, FileRecord
from pipeline.errors import PipelineError, Problem, listed

_REPAIR = "remove the artifact, then pull it or run its stage again"


def payload_records(root: Path) -> dict[str, FileRecord]:
    """Return the hash and size of every file below ``root``, except a manifest.

    Raises:
        PipelineError: an entry is a link, a device or a pickle.
    """
    try:
        files = payload_files(root)
    except ValueError as error:
        raise PipelineError(Problem(found=str(error), expected="files and folders only", where=str(root))) from None
    files.pop(MANIFEST_FILE, None)
    refuse_pickles(root, files)
    return {path: FileRecord(sha256=sha256_of(file), bytes=file.stat().st_size) for path, file in files.items()}


def refuse_pickles(root: Path, files: Mapping[str, Path]) -> None:
    """Check that no file is a pickle, by its suffix or its content.

    Raises:
        PipelineError: there are pickles; the problem names all.
    """
    bad = [path for path, file in files.items() if file.suffix.lower() in PICKLE_SUFFIXES or is_pickle(file)]
    if bad:
        raise PipelineError(
            Problem(
                found=f"pickle files in the payload: {listed(bad)}",
                expected="safetensors, because loading a pickle runs code",
                remedy="save with `save_pretrained`, or keep such files in the scratch folder",
                where=str(root),
            )
        )


def payload_problems(root: Path, files: Mapping[str, FileRecord]) -> list[Problem]:
    """Hash every file again and return the differences from the records."""
    location = str(root)
    try:
        present = payload_files(root)
    except ValueError as error:
        return [Problem(found=str(error), expected="files and folders only", where=location)]
    present.pop(MANIFEST_FILE, None)
    problems = [
        Problem(found=f"`{path}` is not in the manifest", remedy="remove it", where=location)
        for path in present
        if path not in files
    ]
    for path, record in files.items():
        if path not in present:
            problems.append(Problem(found=f"`{path}` is missing", remedy=_REPAIR, where=location))
        elif (size := present[path].stat().st_size) != record.bytes:
            problems.append(Problem(f"`{path}` has {size:,} bytes", f"expected {record.bytes:,}", _REPAIR, location))
        elif (sha256 := sha256_of(present[path])) != record.sha256:
            problems.append(
                Problem(f"`{path}` has sha256 {sha256[:12]}…", f"expected {record.sha256[:12]}…", _REPAIR, location)
            )
    return problems
