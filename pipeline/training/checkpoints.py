"""Checkpoints of a trainer of transformers: whole or not there, for one process or many.

The trainer writes a folder, every process its part. Once all have, the first process writes `whole.json`, the list
of the files with their sizes, and removes older checkpoints. A folder without that list, or with a file that is not as
the list says, is what a kill or a lost disk left behind.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline.parallel.ranks import Ranks

WHOLE_FILE = "whole.json"


def mark_whole(folder: Path, keep: Path | None = None) -> None:
    """Declare a checkpoint whole and remove the others; called by every process once its part is written.

    Args:
        folder: the checkpoint.
        keep: another one that stays, the best so far.
    """
    ranks = Ranks.current()
    ranks.wait()
    if ranks.is_first:
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
        part = folder / f"{WHOLE_FILE}.part"
        part.write_text(json.dumps(sizes, sort_keys=True), encoding="utf-8")
        part.replace(folder / WHOLE_FILE)
        for other in folder.parent.glob("checkpoint-*"):
            if other not in (folder, keep):
                shutil.rmtree(other, ignore_errors=True)
    ranks.wait()


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in ``folder`` and remove those a kill left half written."""
    ranks = Ranks.current()
    if ranks.is_first:
        for path in folder.glob("checkpoint-*"):
            if not _is_whole(path):
                shutil.rmtree(path, ignore_errors=True)
    ranks.wait()
    whole = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step a checkpoint was taken at."""
    return int(checkpoint.name.rpartition("-")[2])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(WHOLE_FILE))


def _is_whole(path: Path) -> bool:
    try:
        sizes = json.loads((path / WHOLE_FILE).read_text(encoding="utf-8"))
        return bool(sizes) and all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, json.JSONDecodeError):
        return False
