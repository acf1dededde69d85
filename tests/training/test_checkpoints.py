"""A checkpoint is whole or not there, whatever was lost of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.training.checkpoint.completion import COMPLETE_FILE, mark_complete, newest_checkpoint

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "rng_state_0.pth",
    "global_step20/zero_pp_rank_1.pt",
    "trainer_state.json",
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[int], Path]:
    def make(step: int) -> Path:
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("something")
        return folder

    return make


def whole(folder: Path) -> Path:
    """Declare it whole without removing others, as a disk may show it after a kill between the two."""
    sizes = {name: len("something") for name in FILES}
    (folder / COMPLETE_FILE).write_text(json.dumps(sizes))
    return folder


def test_a_whole_checkpoint_replaces_those_before_it(tmp_path: Path, checkpoint: Callable[[int], Path]) -> None:
    old = checkpoint(9)
    mark_complete(old)
    new = checkpoint(10)
    mark_complete(new)
    assert newest_checkpoint(tmp_path / "checkpoints") == new
    assert not old.exists()


def test_the_newest_is_by_step_not_by_name(tmp_path: Path, checkpoint: Callable[[int], Path]) -> None:
    whole(checkpoint(9))
    newest = whole(checkpoint(100))
    whole(checkpoint(20))
    assert newest_checkpoint(tmp_path / "checkpoints") == newest


@pytest.mark.parametrize("lost", [*FILES, COMPLETE_FILE])
@pytest.mark.parametrize("how", ["gone", "empty", "cut"])
def test_half_a_checkpoint_is_ignored_and_removed(
    tmp_path: Path, checkpoint: Callable[[int], Path], lost: str, how: str
) -> None:
    """A machine that lost its power may have the names on its disk without their content."""
    older, half = whole(checkpoint(10)), whole(checkpoint(20))
    file = half / lost
    text = file.read_text()
    file.unlink() if how == "gone" else file.write_text("" if how == "empty" else text[:-3])
    assert newest_checkpoint(tmp_path / "checkpoints") == older
    assert not half.exists()


def test_no_checkpoints_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "never made") is None
