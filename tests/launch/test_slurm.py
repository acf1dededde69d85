"""A chain as jobs of a real Slurm (conftest.py): cancelled, preempted, out of time, failed; the bits of a local run."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from pipeline.artifacts import Store
from pipeline.plan import make_plan
from pipeline.preferences.anchors import default_url
from pipeline.preferences.items import items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch
from pipeline.preferences.ledger import Ledger
from pipeline.recipe import inspect, load
from pipeline.records.loading import load as rows_of

pytestmark = pytest.mark.xdist_group("slurm")

SLURM = ("--set", "compute.launcher=slurm", "--set", "compute.slurm.time=10")


def _digests(store: Path) -> dict[str, str]:
    return {artifact.manifest.name: artifact.manifest.digest for artifact in Store(store).artifacts()}


def test_a_chain_of_jobs_makes_the_bits_of_a_local_run(
    tmp_path: Path, tiny_recipe: Path, chain: Any, cluster: Any
) -> None:
    store = tmp_path / "store"
    code, out = cluster.trueup("run", tiny_recipe, "--store", store, *SLURM, cwd=tmp_path)
    assert code == 0, out
    assert _digests(store) == chain.digests
    assert "starting in job" in out and "6 made, 0 from the store" in out
    jobs = {name.removeprefix("tiny-"): number for name, (number, _) in cluster.jobs().items()}
    (script,) = store.glob(".runs/*/dpo/*_submission.sh")
    assert f"#SBATCH --dependency=afterok:{jobs['sft']}\n" in script.read_text()


def _steps(store: Path) -> list[int]:
    """Return the steps of the whole checkpoints of `base`."""
    files = store.glob(".work/base-*/work/checkpoints/checkpoint-*/whole.json")
    return sorted(int(file.parent.name.rpartition("-")[2]) for file in files)


def _is_training(store: Path, after: int = 0) -> Callable[[], bool]:
    return lambda: any(step > after for step in _steps(store))


def _requeued(cluster: Any, job: str) -> Callable[[], bool]:
    return lambda: cluster.jobs()["tiny-base"] == (job, "PENDING")


def test_jobs_outlive_the_command_lose_their_node_and_are_cancelled_and_the_bits_are_those_of_a_local_run(
    tmp_path: Path, tiny_recipe: Path, command: Any, journal: Any, cluster: Any
) -> None:
    long = ("--until", "sft", "--set", "stages.base.train.max_steps=1500")
    ended = command("run", tiny_recipe, "--store", tmp_path / "local", *long, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    store = tmp_path / "store"
    line = ("run", tiny_recipe, "--store", store, *long, *SLURM)

    # Ctrl-C leaves the jobs alone.
    process = cluster.start(*line, cwd=tmp_path)
    until(_is_training(store), "the first checkpoint")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=800)
    assert process.returncode == 130 and "no longer following; the jobs go on: base (" in out, out
    job, state = cluster.jobs()["tiny-base"]
    assert state == "RUNNING"

    # The node is needed for something else, then the time is over: saved, back in the queue, resumed, each time.
    for sent in ("TERM", "USR2"):
        before = _steps(store)[-1]
        cluster("scancel", f"--signal={sent}", job)
        until(_requeued(cluster, job), f"the requeue after {sent}")
        saved = _steps(store)[-1]
        assert saved >= before
        until(_is_training(store, after=saved), "training again")

    # The same command finds the job; cancelled, it is an error, and what it did is kept.
    process = cluster.start(*line, cwd=tmp_path)
    saved = _steps(store)[-1]
    until(_is_training(store, after=saved), "more training")
    code, said = cluster.trueup("cancel", tiny_recipe, "--store", store, *long, *SLURM, cwd=tmp_path)
    assert code == 0 and f"cancelled base (job {job})" in said and "cancelled sft" in said, said
    out, _ = process.communicate(timeout=800)
    assert process.returncode == 1 and f"stage base: job {job} was cancelled. Run again to resume" in out, out
    assert "Traceback" not in out
    assert not (store / "base").exists()

    code, out = cluster.trueup(*line, cwd=tmp_path)
    assert code == 0, out
    assert "resumes at step" in out
    assert cluster.jobs()["tiny-base"][0] != job
    assert _digests(store) == _digests(tmp_path / "local")
    lines = [
        line for file in sorted(store.glob(".runs/*/base/journal.jsonl")) for line in file.read_text().splitlines()
    ]
    starts = [event["resumed"] for event in map(json.loads, lines) if event["event"] == "stage_started"]
    assert starts == [False, True, True, True]


def test_jobs_that_need_a_failed_one_are_cancelled_and_the_error_names_it_and_its_log(
    tmp_path: Path, tiny_recipe: Path, chain: Any, cluster: Any
) -> None:
    store = tmp_path / "store"
    shutil.copytree(chain.store.root, store, ignore=shutil.ignore_patterns(".runs"))
    line = ("run", tiny_recipe, "--store", store, *SLURM, "--set", "stages.sft.train.learning_rate=1.0e+30")
    code, out = cluster.trueup(*line, cwd=tmp_path)
    (last,) = [row for row in out.splitlines() if row.startswith("stage sft: ")]
    assert code == 1 and "Traceback" not in out, out
    assert "the loss is" in last and "log: " in last and "cancelled: rm, dpo, report" in last
    log = Path(last.partition("log: ")[2].partition(";")[0])
    assert "the loss is" in log.read_text()
    after = {name: state for name, (_, state) in cluster.jobs().items()}
    assert {after[f"tiny-{name}"] for name in ("rm", "dpo", "report")} == {"CANCELLED"}


def test_a_run_on_the_cluster_waits_for_people_and_then_goes_on(tmp_path: Path, chain: Any, cluster: Any) -> None:
    rows = [{"prompt": f"ask {n}", "chosen": f"right {n}", "rejected": f"wrong {n}"} for n in range(4)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, store = tmp_path / "people.yaml", tmp_path / "store"
    recipe.write_text(f"""
