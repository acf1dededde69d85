"""One of two machines is started: it waits as long as it was told, says which is missing, and leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from waiting import living

pytestmark = pytest.mark.xdist_group("two hosts")


def _line(recipe: Path, store: Path, timeout_s: str) -> tuple[Any, ...]:
    shared = {"nodes": 2, "rendezvous": f"127.0.0.1:{free_port()}", "join_timeout_s": timeout_s}
    settings = [part for key, value in shared.items() for part in ("--set", f"stages.base.compute.{key}={value}")]
    steps = ("--set", "stages.base.train.max_steps=5", "--until", "base")
    return ("run", recipe, "--store", store, *settings, *steps)


@pytest.mark.parametrize(
    ("node", "said", "remedy"),
    [
        ((), "stage base: node 1 did not come within 2 s", "Run the same command there with --node-rank 1"),
        pytest.param(
            ("--node-rank", "1"),
            "node 0 did not start within 2 s",
            "Run the same command there without --node-rank",
            marks=pytest.mark.whole,
        ),
    ],
    ids=["only node 0", "only node 1"],
)
def test_the_other_machine_never_starts(
    node: tuple[str, ...], said: str, remedy: str, tmp_path: Path, tiny_recipe: Path, command: Any
) -> None:
    store = tmp_path / "store"
    process = command.start(*_line(tiny_recipe, store, "2"), *node, cwd=tmp_path)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 1, out + err
    last = err.strip().splitlines()[-1]
    assert said in last and remedy in last, err
    assert "Traceback" not in out + err
    assert living(process.pid) == []
    assert not (store / "base").exists()


def test_a_machine_that_comes_late_but_in_time_is_waited_for(tmp_path: Path, tiny_recipe: Path, command: Any) -> None:
    line = _line(tiny_recipe, tmp_path / "store", "120")
    first = command.start(*line, cwd=tmp_path)
    assert first.stdout is not None
    said = ""
    while "waits for node 1" not in said:
        row = first.stdout.readline()
        assert row, said + first.communicate()[1]
        said += row
    time.sleep(2.5)  # longer than the machine of the test above would have waited
    second = command.start(*line, "--node-rank", "1", cwd=tmp_path)
    outs = [process.communicate(timeout=800) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outs
    assert "2 processes" in outs[0][0]
