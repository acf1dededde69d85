"""Several processes sample what one does, byte for byte, and a rerun after a kill goes on with what they had.

The processes are started by the real command.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import Answer, JudgeServer, last_text
from waiting import until

from pipeline.artifacts import Artifact, Store

pytestmark = pytest.mark.xdist_group("sampling processes")

STAGES = """
  candidates:
    kind: sample
    data: asks
    models: [base, sft, dpo]
    temperatures: [0.8, 1.3]
    n: 2
    max_new_tokens: 12
    log_probabilities: true
  compared:
    kind: evaluate
    data: asks
    models: [base, sft, dpo]
    baseline: sft
    gold: gold.py:gold
    max_new_tokens: 12
    resamples: 100
  many: {kind: sample, data: asks, models: [sft, dpo], temperatures: [1.3], n: 40, max_new_tokens: 16}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, make_tiny_world: Callable[[Path], Path]) -> Path:
    """A tiny world whose recipe has other stages in place of the report."""
    file = make_tiny_world(tmp_path_factory.mktemp("sampling") / "world")
    before, after = file.read_text().split("  report:\n")
    file.write_text(before.rstrip() + STAGES + "compute:" + after.split("compute:")[1])
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Path, chain: Any, call: Any) -> Callable[..., Artifact]:
    """Run a stage in a store of its own, where nothing was answered before, and return its artifact."""

    def stage(name: str, *sets: str, store: Path | None = None, force: bool = False) -> Artifact:
        place = store or _store(tmp_path_factory.mktemp(name) / "store", chain)
        more = [*_options(sets), *(["--force", name] if force else [])]
        ended = call("run", recipe, "--store", place, "--only", name, *more, cwd=recipe.parent)
        assert ended.returncode == 0, ended.stderr
        return Store(place).artifacts(name)[-1]

    return stage


def _options(sets: tuple[str, ...]) -> list[str]:
    return [word for each in sets for word in ("--set", each)]


def _store(place: Path, chain: Any) -> Path:
    """Copy the chain's artifacts, without what its models were asked."""
    shutil.copytree(chain.store.root, place, ignore=shutil.ignore_patterns(".runs", ".responses"))
    return place


def _reused(artifact: Artifact) -> int:
    return int(artifact.manifest.runtime["ran"]["sampling"]["responses_reused"])


def _same_files(one: Artifact, other: Artifact) -> bool:
    return {path: record.sha256 for path, record in one.manifest.files.items()} == {
        path: record.sha256 for path, record in other.manifest.files.items()
    }


def test_a_forced_stage_samples_anew(run: Callable[..., Any], tmp_path: Path, chain: Any) -> None:
    store = _store(tmp_path / "store", chain)
    first = run("compared", store=store)
    again = run("compared", store=store, force=True)
    assert again.manifest.version == 2 and _reused(again) == 0
    assert _same_files(first, again)


@pytest.mark.parametrize(
    ("stage", "engine", "sets"),
    [
        ("candidates", "batched", ("compute.processes=4",)),
        ("candidates", "generate", ("compute.processes=2",)),
        # A layout that trains sharded models: those that only answer are whole in each process.
        ("compared", "batched", ("compute.processes=2", "compute.tensor_parallel=2")),
    ],
)
def test_several_processes_sample_the_texts_of_one(
    stage: str, engine: str, sets: tuple[str, ...], run: Callable[..., Any]
) -> None:
    samples_by = f"stages.{stage}.engine={engine}"
    alone, together = run(stage, samples_by), run(stage, samples_by, *sets)
    assert together.manifest.runtime["processes"] > 1 == together.manifest.runtime["tensor_parallel"]
    assert _reused(alone) == _reused(together) == 0
    assert together.manifest.fingerprint == alone.manifest.fingerprint
    assert _same_files(alone, together)


def test_several_processes_ask_an_endpoint_once_for_all(
    recipe: Path, tmp_path: Path, chain: Any, run: Callable[..., Any], call: Any
) -> None:
    """The first process asks, and all others wait for it; the artifact is that of one process."""
    said = JudgeServer(
        lambda text, times: Answer(f"it is {text} ."), lambda body: f"{last_text(body)} {body['seed'] % 10}"
    )
    with said.running() as server:
        sets = tuple(
            f"stages.candidates.{word}"
            for word in (f"endpoints.big={{url: '{server.url}', model: m, parallel: 3}}", "models=[sft]", "limit=9")
        )
        alone = run("candidates", *sets)
        asked = len(server.asked)
        together = run("candidates", *sets, "compute.processes=3")
        assert asked == len(server.asked) - asked == 9 * 2 * 2
        full = ("stages.candidates.endpoints.big.max_calls=35", "compute.processes=3")
        options = _options((*sets, *full))
        store = _store(tmp_path / "full", chain)
        over = call("run", recipe, "--store", store, "--only", "candidates", *options, cwd=recipe.parent)
        assert over.returncode == 2 and "endpoints.big.max_calls is 35" in over.stderr
        assert len(server.asked) == 2 * asked
    assert together.manifest.fingerprint == alone.manifest.fingerprint
    assert together.manifest.runtime["ran"]["endpoints"] == {"big": {"calls_sent": 36, "cached": 0}}
    assert _same_files(alone, together)


@pytest.mark.parametrize("engine", ["batched", "generate"])
def test_a_killed_rank_is_told_of_and_the_rerun_ends_in_the_same_bytes(
    engine: str, tmp_path: Path, recipe: Path, chain: Any, command: Any, run: Callable[..., Any]
) -> None:
    sets = (f"stages.many.engine={engine}", "compute.processes=2")
    undisturbed, store = run("many", sets[0]), _store(tmp_path / "store", chain)
    line = ("run", recipe, "--store", store, "--only", "many", *_options(sets))
    process = command.start(*line, cwd=recipe.parent)
    try:
        until(lambda: list(store.glob(".responses/*/*.json")) or process.poll() is not None, "a batch")
        (rank,) = store.glob(".work/many-*/work/ranks/0/pid-1")
        os.kill(int(rank.read_text()), signal.SIGKILL)
        _, err = process.communicate(timeout=600)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1 and "stage many: rank 1 was killed by signal 9" in err
    kept = len(list(store.glob(".responses/*/*.json")))
    again = run("many", *sets, store=store)
    assert 0 < _reused(again) == 24 * kept < 24 * 80  # 24 prompts are one batch
    assert _same_files(again, undisturbed)