name: people
data:
  answers: {{path: answers.jsonl}}
  pairs: {{artifact: labels, file: preferences.jsonl}}
stages:
  labels: {{kind: collect, data: answers}}
  rm: {{kind: reward, data: pairs, model: {chain["sft"].path}, train: {{max_steps: 1, batch_size: 4}}}}
""")
    code, out = cluster.trueup("run", recipe, "--store", store, *SLURM, cwd=tmp_path)
    assert code == 3, out
    assert "labels waits after" in out and "Traceback" not in out
    assert "waiting for people: 0 of 4 labels. `trueup collect RECIPE labels`" in out and "cancelled: rm" in out
    source = load(recipe).data["answers"]
    items, _ = items_of(rows_of(source, "preference", seed=0, name="answers").train)
    queue = LabelQueue(Batch(items), Ledger(default_url(store), "labels"))
    while handed := queue.next("ada"):
        queue.label("ada", handed[0]["item"], "left", 2, 1.0)
    code, out = cluster.trueup("run", recipe, "--store", store, *SLURM, cwd=tmp_path)
    assert code == 0, out
    assert "2 made" in out


def test_a_job_of_two_nodes_trains_one_stage(tmp_path: Path, tiny_recipe: Path, chain: Any, cluster: Any) -> None:
    store = tmp_path / "store"
    shutil.copytree(chain.store.root, store, ignore=shutil.ignore_patterns(".runs"))
    both = ("--set", "stages.base.compute.nodes=2", "--set", "compute.slurm.partition=both")
    steps = ("--set", "stages.base.train.max_steps=5", "--until", "base")
    code, out = cluster.trueup("run", tiny_recipe, "--store", store, *SLURM, *both, *steps, cwd=tmp_path)
    assert code == 0, out + "".join(file.read_text() for file in store.glob(".runs/*/base/*.out"))
    assert "8 rows × 2 processes = 16 rows" in out
    newest = Store(store).artifacts("base")[-1].manifest
    assert newest.version == 2 and newest.runtime["nodes"] == 2


def test_a_partition_that_is_not_there_is_one_line(tmp_path: Path, tiny_recipe: Path, cluster: Any) -> None:
    line = ("run", tiny_recipe, "--store", tmp_path / "store", *SLURM, "--set", "compute.slurm.partition=nowhere")
    code, out = cluster.trueup(*line, cwd=tmp_path)
    assert code == 2
    assert "stage tokenizer: Slurm refused the job: sbatch: error:" in out and "See compute.slurm" in out
    assert "Traceback" not in out


def test_a_machine_without_slurm_is_one_line(tmp_path: Path, tiny_recipe: Path, command: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = command("run", tiny_recipe, "--store", tmp_path / "store", *SLURM, cwd=tmp_path)
    assert ended.returncode == 2
    assert "compute.launcher is slurm, but this machine has no sbatch" in ended.stderr
    ended = command(
        "run", tiny_recipe, "--store", tmp_path / "store", *SLURM, "--set", "stages.dpo.sed=1", cwd=tmp_path
    )
    told = ended.stderr.splitlines()
    assert sum("unknown key `sed`" in line for line in told) == sum("no sbatch" in line for line in told) == 1


@pytest.mark.parametrize(
    ("value", "minutes"), [("90", 90), ("01:30:00", 90), ("1-00:00:01", 1441), ("two", 0), ("0", 0)]
)
def test_times(value: str, minutes: int, tmp_path: Path, tiny_recipe: Path) -> None:
    recipe, problems = inspect(tiny_recipe, overrides=[f"compute.slurm.time={value}"])
    if minutes:
        assert recipe.compute.slurm.minutes == minutes and not problems
    else:
        assert "minutes, or [DAYS-]HH:MM:SS" in str(problems[0])


def test_where_a_stage_runs_leaves_its_fingerprint_alone(tiny_recipe: Path, chain: Any) -> None:
    one = make_plan(load(tiny_recipe), chain.store)
    other = make_plan(load(tiny_recipe, overrides=["compute.launcher=slurm", "compute.slurm.qos=low"]), chain.store)
    assert [stage.fingerprint for stage in one.stages] == [stage.fingerprint for stage in other.stages]
