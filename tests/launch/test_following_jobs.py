"""What is said of jobs that end one after the other: answers of Slurm as they were seen, in a fixed order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Store
from pipeline.errors import StageFailed
from pipeline.plan import make_plan
from pipeline.recipe import load
from pipeline.run import cluster
from pipeline.run.runner import StopRequest
from pipeline.run.slurm import QueueState


class Silent:
    """A view that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **fields: None


def test_of_jobs_cancelled_together_the_one_that_was_running_is_named_however_long_it_saves(
    tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOOK_S", 0.01)
    monkeypatch.setattr(cluster, "ASK_EVERY_S", 0.05)
    planned = {stage.spec.name: stage for stage in make_plan(load(tiny_recipe), Store(tmp_path / "store")).stages}
    queue = {
        name: cluster.StageInQueue(planned[name], job, tmp_path / name)
        for name, job in (("base", "7"), ("sft", "8"), ("rm", "9"))
    }
    journal = tmp_path / "base" / "journal.jsonl"
    journal.parent.mkdir()
    journal.write_text(json.dumps({"event": "stage_started", "stage": "base", "resumed": False}) + "\n")
    asked = []

    def states(jobs: list[str]) -> dict[str, QueueState]:
        """The jobs that wait leave the queue first; the one that runs saves, says so, and leaves it last."""
        asked.append(jobs)
        base = "RUNNING" if len(asked) == 1 else "COMPLETING" if len(asked) < 20 else "CANCELLED"
        if base == "CANCELLED" and len(asked) == 20:
            stopped = {"event": "stage_failed", "stage": "base", "problems": ["stopped as asked"], "stopped": True}
            with journal.open("a") as file:
                file.write(json.dumps(stopped) + "\n")
        return {"7": QueueState(base), "8": QueueState("CANCELLED"), "9": QueueState("GONE")}

    monkeypatch.setattr(cluster.slurm, "states", states)
    monkeypatch.setattr(cluster.slurm, "cancel", lambda jobs: None)
    follower = cluster._Follower(queue, Store(tmp_path / "store"), Silent(), StopRequest())
    with pytest.raises(StageFailed, match=r"^stage base: job 7 was cancelled. Run again to resume"):
        follower.follow(queue["base"])
    assert len(asked) >= 20
