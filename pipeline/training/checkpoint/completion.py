"""Marks checkpoints of a transformers Trainer as complete, so that a partial one is never loaded.

Every process writes its files into the checkpoint's folder. Once all have, the first process writes `whole.json`, the
list of the files with their sizes, and removes older checkpoints. A folder without that list, or whose files do not
match it, was left behind by a kill or a lost disk.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline.parallel.ranks import Ranks

COMPLETE_FILE = "whole.json"


def mark_complete(folder: Path, keep: Path | None = None) -> None:
    """Mark a checkpoint as complete and remove the others; every process calls it after writing its files.

    Args:
        folder: folder of the checkpoint.
        keep: another checkpoint that stays, that of the best evaluation so far.
    """
    ranks = Ranks.current()
    ranks.barrier()
    if ranks.is_first:
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
        part = folder / f"{COMPLETE_FILE}.part"
        part.write_text(json.dumps(sizes, sort_keys=True), encoding="utf-8")
        part.replace(folder / COMPLETE_FILE)
        for other in folder.parent.glob("checkpoint-*"):
            if other not in (folder, keep):
                shutil.rmtree(other, ignore_errors=True)
    ranks.barrier()


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in ``folder``, and remove incomplete ones."""
    ranks = Ranks.current()
    if ranks.is_first:
        for path in folder.glob("checkpoint-*"):
            if not _is_complete(path):
                shutil.rmtree(path, ignore_errors=True)
    ranks.barrier()
    complete = [path for path in folder.glob("checkpoint-*") if _is_complete(path)]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step a checkpoint was taken at."""
    return int(checkpoint.name.rpartition("-")[2])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(COMPLETE_FILE))


def _is_complete(path: Path) -> bool:
    try:
        sizes = json.loads((path / COMPLETE_FILE).read_text(encoding="utf-8"))
        return bool(sizes) and all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, json.JSONDecodeError):
        return False
